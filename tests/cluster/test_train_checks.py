"""What `train` refuses before Ray starts, and what it warns of."""

import json
import math
import shutil
from pathlib import Path

import pyarrow as pa
import pytest

from raysegment.cluster.session import ray_session
from raysegment.cluster.training.run import warn_of_low_dice
from raysegment.commands.demo import demo
from raysegment.commands.trained_run import check_precision, is_finished
from raysegment.errors import CheckpointError, RunError, UsageError
from raysegment.imaging.phantom import write_archive
from raysegment.options import DemoOptions, TrainOptions
from raysegment.pipeline.training_set import check_channels, check_same_scans, select_used


def make_options(**choices: object) -> TrainOptions:
    return TrainOptions(source="scans", out="run", **choices)


def test_channels_that_the_scans_do_not_have_are_refused_with_both_numbers() -> None:
    check_channels(make_options(channels=(2, 0)), 3)
    check_channels(make_options(), 3)
    with pytest.raises(UsageError, match="asks for channel 3; most scans in scans have 3"):
        check_channels(make_options(channels=(0, 3)), 3)


def test_a_run_goes_on_in_the_precision_it_began_in() -> None:
    check_precision(make_options(precision="auto"), {"precision": "bfloat16"})
    check_precision(make_options(precision="float16"), {})
    with pytest.raises(UsageError, match="holds a run in bfloat16, --precision is float32"):
        check_precision(make_options(precision="float32"), {"precision": "bfloat16"})


def make_finished(folder: Path, epochs: int, best_epoch: int) -> dict[str, object]:
    """A run that ended, with its newest checkpoint."""
    history = [{"epoch": i + 1, "minutes": 1.0} for i in range(epochs)]
    state = {"epoch": epochs, "best_epoch": best_epoch, "best_score": 0.5, "minutes": epochs, "history": history}
    checkpoint = folder / "checkpoints" / f"epoch-{epochs:05d}"
    checkpoint.mkdir(parents=True)
    (checkpoint / "state.json").write_text(json.dumps(state))
    return {"status": "done", "chosen": {"epochs": epochs}, "epochs": epochs}


def test_a_finished_run_goes_on_where_more_epochs_minutes_or_patience_are_given(tmp_path: Path) -> None:
    record = make_finished(tmp_path, epochs=6, best_epoch=3)
    for more in ({"epochs": 7}, {"max_minutes": 9.0}, {"early_stopping": 4}):
        assert not is_finished(tmp_path, record, make_options(**{"epochs": 30, **more}))
    for enough in ({"epochs": 6}, {"epochs": 2}, {"max_minutes": 6.5}, {"early_stopping": 3}):
        assert is_finished(tmp_path, record, make_options(**{"epochs": 30, **enough}))
    assert not is_finished(tmp_path, record | {"status": "failed"}, make_options(epochs=6))


def test_a_finished_run_without_its_checkpoints_is_done_but_cannot_go_on(tmp_path: Path) -> None:
    record = make_finished(tmp_path, epochs=6, best_epoch=3)
    shutil.rmtree(tmp_path / "checkpoints")
    assert is_finished(tmp_path, record, make_options(epochs=6))
    with pytest.raises(CheckpointError, match="6 epochs without its checkpoints, so it cannot go on to --epochs 7"):
        is_finished(tmp_path, record, make_options(epochs=7))


def test_a_demo_over_other_scans_is_refused(tmp_path) -> None:
    for number in range(3):
        (tmp_path / "scans" / f"PHANTOM_{number}").mkdir(parents=True)
    with pytest.raises(UsageError, match="holds scans of 3 made-up patients, --patients is 8"):
        demo(DemoOptions(out=str(tmp_path), patients=8))


def test_a_demo_of_volumes_over_slices_is_refused(tmp_path) -> None:
    write_archive(tmp_path / "scans", patients=8, seed=0, image_size=32, slices=2)
    with pytest.raises(UsageError, match="holds made-up slices, and the demo is to be of volumes"):
        demo(DemoOptions(out=str(tmp_path), patients=8, volumes=True))


def test_a_temporary_folder_for_a_running_cluster_is_refused(tmp_path) -> None:
    with pytest.raises(UsageError, match="ray start --temp-dir"), ray_session("auto", str(tmp_path)):
        pass


def manifest_of(**splits: str) -> pa.Table:
    return pa.table({"scan_id": list(splits), "split": list(splits.values())})


def test_a_resumed_run_reads_the_scans_that_it_began_with() -> None:
    manifest = manifest_of(a="train", b="train", c="val", d="test")
    assert select_used(manifest, {})["scan_id"].to_pylist() == ["a", "b", "c"]
    assert select_used(manifest, {"b": ("AccessError", "")})["scan_id"].to_pylist() == ["a", "c"]


def test_a_resumed_run_stops_where_a_scan_can_no_longer_be_read() -> None:
    check_same_scans({})
    with pytest.raises(RunError, match=r"1 scans .* first 'a': AccessError: permission denied"):
        check_same_scans({"a": ("AccessError", "permission denied.")})


def test_a_validation_dice_near_0_is_warned_of() -> None:
    scores = {"val_precision": 0.0171, "threshold": 0.1}
    assert warn_of_low_dice({**scores, "val_dice": 0.1}) == warn_of_low_dice({**scores, "val_dice": math.nan}) == []
    (warning,) = warn_of_low_dice({**scores, "val_dice": 0.0249})
    assert "near 0 (0.0249, precision 0.0171)" in warning
