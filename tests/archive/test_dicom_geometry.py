"""Slices in their order along the normal, and their grid in the world; what cannot be one grid is refused."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from volumes_made import make_affine

from raysegment.archive.dicom.geometry import order_slices
from raysegment.errors import AffineError, DuplicateSliceError, MissingSliceError, SliceMismatchError

AXIAL = np.array([1.0, 0, 0, 0, 1, 0])
TO_LPS = np.array([-1, -1, 1])


def at(*heights, sideways=0.0):
    """Positions of axial slices at some heights, each shifted to the back in proportion."""
    return np.array([[-50.0, -60 + sideways * height, height] for height in heights])


def order(positions, orientations=AXIAL, spacing=(2.0, 1.0), thickness=3.0):
    return order_slices(positions, orientations, spacing, thickness, "series")


def test_slices_are_sorted_upwards_and_lie_in_the_world_by_hand():
    found = order(at(3, 0, 6))
    assert found.order == (1, 0, 2)
    assert found.spacing_mm == (3, 2, 1)
    assert found.affine.tolist() == [[0, 0, -1, 50], [0, -2, 0, 60], [3, 0, 0, 0], [0, 0, 0, 1]]
    assert found.note is None


@given(
    angles=st.tuples(*[st.integers(-180, 180)] * 3),
    spacing=st.tuples(*[st.floats(0.3, 7)] * 3),
    seed=st.integers(0, 2**31),
    reverse=st.booleans(),
)
def test_any_grid_comes_back_from_shuffled_positions(angles, spacing, seed, reverse):
    affine = make_affine(spacing, angles)
    slices, rows, columns = (affine[:3, axis] for axis in range(3))
    if np.cross(columns * TO_LPS, rows * TO_LPS) @ (slices * TO_LPS) < 0:
        affine[:3, 0] *= -1
    if reverse:
        affine[:3, :2] *= -1
    shuffled = np.random.default_rng(seed).permutation(6)
    positions = np.array([(affine @ [index, 0, 0, 1])[:3] * TO_LPS for index in shuffled])
    directions = np.concatenate([affine[:3, 2] / spacing[2] * TO_LPS, affine[:3, 1] / spacing[1] * TO_LPS])
    found = order(positions, directions, spacing[1:], None)
    assert [shuffled[index] for index in found.order] == list(range(6))
    assert np.allclose(found.affine, affine, atol=1e-6)
    assert np.allclose(found.spacing_mm, spacing)


def test_a_missing_slice_is_told_with_the_gap():
    with pytest.raises(MissingSliceError, match=r"2 of its slices are missing: 4 slices lie 3 mm apart, .* 9 mm"):
        order(at(0, 3, 6, 15))


def test_phases_at_each_position_are_told_from_copies_of_one():
    with pytest.raises(DuplicateSliceError, match="2 slices at each of 3 positions"):
        order(at(0, 0, 3, 3, 6, 6))
    with pytest.raises(DuplicateSliceError, match="up to 2 slices at one position, at 1 of 3 positions"):
        order(at(0, 3, 3, 6))
    with pytest.raises(DuplicateSliceError, match=r"3 slices at each of 1 positions \(copies\)"):
        order(at(3, 3, 3))


def test_slices_that_look_elsewhere_or_lie_unevenly_are_refused():
    with pytest.raises(SliceMismatchError, match="1 of 3 slices look in another direction"):
        order(at(0, 3, 6), np.array([AXIAL, AXIAL, [1, 0, 0, 0, 0, -1]]))
    with pytest.raises(SliceMismatchError, match="unevenly"):
        order(at(0, 3, 7, 10))
    assert "0.1 mm off" in order(at(0, 3, 6.1, 9)).note


def test_a_tilted_gantry_shears_the_grid_and_is_told():
    found = order(at(0, 3, 6, sideways=np.tan(np.radians(20))))
    assert "tilted by 20 degrees" in found.note
    assert found.spacing_mm == pytest.approx((3, 2, 1))
    assert found.affine[:3, 0] == pytest.approx([0, -3 * np.tan(np.radians(20)), 3])


def test_a_single_slice_is_as_thick_as_it_says():
    assert order(at(5)).affine[2, 0] == 3
    assert order(at(5), thickness=None).affine is None


def test_without_positions_slices_stay_as_they_come():
    found = order_slices(None, None, (2.0, 1.0), 3.0, "cine", 7)
    assert (found.order, found.affine, found.spacing_mm) == (tuple(range(7)), None, None)
    assert order_slices(None, None, (2.0, 1.0), 3.0, "picture", 1).spacing_mm == (3, 2, 1)


def test_directions_that_are_none_are_refused():
    with pytest.raises(AffineError, match="right angles"):
        order(at(0, 3), np.array([1.0, 0, 0, 1, 0, 0]))
