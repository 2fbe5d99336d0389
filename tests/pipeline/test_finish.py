"""The bundle that a training run ends in, with labels that exclude each other and with labels that overlap."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pyarrow as pa
import pytest

from raysegment.imaging.phantom import make_phantom
from raysegment.imaging.threshold import describe_thresholds, show_thresholds
from raysegment.model.bundle import load_bundle
from raysegment.model.engines.tensorflow import Predictor
from raysegment.model.fit import build_chosen
from raysegment.options import Preprocessing, TrainOptions
from raysegment.pipeline.blocks import ReadScan
from raysegment.pipeline.doubt import ReferenceSize
from raysegment.pipeline.finish import write_bundle
from raysegment.pipeline.learn import Progress, save_best
from raysegment.pipeline.samples import keep_scan
from raysegment.pipeline.scan_features import Feature, sample_features
from raysegment.pipeline.segment import ScanSegmenter
from raysegment.pipeline.settings import SegmentSettings
from raysegment.pipeline.training_features import ScanTraits, TrainingTraits, read_samples
from raysegment.scan import Labels, Scan
from raysegment.store.schema import METRICS_SCHEMA, SCANS_SCHEMA

APART, NESTED = Labels(("dim", "bright"), ((1,), (4,))), Labels(("all", "bright"), ((1, 4), (4,)))
CHOICES = {"image_size": 32, "filters": 2, "depth": 1, "norm": "none", "precision": "float32"}


def draw_scans() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Phantoms on a grid of their own, with the brighter half of each lesion as another value."""
    scans = {}
    for seed in range(3):
        pixels, lesion = make_phantom(seed, image_size=48, slices=5)
        level = np.median(pixels[lesion][:, 1])
        scans[f"s{seed}"] = pixels, np.where(lesion, np.where(pixels[..., 1] > level, 4, 1), 0).astype(np.uint8)
    return scans


def make_traits(num_slices: int) -> ScanTraits:
    return ScanTraits(
        num_slices=num_slices,
        slice_shape=(48, 48),
        spacing_mm=None,
        voxel_mm3=2.0,
        intensity_quantiles=(1.0, 2.0, 3.0),
    )


AVERAGING = [{}, {"mirror": "columns", "smooth_slices": True, "min_component_voxels": 9}]


@pytest.mark.parametrize("averaging", AVERAGING)
@pytest.mark.parametrize("labels", [APART, NESTED])
def test_the_dice_that_a_bundle_tells_is_the_one_that_segmenting_with_it_gives(
    labels: Labels, averaging: dict[str, Any], tmp_path: Path
) -> None:
    keras.utils.set_random_seed(3)
    options = TrainOptions(source="a", out="b", **CHOICES, **averaging)
    network = build_chosen(options, 3, keras.layers.BatchNormalization, labels)
    save_best(tmp_path / "checkpoints", 1, [weight * 3 for weight in network.get_weights()])
    preprocessing, scans = Preprocessing(image_size=32), draw_scans()
    validation = [
        keep_scan(name, Scan(pixels), reference, preprocessing, num_channels=3, for_validation=True)
        for name, (pixels, reference) in scans.items()
    ]
    facts = {"num_channels": 3, "training_patients": [], "data": {}, "split": {}, "provenance": {}}
    facts["reference_sizes"] = [
        ReferenceSize(voxels=(9, number), voxel_mm3=2.0, slice_shape=(8, 8)) for number in range(5, 20)
    ]
    facts["traits"] = TrainingTraits((make_traits(7),), {name: make_traits(5) for name in scans})
    progress = Progress(epoch=1, best_epoch=1, history=[{"val_loss": 0.5}])
    scores = write_bundle(tmp_path, options, labels, progress, validation, facts)

    bundle = load_bundle(tmp_path)
    assert bundle.labels == labels
    assert (bundle.postprocessing.mirror, bundle.postprocessing.smooth_slices) == (options.mirror, bool(averaging))
    assert bundle.postprocessing.min_component_voxels == scores["min_component_voxels"]
    assert scores["min_component_voxels"] == 9 or not averaging
    first, second = labels.names
    assert bundle.doubt["volume_range_ml"] == {first: [0.018, 0.018], second: [0.01, 0.038]}
    assert describe_thresholds(bundle.threshold, labels) == scores["threshold"]
    assert isinstance(scores["threshold"], dict) == labels.overlap
    settings = SegmentSettings(
        preprocessing=bundle.preprocessing,
        postprocessing=replace(bundle.postprocessing, threshold=show_thresholds(bundle.threshold, labels)),
        labels=labels,
        num_channels=3,
        grid_factor=bundle.grid_factor,
        foreground_box=False,
    )
    reads = [ReadScan(name, "p", "/a", "f", Scan(pixels), drawn) for name, (pixels, drawn) in scans.items()]
    predictor = Predictor(bundle, precision="float32")
    rows = list(ScanSegmenter(lambda batch: [predictor.predict(batch)], settings).segment(reads))
    found = {
        name: np.nanmean([metric["dice"] for row in rows for metric in row.metrics if metric["label"] == name])
        for name in labels.names
    }
    assert found == pytest.approx(scores["val_dice_of_labels"], abs=1e-4)
    assert scores["val_dice"] == pytest.approx(np.mean(list(found.values())), abs=1e-4)
    assert min(found.values()) > 0
    kept = read_samples(bundle.training_features)
    assert kept[Feature("shape", "num_slices")].tolist() == [7]
    metrics = pa.Table.from_pylist([metric for row in rows for metric in row.metrics], schema=METRICS_SCHEMA)
    scanned = pa.Table.from_pylist([row.scan | {"patient_id": row.scan_id} for row in rows], schema=SCANS_SCHEMA)
    inferred = sample_features(scanned, metrics)
    for label in labels.names:
        doubt = [Feature("doubt", f"{name}_{label}") for name in ("border_entropy", "share_near_threshold")]
        for feature in doubt:
            assert kept[feature] == pytest.approx(inferred[feature], rel=0.02)
        # Voxels of 2 cubic millimetres; a scan without spacing counts them.
        volumes = inferred[Feature("volume", f"voxels_{label}")] * 0.002
        assert kept[Feature("volume", f"volume_ml_{label}")] == pytest.approx(volumes, rel=0.002)
    stored = json.loads((tmp_path / "model" / "model.json").read_text())
    assert stored["scores"]["val_dice_of_labels"] == pytest.approx(scores["val_dice_of_labels"])
