"""Numbers of one mask, and of its agreement with a reference."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from raysegment.errors import GridMismatchError
from raysegment.imaging.lesions import count_components, count_lesions
from raysegment.imaging.surface import compare_surfaces
from raysegment.scan import LabelMap, Labels, Mask, Region, Spacing, voxel_volume_mm3

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
    "hd95_mm",
    "mean_surface_distance_mm",
    "surface_dice",
    "surface_tolerance_mm",
    "lesions_reference",
    "lesions_found",
    "lesions_missed",
    "lesions_false",
)

Counts = npt.NDArray[np.int64]

Plane = npt.NDArray[np.bool_]
"""(slices, rows, columns), where one label is."""


def measure_mask(
    mask: Mask | Plane,
    reference: Plane | None,
    spacing_mm: Spacing | None,
    *,
    affine: npt.NDArray[np.float64] | None = None,
    dice_at_half: float = math.nan,
    surface_tolerance_mm: float = 1.0,
) -> dict[str, Any]:
    """The numbers of one scan and label that masks tell, as a row of the metrics table has them.

    Args:
        mask: Predicted, (slices, rows, columns); not 0 is the label.
        reference: Drawn by a person, bool, same grid, or None.
        spacing_mm: Voxel spacing (slices, rows, columns), or None where it is unknown.
        affine: 4x4, index to millimetres; the volume of sheared voxels needs it. None where the format has none.
            Distances are those of axes at right angles, see `imaging/surface`.
        dice_at_half: Of the mask at threshold 0.5 before cleaning; NaN where that is unknown.
        surface_tolerance_mm: Distance that `surface_dice` takes for agreement.

    Returns:
        voxels, volume_ml (NaN without spacing), num_components (26-connected), mask_is_empty, and `REFERENCE_COLUMNS`,
        which are None without a reference.

    Raises:
        GridMismatchError: The arrays differ in shape.
    """
    if reference is not None and reference.shape != mask.shape:
        raise GridMismatchError(f"mask is {mask.shape}, reference is {reference.shape}; both must share one grid.")
    voxel_mm3 = voxel_volume_mm3(spacing_mm, affine)
    if reference is None:
        return _measure_alone(mask, voxel_mm3, count_components(mask)) | dict.fromkeys(REFERENCE_COLUMNS)
    # Components of the mask are looked for once: it takes longer than all but the surfaces.
    lesions = count_lesions(mask, reference)
    surfaces = compare_surfaces(mask, reference, spacing_mm, surface_tolerance_mm)
    return (
        _measure_alone(mask, voxel_mm3, lesions.num_components)
        | _compare(mask, reference)
        | {"dice_at_half": dice_at_half, "surface_tolerance_mm": surface_tolerance_mm}
        | surfaces._asdict()
        | lesions._asdict()
    )


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


def count_overlap(mask: npt.NDArray[np.generic], reference: Plane) -> Counts:
    """Voxels of each slice in both, in the mask and in the reference: (slices, 3)."""
    counts = [
        (np.count_nonzero(plane.astype(np.bool_, copy=False) & drawn), np.count_nonzero(plane), np.count_nonzero(drawn))
        for plane, drawn in zip(mask, reference, strict=True)
    ]
    return np.array(counts, np.int64).reshape(-1, 3)


def count_by_reference(
    mask: Mask, values: Sequence[int], reference: LabelMap | None, drawn: Labels
) -> list[list[int] | None]:
    """For each label of a mask how many of its voxels the reference has as background, and as each of the labels.

    Args:
        mask: (slices, rows, columns); (labels, slices, rows, columns) where labels overlap.
        values: Of each label in the mask.
        reference: Drawn by a person, same grid, or None.
        drawn: What the same labels are in the reference, other ones after them, which count as background.

    Returns:
        (labels, 1 + labels); None for each label without a reference, and unless several labels exclude each other.
    """
    known = Labels(drawn.names[: len(values)], drawn.regions[: len(values)])
    if reference is None or mask.ndim == 4 or not known.exclude_each_other:
        return [None] * len(values)
    in_mask, in_reference = (
        _number_values([(value,) for value in values], mask),
        _number_values(known.regions, reference),
    )
    num_classes = len(values) + 1
    counts = np.zeros(num_classes**2, np.int64)
    for found, plane in zip(mask, reference, strict=True):
        codes = in_mask[found] * num_classes + in_reference[plane]
        counts += np.bincount(codes.ravel(), minlength=num_classes**2)
    return list(counts.reshape(num_classes, num_classes)[1:].tolist())


def _number_values(regions: Sequence[Region], label_map: LabelMap) -> npt.NDArray[np.int64]:
    """For each value of a label map the number of its label, from 1; 0 for background."""
    numbers = np.zeros(max(int(label_map.max()), *map(max, regions)) + 1, np.int64)
    for number, region in enumerate(regions, start=1):
        numbers[list(region)] = number
    return numbers


def _measure_alone(mask: Mask | Plane, voxel_mm3: float, num_components: int) -> dict[str, Any]:
    voxels = int(np.count_nonzero(mask))
    return {
        "voxels": voxels,
        "volume_ml": voxels * voxel_mm3 / 1000,
        "num_components": num_components,
        "mask_is_empty": voxels == 0,
    }


def _compare(mask: Mask | Plane, reference: Plane) -> dict[str, Any]:
    both, mask_voxels, reference_voxels = count_overlap(mask, reference).T
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
        "lesion_slices": int(np.count_nonzero(has_lesion)),
        "lesion_slice_dice_sum": float(slice_dice.sum()),
        "clean_slices": int(np.count_nonzero(~has_lesion)),
        "clean_slices_with_mask": int(np.count_nonzero(mask_voxels[~has_lesion])),
    }
