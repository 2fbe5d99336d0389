from __future__ import annotations

import math

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as oracle

from raysegment.archive.manifest import to_table
from raysegment.archive.split import choose_scans
from raysegment.errors import UsageError
from raysegment.imaging.measure import count_overlap, dice_of, measure_mask
from raysegment.imaging.postprocess import threshold_probability
from raysegment.options import Preprocessing
from raysegment.pipeline.samples import KeptScan, keep_scan
from raysegment.pipeline.score import (
    RESAMPLES,
    bootstrap_interval,
    find_strengths,
    summarise_metrics,
)
from raysegment.pipeline.thresholds import THRESHOLDS, choose_thresholds, score_thresholds
from raysegment.scan import Labels, Scan, ScanEntry
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


def table_of(masks: list[np.ndarray], references: list[np.ndarray], label: str = "lesion") -> pa.Table:
    rows = [
        {"scan_id": str(index), "label": label}
        | measure_mask(mask, reference, None, dice_at_half=float(dice_of(*count_overlap(mask, reference).sum(axis=0))))
        for index, (mask, reference) in enumerate(zip(masks, references, strict=True))
    ]
    table = pa.Table.from_pylist(rows, schema=METRICS_SCHEMA)
    return table.set_column(table.schema.get_field_index("patient_id"), "patient_id", table["scan_id"])


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


def test_several_labels_are_summarised_each_and_their_means_are_averaged():
    random = np.random.default_rng(4)
    references = {
        name: [random.random((3, 8, 8)) > share for _ in range(9)] for name, share in (("b", 0.5), ("a", 0.8))
    }
    masks = {name: [drawn ^ (random.random((3, 8, 8)) > 0.9) for drawn in items] for name, items in references.items()}
    masks["a"][3][:] = references["a"][3][:] = False
    masks["a"][4][:] = False
    alone = {name: table_of(masks[name], references[name], name) for name in references}
    choices = {"scans_failed": 1, "training_patients": 0}
    thresholds = {"a": 0.4, "b": 0.6}
    together = summarise_metrics(pa.concat_tables(alone.values()), threshold=thresholds, **choices)
    apart = {name: summarise_metrics(table, threshold=thresholds[name], **choices) for name, table in alone.items()}
    assert list(together["labels"]) == ["b", "a"]
    assert (together["scans"], together["patients"], together["threshold"]) == (9, 9, thresholds)
    for name, numbers in together["labels"].items():
        np.testing.assert_equal(numbers, {key: apart[name][key] for key in numbers})
    for name in ("dice_mean", "dice_median", "iou_mean", "lesion_slice_dice_mean", "dice_mean_at_half"):
        assert together[name] == pytest.approx((apart["a"][name] + apart["b"][name]) / 2)
    for name, count in together["confusion"].items():
        assert count == apart["a"]["confusion"][name] + apart["b"]["confusion"][name]
    confusion = together["confusion"]
    found = confusion["true_positives"] + confusion["false_positives"]
    assert together["precision"] == pytest.approx(confusion["true_positives"] / found)
    assert together["hd95_undefined"] == 1
    assert "1 scans of a label with empty reference and empty mask" in together["empty_policy"]


def test_the_interval_of_several_labels_is_that_of_the_mean_of_their_means():
    random = np.random.default_rng(5)
    first, second = random.beta(5, 2, 30), random.beta(2, 5, 30)
    names = [f"{number:02}" for number in range(30)]
    values, labels = np.concatenate([first, second]), ["b"] * 30 + ["a"] * 30
    together = bootstrap_interval(values, names * 2, labels=labels)
    assert together == pytest.approx(bootstrap_interval((first + second) / 2, names), abs=1e-12)
    low, high = bootstrap_interval(np.where(np.arange(60) > 57, values, np.nan), names * 2, labels=labels)
    assert low == pytest.approx(second[28:].min())
    assert high == pytest.approx(second[28:].max())


def test_no_scans_give_no_numbers_rather_than_an_error():
    summary = summarise_metrics(table_of([], []), scans_failed=3, threshold=0.5, training_patients=0)
    assert math.isnan(summary["dice_mean"])
    assert summary["scans"] == 0


def test_the_interval_is_that_of_scipy():
    from scipy.stats import bootstrap

    values = np.random.default_rng(1).beta(5, 2, 40)
    expected = bootstrap((values,), np.mean, method="percentile", rng=np.random.default_rng(2), n_resamples=20_000)
    names = [f"{number:02}" for number in range(41)]
    low, high = bootstrap_interval(np.append(values, np.nan), names)
    assert low == pytest.approx(expected.confidence_interval.low, abs=0.003)
    assert high == pytest.approx(expected.confidence_interval.high, abs=0.003)
    assert bootstrap_interval(values, names[:40]) == bootstrap_interval(values, names[:40])


@settings(deadline=None, max_examples=30)
@given(values=st.lists(st.floats(0, 1) | st.just(math.nan), min_size=1, max_size=60))
def test_with_one_scan_a_patient_the_interval_resamples_scans(values):
    values = np.array(values)
    names = [f"{number:03}" for number in range(len(values))]
    known = values[~np.isnan(values)]
    found = bootstrap_interval(values, names)
    if not len(known):
        assert np.isnan(found).all()
        return
    drawn = np.random.default_rng(0).integers(0, len(known), (RESAMPLES, len(known)))
    assert found == pytest.approx(tuple(np.percentile(known[drawn].mean(axis=1), (2.5, 97.5))), abs=1e-12)


def test_the_interval_over_patients_is_that_of_scipy_for_ratios():
    from scipy.stats import bootstrap

    random = np.random.default_rng(3)
    patients = np.repeat(np.arange(30), random.integers(1, 8, 30))
    values = np.clip(random.beta(5, 2, 30)[patients] + random.normal(0, 0.01, len(patients)), 0, 1)
    sums, counts = np.bincount(patients, values), np.bincount(patients)
    expected = bootstrap(
        (sums, counts),
        lambda drawn_sums, drawn_counts, axis: drawn_sums.sum(axis=axis) / drawn_counts.sum(axis=axis),
        paired=True,
        method="percentile",
        n_resamples=20_000,
        rng=np.random.default_rng(2),
    ).confidence_interval
    low, high = bootstrap_interval(values, [str(patient) for patient in patients])
    assert (low, high) == pytest.approx((expected.low, expected.high), abs=0.005)
    alone = bootstrap_interval(values, [str(number) for number in range(len(values))])
    assert high - low > 1.5 * (alone[1] - alone[0])


def kept_of(reference: np.ndarray) -> KeptScan:
    pixels = np.zeros((*reference.shape, 1), np.uint8)
    return keep_scan("x", Scan(pixels), reference, PREPROCESSING, num_channels=1, for_validation=True)


PREPROCESSING = Preprocessing(image_size=16)


def test_the_threshold_counts_scans_without_lesion_as_evaluation_does():
    lesion, clean = np.zeros((2, 16, 16), np.bool_), np.zeros((2, 16, 16), np.bool_)
    lesion[0, :4, :4] = True
    found, noise = np.where(lesion, 0.6, 0.0), np.full((2, 16, 16), 0.3)
    scans = [kept_of(lesion), kept_of(clean), kept_of(clean)]
    answers = [np.float32(found), np.float32(noise), np.zeros((2, 16, 16), np.float32)]
    batches = [[(slice(i, i + 1), answer[i : i + 1, ..., None]) for i in (1, 0)] for answer in answers]
    scores = score_thresholds(scans, batches, Labels())
    for threshold, dice, precision in ((0.2, (1 + 0) / 2, 16 / (16 + 512)), (0.5, 1.0, 1.0), (0.7, 0.0, math.nan)):
        assert scores.dice_at([threshold]) == pytest.approx([dice])
        assert scores.precision_at([threshold]) == pytest.approx(precision, nan_ok=True)
    assert choose_thresholds(scores.dice, Labels()) == (0.5,)


def test_thresholds_of_scans_that_hold_nothing_have_no_scores():
    clean = np.zeros((2, 16, 16), np.bool_)
    scores = score_thresholds([kept_of(clean)], [[(slice(0, 2), np.zeros((2, 16, 16, 1), np.float32))]], Labels())
    assert np.isnan(scores.dice).all()
    assert choose_thresholds(scores.dice, Labels()) == (0.5,)


APART, NESTED = Labels(("a", "b"), ((1,), (2,))), Labels(("whole", "core"), ((1, 2), (2,)))


def test_labels_that_exclude_each_other_share_the_threshold_that_is_best_for_their_mean():
    label_map = np.zeros((2, 16, 16), np.uint8)
    label_map[0, :4, :4], label_map[0, 4:8, :4] = 1, 2
    # Both labels together reach 0.8 where there is one, 0.4 outside; the larger one is right.
    probability = np.full((2, 16, 16, 2), 0.2, np.float32)
    probability[label_map == 1], probability[label_map == 2] = (0.5, 0.3), (0.35, 0.45)
    scores = score_thresholds([kept_of(label_map)], [[(slice(0, 2), probability)]], APART)
    assert scores.dice_at([0.5, 0.5]) == [1.0, 1.0]
    assert scores.dice_at([0.9, 0.9]) == [0.0, 0.0]
    # Up to 0.4 all voxels belong to one of them; to the first where they are alike.
    assert scores.dice_at([0.4, 0.4]) == pytest.approx([2 * 16 / (16 + 480 + 16), 1.0])
    assert scores.precision_at([0.4, 0.4]) == pytest.approx(32 / 512)
    assert choose_thresholds(scores.dice, APART) == (0.5, 0.5)


def test_labels_that_overlap_have_thresholds_of_their_own():
    label_map = np.zeros((1, 16, 16), np.uint16)
    label_map[0, :8, :8], label_map[0, :4, :4] = 1, 2
    probability = np.zeros((1, 16, 16, 2), np.float32)
    probability[..., 0] = np.where(label_map[..., :] > 0, 0.9, 0.82)
    probability[..., 1] = np.where(label_map[..., :] == 2, 0.2, 0.12)
    scores = score_thresholds([kept_of(label_map)], [[(slice(0, 1), probability)]], NESTED)
    assert choose_thresholds(scores.dice, NESTED) == pytest.approx((0.85, 0.2))
    assert scores.dice_at((0.85, 0.2)) == [1.0, 1.0]


@given(st.integers(0, 2**32 - 1), st.integers(1, 4), st.sampled_from(THRESHOLDS.tolist()))
def test_strengths_above_a_threshold_are_the_masks_of_the_rule(seed, num_labels, threshold):
    random = np.random.default_rng(seed)
    shares = random.dirichlet(np.ones(num_labels + 1), (2, 16, 16)).astype(np.float32)
    labels = Labels(tuple("abcd"[:num_labels]), tuple((value,) for value in range(1, num_labels + 1)))
    geometry = kept_of(np.zeros((2, 16, 16), np.uint8)).geometry
    found = find_strengths(shares[..., 1:], geometry, labels) >= threshold
    mask = threshold_probability(np.moveaxis(shares[..., 1:], -1, 0), labels, (threshold,) * num_labels)
    for position, plane in enumerate(found):
        np.testing.assert_array_equal(plane, labels.plane_of_mask(mask, position))


def test_only_scans_with_a_reference_are_evaluated():
    table = to_table([entry("aa"), entry("bb", references=()), entry("cc", references=("", "m.tif"))])
    chosen, _ = choose_scans(table, split=None, split_file=None, run_manifest=None)
    assert chosen["scan_id"].to_pylist() == ["aa", "cc"]
    with pytest.raises(UsageError, match="none of the 1 scans has a reference"):
        choose_scans(table.slice(1, 1), split=None, split_file=None, run_manifest=None)


def test_a_count_that_not_all_scans_have_has_no_sum():
    random = np.random.default_rng(3)
    drawn = [random.random((2, 8, 8)) > 0.7 for _ in range(3)]
    table = table_of(drawn, drawn)
    choices = {"scans_failed": 0, "threshold": 0.5, "training_patients": 0}
    known = summarise_metrics(table, **choices)
    assert known["lesions_found"] == known["lesions_reference"] > 0
    assert isinstance(known["lesions_found"], int)
    index = table.schema.get_field_index("lesions_found")
    column = pa.array([None, *table["lesions_found"].to_pylist()[1:]], pa.int64())
    partial = summarise_metrics(table.set_column(index, table.schema.field(index), column), **choices)
    assert math.isnan(partial["lesions_found"])
    assert partial["lesions_reference"] == known["lesions_reference"]


def test_scans_that_have_a_distance_are_counted():
    full = np.zeros((2, 8, 8), bool)
    full[:, 2:5, 2:5] = True
    rows = [
        {"scan_id": str(index), "label": "lesion"} | measure_mask(mask, full, (1.0, 1.0, 1.0))
        for index, mask in enumerate((full, full, ~full & full))
    ]
    table = pa.Table.from_pylist(rows, schema=METRICS_SCHEMA)
    table = table.set_column(table.schema.get_field_index("patient_id"), "patient_id", table["scan_id"])
    summary = summarise_metrics(table, scans_failed=0, threshold=0.5, training_patients=0)
    assert (summary["hd95_scans"], summary["hd95_undefined"]) == (2, 1)
