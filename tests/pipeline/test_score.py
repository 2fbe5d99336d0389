from __future__ import annotations

import math

import numpy as np
import pyarrow as pa
import pytest
from sklearn import metrics as oracle

from raysegment.archive.manifest import to_table
from raysegment.archive.split import choose_scans
from raysegment.errors import UsageError
from raysegment.imaging.measure import measure_mask
from raysegment.pipeline.score import bootstrap_interval, summarise_metrics
from raysegment.scan import ScanEntry
from raysegment.store.schema import METRICS_SCHEMA


def entry(name: str, *, split: str | None = None, references: tuple[str, ...] = ("m.tif",)) -> ScanEntry:
    return ScanEntry(
        scan_id=name,
        patient_id=name[:2],
        source="/a",
        reader="tiff",
        files=("x.tif",),
        reference_files=references,
        split=split,
    )


def table_of(masks: list[np.ndarray], references: list[np.ndarray]) -> pa.Table:
    rows = [
        {"scan_id": str(index), "label": "lesion"}
        | measure_mask(mask.astype(np.uint8), reference, mask.astype(np.float32), None)
        for index, (mask, reference) in enumerate(zip(masks, references, strict=True))
    ]
    return pa.Table.from_pylist(rows, schema=METRICS_SCHEMA)


def test_the_summary_agrees_with_scikit_learn():
    random = np.random.default_rng(0)
    references = [random.random((3, 8, 8)) > 0.7 for _ in range(12)]
    masks = [reference ^ (random.random((3, 8, 8)) > 0.9) for reference in references]
    summary = summarise_metrics(table_of(masks, references), scans_failed=2, threshold=0.4, training_patients=1)
    truth, found = np.concatenate(references).ravel(), np.concatenate(masks).ravel()
    assert summary["accuracy"] == pytest.approx(oracle.accuracy_score(truth, found), abs=1e-6)
    assert summary["precision"] == pytest.approx(oracle.precision_score(truth, found), abs=1e-6)
    assert summary["recall"] == pytest.approx(oracle.recall_score(truth, found), abs=1e-6)
    assert summary["f1"] == pytest.approx(oracle.f1_score(truth, found), abs=1e-6)
    dice = [oracle.f1_score(a.ravel(), b.ravel()) for a, b in zip(references, masks, strict=True)]
    iou = [oracle.jaccard_score(a.ravel(), b.ravel()) for a, b in zip(references, masks, strict=True)]
    assert summary["dice_mean"] == pytest.approx(np.mean(dice), abs=1e-6)
    assert summary["dice_median"] == pytest.approx(np.median(dice), abs=1e-6)
    assert summary["iou_mean"] == pytest.approx(np.mean(iou), abs=1e-6)
    assert summary["confusion"]["true_negatives"] == oracle.confusion_matrix(truth, found)[0, 0]
    slices = [
        oracle.f1_score(a.ravel(), b.ravel())
        for drawn, mask in zip(references, masks, strict=True)
        for a, b in zip(drawn, mask, strict=True)
        if a.any()
    ]
    assert summary["lesion_slice_dice_mean"] == pytest.approx(np.mean(slices), abs=1e-6)
    assert (summary["scans"], summary["scans_failed"], summary["threshold"]) == (12, 2, 0.4)
    assert summary["dice_ci95"][0] < summary["dice_mean"] < summary["dice_ci95"][1]


def test_empty_masks_follow_the_policy_and_are_counted():
    empty, full = np.zeros((2, 4, 4), np.bool_), np.ones((2, 4, 4), np.bool_)
    summary = summarise_metrics(
        table_of([empty, full, empty, full], [empty, empty, full, full]),
        scans_failed=0,
        threshold=0.5,
        training_patients=0,
    )
    assert summary["dice_mean"] == pytest.approx(1 / 3)
    assert "1 scans with empty reference and empty mask" in summary["empty_policy"]
    assert "1 with empty reference only and 1 with empty mask only" in summary["empty_policy"]
    assert (summary["clean_slices"], summary["clean_slices_with_mask"]) == (4, 2)
    assert summary["lesion_slice_dice_mean"] == pytest.approx(0.5)


def test_no_scans_give_no_numbers_rather_than_an_error():
    summary = summarise_metrics(METRICS_SCHEMA.empty_table(), scans_failed=3, threshold=0.5, training_patients=0)
    assert math.isnan(summary["dice_mean"])
    assert summary["scans"] == 0


def test_the_interval_is_that_of_scipy():
    from scipy.stats import bootstrap

    values = np.random.default_rng(1).beta(5, 2, 40)
    expected = bootstrap((values,), np.mean, method="percentile", rng=np.random.default_rng(2), n_resamples=20_000)
    low, high = bootstrap_interval(np.append(values, np.nan))
    assert low == pytest.approx(expected.confidence_interval.low, abs=0.003)
    assert high == pytest.approx(expected.confidence_interval.high, abs=0.003)
    assert bootstrap_interval(values) == bootstrap_interval(values)


def test_only_scans_with_a_reference_are_evaluated():
    table = to_table([entry("aa"), entry("bb", references=()), entry("cc", references=("", "m.tif"))])
    chosen = choose_scans(table, split=None, split_file=None, run_manifest=None)
    assert chosen["scan_id"].to_pylist() == ["aa", "cc"]
    with pytest.raises(UsageError, match="none of the 1 scans has a reference"):
        choose_scans(table.slice(1, 1), split=None, split_file=None, run_manifest=None)
