"""Scans that a cohort means: globs, patients, and conditions on columns of the manifest."""

from __future__ import annotations

import datetime
import operator
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raysegment.archive.manifest import read_manifest
from raysegment.archive.selection import parse_condition, select_scans
from raysegment.errors import UsageError

TABLE = pa.table(
    {
        "scan_id": ["a/1", "a/2", "b/1", "c.tif"],
        "patient_id": ["p", "p", "q", "r"],
        "scanner": ["Avanto", None, "Prisma", "Avanto"],
        "slices": pa.array([20, 30, 40, None], pa.int32()),
        "dose": [0.5, 1.0, 1.5, float("nan")],
        "is_contrast": [True, False, None, True],
        "files": [["a.tif"], [], ["b.tif"], ["c.tif"]],
        "day": pa.array([datetime.date(2026, 1, day) for day in (1, 2, 3, 4)], pa.date32()),
    }
)


def chosen(*conditions: list, **how: object) -> list[str]:
    where = [parse_condition(item, "where") for item in conditions]
    return select_scans(TABLE, where=where, **how)["scan_id"].to_pylist()


@pytest.mark.parametrize(
    ("condition", "expected"),
    [
        (["scanner", "=", "Avanto"], ["a/1", "c.tif"]),
        (["scanner", "!=", "Avanto"], ["b/1"]),
        (["scanner", "in", ["Avanto", "Prisma"]], ["a/1", "b/1", "c.tif"]),
        (["scanner", "not in", ["Avanto"]], ["b/1"]),
        (["slices", ">=", 30], ["a/2", "b/1"]),
        (["slices", "<", 30.5], ["a/1", "a/2"]),
        (["slices", "in", [20, 40]], ["a/1", "b/1"]),
        (["dose", ">", 1], ["b/1"]),
        (["is_contrast", "=", True], ["a/1", "c.tif"]),
        (["day", ">=", "2026-01-03"], ["b/1", "c.tif"]),
    ],
)
def test_a_condition_chooses_rows_and_none_without_a_value(condition, expected):
    assert chosen(condition) == expected


def test_all_conditions_must_be_met_with_globs_and_patients():
    assert chosen(["slices", ">", 10], globs=("a/*", "b/*"), patients=("p", "r")) == ["a/1", "a/2"]
    assert chosen(["slices", ">", 20], ["scanner", "=", "Prisma"]) == ["b/1"]
    assert chosen(globs=("[bc]*",)) == ["b/1", "c.tif"]


@pytest.mark.parametrize(
    ("item", "said"),
    [
        ("scanner = Avanto", "expected \\[column, operator, value\\]"),
        (["scanner", "Avanto"], "expected \\[column"),
        (["scanner", "like", "A%"], "'like' is no operator; expected one of =, !=, <"),
        (["scanner", "in", "Avanto"], "expected a list of values"),
        (["scanner", "=", ["Avanto"]], "expected one value"),
        (["scanner", "in", []], "not empty"),
        (["scanner", "=", None], "None is no value"),
        (["scanner", "in", [{"a": 1}]], "is no value"),
    ],
)
def test_what_is_no_condition_is_refused(item, said):
    with pytest.raises(UsageError, match=said):
        parse_condition(item, "cohort.yaml, line 3: where")


@pytest.mark.parametrize(
    ("condition", "said"),
    [
        (["scaner", "=", "Avanto"], "no column 'scaner'; it has day, dose, files"),
        (["slices", "=", "20"], "holds int32, which cannot be compared with '20'"),
        (["scanner", "=", 3], "holds string"),
        (["is_contrast", "=", 1], "holds bool"),
        (["slices", "=", True], "holds int32"),
        (["files", "=", "a.tif"], "holds list.*, which cannot be compared"),
        (["day", "<", "soon"], "holds date32"),
    ],
)
def test_a_column_that_cannot_be_compared_is_refused(condition, said):
    with pytest.raises(UsageError, match=said):
        chosen(condition)


@given(st.text(max_size=20))
def test_text_is_never_evaluated(text):
    assert chosen(["scanner", "=", text]) == (["a/1", "c.tif"] if text == "Avanto" else ["b/1"] * (text == "Prisma"))


INTEGERS = [pa.int8(), pa.uint8(), pa.int16(), pa.uint16(), pa.int32(), pa.uint32(), pa.int64(), pa.uint64()]
FLOATS = {pa.float16(): np.float16, pa.float32(): np.float32, pa.float64(): np.float64}
PLAIN = {
    "=": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "in": lambda value, parts: any(value == part for part in parts),
    "not in": lambda value, parts: not any(value == part for part in parts),
}


def check_against_python(column: list, kind: pa.DataType, operation: str, given: object, plain: object) -> None:
    """What is chosen of a column is what Python's own operators choose; `plain` is the value as they take it."""
    table = pa.table({"scan_id": [str(number) for number in range(len(column))], "x": pa.array(column, kind)})
    condition = parse_condition(["x", operation, given], "where")
    expected = [
        str(number)
        for number, value in enumerate(column)
        if value is not None and value == value and PLAIN[operation](value, plain)
    ]
    assert select_scans(table, where=[condition])["scan_id"].to_pylist() == expected


def behind(operation: str, values: st.SearchStrategy) -> st.SearchStrategy:
    return st.lists(values, min_size=1, max_size=4) if operation in ("in", "not in") else values


def gaps(values: st.SearchStrategy) -> st.SearchStrategy:
    return st.lists(st.none() | values, max_size=6)


operations = st.sampled_from(list(PLAIN))
near = st.integers(-4, 4)


@settings(max_examples=120, deadline=None)
@given(st.data(), st.sampled_from(INTEGERS), operations)
def test_whole_numbers_are_compared_as_python_does(data: st.DataObject, kind: pa.DataType, operation: str):
    limits = np.iinfo(kind.to_pandas_dtype())
    inside = st.integers(int(limits.min), int(limits.max))
    edges = st.builds(operator.add, st.sampled_from([int(limits.min), int(limits.max), 0]), near)
    numbers = edges | st.builds(lambda whole: whole / 2, near) | st.sampled_from([1e300, float("inf"), -float("inf")])
    column = data.draw(gaps(inside | edges.filter(lambda value: limits.min <= value <= limits.max)))
    given = data.draw(behind(operation, numbers | inside))
    check_against_python(column, kind, operation, given, given)


@settings(max_examples=80, deadline=None)
@given(st.data(), st.sampled_from(list(FLOATS)), operations)
def test_fractions_are_compared_in_the_precision_of_the_column(data, kind: pa.DataType, operation: str):
    numbers = near | st.floats(-5, 5) | st.sampled_from([0.1, 1e39, float("inf"), 10**400, -(10**400)])
    given = data.draw(behind(operation, numbers))

    def rounded(value: float) -> float:
        if abs(value) >= 10**400:
            return float("inf") if value > 0 else -float("inf")
        with np.errstate(over="ignore"):
            return float(FLOATS[kind](value))

    drawn = data.draw(gaps(st.floats(-5, 5) | st.sampled_from([0.1, float("nan"), float("inf")])))
    column = [None if value is None else rounded(value) for value in drawn]
    plain = [rounded(part) for part in given] if isinstance(given, list) else rounded(given)
    stored = [None if value is None else FLOATS[kind](value) for value in column]
    table = pa.table({"scan_id": [str(number) for number in range(len(column))], "x": pa.array(stored, kind)})
    found = select_scans(table, where=[parse_condition(["x", operation, given], "where")])["scan_id"].to_pylist()
    assert found == [
        str(number)
        for number, value in enumerate(column)
        if value is not None and value == value and PLAIN[operation](value, plain)
    ]


@settings(max_examples=60, deadline=None)
@given(st.data(), st.sampled_from(["string", "large_string", "dictionary"]), operations)
def test_texts_are_compared_however_they_are_stored(data: st.DataObject, form: str, operation: str):
    kinds = {"string": pa.string(), "large_string": pa.large_string()}
    kind = kinds.get(form, pa.dictionary(pa.int32(), pa.large_string()))
    texts = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=2) | st.sampled_from("abZ\u00fc")
    given = data.draw(behind(operation, texts))
    check_against_python(data.draw(gaps(texts)), kind, operation, given, given)


@settings(max_examples=60, deadline=None)
@given(st.data(), st.sampled_from(["date32", "date64", "naive", "zone", "bool", "decimal"]), operations)
def test_dates_booleans_and_decimals_are_compared_as_python_does(data: st.DataObject, form: str, operation: str):
    days = st.dates(datetime.date(1969, 12, 30), datetime.date(1970, 1, 3))
    moments = st.builds(datetime.datetime.combine, days, st.sampled_from([datetime.time(), datetime.time(10, 30, 1)]))
    if form == "bool":
        given = data.draw(behind(operation, st.booleans()))
        check_against_python(data.draw(gaps(st.booleans())), pa.bool_(), operation, given, given)
        return
    if form == "decimal":
        given = data.draw(behind(operation, near | st.sampled_from([0.5, 1.25, -0.1])))
        plain = [Decimal(str(part)) for part in given] if isinstance(given, list) else Decimal(str(given))
        column = data.draw(gaps(st.sampled_from([Decimal("0.50"), Decimal("-0.10"), Decimal(2)])))
        check_against_python(column, pa.decimal128(9, 2), operation, given, plain)
        return
    values, kind = (days, pa.date32()) if form == "date32" else (days, pa.date64())
    if form in ("naive", "zone"):
        zone = datetime.UTC if form == "zone" else None
        values = moments.map(lambda moment: moment.replace(tzinfo=zone))
        kind = pa.timestamp("ns", "UTC" if zone else None)
    parts = data.draw(behind(operation, values))
    given = [part.isoformat() for part in parts] if isinstance(parts, list) else parts.isoformat()
    check_against_python(data.draw(gaps(values)), kind, operation, given, parts)


def test_texts_in_the_form_of_other_programs_are_chosen_from_too(tmp_path):
    names = pa.array(["Avanto", None, "Prisma"], pa.string_view())
    table = pa.table(
        {
            "scan_id": pa.array(["a", "b", "c"], pa.string_view()),
            "files": [["a.tif"], ["b.tif"], ["c.tif"]],
            "scanner": names,
        }
    )
    pq.write_table(table, tmp_path / "m.parquet")
    manifest = read_manifest(str(tmp_path / "m.parquet"))
    found = select_scans(manifest, where=[parse_condition(["scanner", "!=", "Avanto"], "where")])
    assert found["scan_id"].to_pylist() == ["c"]


def test_a_time_without_a_zone_is_utc_and_a_column_without_values_meets_nothing():
    noon = datetime.datetime(2026, 1, 3, 12, tzinfo=datetime.UTC)
    table = pa.table({"scan_id": ["a"], "at": pa.array([noon], pa.timestamp("us", "Europe/Berlin")), "no": pa.nulls(1)})

    def count(*item: object) -> int:
        return select_scans(table, where=[parse_condition(list(item), "where")]).num_rows

    assert (count("at", "=", "2026-01-03T12:00:00"), count("at", "=", "2026-01-03T13:00:00+01:00")) == (1, 1)
    assert (count("at", ">", "2026-01-03"), count("at", ">=", "2026-01-04")) == (1, 0)
    assert (count("no", "=", 1), count("no", "not in", ["a"]), count("no", "!=", "a")) == (0, 0, 0)
    with pytest.raises(UsageError, match="have no zone"):
        chosen(["day", "=", "2026-01-03T12:00:00Z"])
