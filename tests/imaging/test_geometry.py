"""From the scan's grid to the network's and back."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raysegment.errors import GridMismatchError
from raysegment.imaging.geometry import (
    Box,
    Geometry,
    fit_geometry,
    fit_physical_geometry,
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


PIXEL_SIZES = st.floats(0.2, 4.0)


@st.composite
def physical(draw: st.DrawFn) -> tuple[Geometry, tuple[float, float], float]:
    box, rows, columns = draw(boxes())
    sizes, pixel_mm = (draw(PIXEL_SIZES), draw(PIXEL_SIZES)), draw(PIXEL_SIZES)
    geometry = fit_physical_geometry(rows, columns, draw(SIZES), box, pixel_size_mm=sizes, pixel_mm=pixel_mm)
    return geometry, sizes, pixel_mm


@given(found=physical())
@settings(max_examples=100, deadline=None)
def test_slices_have_their_physical_size_to_half_a_pixel(found):
    geometry, (row_mm, column_mm), pixel_mm = found
    assert abs(geometry.scaled_rows - max(1, geometry.box.rows * row_mm / pixel_mm)) <= 0.5 + 1e-9
    assert abs(geometry.scaled_columns - max(1, geometry.box.columns * column_mm / pixel_mm)) <= 0.5 + 1e-9
    target = geometry.target
    assert 0 <= target.row_start <= target.row_stop <= geometry.grid_rows
    assert 0 <= target.column_start <= target.column_stop <= geometry.grid_columns
    assert geometry.is_tiled == (max(geometry.grid_rows, geometry.grid_columns) > geometry.image_size)


@given(found=physical())
@settings(max_examples=60, deadline=None)
def test_physical_sizes_leave_constants_alone_there_and_back(found):
    geometry, _, _ = found
    pixels = np.full((2, geometry.rows, geometry.columns, 2), 7, np.uint8)
    resized = resize_slices(pixels, geometry, np.full(2, 3, np.float32))
    assert resized.shape == (2, geometry.grid_rows, geometry.grid_columns, 2)
    assert (resized[:, *geometry.target.window] == 7).all()
    assert np.count_nonzero(resized == 7) == 4 * geometry.scaled_rows * geometry.scaled_columns
    restored = restore_grid(np.full(resized.shape[:3], 0.75, np.float32), geometry)
    expected = np.zeros(pixels.shape[:3], np.float32)
    expected[:, *geometry.box.window] = 0.75
    np.testing.assert_allclose(restored, expected, atol=1e-6)


@given(
    rows=st.integers(30, 90),
    columns=st.integers(30, 90),
    sizes=st.tuples(st.floats(0.5, 2), st.floats(0.5, 2)),
    seed=st.integers(0, 5),
)
@settings(max_examples=60, deadline=None)
def test_a_mask_comes_back_within_a_voxel_and_in_its_shape(rows, columns, sizes, seed):
    geometry = fit_physical_geometry(rows, columns, 32, pixel_size_mm=sizes, pixel_mm=0.5)
    random = np.random.default_rng(seed)
    mask = np.zeros((1, rows, columns), np.bool_)
    top, left = random.integers(0, (rows - 10, columns - 10))
    mask[0, top : top + 9, left : left + 7] = True
    moved = resize_reference(mask, geometry)
    assert moved.shape == (1, geometry.grid_rows, geometry.grid_columns)
    back = restore_grid(moved.astype(np.float32), geometry) >= 0.5
    assert back.shape == mask.shape
    inner, outer = np.zeros_like(mask), np.zeros_like(mask)
    inner[0, top + 1 : top + 8, left + 1 : left + 6] = True
    outer[0, max(0, top - 1) : top + 10, max(0, left - 1) : left + 8] = True
    assert not (inner & ~back).any()
    assert not (back & ~outer).any()


@pytest.mark.parametrize("steps", [(10, 10), (5, 5), (20, 20), (5, 20), (20, 4)])
def test_ten_millimetres_are_as_many_pixels_in_every_scan(steps):
    """A disc of 10 mm, drawn on pixels of 0.1 mm, scanned with pixels of so many of them."""
    y, x = np.mgrid[:1000, :1000]
    drawn = ((y + 0.5 - 500) ** 2 + (x + 0.5 - 450) ** 2 <= 50**2).astype(np.float32)
    scanned = drawn.reshape(1000 // steps[0], steps[0], 1000 // steps[1], steps[1]).mean(axis=(1, 3))
    sizes = (steps[0] / 10, steps[1] / 10)
    geometry = fit_physical_geometry(*scanned.shape, 64, pixel_size_mm=sizes, pixel_mm=0.8)
    seen = resize_slices(scanned[None, :, :, None], geometry, DARK[:1])[0, ..., 0]
    assert (geometry.grid_rows, geometry.grid_columns) == (125, 125)
    assert seen.sum() == pytest.approx(np.pi * 25 / 0.8**2, rel=0.01)
    inside = np.argwhere(seen >= 0.5)
    np.testing.assert_allclose(np.ptp(inside, axis=0) + 1, 10 / 0.8, atol=1)
    np.testing.assert_allclose(inside.mean(axis=0) + 0.5, (50 / 0.8, 45 / 0.8), atol=0.5)


def test_a_side_that_shrinks_beside_one_that_grows_is_averaged():
    pixels = np.random.default_rng(0).random((1, 32, 16, 1)).astype(np.float32)
    geometry = fit_physical_geometry(32, 16, 16, pixel_size_mm=(0.5, 2.0), pixel_mm=1.0)
    assert (geometry.scaled_rows, geometry.scaled_columns) == (16, 32)
    averaged = pixels.reshape(1, 16, 2, 16, 1).mean(axis=2)
    resized = resize_slices(pixels, geometry, DARK[:1])
    np.testing.assert_allclose(resized.mean(axis=2), averaged.mean(axis=2), atol=1e-6)
    np.testing.assert_allclose(resized[:, :, 0], averaged[:, :, 0], atol=1e-6)


def test_pixels_that_have_the_size_already_stay_the_same_array():
    geometry = fit_physical_geometry(40, 50, 32, pixel_size_mm=(0.7, 0.7), pixel_mm=0.7)
    pixels = np.zeros((2, 40, 50, 1), np.uint16)
    assert resize_slices(pixels, geometry, DARK[:1]) is pixels
    assert geometry.is_tiled
