"""Slices as the network sees them."""

from __future__ import annotations

import numpy as np
import pytest

from raysegment.imaging.intensity import measure_intensity, normalize
from raysegment.pipeline.views.slices import view_slice, view_slices


def test_context_gives_each_slice_its_neighbours_in_order():
    pixels = np.arange(4).reshape(4, 1, 1, 1).repeat(2, axis=3) * 10 + np.array([0, 1])
    stacked = view_slices(pixels, range(4), 1)[:, 0, 0]
    assert stacked.tolist() == [
        [0, 1, 0, 1, 10, 11],
        [0, 1, 10, 11, 20, 21],
        [10, 11, 20, 21, 30, 31],
        [20, 21, 30, 31, 30, 31],
    ]
    assert np.array_equal(view_slices(pixels, range(4), 0), pixels)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_context_slices_are_normalized_like_single_ones(dtype):
    pixels = np.random.default_rng(3).integers(0, 256, (5, 12, 10, 3)).astype(dtype)
    intensity = measure_intensity(pixels, "zscore")
    before = normalize(view_slices(pixels, range(5), 2), intensity)
    after = view_slices(normalize(pixels, intensity), range(5), 2)
    assert np.array_equal(before, after)


def test_a_window_is_seen_of_each_neighbour_alike():
    pixels = np.random.default_rng(4).integers(0, 256, (3, 8, 8, 2), np.uint8)
    seen = view_slice(pixels, 1, 1, (slice(2, 6), slice(0, 4)))
    assert np.array_equal(seen, view_slice(pixels, 1, 1)[2:6, :4])
