"""Which scans of an archive are meant: by globs over scan_ids, by patients, and by columns of the manifest."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Literal, get_args

import pyarrow as pa
import pyarrow.compute as pc

from raysegment.archive.names import show_name
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
        raise UsageError(f"{where} is {item!r}; expected [column, operator, value], such as [scanner, =, Avanto].")
    column, operator, value = item
    if operator not in get_args(Operator):
        raise UsageError(f"{where}: {operator!r} is no operator; expected one of {', '.join(get_args(Operator))}.")
    is_list = isinstance(value, list)
    if is_list != (operator in ("in", "not in")) or (is_list and not value):
        expected = "a list of values" if not is_list else "one value, or a list that is not empty behind `in`"
        raise UsageError(f"{where}: {operator} is given {value!r}; expected {expected}.")
    for part in value if is_list else [value]:
        if not isinstance(part, str | int | float):
            raise UsageError(f"{where}: {part!r} is no value; expected text, a number, true or false.")
    return Condition(column, operator, tuple(value) if is_list else value)


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
        names = chosen["scan_id"].to_pylist()
        chosen = chosen.filter(pa.array([any(fnmatchcase(name, glob) for glob in globs) for name in names], pa.bool_()))
    if patients:
        chosen = chosen.filter(pc.is_in(chosen["patient_id"], value_set=pa.array(patients, pa.string())))
    for condition in where:
        chosen = chosen.filter(pc.fill_null(_meet(chosen, condition), False))
    return chosen


def _meet(manifest: pa.Table, condition: Condition) -> Any:
    column = condition.column
    if column not in manifest.column_names:
        known = ", ".join(sorted(manifest.column_names))
        raise UsageError(f"where: the manifest has no column {show_name(column)!r}; it has {known}.")
    values = manifest[column]
    if isinstance(values.type, pa.DictionaryType):
        values = values.cast(values.type.value_type)
    try:
        if isinstance(condition.value, tuple):
            found = pc.is_in(values, value_set=pa.array([_convert(part, values.type) for part in condition.value]))
            is_valid = pc.is_valid(values)
            return pc.and_(is_valid, found if condition.operator == "in" else pc.invert(found))
        return COMPARISONS[condition.operator](values, _convert(condition.value, values.type))
    except (pa.ArrowException, TypeError, ValueError) as error:
        raise UsageError(
            f"where: column {show_name(column)!r} holds {values.type}, which cannot be compared with "
            f"{condition.value!r}: {' '.join(str(error).split())[:150]}"
        ) from None


def _convert(value: Value, kind: pa.DataType) -> pa.Scalar:
    """A value in the column's type; numbers are never made of text or text of numbers."""
    if pa.types.is_string(kind) != isinstance(value, str) or pa.types.is_boolean(kind) != isinstance(value, bool):
        if pa.types.is_temporal(kind) and isinstance(value, str):
            return pa.scalar(value).cast(kind)
        raise TypeError("the types differ")
    if isinstance(value, float) and pa.types.is_integer(kind):
        return pa.scalar(value, pa.float64())
    return pa.scalar(value, kind)
