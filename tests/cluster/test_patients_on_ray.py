"""Patients and thresholds from `train` to `evaluate` on one flat folder of images; and scans that change their name."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tifffile
from PIL import Image

import raysegment
from raysegment.imaging.phantom import make_phantom

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("ray_here")]

PATTERNS = {"scan_pattern": r"images/(p\d+_s\d+)_", "patient_pattern": r"(p\d+)_"}


def write_scan(archive: Path, name: str, *, seed: int, lesion: bool) -> None:
    """Four slices of a phantom in `images/` with masks in `masks/`, all empty where there shall be no lesion."""
    pixels, reference = make_phantom(seed, image_size=32, slices=4)
    for folder, planes in (("images", pixels), ("masks", reference * np.uint8(255 * lesion))):
        (archive / folder).mkdir(parents=True, exist_ok=True)
        for number, plane in enumerate(planes, start=1):
            Image.fromarray(plane).save(archive / folder / f"{name}_{number}.png")


@pytest.fixture(scope="module")
def flat(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten patients with one to three scans each, of which the second ones have no lesion, in one folder of images."""
    archive = tmp_path_factory.mktemp("flat") / "archive"
    for patient in range(10):
        for scan in range(1 + patient % 3):
            write_scan(archive, f"p{patient}_s{scan}", seed=10 * patient + scan, lesion=scan != 1)
    return archive


@pytest.fixture(scope="module")
def trained(ray_here: None, flat: Path) -> Path:
    """A run of one epoch on it; four patients validate."""
    run = flat.parent / "run"
    choices = {"image_size": 32, "filters": 4, "depth": 2, "epochs": 1, "precision": "float32", "batch_size": 8}
    options = raysegment.TrainOptions(
        source=str(flat), out=str(run), train_fraction=0.4, val_fraction=0.4, **choices, **PATTERNS
    )
    raysegment.train(options)
    return run


@pytest.fixture(scope="module")
def validated(trained: Path, flat: Path) -> tuple[Path, dict[str, object]]:
    """The tables of an evaluation of its validation scans, and its summary."""
    out = trained.parent / "validated"
    options = raysegment.EvaluateOptions(
        model=str(trained), source=str(flat), out=str(out), split="val", foreground_box=False, **PATTERNS
    )
    raysegment.evaluate(options)
    return out, json.loads((out / "summary.json").read_text())


def test_training_and_evaluation_give_one_dice_where_half_of_the_scans_have_no_lesion(trained, validated):
    scores = json.loads((trained / "run.json").read_text())["scores"]
    _, summary = validated
    assert summary["split_origin"] == f"the model's own {trained / 'manifest.parquet'}"
    assert summary["threshold"] == scores["threshold"]
    assert summary["dice_mean"] == pytest.approx(scores["val_dice"], abs=1e-3)
    assert summary["precision"] == pytest.approx(scores["val_precision"], abs=1e-3)


def test_the_interval_resamples_patients(validated):
    from scipy.stats import bootstrap

    out, summary = validated
    rows = pd.read_parquet(out / "metrics").merge(pd.read_parquet(out / "scans")[["scan_id", "patient_id"]])
    rows = rows.dropna(subset="dice").groupby("patient_id")["dice"]
    sums, counts = rows.sum().to_numpy(), rows.count().to_numpy()
    expected = bootstrap(
        (sums, counts),
        lambda drawn_sums, drawn_counts, axis: drawn_sums.sum(axis=axis) / drawn_counts.sum(axis=axis),
        paired=True,
        vectorized=True,
        method="percentile",
        n_resamples=20_000,
        rng=np.random.default_rng(0),
    ).confidence_interval
    assert summary["patients"] == len(sums) < counts.sum() <= summary["scans"]
    assert summary["dice_ci95"] == pytest.approx([expected.low, expected.high], abs=0.01)


def test_the_log_warns_of_few_validation_patients_and_of_a_dice_near_0(trained):
    log = (trained / "log.txt").read_text()
    assert "warning: only 4 patients to validate on" in log
    scores = json.loads((trained / "run.json").read_text())["scores"]
    assert ("warning: the validation Dice is near 0" in log) == (scores["val_dice"] < 0.1)


def write_series(folder: Path, prefix: str, *, seed: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    pixels, _ = make_phantom(seed, image_size=32, slices=3)
    for number, plane in enumerate(pixels, start=1):
        tifffile.imwrite(folder / f"{prefix}_{number}.tif", plane, photometric="rgb")


def scan_ids(out: Path) -> list[str]:
    tables = [sorted(pd.read_parquet(out / table)["scan_id"]) for table in ("scans", "metrics", "masks")]
    assert tables[0] == tables[1] == tables[2]
    return tables[0]


def test_no_slice_stands_twice_when_a_folder_gains_a_second_series(tmp_path, tiny_bundle):
    archive, other, out = tmp_path / "archive", tmp_path / "other", tmp_path / "out"
    for patient in ("p1", "p2", "p3"):
        write_series(archive / patient, "a", seed=1)
    write_series(other / "q1", "a", seed=2)
    write_series(other / "q2", "a", seed=3)

    def segment(source: Path) -> None:
        raysegment.infer(raysegment.InferOptions(model=str(tiny_bundle), source=str(source), out=str(out)))

    segment(archive)
    segment(other)
    assert scan_ids(out) == ["p1", "p2", "p3", "q1", "q2"]
    write_series(archive / "p1", "b", seed=4)
    shutil.rmtree(archive / "p2")
    segment(archive)
    assert scan_ids(out) == ["p1/a", "p1/b", "p2", "p3", "q1", "q2"]
    for path in (archive / "p1").glob("b_*"):
        path.unlink()
    write_series(archive / "p1", "a", seed=5)
    segment(archive)
    assert scan_ids(out) == ["p1", "p1/b", "p2", "p3", "q1", "q2"]
