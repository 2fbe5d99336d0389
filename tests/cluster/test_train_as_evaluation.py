"""A trained run says what `evaluate` says of it, is extended, and refuses to learn from nothing."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import tifffile

import raysegment
from raysegment.errors import DivergedError, UsageError
from raysegment.imaging.phantom import write_archive
from raysegment.model.bundle import load_bundle
from raysegment.pipeline.scan_features import OF_MASKS, sample_features
from raysegment.pipeline.training_features import read_samples
from raysegment.store.place import Place
from raysegment.store.publish import read_rows

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("ray_here")]

SPLITS = {"train": [f"PHANTOM_000{i}" for i in range(1, 6)], "val": ["PHANTOM_0006", "PHANTOM_0007"], "test": []}
SMALL = {
    "image_size": 32,
    "filters": 8,
    "depth": 2,
    "batch_size": 8,
    "precision": "float32",
    "learning_rate": 0.01,
    "slices_per_epoch": 160,
}


def masks_of(folder: Path) -> list[Path]:
    return sorted(folder.glob("*_mask.tif"))


def clear(masks: list[Path]) -> None:
    for path in masks:
        tifffile.imwrite(path, np.zeros_like(tifffile.imread(path)))


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Phantoms; nobody has found a lesion in the last one."""
    folder = tmp_path_factory.mktemp("archive") / "phantoms"
    write_archive(folder, patients=7, seed=2, image_size=64, slices=7)
    clear(masks_of(folder / "PHANTOM_0007"))
    return folder


def make_options(scans: Path, out: Path, **choices: object) -> raysegment.TrainOptions:
    splits = scans.with_name("splits.json")
    splits.write_text(json.dumps(SPLITS))
    return raysegment.TrainOptions(
        source=str(scans), out=str(out), split_file=str(splits), **{**SMALL, "epochs": 2, "ema": 0.8, **choices}
    )


@pytest.fixture(scope="module")
def finished(ray_here: None, scans: Path, tmp_path_factory: pytest.TempPathFactory) -> raysegment.TrainOptions:
    """A run of two epochs with averaged weights."""
    options = make_options(scans, tmp_path_factory.mktemp("runs") / "run")
    raysegment.train(options)
    return options


def test_the_bundle_keeps_the_features_that_inference_finds(finished: raysegment.TrainOptions, tmp_path: Path) -> None:
    choices = {"precision": "float32", "foreground_box": False, "spacing_mm": finished.spacing_mm}
    out = str(tmp_path / "masks")
    raysegment.infer(raysegment.InferOptions(model=finished.out, source=finished.source, out=out, **choices))
    scans, metrics = (read_rows(Place(out), table) for table in ("scans", "metrics"))
    kept = read_samples(load_bundle(finished.out).training_features)
    assert {feature.kind for feature in kept} == {"intensity", "spacing", "shape", "volume", "doubt"}
    for feature, values in kept.items():
        split = "val" if feature.kind in OF_MASKS else "train"
        among = pc.is_in(scans["patient_id"], pa.array(SPLITS[split]))
        found = sample_features(scans.filter(among), metrics)[feature]
        assert values == pytest.approx(found, rel=0.01), feature


def history_of(options: raysegment.TrainOptions) -> dict[str, list[float]]:
    return pq.read_table(Path(options.out) / "history.parquet").to_pydict()


def test_the_best_epochs_dice_is_that_of_evaluate(finished: raysegment.TrainOptions, tmp_path: Path) -> None:
    evaluated = raysegment.EvaluateOptions(
        model=finished.out,
        source=finished.source,
        out=str(tmp_path / "masks"),
        split="val",
        split_file=finished.split_file,
        threshold=0.5,
        min_component_voxels=0,
        precision="float32",
    )
    raysegment.evaluate(evaluated)
    rows = pq.read_table(tmp_path / "masks" / "metrics").to_pylist()
    assert [row["reference_is_empty"] for row in rows].count(True) == 1
    dice = [
        2 * row["true_positives"] / (row["voxels"] + row["true_positives"] + row["false_negatives"])
        for row in rows
        if not (row["reference_is_empty"] and row["mask_is_empty"])
    ]
    best = json.loads((Path(finished.out) / "run.json").read_text())["best_epoch"]
    assert len(dice) == 2
    assert history_of(finished)["val_dice"][best - 1] == pytest.approx(np.mean(dice), abs=0.002)


def test_the_line_before_epoch_1_counts_slices_with_lesion(finished: raysegment.TrainOptions) -> None:
    masks = [path for patient in SPLITS["train"] for path in masks_of(Path(finished.source) / patient)]
    with_lesion = sum(bool(tifffile.imread(path).any()) for path in masks)
    said = (Path(finished.out) / "log.txt").read_text()
    assert f"{len(masks)} slices of 5 scans to train on ({with_lesion} with lesion)" in said


def test_a_finished_run_is_extended_by_more_epochs(finished: raysegment.TrainOptions) -> None:
    before = history_of(finished)
    longer = raysegment.train(replace(finished, epochs=3))
    assert not longer.already_done
    after = history_of(finished)
    assert after["epoch"] == [1, 2, 3]
    assert after["loss"][:2] == before["loss"]
    assert raysegment.train(replace(finished, epochs=3)).already_done
    assert raysegment.train(replace(finished, epochs=1, max_minutes=9.0, early_stopping=1)).already_done


def test_a_run_of_version_0_1_0_is_still_the_same_run(finished: raysegment.TrainOptions) -> None:
    path = Path(finished.out) / "run.json"
    now = path.read_text()
    record = json.loads(now)
    new = ("momentum", "clip_norm", "scan_pattern")
    old = {name: value for name, value in record["options"].items() if name not in new}
    record["options"] = {**old, "epochs": 2, "max_minutes": None, "early_stopping": 0, "weight_decay": 0.01}
    path.write_text(json.dumps(record))
    try:
        assert raysegment.train(replace(finished, early_stopping=1, epochs=1)).already_done
    finally:
        path.write_text(now)


def test_a_training_split_without_any_lesion_is_wrong_usage(scans: Path, tmp_path: Path) -> None:
    archive = tmp_path / "archive" / "phantoms"
    write_archive(archive, patients=7, seed=2, image_size=64, slices=7)
    for patient in SPLITS["train"]:
        clear(masks_of(archive / patient))
    with pytest.raises(UsageError, match=r"none of the .* slices to train on has a lesion"):
        raysegment.train(make_options(archive, tmp_path / "run", epochs=1))
    assert not (tmp_path / "run" / "history.parquet").exists()


def test_a_training_that_diverges_says_so_at_once(scans: Path, tmp_path: Path) -> None:
    reckless = {"optimizer": "sgd", "norm": "none", "warmup_epochs": 0.0, "learning_rate": 1e30, "ema": 0.0}
    with pytest.raises(DivergedError, match="not a number in epoch 1; lower --learning-rate"):
        raysegment.train(make_options(scans, tmp_path / "run", **reckless))
    assert "failure 1 of" not in (tmp_path / "run" / "log.txt").read_text()
