"""Fine-tuning on real Ray workers: where the weights start, what goes on from a checkpoint, and who is inherited."""

from __future__ import annotations

import json
from pathlib import Path

import keras
import pytest

from raysegment.commands.train import train
from raysegment.errors import UsageError
from raysegment.imaging.phantom import write_archive
from raysegment.model.bundle import BundleDescription, load_bundle, save_bundle
from raysegment.model.unet import build_network
from raysegment.options import Postprocessing, Preprocessing, TrainOptions

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("ray_here")]

CHOICES = {"network": "unet", "filters": 4, "depth": 2, "dropout": 0.0, "norm": "batch", "norm_momentum": 0.9}


def make_base(folder: Path, seed: int) -> Path:
    keras.utils.set_random_seed(seed)
    description = BundleDescription(
        preprocessing=Preprocessing(image_size=32),
        postprocessing=Postprocessing(),
        num_channels=3,
        network=CHOICES,
        training_patients=["elsewhere"],
    )
    return save_bundle(folder, build_network(**CHOICES, input_shape=(32, 32, 3)), description).path


def test_a_run_starts_from_its_base_once_and_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    write_archive(tmp_path / "scans", patients=6, seed=4, image_size=64, slices=6)
    base, other = make_base(tmp_path / "base", 1), make_base(tmp_path / "other", 2)
    given = {"source": str(tmp_path / "scans"), "out": str(tmp_path / "run"), "precision": "float32", "batch_size": 8}
    given |= {"train_fraction": 0.6, "val_fraction": 0.2, "learning_rate": 1e-9, "ema": 0.5}
    given |= {"optimizer": "sgd", "momentum": 0.0}
    train(TrainOptions(**given, epochs=1, init_from=str(base)))
    model_id = load_bundle(base).model_id
    tuned, content = load_bundle(tmp_path / "run"), json.loads((tmp_path / "run" / "model" / "model.json").read_text())
    assert content["provenance"]["base_model_id"] == model_id
    assert tuned.has_seen("elsewhere")
    assert len(tuned.training_patients) == 1 + content["split"]["train"]["patients"]
    assert {name: tuned.network[name] for name in CHOICES} == CHOICES
    # So small a learning rate moves nothing that can be seen: the averaged weights are still the base's.
    pairs = zip(
        tuned.load_network().trainable_variables, load_bundle(base).load_network().trainable_variables, strict=True
    )
    assert all(mine.numpy() == pytest.approx(theirs.numpy(), abs=1e-6) for mine, theirs in pairs)

    moved = base.rename(tmp_path / "moved")
    with pytest.raises(UsageError, match="base_model_id was"):
        train(TrainOptions(**given, epochs=2, init_from=str(other)))
    train(TrainOptions(**given, epochs=2, init_from=str(moved)))
    log = (tmp_path / "run" / "log.txt").read_text()
    assert log.count(f"starting from model {model_id[:12]}: kept 23 of 23 layers") == 1
    assert log.count("going on after epoch 1") == 1
