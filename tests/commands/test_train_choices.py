"""What `raysegment train` refuses before it reads a pixel: nothing to learn from, and choices that would do nothing."""

import json
import sys
from pathlib import Path

import pytest

from raysegment import cli

NOWHERE = ("train", "archive", "--out", "run")


def run(monkeypatch, capsys, *words: str) -> tuple[int, str]:
    """Run the command line in this process; exit code and what it says of errors."""
    monkeypatch.setattr(sys, "argv", ["raysegment", *words])
    with pytest.raises(SystemExit) as end:
        cli.main()
    return end.value.code or 0, capsys.readouterr().err


@pytest.mark.parametrize("empty", ["train", "val"])
def test_an_empty_split_is_wrong_usage(empty, monkeypatch, capsys, tmp_path, phantom_archive: Path):
    patients = sorted(path.name for path in phantom_archive.iterdir())
    splits = {"train": patients, "val": patients} | {empty: []}
    (tmp_path / "splits.json").write_text(json.dumps(splits | {"test": []}))
    words = (
        "train",
        str(phantom_archive),
        "--out",
        str(tmp_path / "run"),
        "--split-file",
        str(tmp_path / "splits.json"),
    )
    code, err = run(monkeypatch, capsys, *words)
    assert (code, len(err.splitlines())) == (2, 1)
    assert empty in err


def test_slices_without_lesion_alone_are_nothing_to_train_on(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    code, err = run(monkeypatch, capsys, *NOWHERE, "--lesion-fraction", "0")
    assert (code, len(err.splitlines())) == (2, 1)
    assert "--lesion-fraction 0" in err


def test_a_budget_of_no_minutes_trains_nothing_and_says_so(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    code, err = run(monkeypatch, capsys, *NOWHERE, "--max-minutes", "0")
    assert (code, len(err.splitlines())) == (2, 1)
    assert "--max-minutes 0" in err


@pytest.mark.parametrize(
    ("idle", "beside"),
    [
        ("--weight-decay 0.1", "--optimizer adam"),
        ("--weight-decay 0.1", "--optimizer sgd"),
        ("--momentum 0.5", "--optimizer adamw"),
        ("--norm-momentum 0.5", "--norm group"),
        ("--warmup-epochs 2.0", "--schedule constant"),
        ("--warmup-epochs 5.0", "--epochs 3"),
        ("--train-fraction 0.8", "--split-file splits.json"),
        *((f"--{name}", "--no-augment") for name in ("rotation 20.0", "shift 0.1", "zoom 0.2", "shear 0.2")),
        *((f"--{name}", "--no-augment") for name in ("brightness 0.2", "contrast 0.2", "noise 0.2")),
    ],
)
def test_a_choice_that_would_do_nothing_is_refused_with_the_other_one(idle, beside, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    code, err = run(monkeypatch, capsys, *NOWHERE, *idle.split(), *beside.split())
    assert (code, len(err.splitlines())) == (2, 1)
    assert idle in err
    assert beside in err


@pytest.mark.parametrize(
    "words",
    [
        "--optimizer adam",
        "--no-augment",
        "--epochs 1",
        "--norm none",
        "--recipe lgg-best --no-augment",
        "--recipe lgg-best --split-file splits.json",
        "--recipe tif-bce-128 --optimizer sgd",
        "--no-augment --no-flip --noise 0",
        "--optimizer sgd --weight-decay 0",
    ],
)
def test_defaults_recipes_and_what_is_switched_off_contradict_nothing(words, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    code, err = run(monkeypatch, capsys, *NOWHERE, *words.split())
    assert code == 2
    assert "archive" in err


def test_sgd_has_momentum_and_gradients_can_be_clipped(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    chosen = ("--optimizer", "sgd", "--momentum", "0.8", "--clip-norm", "1")
    code, err = run(monkeypatch, capsys, *NOWHERE, *chosen)
    assert code == 2
    assert "archive" in err
