"""Probabilities on a scan's own grid, in slabs of any size."""

from __future__ import annotations

import math
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raysegment.imaging.geometry import fit_geometry, restore_grid
from raysegment.imaging.postprocess import threshold_probability
from raysegment.pipeline.slabs import Slabs, threshold_slabs
from raysegment.scan import Labels

LABELS = {
    "one": Labels(),
    "disjoint": Labels(("a", "b"), ((1,), (4,))),
    "nested": Labels(("a", "b"), ((1, 4), (4,))),
}


@given(
    kind=st.sampled_from(sorted(LABELS)),
    slices=st.integers(1, 7),
    shape=st.tuples(st.integers(5, 40), st.integers(5, 40)),
    slab_bytes=st.sampled_from([1, 3000, 10**9]),
    seed=st.integers(0, 99),
)
@settings(max_examples=60, deadline=None)
def test_slabs_of_any_size_give_what_the_whole_gives(kind, slices, shape, slab_bytes, seed):
    labels, random = LABELS[kind], np.random.default_rng(seed)
    probability = random.random((len(labels), slices, 16, 16), np.float32) / len(labels)
    geometry = fit_geometry(*shape, 16)
    reference = random.choice(np.array([0, 1, 4], np.uint8), (slices, *shape))
    thresholds = (0.45,) * len(labels)
    slabs = Slabs(probability, geometry, slab_bytes)
    raw = threshold_slabs(slabs, labels, thresholds, reference)
    whole = np.stack([restore_grid(label, geometry) for label in probability])
    expected = threshold_probability(whole, labels, thresholds)
    np.testing.assert_array_equal(raw.mask, expected)
    assert raw.mask.dtype == expected.dtype
    halves = threshold_probability(whole, labels, (0.5,) * len(labels))
    for position in range(len(labels)):
        plane, drawn = labels.plane_of_mask(halves, position), labels.plane_of(reference, position)
        total = plane.sum() + drawn.sum()
        dice = 2 * (plane & drawn).sum() / total if total else math.nan
        assert raw.dice_at_half[position] == pytest.approx(dice, nan_ok=True)
        inside = labels.plane_of_mask(raw.mask, position)
        mean = whole[position][inside].mean(dtype=np.float64) if inside.any() else math.nan
        assert slabs.mean_inside(position, inside) == pytest.approx(mean, rel=1e-13, nan_ok=True)


def test_without_a_reference_there_is_nothing_to_compare():
    slabs = Slabs(np.ones((1, 2, 8, 8), np.float32), fit_geometry(8, 8, 8))
    raw = threshold_slabs(slabs, Labels(), (0.5,))
    assert math.isnan(raw.dice_at_half[0])
    assert raw.mask.all()


def test_a_large_scan_never_lies_in_memory_as_floats():
    labels = LABELS["nested"]
    probability = np.zeros((2, 60, 32, 32), np.float32)
    probability[:, 20:30, 10:20, 10:20] = 0.9
    geometry = fit_geometry(512, 512, 32)
    tracemalloc.start()
    slabs = Slabs(probability, geometry, max_bytes=8 * 2**20)
    raw = threshold_slabs(slabs, labels, (0.5, 0.5))
    slabs.mean_inside(1, labels.plane_of_mask(raw.mask, 1))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    voxels = 60 * 512 * 512
    assert peak < 2 * voxels + voxels + 40 * 2**20 < 2 * 4 * voxels
