"""Two outputs of the same scans, compared: the table, its summary, and what is refused."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raysegment.archive.manifest import entries
from raysegment.commands.compare import compare
from raysegment.errors import DamagedTablesError, UsageError
from raysegment.options import CompareOptions
from raysegment.pipeline.changes_summary import choose_largest
from raysegment.runs.record import write_record
from raysegment.store.masks import decode_mask, encode_mask, iterate_masks
from raysegment.store.pairs import MaskPairs, MaskRows
from raysegment.store.parts import ScanRows, stage_part
from raysegment.store.place import Place
from raysegment.store.publish import prepare_tables, publish_part, take_out
from raysegment.store.schema import CHANGES_SCHEMA, METRICS_SCHEMA

SPACING = (5.0, 1.0, 1.0)


def make_rows(scan_id: str, mask: np.ndarray | None) -> ScanRows:
    scan = {"scan_id": scan_id, "patient_id": scan_id, "status": "ok", "num_slices": 4, "model_id": "m"}
    if mask is None:
        return ScanRows(scan | {"status": "failed", "error_type": "UnreadableFileError", "error_message": "bad"})
    voxels = int((mask > 0).sum())
    metric = {"scan_id": scan_id, "patient_id": scan_id, "label": "lesion", "voxels": voxels}
    metric["volume_ml"] = voxels * 5 / 1000
    return ScanRows(scan, (metric,), encode_mask(scan_id, mask, labels={"lesion": 1}, spacing_mm=SPACING))


def write_tables(out: Path, masks: dict[str, np.ndarray | None], *, per_part: int = 3, **chosen: object) -> Path:
    place = Place(str(out))
    prepare_tables(place)
    rows = [make_rows(scan_id, mask) for scan_id, mask in masks.items()]
    for start in range(0, len(rows), per_part):
        folder = f"_staging/{start}"
        publish_part(place, folder, stage_part(place, folder, rows[start : start + per_part]).name)
    write_record(
        place, {"command": "infer", "model_id": "m", "options_id": "o", "status": "done", "chosen": {**chosen}}
    )
    return out


def make_masks(num_scans: int, seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    masks = {}
    for number in range(num_scans):
        mask = np.zeros((4, 32, 32), np.uint8)
        row, column = rng.integers(4, 12, 2)
        mask[1:3, row : row + 10, column : column + 12] = 1
        masks[f"scan-{number:02d}"] = mask
    return masks


@pytest.fixture
def two_nights(tmp_path: Path) -> tuple[Path, Path]:
    """Ten scans; later one lesion is gone, one doubled, one fails, one is away, one is new, one is nearly the same."""
    first = make_masks(10, 1)
    second = {name: mask.copy() for name, mask in reversed(first.items())}
    second["scan-01"][:] = 0
    second["scan-02"][3] = second["scan-02"][2]
    second["scan-02"][0] = second["scan-02"][2]
    second["scan-03"] = None
    del second["scan-04"]
    second["scan-10"] = make_masks(1, 3)["scan-00"]
    second["scan-05"][1, 0, 0] = 1
    return write_tables(tmp_path / "before", first), write_tables(tmp_path / "after", second, per_part=4)


def run(before: Path, after: Path, out: Path, **choices: object) -> dict:
    return compare(CompareOptions(before=str(before), after=str(after), out=str(out), **choices)).summary


def test_the_changes_are_those_that_were_made(two_nights: tuple[Path, Path], tmp_path: Path) -> None:
    summary = run(*two_nights, tmp_path / "out")
    rows = {row["scan_id"]: row for row in pq.read_table(tmp_path / "out" / "changes").to_pylist()}
    assert [name for name, row in rows.items() if row["is_change"]] == ["scan-01", "scan-02"]
    assert list(rows) == sorted(rows)
    assert rows["scan-01"]["vanished"]
    assert rows["scan-02"]["difference_percent"] == pytest.approx(100)
    assert {name: row["state"] for name, row in rows.items() if row["state"] != "compared"} == {
        "scan-03": "newly_failed",
        "scan-04": "only_before",
        "scan-10": "only_after",
    }
    assert summary["scans"] == {
        "compared": 8,
        "only_before": 1,
        "only_after": 1,
        "newly_failed": 1,
        "recovered": 0,
        "failed": 0,
    }
    assert summary["changed_scans"] == 2
    assert summary["labels"]["lesion"]["vanished"] == 1
    stored = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert stored["labels"]["lesion"]["dice"]["q50"] == pytest.approx(1.0)
    assert (tmp_path / "out" / "figures" / "changes.png").stat().st_size > 5000


def test_the_numbers_are_those_of_the_stored_masks(two_nights: tuple[Path, Path], tmp_path: Path) -> None:
    run(*two_nights, tmp_path / "out")
    masks = [{row["scan_id"]: decode_mask(row) for _, row in iterate_masks(Place(str(side)))} for side in two_nights]
    for row in pq.read_table(tmp_path / "out" / "changes").to_pylist():
        if row["state"] != "compared":
            continue
        first, second = (side[row["scan_id"]] > 0 for side in masks)
        assert row["dice"] == pytest.approx(2 * (first & second).sum() / (first.sum() + second.sum()), abs=1e-9)
        assert row["difference_ml"] == pytest.approx((int(second.sum()) - int(first.sum())) * 5 / 1000, abs=1e-9)


def test_a_second_run_has_nothing_to_do_and_other_tables_are_refused(
    two_nights: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(*two_nights, tmp_path / "out")
    content = (tmp_path / "out" / "changes" / "changes.parquet").read_bytes()
    assert run(*two_nights, tmp_path / "out")["changed_scans"] == 2
    assert "nothing to do" in capsys.readouterr().out
    assert (tmp_path / "out" / "changes" / "changes.parquet").read_bytes() == content
    with pytest.raises(UsageError, match=r"change_dice was 0\.8, is 0\.5"):
        run(*two_nights, tmp_path / "out", change_dice=0.5)
    with pytest.raises(UsageError, match="tables_after"):
        run(two_nights[0], two_nights[0], tmp_path / "out")


def test_what_cannot_be_compared_is_refused(two_nights: tuple[Path, Path], tmp_path: Path) -> None:
    before, after = two_nights
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="no folder that `raysegment infer`"):
        run(tmp_path / "empty", after, tmp_path / "out")
    with pytest.raises(UsageError, match="only read"):
        run(before, after, before / "changes")
    other = write_tables(tmp_path / "other", {"elsewhere": np.ones((4, 8, 8), np.uint8)})
    with pytest.raises(UsageError, match="no scan in common"):
        run(before, other, tmp_path / "out")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    with pytest.raises(UsageError, match=r"mine\.txt"):
        run(before, after, tmp_path / "full")
    part = next((after / "masks").glob("*.parquet"))
    part.write_bytes(part.read_bytes()[:-20])
    with pytest.raises(DamagedTablesError, match=part.name):
        run(before, after, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_pairs_come_in_a_stream_whatever_the_order_and_the_room(two_nights: tuple[Path, Path]) -> None:
    before, after = (Place(str(side)) for side in two_nights)
    pairs = MaskPairs(before, after, cache_bytes=1)
    rows = [pair for batch in pairs.batches() for pair in batch]
    assert [(one or two)["scan_id"] for one, two in rows] == pairs.scan_ids.to_pylist()
    assert all(one["scan_id"] == two["scan_id"] for one, two in rows if one and two)
    found = {(one or two)["scan_id"]: (one is not None, two is not None) for one, two in rows}
    assert found == {
        **{f"scan-{number:02d}": (True, True) for number in (0, 1, 2, 5, 6, 7, 8, 9)},
        **{"scan-03": (True, False), "scan-04": (True, False), "scan-10": (False, True)},
    }
    rows = MaskRows(before, cache_bytes=1)
    assert [rows.find(scan_id)["scan_id"] for scan_id in ("scan-09", "scan-00", "scan-09")] == [
        "scan-09",
        "scan-00",
        "scan-09",
    ]
    assert rows.find("scan-10") is None


def test_the_largest_changes_are_drawn_over_the_scans(phantom_archive: Path, tmp_path: Path) -> None:
    from raysegment.archive.index import find_scans

    masks = {}
    for entry in entries(find_scans(str(phantom_archive)).slice(0, 3)):
        masks[entry.scan_id] = np.zeros((len(entry.files), 64, 64), np.uint8)
        masks[entry.scan_id][2:4, 20:30, 20:30] = 1
    before = write_tables(tmp_path / "before", masks, source=str(phantom_archive))
    grown = {name: np.maximum(mask, np.roll(mask, 6, axis=1)) for name, mask in masks.items()}
    after = write_tables(tmp_path / "after", grown, source=str(phantom_archive))
    result = compare(CompareOptions(before=str(before), after=str(after), out=str(tmp_path / "out")))
    assert [Path(path).name for path in result.figures] == ["changes.png", "largest_changes.png"]
    assert all(Path(path).stat().st_size > 5000 for path in result.figures)


def test_parts_that_both_share_are_not_read_and_give_the_same_rows(
    two_nights: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A night that was begun from links to the one before, against copies of the same files."""
    before, linked, copied = two_nights[0], tmp_path / "linked", tmp_path / "copied"
    shutil.copytree(before, linked, copy_function=os.link)
    take_out(Place(str(linked)), pa.array(["scan-07"]))
    extra = [make_rows("scan-20", np.ones((4, 8, 8), np.uint8)), make_rows("scan-07", np.ones((4, 32, 32), np.uint8))]
    publish_part(Place(str(linked)), "_staging/9", stage_part(Place(str(linked)), "_staging/9", extra).name)
    shutil.copytree(linked, copied)
    run(before, copied, tmp_path / "out-copied")
    for part in sorted((linked / "metrics").iterdir())[:2]:
        # A night may judge masks anew, so that metrics have other files with the same volumes.
        rows = pq.read_table(part, partitioning=None).to_pylist()
        judged = [row | {"needs_review": True} for row in rows]
        part.unlink()
        pq.write_table(pa.Table.from_pylist(judged, schema=METRICS_SCHEMA), part)
    taken: list[str] = []
    opened = MaskRows._open
    monkeypatch.setattr(MaskRows, "_open", lambda rows, part: (taken.append(rows._parts[part]), opened(rows, part))[1])
    summary = run(before, linked, tmp_path / "out-linked")
    assert len(set(taken)) == 1, "only the part of scan-07 is compared"
    assert summary["changed_scans"] == 1
    found = [pq.read_table(tmp_path / f"out-{name}" / "changes") for name in ("linked", "copied")]
    assert repr(found[0].to_pylist()) == repr(found[1].to_pylist())


def test_the_largest_changes_come_first() -> None:
    rows = [
        {"scan_id": name, "label": "lesion", "state": "compared", "is_change": changed, "voxels_before": 10}
        | {"voxels_after": after, "volume_ml_before": 1.0, "volume_ml_after": ml, "dice": dice}
        | {"difference_ml": None if ml is None else ml - 1.0}
        for name, changed, after, ml, dice in [
            ("small", True, 12, 1.2, 0.9),
            ("unlike", True, 12, 1.2, 0.1),
            ("shrunk", True, 1, 0.1, None),
            ("same", False, 10, 9.0, 1.0),
            ("without-volume", True, 60, None, float("nan")),
        ]
    ]
    chosen = choose_largest(pa.Table.from_pylist(rows, schema=CHANGES_SCHEMA), 3)
    assert [name for _, name, _ in chosen] == ["without-volume", "shrunk", "unlike"]
