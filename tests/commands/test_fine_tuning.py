"""What `raysegment train --init-from` refuses before Ray starts, and what it warns of."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pyarrow as pa
import pytest

from raysegment import cli
from raysegment.errors import UsageError
from raysegment.model.bundle import BundleDescription, save_bundle
from raysegment.model.init_from import Origin
from raysegment.model.unet import build_network
from raysegment.options import Postprocessing, Preprocessing, TrainOptions
from raysegment.pipeline.training_set import warn_of_base_patients
from raysegment.runs.identity import identify
from raysegment.runs.record import write_record
from raysegment.store.place import Place


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    description = BundleDescription(
        preprocessing=Preprocessing(image_size=16),
        postprocessing=Postprocessing(),
        num_channels=3,
        network={"network": "unet", "filters": 2, "depth": 1},
        training_patients=["TCGA_A", "TCGA_B"],
    )
    model = build_network(input_shape=(16, 16, 3), filters=2, depth=1)
    return save_bundle(tmp_path_factory.mktemp("run") / "model", model, description)


def run(monkeypatch, capsys, archive: Path, tmp_path: Path, *words: str) -> tuple[int, str]:
    """Train in this process, where Ray must not be reached; exit code and what is said of errors."""

    def refuse(*_: object) -> None:
        raise AssertionError("Ray was started")

    monkeypatch.setattr("raysegment.commands.train.ray_session", refuse)
    monkeypatch.setattr(sys, "argv", ["raysegment", "train", str(archive), "--out", str(tmp_path / "out"), *words])
    with pytest.raises(SystemExit) as end:
        cli.main()
    return end.value.code or 0, capsys.readouterr().err


def break_weights(folder: Path) -> None:
    (folder / "model.keras").write_bytes(b"PK")


def take_description(folder: Path) -> None:
    (folder / "model.json").unlink()


def change_description(folder: Path) -> None:
    content = json.loads((folder / "model.json").read_text())
    content["network"]["filters"] = 64
    (folder / "model.json").write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (shutil.rmtree, "does not exist"),
        (take_description, "is no bundle"),
        (break_weights, "does not match"),
        (change_description, "was changed after"),
    ],
)
def test_a_broken_base_is_wrong_usage_before_ray_starts(
    base, damage, said, monkeypatch, capsys, tmp_path, phantom_archive
):
    folder = shutil.copytree(base.path, tmp_path / "base")
    damage(folder)
    code, err = run(monkeypatch, capsys, phantom_archive, tmp_path, "--init-from", str(folder))
    assert (code, len(err.splitlines())) == (2, 1)
    assert said in err


def test_a_choice_that_contradicts_the_base_is_wrong_usage(base, monkeypatch, capsys, tmp_path, phantom_archive):
    words = ("--init-from", str(base.path.parent), "--filters", "32")
    code, err = run(monkeypatch, capsys, phantom_archive, tmp_path, *words)
    assert (code, len(err.splitlines())) == (2, 1)
    assert "--filters 32 contradicts" in err


def test_another_base_makes_another_run_wherever_it_lies(base, tmp_path):
    place, options = Place(str(tmp_path)), TrainOptions(source="a", out="b")
    write_record(place, identify("train", options, key="options", data_id="d", **Origin(base).facts).record)
    other = TrainOptions(source="a", out="b", init_from="elsewhere")
    identify("train", other, key="options", data_id="d", **Origin(base).facts).open(place)
    with pytest.raises(UsageError, match=f"base_model_id was {base.model_id}, is None"):
        identify("train", options, key="options", data_id="d", **Origin().facts).open(place)


def test_a_run_of_an_earlier_version_goes_on_without_a_base(tmp_path):
    place, options = Place(str(tmp_path)), TrainOptions(source="a", out="b")
    write_record(place, identify("train", options, key="options", data_id="d").record)
    identify("train", options, key="options", data_id="d", **Origin().facts).open(place)


def test_patients_that_the_base_has_seen_are_counted_where_they_flatter(base):
    splits = {"TCGA_A": "val", "TCGA_B": "train", "TCGA_C": "val", "TCGA_D": "test"}
    table = pa.table({"patient_id": [*splits, "TCGA_A"], "split": [*splits.values(), "val"]})
    (line,) = warn_of_base_patients(table, base.has_seen)
    assert "trained on 1 of the 2 patients to validate on" in line
    test_line = warn_of_base_patients(table, {"TCGA_D"}.__contains__)
    assert [("1 of the 1 patients to test on" in line) for line in test_line] == [True]
