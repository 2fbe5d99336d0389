"""What a bundle's threshold and its smallest component shall be: chosen on the validation scans."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from raysegment.imaging.measure import dice_of
from raysegment.imaging.postprocess import label_components, occupied_window
from raysegment.pipeline.score import find_strengths, mean_of, ratio_of
from raysegment.scan import Labels

if TYPE_CHECKING:
    from raysegment.pipeline.samples import KeptScan

THRESHOLDS = np.arange(1, 20) / 20
"""Candidates for the bundle's threshold."""

COMPONENT_SIZES = (0, 10, 20, 50, 100, 200, 500, 1000)
"""Candidates for the bundle's `min_component_voxels`, ascending."""

PLATEAU = 0.001
"""Candidates whose Dice is this close to the best count as equal; the threshold nearest to 0.5, and the smallest size,
are taken."""

Levels = npt.NDArray[np.uint8]
"""How many of `THRESHOLDS` each voxel reaches, (labels, slices, rows, columns) on a scan's own grid."""


@dataclass(frozen=True)
class PackedLevels:
    """The levels of one scan, compressed: nearly all voxels reach none of the thresholds, or all of them.

    Attributes:
        shape: (labels, slices, rows, columns).
        parts: Some slices each.
    """

    shape: tuple[int, ...]
    parts: tuple[bytes, ...]

    def unpack(self) -> Levels:
        """The levels of all slices."""
        labels, _, rows, columns = self.shape
        parts = (np.frombuffer(zlib.decompress(part), np.uint8) for part in self.parts)
        return np.concatenate([part.reshape(labels, -1, rows, columns) for part in parts], axis=1)


@dataclass(frozen=True, eq=False)
class ThresholdScores:
    """What masks at each of `THRESHOLDS` are worth on the validation scans.

    Attributes:
        dice: Mean per-scan Dice of each label, (labels, thresholds), by evaluation's rule: a scan whose reference and
            mask are both empty is left out, one where only one of them is empty counts as 0. NaN where no scan is left.
        found: Voxels of the masks that lie in the references, over all scans, (labels, thresholds).
        masked: Voxels of the masks, over all scans, (labels, thresholds).
        levels: Of each scan, which thresholds its voxels reach.
    """

    dice: npt.NDArray[np.float64]
    found: npt.NDArray[np.int64]
    masked: npt.NDArray[np.int64]
    levels: tuple[PackedLevels, ...]

    def dice_at(self, thresholds: Sequence[float]) -> list[float]:
        """Dice of each label at its threshold, one of `THRESHOLDS`."""
        return [float(row[index]) for row, index in zip(self.dice, map(find_threshold, thresholds), strict=True)]

    def precision_at(self, thresholds: Sequence[float]) -> float:
        """Share of the masks' voxels that lie in the references, over all scans and labels; NaN without any."""
        chosen = np.arange(len(self.dice)), [find_threshold(threshold) for threshold in thresholds]
        return ratio_of(self.found[chosen].sum(), self.masked[chosen].sum())


@dataclass(frozen=True, eq=False)
class ComponentScores:
    """What masks at the chosen thresholds are worth without their small components.

    Attributes:
        sizes: The least voxels of a component that is kept, ascending.
        dice: As in `ThresholdScores`, (labels, sizes).
        found: As there, (labels, sizes).
        masked: As there, (labels, sizes).
    """

    sizes: tuple[int, ...]
    dice: npt.NDArray[np.float64]
    found: npt.NDArray[np.int64]
    masked: npt.NDArray[np.int64]

    def dice_at(self, size: int) -> list[float]:
        """Dice of each label."""
        return [float(value) for value in self.dice[:, self.sizes.index(size)]]

    def precision_at(self, size: int) -> float:
        """Share of the masks' voxels that lie in the references, over all scans and labels; NaN without any."""
        index = self.sizes.index(size)
        return ratio_of(self.found[:, index].sum(), self.masked[:, index].sum())


def score_thresholds(
    validation: Sequence[KeptScan],
    probabilities: Iterable[Iterable[tuple[slice, npt.NDArray[np.float32]]]],
    labels: Labels,
) -> ThresholdScores:
    """Compare each scan's masks with its references at each of `THRESHOLDS`.

    Args:
        validation: Scans with their references on their own grids.
        probabilities: Of each scan, some slices at a time, in order: which, and (slices, rows, columns, labels) on the
            network's grid.
        labels: What label maps mean.
    """
    counts = np.zeros((len(validation), len(labels), len(THRESHOLDS), 3), np.int64)
    packed = []
    for of_scan, kept, batches in zip(counts, validation, probabilities, strict=True):
        parts = []
        for chosen, probability in batches:
            levels = find_levels(find_strengths(probability, kept.geometry, labels))
            references = labels.planes_of(kept.compared_reference[chosen])
            for of_label, plane, drawn in zip(of_scan, levels, references, strict=True):
                of_label += count_levels(plane, drawn)
            parts.append(zlib.compress(levels.tobytes(), 1))
        packed.append(PackedLevels((len(labels), *kept.compared_reference.shape), tuple(parts)))
    dice, found, masked = _summarise(counts)
    return ThresholdScores(dice, found, masked, tuple(packed))


def score_components(
    scores: ThresholdScores,
    validation: Sequence[KeptScan],
    thresholds: Sequence[float],
    labels: Labels,
    sizes: tuple[int, ...] = COMPONENT_SIZES,
) -> ComponentScores:
    """Compare masks at the chosen thresholds with the references, without components of fewer voxels than each size.

    Components are those that `clean_labels` removes: 26-connected, of each label on its own, on the scan's own grid.

    Args:
        scores: From `score_thresholds`, of the same scans.
        validation: Scans with their references on their own grids.
        thresholds: Of each label, one of `THRESHOLDS`.
        labels: What label maps mean.
        sizes: Candidates, ascending.
    """
    counts = np.zeros((len(validation), len(labels), len(sizes), 3), np.int64)
    for of_scan, kept, packed in zip(counts, validation, scores.levels, strict=True):
        references = labels.planes_of(kept.compared_reference)
        for of_label, plane, drawn, threshold in zip(of_scan, packed.unpack(), references, thresholds, strict=True):
            of_label[:] = count_components_kept(plane > find_threshold(threshold), drawn, sizes)
    return ComponentScores(sizes, *_summarise(counts))


def find_levels(strengths: npt.NDArray[np.float32]) -> Levels:
    """How many of `THRESHOLDS` each value reaches, in the same shape."""
    levels = np.zeros(strengths.shape, np.uint8)
    for threshold in THRESHOLDS:
        levels += strengths >= np.float32(threshold)
    return levels


def count_levels(levels: npt.NDArray[np.uint8], reference: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
    """Voxels in both, in the mask and in the reference at each of `THRESHOLDS`, (thresholds, 3)."""
    both, mask = (
        np.bincount(values, minlength=len(THRESHOLDS) + 1)[:0:-1].cumsum()[::-1]
        for values in (levels[reference], levels.ravel())
    )
    return np.stack([both, mask, np.full(len(THRESHOLDS), np.count_nonzero(reference))], axis=1).astype(np.int64)


def count_components_kept(
    mask: npt.NDArray[np.bool_], reference: npt.NDArray[np.bool_], sizes: Sequence[int]
) -> npt.NDArray[np.int64]:
    """Voxels in both, in the mask and in the reference, of the components that have at least each size: (sizes, 3).

    Args:
        mask: (slices, rows, columns).
        reference: Same shape.
        sizes: Least voxels of a component.
    """
    counts = np.zeros((len(sizes), 3), np.int64)
    counts[:, 2] = np.count_nonzero(reference)
    window = occupied_window(mask)
    if window is None:
        return counts
    numbers, num_components = label_components(mask[window])
    voxels, both = (
        np.bincount(of.ravel(), minlength=num_components + 1)[1:] for of in (numbers, numbers[reference[window]])
    )
    for row, size in zip(counts, sizes, strict=True):
        row[:2] = both[voxels >= size].sum(), voxels[voxels >= size].sum()
    return counts


def choose_thresholds(dice: npt.NDArray[np.float64], labels: Labels) -> tuple[float, ...]:
    """The best threshold of each label; where they exclude each other, the one that is best for their mean.

    Args:
        dice: Of each label and threshold, (labels, thresholds).
        labels: What is segmented.
    """
    if not labels.exclude_each_other:
        return tuple(choose_threshold(row) for row in dice)
    return (choose_threshold(np.array([mean_of(column) for column in dice.T])),) * len(labels)


def choose_threshold(dice: npt.NDArray[np.float64]) -> float:
    """The best threshold; among equals the one nearest to 0.5; 0.5 where nothing could be measured."""
    if np.isnan(dice).all():
        return 0.5
    good = THRESHOLDS[dice >= np.nanmax(dice) - PLATEAU]
    return float(good[np.argmin(np.abs(good - 0.5))])


def choose_component_size(scores: ComponentScores) -> int:
    """The smallest size whose Dice, the mean of the labels' means, is within `PLATEAU` of the best one's.

    So it is 0, and nothing is removed, unless removing gains more than 0.001; and the first where nothing could be
    measured.
    """
    means = np.array([mean_of(column) for column in scores.dice.T])
    if np.isnan(means).all():
        return scores.sizes[0]
    return scores.sizes[int(np.flatnonzero(means >= np.nanmax(means) - PLATEAU)[0])]


def find_threshold(threshold: float) -> int:
    """Position of a threshold in `THRESHOLDS`."""
    return int(np.argmin(np.abs(THRESHOLDS - threshold)))


def _summarise(
    counts: npt.NDArray[np.int64],
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Mean Dice over scans, and voxels found and masked over all: (labels, candidates) each.

    Args:
        counts: (scans, labels, candidates, 3).
    """
    dice = dice_of(*np.moveaxis(counts, -1, 0))
    means = [[mean_of(column) for column in of_label.T] for of_label in np.moveaxis(dice, 1, 0)]
    found, masked, _ = np.moveaxis(counts.sum(axis=0), -1, 0)
    return np.array(means), found, masked
