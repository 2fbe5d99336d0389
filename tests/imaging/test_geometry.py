"""From the scan's grid to the network's and back."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raysegment.errors import GridMismatchError
from raysegment.imaging.preprocess import (
    Box,
    fit_geometry,
    resize_reference,
    resize_slices,
    restore_grid,
)

SIDES = st.integers(8, 90)
DARK = np.zeros(3, np.float32)
SIZES = st.sampled_from([16, 32, 64])


@st.composite
def boxes(draw: st.DrawFn) -> tuple[Box, int, int]:
    rows, columns = draw(SIDES), draw(SIDES)
    top, left = draw(st.integers(0, rows - 4)), draw(st.integers(0, columns - 4))
    box = Box(top, draw(st.integers(top + 1, rows)), left, draw(st.integers(left + 1, columns)))
    return box, rows, columns


@given(rows=SIDES, columns=SIDES, size=SIZES, channels=st.integers(1, 6))
@settings(max_examples=40, deadline=None)
def test_a_constant_scan_stays_constant_inside_and_background_around(rows, columns, size, channels):
    pixels = np.full((2, rows, columns, channels), 7, np.uint8)
    geometry = fit_geometry(rows, columns, size)
    resized = resize_slices(pixels, geometry, np.full(channels, 3, np.float32))
    assert resized.shape == (2, size, size, channels)
    assert max(geometry.scaled_rows, geometry.scaled_columns) == size
    assert np.count_nonzero(resized == 7) == 2 * geometry.scaled_rows * geometry.scaled_columns * channels
    assert set(np.unique(resized)) <= {3, 7}


@given(found=boxes(), size=SIZES)
@settings(max_examples=40, deadline=None)
def test_probabilities_return_to_the_box_and_are_zero_outside(found, size):
    box, rows, columns = found
    geometry = fit_geometry(rows, columns, size, box)
    restored = restore_grid(np.full((3, size, size), 0.75, np.float32), geometry)
    expected = np.zeros((3, rows, columns), np.float32)
    expected[:, box.row_start : box.row_stop, box.column_start : box.column_stop] = 0.75
    assert restored.dtype == np.float32
    np.testing.assert_allclose(restored, expected, atol=1e-6)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16, np.int32, np.float32, np.float64])
def test_slices_keep_their_type(dtype):
    pixels = np.arange(2 * 20 * 30 * 3).reshape(2, 20, 30, 3).astype(dtype)
    assert resize_slices(pixels, fit_geometry(20, 30, 16), DARK).dtype == dtype


def test_equal_grids_return_the_same_array():
    geometry = fit_geometry(32, 32, 32)
    pixels = np.zeros((2, 32, 32, 3), np.uint16)
    reference = np.zeros((2, 32, 32), np.bool_)
    probability = np.zeros((2, 32, 32), np.float32)
    assert geometry.is_identity
    assert resize_slices(pixels, geometry, DARK) is pixels
    assert resize_reference(reference, geometry) is reference
    assert restore_grid(probability, geometry) is probability


def test_halving_averages_areas_in_every_channel():
    pixels = np.random.default_rng(0).random((1, 32, 32, 6)).astype(np.float32)
    by_hand = pixels.reshape(1, 16, 2, 16, 2, 6).mean(axis=(2, 4))
    np.testing.assert_allclose(resize_slices(pixels, fit_geometry(32, 32, 16), DARK), by_hand, atol=1e-6)


def test_a_wide_slice_is_centred():
    pixels = np.full((1, 8, 16, 1), 5, np.uint8)
    resized = resize_slices(pixels, fit_geometry(8, 16, 16), DARK[:1])
    assert np.array_equal(np.flatnonzero(resized[0, :, 0, 0]), np.arange(4, 12))


@given(found=boxes(), size=SIZES)
@settings(max_examples=40, deadline=None)
def test_references_stay_binary_and_lie_where_the_pixels_lie(found, size):
    box, rows, columns = found
    geometry = fit_geometry(rows, columns, size, box)
    reference = np.ones((1, rows, columns), np.bool_)
    resized = resize_reference(reference, geometry)
    pixels = resize_slices(np.ones((1, rows, columns, 1), np.float32), geometry, DARK[:1])
    assert resized.dtype == np.bool_
    assert np.array_equal(resized, pixels[..., 0] > 0.5)


def test_a_ramp_survives_the_way_there_and_back():
    ramp = np.broadcast_to(np.linspace(0, 1, 60, dtype=np.float32), (1, 40, 60)).copy()
    geometry = fit_geometry(40, 60, 128)
    restored = restore_grid(resize_slices(ramp[..., None], geometry, DARK[:1])[..., 0], geometry)
    np.testing.assert_allclose(restored, ramp, atol=0.01)


def test_slices_of_another_grid_are_refused():
    with pytest.raises(GridMismatchError, match="20x30"):
        resize_slices(np.zeros((1, 20, 30, 1), np.uint8), fit_geometry(30, 20, 16), DARK[:1])
