"""Lesions found and missed, against cases worked out by hand and SciPy."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import ndimage

from raysegment.errors import GridMismatchError
from raysegment.imaging.lesions import count_components, count_lesions

PAIRS = arrays(np.uint8, st.tuples(st.integers(1, 4), st.integers(1, 9), st.integers(1, 9)), elements=st.integers(0, 3))


def test_a_case_worked_out_by_hand():
    """Three lesions, the second of two voxels that meet in a corner; the mask touches it, and makes up two."""
    mask, reference = np.zeros((2, 4, 9), np.uint8), np.zeros((2, 4, 9), np.bool_)
    reference[0, 0, 0] = reference[0, 1, 3] = reference[1, 2, 4] = reference[1, 0, 8] = True
    mask[1, 2, 4] = mask[1, 3, 0] = mask[0, 3, 8] = 1
    assert count_lesions(mask, reference) == (3, 1, 2, 2, 3)


def test_one_component_can_find_many_lesions():
    reference = np.zeros((1, 1, 9), np.bool_)
    reference[..., ::3] = True
    assert count_lesions(np.ones((1, 1, 9), np.uint8), reference) == (3, 3, 0, 0, 1)


@pytest.mark.parametrize(
    ("mask", "reference", "expected"), [(0, 0, (0, 0, 0, 0, 0)), (1, 0, (0, 0, 0, 1, 1)), (0, 1, (1, 0, 1, 0, 0))]
)
def test_empty_masks_and_references_are_counted(mask, reference, expected):
    assert count_lesions(np.full((2, 3, 3), mask, np.uint8), np.full((2, 3, 3), reference, np.bool_)) == expected


@given(pair=PAIRS)
@settings(max_examples=100, deadline=None)
def test_counts_agree_with_scipy(pair):
    mask, reference = pair & 1, (pair & 2) > 0
    lesions, in_reference = ndimage.label(reference, np.ones((3, 3, 3)))
    regions, in_mask = ndimage.label(mask, np.ones((3, 3, 3)))
    found = len(set(lesions[mask > 0].tolist()) - {0})
    touching = len(set(regions[reference].tolist()) - {0})
    assert count_lesions(mask, reference) == (in_reference, found, in_reference - found, in_mask - touching, in_mask)


def test_a_reference_on_another_grid_is_refused():
    with pytest.raises(GridMismatchError, match=r"\(1, 4, 4\).*\(1, 5, 5\)"):
        count_lesions(np.zeros((1, 4, 4), np.uint8), np.zeros((1, 5, 5), np.bool_))


@pytest.mark.parametrize("density", [0.02, 0.1, 0.3])
def test_counts_of_larger_volumes_agree_with_scipy(density):
    mask, reference = np.random.default_rng(3).random((2, 12, 40, 50)) < density
    lesions, in_reference = ndimage.label(reference, np.ones((3, 3, 3)))
    found = len(set(lesions[mask].tolist()) - {0})
    counts = count_lesions(mask, reference)
    assert (counts.lesions_reference, counts.lesions_found) == (in_reference, found)
    assert count_components(mask.astype(np.uint8) * 7) == ndimage.label(mask, np.ones((3, 3, 3)))[1]
