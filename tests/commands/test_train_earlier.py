"""Folders of training runs that an earlier version began: which choices they had, what it did without the others."""

import json
from pathlib import Path

import pytest

from raysegment.choices import changed_result, load_options
from raysegment.commands.trained_run import keep_rules
from raysegment.errors import UsageError
from raysegment.options import TrainOptions
from raysegment.runs.identity import identify
from raysegment.store.place import Place

NEW = ("momentum", "clip_norm", "scan_pattern", "rules")
PLACES = {"source": "archive", "out": "run"}


def write_earlier(folder: Path, **choices: object) -> Place:
    """run.json of version 0.1.0, which had all choices in it, those without effect too, and none of the new ones."""
    everything = changed_result(TrainOptions(**PLACES)) | {"weight_decay": 0.01, "rotation": 15.0}
    old = {name: value for name, value in everything.items() if name not in NEW}
    old |= {"epochs": 30, "early_stopping": 0, "max_minutes": None, **choices}
    (folder / "run.json").write_text(json.dumps({"command": "train", "options": old, "data_id": "same"}))
    return Place(str(folder))


def open_run(place: Place, options: TrainOptions) -> None:
    identify("train", keep_rules(options, place), key="options", data_id="same").open(place)


@pytest.mark.parametrize("optimizer", ["adam", "adamw"])
def test_a_run_of_an_earlier_version_goes_on(optimizer: str, tmp_path: Path) -> None:
    place = write_earlier(tmp_path, optimizer=optimizer)
    open_run(place, TrainOptions(**PLACES, optimizer=optimizer, epochs=50, early_stopping=5))
    with pytest.raises(UsageError, match=r"clip_norm was None, is 1.0"):
        open_run(place, TrainOptions(**PLACES, optimizer=optimizer, clip_norm=1.0))


def test_earlier_versions_had_no_momentum(tmp_path: Path) -> None:
    place = write_earlier(tmp_path, optimizer="sgd")
    open_run(place, TrainOptions(**PLACES, optimizer="sgd", momentum=0.0))
    with pytest.raises(UsageError, match=r"momentum was 0.0, is 0.9"):
        open_run(place, TrainOptions(**PLACES, optimizer="sgd"))


def test_what_had_no_effect_then_is_not_asked_for_now(tmp_path: Path) -> None:
    recipe = load_options(TrainOptions, {**PLACES, "augment": False}, recipe="lgg-best")
    place = write_earlier(tmp_path, **{**changed_result(recipe), "rotation": 20.0, "noise": 0.1})
    open_run(place, recipe)
    with pytest.raises(UsageError, match="augment was False, is True"):
        open_run(place, load_options(TrainOptions, PLACES, recipe="lgg-best"))


def test_a_run_of_version_0_1_keeps_its_rules_for_padding_and_scale(tmp_path: Path) -> None:
    options = TrainOptions(**PLACES)
    assert keep_rules(options, Place(str(tmp_path))).rules == "0.2"
    assert keep_rules(options, write_earlier(tmp_path)).rules == "0.1"
