"""Probabilities averaged: over mirrored passes of the network, over the members of an ensemble, over slices."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import numpy.typing as npt

from raysegment.imaging.measure import Counts, Plane, count_overlap, dice_of
from raysegment.imaging.postprocess import threshold_probability
from raysegment.options import Mirror
from raysegment.scan import Labels

Values = npt.NDArray[np.float32]

PredictEach = Callable[[Values], list[Values]]
"""float32 (slices, rows, columns, channels) to (slices, rows, columns, labels) of each member."""

ROWS, COLUMNS = 1, 2
"""Axes of a batch."""

MIRRORED_AXES: dict[Mirror, tuple[tuple[int, ...], ...]] = {
    "none": ((),),
    "columns": ((), (COLUMNS,)),
    "rows": ((), (ROWS,)),
    "rows,columns": ((), (COLUMNS,), (ROWS,), (ROWS, COLUMNS)),
}
"""What is mirrored in each pass, the one with nothing mirrored first."""


@dataclass(frozen=True, eq=False)
class Passes:
    """What all passes over a batch came to.

    Attributes:
        probability: float32, (slices, rows, columns, labels), the mean over all passes and members.
        mirror_counts: Voxels of hard masks, (slices, labels, 3): in both, in the first, in the second; that of the pass
            with nothing mirrored against that of each other pass, added up. None where there was one pass.
        member_counts: The same of each pair of members. None where there was one member.
    """

    probability: Values
    mirror_counts: Counts | None = None
    member_counts: Counts | None = None


def run_passes(
    predict_each: PredictEach,
    batch: Values,
    mirror: Mirror,
    swaps: Sequence[int],
    thresholds: tuple[float, ...],
    labels: Labels,
) -> Passes:
    """Show the network a batch as it is and mirrored, turn back what it finds, and take the mean.

    The mean is taken over passes and members alike; which passes agree is counted of the mean over members, which
    members agree of the mean over passes, on the network's grid. Where slices are seen in tiles that overlap, their
    voxels count once for each tile.

    Args:
        predict_each: The network, or all members of an ensemble.
        batch: Normalized slices with their neighbours, (slices, rows, columns, channels).
        mirror: Which passes there are.
        swaps: For each label the one that has its place where columns are mirrored, see `sides.find_swaps`; empty where
            all stay.
        thresholds: One for each label, for the counts.
        labels: What the network segments.
    """
    members: list[Values] = []
    of_passes: list[list[Plane]] = []
    passes = MIRRORED_AXES[mirror]
    for axes in passes:
        found = [turn_back(part, axes, swaps) for part in predict_each(mirror_batch(batch, axes))]
        if len(passes) > 1:
            of_passes.append(find_planes(_mean(found), thresholds, labels))
        members = [before + part for before, part in zip(members, found, strict=True)] if members else found
    if len(passes) > 1:
        members = [member / np.float32(len(passes)) for member in members]
    of_members = [find_planes(member, thresholds, labels) for member in members] if len(members) > 1 else []
    return Passes(
        _mean(members),
        _count_pairs([(of_passes[0], other) for other in of_passes[1:]]),
        _count_pairs(list(combinations(of_members, 2))),
    )


def mirror_batch(batch: Values, axes: tuple[int, ...]) -> Values:
    """A batch with some of its axes mirrored, contiguous; the batch itself without any."""
    return np.ascontiguousarray(np.flip(batch, axes)) if axes else batch


def turn_back(found: Values, axes: tuple[int, ...], swaps: Sequence[int]) -> Values:
    """What a mirrored pass found as it lies in the batch itself, sides of the body exchanged where columns were."""
    if not axes:
        return found
    turned = np.flip(found, axes)
    return turned[..., list(swaps)] if swaps and COLUMNS in axes else turned


def find_planes(probability: Values, thresholds: tuple[float, ...], labels: Labels) -> list[Plane]:
    """Hard masks by the rule of `threshold_probability`: of each label (slices, rows, columns), bool.

    Args:
        probability: (slices, rows, columns, labels).
        thresholds: One for each label.
        labels: What they are.
    """
    mask = threshold_probability(np.moveaxis(probability, -1, 0), labels, thresholds)
    return [labels.plane_of_mask(mask, position) for position in range(len(labels))]


def smooth_over_slices(probability: npt.NDArray[np.floating[Any]]) -> None:
    """Replace each slice by ¼ of the one before, ½ of itself and ¼ of the one after; in place.

    The first and the last slice stand in for those that do not exist. Sums are taken in single precision, a slice at a
    time, so volumes that are held in half precision take no more memory.

    Args:
        probability: (labels, slices, rows, columns), on the network's grid; changed.
    """
    last = probability.shape[1] - 1
    for plane in probability if last else ():
        before = current = plane[0].astype(np.float32)
        for position in range(last + 1):
            after = plane[min(position + 1, last)].astype(np.float32)
            plane[position] = before / 4 + current / 2 + after / 4
            before, current = current, after


class Agreement:
    """How far the passes and the members agree on one scan, gathered over its batches.

    Attributes:
        mirror_counts: As in `Passes`, added up over slices, (labels, 3).
        member_counts: The same of members.
    """

    def __init__(self) -> None:
        self.mirror_counts: Counts | None = None
        self.member_counts: Counts | None = None

    def add(self, passes: Passes, chosen: slice) -> None:
        """Add slices of a batch that are this scan's."""
        self.mirror_counts = _add(self.mirror_counts, passes.mirror_counts, chosen)
        self.member_counts = _add(self.member_counts, passes.member_counts, chosen)

    def mirror_dice(self, position: int) -> float | None:
        """Dice of one label between the pass with nothing mirrored and the others; NaN where no pass found anything.

        None where there was one pass, or the network saw nothing of the scan.
        """
        return _dice_of(self.mirror_counts, position)

    def member_dice(self, position: int) -> float | None:
        """Dice of one label between members, over all pairs of them; NaN and None as in `mirror_dice`."""
        return _dice_of(self.member_counts, position)


def _mean(parts: list[Values]) -> Values:
    """The mean, in single precision and in order; of one part that part itself."""
    if len(parts) == 1:
        return parts[0]
    total = parts[0] + parts[1]
    for part in parts[2:]:
        total += part
    return np.asarray(total / np.float32(len(parts)))


def _count_pairs(pairs: Sequence[tuple[list[Plane], list[Plane]]]) -> Counts | None:
    """Voxels in both, in the first and in the second of each pair, added up: (slices, labels, 3)."""
    if not pairs:
        return None
    return np.sum(
        [[count_overlap(*planes) for planes in zip(first, second, strict=True)] for first, second in pairs], axis=0
    ).transpose(1, 0, 2)


def _add(before: Counts | None, found: Counts | None, chosen: slice) -> Counts | None:
    if found is None:
        return before
    added: Counts = found[chosen].sum(axis=0)
    return added if before is None else before + added


def _dice_of(counts: Counts | None, position: int) -> float | None:
    return None if counts is None else float(dice_of(*counts[position]))
