"""The choice of the threshold and of the smallest component."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raysegment.imaging.postprocess import clean_labels, threshold_probability
from raysegment.options import Preprocessing
from raysegment.pipeline.samples import KeptScan, keep_scan
from raysegment.pipeline.thresholds import (
    THRESHOLDS,
    ComponentScores,
    choose_component_size,
    count_levels,
    find_levels,
    score_components,
    score_thresholds,
)
from raysegment.scan import Labels, Scan

ONE, APART = Labels(), Labels(("a", "b"), ((1,), (2,)))
NESTED = Labels(("whole", "core"), ((1, 2), (2,)))


def kept_of(reference: np.ndarray) -> KeptScan:
    scan = Scan(np.zeros((*reference.shape, 1), np.uint8))
    choices = Preprocessing(image_size=reference.shape[1])
    return keep_scan("a", scan, reference, choices, num_channels=1, for_validation=True)


@given(st.integers(0, 2**32 - 1))
def test_levels_count_what_each_threshold_counts(seed):
    random = np.random.default_rng(seed)
    strengths = np.round(random.random((2, 8, 8)), 2).astype(np.float32)
    reference = random.random((2, 8, 8)) > 0.6
    counts = count_levels(find_levels(strengths), reference)
    masks = [strengths >= np.float32(threshold) for threshold in THRESHOLDS]
    assert counts.tolist() == [[(mask & reference).sum(), mask.sum(), reference.sum()] for mask in masks]


@pytest.mark.parametrize("labels", [ONE, APART, NESTED], ids=["one", "apart", "nested"])
def test_components_are_those_that_cleaning_removes(labels):
    random = np.random.default_rng(0)
    scans, found = [], []
    for _ in range(3):
        blocks = random.dirichlet(np.ones(len(labels) + 1), (4, 8, 8)).repeat(2, axis=1).repeat(2, axis=2)
        found.append(blocks[..., 1:].astype(np.float32))
        values = random.integers(0, 1 + len(labels), (4, 8, 8), dtype=np.uint8)
        scans.append(kept_of(values.repeat(2, axis=1).repeat(2, axis=2)))
    # Some slices at a time, of no equal number.
    batches = [[(slice(0, 3), part[:3]), (slice(3, 4), part[3:])] for part in found]
    scores = score_thresholds(scans, batches, labels)
    thresholds, sizes = (0.95 if len(labels) == 1 else 0.7,) * len(labels), (0, 5, 10, 20)
    components = score_components(scores, scans, thresholds, labels, sizes)
    assert components.dice_at(0) == pytest.approx(scores.dice_at(thresholds))
    assert components.precision_at(0) == pytest.approx(scores.precision_at(thresholds))
    for size in sizes:
        for position in range(len(labels)):
            dice = []
            for kept, part in zip(scans, found, strict=True):
                mask = threshold_probability(np.moveaxis(part, -1, 0), labels, thresholds)
                mask = clean_labels(mask, labels, min_component_voxels=size)
                plane, drawn = labels.plane_of_mask(mask, position), labels.plane_of(kept.reference, position)
                dice.append(2 * (plane & drawn).sum() / (plane.sum() + drawn.sum()))
            assert components.dice_at(size)[position] == pytest.approx(np.mean(dice), abs=1e-12)
    assert len({tuple(components.dice_at(size)) for size in sizes}) > 1


def scores_of(*dice: float) -> ComponentScores:
    sizes = (0, 10, 20, 50)
    return ComponentScores(sizes, np.array([dice]), np.zeros((1, 4), np.int64), np.zeros((1, 4), np.int64))


@pytest.mark.parametrize(
    ("dice", "size"),
    [
        ((0.8, 0.8005, 0.8009, 0.5), 0),
        ((0.8, 0.802, 0.8025, 0.5), 10),
        ((0.8, 0.8005, 0.803, 0.8031), 20),
        ((np.nan,) * 4, 0),
    ],
)
def test_small_components_stay_unless_removing_them_gains(dice, size):
    assert choose_component_size(scores_of(*dice)) == size


def test_a_scan_whose_only_voxels_are_removed_is_as_evaluation_counts_it():
    speck, lesion = np.zeros((2, 16, 16), np.uint8), np.zeros((2, 16, 16), np.uint8)
    lesion[:, 2:10, 2:10] = 1
    probability = np.zeros((2, 16, 16, 1), np.float32)
    probability[0, 0, 0] = 0.9
    both = probability.copy()
    both[lesion == 1] = 0.9
    scans = [kept_of(speck), kept_of(lesion)]
    scores = score_thresholds(scans, [[(slice(0, 2), probability)], [(slice(0, 2), both)]], ONE)
    components = score_components(scores, scans, (0.5,), ONE)
    # The empty reference counts as 0 beside a speck, and not at all beside nothing.
    assert components.dice_at(0) == pytest.approx([2 * 128 / 257 / 2])
    assert components.dice_at(10) == [1.0]
    assert components.dice_at(200) == [0.0]
    assert choose_component_size(components) == 10
