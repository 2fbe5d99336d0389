"""Which scans of an archive are meant: by globs over scan_ids, by patients, and by columns of the manifest."""

from __future__ import annotations

import datetime
import fnmatch
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import reduce
from typing import Any, Literal, get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raysegment.archive.names import show_name, show_value
from raysegment.errors import UsageError

Operator = Literal["=", "!=", "<", "<=", ">", ">=", "in", "not in"]
Value = str | int | float | bool

COMPARISONS: Mapping[str, Callable[[Any, Any], Any]] = {
    "=": pc.equal,
    "!=": pc.not_equal,
    "<": pc.less,
    "<=": pc.less_equal,
    ">": pc.greater,
    ">=": pc.greater_equal,
}


@dataclass(frozen=True)
class Condition:
    """One condition on a column of the manifest; rows without a value in it never meet one.

    Attributes:
        column: Its name.
        operator: How its values are compared.
        value: With what; a tuple for `in` and `not in`.
    """

    column: str
    operator: Operator
    value: Value | tuple[Value, ...]


def parse_condition(item: Any, where: str) -> Condition:
    """A condition as a cohort file has it: `[column, operator, value]`.

    Args:
        item: What stands there.
        where: Its place, for messages.

    Raises:
        UsageError: Says what is wrong with it.
    """
    if not isinstance(item, list) or len(item) != 3 or not isinstance(item[0], str):
        raise UsageError(
            f"{where} is {show_value(item)}; expected [column, operator, value], such as [scanner, =, Avanto]."
        )
    column, operator, value = item
    if operator not in get_args(Operator):
        raise UsageError(
            f"{where}: {show_value(operator)} is no operator; expected one of {', '.join(get_args(Operator))}."
        )
    is_list = isinstance(value, list)
    if is_list != (operator in ("in", "not in")) or (is_list and not value):
        expected = "a list of values" if not is_list else "one value, or a list that is not empty behind `in`"
        raise UsageError(f"{where}: {operator} is given {show_value(value)}; expected {expected}.")
    parts = tuple(_read_value(part, where) for part in (value if is_list else [value]))
    return Condition(column, operator, parts if is_list else parts[0])


def _read_value(part: Any, where: str) -> Value:
    if isinstance(part, datetime.date):
        # YAML makes these of what looks like one.
        return part.isoformat()
    if not isinstance(part, str | int | float) or part != part:
        raise UsageError(f"{where}: {show_value(part)} is no value; expected text, a number, a date, true or false.")
    return part


def select_scans(
    manifest: pa.Table, *, globs: Sequence[str] = (), patients: Sequence[str] = (), where: Sequence[Condition] = ()
) -> pa.Table:
    """Rows of a manifest that meet every condition.

    Args:
        manifest: With one row per scan.
        globs: Shell patterns over the scan_id, of which one must match; all if empty.
        patients: patient_ids that are meant; all if empty.
        where: Conditions on columns.

    Raises:
        UsageError: A column that is not there, or a value that it cannot be compared with.
    """
    chosen = manifest
    if globs:
        fits = re.compile("|".join(map(fnmatch.translate, globs))).match
        names = chosen["scan_id"].to_pylist()
        chosen = chosen.filter(pa.array([fits(name) is not None for name in names], pa.bool_()))
    if patients:
        chosen = chosen.filter(pc.is_in(chosen["patient_id"], value_set=pa.array(patients, pa.string())))
    for condition in where:
        chosen = chosen.filter(_meet(chosen, condition))
    return chosen


def _meet(manifest: pa.Table, condition: Condition) -> Any:
    column = condition.column
    if column not in manifest.column_names:
        known = ", ".join(sorted(manifest.column_names))
        raise UsageError(f"where: the manifest has no column {show_name(column)!r}; it has {known}.")
    values = manifest[column]
    if isinstance(values.type, pa.DictionaryType):
        values = values.cast(values.type.value_type)
    kind = values.type
    try:
        compare = _choose_comparison(kind)
        if isinstance(condition.value, tuple):
            found = _is_among(values, condition.value, compare)
            is_met = found if condition.operator == "in" else pc.invert(found)
        else:
            is_met = compare(values, condition.operator, condition.value)
    except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
        raise UsageError(
            f"where: column {show_name(column)!r} holds {kind}, which cannot be compared with "
            f"{show_value(condition.value)}: {' '.join(str(error).split())[:150]}"
        ) from None
    # NaN is how other programs write that there is no number.
    is_known = (
        pc.is_valid(values) if not pa.types.is_floating(kind) else pc.invert(pc.is_null(values, nan_is_null=True))
    )
    return pc.and_(is_known, pc.fill_null(is_met, False))


def _is_among(values: Any, parts: tuple[Value, ...], compare: Callable[[Any, Operator, Value], Any]) -> Any:
    """Rows that are equal to one of some values; lists of patients may be long."""
    if compare is _compare_texts and all(isinstance(part, str) for part in parts):
        return pc.is_in(values.cast(pa.large_string()), value_set=pa.array(parts, pa.large_string()))
    return reduce(pc.or_, (compare(values, "=", part) for part in dict.fromkeys(parts)))


def _choose_comparison(kind: pa.DataType) -> Callable[[Any, Operator, Value], Any]:
    """How values of a column's type are compared with a value of a cohort file.

    Raises:
        TypeError: They never can be.
    """
    kinds = pa.types
    if kinds.is_null(kind):
        return lambda values, operator, value: pa.repeat(False, len(values))
    if kinds.is_string(kind) or kinds.is_large_string(kind):
        return _compare_texts
    if kinds.is_boolean(kind):
        return _compare_booleans
    if kinds.is_integer(kind):
        return _compare_integers
    if kinds.is_floating(kind) or kinds.is_decimal(kind):
        return _compare_numbers
    if kinds.is_date(kind) or kinds.is_timestamp(kind) or kinds.is_time(kind):
        return _compare_times
    raise TypeError("only text, numbers, true or false, and times can be compared")


def _compare_texts(values: Any, operator: Operator, value: Value) -> Any:
    if not isinstance(value, str):
        raise TypeError("the types differ; text goes into quotes, and further columns of a CSV manifest hold text")
    return COMPARISONS[operator](values.cast(pa.large_string()), pa.scalar(value, pa.large_string()))


def _compare_booleans(values: Any, operator: Operator, value: Value) -> Any:
    if not isinstance(value, bool):
        raise TypeError("expected true or false")
    return COMPARISONS[operator](values, pa.scalar(value))


def _compare_integers(values: Any, operator: Operator, value: Value) -> Any:
    """Whole numbers with any number, exactly: also with fractions, and with those beyond the column's range."""
    number = _number_of(value)
    lowest, highest = _range_of(values.type)
    if operator in ("=", "!="):
        fits = lowest <= number <= highest and number == int(number)
        equal = pc.equal(values, pa.scalar(int(number), values.type)) if fits else pc.is_null(values)
        return equal if operator == "=" else pc.invert(equal)
    # Below a bound, or not below it: `<= 3.5` is `< 4`, `> 3.5` is `>= 4`.
    is_floor = operator in ("<=", ">")
    bound = number if math.isinf(number) else math.floor(number) + 1 if is_floor else math.ceil(number)
    if bound > highest:
        below = pc.is_valid(values)
    elif bound <= lowest:
        below = pc.is_null(values)
    else:
        below = pc.less(values, pa.scalar(int(bound), values.type))
    return below if operator in ("<", "<=") else pc.invert(below)


def _compare_numbers(values: Any, operator: Operator, value: Value) -> Any:
    """Numbers with fractions; what they are compared with is rounded as the column's values were."""
    number = _number_of(value)
    if pa.types.is_decimal(values.type):
        return COMPARISONS[operator](values, pa.scalar(Decimal(str(number))))
    try:
        rounded = float(number)
    except OverflowError:
        rounded = math.inf if number > 0 else -math.inf
    if pa.types.is_float16(values.type):
        values, rounded = values.cast(pa.float32()), _round_to_half(rounded)
    return COMPARISONS[operator](values, pa.scalar(rounded, values.type))


def _round_to_half(number: float) -> float:
    with np.errstate(over="ignore"):
        return float(np.float16(number))


def _compare_times(values: Any, operator: Operator, value: Value) -> Any:
    """Dates and times with ISO 8601; without a zone in it a time is UTC where the column has zones."""
    if not isinstance(value, str):
        raise TypeError("expected a date or time, such as 2026-01-31 or 2026-01-31T22:15:00")
    kind = values.type
    if pa.types.is_time(kind):
        return COMPARISONS[operator](values, pa.scalar(datetime.time.fromisoformat(value), pa.time64("us")))
    moment = datetime.datetime.fromisoformat(value)
    if pa.types.is_timestamp(kind) and kind.tz is not None:
        moment = moment if moment.tzinfo else moment.replace(tzinfo=datetime.UTC)
        return COMPARISONS[operator](values, pa.scalar(moment, pa.timestamp("us", kind.tz)))
    if moment.tzinfo is not None:
        raise TypeError("the column's times have no zone")
    if pa.types.is_date(kind):
        values = values.cast(pa.timestamp("s"))
    return COMPARISONS[operator](values, pa.scalar(moment, pa.timestamp("us")))


def _number_of(value: Value) -> int | float:
    if isinstance(value, str | bool):
        raise TypeError("expected a number")
    return value


def _range_of(kind: pa.DataType) -> tuple[int, int]:
    limits = np.iinfo(kind.to_pandas_dtype())
    return int(limits.min), int(limits.max)
