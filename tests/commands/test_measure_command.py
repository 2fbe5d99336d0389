"""Stored masks against references: the numbers of `evaluate`, without a network and without the scans."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import nibabel
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from raysegment.archive.decoder import Decoder
from raysegment.archive.index import find_scans
from raysegment.archive.manifest import entries, write_manifest
from raysegment.commands import measure as measure_module
from raysegment.commands.measure import measure
from raysegment.commands.report import report
from raysegment.errors import OutputError, UsageError
from raysegment.options import Finding, MeasureOptions, Postprocessing, Preprocessing, ReportOptions
from raysegment.pipeline.blocks import read_block, scans_of
from raysegment.pipeline.gallery import draw_inference_figures, draw_training_figures
from raysegment.pipeline.segment import ScanSegmenter
from raysegment.pipeline.settings import SegmentSettings
from raysegment.runs.record import read_record, write_record
from raysegment.scan import Labels, ReadSettings
from raysegment.store.parts import ScanRows, stage_part
from raysegment.store.place import Place
from raysegment.store.publish import prepare_tables, publish_part, read_rows
from raysegment.store.schema import ADDED_COLUMNS

LESION = Labels()
NEVER_EQUAL = {"fingerprint", "options_id", "attempt"}


def predict(batch: np.ndarray) -> np.ndarray:
    """Bright pixels are lesion."""
    return (1 / (1 + np.exp(-batch[..., :1]))).astype(np.float32)


def segment(
    archive: Path, out: Path, labels=LESION, network=predict, how=None, slice_axis="auto", **settings
) -> list[ScanRows]:
    """What `evaluate` does with a made-up network, in this process."""
    choices = SegmentSettings(
        preprocessing=Preprocessing(image_size=64, channels=(0,), slice_axis=slice_axis),
        postprocessing=Postprocessing(threshold=0.7),
        labels=labels,
        num_channels=settings.pop("num_channels", 3),
        grid_factor=4,
        model_id="m",
        options_id="o",
        **settings,
    )
    segmenter = ScanSegmenter(lambda batch: [network(batch)], choices)
    with Decoder(settings=ReadSettings(labels=labels, slice_axis=slice_axis)) as decoder:
        blocks = (block for entry in entries(find_scans(str(archive), how)) for block in read_block(decoder, [entry]))
        rows = [row for block in blocks for row in segmenter.segment(scans_of(block))]
    write_tables(out, rows, chosen={"model": "gone", **asdict(how or Finding())})
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
    drawn = report(ReportOptions(folder=str(tmp_path / "eval"))).figures
    assert [Path(path).name for path in drawn] == ["confusion_matrix.png", "dice_per_scan.png"]
    summary = json.loads((tmp_path / "eval" / "summary.json").read_text())
    assert summary["scans"] == 6
    assert summary["dice_mean"] == pytest.approx(
        np.nanmean([row["dice"] for row in rows_of(segmented, "metrics").values()])
    )
    assert summary["training_patients_included"] is None


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


def test_scans_that_were_not_segmented_or_whose_reference_is_bad_fail(segmented, phantom_archive, tmp_path):
    archive, tables = tmp_path / "archive", tmp_path / "tables"
    for path in phantom_archive.rglob("*.tif"):
        copied = archive / path.relative_to(phantom_archive)
        copied.parent.mkdir(parents=True, exist_ok=True)
        copied.write_bytes(path.read_bytes())
    rows = segment(archive, tables)
    first, second, third = [row.scan_id for row in rows[:3]]
    failed = {**rows[0].scan, "status": "failed", "error_type": "EmptyFileError", "error_message": "no bytes"}
    tables = tmp_path / "with-failed"
    write_tables(tables, [ScanRows(failed), *rows[1:-1]])
    next((archive / second).glob("*_mask.tif")).write_bytes(b"no image")
    for mask in (archive / third).glob("*_mask.tif"):
        Image.fromarray(np.zeros((8, 8), np.uint8)).save(mask)
    result = measure(options_for(tables, archive, tmp_path / "eval"))
    assert (result.scans_total, result.scans_ok, result.scans_failed, result.exit_code) == (5, 2, 3, 3)
    found = {row["scan_id"]: row for row in rows_of(tmp_path / "eval", "scans").values()}
    assert found[first]["error_type"] == "EmptyFileError"
    assert found[second]["error_type"] == "UnreadableReferenceError"
    assert found[third]["error_type"] == "GridMismatchError"
    assert found[third]["reference_error"].startswith("GridMismatchError: ")
    assert result.summary["scans_failed"] == 3


def test_references_of_another_reader_are_found_by_their_names(segmented, phantom_archive, tmp_path):
    """A second reader drew nothing at all, in files of one page a slice that lie in a folder of their own."""
    masks = sorted(phantom_archive.rglob("*_mask.tif"))
    for path in masks:
        copied = tmp_path / "reader" / path.parent.name / f"{path.stem.removesuffix('_mask')}-second.png"
        copied.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.zeros((64, 64), np.uint8)).save(copied)
    options = options_for(segmented, tmp_path / "reader", tmp_path / "eval", reference=("{scan}/*-second.png",))
    result = measure(options)
    metrics = rows_of(tmp_path / "eval", "metrics").values()
    assert (result.scans_ok, {row["reference_is_empty"] for row in metrics}) == (6, {True})
    assert {row["dice_at_half"] for row in metrics} == {None}
    before = rows_of(segmented, "metrics")
    assert all(row["mean_probability"] == before[f"{row['scan_id']}/lesion"]["mean_probability"] for row in metrics)
    with pytest.raises(UsageError, match="references was"):
        measure(options_for(segmented, phantom_archive, tmp_path / "eval"))


def test_scans_are_found_as_they_were_when_they_were_segmented(tmp_path):
    made = volumes(tmp_path / "made")
    for kind, name in (("images", "t1"), ("labels", "drawn")):
        for path in (made / kind).iterdir():
            target = tmp_path / "archive" / path.name.partition(".")[0] / f"{name}.nii.gz"
            target.parent.mkdir(parents=True, exist_ok=True)
            path.rename(target)
    how = Finding(channel=("T1={scan}/t1.nii.gz",), reference=("{scan}/drawn.nii.gz",))
    segment(tmp_path / "archive", tmp_path / "tables", num_channels=1, how=how)
    result = measure(options_for(tmp_path / "tables", tmp_path / "archive", tmp_path / "eval"))
    assert (result.scans_ok, result.exit_code) == (2, 0)
    assert all(row["dice_at_half"] is not None for row in rows_of(tmp_path / "eval", "metrics").values())


def make_version_2(folder: Path) -> None:
    """A folder as the version before doubt left it."""
    for part in (folder / "metrics").glob("*.parquet"):
        table = pq.read_table(part, partitioning=None)
        pq.write_table(table.drop_columns(list(ADDED_COLUMNS[3]["metrics"])), part)
    place = Place(str(folder))
    write_record(place, read_record(place) | {"schema_version": 2})


def test_tables_of_version_2_have_no_doubt_and_measurements_of_it_go_on(segmented, phantom_archive, tmp_path):
    tables = Path(shutil.copytree(segmented, tmp_path / "tables"))
    make_version_2(tables)
    options = options_for(tables, phantom_archive, tmp_path / "eval")
    result = measure(options)
    assert (result.scans_ok, result.summary["scans_to_review"], result.summary["scans_review_unknown"]) == (6, 0, 6)
    rows = rows_of(tmp_path / "eval", "metrics")
    assert {row[name] for row in rows.values() for name in ADDED_COLUMNS[3]["metrics"]} == {None}
    make_version_2(tmp_path / "eval")
    assert measure(options).scans_now == 0
    assert json.loads((tmp_path / "eval" / "run.json").read_text())["schema_version"] == 5
    assert len(pd.read_parquet(tmp_path / "eval" / "metrics")["needs_review"]) == 6


def test_a_killed_measurement_leaves_whole_parts(segmented, phantom_archive, tmp_path):
    out = tmp_path / "eval"
    words = ["measure", str(segmented), str(phantom_archive), "--out", str(out), "--part-seconds", "0"]
    running = subprocess.Popen([sys.executable, "-m", "raysegment", *words], stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not list((out / "scans").glob("*.parquet")) and running.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    running.kill()
    running.wait()
    done = len(rows_of(out, "scans"))
    assert done > 0
    result = measure(options_for(segmented, phantom_archive, out, part_seconds=0.0))
    assert (result.scans_ok, result.scans_now) == (6, 6 - done)
    assert rows_of(out, "metrics").keys() == rows_of(segmented, "metrics").keys()


def test_names_that_fit_no_scan_are_shown(segmented, phantom_archive, tmp_path):
    with pytest.raises(UsageError, match=r"of which none is a scan in the tables"):
        measure(options_for(segmented, phantom_archive, tmp_path / "eval", reference=("{scan}_mask.tif",)))
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "image.png")
    with pytest.raises(UsageError, match="none of the 1 scans that were found has a reference"):
        measure(options_for(segmented, tmp_path, tmp_path / "eval"))


def test_tables_are_neither_written_nor_taken_from_another_tool(segmented, phantom_archive, tmp_path):
    with pytest.raises(UsageError, match="is only read"):
        measure(options_for(segmented, phantom_archive, segmented / "eval"))
    with pytest.raises(UsageError, match="is no folder that"):
        measure(options_for(phantom_archive, phantom_archive, tmp_path / "eval"))


def volumes(folder: Path, *, values: tuple[int, int] = (1, 2), has_affine: bool = True) -> Path:
    """Two cases of 4 x 20 x 24 voxels: the left half of a bright box is the first label, its right half the second."""
    affine = np.array([[-0.8, 0, 0, 10], [0, -0.8, 0, 5], [0, 0, 5, 3], [0, 0, 0, 1]])
    for number in (1, 2):
        image, mask = np.zeros((24, 20, 4), np.float32), np.zeros((24, 20, 4), np.uint8)
        image[6:18, 5 : 10 + number, 1:3] = 100
        mask[6:12, 5:12, 1:3], mask[12:18, 5:12, 1:3] = values
        for kind, array in (("images", image), ("labels", mask)):
            (folder / kind).mkdir(parents=True, exist_ok=True)
            nibabel.save(
                nibabel.Nifti1Image(array, affine if has_affine else None), folder / kind / f"case{number}.nii.gz"
            )
    return folder


def halves(batch: np.ndarray) -> np.ndarray:
    """Softmax of two labels: the left and the right of what is bright."""
    bright = batch[..., 0] > 0
    middle = np.arange(batch.shape[2]) < 32
    return np.stack([bright & middle, bright & ~middle], axis=-1).astype(np.float32)


@pytest.mark.parametrize("slice_axis", ["auto", "coronal", "sagittal"])
def test_two_labels_of_volumes_are_measured_each_however_they_were_cut(slice_axis, tmp_path):
    labels = Labels(("front", "back"), ((1,), (2,)))
    archive = volumes(tmp_path / "archive")
    segment(archive, tmp_path / "tables", labels, halves, slice_axis=slice_axis, num_channels=1)
    result = measure(options_for(tmp_path / "tables", archive, tmp_path / "eval"))
    known, made = (rows_of(folder, "metrics") for folder in (tmp_path / "tables", tmp_path / "eval"))
    assert result.scans_ok == 2
    assert len(made) == 4
    assert [(name, key) for name in known for key in known[name] if not equal(made[name][key], known[name][key])] == []
    if slice_axis == "auto":
        assert all(0.5 < row["dice"] <= 1 and row["hd95_mm"] < 5 for row in made.values())


def test_other_values_in_references_are_told_with_labels(tmp_path):
    segment(
        volumes(tmp_path / "archive"),
        tmp_path / "tables",
        Labels(("front", "back"), ((1,), (2,))),
        halves,
        num_channels=1,
    )
    other = volumes(tmp_path / "other", values=(4, 7))
    wrong = measure(options_for(tmp_path / "tables", other, tmp_path / "wrong"))
    assert (wrong.exit_code, wrong.failed_by_type) == (1, {"ReferenceValuesError": 2})
    given = measure(options_for(tmp_path / "tables", other, tmp_path / "right", labels=("back=7", "front=4")))
    known = rows_of(tmp_path / "tables", "metrics")
    made = rows_of(tmp_path / "right", "metrics")
    assert (given.exit_code, {name: row["dice"] for name, row in made.items()}) == (
        0,
        {name: row["dice"] for name, row in known.items()},
    )
    with pytest.raises(UsageError, match="front"):
        measure(options_for(tmp_path / "tables", other, tmp_path / "none", labels=("whole=7",)))


def test_labels_that_overlap_need_their_values_where_the_model_is_gone(tmp_path):
    archive = volumes(tmp_path / "archive")
    labels = Labels(("whole", "back"), ((1, 2), (2,)))
    segment(archive, tmp_path / "tables", labels, halves, num_channels=1)
    with pytest.raises(UsageError, match="--labels whole="):
        measure(options_for(tmp_path / "tables", archive, tmp_path / "eval"))
    measure(options_for(tmp_path / "tables", archive, tmp_path / "eval", labels=("whole=1+2", "back=2")))
    known, made = (rows_of(folder, "metrics") for folder in (tmp_path / "tables", tmp_path / "eval"))
    assert {name: row["dice"] for name, row in made.items()} == {name: row["dice"] for name, row in known.items()}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory, phantom_archive: Path):
    """An untrained network whose bundle says that it was trained on the first patient."""
    from raysegment.model.bundle import BundleDescription, save_bundle
    from raysegment.model.unet import build_network

    choices = {"network": "unet", "filters": 2, "depth": 1, "dropout": 0.0, "norm": "batch", "norm_momentum": 0.9}
    network = build_network(**choices, input_shape=(64, 64, 1))
    description = BundleDescription(
        preprocessing=Preprocessing(image_size=64, channels=(0,)),
        postprocessing=Postprocessing(threshold=0.7),
        num_channels=3,
        network=choices,
        training_patients=patients_of(phantom_archive)[:1],
    )
    return save_bundle(tmp_path_factory.mktemp("bundle") / "model", network, description)


def patients_of(archive: Path) -> list[str]:
    return sorted(set(find_scans(str(archive))["patient_id"].to_pylist()))


def test_patients_that_the_model_knows_are_refused_counted_or_not_known(bundle, segmented, phantom_archive, tmp_path):
    patients = patients_of(phantom_archive)
    split = tmp_path / "split.json"
    split.write_text(json.dumps({"train": patients[3:], "val": patients[1:3], "test": patients[:1]}))
    rows = segment(phantom_archive, tmp_path / "first")
    record = {"model_id": bundle.model_id, "chosen": {"model": str(bundle.path)}}
    marked = [ScanRows({**row.scan, "model_id": bundle.model_id}, row.metrics, row.mask) for row in rows]
    write_tables(tmp_path / "tables", marked, **record)
    chosen = {"split": "test", "split_file": str(split)}
    with pytest.raises(UsageError, match="was trained on 1 of its 1 patients"):
        measure(options_for(tmp_path / "tables", phantom_archive, tmp_path / "eval", **chosen))
    with pytest.raises(UsageError, match="cannot be told"):
        measure(options_for(segmented, phantom_archive, tmp_path / "eval", **chosen))
    with pytest.raises(UsageError, match="the masks were made by m"):
        measure(options_for(segmented, phantom_archive, tmp_path / "eval", model=str(bundle.path)))
    allowed = measure(
        options_for(tmp_path / "tables", phantom_archive, tmp_path / "eval", allow_training_patients=True, **chosen)
    )
    assert (allowed.scans_total, allowed.summary["training_patients_included"], allowed.summary["split"]) == (
        1,
        1,
        "test",
    )


@pytest.mark.parametrize("slice_axis", ["coronal", "sagittal"])
def test_volumes_that_lie_nowhere_are_cut_as_they_were(slice_axis, tmp_path):
    archive = volumes(tmp_path / "archive", has_affine=False)
    labels = Labels(("front", "back"), ((1,), (2,)))
    segment(archive, tmp_path / "tables", labels, halves, slice_axis=slice_axis, num_channels=1)
    measure(options_for(tmp_path / "tables", archive, tmp_path / "eval"))
    known, made = (rows_of(folder, "metrics") for folder in (tmp_path / "tables", tmp_path / "eval"))
    assert {name: row["dice"] for name, row in made.items()} == {name: row["dice"] for name, row in known.items()}
    drawn = draw_inference_figures(tmp_path / "tables", find_scans(str(archive)), labels)
    assert "predictions.png" in [path.name for path in drawn]


def tell_labels(tables: Path, labels: Labels, **more) -> None:
    place = Place(str(tables))
    write_record(place, read_record(place) | {"labels": labels.as_plain, **more})


def test_the_values_of_labels_are_known_where_only_the_tables_are_there(tmp_path, monkeypatch):
    archive = volumes(tmp_path / "archive")
    labels = Labels(("whole", "back"), ((1, 2), (2,)), ((255, 0, 0), (0, 255, 0)))
    segment(archive, tmp_path / "tables", labels, halves, num_channels=1)
    tell_labels(tmp_path / "tables", labels, result_options={"threshold": "whole=0.7,back=0.4"})
    shown = []
    monkeypatch.setattr(measure_module, "draw_inference_figures", lambda *given: shown.append(given[2]) or [])
    result = measure(options_for(tmp_path / "tables", archive, tmp_path / "eval"))
    assert result.summary["threshold"] == {"whole": 0.7, "back": 0.4}
    known, made = (rows_of(folder, "metrics") for folder in (tmp_path / "tables", tmp_path / "eval"))
    assert {name: row["dice"] for name, row in made.items()} == {name: row["dice"] for name, row in known.items()}
    assert shown == [labels]
    assert read_record(Place(str(tmp_path / "eval")))["labels"] == labels.as_plain


def test_a_label_of_several_values_keeps_them_where_the_model_is_gone(tmp_path):
    archive = volumes(tmp_path / "archive")
    labels = Labels(("whole",), ((1, 2),))
    segment(archive, tmp_path / "tables", labels, num_channels=1)
    tell_labels(tmp_path / "tables", labels)
    assert measure(options_for(tmp_path / "tables", archive, tmp_path / "eval")).exit_code == 0


@pytest.mark.parametrize("changed", [{"labels": ("front=2", "back=1")}, {"resample_channels": True}, {}])
def test_the_dice_at_half_is_only_taken_over_where_references_are_read_as_then(changed, tmp_path):
    archive = volumes(tmp_path / "archive")
    segment(archive, tmp_path / "tables", Labels(("front", "back"), ((1,), (2,))), halves, num_channels=1)
    measure(options_for(tmp_path / "tables", archive, tmp_path / "eval", **changed))
    rows = rows_of(tmp_path / "eval", "metrics").values()
    assert all((row["dice_at_half"] is None) == bool(changed) for row in rows)


def test_training_on_square_millimetres_is_drawn_where_the_spacing_is_given(phantom_archive, tmp_path):
    from raysegment.model.bundle import BundleDescription, save_bundle
    from raysegment.model.unet import build_network

    choices = {"network": "unet", "filters": 2, "depth": 1, "dropout": 0.0, "norm": "batch", "norm_momentum": 0.9}
    description = BundleDescription(
        preprocessing=Preprocessing(image_size=64, channels=(0,), pixel_mm=1.0),
        postprocessing=Postprocessing(),
        num_channels=3,
        network=choices,
        training_patients=(),
    )
    save_bundle(tmp_path / "model", build_network(**choices, input_shape=(64, 64, 1)), description)
    scans = find_scans(str(phantom_archive)).slice(0, 1)
    index = scans.schema.get_field_index("split")
    write_manifest(
        scans.set_column(index, scans.schema.field(index), pa.array(["val"])), str(tmp_path / "manifest.parquet")
    )
    pq.write_table(pa.table({"epoch": [1], "loss": [1.0], "dice": [0.5]}), tmp_path / "history.parquet")
    how = {"best_epoch": 1, "best_by": "val_dice", "spacing_mm": (5.0, 1.0, 1.0), "unnamed": tmp_path / "unnamed"}
    drawn = draw_training_figures(tmp_path, **how)
    assert [path.name for path in drawn] == ["curves.png", "predictions.png"]
    assert (tmp_path / "unnamed" / "predictions.png").read_bytes() not in {b"", drawn[1].read_bytes()}
