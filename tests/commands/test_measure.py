"""Stored masks against references: the numbers of `evaluate`, without a network, a Ray or a second look at the scans."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import tifffile

from raysegment.archive.decoder import Decoder
from raysegment.archive.index import find_scans
from raysegment.archive.manifest import entries
from raysegment.commands import measure as measure_module
from raysegment.commands.measure import measure
from raysegment.errors import OutputError, UsageError
from raysegment.options import MeasureOptions, Postprocessing, Preprocessing
from raysegment.pipeline.blocks import read_block, scans_of
from raysegment.pipeline.segment import ScanSegmenter, SegmentSettings
from raysegment.runs.record import write_record
from raysegment.scan import Labels, ReadSettings
from raysegment.store.masks import encode_mask
from raysegment.store.parts import ScanRows, stage_part
from raysegment.store.place import Place
from raysegment.store.publish import prepare_tables, publish_part, read_rows

NEVER_EQUAL = {"fingerprint", "options_id", "attempt"}


def predict(batch: np.ndarray) -> np.ndarray:
    """Bright pixels are lesion."""
    return (1 / (1 + np.exp(-batch[..., :1]))).astype(np.float32)


def segment(archive: Path, out: Path, labels: Labels = Labels(), network=predict, **settings) -> list[ScanRows]:  # noqa: B008
    """What `evaluate` does with a made-up network, in this process."""
    choices = SegmentSettings(
        preprocessing=Preprocessing(image_size=64, channels=(0,)),
        postprocessing=Postprocessing(threshold=0.7),
        labels=labels,
        num_channels=settings.pop("num_channels", 3),
        grid_factor=4,
        model_id="m",
        options_id="o",
        **settings,
    )
    segmenter = ScanSegmenter(network, choices)
    with Decoder(settings=ReadSettings(labels=labels)) as decoder:
        blocks = (block for entry in entries(find_scans(str(archive))) for block in read_block(decoder, [entry]))
        rows = [row for block in blocks for row in segmenter.segment(scans_of(block))]
    write_tables(out, rows)
    return rows


def write_tables(out: Path, rows: list[ScanRows], **record) -> None:
    place = Place(str(out))
    prepare_tables(place)
    for number, half in enumerate((rows[::2], rows[1::2])):
        if half:
            publish_part(place, f"_staging/{number}", stage_part(place, f"_staging/{number}", half).name)
    about = {"command": "infer", "model_id": "m", "options_id": "o", "result_options": {"threshold": 0.7}}
    write_record(place, {**about, "status": "done", "chosen": {"model": "gone"}, **record})


@pytest.fixture(scope="module")
def segmented(phantom_archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("segmented")
    segment(phantom_archive, out, spacing_mm=(5.0, 1.0, 1.0), needs_reference=True)
    return out


def options_for(tables: Path, references: Path, out: Path, **more) -> MeasureOptions:
    return MeasureOptions(tables=str(tables), references=str(references), out=str(out), **more)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def rows_of(folder: Path, table: str) -> dict[str, dict]:
    found = read_rows(Place(str(folder)), table).to_pylist()
    return {"/".join((row["scan_id"], row.get("label", ""))): row for row in found}


def equal(first: object, second: object) -> bool:
    both_nan = isinstance(first, float) and isinstance(second, float) and math.isnan(first) and math.isnan(second)
    return both_nan or first == second


def test_the_numbers_are_those_of_evaluate_and_the_tables_stay_as_they_are(segmented, phantom_archive, tmp_path):
    before = contents(segmented)
    result = measure(options_for(segmented, phantom_archive, tmp_path / "eval"))
    assert contents(segmented) == before
    assert (result.scans_ok, result.scans_failed, result.scans_now, result.exit_code) == (6, 0, 6, 0)
    for table in ("metrics", "scans"):
        made, known = rows_of(tmp_path / "eval", table), rows_of(segmented, table)
        assert made.keys() == known.keys()
        for name, row in made.items():
            same = {key for key in row if key not in NEVER_EQUAL and not key.startswith("seconds_")}
            assert [key for key in same if not equal(row[key], known[name][key])] == []
    assert not (tmp_path / "eval" / "masks").exists()
    summary = json.loads((tmp_path / "eval" / "summary.json").read_text())
    assert summary["scans"] == 6
    assert summary["dice_mean"] == pytest.approx(np.nanmean([row["dice"] for row in made_metrics(segmented)]))
    assert summary["training_patients_included"] is None


def made_metrics(folder: Path) -> list[dict]:
    return list(rows_of(folder, "metrics").values())


def test_a_finished_measurement_has_nothing_to_do(segmented, phantom_archive, tmp_path, capsys):
    options = options_for(segmented, phantom_archive, tmp_path / "eval")
    first = measure(options)
    written = {name: data for name, data in contents(tmp_path / "eval").items() if name.endswith(".parquet")}
    again = measure(options)
    assert (again.scans_ok, again.scans_now) == (first.scans_ok, 0)
    assert "nothing to do" in capsys.readouterr().out
    assert {name: data for name, data in contents(tmp_path / "eval").items() if name in written} == written


def test_a_measurement_goes_on_where_it_was_stopped(segmented, phantom_archive, tmp_path, monkeypatch):
    options = options_for(segmented, phantom_archive, tmp_path / "eval", part_seconds=0.0, workers=1)
    published = []

    def publish_two(*given):
        if len(published) == 2:
            raise OutputError("the disk is gone")
        published.append(given)
        publish_part(*given)

    monkeypatch.setattr(measure_module, "publish_part", publish_two)
    with pytest.raises(OutputError):
        measure(options)
    assert len(rows_of(tmp_path / "eval", "scans")) == 2
    monkeypatch.undo()
    result = measure(options)
    assert (result.scans_now, result.scans_ok) == (4, 6)
    assert rows_of(tmp_path / "eval", "metrics").keys() == rows_of(segmented, "metrics").keys()
    assert not (tmp_path / "eval" / "_staging").exists()
