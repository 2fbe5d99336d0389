"""When to doubt a mask that nobody has drawn a reference for: its numbers, and the rule by which a person looks at it.

What a bundle brings for this is its key `doubt`, plain numbers:

    volume_range_ml   {label: [smallest, largest]} of the references it was trained on; null where spacings are unknown
    volume_range_voxels, slice_shape
                      the same in voxels, for scans of that many rows and columns; null where spacings are known, or
                      slices of several sizes were trained on
    volume_scans      how many references these ranges are of
    regression        {label: numbers of `pipeline/predicted_dice`}; null without folds
    rule              {`COLUMN_below`, `COLUMN_above` or `COLUMN_is`: limit}, a number for all labels or {label: number}

Bundles that were saved without it are judged by `DEFAULT_RULE`, as far as its columns are known. What a rule may say:
`store/review_rule`; a cohort file may lay other limits over it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raysegment.errors import UsageError
from raysegment.imaging.doubt import sum_border_entropy
from raysegment.pipeline.passes import Agreement
from raysegment.pipeline.predicted_dice import predict_dice
from raysegment.pipeline.slabs import RawMask, Slabs
from raysegment.scan import Labels, Mask
from raysegment.store.review_rule import RELATIONS, needs_review, override_rule, split_condition

MIN_RANGE_SCANS = 10
"""References below which their smallest and largest volume tell too little."""

MIN_LIMIT_SCANS = 10
"""Validation scans below which the doubt of their masks tells no limit."""

SHARE_TO_REVIEW = 0.1
"""Of scans like those validated on so many pass the limit that is taken from them."""

NEAR_CONDITION = "share_near_threshold_above"

DEFAULT_RULE: dict[str, Any] = {
    "volume_in_training_range_is": False,
    NEAR_CONDITION: 0.125,
    "mirror_dice_below": 0.9,
    "member_dice_below": 0.8,
}
"""What asks for a review where a bundle brings no rule; one without folds brings this one.

On 16 validation patients of LGG (mean Dice 0.80, columns mirrored) the limits of voxels near the threshold and of
mirrored passes met the four worst masks (Dice 0.42 to 0.73) and no other; on 40 volumes of the hippocampus, not
mirrored (Dice 0.76 to 0.93), none. They were chosen by these scans. The limit of members is a guess. How many voxels
lie near the threshold is a trait of the network rather than of the scan (the same recipe, trained for longer, passed
0.125 on 48 of 50 scans), so a training with enough validation scans takes that limit from them (`take_limits`).
"""

ROUNDING = 1e-9
"""Volumes that differ by less than this, relatively, are the same."""


@dataclass(frozen=True, kw_only=True)
class ReferenceSize:
    """How much of a scan that is trained on each label takes up.

    Attributes:
        voxels: Of each label.
        voxel_mm3: Volume of a voxel; NaN where nobody knows.
        slice_shape: Rows and columns of the scan.
    """

    voxels: tuple[int, ...]
    voxel_mm3: float
    slice_shape: tuple[int, int]


def measure_doubt(slabs: Slabs, labels: Labels, mask: Mask, raw: RawMask, agreement: Agreement) -> list[dict[str, Any]]:
    """What probabilities and passes tell of each label.

    Args:
        slabs: Probabilities.
        labels: What they are of.
        mask: After cleaning.
        raw: What was found on the way to it.
        agreement: Of mirrored passes and of members.

    Returns:
        For each label border_entropy, share_near_threshold, mirror_dice and member_dice.
    """
    return [
        {
            "border_entropy": entropy,
            "share_near_threshold": raw.share_near_threshold[position],
            "mirror_dice": agreement.mirror_dice(position),
            "member_dice": agreement.member_dice(position),
        }
        for position, entropy in enumerate(measure_border_entropy(slabs, labels, mask))
    ]


def measure_border_entropy(slabs: Slabs, labels: Labels, mask: Mask) -> list[float]:
    """Mean entropy at the border of each label in bits, NaN where there is none; the same for slabs of any size."""
    occupied = np.flatnonzero(mask.any(axis=(-2, -1)).reshape(-1, mask.shape[-3]).any(axis=0))
    sums: list[list[float]] = [[] for _ in labels.names]
    counts = [0] * len(labels)
    if len(occupied):
        for chosen, probability in slabs.within(int(occupied[0]), int(occupied[-1]) + 1):
            for position in range(len(labels)):
                plane = labels.plane_of_mask(mask[..., chosen, :, :], position)
                found, count = sum_border_entropy(probability, plane, position, labels)
                sums[position] += found.tolist()
                counts[position] += count
    return [math.fsum(parts) / count if count else math.nan for parts, count in zip(sums, counts, strict=True)]


def judge_doubt(
    row: Mapping[str, Any], doubt: Mapping[str, Any] | None, slice_shape: tuple[int, int]
) -> dict[str, Any]:
    """A row of metrics with what its bundle makes of its numbers.

    Args:
        row: Of one scan and label, with what `measure_mask` and `measure_doubt` found.
        doubt: Of the bundle; None where it brings nothing.
        slice_shape: Rows and columns of the scan.

    Returns:
        The row with volume_in_training_range, predicted_dice and needs_review, None for what is not known.
    """
    known = doubt or {}
    numbers = (known.get("regression") or {}).get(row["label"])
    judged = {
        **row,
        "volume_in_training_range": is_in_training_range(row, known, slice_shape),
        "predicted_dice": None if numbers is None else predict_dice(numbers, row),
    }
    return {**judged, "needs_review": needs_review(judged, rule_of(doubt))}


def is_in_training_range(row: Mapping[str, Any], doubt: Mapping[str, Any], slice_shape: tuple[int, int]) -> bool | None:
    """Whether a label of the references trained on was as small as this, and one as large.

    Args:
        row: With label, voxels, volume_ml.
        doubt: Of the bundle.
        slice_shape: Rows and columns of the scan.

    Returns:
        None where the bundle has no range, or in millilitres and the scan in voxels, or the other way round, or the
        scan's slices are of another size than those whose voxels were counted.
    """
    label, volume_ml = row["label"], row["volume_ml"]
    if not math.isnan(volume_ml):
        ranges, volume = doubt.get("volume_range_ml"), volume_ml
    else:
        same_grid = list(slice_shape) == doubt.get("slice_shape")
        ranges, volume = doubt.get("volume_range_voxels") if same_grid else None, row["voxels"]
    if ranges is None or label not in ranges:
        return None
    smallest, largest = ranges[label]
    return bool(smallest * (1 - ROUNDING) <= volume <= largest * (1 + ROUNDING))


def check_rule(doubt: Mapping[str, Any] | None) -> None:
    """Refuse a bundle whose rule asks for what this version does not know.

    Raises:
        UsageError: Names the condition.
    """
    for condition in (doubt or {}).get("rule") or ():
        if split_condition(condition) is None:
            raise UsageError(
                f"the bundle's rule for reviews has {condition!r}; expected a column of metrics and one of "
                f"{', '.join(f'_{relation}' for relation in RELATIONS)}. Use the raysegment that saved it, or a "
                "newer one."
            )


def rule_of(doubt: Mapping[str, Any] | None) -> Mapping[str, Any]:
    """The rule of a bundle, or the default one where it brings none."""
    rule = (doubt or {}).get("rule")
    return DEFAULT_RULE if rule is None else rule


def lay_over(doubt: Mapping[str, Any] | None, overrides: Mapping[str, Any], labels: Labels) -> dict[str, Any]:
    """What a bundle brings, with limits of the user's laid over those of its rule.

    Args:
        doubt: Of the bundle; None where it brings nothing.
        overrides: Limits by condition, see `store/review_rule`.
        labels: Of the bundle.

    Raises:
        UsageError: A limit names a label that the bundle does not have; or the bundle's rule is of a newer version.
    """
    check_rule(doubt)
    return {**(doubt or {}), "rule": override_rule(rule_of(doubt), overrides, labels.names)}


def describe_doubt(labels: Labels, sizes: Iterable[ReferenceSize]) -> dict[str, Any]:
    """What a bundle of one training brings.

    Ranges are the smallest and the largest of the training references: of n such references and one more scan like
    them, the latter lies outside with a chance of at most 2 / (n + 1).

    Args:
        labels: What is segmented.
        sizes: Of the references trained on.
    """
    sizes = list(sizes)
    with_spacing = [size for size in sizes if not math.isnan(size.voxel_mm3)]
    shapes = {size.slice_shape for size in sizes}
    nothing = {"volume_range_ml": None, "volume_range_voxels": None, "slice_shape": None, "volume_scans": 0}
    found: dict[str, Any] = {}
    if len(with_spacing) >= MIN_RANGE_SCANS:
        volumes = [[voxels * size.voxel_mm3 / 1000 for voxels in size.voxels] for size in with_spacing]
        found = {"volume_range_ml": _find_ranges(labels, volumes), "volume_scans": len(volumes)}
    elif len(sizes) >= MIN_RANGE_SCANS and not with_spacing and len(shapes) == 1:
        ranges = _find_ranges(labels, [size.voxels for size in sizes])
        found = {"volume_range_voxels": ranges, "slice_shape": list(shapes.pop()), "volume_scans": len(sizes)}
    return {**nothing, **found, "regression": None, "rule": DEFAULT_RULE}


def take_limits(
    doubt: Mapping[str, Any], labels: Labels, training_features: Mapping[str, Mapping[str, Sequence[float]]] | None
) -> dict[str, Any]:
    """What a bundle brings, with limits from the masks that it makes of the scans it was validated on.

    Args:
        doubt: From `describe_doubt`.
        labels: What is segmented.
        training_features: The bundle's, see `pipeline/training_features`.

    Returns:
        Of each label with `MIN_LIMIT_SCANS` masks the share near the threshold that about a tenth of them pass; of
        others the default.
    """
    kept = dict((training_features or {}).get("doubt") or {})
    samples = {label: kept.get(f"share_near_threshold_{label}", ()) for label in labels.names}
    limits = {
        label: float(np.quantile(shares, 1 - SHARE_TO_REVIEW, method="lower"))
        for label, shares in samples.items()
        if len(shares) >= MIN_LIMIT_SCANS
    }
    if not limits:
        return dict(doubt)
    default = dict.fromkeys(labels.names, DEFAULT_RULE[NEAR_CONDITION])
    return {**doubt, "rule": {**doubt["rule"], NEAR_CONDITION: {**default, **limits}}}


def join_doubt(doubts: Sequence[Mapping[str, Any]], regression: Mapping[str, Any]) -> dict[str, Any]:
    """What the bundle of an ensemble brings: the ranges of all its trainings, and a regression.

    Args:
        doubts: Of the bundles of its members, at least one.
        regression: From `fit_predicted_dice`; empty where too few scans were out of fold.
    """
    shapes = [doubt["slice_shape"] for doubt in doubts]
    is_same_grid = all(shape == shapes[0] for shape in shapes)
    limits = {label: numbers["review_below"] for label, numbers in regression.items() if numbers["review_below"]}
    return {
        "volume_range_ml": _join_ranges([doubt["volume_range_ml"] for doubt in doubts]),
        "volume_range_voxels": _join_ranges([doubt["volume_range_voxels"] for doubt in doubts])
        if is_same_grid
        else None,
        "slice_shape": shapes[0] if is_same_grid else None,
        "volume_scans": max(doubt["volume_scans"] for doubt in doubts),
        "regression": dict(regression) or None,
        "rule": {
            **({"predicted_dice_below": limits} if limits else {}),
            **doubts[0]["rule"],
            NEAR_CONDITION: _join_limits([doubt["rule"].get(NEAR_CONDITION) for doubt in doubts]),
        },
    }


def count_review(metrics: pa.Table) -> dict[str, int]:
    """Scans of which a label needs review, and those of which none does as far as is known, but not of all.

    Args:
        metrics: Rows with scan_id and needs_review.
    """
    asked = metrics.filter(pc.fill_null(metrics["needs_review"], False))["scan_id"]
    unknown = metrics.filter(pc.is_null(metrics["needs_review"]))["scan_id"]
    rest = unknown.filter(pc.invert(pc.is_in(unknown, value_set=asked.combine_chunks())))
    return {
        "scans_to_review": int(pc.count_distinct(asked).as_py()),
        "scans_review_unknown": int(pc.count_distinct(rest).as_py()),
    }


def _find_ranges(labels: Labels, volumes: Sequence[Sequence[float]]) -> dict[str, list[float]]:
    columns = zip(*volumes, strict=True)
    return {name: [min(column), max(column)] for name, column in zip(labels.names, columns, strict=True)}


def _join_limits(limits: Sequence[Any]) -> Any:
    """The mean of what the trainings found for each label; the default where one had too few scans for any."""
    if not all(isinstance(limit, Mapping) for limit in limits):
        return DEFAULT_RULE[NEAR_CONDITION]
    return {label: float(np.mean([limit[label] for limit in limits])) for label in limits[0]}


def _join_ranges(ranges: Sequence[Mapping[str, Sequence[float]] | None]) -> dict[str, list[float]] | None:
    """From the smallest to the largest of all; None where one training has none."""
    known = [item for item in ranges if item is not None]
    if len(known) < len(ranges):
        return None
    return {name: [min(item[name][0] for item in known), max(item[name][1] for item in known)] for name in known[0]}
