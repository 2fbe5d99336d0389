"""Volumes from made-up scans to exported masks; the recipes of volumes on archives of their layouts."""

from __future__ import annotations

import time
from pathlib import Path

import nibabel
import numpy as np
import pyarrow.parquet as pq
import pytest

from raysegment.choices import load_options
from raysegment.commands.demo import demo
from raysegment.commands.train import train
from raysegment.errors import EXIT_DONE
from raysegment.imaging.volume_phantom import write_brats
from raysegment.options import DemoOptions, TrainOptions

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.usefixtures("ray_here")]


def test_the_demo_of_volumes_ends_with_masks_on_the_scans_own_grids(tmp_path: Path, capfd) -> None:
    result = demo(DemoOptions(out=str(tmp_path / "demo"), volumes=True))
    assert result.exit_code == EXIT_DONE
    assert set(result.dice) == {"Head", "Tail"}
    assert min(result.dice.values()) > 0.85
    masks = sorted((tmp_path / "demo" / "masks").rglob("*.nii.gz"))
    assert len(masks) == len(pq.read_table(tmp_path / "demo" / "test" / "scans"))
    for path in masks:
        name = path.name.replace("_pred", "")
        mask, drawn = nibabel.load(path), nibabel.load(tmp_path / "demo" / "scans" / "labelsTr" / name)
        assert mask.affine.tobytes() == drawn.affine.tobytes()
        found, expected = np.asarray(mask.dataobj), np.asarray(drawn.dataobj)
        overlap = 2 * np.sum((found == expected) & (found > 0)) / (np.sum(found > 0) + np.sum(expected > 0))
        assert overlap > 0.75
    assert (tmp_path / "demo" / "test" / "figures" / "predictions.png").is_file()
    started = time.monotonic()
    assert demo(DemoOptions(out=str(tmp_path / "demo"), volumes=True)).dice == result.dice
    assert time.monotonic() - started < 60
    assert "Head 0." in capfd.readouterr().out


def test_a_recipe_of_volumes_trains_with_two_workers(tmp_path: Path) -> None:
    write_brats(tmp_path / "archive", scans=6, seed=1, spacing_mm=4.0)
    given = {"workers": 2, "epochs": 1, "slices_per_epoch": 32, "train_fraction": 0.7, "val_fraction": 0.2}
    given |= {"source": str(tmp_path / "archive"), "out": str(tmp_path / "run")}
    result = train(load_options(TrainOptions, given, recipe="brats2020"))
    history = pq.read_table(tmp_path / "run" / "history.parquet").to_pydict()
    assert np.isfinite(history["loss"][0])
    from raysegment.model.bundle import load_bundle

    bundle = load_bundle(str(result.bundle))
    assert bundle.num_channels == 4
    assert list(bundle.labels.names) == ["WT", "TC", "ET"]
