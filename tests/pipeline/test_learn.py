import json
import math
import zipfile
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from raysegment.errors import RunError
from raysegment.options import TrainOptions
from raysegment.pipeline.learn import (
    Progress,
    load_best,
    prune,
    restore_newest,
    save_best,
    score_of,
)
from raysegment.pipeline.score import dice_per_scan, summarise_scores
from raysegment.pipeline.thresholds import THRESHOLDS, choose_threshold
from raysegment.scan import Labels


def options(**choices: object) -> TrainOptions:
    return TrainOptions(source="scans", out="run", **choices)


def progress(minutes: list[float], best_epoch: int, losses: list[float] | None = None) -> Progress:
    losses = losses or [math.nan] * len(minutes)
    history = [
        {"epoch": i + 1, "minutes": value, "val_loss": loss}
        for i, (value, loss) in enumerate(zip(minutes, losses, strict=True))
    ]
    return Progress(epoch=len(minutes), best_epoch=best_epoch, minutes=sum(minutes), history=history)


def test_a_run_is_over_after_its_epochs() -> None:
    assert not progress([1, 1], 2).is_over(options(epochs=3))
    assert progress([1, 1, 1], 3).is_over(options(epochs=3))


def test_a_run_is_over_after_as_many_epochs_without_a_better_one_as_it_has_patience() -> None:
    assert not progress([1, 1, 1], 2).is_over(options(epochs=9, early_stopping=2))
    assert progress([1, 1, 1, 1], 2).is_over(options(epochs=9, early_stopping=2))


def test_patience_counts_from_the_last_epoch_that_was_better_by_score_or_by_loss() -> None:
    choices = options(epochs=9, early_stopping=2)
    assert not progress([1, 1, 1, 1], 1, [0.9, 0.8, 0.7, 0.6]).is_over(choices)
    assert not progress([1, 1, 1, 1], 1, [0.9, 0.8, 0.7, 0.75]).is_over(choices)
    assert progress([1, 1, 1, 1], 1, [0.9, 0.8, 0.85, 0.85]).is_over(choices)
    assert progress([1, 1, 1, 1], 1, [0.5, 0.5, 0.5, 0.5]).is_over(choices)


def test_a_run_is_over_before_the_epoch_that_would_pass_its_time() -> None:
    assert not progress([4, 5], 2).is_over(options(epochs=9, max_minutes=14.0))
    assert progress([4, 5], 2).is_over(options(epochs=9, max_minutes=13.9))


def test_validation_dice_leaves_out_only_scans_whose_mask_and_reference_are_both_empty() -> None:
    # true positives, mask voxels, reference voxels, loss sum, slices
    scores = np.array([[10, 20, 20, 6.0, 3], [0, 5, 0, 2.0, 1], [0, 0, 7, 4.0, 2], [0, 0, 0, 1.0, 1]])
    found = summarise_scores(scores, Labels())
    assert set(found) == {"val_loss", "val_dice"}
    assert found["val_dice"] == pytest.approx((0.5 + 0.0 + 0.0) / 3)
    assert found["val_loss"] == pytest.approx(13.0 / 7)


def test_validation_dice_of_several_labels_is_the_mean_of_their_means() -> None:
    labels = Labels(("a", "b"), ((1,), (2,)))
    scores = np.array([[10, 20, 20, 0, 0, 0, 6.0, 3], [5, 5, 5, 0, 0, 4, 2.0, 1], [0, 0, 0, 0, 0, 0, 4.0, 2]])
    found = summarise_scores(scores, labels)
    assert (found["val_dice_a"], found["val_dice_b"]) == (0.75, 0.0)
    assert found["val_dice"] == pytest.approx(0.375)
    assert found["val_loss"] == pytest.approx(12.0 / 6)


def test_dice_of_a_scan_is_the_mean_over_its_labels() -> None:
    labels = Labels(("a", "b"), ((1,), (2,)))
    scores = np.array([[10, 20, 20, 0, 0, 0, 6.0, 3], [5, 5, 5, 0, 0, 4, 2.0, 1], [0, 0, 0, 0, 0, 0, 4.0, 2]])
    assert dice_per_scan(scores, labels) == pytest.approx([0.5, 0.5, math.nan], nan_ok=True)


def test_the_worst_scans_are_named_by_position_and_those_without_dice_are_none() -> None:
    after = Progress().after(row_of(0.5, 1.0), "val_dice", [0.9, math.nan, 0.2, 0.5, 0.1])
    assert after.find_worst() == [4, 2, 3]
    assert Progress().after(row_of(0.5, 1.0), "val_dice", [math.nan, 0.3]).find_worst() == [1]
    assert Progress(**json.loads(json.dumps(asdict(after)))).find_worst() == [4, 2, 3]


def row_of(val_dice: float, val_loss: float, minutes: float = 1.0) -> dict[str, float]:
    return {"val_dice": val_dice, "val_loss": val_loss, "minutes": minutes}


def test_the_best_epoch_has_the_highest_dice_and_among_equals_the_lowest_loss() -> None:
    rows = [row_of(0.0, 0.9), row_of(0.0, 0.7), row_of(0.0, 0.8), row_of(0.4, 1.5), row_of(0.4, 1.5), row_of(0.3, 0.1)]
    run, best = Progress(), []
    for row in rows:
        run = run.after(row, "val_dice")
        best.append(run.best_epoch)
    assert best == [1, 2, 2, 4, 4, 4]
    assert not run.is_over(options(epochs=9, early_stopping=1))


def test_the_epochs_of_a_budget_are_those_that_fit_into_it() -> None:
    assert progress([], 0).count_epochs(options(epochs=9, max_minutes=5.0)) == 9
    # 3 + 1 + 1 minutes are spent; epochs begin at 5, 6 and 7, where the longest of 3 minutes still fits, not at 8.
    assert progress([3, 1, 1], 3).count_epochs(options(epochs=99, max_minutes=10.5)) == 6
    assert progress([3, 1, 1], 3).count_epochs(options(epochs=5, max_minutes=10.5)) == 5
    assert progress([3, 1, 1], 3).count_epochs(options(epochs=99, max_minutes=7.0)) == 3


def test_an_epoch_that_diverged_counts_as_worst() -> None:
    assert score_of({"val_dice": 0.5, "val_loss": math.nan}, "val_loss") == -math.inf


def test_the_threshold_is_the_best_one_and_nearest_to_one_half_among_equals() -> None:
    dice = np.full(len(THRESHOLDS), 0.5)
    dice[14:17] = 0.8
    assert choose_threshold(dice) == pytest.approx(0.75)
    assert choose_threshold(np.full(len(THRESHOLDS), np.nan)) == 0.5


def test_best_weights_come_back_in_their_order(tmp_path) -> None:
    weights = [np.full((i + 1,), i, np.float32) for i in range(12)]
    save_best(tmp_path / "checkpoints", 3, weights)
    for saved, loaded in zip(weights, load_best(tmp_path / "checkpoints", 3), strict=True):
        assert np.array_equal(saved, loaded)


def make_checkpoint(folder: Path, epoch: int, best_epoch: int) -> None:
    (folder / f"epoch-{epoch:05d}").mkdir(parents=True)
    (folder / f"epoch-{epoch:05d}" / "state.json").write_text(json.dumps({"best_epoch": best_epoch}))


def test_pruning_keeps_the_newest_checkpoints_and_the_best_weights_they_go_back_to(tmp_path: Path) -> None:
    for epoch, best_epoch in [(1, 1), (2, 2), (3, 2), (4, 4)]:
        make_checkpoint(tmp_path, epoch, best_epoch)
    for epoch in (1, 2, 4):
        save_best(tmp_path, epoch, [np.zeros(1)])
    prune(tmp_path, keep_checkpoints=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "best-00002.npz",
        "best-00004.npz",
        "epoch-00003",
        "epoch-00004",
    ]


class FakeFitter:
    """Stands for a network whose newest checkpoint is damaged."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def restore(self, folder: Path) -> dict[str, object]:
        if folder.name == "epoch-00002":
            raise self.error
        return {"epoch": 1, "best_epoch": 1}


@pytest.mark.parametrize("error", [zipfile.BadZipFile("File is not a zip file"), EOFError("No data left in file")])
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(tmp_path: Path, error: Exception) -> None:
    make_checkpoint(tmp_path, 1, 1)
    make_checkpoint(tmp_path, 2, 1)
    assert restore_newest(FakeFitter(error), tmp_path).epoch == 1


def test_a_run_whose_checkpoints_are_all_damaged_does_not_start_over_in_silence(tmp_path: Path) -> None:
    make_checkpoint(tmp_path, 2, 1)
    with pytest.raises(RunError, match="none of the 1 checkpoints"):
        restore_newest(FakeFitter(EOFError()), tmp_path)
