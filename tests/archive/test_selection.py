"""Scans that a cohort means: globs, patients, and conditions on columns of the manifest."""

from __future__ import annotations

import datetime

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

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
        (["scaner", "=", "Avanto"], "no column 'scaner'; it has day, dose"),
        (["slices", "=", "20"], "holds int32, which cannot be compared with '20'"),
        (["scanner", "=", 3], "holds string"),
        (["is_contrast", "=", 1], "holds bool"),
        (["day", "<", "soon"], "holds date32"),
    ],
)
def test_a_column_that_cannot_be_compared_is_refused(condition, said):
    with pytest.raises(UsageError, match=said):
        chosen(condition)


@given(st.text(max_size=20))
def test_text_is_never_evaluated(text):
    assert chosen(["scanner", "=", text]) == (["a/1", "c.tif"] if text == "Avanto" else ["b/1"] * (text == "Prisma"))
