"""Comparisons worked out once more from the stored masks, by a program that shares no code with raysegment."""

from __future__ import annotations

import importlib.util
import json
import math
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pyarrow.parquet as pq
import pytest

from raysegment.commands.compare import compare
from raysegment.options import CompareOptions
from raysegment.runs.record import write_record
from raysegment.store.masks import encode_mask
from raysegment.store.parts import ScanRows, stage_part
from raysegment.store.place import Place
from raysegment.store.publish import prepare_tables, publish_part

SHEARED = np.array([[0.0, 0.2, 1.0, 5.0], [0.0, 0.9, 0.0, 1.0], [4.0, 0.0, 0.0, 2.0], [0, 0, 0, 1]])
SPACINGS = [None, (4.0, 0.9, 1.1), (0.7, 0.7, 0.7)]


@pytest.fixture(scope="module")
def recomputed() -> ModuleType:
    path = Path(__file__).parents[2] / "benchmarks" / "recompute_changes.py"
    assert "import raysegment" not in path.read_text()
    assert "from raysegment" not in path.read_text()
    spec = importlib.util.spec_from_file_location("recompute_changes", path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules["recompute_changes"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def make_blobs(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """A label map of up to two boxes."""
    mask = np.zeros(shape, np.uint8)
    for value in (1, 2):
        first = [int(rng.integers(0, side)) for side in shape]
        mask[tuple(slice(at, at + int(rng.integers(1, 6))) for at in first)] = value
    return mask


def make_rows(number: int, mask: np.ndarray | None, affine: np.ndarray | None, overlaps: bool) -> ScanRows:
    """A scan as `infer` writes it: volumes by the affine, else by the spacing."""
    scan = {"scan_id": f"scan-{number:02d}", "patient_id": "p", "status": "ok", "num_slices": 4, "model_id": "m"}
    if mask is None:
        return ScanRows(scan | {"status": "failed", "error_type": "UnreadableFileError", "error_message": "bad"})
    spacing = SPACINGS[number % 3]
    if affine is not None:
        spacing = tuple(float(side) for side in np.linalg.norm(affine[:3, :3], axis=0))
    planes = {"core": mask == 1, "rim": mask > 0} if overlaps else {"core": mask == 1, "rim": mask == 2}
    voxel = abs(float(np.linalg.det(affine[:3, :3]))) if affine is not None else math.prod(spacing or [math.nan])
    stored = np.stack(list(planes.values())).astype(np.uint8) if overlaps else mask
    metrics = tuple(
        {"scan_id": scan["scan_id"], "label": name, "voxels": int(plane.sum()), "volume_ml": plane.sum() * voxel / 1000}
        for name, plane in planes.items()
    )
    labels = {"core": 1, "rim": 2}
    return ScanRows(
        scan, metrics, encode_mask(scan["scan_id"], stored, labels=labels, spacing_mm=spacing, affine=affine)
    )


def write_side(folder: Path, rows: list[ScanRows], per_part: int) -> None:
    place = Place(str(folder))
    prepare_tables(place)
    for start in range(0, len(rows), per_part):
        staged = f"_staging/{start}"
        publish_part(place, staged, stage_part(place, staged, rows[start : start + per_part]).name)
    write_record(place, {"command": "infer", "model_id": "m", "options_id": "o", "status": "done", "chosen": {}})


@pytest.fixture
def compared(tmp_path: Path) -> tuple[Path, Path, Path]:
    """Thirty scans: some the same, changed, empty on one side, failed, gone, sheared, or with labels that overlap."""
    rng = np.random.default_rng(7)
    sides: tuple[list[ScanRows], list[ScanRows]] = ([], [])
    for number in range(30):
        affine = SHEARED if number % 5 == 4 else None
        first = make_blobs(rng, (4, 12, 10))
        second = [first, make_blobs(rng, (4, 12, 10)), np.roll(first, 1, 1), np.zeros_like(first)][number % 4]
        if number % 8 == 7:
            first, second = second, first
        masks = [None if number == 11 else first, None if number in (5, 11) else second]
        for side, mask in zip(sides, masks, strict=True):
            side.append(make_rows(number, mask, affine, overlaps=number % 2 == 1))
    write_side(tmp_path / "before", sides[0][:-1], 4)
    write_side(tmp_path / "after", sides[1][:0:-1], 7)
    folders = tmp_path / "before", tmp_path / "after", tmp_path / "changes"
    compare(CompareOptions(before=str(folders[0]), after=str(folders[1]), out=str(folders[2])))
    return folders


def test_every_number_is_the_one_that_is_recomputed(recomputed: ModuleType, compared: tuple[Path, Path, Path]) -> None:
    found = recomputed.recount(*compared)
    assert found.wrong == []
    assert found.counts == {"compared": 52, "newly_failed": 2, "failed": 1, "only_before": 2, "only_after": 2}
    assert max(found.largest.values()) <= 1e-9
    rows = pq.read_table(compared[2] / "changes").to_pylist()
    assert sum(bool(row["is_change"]) for row in rows) > 5
    assert sum(row["hd95_mm"] is not None and row["hd95_mm"] > 0 for row in rows) > 5


def test_a_wrong_number_is_found(recomputed: ModuleType, compared: tuple[Path, Path, Path]) -> None:
    path = compared[2] / "changes" / "changes.parquet"
    table = pq.read_table(path)
    rows = table.to_pylist()
    rows[0]["dice"] = 0.987654321
    rows[3]["is_change"] = not rows[3]["is_change"]
    pq.write_table(table.from_pylist(rows, schema=table.schema), path)
    found = recomputed.recount(*compared)
    assert len([line for line in found.wrong if not line.startswith("summary")]) == 2
    summary = compared[2] / "summary.json"
    summary.write_text(json.dumps(json.loads(summary.read_text()) | {"changed_scans": 99}))
    assert any("changed_scans 99" in line for line in recomputed.recount(*compared).wrong)
