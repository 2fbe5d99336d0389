"""Threshold and cleaning."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import ndimage

from raysegment.imaging.postprocess import clean_labels, clean_mask, threshold_probability
from raysegment.scan import Labels

MASKS = arrays(
    np.uint8, st.tuples(st.integers(1, 4), st.integers(1, 12), st.integers(1, 12)), elements=st.integers(0, 1)
)


def test_a_voxel_at_the_threshold_belongs_to_the_mask():
    probability = np.array([[[[0.2, 0.4, 0.6]]]], np.float32)
    mask = threshold_probability(probability, Labels(), (0.4,))
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


DISJOINT = Labels(("a", "b"), ((2, 1), (7,)))
NESTED = Labels(("whole", "core"), ((1, 2), (2,)))


def test_labels_that_exclude_each_other_share_a_threshold_and_the_likeliest_has_the_voxel():
    background, first, second = (
        np.array([values], np.float32)
        for values in zip((0.7, 0.2, 0.1), (0.55, 0.25, 0.2), (0.4, 0.3, 0.3), (0.1, 0.2, 0.7), strict=True)
    )
    mask = threshold_probability(np.stack([first, second]), DISJOINT, (0.45, 0.45))
    assert mask.tolist() == [[0, 1, 1, 7]]
    assert (mask != 0).tolist() == (1 - background >= np.float32(0.45)).tolist()
    assert mask.dtype == np.uint8


def test_labels_that_overlap_have_thresholds_of_their_own():
    probability = np.array([[[0.2, 0.5, 0.9]], [[0.1, 0.5, 0.7]]], np.float32)
    mask = threshold_probability(probability, NESTED, (0.5, 0.6))
    assert mask.tolist() == [[[0, 1, 1]], [[0, 0, 1]]]


def test_values_beyond_a_byte_get_a_type_for_them():
    mask = threshold_probability(np.ones((1, 1, 1, 2), np.float32), Labels(("a",), ((300, 400),)), (0.5,))
    assert mask.dtype == np.uint16
    assert mask.tolist() == [[[300, 300]]]
    assert clean_labels(mask, Labels(("a",), ((300,),)), min_component_voxels=2, fill_holes=True).tolist() == [
        [[300, 300]]
    ]


def test_components_are_those_of_one_label():
    mask = np.zeros((1, 5, 8), np.uint8)
    mask[0, 1:3, 1:4] = 1
    mask[0, 1:3, 4] = 7
    mask[0, 4, 7] = 1
    cleaned = clean_labels(mask, DISJOINT, min_component_voxels=3)
    assert (cleaned == 1).sum() == 6
    assert (cleaned == 7).sum() == 0
    largest = clean_labels(mask, DISJOINT, largest_component=True)
    assert ((largest == 1).sum(), (largest == 7).sum()) == (6, 2)


def test_a_hole_is_filled_only_where_no_other_label_is():
    mask = np.ones((1, 7, 7), np.uint8)
    mask[0, 2:5, 2:5] = 0
    mask[0, 3, 3] = 7
    filled = clean_labels(mask, DISJOINT, fill_holes=True)
    expected = np.ones((7, 7), np.uint8)
    expected[3, 3] = 7
    assert np.array_equal(filled[0], expected)
    assert np.array_equal(mask[0, 3, 2:5], [0, 7, 0])


@given(whole=MASKS, smallest=st.integers(0, 12), fill=st.booleans())
@settings(max_examples=50, deadline=None)
def test_labels_that_overlap_are_cleaned_each_on_its_own(whole, smallest, fill):
    core = np.flip(whole, axis=-1)
    cleaned = clean_labels(np.stack([whole, core]), NESTED, min_component_voxels=smallest, fill_holes=fill)
    for found, plane in zip(cleaned, (whole, core), strict=True):
        assert np.array_equal(found, clean_mask(plane, min_component_voxels=smallest, fill_holes=fill))
