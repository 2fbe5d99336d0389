"""Several labels through whole runs: TIFF label maps, an untrained network, tables, summary, figures, export."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tifffile
from untrained import save_untrained

from raysegment.commands.evaluate import evaluate
from raysegment.commands.export import export_masks
from raysegment.commands.infer import infer
from raysegment.commands.report import report
from raysegment.errors import UsageError
from raysegment.imaging.phantom import make_phantom
from raysegment.options import (
    EvaluateOptions,
    ExportOptions,
    InferOptions,
    ReportOptions,
)
from raysegment.scan import Labels
from raysegment.store.masks import decode_mask

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("ray_here")]

DISJOINT = Labels(("rim", "core"), ((1, 5), (300,)))
NESTED = Labels(("whole", "core"), ((1, 300), (300,)))
SCANS = 6


@pytest.fixture(scope="module")
def archive(tmp_path_factory) -> Path:
    """Stacks of label maps with the values 1 and 300; one has a value that no label names."""
    folder = tmp_path_factory.mktemp("labelled")
    for number in range(SCANS):
        pixels, region = make_phantom(number, image_size=64, slices=6)
        rows = np.arange(64)[:, None]
        drawn = np.where(region, np.where(rows % 2, 300, 1), 0).astype(np.uint16)
        if number == 5:
            drawn[0, 0, 0] = 7
        tifffile.imwrite(folder / f"p{number}.tif", pixels, photometric="rgb")
        tifffile.imwrite(folder / f"p{number}_mask.tif", drawn)
    return folder


@pytest.mark.parametrize("labels", [DISJOINT, NESTED], ids=["disjoint", "nested"])
def test_each_label_has_a_row_a_value_and_a_summary(tmp_path, archive, labels):
    model, out = save_untrained(tmp_path / "model", labels), tmp_path / "out"
    result = evaluate(EvaluateOptions(model=str(model), source=str(archive), out=str(out)))
    assert (result.scans_ok, result.failed_by_type, result.exit_code) == (5, {"ReferenceValuesError": 1}, 3)
    metrics, masks = pd.read_parquet(out / "metrics"), pd.read_parquet(out / "masks")
    assert metrics.groupby("scan_id")["label"].apply(list).tolist() == [list(labels.names)] * 5
    for row in masks.to_dict("records"):
        mask = decode_mask(row)
        assert mask.shape == ((2, 6, 64, 64) if labels.overlap else (6, 64, 64))
        assert dict(row["labels"]) == labels.mask_values
        drawn = tifffile.imread(archive / f"{row['scan_id'].removesuffix('.tif')}_mask.tif")
        for position, name in enumerate(labels.names):
            found = metrics[(metrics.scan_id == row["scan_id"]) & (metrics.label == name)].iloc[0]
            plane, truth = labels.plane_of_mask(mask, position), np.isin(drawn, labels.regions[position])
            assert (found["voxels"], found["true_positives"]) == (plane.sum(), (plane & truth).sum())
    between = metrics["voxels_by_reference"]
    assert between.isna().all() == labels.overlap
    if not labels.overlap:
        assert between.map(sum).tolist() == metrics["voxels"].tolist()
        assert [counts[1 + number % 2] for number, counts in enumerate(between)] == metrics["true_positives"].tolist()
    summary = json.loads((out / "summary.json").read_text())
    assert list(summary["labels"]) == list(labels.names)
    assert summary["threshold"] == (0.6 if labels.exclude_each_other else {"whole": 0.5, "core": 0.45})
    means = [numbers["dice_mean"] for numbers in summary["labels"].values()]
    assert summary["dice_mean"] == pytest.approx(np.mean(means))
    figures = sorted(path.name for path in (out / "figures").iterdir())
    assert figures == ["confusion_matrix.png", "dice_per_scan.png", "predictions.png"]
    before = (out / "figures" / "predictions.png").read_bytes()
    report(ReportOptions(folder=str(out)))
    assert (out / "figures" / "predictions.png").read_bytes() == before
    export_masks(ExportOptions(tables=str(out), out=str(tmp_path / "tiff")))
    assert len(list((tmp_path / "tiff").glob("*_pred.tif"))) == 5


def test_values_and_thresholds_can_be_named_and_others_are_refused(tmp_path, archive):
    model, out = save_untrained(tmp_path / "model", NESTED), tmp_path / "out"
    choices = {"model": str(model), "source": str(archive), "out": str(out)}
    with pytest.raises(UsageError, match="names 'rim'; the model's labels are whole, core"):
        infer(InferOptions(**choices, threshold="rim=0.4"))
    with pytest.raises(UsageError, match="--labels has the labels rim; the model has whole, core"):
        evaluate(EvaluateOptions(**choices, labels=("rim=1",)))
    assert not out.exists()
    named = {"threshold": "core=0.9", "labels": ("whole=1+7+300", "core=300")}
    result = infer(InferOptions(**choices, **named))
    assert (result.scans_ok, result.exit_code) == (SCANS, 0)
    scans = pd.read_parquet(out / "scans")
    assert scans["reference_error"].isna().all()
    record = json.loads((out / "run.json").read_text())
    assert record["result_options"]["threshold"] == "whole=0.5,core=0.9"
    assert record["result_options"]["labels"] == ["whole=1+7+300", "core=300"]
    assert (record["schema_version"], [label["name"] for label in record["labels"]]) == (5, ["whole", "core"])
    assert infer(InferOptions(**choices, **named)).scans_now == 0
    with pytest.raises(UsageError, match=r"threshold was whole=0\.5,core=0\.9, is whole=0\.5,core=0\.8"):
        infer(InferOptions(**choices, **named | {"threshold": "core=0.8"}))
