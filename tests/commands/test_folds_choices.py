"""What `raysegment train --folds` refuses before Ray starts, and how its folder is told from others."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from raysegment import cli
from raysegment.archive.folds import make_folds
from raysegment.commands.train import train
from raysegment.commands.train_folds import open_fold
from raysegment.commands.training_data import find_training_data
from raysegment.errors import LockedError, UsageError
from raysegment.model.bundle import load_bundle
from raysegment.model.init_from import Origin
from raysegment.options import TrainOptions
from raysegment.pipeline.training_set import write_run_manifest
from raysegment.runs.identity import identify
from raysegment.runs.lock import RunLock
from raysegment.runs.record import write_record
from raysegment.store.place import Place

SPLIT = {"train_fraction": 0.6, "val_fraction": 0.2}


def make_options(scans: Path, out: Path, **choices: object) -> TrainOptions:
    return TrainOptions(source=str(scans), out=str(out), **{**SPLIT, "image_size": 64, **choices})


def begin(options: TrainOptions) -> None:
    """A run of that kind that was stopped before its first epoch."""
    data = find_training_data(options, {}, Origin())
    place = Place(options.out)
    place.make_folder()
    write_record(place, identify("train", options, key="options", **data.facts).record | {"status": "failed"})


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("--folds 1", "--folds is 1; expected at least 2"),
        ("--ensemble", "--ensemble makes one bundle of several folds"),
        ("--folds 6", "--folds 6 cannot divide 5 patient"),
    ],
)
def test_choices_that_make_no_sense_are_refused(monkeypatch, capsys, tmp_path, phantom_archive, words, told) -> None:
    shares = ["--train-fraction", "0.6", "--val-fraction", "0.2"]
    command = ["raysegment", "train", str(phantom_archive), "--out", str(tmp_path / "run"), *shares, *words.split()]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit) as end:
        cli.main()
    err = capsys.readouterr().err
    assert (end.value.code, len(err.splitlines())) == (2, 1)
    assert told in err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("began", "now", "told"),
    [
        (3, 2, "folds was 3, is 2"),
        (3, None, "folds was 3, is None"),
        (None, 2, "folds was None, is 2"),
    ],
)
def test_a_run_is_refused_with_another_number_of_folds(tmp_path, phantom_archive, began, now, told) -> None:
    out = tmp_path / "run"
    begin(make_options(phantom_archive, out, folds=began))
    with pytest.raises(UsageError, match=told):
        train(make_options(phantom_archive, out, folds=now))


def test_a_fold_whose_folder_holds_another_run_is_refused_and_named(tmp_path, phantom_archive) -> None:
    out = tmp_path / "run"
    begin(make_options(phantom_archive, out / "folds" / "1"))
    with pytest.raises(UsageError, match="folds/1 holds a run with other choices"):
        train(make_options(phantom_archive, out, folds=2))


def test_an_ensemble_is_no_part_of_the_identity(tmp_path, phantom_archive) -> None:
    plain = make_options(phantom_archive, tmp_path, folds=3)
    joined = make_options(phantom_archive, tmp_path, folds=3, ensemble=True)
    ids = [identify("train", options, key="options").options_id for options in (plain, joined)]
    assert ids[0] == ids[1]
    without = identify("train", make_options(phantom_archive, tmp_path), key="options").record
    assert "folds" not in without["options"]


def test_a_folder_in_use_is_refused(tmp_path, phantom_archive) -> None:
    place = Place(str(tmp_path / "run"))
    place.make_folder()
    with RunLock(place), pytest.raises(LockedError, match="is in use by process"):
        train(make_options(phantom_archive, tmp_path / "run", folds=2))


def test_folds_differ_in_seed_and_data_and_in_nothing_else(tmp_path, phantom_archive) -> None:
    options = make_options(phantom_archive, tmp_path / "run", folds=2, seed=5)
    data = find_training_data(options, {}, Origin())
    runs = [open_fold(fold, options, data, tmp_path / "run") for fold in make_folds(data.manifest, 2, 5)]
    assert [run.options.seed for run in runs] == [5, 6]
    assert [run.place.root for run in runs] == [str(tmp_path / "run" / "folds" / str(number)) for number in (0, 1)]
    first, second = (json.loads(json.dumps(run.record)) for run in runs)
    assert first.pop("data_id") != second.pop("data_id")
    assert first["options"].pop("seed") != second["options"].pop("seed")
    assert first == second


def test_a_model_that_is_a_run_with_folds_says_which_folder_to_give(tmp_path) -> None:
    (tmp_path / "folds" / "0").mkdir(parents=True)
    with pytest.raises(UsageError, match=r"holds none: .* Give one of .*/folds, or train it with --ensemble"):
        load_bundle(tmp_path)


def test_a_fold_can_be_continued_alone_by_its_own_manifest(tmp_path, phantom_archive) -> None:
    options = make_options(phantom_archive, tmp_path / "run", folds=2)
    data = find_training_data(options, {}, Origin())
    run = open_fold(make_folds(data.manifest, 2, 0)[1], options, data, tmp_path / "run")
    run.place.make_folder()
    write_run_manifest(run.fold.manifest, {}, run.folder)
    write_record(run.place, run.record | {"status": "failed"})
    alone = replace(run.options, source=str(run.folder / "manifest.parquet"))
    found = find_training_data(alone, run.record, Origin())
    assert identify("train", alone, key="options", **found.facts).open(run.place)["status"] == "failed"
