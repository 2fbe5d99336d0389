"""From probabilities to a mask."""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt
from skimage.measure import label

from raysegment.scan import Mask

Window = tuple[slice, ...]


def threshold_probability(probability: npt.NDArray[np.float32], threshold: float) -> Mask:
    """Voxels whose probability is at least the threshold: uint8, 1 in the mask and 0 elsewhere."""
    return (probability >= np.float32(threshold)).view(np.uint8)


def clean_mask(
    mask: Mask, *, min_component_voxels: int = 0, largest_component: bool = False, fill_holes: bool = False
) -> Mask:
    """Remove what is unlikely to be a lesion, in 3-D.

    Components are 26-connected over slices. Holes are background that cannot reach the slice's edge, 4-connected.

    Args:
        mask: (slices, rows, columns); not changed.
        min_component_voxels: Components with fewer voxels are removed.
        largest_component: Keep the largest component only; of equal ones the first.
        fill_holes: Fill holes in each slice, after the removal.

    Returns:
        uint8, same shape; the mask itself where there is nothing to do.
    """
    filters_components = largest_component or min_component_voxels > 1
    window = occupied_window(mask) if filters_components or fill_holes else None
    if window is None:
        return mask
    cleaned = np.zeros_like(mask)
    part = mask[window]
    if filters_components:
        part = _filter_components(part, min_component_voxels, largest_component)
    if fill_holes:
        part = np.stack([_fill_slice(plane) for plane in part])
    cleaned[window] = part
    return cleaned


def occupied_window(mask: npt.NDArray[np.generic]) -> Window | None:
    """Index of the smallest box that holds all voxels of a mask (slices, rows, columns), or None where it is empty."""
    occupied = np.flatnonzero(mask.reshape(len(mask), -1).any(axis=1))
    if not len(occupied):
        return None
    slices = slice(int(occupied[0]), int(occupied[-1]) + 1)
    flat = np.bitwise_or.reduce(np.ascontiguousarray(mask[slices]), axis=0)
    rows, columns = np.flatnonzero(flat.any(axis=1)), np.flatnonzero(flat.any(axis=0))
    return slices, slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1)


def label_components(mask: npt.NDArray[np.generic]) -> tuple[npt.NDArray[np.int64], int]:
    """26-connected components of (slices, rows, columns): numbers from 1, and how many there are."""
    numbers, count = label(mask != 0, return_num=True, connectivity=3)
    return numbers, int(count)


def _filter_components(mask: Mask, min_component_voxels: int, largest_component: bool) -> Mask:
    numbers, count = label_components(mask)
    sizes = np.bincount(numbers.ravel(), minlength=count + 1)
    sizes[0] = 0
    kept = (sizes >= max(1, min_component_voxels)) & (sizes > 0)
    if largest_component:
        kept &= np.arange(len(sizes)) == np.argmax(sizes)
    return np.where(kept[numbers], mask, np.uint8(0)).astype(np.uint8)


def _fill_slice(plane: Mask) -> Mask:
    value = int(plane.max())
    if value == 0:
        return plane
    outlines, _ = cv2.findContours(np.ascontiguousarray(plane), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    filled = np.ascontiguousarray(plane).copy()
    cv2.drawContours(filled, outlines, -1, value, cv2.FILLED)
    return filled
