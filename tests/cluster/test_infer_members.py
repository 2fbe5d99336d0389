"""Ensembles on Ray: all members, the first of them, and folders that go on."""

from __future__ import annotations

import json
from pathlib import Path

import keras
import pandas as pd
import pytest

from raysegment.commands.evaluate import evaluate
from raysegment.commands.infer import infer
from raysegment.errors import UsageError
from raysegment.model.bundle import BundleDescription, save_bundle
from raysegment.model.ensemble import save_ensemble
from raysegment.model.unet import build_network
from raysegment.options import EvaluateOptions, InferOptions, Postprocessing, Preprocessing

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("ray_here")]

NUM_SCANS = 6


def describe(depth, **changes) -> BundleDescription:
    values = {
        "preprocessing": Preprocessing(image_size=64),
        "postprocessing": Postprocessing(threshold=0.5),
        "num_channels": 3,
        "network": {"network": "unet", "filters": 4, "depth": depth, "norm": "batch"},
    }
    return BundleDescription(**values | changes)


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> tuple[Path, Path]:
    """A network, and an ensemble of it and of a deeper one, whose windows lie on a coarser grid."""
    keras.utils.set_random_seed(11)
    folder = tmp_path_factory.mktemp("models")
    bundles = [
        save_bundle(
            folder / str(depth),
            build_network(filters=4, depth=depth, input_shape=(64, 64, 3)),
            describe(depth, training_patients=[f"PHANTOM_000{depth}"]),
        )
        for depth in (2, 3)
    ]
    return folder / "2", save_ensemble(folder / "both", bundles, describe(None, network={})).path


def run(model: Path, archive: Path, out: Path, **choices):
    options = {"limit": NUM_SCANS, "precision": "float32", **choices}
    return infer(InferOptions(model=str(model), source=str(archive), out=str(out), **options))


def masks_of(out: Path) -> list[bytes]:
    return list(pd.read_parquet(out / "masks").sort_values("scan_id")["mask"])


def test_the_first_member_alone_gives_the_masks_of_its_own_bundle(models, phantom_archive, tmp_path):
    plain, both = models
    run(plain, phantom_archive, tmp_path / "plain")
    run(both, phantom_archive, tmp_path / "first", members=1)
    assert masks_of(tmp_path / "first") == masks_of(tmp_path / "plain")
    record = json.loads((tmp_path / "first" / "run.json").read_text())
    assert record["result_options"]["members"] == 1


def test_the_number_of_members_belongs_to_the_run(models, phantom_archive, tmp_path):
    _, both = models
    assert run(both, phantom_archive, tmp_path / "out").scans_now == NUM_SCANS
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert "members" not in record["result_options"]
    assert run(both, phantom_archive, tmp_path / "out", members=2).scans_now == 0
    with pytest.raises(UsageError, match="members was None, is 1"):
        run(both, phantom_archive, tmp_path / "out", members=1)


def test_evaluation_counts_the_training_patients_of_all_members(models, phantom_archive, tmp_path):
    _, both = models
    options = {"source": str(phantom_archive), "out": str(tmp_path), "limit": NUM_SCANS, "members": 1}
    summary = evaluate(EvaluateOptions(model=str(both), **options)).summary
    assert (summary["scans"], summary["training_patients_included"]) == (NUM_SCANS, 2)
