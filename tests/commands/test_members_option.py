import shutil
import sys

import keras
import pytest

from raysegment import cli
from raysegment.choices import changed_result
from raysegment.cluster.inference.run import resolve_options
from raysegment.model.bundle import BundleDescription, load_bundle, save_bundle
from raysegment.model.ensemble import save_ensemble
from raysegment.model.unet import build_network
from raysegment.options import InferOptions, Postprocessing, Preprocessing


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """An ensemble of twice the same network."""
    folder = tmp_path_factory.mktemp("models")
    keras.utils.set_random_seed(0)
    description = BundleDescription(
        preprocessing=Preprocessing(image_size=64),
        postprocessing=Postprocessing(threshold=0.5),
        num_channels=3,
        network={"depth": 1},
    )
    save_bundle(folder / "plain", build_network(input_shape=(64, 64, 3), filters=2, depth=1), description)
    save_ensemble(folder / "both", [load_bundle(folder / "plain")] * 2, description)
    return folder / "both"


def refuse(monkeypatch, capsys, *words):
    """What the command line says of words that it refuses with exit code 2."""
    monkeypatch.setattr(sys, "argv", ["raysegment", *map(str, words)])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 2
    return capsys.readouterr().err


@pytest.mark.parametrize("verb", ["infer", "evaluate"])
def test_more_members_than_there_are_are_refused_before_anything_is_done(monkeypatch, capsys, model, tmp_path, verb):
    said = refuse(monkeypatch, capsys, verb, model, tmp_path / "none", "--out", tmp_path / "out", "--members", 3)
    assert "--members 3" in said
    assert "holds 2 networks" in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("asked", "resolved"), [(None, {}), (2, {}), (1, {"members": 1})])
def test_only_fewer_than_all_members_make_another_run(model, asked, resolved):
    bundle = load_bundle(model)
    options = InferOptions(model=str(model), source="archive", out="out", members=asked, precision="float32")
    chosen = changed_result(resolve_options(options, bundle, bundle.labels, {}))
    assert {name: value for name, value in chosen.items() if name == "members"} == resolved


def test_no_members_are_refused(monkeypatch, capsys, model, tmp_path):
    said = refuse(monkeypatch, capsys, "infer", model, tmp_path, "--out", tmp_path / "out", "--members", 0)
    assert "expected at least 1" in said


def test_a_member_that_is_gone_is_named(monkeypatch, capsys, model, tmp_path):
    folder = shutil.copytree(model, tmp_path / "copy")
    (folder / "members" / "1.keras").unlink()
    said = refuse(monkeypatch, capsys, "infer", folder, tmp_path, "--out", tmp_path / "out")
    assert "members/1.keras cannot be read" in said
