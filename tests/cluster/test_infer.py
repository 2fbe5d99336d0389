"""Whole runs of `infer` and `evaluate` on phantoms, with one Ray."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tifffile

from raysegment.commands.evaluate import evaluate
from raysegment.commands.infer import infer
from raysegment.errors import LockedError, TooManyFailuresError, UsageError
from raysegment.imaging.phantom import write_archive
from raysegment.options import EvaluateOptions, InferOptions
from raysegment.runs.lock import RunLock
from raysegment.store.masks import decode_mask
from raysegment.store.place import Place

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("ray_here")]


def options_for(bundle, archive, out, **choices) -> InferOptions:
    return InferOptions(model=str(bundle), source=str(archive), out=str(out), **choices)


def read(out: Path, table: str) -> pd.DataFrame:
    return pd.read_parquet(out / table).sort_values("scan_id", ignore_index=True)


@pytest.fixture(scope="module")
def finished(tmp_path_factory, tiny_bundle, phantom_archive, ray_here) -> Path:
    """The tables of an undisturbed run."""
    out = tmp_path_factory.mktemp("finished") / "out"
    result = infer(options_for(tiny_bundle, phantom_archive, out))
    assert (result.scans_total, result.scans_ok, result.scans_failed, result.exit_code) == (24, 24, 0, 0)
    return out


def test_every_scan_is_in_all_tables_once(finished, phantom_archive):
    scans, metrics, masks = (read(finished, table) for table in ("scans", "metrics", "masks"))
    expected = sorted(path.name for path in phantom_archive.iterdir())
    assert list(scans["scan_id"]) == list(metrics["scan_id"]) == list(masks["scan_id"]) == expected
    assert set(scans["status"]) == {"ok"}
    assert not (finished / "_staging").exists()
    assert not (finished / "_lock.json").exists()


def test_stored_numbers_are_those_of_the_stored_masks(finished, phantom_archive):
    metrics, masks = read(finished, "metrics"), read(finished, "masks")
    for metric, row in zip(metrics.to_dict("records"), masks.to_dict("records"), strict=True):
        mask = decode_mask(row)
        folder = phantom_archive / row["scan_id"]
        names = [folder / f"{row['scan_id']}_{index + 1}_mask.tif" for index in range(len(mask))]
        drawn = np.stack([tifffile.imread(name) for name in names]) > 0
        both = int((mask.astype(bool) & drawn).sum())
        assert metric["voxels"] == mask.sum()
        assert metric["true_positives"] == both
        assert metric["dice"] == pytest.approx(2 * both / (mask.sum() + drawn.sum()), abs=1e-6)
        assert np.isnan(metric["volume_ml"])


def test_the_record_tells_what_was_done(finished):
    record = json.loads((finished / "run.json").read_text())
    assert record["status"] == "done"
    assert (record["scans_total"], record["scans_ok"], record["scans_failed"]) == (24, 24, 0)
    assert {"read", "predict", "stage", "publish"} <= record["seconds"].keys()
    assert record["slices"] == read(finished, "scans")["num_slices"].sum()
    assert record["options_id"] == read(finished, "scans")["options_id"][0]
    assert record["versions"]["ray"]


def test_the_closing_words_say_how_many_scans_a_person_should_look_at(finished):
    record, review = json.loads((finished / "run.json").read_text()), read(finished, "metrics")["needs_review"]
    asked, unknown = int((review == True).sum()), int(review.isna().sum())  # noqa: E712
    assert (record["scans_to_review"], record["scans_review_unknown"]) == (asked, unknown)
    assert re.search(rf"review +{asked} of 24 scans need", (finished / "log.txt").read_text())


def test_a_finished_run_has_nothing_to_do(finished, tiny_bundle, phantom_archive):
    before = sorted(path.stat().st_mtime_ns for path in (finished / "scans").iterdir())
    result = infer(options_for(tiny_bundle, phantom_archive, finished))
    assert (result.scans_now, result.scans_ok, result.exit_code) == (0, 24, 0)
    assert sorted(path.stat().st_mtime_ns for path in (finished / "scans").iterdir()) == before


def test_a_limited_run_goes_on_without_the_limit(tmp_path, finished, tiny_bundle, phantom_archive):
    first = infer(options_for(tiny_bundle, phantom_archive, tmp_path / "out", limit=5))
    assert (first.scans_total, first.scans_now) == (5, 5)
    second = infer(options_for(tiny_bundle, phantom_archive, tmp_path / "out", part_seconds=0.0))
    assert (second.scans_total, second.scans_now, second.scans_ok) == (24, 19, 24)
    ours, other = read(tmp_path / "out", "masks"), read(finished, "masks")
    assert list(ours["mask"]) == list(other["mask"])


def test_another_model_or_choice_on_the_same_folder_is_refused(finished, tiny_bundle, phantom_archive):
    with pytest.raises(UsageError, match=r"threshold was 0\.5, is 0\.25"):
        infer(options_for(tiny_bundle, phantom_archive, finished, threshold=0.25))
    with pytest.raises(UsageError, match="holds a run of `infer`, not of `evaluate`"):
        evaluate(EvaluateOptions(model=str(tiny_bundle), source=str(phantom_archive), out=str(finished)))


def test_a_folder_with_other_things_in_it_is_refused(tmp_path, tiny_bundle, phantom_archive):
    (tmp_path / "thesis.docx").touch()
    with pytest.raises(UsageError, match=r"holds 'thesis\.docx'"):
        infer(options_for(tiny_bundle, phantom_archive, tmp_path))


def test_a_second_run_on_a_live_folder_is_refused(tmp_path, tiny_bundle, phantom_archive):
    with RunLock(Place(str(tmp_path))), pytest.raises(LockedError, match=f"process {os.getpid()}"):
        infer(options_for(tiny_bundle, phantom_archive, tmp_path))


def test_changed_and_failed_scans_are_done_again(tmp_path, tiny_bundle):
    archive, out = tmp_path / "archive", tmp_path / "out"
    write_archive(archive, patients=4, seed=1, image_size=64, slices=6)
    truncated = archive / "PHANTOM_0002" / "PHANTOM_0002_1.tif"
    whole = truncated.read_bytes()
    truncated.write_bytes(whole[:200])
    os.utime(truncated, ns=(1, 1))
    first = infer(options_for(tiny_bundle, archive, out))
    assert (first.scans_ok, first.scans_failed, first.exit_code) == (3, 1, 3)
    assert first.failures[0].scan_id == "PHANTOM_0002"

    again = infer(options_for(tiny_bundle, archive, out, retry_failed=True))
    assert (again.scans_now, again.scans_failed) == (1, 1)

    truncated.write_bytes(whole)
    shutil.copytree(archive / "PHANTOM_0004", archive / "PHANTOM_0005")
    changed = infer(options_for(tiny_bundle, archive, out))
    assert (changed.scans_now, changed.scans_ok, changed.scans_failed, changed.exit_code) == (2, 5, 0, 0)
    scans = read(out, "scans")
    assert list(scans["attempt"]) == [1, 3, 1, 1, 3]
    assert len(read(out, "masks")) == len(read(out, "metrics")) == 5


def test_fifty_failures_at_the_start_end_the_run(tmp_path, tiny_bundle):
    for index in range(60):
        (tmp_path / "archive" / f"p{index}").mkdir(parents=True)
        file = tmp_path / "archive" / f"p{index}" / "p_1.tif"
        tifffile.imwrite(file, np.zeros((8, 8, 3), np.uint8))
        file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(TooManyFailuresError, match="TruncatedFileError"):
        infer(options_for(tiny_bundle, tmp_path / "archive", tmp_path / "out"))
    assert json.loads((tmp_path / "out" / "run.json").read_text())["status"] == "failed"


def test_evaluate_summarises_the_scans_of_a_split(tmp_path, tiny_bundle, phantom_archive, finished):
    split_file = tmp_path / "splits.json"
    names = sorted(path.name for path in phantom_archive.iterdir())
    split_file.write_text(json.dumps({"train": names[6:], "val": names[:6]}))
    result = evaluate(
        EvaluateOptions(
            model=str(tiny_bundle),
            source=str(phantom_archive),
            out=str(tmp_path / "out"),
            split="val",
            split_file=str(split_file),
            allow_training_patients=True,
        )
    )
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert (summary["scans"], summary["scans_failed"], summary["training_patients_included"]) == (6, 0, 2)
    assert result.summary["dice_mean"] == summary["dice_mean"]
    assert summary["dice_mean"] == pytest.approx(read(finished, "metrics")["dice"][:6].mean(), abs=1e-9)
    figures = {Path(path).name for path in result.figures}
    assert figures == {"predictions.png", "confusion_matrix.png", "dice_per_scan.png"}


def test_a_bad_reference_is_noted_by_infer_and_fails_in_evaluate(tmp_path, tiny_bundle):
    archive = tmp_path / "archive"
    write_archive(archive, patients=2, seed=1, image_size=64, slices=6)
    (archive / "PHANTOM_0001" / "PHANTOM_0001_3_mask.tif").write_bytes(b"II*\0")
    noted = infer(options_for(tiny_bundle, archive, tmp_path / "out"))
    assert noted.exit_code == 0
    assert "PHANTOM_0001_3_mask.tif" in read(tmp_path / "out", "scans")["reference_error"][0]
    failed = evaluate(EvaluateOptions(model=str(tiny_bundle), source=str(archive), out=str(tmp_path / "evaluated")))
    assert (failed.summary["scans"], failed.summary["scans_failed"], failed.exit_code) == (1, 1, 3)
