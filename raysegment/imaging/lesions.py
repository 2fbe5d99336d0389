"""Which lesions of a reference a mask found, and what it took for one."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from raysegment.errors import GridMismatchError
from raysegment.imaging.postprocess import label_components, occupied_window


class LesionCounts(NamedTuple):
    """Connected components of a reference and of a mask.

    Attributes:
        lesions_reference: Components of the reference.
        lesions_found: Those that share a voxel with the mask.
        lesions_missed: The others.
        lesions_false: Components of the mask that share no voxel with the reference.
    """

    lesions_reference: int
    lesions_found: int
    lesions_missed: int
    lesions_false: int


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
    return LesionCounts(lesions, found, lesions - found, regions - touching)


def _count_touched(array: npt.NDArray[np.generic], other: npt.NDArray[np.generic]) -> tuple[int, int]:
    """How many components an array has, and how many of them share a voxel with the other one."""
    window = occupied_window(array)
    if window is None:
        return 0, 0
    numbers, count = label_components(array[window])
    is_touched = np.zeros(count + 1, np.bool_)
    is_touched[numbers[other[window] != 0]] = True
    return count, int(np.count_nonzero(is_touched[1:]))
