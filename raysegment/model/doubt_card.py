"""The part of the model card that says which masks a person should look at."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

CONDITIONS = {
    "predicted_dice": "the Dice that its doubt predicts (`predicted_dice`)",
    "volume_in_training_range": "its volume within the range of the training references (`volume_in_training_range`)",
    "share_near_threshold": "the share of voxels near the threshold, of those near or above it "
    "(`share_near_threshold`)",
    "border_entropy": "the mean entropy at its border in bits (`border_entropy`)",
    "mirror_dice": "the Dice between the plain and the mirrored passes (`mirror_dice`)",
    "member_dice": "the Dice between the members (`member_dice`)",
}
"""What the rule's columns are."""

RULE = """A mask is marked `needs_review` as soon as one of these holds:

{conditions}

A condition whose number is not known is passed over (`mirror_dice` where passes are not mirrored, for example); where
no number is known `needs_review` is null, which does not say that the mask is fine. Nor does `false`: it says that none
of the known numbers speaks against the mask."""


def show_doubt(doubt: Mapping[str, Any]) -> str:
    """The rule, the ranges and the regression of a bundle in words.

    Args:
        doubt: What model.json holds as `doubt`.
    """
    conditions = "\n".join(
        f"- {_describe_condition(condition, limit)}"
        for condition, limit in doubt["rule"].items()
        if condition != "volume_in_training_range_is" or _find_ranges(doubt) is not None
    )
    parts = [RULE.format(conditions=conditions), _describe_ranges(doubt), _describe_regression(doubt["regression"])]
    return "\n\n".join(parts)


def _describe_condition(condition: str, limit: Any) -> str:
    column, _, relation = condition.rpartition("_")
    if isinstance(limit, Mapping):
        shown = ", ".join(f"{limit[label]:.4g} for {_plain(label)}" for label in limit)
    else:
        shown = ("yes" if limit else "no") if isinstance(limit, bool) else f"{limit:.4g}"
    return f"{CONDITIONS.get(column, f'`{column}`')}: {relation} {shown}"


def _find_ranges(doubt: Mapping[str, Any]) -> Mapping[str, Any] | None:
    return doubt["volume_range_ml"] or doubt["volume_range_voxels"]


def _describe_ranges(doubt: Mapping[str, Any]) -> str:
    ranges = _find_ranges(doubt)
    if ranges is None:
        return "The volumes of the training references tell no range: there are too few, or of unknown spacing."
    unit, where = "ml", ""
    if doubt["volume_range_ml"] is None:
        unit, where = "voxels", ", which is compared for scans of {} x {} pixels a slice".format(*doubt["slice_shape"])
    shown = ", ".join(f"{_plain(label)} {low:.4g} to {high:.4g} {unit}" for label, (low, high) in ranges.items())
    return f"Smallest and largest of {doubt['volume_scans']} training references: {shown}{where}."


def _describe_regression(regression: Mapping[str, Any] | None) -> str:
    if not regression:
        return "`predicted_dice` is null: it needs scans out of fold (`--folds`)."
    return "\n".join(f"- {_describe_prediction(label, numbers)}" for label, numbers in regression.items())


def _describe_prediction(label: str, numbers: Mapping[str, Any]) -> str:
    correlation = numbers["rank_correlation"]
    shown = "none" if correlation is None else f"{correlation:.2f}"
    return (
        f"`predicted_dice` of {_plain(label)}: a ridge regression on {', '.join(numbers['features'])} of "
        f"{numbers['scans']} scans of {numbers['patients']} patients out of fold. With each patient left out in turn "
        f"its rank correlation with the true Dice is {shown}, its mean absolute error "
        f"{numbers['mean_absolute_error']:.3f} ({numbers['mean_absolute_error_of_the_mean']:.3f} for always guessing "
        f"the mean), and of the worst {numbers['worst']} scans {numbers['worst_met']} are among the "
        f"{numbers['opened']} with the lowest prediction"
    )


def _plain(name: str) -> str:
    """On one line and without links of its own."""
    return " ".join(str(name).split()).replace("[", "\\[")
