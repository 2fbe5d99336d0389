"""From probabilities to a mask."""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt
from skimage.measure import label

from raysegment.scan import Labels, Mask

Window = tuple[slice, ...]


def threshold_probability(probability: npt.NDArray[np.float32], labels: Labels, thresholds: tuple[float, ...]) -> Mask:
    """The mask before cleaning.

    Where labels exclude each other, a voxel is foreground if their probabilities together, which are 1 less that of the
    background, are at least the threshold, and has the label with the largest one, of equal ones the first. Else it has
    each label whose probability is at least that label's threshold.

    Args:
        probability: (labels, …).
        labels: What they are.
        thresholds: One for each label; the same one for labels that exclude each other.

    Returns:
        (…), values of `labels.mask_values` and 0; (labels, …), 0 and 1, where labels overlap. In the smallest type.
    """
    if labels.overlap:
        planes = [plane >= np.float32(threshold) for plane, threshold in zip(probability, thresholds, strict=True)]
        return np.stack(planes).view(np.uint8)
    values = np.array(list(labels.mask_values.values()))
    values = values.astype(np.min_scalar_type(values.max()))
    if len(labels) == 1:
        inside = (probability[0] >= np.float32(thresholds[0])).view(np.uint8)
        return inside if values[0] == 1 else inside * values[0]
    inside = (probability.sum(axis=0, dtype=np.float32) >= np.float32(thresholds[0])).view(np.uint8)
    return np.asarray(values[probability.argmax(axis=0)] * inside)


def clean_labels(
    mask: Mask,
    labels: Labels,
    *,
    min_component_voxels: int = 0,
    largest_component: bool = False,
    fill_holes: bool = False,
) -> Mask:
    """As `clean_mask`, each label on its own; a hole is filled only where no other label is.

    A hole that two labels enclose goes to the first of them.

    Args:
        mask: (slices, rows, columns), or (labels, slices, rows, columns) where labels overlap; not changed.
        labels: What is in it.
        min_component_voxels: Components of a label with fewer voxels are removed.
        largest_component: Keep the largest component of each label only.
        fill_holes: Fill holes of each label in each slice, after the removal.

    Returns:
        Same shape and type; the mask itself where there is nothing to do.
    """
    filters = min_component_voxels > 1 or largest_component
    choices = {"min_component_voxels": min_component_voxels, "largest_component": largest_component}
    if len(labels) == 1 or not (filters or fill_holes):
        return clean_mask(mask, **choices, fill_holes=fill_holes)  # type: ignore[arg-type]
    if labels.overlap:
        cleaned = np.empty_like(mask)
        for plane, target in zip(mask, cleaned, strict=True):
            target[:] = clean_mask(plane, **choices, fill_holes=fill_holes)  # type: ignore[arg-type]
        return cleaned
    cleaned = mask
    if filters:
        cleaned = np.zeros_like(mask)
        for value in labels.mask_values.values():
            cleaned |= clean_mask(_plane(mask, value), **choices) * mask.dtype.type(value)  # type: ignore[arg-type]
    if fill_holes:
        cleaned = cleaned.copy()
        for value in labels.mask_values.values():
            filled = clean_mask(_plane(cleaned, value), fill_holes=True)
            cleaned[(filled != 0) & (cleaned == 0)] = value
    return cleaned


def _plane(mask: Mask, value: int) -> Mask:
    return (mask == value).view(np.uint8)


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
        Same shape and type; the mask itself where there is nothing to do.
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
    return np.where(kept[numbers], mask, mask.dtype.type(0))


def _fill_slice(plane: Mask) -> Mask:
    value = int(plane.max())
    if value == 0:
        return plane
    inside = np.ascontiguousarray(plane != 0).view(np.uint8)
    outlines, _ = cv2.findContours(inside, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(inside, outlines, -1, 1, cv2.FILLED)
    return np.asarray(inside * plane.dtype.type(value))
