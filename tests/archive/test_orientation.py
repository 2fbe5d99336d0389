from __future__ import annotations

from itertools import permutations, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from volumes_made import make_affine, restack

from raysegment.archive.orientation import find_orientation, find_turn, plane_of, spacing_of

SHAPE = (4, 5, 6)
VOLUME = np.arange(4 * 5 * 6, dtype=np.int16).reshape(SHAPE)
EXPECTED = {
    # slices, rows, columns in RAS: the rows of the affine that each index moves along, and which way.
    "axial": [[0, 0, -1], [0, -1, 0], [1, 0, 0]],
    "coronal": [[0, 0, -1], [-1, 0, 0], [0, -1, 0]],
    "sagittal": [[-1, 0, 0], [0, 0, -1], [0, -1, 0]],
}

angles = st.tuples(*[st.floats(-180, 180)] * 3)
spacings = st.tuples(*[st.floats(0.2, 6)] * 3)
shapes = st.tuples(*[st.integers(1, 6)] * 3)
axes = st.sampled_from(["auto", "axial", "coronal", "sagittal"])


@pytest.mark.parametrize("plane", EXPECTED)
def test_slices_rows_and_columns_run_as_a_radiologist_sees_them(plane):
    affine = make_affine()
    found = find_orientation(affine, SHAPE, plane)
    np.testing.assert_array_equal(found.affine(affine, SHAPE)[:3, :3], EXPECTED[plane])


@settings(deadline=None)
@given(spacing=spacings, turned=angles, shape=shapes, slice_axis=axes)
def test_turning_and_undoing_gives_the_same_volume_and_no_voxel_moves(spacing, turned, shape, slice_axis):
    affine = make_affine(spacing, turned)
    volume = np.arange(np.prod(shape)).reshape(shape)
    found = find_orientation(affine, shape, slice_axis)
    arranged = found.apply(volume)
    assert arranged.shape == found.shape(shape)
    np.testing.assert_array_equal(found.undo(arranged), volume)
    arranged_affine = found.affine(affine, shape)
    for index in np.ndindex(*arranged.shape):
        stored = np.array(np.unravel_index(arranged[index], shape))
        np.testing.assert_allclose(arranged_affine @ [*index, 1], affine @ [*stored, 1], atol=1e-9)
    assert np.allclose(sorted(spacing_of(arranged_affine)), sorted(spacing))


@settings(deadline=None)
@given(spacing=spacings, turned=angles, slice_axis=axes)
def test_channels_stay_where_they_are(spacing, turned, slice_axis):
    found = find_orientation(make_affine(spacing, turned), SHAPE, slice_axis)
    channels = np.stack([VOLUME, VOLUME + 1], axis=-1)
    np.testing.assert_array_equal(found.apply(channels)[..., 1], found.apply(VOLUME) + 1)
    np.testing.assert_array_equal(found.undo(found.apply(channels)), channels)


@settings(deadline=None)
@given(turned=st.tuples(*[st.floats(-30, 30)] * 3), slice_axis=axes)
def test_every_way_to_store_a_volume_gives_the_same_slices(turned, slice_axis):
    affine = make_affine((0.9, 1.1, 3), turned)
    found = find_orientation(affine, SHAPE, slice_axis)
    for order, flips in product(permutations(range(3)), product([False, True], repeat=3)):
        volume, stored_affine = restack(VOLUME, affine, order, flips)
        other = find_orientation(stored_affine, volume.shape, slice_axis)
        assert other.slice_axis == found.slice_axis
        np.testing.assert_array_equal(other.apply(volume), found.apply(VOLUME))
        np.testing.assert_allclose(other.affine(stored_affine, volume.shape), found.affine(affine, SHAPE), atol=1e-9)
        turn = find_turn(stored_affine, found.affine(affine, SHAPE))
        np.testing.assert_array_equal(turn.apply(volume), found.apply(VOLUME))


@pytest.mark.parametrize(
    ("spacing", "shape", "expected"),
    [
        ((1, 1, 1), SHAPE, "axial"),
        ((1, 1, 1.05), SHAPE, "axial"),
        ((3, 1, 1), SHAPE, "sagittal"),
        ((1, 3, 1), SHAPE, "coronal"),
        ((1.05, 1, 1), SHAPE, "axial"),
        ((3, 3, 1), SHAPE, "axial"),
        ((1, 1, 1), (1, 5, 6), "sagittal"),
        ((1, 1, 3), (4, 1, 6), "coronal"),
        ((1, 1, 1), (1, 1, 6), "axial"),
    ],
)
def test_slices_lie_along_the_thickest_spacing_else_axial(spacing, shape, expected):
    affine = make_affine(spacing)
    found = find_orientation(affine, shape, "auto")
    assert found.slice_axis == expected
    assert plane_of(found.affine(affine, shape)) == expected
