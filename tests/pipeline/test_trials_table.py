"""The trials of a search: which is the best, their table, the best one's options as a job file."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from raysegment.choices import load_options
from raysegment.options import TrainOptions
from raysegment.pipeline.search_space import Varied
from raysegment.pipeline.trials import (
    Trial,
    TrialRow,
    describe_trials,
    find_best,
    make_row,
    read_rows,
    read_trials,
    write_recipe,
    write_trials,
)

SPACE = (
    Varied(name="filters", kind="range", values=(4, 8), is_integer=True),
    Varied(name="weight_decay", kind="range", values=(0.0, 1.0)),
    Varied(name="channels", kind="choice", values=((0, 1), (2,))),
)
EPOCH = {"loss": 1.0, "val_loss": 1.0, "minutes": 0.5}


def row(trial: str, status: str, dice: float | None, at_half: float | None) -> TrialRow:
    drawn = {"filters": 5, "weight_decay": None, "channels": (0, 1)}
    return TrialRow(
        trial=trial,
        status=status,
        drawn=drawn,
        epochs=3,
        best_epoch=2 if at_half is not None else None,
        val_dice=dice,
        val_dice_at_half=at_half,
        minutes=1.5,
        error="DivergedError: the loss is not a number" if status == "failed" else None,
    )


ROWS = [
    row("0001", "stopped", None, 0.9),
    row("0002", "done", 0.7, 0.6),
    row("0003", "failed", None, None),
    row("0004", "done", 0.8, 0.5),
]


def test_the_best_is_a_finished_trial_by_the_dice_of_its_bundle():
    assert find_best(ROWS).trial == "0004"
    assert find_best(ROWS[:1]) is None


def test_the_table_has_a_row_per_trial_and_a_column_per_option(tmp_path):
    write_trials(ROWS, SPACE, tmp_path / "trials.parquet")
    table = pq.read_table(tmp_path / "trials.parquet").to_pydict()
    assert table["trial"] == ["0001", "0002", "0003", "0004"]
    assert table["status"] == ["stopped", "done", "failed", "done"]
    assert table["filters"] == [5] * 4
    assert table["weight_decay"] == [None] * 4
    assert table["channels"] == ["0,1"] * 4
    assert table["val_dice"] == [None, 0.7, None, 0.8]
    assert table["error"][2] == "DivergedError: the loss is not a number"


def test_the_table_comes_back_as_it_was(tmp_path):
    write_trials(ROWS, SPACE[:2], tmp_path / "trials.parquet")
    back = read_rows(tmp_path / "trials.parquet", SPACE[:2])
    assert [item.val_dice for item in back] == [item.val_dice for item in ROWS]
    assert back[0].drawn == {"filters": 5, "weight_decay": None}


def test_the_closing_table_begins_with_the_best():
    lines = describe_trials(ROWS, SPACE)
    assert [line.split()[0] for line in lines] == ["trial", "0004", "0002", "0001", "0003"]
    assert lines[1].split()[1:4] == ["done", "0.8000", "0.5000"]


def test_a_trial_is_read_from_the_checkpoints_of_its_run(tmp_path):
    history = [{**EPOCH, "epoch": 1, "val_dice": 0.3}, {**EPOCH, "epoch": 2, "val_dice": 0.2}]
    state = {"epoch": 2, "best_epoch": 1, "best_score": 0.3, "minutes": 1.0, "history": history}
    folder = tmp_path / "checkpoints" / "epoch-00002"
    folder.mkdir(parents=True)
    (folder / "state.json").write_text(json.dumps(state))
    options = TrainOptions(source="a", out=str(tmp_path), filters=5, optimizer="sgd")
    drawn = {"filters": 5, "weight_decay": 0.3}
    stopped = make_row(Trial(trial="0001", drawn=drawn, status="stopped"), options, {"val_dice": 0.9})
    assert (stopped.epochs, stopped.best_epoch, stopped.val_dice, stopped.val_dice_at_half) == (2, 1, None, 0.3)
    assert stopped.drawn == {"filters": 5, "weight_decay": None}
    done = make_row(Trial(trial="0001", drawn=drawn, status="done"), options, {"val_dice": 0.0})
    assert done.val_dice == 0.0


def test_a_trial_that_never_began_is_a_row_all_the_same(tmp_path):
    options = TrainOptions(source="a", out=str(tmp_path / "none"))
    made = make_row(Trial(trial="0001", drawn={}, status="failed", error="RunError: no"), options, None)
    assert (made.epochs, made.best_epoch, made.val_dice_at_half, made.error) == (0, None, None, "RunError: no")


def test_trials_come_back_from_json_as_they_were():
    trials = [Trial(trial="0001", drawn={"filters": 5, "loss": "dice"}, status="done"), Trial(trial="0002", drawn={})]
    assert read_trials(json.loads(json.dumps([trial.as_plain() for trial in trials]))) == trials


@pytest.mark.parametrize("given", [{}, {"channels": (0, 1), "optimizer": "sgd", "momentum": 0.5, "flip": False}])
def test_the_recipe_of_the_best_is_a_job_file_with_the_same_options(tmp_path: Path, given: dict) -> None:
    options = TrainOptions(source=str(tmp_path), out=str(tmp_path / "best"), split_file="split.json", **given)
    write_recipe(ROWS[3], options, tmp_path / "best.yaml")
    assert load_options(TrainOptions, {}, job=str(tmp_path / "best.yaml")) == options
    assert "0004, validation Dice 0.8000" in (tmp_path / "best.yaml").read_text()
