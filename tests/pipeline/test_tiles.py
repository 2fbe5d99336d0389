"""Slices larger than what the network sees at once."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raysegment.imaging.geometry import Box, Geometry, fit_geometry, fit_physical_geometry
from raysegment.pipeline.views.tiles import (
    OVERLAP_SHARE,
    View,
    add_view,
    count_slices_at_once,
    cut_views,
    group_by_shape,
    list_tiles,
    predict_slices,
    tile_starts,
    tile_weights,
)
from raysegment.pipeline.views.windows import find_windows, move_box, whole_windows

SIDES = st.sampled_from([16, 32, 64, 128])


def tiled(rows: int, columns: int, side: int) -> Geometry:
    return fit_physical_geometry(rows, columns, side, pixel_size_mm=(1.0, 1.0), pixel_mm=1.0)


@given(side=SIDES, further=st.integers(0, 500))
@settings(max_examples=200, deadline=None)
def test_tiles_reach_from_end_to_end_and_overlap_by_a_quarter(side, further):
    starts = tile_starts(side + further, side)
    assert (starts[0], starts[-1]) == (0, further)
    assert all(0 < after - before <= side * (1 - OVERLAP_SHARE) for before, after in pairwise(starts))


@given(side=SIDES, further=st.integers(0, 500))
@settings(max_examples=200, deadline=None)
def test_weights_of_tiles_add_up_to_exactly_one(side, further):
    sums = np.zeros(side + further, np.float32)
    for weights, start in zip(tile_weights(side + further, side), tile_starts(side + further, side), strict=True):
        assert (weights >= 0).all()
        sums[start : start + side] += weights
    assert (sums == 1).all()


@given(rows=st.integers(5, 150), columns=st.integers(5, 150), side=st.sampled_from([16, 32]))
@settings(max_examples=60, deadline=None)
def test_a_network_that_says_one_everywhere_gives_exactly_one_everywhere(rows, columns, side):
    geometry = tiled(rows, columns, side)
    pixels = np.zeros((2, geometry.grid_rows, geometry.grid_columns, 1), np.float32)
    found = predict_slices(lambda batch: np.ones(batch.shape[:3], np.float32), pixels, geometry)
    assert found.shape == pixels.shape[:3]
    assert (found == 1).all()


@given(rows=st.integers(5, 150), columns=st.integers(5, 150), seed=st.integers(0, 9))
@settings(max_examples=60, deadline=None)
def test_a_network_that_returns_its_input_gives_the_picture_across_the_tiles_borders(rows, columns, seed):
    geometry = tiled(rows, columns, 32)
    shape = (3, geometry.grid_rows, geometry.grid_columns, 2)
    pixels = np.random.default_rng(seed).random(shape).astype(np.float32)
    np.testing.assert_allclose(predict_slices(lambda batch: batch, pixels, geometry), pixels, atol=1e-6)


def test_the_network_sees_nothing_but_tiles_of_the_trained_side():
    shapes = []

    def predict(batch: np.ndarray) -> np.ndarray:
        shapes.append(batch.shape)
        return batch[..., 0]

    predict_slices(predict, np.zeros((2, 100, 32, 3), np.float32), tiled(100, 7, 32))
    assert shapes == [(2 * 4, 32, 32, 3)]
    assert count_slices_at_once(16, tiled(100, 7, 32)) == 4
    assert count_slices_at_once(2, tiled(100, 7, 32)) == 1


def test_slices_that_the_network_sees_at_once_are_seen_as_they_are():
    geometry = fit_geometry(50, 40, 32)
    windows = {0: Box(0, 32, 0, 16), 2: Box(16, 32, 0, 32)}
    assert cut_views(windows, geometry) == [View(0, windows[0]), View(2, windows[2])]
    pixels = np.random.default_rng(0).random((2, 32, 32, 1)).astype(np.float32)
    assert predict_slices(lambda batch: batch, pixels, geometry) is pixels
    assert list_tiles(geometry) == [Box(0, 32, 0, 32)]


def test_only_tiles_that_meet_the_foreground_are_seen():
    pixels = np.zeros((6, 200, 200, 1), np.uint8)
    pixels[2:5, 20:60, 100:180] = 100
    geometry = tiled(200, 200, 64)
    prepared = PreparedLike(pixels, geometry)
    windows = find_windows(pixels, prepared, context_slices=0, grid_factor=16)
    views = cut_views(windows, geometry)
    box = windows[3]
    assert len(views) < 6 * len(list_tiles(geometry))
    seen = np.zeros((200, 200), np.float32)
    for view in views:
        if view.position == 3:
            add_view(seen, np.ones((64, 64), np.float32), view.window, geometry)
    assert (seen[box.window] == 1).all()
    assert seen[150:].max() == 0
    everything = cut_views(whole_windows(prepared), geometry)
    assert len(everything) == 6 * len(list_tiles(geometry))


class PreparedLike:
    """A scan on a network's grid that is its own."""

    def __init__(self, pixels: np.ndarray, geometry: Geometry) -> None:
        self.pixels, self.geometry = pixels, geometry


def test_a_box_moves_with_a_tiled_scan():
    geometry = fit_physical_geometry(100, 20, 64, pixel_size_mm=(2.0, 1.0), pixel_mm=1.0)
    assert (geometry.grid_rows, geometry.grid_columns) == (200, 64)
    assert move_box(Box(10, 100, 0, 20), geometry) == Box(20, 200, 22, 42)


def test_views_are_grouped_by_shape_whatever_their_place():
    views = [View(0, Box(0, 64, 0, 64)), View(2, Box(0, 128, 0, 64)), View(3, Box(8, 72, 8, 72))]
    assert group_by_shape(views) == [[views[1]], [views[0], views[2]]]


@pytest.mark.parametrize("labels", [1, 3])
def test_probabilities_may_have_a_label_axis(labels):
    geometry = tiled(100, 90, 32)
    pixels = np.random.default_rng(0).random((1, 100, 90, 1)).astype(np.float32)
    found = predict_slices(lambda batch: np.repeat(batch, labels, axis=3), pixels, geometry)
    np.testing.assert_allclose(found, np.repeat(pixels, labels, axis=3), atol=1e-6)
