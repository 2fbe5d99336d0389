"""The rule behind `needs_review`: conditions on columns of `metrics`, such as `mirror_dice_below: 0.9`.

A condition is a column and what its last word says of the limit; the limit is a number, or true or false, for all
labels, or one for each that is named. A mask needs review as soon as one condition holds; those whose number is unknown
are passed over.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from raysegment.errors import UsageError
from raysegment.store.schema import METRICS_SCHEMA

RELATIONS: dict[str, Callable[[Any, Any], Any]] = {"below": operator.lt, "above": operator.gt, "is": operator.eq}
"""What the last word of a condition means, between a row's number and the limit."""

NUMBERS = tuple(
    field.name for field in METRICS_SCHEMA if pa.types.is_integer(field.type) or pa.types.is_floating(field.type)
)
ANSWERS = tuple(
    field.name for field in METRICS_SCHEMA if pa.types.is_boolean(field.type) and field.name != "needs_review"
)
EXAMPLE = "such as `mirror_dice_below: 0.85` or `volume_in_training_range_is: false`"


def split_condition(condition: str) -> tuple[str, str] | None:
    """Column and relation of a condition; None where it is none that this version knows."""
    column, _, relation = condition.rpartition("_")
    return (column, relation) if relation in RELATIONS and column in (*NUMBERS, *ANSWERS) else None


def check_limit(condition: str, limit: Any, where: str) -> None:
    """Refuse what cannot be laid over a rule: a condition on what no row has, or a limit of another kind.

    Args:
        condition: As it stands in a cohort file.
        limit: A number, true or false; or a mapping of labels to such; null takes the condition away.
        where: Its place, for messages.

    Raises:
        UsageError: Says what is wrong, and what is allowed.
    """
    known = split_condition(condition)
    if known is None or (known[0] in ANSWERS) != (known[1] == "is"):
        raise UsageError(
            f"{where}: {condition[:80]!r} is no condition; expected {EXAMPLE}: _below or _above behind one of "
            f"{', '.join(NUMBERS)}, or _is behind one of {', '.join(ANSWERS)}."
        )
    for item in limit.values() if isinstance(limit, dict) and limit else [limit]:
        is_answer, is_number = isinstance(item, bool), isinstance(item, int | float) and not isinstance(item, bool)
        if item is None or (is_answer if known[1] == "is" else is_number and math.isfinite(item)):
            continue
        expected = "true or false" if known[1] == "is" else "a finite number"
        raise UsageError(
            f"{where}: {condition} is {repr(item)[:80]}; expected {expected}, a mapping of labels to such, or null for "
            "no limit."
        )


def override_rule(rule: Mapping[str, Any], overrides: Mapping[str, Any], labels: tuple[str, ...]) -> dict[str, Any]:
    """A rule with other limits; labels that a limit does not name keep theirs.

    Args:
        rule: Of the bundle.
        overrides: Limits that `check_limit` knows; null takes a condition away.
        labels: Names of the model's labels.

    Raises:
        UsageError: A limit names none of them.
    """
    found = dict(rule)
    for condition, limit in overrides.items():
        if isinstance(limit, Mapping):
            if unknown := [name for name in limit if name not in labels]:
                raise UsageError(
                    f"review: {condition} names the label {unknown[0]!r}; the model has {', '.join(labels)}."
                )
            before = found.get(condition)
            known = before if isinstance(before, Mapping) else dict.fromkeys(labels, before)
            limit = {name: value for name, value in {**known, **limit}.items() if value is not None} or None
        found[condition] = limit
    return {condition: limit for condition, limit in found.items() if limit is not None}


def needs_review(row: Mapping[str, Any], rule: Mapping[str, Any]) -> bool | None:
    """Whether a person should look at a mask: as soon as one of the rule's conditions holds.

    A condition whose number is unknown is passed over.

    Args:
        row: Of metrics.
        rule: Of the bundle.

    Returns:
        None where no condition's number is known; that is not to say that the mask is fine.
    """
    found = [_holds(row, condition, limit) for condition, limit in rule.items()]
    known = [item for item in found if item is not None]
    return any(known) if known else None


def list_columns(rule: Mapping[str, Any]) -> list[str]:
    """Columns of metrics that `judge_rows` needs."""
    return list(dict.fromkeys(["label", *(condition.rpartition("_")[0] for condition in rule)]))


def judge_rows(metrics: pa.Table, rule: Mapping[str, Any]) -> pa.Array:
    """What `needs_review` says of each row, for many rows at once.

    Args:
        metrics: With the columns that `list_columns` names.
        rule: Of conditions that `split_condition` knows.
    """
    asked = np.zeros(metrics.num_rows, np.bool_)
    known = np.zeros(metrics.num_rows, np.bool_)
    for condition, limit in rule.items():
        column, _, relation = condition.rpartition("_")
        values = _as_floats(metrics[column])
        limits = _limits_of(metrics["label"], limit)
        is_known = ~np.isnan(values) & ~np.isnan(limits)
        known |= is_known
        asked |= is_known & RELATIONS[relation](values, limits)
    return pa.array(asked, pa.bool_(), mask=~known)


def _holds(row: Mapping[str, Any], condition: str, limit: Any) -> bool | None:
    column, _, relation = condition.rpartition("_")
    limit = limit.get(row["label"]) if isinstance(limit, Mapping) else limit
    value = row.get(column)
    if value is None or limit is None or (isinstance(value, float) and math.isnan(value)):
        return None
    return bool(RELATIONS[relation](value, limit))


def _as_floats(column: pa.ChunkedArray) -> npt.NDArray[np.float64]:
    """Numbers and answers, NaN where there is none."""
    return np.asarray(column.cast(pa.float64()).to_numpy(zero_copy_only=False), np.float64)


def _limits_of(labels: pa.ChunkedArray, limit: Any) -> npt.NDArray[np.float64]:
    if not isinstance(limit, Mapping):
        return np.full(len(labels), math.nan if limit is None else float(limit))
    encoded = labels.combine_chunks().dictionary_encode()
    names = encoded.dictionary.to_pylist()
    by_code = np.array([math.nan if limit.get(name) is None else float(limit[name]) for name in names] or [math.nan])
    return by_code[encoded.indices.to_numpy(zero_copy_only=False).astype(np.int64)]
