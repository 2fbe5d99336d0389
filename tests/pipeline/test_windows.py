"""What the network sees of each slice."""

from __future__ import annotations

import numpy as np
import pytest

from raysegment.imaging.preprocess import Box, fit_geometry, prepare_scan
from raysegment.options import Preprocessing
from raysegment.pipeline.views import windows as windows_module
from raysegment.pipeline.views.tiles import cut_views, group_by_shape
from raysegment.pipeline.views.windows import find_windows, move_box, skip_empty, whole_windows


def cone(slices: int = 8, size: int = 256) -> np.ndarray:
    """A disc that shrinks from slice to slice, off the middle."""
    y, x = np.mgrid[:size, :size]
    pixels = np.zeros((slices, size, size, 1), np.uint8)
    for position in range(slices):
        radius = 100 - 11 * position
        pixels[position, ..., 0] = 100 * ((y - 120) ** 2 + (x - 140) ** 2 <= radius**2)
    return pixels


def prepare(pixels: np.ndarray, image_size: int = 256):
    return prepare_scan(pixels, Preprocessing(image_size=image_size))


@pytest.mark.parametrize("image_size", [128, 256])
def test_each_window_holds_its_foreground_and_has_one_of_a_few_shapes(image_size):
    pixels = cone()
    prepared = prepare(pixels, image_size)
    windows = find_windows(pixels, prepared, context_slices=0, grid_factor=16)
    assert list(windows) == list(range(8))
    sides = {side for window in windows.values() for side in (window.rows, window.columns)}
    assert sides <= set(range(image_size // 2, image_size + 1, max(16, image_size // 16)))
    assert len(sides) > 1
    for position, window in windows.items():
        outside = prepared.pixels[position].copy()
        outside[window.window] = 0
        assert not outside.any()


def test_a_window_holds_the_neighbours_that_the_network_sees_with_its_slice():
    pixels = cone()
    prepared = prepare(pixels)
    windows = find_windows(pixels, prepared, context_slices=1, grid_factor=16)
    for position in range(1, 8):
        outside = prepared.pixels[position - 1].copy()
        outside[windows[position].window] = 0
        assert not outside.any()


def test_slices_come_in_fours_of_one_shape():
    pixels = cone()
    prepared = prepare(pixels)
    windows = find_windows(pixels, prepared, context_slices=0, grid_factor=16)
    assert [len(group) for group in group_by_shape(cut_views(windows, prepared.geometry))] == [4, 4]


def test_sides_divide_by_what_the_network_needs():
    pixels = cone()
    windows = find_windows(pixels, prepare(pixels), context_slices=0, grid_factor=64)
    assert all(window.rows % 64 == window.columns % 64 == 0 for window in windows.values())


def test_few_slices_with_much_context_are_all_kept():
    pixels = np.zeros((2, 64, 64, 1), np.uint8)
    pixels[1, 3] = 9
    prepared = prepare(pixels, 64)
    assert list(skip_empty(whole_windows(prepared), prepared, 4)) == [0, 1]


def test_slices_of_one_value_are_skipped_unless_a_neighbour_shows_something():
    pixels = cone(slices=8)
    pixels[:3] = 7
    prepared = prepare(pixels)
    assert list(skip_empty(whole_windows(prepared), prepared, 0)) == [3, 4, 5, 6, 7]
    assert list(skip_empty(whole_windows(prepared), prepared, 1)) == [2, 3, 4, 5, 6, 7]


def test_a_scan_without_foreground_is_seen_whole():
    pixels = np.random.default_rng(0).normal(10, 1, (5, 256, 256, 1)).astype(np.float32)
    windows = find_windows(pixels, prepare(pixels), context_slices=0, grid_factor=16)
    assert set(windows.values()) == {Box(0, 256, 0, 256)}


def test_a_slice_without_foreground_is_seen_where_its_scan_has_any():
    pixels = cone(slices=3)
    pixels[1] = 1
    windows = find_windows(pixels, prepare(pixels), context_slices=0, grid_factor=16)
    assert windows[1] == windows[0]


@pytest.mark.parametrize("start", range(0, 250, 13))
@pytest.mark.parametrize("length", [1, 16, 70, 153, 200])
def test_windows_lie_on_the_coarsest_grid_and_hold_their_box(start, length):
    stop = min(256, start + length)
    first, last = windows_module._fit(start, stop, 256, 32, 128, 16)
    assert 0 <= first <= start < stop <= last <= 256
    assert first % 16 == (last - first) % 32 == 0


def test_a_box_moves_with_the_scan():
    geometry = fit_geometry(512, 256, 128)
    assert move_box(Box(0, 512, 0, 256), geometry) == Box(0, 128, 32, 96)
    assert move_box(Box(5, 9, 3, 7), geometry) == Box(1, 3, 32, 34)
