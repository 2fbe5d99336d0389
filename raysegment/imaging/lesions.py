"""Which lesions of a reference a mask found, and what it took for one."""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np
import numpy.typing as npt
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from raysegment.errors import GridMismatchError
from raysegment.imaging.postprocess import occupied_window

_Numbered = tuple[npt.NDArray[np.int32], int, int]
"""Numbers around the corners of a slice's pixels, how many numbers there are with 0, and parts in the slices before."""


class LesionCounts(NamedTuple):
    """Connected components of a reference and of a mask.

    Attributes:
        lesions_reference: Components of the reference.
        lesions_found: Those that share a voxel with the mask.
        lesions_missed: The others.
        lesions_false: Components of the mask that share no voxel with the reference.
        num_components: All components of the mask, which are known by the way.
    """

    lesions_reference: int
    lesions_found: int
    lesions_missed: int
    lesions_false: int
    num_components: int


def count_lesions(mask: npt.NDArray[np.generic], reference: npt.NDArray[np.generic]) -> LesionCounts:
    """Count 26-connected components, and which of them touch the other array.

    Args:
        mask: Predicted, (slices, rows, columns), bool or uint8; not 0 is inside.
        reference: Drawn by a person, same grid.

    Raises:
        GridMismatchError: The arrays differ in shape.
    """
    if mask.shape != reference.shape:
        raise GridMismatchError(f"mask is {mask.shape}, reference is {reference.shape}; both must share one grid.")
    lesions, found = _count_touched(reference, mask)
    regions, touching = _count_touched(mask, reference)
    return LesionCounts(lesions, found, lesions - found, regions - touching, regions)


def count_components(mask: npt.NDArray[np.generic]) -> int:
    """How many 26-connected components (slices, rows, columns) has; not 0 is inside."""
    return _count_touched(mask, mask)[0]


def _count_touched(array: npt.NDArray[np.generic], other: npt.NDArray[np.generic]) -> tuple[int, int]:
    """How many components an array has, and how many of them share a voxel with the other one.

    Each slice is numbered alone and then joined with the one before, so that memory is that of a few slices: a volume
    of numbers would be four times the mask.
    """
    window = occupied_window(array)
    if window is None:
        return 0, 0
    num_parts, edges, touched = 0, [np.empty((2, 0), np.int64)], [np.empty(0, np.int64)]
    before = (np.zeros(0, np.int32), 0, 0)
    for plane, met in zip(array[window], other[window], strict=True):
        count, numbers = cv2.connectedComponents((plane != 0).view(np.uint8), connectivity=8)
        is_met = np.zeros(count, np.bool_)
        is_met[numbers[met != 0]] = True
        touched.append(np.flatnonzero(is_met[1:]) + num_parts)
        here = (_spread(numbers), count, num_parts)
        if before[1] > 1 and count > 1:
            edges.append(_join(before, here))
        before, num_parts = here, num_parts + count - 1
    first, second = np.concatenate(edges, axis=1)
    graph = coo_array((np.ones(len(first), np.bool_), (first, second)), shape=(num_parts, num_parts))
    num_components, component = connected_components(graph, directed=False)
    return int(num_components), len(np.unique(component[np.concatenate(touched)]))


def _spread(numbers: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
    """For each corner of pixels the part that lies around it: all pixels around one are neighbours, so it is one."""
    padded = np.pad(numbers, 1)
    return np.maximum(np.maximum(padded[:-1, :-1], padded[:-1, 1:]), np.maximum(padded[1:, :-1], padded[1:, 1:]))


def _join(below: _Numbered, above: _Numbered) -> npt.NDArray[np.int64]:
    """Pairs of parts of two slices that lie around one corner, which makes them neighbours: (2, pairs)."""
    meet = (below[0] > 0) & (above[0] > 0)
    met = below[0][meet].astype(np.int64) * above[1] + above[0][meet]
    pairs = np.flatnonzero(np.bincount(met)) if below[1] * above[1] <= below[0].size else np.unique(met)
    return np.stack([pairs // above[1] - 1 + below[2], pairs % above[1] - 1 + above[2]])
