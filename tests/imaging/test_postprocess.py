"""Threshold and cleaning."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import ndimage

from raysegment.imaging.postprocess import clean_mask, threshold_probability

MASKS = arrays(
    np.uint8, st.tuples(st.integers(1, 4), st.integers(1, 12), st.integers(1, 12)), elements=st.integers(0, 1)
)


def test_a_voxel_at_the_threshold_belongs_to_the_mask():
    probability = np.array([[[0.2, 0.4, 0.6]]], np.float32)
    mask = threshold_probability(probability, 0.4)
    assert mask.tolist() == [[[0, 1, 1]]]
    assert mask.dtype == np.uint8


@given(mask=MASKS)
@settings(max_examples=100, deadline=None)
def test_holes_are_filled_as_scipy_does(mask):
    expected = np.stack([ndimage.binary_fill_holes(plane) for plane in mask])
    assert np.array_equal(clean_mask(mask, fill_holes=True), expected)


@given(mask=MASKS, smallest=st.integers(0, 12))
@settings(max_examples=100, deadline=None)
def test_small_components_go_as_with_scipy_labels(mask, smallest):
    numbers, count = ndimage.label(mask, np.ones((3, 3, 3)))
    expected = np.zeros_like(mask)
    for number in range(1, count + 1):
        if np.sum(numbers == number) >= smallest:
            expected[numbers == number] = 1
    assert np.array_equal(clean_mask(mask, min_component_voxels=smallest), expected)


@given(mask=MASKS)
@settings(max_examples=100, deadline=None)
def test_one_largest_component_remains(mask):
    numbers, count = ndimage.label(mask, np.ones((3, 3, 3)))
    cleaned = clean_mask(mask, largest_component=True)
    sizes = [int(np.sum(numbers == number)) for number in range(1, count + 1)]
    assert cleaned.sum() == max(sizes, default=0)
    assert len(np.unique(numbers[cleaned > 0])) == min(1, count)


def test_components_are_connected_over_slices_and_corners():
    mask = np.zeros((3, 6, 6), np.uint8)
    mask[0, 1, 1] = mask[1, 2, 2] = mask[2, 3, 3] = 1
    mask[0, 5, 5] = 1
    cleaned = clean_mask(mask, min_component_voxels=3)
    assert cleaned.sum() == 3
    assert cleaned[0, 5, 5] == 0


def test_the_label_s_value_is_kept_and_the_input_not_changed():
    mask = np.zeros((1, 7, 7), np.uint8)
    mask[0, 1:6, 1:6] = 3
    mask[0, 3, 3] = 0
    before = mask.copy()
    cleaned = clean_mask(mask, min_component_voxels=2, largest_component=True, fill_holes=True)
    assert np.unique(cleaned[0, 1:6, 1:6]).tolist() == [3]
    assert np.array_equal(mask, before)


def test_nothing_to_do_returns_the_mask_itself():
    mask = np.zeros((2, 5, 5), np.uint8)
    assert clean_mask(mask, min_component_voxels=10, largest_component=True, fill_holes=True) is mask
    mask[0, 0, 0] = 1
    assert clean_mask(mask) is mask
