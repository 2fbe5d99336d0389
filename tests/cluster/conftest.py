"""A phantom archive and a tiny bundle that all inference tests share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

NUM_SCANS = 24


@pytest.fixture(scope="session")
def phantom_archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 phantoms of 64x64 with 6 to 9 slices, in LGG layout."""
    from raysegment.imaging.phantom import write_archive

    folder = tmp_path_factory.mktemp("archive") / "phantoms"
    write_archive(folder, patients=NUM_SCANS, seed=5, image_size=64, slices=6)
    return folder


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained network with few weights; its masks are nonsense, but always the same."""
    import keras

    from raysegment.model.bundle import BundleDescription, save_bundle
    from raysegment.model.unet import build_network
    from raysegment.options import Postprocessing, Preprocessing

    keras.utils.set_random_seed(7)
    choices = {"network": "unet", "filters": 4, "depth": 2, "dropout": 0.0, "norm": "batch", "norm_momentum": 0.9}
    folder = tmp_path_factory.mktemp("bundle") / "model"
    description = BundleDescription(
        preprocessing=Preprocessing(image_size=64),
        postprocessing=Postprocessing(threshold=0.5, min_component_voxels=3),
        num_channels=3,
        network=choices,
        training_patients=["PHANTOM_0001", "PHANTOM_0002", "elsewhere"],
    )
    save_bundle(folder, build_network(**choices, input_shape=(64, 64, 3)), description)
    return folder
