"""Numbers of one mask, and of its agreement with a reference."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from raysegment.errors import GridMismatchError
from raysegment.imaging.postprocess import label_components, occupied_window
from raysegment.scan import Mask, Spacing

REFERENCE_COLUMNS = (
    "reference_voxels",
    "true_positives",
    "false_positives",
    "false_negatives",
    "true_negatives",
    "dice",
    "iou",
    "accuracy",
    "precision",
    "recall",
    "f1",
    "reference_is_empty",
    "dice_at_half",
    "lesion_slices",
    "lesion_slice_dice_sum",
    "clean_slices",
    "clean_slices_with_mask",
)

Counts = npt.NDArray[np.int64]


def measure_mask(
    mask: Mask,
    reference: npt.NDArray[np.bool_] | None,
    probability: npt.NDArray[np.float32],
    spacing_mm: Spacing | None,
) -> dict[str, Any]:
    """All numbers of one scan and label, as a row of the metrics table has them.

    Args:
        mask: Predicted, uint8, (slices, rows, columns); not 0 is the label.
        reference: Drawn by a person, same grid, or None.
        probability: Before threshold and cleaning, same grid.
        spacing_mm: Voxel spacing (slices, rows, columns), or None where it is unknown.

    Returns:
        voxels, volume_ml (NaN without spacing), num_components (26-connected), mean_probability (in the mask, NaN
        where it is empty), mask_is_empty, and `REFERENCE_COLUMNS`, which are None without a reference.

    Raises:
        GridMismatchError: The arrays differ in shape.
    """
    _check_grid(mask, reference, probability)
    row = _measure_alone(mask, probability, spacing_mm)
    if reference is None:
        return row | dict.fromkeys(REFERENCE_COLUMNS)
    return row | _compare(mask, reference.astype(np.bool_, copy=False), probability)


def overlap_of(
    true_positives: int, false_positives: int, false_negatives: int, true_negatives: int
) -> dict[str, float]:
    """Overlap from counts of voxels.

    Where mask and reference are both empty all but accuracy are NaN: there is nothing to overlap. Where only one is
    empty all but accuracy are 0.

    Returns:
        dice, iou, accuracy, precision, recall, f1 (equal to dice), from 0 to 1.
    """
    total = true_positives + false_positives + false_negatives + true_negatives
    union = true_positives + false_positives + false_negatives
    accuracy = (true_positives + true_negatives) / total if total else math.nan
    if union == 0:
        nothing = dict.fromkeys(("dice", "iou", "precision", "recall", "f1"), math.nan)
        return {**nothing, "accuracy": accuracy}
    dice = float(dice_of(true_positives, true_positives + false_positives, true_positives + false_negatives))
    return {
        "dice": dice,
        "iou": true_positives / union,
        "accuracy": accuracy,
        "precision": true_positives / max(1, true_positives + false_positives),
        "recall": true_positives / max(1, true_positives + false_negatives),
        "f1": dice,
    }


def dice_of(
    true_positives: npt.ArrayLike, mask_voxels: npt.ArrayLike, reference_voxels: npt.ArrayLike
) -> npt.NDArray[np.float64]:
    """Dice from counts of voxels, element by element: NaN where mask and reference are both empty."""
    total = np.asarray(mask_voxels, np.float64) + np.asarray(reference_voxels, np.float64)
    found = 2 * np.asarray(true_positives, np.float64)
    return np.divide(found, total, out=np.full(total.shape, math.nan), where=total > 0)


def dice_of_masks(mask: npt.NDArray[np.bool_], reference: npt.NDArray[np.bool_]) -> float:
    """Dice of two bool arrays of one shape."""
    counts = (np.count_nonzero(mask & reference), np.count_nonzero(mask), np.count_nonzero(reference))
    return float(dice_of(*counts))


def _check_grid(mask: Mask, reference: npt.NDArray[np.bool_] | None, probability: npt.NDArray[np.float32]) -> None:
    for name, other in (("reference", reference), ("probability", probability)):
        if other is not None and other.shape != mask.shape:
            raise GridMismatchError(f"mask is {mask.shape}, {name} is {other.shape}; both must share one grid.")


def _measure_alone(mask: Mask, probability: npt.NDArray[np.float32], spacing_mm: Spacing | None) -> dict[str, Any]:
    window = occupied_window(mask)
    voxels, num_components, mean_probability = 0, 0, math.nan
    if window is not None:
        inside = mask[window] != 0
        voxels = int(np.count_nonzero(inside))
        num_components = label_components(inside)[1]
        mean_probability = float(probability[window][inside].mean(dtype=np.float64))
    return {
        "voxels": voxels,
        "volume_ml": math.nan if spacing_mm is None else voxels * math.prod(spacing_mm) / 1000,
        "num_components": num_components,
        "mean_probability": mean_probability,
        "mask_is_empty": voxels == 0,
    }


def _compare(mask: Mask, reference: npt.NDArray[np.bool_], probability: npt.NDArray[np.float32]) -> dict[str, Any]:
    predicted = mask != 0
    mask_voxels, reference_voxels = _count_per_slice(predicted), _count_per_slice(reference)
    both = _count_per_slice(predicted & reference)
    true_positives = int(both.sum())
    false_positives = int(mask_voxels.sum()) - true_positives
    false_negatives = int(reference_voxels.sum()) - true_positives
    true_negatives = mask.size - true_positives - false_positives - false_negatives
    has_lesion = reference_voxels > 0
    slice_dice = dice_of(both, mask_voxels, reference_voxels)[has_lesion]
    return {
        "reference_voxels": int(reference_voxels.sum()),
        "true_positives": true_positives,
        "false_positives": false_positives,
        "false_negatives": false_negatives,
        "true_negatives": true_negatives,
        **overlap_of(true_positives, false_positives, false_negatives, true_negatives),
        "reference_is_empty": not has_lesion.any(),
        "dice_at_half": dice_of_masks(probability >= np.float32(0.5), reference),
        "lesion_slices": int(np.count_nonzero(has_lesion)),
        "lesion_slice_dice_sum": float(slice_dice.sum()),
        "clean_slices": int(np.count_nonzero(~has_lesion)),
        "clean_slices_with_mask": int(np.count_nonzero(mask_voxels[~has_lesion])),
    }


def _count_per_slice(mask: npt.NDArray[np.bool_]) -> Counts:
    return np.array([np.count_nonzero(plane) for plane in mask], np.int64)
