"""Whole runs on tables that were lost, damaged, or begun elsewhere, and what an end without any good scan says."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
from tables import assert_equal_tables, assert_whole

import raysegment
from raysegment import EvaluateOptions, InferOptions
from raysegment.errors import UsageError
from raysegment.model.precision import resolve_precision

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("ray_here")]

NUM_SCANS = 8


def options_for(bundle: Path, archive: Path, out: Path, **choices) -> InferOptions:
    return InferOptions(model=str(bundle), source=str(archive), out=str(out), part_seconds=0.0, **choices)


@pytest.fixture(scope="module")
def few_scans(tmp_path_factory, phantom_archive) -> Path:
    archive = tmp_path_factory.mktemp("few") / "archive"
    for folder in sorted(phantom_archive.iterdir())[:NUM_SCANS]:
        shutil.copytree(folder, archive / folder.name)
    return archive


@pytest.fixture(scope="module")
def other_precision() -> str:
    """What `auto` is not on this machine."""
    return "float32" if resolve_precision("auto") != "float32" else "bfloat16"


@pytest.fixture(scope="module")
def finished(tmp_path_factory, tiny_bundle, few_scans, other_precision, ray_here) -> Path:
    """Tables of eight parts, computed in a precision that this machine would not choose."""
    out = tmp_path_factory.mktemp("finished") / "out"
    result = raysegment.infer(options_for(tiny_bundle, few_scans, out, precision=other_precision))
    assert (result.scans_ok, result.exit_code) == (NUM_SCANS, 0)
    assert len(list((out / "scans").iterdir())) == NUM_SCANS
    return out


@pytest.fixture
def out(tmp_path, finished) -> Path:
    """A copy that a test may spoil."""
    return Path(shutil.copytree(finished, tmp_path / "out"))


def test_a_run_of_a_moment_has_no_steady_state(finished):
    assert json.loads((finished / "run.json").read_text())["slices_per_second"] is None
    assert "steady state" not in (finished / "log.txt").read_text()


def test_scans_of_lost_or_damaged_parts_are_done_again(out, tiny_bundle, few_scans, finished, other_precision):
    names = sorted(path.name for path in (out / "scans").iterdir())
    (out / "masks" / names[0]).unlink()
    (out / "metrics" / names[1]).write_bytes(b"")
    whole = (out / "masks" / names[2]).read_bytes()
    (out / "masks" / names[2]).write_bytes(whole[: len(whole) // 2])
    (out / "scans" / names[3]).write_bytes(b"PAR1 this is no table PAR1")
    pd.read_parquet(out / "metrics" / names[4]).iloc[:0].to_parquet(out / "metrics" / names[4])
    result = raysegment.infer(options_for(tiny_bundle, few_scans, out, precision=other_precision))
    assert (result.scans_now, result.scans_ok, result.exit_code) == (5, NUM_SCANS, 0)
    assert assert_whole(out) == NUM_SCANS
    assert_equal_tables(out, finished)


def test_a_folder_goes_on_in_its_own_precision_on_other_hardware(out, tiny_bundle, few_scans, other_precision):
    result = raysegment.infer(options_for(tiny_bundle, few_scans, out))
    assert (result.scans_now, result.scans_ok) == (0, NUM_SCANS)
    with pytest.raises(UsageError, match="precision was"):
        raysegment.infer(options_for(tiny_bundle, few_scans, out, precision=resolve_precision("auto")))


def test_a_lost_record_is_made_up_for_by_the_rows(out, tiny_bundle, few_scans, other_precision):
    (out / "run.json").unlink()
    with pytest.raises(UsageError, match="other choices"):
        raysegment.infer(options_for(tiny_bundle, few_scans, out, precision=other_precision, threshold=0.25))
    result = raysegment.infer(options_for(tiny_bundle, few_scans, out, precision=other_precision))
    assert (result.scans_now, result.scans_ok) == (0, NUM_SCANS)
    assert json.loads((out / "run.json").read_text())["status"] == "done"


def test_no_good_scan_at_the_end_is_a_failure_now_and_the_next_time(tmp_path, tiny_bundle, few_scans):
    archive = tmp_path / "archive"
    for folder in sorted(few_scans.iterdir())[:2]:
        shutil.copytree(folder, archive / folder.name)
        first = archive / folder.name / f"{folder.name}_1.tif"
        first.write_bytes(first.read_bytes()[:300])
    options = options_for(tiny_bundle, archive, tmp_path / "out")
    ends = [raysegment.infer(options) for _ in range(2)]
    assert [(end.scans_failed, end.scans_now, end.exit_code) for end in ends] == [(2, 2, 1), (2, 0, 1)]
    evaluated = raysegment.evaluate(
        EvaluateOptions(model=str(tiny_bundle), source=str(archive), out=str(tmp_path / "evaluated"))
    )
    assert (evaluated.scans_failed, evaluated.exit_code) == (2, 1)
