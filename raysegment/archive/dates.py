"""When each scan was made, as a manifest's column or the scan's name says it: a day, without the time."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import date, datetime

import pyarrow as pa
import pyarrow.compute as pc

from raysegment.archive.names import show_name, show_value
from raysegment.errors import UsageError

PARTS = ("year", "month", "day")
EXPECTED_GROUPS = r"(?P<date>\d{8}), or (?P<year>\d{4}), (?P<month>\d\d) and (?P<day>\d\d)"
EXPECTED_DATE = "expected a date such as 2024-01-31 or 20240131, or a timestamp that begins with one"

_DATE = re.compile(r"(\d{4})(-?)(\d{2})\2(\d{2})([T ].+)?", re.ASCII)
_FIRST, _LAST = date.min, date.max


def parse_date(text: str) -> date:
    """A day in ISO 8601, with hyphens or without; of a timestamp the day as it is written, whatever its zone.

    Raises:
        ValueError: It is none.
    """
    match = _DATE.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is no date")
    if match[5]:
        datetime.fromisoformat(text.strip())
    return date(int(match[1]), int(match[3]), int(match[4]))


def compile_date_pattern(pattern: str | None) -> re.Pattern[str] | None:
    """What `--date-pattern` says.

    Raises:
        UsageError: It is no regular expression, or has no named groups that make a date.
    """
    if pattern is None:
        return None
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise UsageError(f"--date-pattern {pattern!r} is no regular expression: {error}.") from error
    if "date" not in compiled.groupindex and not compiled.groupindex.keys() >= set(PARTS):
        raise UsageError(f"--date-pattern {pattern!r} has no groups that make a date; expected {EXPECTED_GROUPS}.")
    return compiled


def match_dates(scan_ids: Sequence[str], pattern: re.Pattern[str]) -> list[date | None]:
    """The day that a pattern finds in each scan_id; None where it finds none, or one that no calendar has.

    Raises:
        UsageError: It finds none in any of them.
    """
    found = [find_date(scan_id, pattern) for scan_id in scan_ids]
    if scan_ids and not any(found):
        match = next(filter(None, map(pattern.search, scan_ids)), None)
        seen = f"{match[0]!r} in {show_name(match.string)} is none" if match else f"nothing in {show_name(scan_ids[0])}"
        raise UsageError(
            f"--date-pattern {pattern.pattern!r} finds no date in any scan_id: {seen}. Expected are {EXPECTED_GROUPS}."
        )
    return found


def find_date(scan_id: str, pattern: re.Pattern[str]) -> date | None:
    """The day that a pattern of `compile_date_pattern` finds in a scan_id."""
    match = pattern.search(scan_id)
    if match is None:
        return None
    groups = match.groupdict()
    try:
        if "date" in groups:
            return parse_date(groups["date"] or "")
        year, month, day = (groups[name] or "" for name in PARTS)
        # Of two digits nobody knows the century.
        return date(int(year), int(month), int(day)) if len(year) == 4 else None
    except (ValueError, OverflowError):
        return None


def count_days(patients: Sequence[str], dates: Sequence[date | None]) -> list[int | None]:
    """Days since the first scan of the same patient, of each scan; None where its day is not known.

    Args:
        patients: Of each scan.
        dates: Of each scan.
    """
    first: dict[str, date] = {}
    for patient, day in zip(patients, dates, strict=True):
        if day is not None:
            first[patient] = min(day, first.get(patient, day))
    pairs = zip(patients, dates, strict=True)
    return [None if day is None else (day - first[patient]).days for patient, day in pairs]


def read_dates(column: pa.ChunkedArray, scan_ids: pa.ChunkedArray) -> pa.ChunkedArray:
    """The column `scan_date` of a manifest as days, whatever it is written as; null where it is empty.

    Args:
        column: Dates, timestamps, texts, or whole numbers such as 20240131.
        scan_ids: Of the same rows, for messages.

    Raises:
        ValueError: Names the first row that holds no date.
    """
    if isinstance(column.type, pa.DictionaryType):
        column = column.cast(column.type.value_type)
    kind = column.type
    if pa.types.is_null(kind):
        return column.cast(pa.date32())
    if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
        return _check_years(_cut_time(column), scan_ids)
    if pa.types.is_integer(kind):
        column = column.cast(pa.string())
    elif not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        raise ValueError(f"scan_date holds {kind}; {EXPECTED_DATE}")
    distinct = pc.unique(column).to_pylist()
    days, wrong = [], set()
    for text in distinct:
        try:
            days.append(parse_date(text) if text and text.strip() else None)
        except ValueError:
            days.append(None)
            wrong.add(text)
    if wrong:
        position = next(place for place, text in enumerate(column.to_pylist()) if text in wrong)
        raise ValueError(_describe_row(position, scan_ids, show_value(column[position].as_py())))
    position = pc.index_in(column, value_set=pa.array(distinct, column.type))
    return pc.take(pa.chunked_array([pa.array(days, pa.date32())]), position)


def _cut_time(column: pa.ChunkedArray) -> pa.ChunkedArray:
    if not pa.types.is_timestamp(column.type):
        return column.cast(pa.date32())
    local = pc.local_timestamp(column) if column.type.tz else column
    return pc.floor_temporal(local, unit="day").cast(pa.date32())


def _check_years(column: pa.ChunkedArray, scan_ids: pa.ChunkedArray) -> pa.ChunkedArray:
    """Refuse days that Python has no date for."""
    bounds = (pa.scalar(day, pa.date32()) for day in (_FIRST, _LAST))
    first, last = bounds
    outside = pc.fill_null(pc.or_(pc.less(column, first), pc.greater(column, last)), False)
    if pc.any(outside).as_py():
        position = pc.index(outside, True).as_py()
        raise ValueError(_describe_row(position, scan_ids, "not in the years 1 to 9999"))
    return column


def _describe_row(position: int, scan_ids: pa.ChunkedArray, seen: str) -> str:
    scan_id = show_name(str(scan_ids[position].as_py()))
    return f"row {position + 1}, scan {scan_id}: scan_date is {seen}; {EXPECTED_DATE}"
