"""Numbers of masks, against hand-worked cases and scikit-learn."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import ndimage
from sklearn import metrics

from raysegment.errors import GridMismatchError
from raysegment.imaging import lesions
from raysegment.imaging.measure import REFERENCE_COLUMNS, count_by_reference, measure_mask, overlap_of
from raysegment.imaging.postprocess import occupied_window
from raysegment.scan import Labels

PAIRS = arrays(np.uint8, st.tuples(st.integers(1, 4), st.integers(2, 9), st.integers(2, 9)), elements=st.integers(0, 3))


def small_case() -> tuple[np.ndarray, np.ndarray]:
    """Slice 0: two of three right, one too many; slice 1: a miss; slice 2: a false alarm; slice 3: clean."""
    mask, reference = np.zeros((4, 4, 4), np.uint8), np.zeros((4, 4, 4), np.bool_)
    reference[0, 0, :3] = True
    mask[0, 0, 1:4] = 1
    reference[1, 2, 2] = True
    mask[2, 3, 3] = 1
    return mask, reference


def test_a_case_worked_out_by_hand():
    mask, reference = small_case()
    row = measure_mask(mask, reference, (5.0, 2.0, 1.0))
    assert row["voxels"] == 4
    assert row["volume_ml"] == pytest.approx(0.04)
    assert row["num_components"] == 2
    assert row["reference_voxels"] == 4
    counts = [row[name] for name in ("true_positives", "false_positives", "false_negatives", "true_negatives")]
    assert counts == [2, 2, 2, 58]
    assert row["dice"] == row["f1"] == pytest.approx(0.5)
    assert row["iou"] == pytest.approx(1 / 3)
    assert row["accuracy"] == pytest.approx(60 / 64)
    assert row["precision"] == row["recall"] == pytest.approx(0.5)
    assert (row["lesion_slices"], row["clean_slices"], row["clean_slices_with_mask"]) == (2, 2, 1)
    assert row["lesion_slice_dice_sum"] == pytest.approx(2 / 3)
    assert (row["reference_is_empty"], row["mask_is_empty"]) == (False, False)
    counted = [row[f"lesions_{name}"] for name in ("reference", "found", "missed", "false")]
    assert counted == [2, 1, 1, 1]


def test_components_of_a_mask_are_looked_for_once_beside_those_of_the_reference(monkeypatch):
    looked_at = []
    monkeypatch.setattr(lesions, "occupied_window", lambda array: looked_at.append(array) or occupied_window(array))
    mask, reference = small_case()
    compared = measure_mask(mask, reference, None)
    assert [array is mask for array in looked_at] == [False, True]
    assert compared["num_components"] == measure_mask(mask, None, None)["num_components"] == 2


def test_distances_are_told_at_the_tolerance_that_was_asked_for():
    mask, reference = np.zeros((1, 4, 8), np.uint8), np.zeros((1, 4, 8), np.bool_)
    mask[0, 1, 1] = reference[0, 1, 2] = 1
    row = measure_mask(mask, reference, (5.0, 2.0, 0.5), surface_tolerance_mm=0.4)
    assert (row["hd95_mm"], row["mean_surface_distance_mm"]) == pytest.approx((0.5, 0.25))
    assert (row["surface_dice"], row["surface_tolerance_mm"]) == pytest.approx((0.5, 0.4))
    unknown = measure_mask(mask, reference, None)
    assert all(math.isnan(unknown[name]) for name in ("hd95_mm", "mean_surface_distance_mm", "surface_dice"))


@given(pair=PAIRS)
@settings(max_examples=150, deadline=None)
def test_overlap_agrees_with_scikit_learn(pair):
    mask, reference = pair & 1, (pair & 2) > 0
    row = measure_mask(mask, reference, None)
    predicted, truth = mask.ravel(), reference.ravel().astype(np.uint8)
    matrix = metrics.confusion_matrix(truth, predicted, labels=[0, 1]).ravel().tolist()
    assert [
        row[f"{name}s"] for name in ("true_negative", "false_positive", "false_negative", "true_positive")
    ] == matrix
    assert row["accuracy"] == pytest.approx(metrics.accuracy_score(truth, predicted), abs=1e-6)
    if not truth.any() and not predicted.any():
        assert all(math.isnan(row[name]) for name in ("dice", "iou", "precision", "recall", "f1"))
        return
    expected = {
        "dice": metrics.f1_score(truth, predicted, zero_division=0),
        "f1": metrics.f1_score(truth, predicted, zero_division=0),
        "iou": metrics.jaccard_score(truth, predicted, zero_division=0),
        "precision": metrics.precision_score(truth, predicted, zero_division=0),
        "recall": metrics.recall_score(truth, predicted, zero_division=0),
    }
    assert {name: row[name] for name in expected} == pytest.approx(expected, abs=1e-6)


@given(pair=PAIRS)
@settings(max_examples=80, deadline=None)
def test_components_and_slices_agree_with_scipy_and_scikit_learn(pair):
    mask, reference = pair & 1, (pair & 2) > 0
    row = measure_mask(mask, reference, (1.0, 1.0, 1.0))
    assert row["num_components"] == ndimage.label(mask, np.ones((3, 3, 3)))[1]
    assert row["volume_ml"] == pytest.approx(mask.sum() / 1000)
    with_lesion = [index for index, plane in enumerate(reference) if plane.any()]
    dice = [metrics.f1_score(reference[index].ravel(), mask[index].ravel() > 0) for index in with_lesion]
    assert row["lesion_slices"] == len(with_lesion)
    assert row["lesion_slices"] + row["clean_slices"] == len(mask)
    assert row["lesion_slice_dice_sum"] == pytest.approx(sum(dice))


def test_empty_masks_score_nan():
    empty = np.zeros((2, 3, 3), np.uint8)
    row = measure_mask(empty, empty > 0, None)
    nothing = ("dice", "iou", "precision", "recall", "f1", "dice_at_half", "volume_ml")
    assert all(math.isnan(row[name]) for name in nothing)
    assert row["accuracy"] == 1.0
    assert (row["mask_is_empty"], row["reference_is_empty"], row["num_components"]) == (True, True, 0)


@pytest.mark.parametrize(("mask_value", "reference_value"), [(1, 0), (0, 1)])
def test_one_empty_mask_scores_zero(mask_value, reference_value):
    mask = np.full((1, 2, 2), mask_value, np.uint8)
    row = measure_mask(mask, np.full((1, 2, 2), reference_value > 0), None)
    assert [row[name] for name in ("dice", "iou", "precision", "recall", "f1")] == [0.0] * 5


def test_without_a_reference_nothing_is_compared():
    mask, _ = small_case()
    row = measure_mask(mask, None, None)
    assert row["voxels"] == 4
    assert all(row[name] is None for name in REFERENCE_COLUMNS)


def test_with_and_without_reference_have_the_same_columns():
    mask, reference = small_case()
    assert list(measure_mask(mask, None, None)) != []
    assert set(measure_mask(mask, None, None)) == set(measure_mask(mask, reference, None))


def test_numbers_are_plain_python_so_that_tables_and_json_take_them():
    mask, reference = small_case()
    row = measure_mask(mask, reference, (1.0, 1.0, 1.0))
    assert {type(value) for value in row.values()} == {int, float, bool}


def test_a_reference_on_another_grid_is_refused():
    with pytest.raises(GridMismatchError, match=r"\(1, 4, 4\).*\(1, 5, 5\)"):
        measure_mask(np.zeros((1, 4, 4), np.uint8), np.zeros((1, 5, 5), bool), None)


def test_pooled_counts_give_pooled_overlap():
    assert overlap_of(30, 10, 20, 40) == pytest.approx(
        {"dice": 60 / 90, "iou": 0.5, "accuracy": 0.7, "precision": 0.75, "recall": 0.6, "f1": 60 / 90}
    )


def test_the_volume_of_sheared_voxels_is_that_of_their_affine():
    mask = np.zeros((3, 10, 10), np.uint8)
    mask[1, 2:7, 3:5] = 1
    sheared = np.array([[0, 0, 1, 4], [3, 1, 0, 5], [4, 0, 0, 6], [0, 0, 0, 1]], np.float64)
    assert measure_mask(mask, None, (5.0, 1.0, 1.0))["volume_ml"] == pytest.approx(10 * 5 / 1000)
    assert measure_mask(mask, None, (5.0, 1.0, 1.0), affine=sheared)["volume_ml"] == pytest.approx(10 * 4 / 1000)


@given(pair=PAIRS, seed=st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_what_masks_have_by_reference_agrees_with_scikit_learn(pair, seed):
    values, drawn = np.array([0, 2, 300], np.uint16), Labels(("a", "b", "other"), ((1, 7), (4,), (9,)))
    random = np.random.default_rng(seed)
    mask = values[random.integers(0, 3, pair.shape)]
    reference = np.array([0, 1, 7, 4, 9], np.uint8)[random.integers(0, 5, pair.shape)]
    truth = np.select([np.isin(reference, (1, 7)), reference == 4], [1, 2], 0)
    expected = metrics.confusion_matrix(truth.ravel(), np.searchsorted(values, mask).ravel(), labels=[0, 1, 2])
    assert count_by_reference(mask, [2, 300], reference, drawn) == expected.T[1:].tolist()


def test_there_is_nothing_between_labels_that_share_voxels_or_without_a_reference():
    mask, apart = np.ones((1, 2, 2), np.uint8), Labels(("a", "b"), ((1,), (2,)))
    nested = Labels(("a", "b"), ((1, 2), (2,)))
    assert count_by_reference(mask, [1, 2], None, apart) == [None, None]
    assert count_by_reference(mask, [1, 2], mask, nested) == [None, None]
    assert count_by_reference(np.stack([mask, mask]), [1, 1], mask, apart) == [None, None]
    assert count_by_reference(mask, [1], mask, Labels()) == [None]
    assert count_by_reference(mask, [1, 2], mask, apart) == [[0, 4, 0], [0, 0, 0]]
