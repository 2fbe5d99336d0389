"""Probabilities on a scan's own grid, some slices at a time: all of them at once may not fit into memory."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from raysegment.imaging.doubt import count_near
from raysegment.imaging.geometry import Geometry, restore_grid
from raysegment.imaging.measure import Plane, count_overlap, dice_of
from raysegment.imaging.postprocess import threshold_probability
from raysegment.scan import LabelMap, Labels, Mask

Probability = npt.NDArray[np.float32]
"""(labels, slices, rows, columns)."""

SLAB_BYTES = 64 * 2**20
"""Probabilities that are held on the scan's own grid."""


class Slabs:
    """Brings probabilities back to a scan's own grid, a slab of slices at a time; a scan of one slab only once.

    Args:
        probability: On the network's grid, in single or half precision.
        geometry: The way back.
        max_bytes: Largest slab, but for one slice.
    """

    def __init__(
        self, probability: npt.NDArray[np.floating[Any]], geometry: Geometry, max_bytes: int = SLAB_BYTES
    ) -> None:
        self.probability = probability
        self.geometry = geometry
        self.grid = (probability.shape[1], geometry.rows, geometry.columns)
        slice_bytes = 4 * probability.shape[0] * geometry.rows * geometry.columns
        self._step = max(1, max_bytes // max(1, slice_bytes))
        self._only: Probability | None = None

    def __iter__(self) -> Iterator[tuple[slice, Probability]]:
        """Which slices, and their probabilities on the scan's own grid."""
        for start in range(0, self.grid[0], self._step):
            chosen = slice(start, min(self.grid[0], start + self._step))
            yield chosen, self._restore(chosen)

    def within(self, first: int, stop: int) -> Iterator[tuple[slice, Probability]]:
        """As iterating, over the slices from `first` to before `stop`."""
        if self._only is not None:
            yield slice(first, stop), self._only[:, first:stop]
            return
        for start in range(first, stop, self._step):
            chosen = slice(start, min(stop, start + self._step))
            yield chosen, self._restore(chosen)

    def mean_inside(self, position: int, plane: Plane) -> float:
        """Mean probability of one label where its mask is, NaN where that is empty; the same for slabs of any size.

        Args:
            position: Of the label.
            plane: The label's mask, (slices, rows, columns).
        """
        occupied = np.flatnonzero(plane.any(axis=(1, 2)))
        sums = []
        for index in occupied.tolist():
            if self._only is None:
                restored = restore_grid(_as_single(self.probability[position, index : index + 1]), self.geometry)[0]
            else:
                restored = self._only[position, index]
            sums.append(float(restored[plane[index]].sum(dtype=np.float64)))
        return math.fsum(sums) / int(np.count_nonzero(plane)) if sums else math.nan

    def _restore(self, chosen: slice) -> Probability:
        if self._only is not None:
            return self._only
        parts = [restore_grid(_as_single(label[chosen]), self.geometry) for label in self.probability]
        restored = parts[0][None] if len(parts) == 1 else np.stack(parts)
        if chosen == slice(0, self.grid[0]):
            self._only = restored
        return restored


def _as_single(values: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.float32]:
    return values.astype(np.float32, copy=False)


@dataclass(frozen=True, eq=False)
class RawMask:
    """A mask before cleaning.

    Attributes:
        mask: On the scan's own grid.
        dice_at_half: For each label Dice of the mask at threshold 0.5 and the reference; NaN without a reference.
        share_near_threshold: For each label the share of voxels near its threshold among those near or above it; NaN
            where there are none.
    """

    mask: Mask
    dice_at_half: tuple[float, ...]
    share_near_threshold: tuple[float, ...]


def threshold_slabs(
    slabs: Slabs,
    labels: Labels,
    thresholds: tuple[float, ...],
    reference: LabelMap | None = None,
    reference_labels: Labels | None = None,
) -> RawMask:
    """The mask of a scan before cleaning.

    Args:
        slabs: Probabilities.
        labels: What they are of.
        thresholds: One for each label.
        reference: Drawn by a person, the scan's grid, or None.
        reference_labels: The values that the same labels have in the reference; as in masks if not given.
    """
    mask: Mask | None = None
    counts, near = np.zeros((len(labels), 3), np.int64), np.zeros((len(labels), 2), np.int64)
    for chosen, probability in slabs:
        part = threshold_probability(probability, labels, thresholds)
        if mask is None:
            mask = np.empty((*part.shape[:-3], *slabs.grid), part.dtype)
        mask[..., chosen, :, :] = part
        near += count_near(probability, labels, thresholds)
        if reference is not None:
            halves = threshold_probability(probability, labels, (0.5,) * len(labels))
            counts += _count_halves(halves, labels, reference[chosen], reference_labels or labels)
    assert mask is not None
    dice = dice_of(*counts.T) if reference is not None else np.full(len(labels), math.nan)
    shares = [count / reached if reached else math.nan for count, reached in near.tolist()]
    return RawMask(mask, tuple(dice.tolist()), tuple(shares))


def _count_halves(mask: Mask, labels: Labels, reference: LabelMap, drawn: Labels) -> npt.NDArray[np.int64]:
    """Voxels of each label in both, in the mask and in the reference: (labels, 3)."""
    return np.array(
        [
            count_overlap(labels.plane_of_mask(mask, position), drawn.plane_of(reference, position)).sum(axis=0)
            for position in range(len(labels))
        ]
    )
