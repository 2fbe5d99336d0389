"""A phantom archive and a tiny bundle that all inference tests share, and one Ray for each module."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

HOSTILE_READERS = str(Path(__file__).parents[1] / "archive")
NUM_SCANS = 24
BUCKET_CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "x",
    "AWS_SECRET_ACCESS_KEY": "x",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}
"""For the local S3 server of the tests."""


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


@pytest.fixture(scope="module")
def ray_here() -> Iterator[None]:
    """One Ray for all tests of a module; its decoders also know the reader of hostile files."""
    from raysegment.cluster.session import ray_session

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAYSEGMENT_READERS", "hostile_reader")
        patch.setenv("PYTHONPATH", os.pathsep.join((HOSTILE_READERS, str(Path(__file__).parent))), prepend=os.pathsep)
        patch.syspath_prepend(HOSTILE_READERS)
        for name, value in BUCKET_CREDENTIALS.items():
            patch.setenv(name, value)
        with ray_session(None, None):
            yield
