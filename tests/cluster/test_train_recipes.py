"""Recipes train on real scans, with two workers; small slices, and few of an epoch, are enough to see that.

They differ in network, loss and optimizer; that the choices of all of them make sense is tested without Ray.
"""

import os
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from raysegment.choices import load_options
from raysegment.commands.train import train
from raysegment.options import TrainOptions

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.slow,
    pytest.mark.usefixtures("ray_here"),
    pytest.mark.skipif("RAYSEGMENT_DATA" not in os.environ, reason="RAYSEGMENT_DATA names no folder of real scans"),
]

SPLITS = ("train", "train", "train", "train", "val", "test")


@pytest.fixture(scope="module")
def patients() -> list[Path]:
    return sorted((Path(os.environ["RAYSEGMENT_DATA"]) / "lgg").iterdir())[: len(SPLITS)]


def link_archive(patients: list[Path], folder: Path, in_splits: bool) -> Path:
    for patient, split in zip(patients, SPLITS, strict=True):
        parent = folder / split if in_splits else folder
        parent.mkdir(parents=True, exist_ok=True)
        (parent / patient.name).symlink_to(patient)
    return folder


@pytest.mark.parametrize("recipe", ["lgg-best", "folders-report"])
def test_a_recipe_trains_on_real_scans_with_two_workers(recipe: str, patients: list[Path], tmp_path: Path) -> None:
    archive = link_archive(patients, tmp_path / "archive", in_splits=recipe == "folders-report")
    given = {"source": str(archive), "out": str(tmp_path / "run"), "workers": 2, "epochs": 1, "slices_per_epoch": 32}
    given["image_size"] = 64
    if recipe != "folders-report":
        given |= {"train_fraction": 0.7, "val_fraction": 0.2}
    result = train(load_options(TrainOptions, given, recipe=recipe))
    history = pq.read_table(tmp_path / "run" / "history.parquet").to_pydict()
    assert history["num_slices"] == [32]
    assert history["loss"][0] == pytest.approx(history["loss"][0], nan_ok=False)
    assert (result.bundle / "model.keras").exists()
