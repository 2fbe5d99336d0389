"""How sure a network is of a mask, told by its probabilities alone."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
from scipy.special import entr

from raysegment.imaging.postprocess import occupied_window
from raysegment.scan import Labels

NEAR = 0.1
"""Probabilities that differ from the threshold by no more than this are near it."""

Plane = npt.NDArray[np.bool_]
"""(slices, rows, columns), where one label is."""


def find_border(mask: Plane) -> Plane:
    """The voxels on both sides of a mask's border: each has a neighbour, within its slice, on the other side.

    Of four neighbours; what lies beyond a slice's edge is none, so a mask that fills whole slices has no border.

    Args:
        mask: (slices, rows, columns).

    Returns:
        Same shape.
    """
    border = np.zeros(mask.shape, np.bool_)
    rows, columns = mask[:, 1:] != mask[:, :-1], mask[:, :, 1:] != mask[:, :, :-1]
    border[:, 1:] |= rows
    border[:, :-1] |= rows
    border[:, :, 1:] |= columns
    border[:, :, :-1] |= columns
    return border


def compute_entropy(probability: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """Entropy in bits of what is left undecided (Shannon 1948, doi:10.1002/j.1538-7305.1948.tb01338.x).

    Args:
        probability: (labels, voxels) of labels that exclude each other, the background left out; one label for a yes
            or no.

    Returns:
        (voxels,), from 0 to log2(labels + 1): of one label 1 where the probability is 0.5.
    """
    inside = np.clip(probability.astype(np.float64), 0, 1)
    background = np.clip(1 - inside.sum(axis=0), 0, 1)
    return np.asarray((entr(inside).sum(axis=0) + entr(background)) / math.log(2))


def sum_border_entropy(
    probability: npt.NDArray[np.float32], mask: Plane, position: int, labels: Labels
) -> tuple[npt.NDArray[np.float64], int]:
    """Entropy at the border of one label, of some slices.

    Where labels exclude each other it is that of all of them and the background: a border between two labels is as
    undecided as one with the background.

    Args:
        probability: (labels, slices, rows, columns), on the mask's grid.
        mask: Of the label, (slices, rows, columns).
        position: Of the label.
        labels: What the probabilities are of.

    Returns:
        In bits the sum of each slice that may have a border, and the number of voxels in all of them.
    """
    window = occupied_window(mask)
    if window is None:
        return np.zeros(0), 0
    # One more row and column on each side, where the border's outer voxels are.
    rows, columns = (slice(max(0, side.start - 1), side.stop + 1) for side in window[1:])
    border = find_border(mask[window[0], rows, columns])
    seen = probability if labels.exclude_each_other else probability[position : position + 1]
    entropy = compute_entropy(seen[:, window[0], rows, columns][:, border])
    per_slice = np.bincount(np.nonzero(border)[0], weights=entropy, minlength=len(border))
    return per_slice.astype(np.float64, copy=False), len(entropy)


def bound_near(threshold: float) -> tuple[np.float32, np.float32]:
    """The lowest and the highest probability near a threshold.

    `NEAR` on both sides; of thresholds below 0.2 or above 0.8 half of the way to 0 or 1, because a background of
    probability 0 is near nothing.
    """
    margin = min(NEAR, threshold / 2, (1 - threshold) / 2)
    return np.float32(threshold - margin), np.float32(threshold + margin)


def count_near(
    probability: npt.NDArray[np.float32], labels: Labels, thresholds: tuple[float, ...]
) -> npt.NDArray[np.int64]:
    """Voxels of each label near its threshold, and near or above it.

    What is compared is what the threshold is compared with: of labels that exclude each other their probabilities
    together, 1 less that of the background, for the label that has the largest one.

    Args:
        probability: (labels, slices, rows, columns).
        labels: What they are of.
        thresholds: One for each label.

    Returns:
        (labels, 2). The first over the second is the share of its voxels that a mask loses between the lowest and
        the highest threshold that is near.
    """
    if labels.exclude_each_other:
        return _count_largest(probability, *bound_near(thresholds[0]))
    counts = []
    for plane, threshold in zip(probability, thresholds, strict=True):
        low, high = bound_near(threshold)
        reached = int(np.count_nonzero(plane >= low))
        counts.append((reached - int(np.count_nonzero(plane > high)), reached))
    return np.array(counts, np.int64).reshape(-1, 2)


def _count_largest(probability: npt.NDArray[np.float32], low: np.float32, high: np.float32) -> npt.NDArray[np.int64]:
    """As `count_near`, each voxel counted for the label with the largest probability."""
    num_labels = len(probability)
    together = probability.sum(axis=0, dtype=np.float32).ravel()
    reached = np.flatnonzero(together >= low)
    largest = probability.reshape(num_labels, -1)[:, reached].argmax(axis=0)
    near = together[reached] <= high
    return np.stack(
        [np.bincount(largest[near], minlength=num_labels), np.bincount(largest, minlength=num_labels)], axis=1
    ).astype(np.int64)
