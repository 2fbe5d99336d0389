"""Entropy at borders and voxels near the threshold."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import ndimage
from scipy.stats import entropy

from raysegment.imaging.doubt import bound_near, compute_entropy, count_near, find_border, sum_border_entropy
from raysegment.scan import Labels

ONE, APART, NESTED = Labels(), Labels(("a", "b"), ((1,), (2,))), Labels(("a", "b"), ((1, 2), (2,)))
MASKS = arrays(np.bool_, st.tuples(*[st.integers(1, 5)] * 3))
PROBABILITIES = arrays(np.float32, st.tuples(*[st.integers(1, 4)] * 3), elements=st.floats(0, 1, width=32))
SHARES = arrays(np.float32, (3, 2, 3, 4), elements=st.floats(1 / 64, 1, width=32))


def test_a_border_is_the_voxels_on_both_sides_of_it() -> None:
    mask = np.zeros((1, 5, 5), bool)
    mask[0, 1:4, 1:4] = True
    expected = [
        [0, 1, 1, 1, 0],
        [1, 1, 1, 1, 1],
        [1, 1, 0, 1, 1],
        [1, 1, 1, 1, 1],
        [0, 1, 1, 1, 0],
    ]
    assert find_border(mask)[0].astype(int).tolist() == expected


def test_the_slice_s_edge_is_no_border() -> None:
    assert not find_border(np.ones((2, 3, 3), bool)).any()
    half = np.zeros((1, 2, 4), bool)
    half[:, :, :2] = True
    assert find_border(half)[0].astype(int).tolist() == [[0, 1, 1, 0], [0, 1, 1, 0]]


@given(MASKS)
@settings(max_examples=60, deadline=None)
def test_a_border_is_what_dilation_adds_and_erosion_takes(mask: np.ndarray) -> None:
    cross = ndimage.generate_binary_structure(2, 1)
    for plane, border in zip(mask, find_border(mask), strict=True):
        added = ndimage.binary_dilation(plane, cross) & ~plane
        taken = plane & ~ndimage.binary_erosion(plane, cross, border_value=1)
        assert np.array_equal(border, added | taken)


def test_entropy_of_a_yes_or_no_is_known_numbers() -> None:
    found = compute_entropy(np.array([[0.0, 0.5, 1.0, 0.25]], np.float32))
    assert found.tolist() == pytest.approx([0, 1, 0, 2 - 0.75 * math.log2(3)])


@given(SHARES)
@settings(max_examples=30, deadline=None)
def test_entropy_of_labels_that_exclude_each_other_counts_the_background(shares: np.ndarray) -> None:
    whole = (shares / shares.sum(axis=0)).reshape(3, -1)
    expected = entropy(whole.astype(np.float64), base=2, axis=0)
    assert compute_entropy(whole[1:]) == pytest.approx(expected, abs=1e-5)
    assert (compute_entropy(whole[1:]) <= math.log2(3) + 1e-9).all()


def test_the_mean_at_a_border_is_worked_out_by_hand() -> None:
    probability = np.zeros((1, 2, 3, 3), np.float32)
    probability[0, 0, 1, 1] = 0.5
    mask = np.zeros((2, 3, 3), bool)
    mask[0, 1, 1] = True
    sums, count = sum_border_entropy(probability, mask, 0, ONE)
    # The voxel and its four neighbours, of which it alone is undecided.
    assert (sums.tolist(), count) == ([1.0], 5)
    assert sum_border_entropy(probability, np.zeros((2, 3, 3), bool), 0, ONE)[1] == 0


def test_the_border_between_two_labels_that_exclude_each_other_is_undecided_too() -> None:
    probability = np.full((2, 1, 1, 2), 0.5, np.float32)
    mask = np.array([[[True, False]]])
    assert sum_border_entropy(probability, mask, 0, APART) == (pytest.approx([2.0]), 2)
    # Where labels overlap the other one is no part of the question.
    probability[1] = 0.9
    assert sum_border_entropy(probability, mask, 0, NESTED) == (pytest.approx([2.0]), 2)


@given(arrays(np.float32, (1, 3, 6, 7), elements=st.floats(0, 1, width=32)), st.floats(0.05, 0.95))
@settings(max_examples=40, deadline=None)
def test_looking_at_the_mask_s_box_alone_gives_what_the_whole_scan_gives(probability, threshold) -> None:
    mask = probability[0] >= threshold
    border = find_border(mask)
    sums, count = sum_border_entropy(probability, mask, 0, ONE)
    assert count == border.sum()
    assert sums.sum() == pytest.approx(compute_entropy(probability[:, border]).sum())


def test_voxels_near_the_threshold_are_a_share_of_those_near_or_above_it() -> None:
    probability = np.array([0.0, 0.3, 0.41, 0.5, 0.59, 0.7, 1.0], np.float32).reshape(1, 1, 1, 7)
    assert count_near(probability, ONE, (0.5,)).tolist() == [[3, 5]]
    assert count_near(np.zeros((1, 1, 1, 7), np.float32), ONE, (0.5,)).tolist() == [[0, 0]]


def test_a_background_of_nothing_is_near_no_low_threshold() -> None:
    assert bound_near(0.5) == (np.float32(0.4), np.float32(0.6))
    assert bound_near(0.1) == (pytest.approx(0.05), pytest.approx(0.15))
    assert bound_near(0.9) == (pytest.approx(0.85), pytest.approx(0.95))
    assert count_near(np.zeros((1, 2, 3, 4), np.float32), ONE, (0.05,)).tolist() == [[0, 0]]


@given(PROBABILITIES, st.floats(0.05, 0.95))
@settings(max_examples=60, deadline=None)
def test_the_share_is_what_a_mask_loses_between_both_thresholds(probability: np.ndarray, threshold: float) -> None:
    (low, high), (near, reached) = bound_near(threshold), count_near(probability[None], ONE, (threshold,))[0]
    assert reached == (probability >= low).sum()
    assert reached - near == (probability > high).sum()
    assert 0 <= near <= reached


@given(SHARES, st.floats(0.1, 0.9))
@settings(max_examples=40, deadline=None)
def test_of_labels_that_exclude_each_other_the_foreground_is_compared(shares: np.ndarray, threshold: float) -> None:
    labels = (shares / shares.sum(axis=0))[1:]
    low, high = bound_near(threshold)
    together, largest = labels.sum(axis=0, dtype=np.float32), labels.argmax(axis=0)
    expected = [
        [
            int(((together >= low) & (together <= high) & (largest == label)).sum()),
            int(((together >= low) & (largest == label)).sum()),
        ]
        for label in range(2)
    ]
    assert count_near(labels, APART, (threshold, threshold)).tolist() == expected
