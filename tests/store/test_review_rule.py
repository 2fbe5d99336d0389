"""The rule behind `needs_review`: row by row and column by column alike, and limits laid over it."""

from __future__ import annotations

import math
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raysegment.errors import UsageError
from raysegment.pipeline.doubt import DEFAULT_RULE, check_rule, judge_doubt, lay_over
from raysegment.runs.cohort_file import read_cohort
from raysegment.scan import Labels
from raysegment.store.review_rule import (
    ANSWERS,
    NUMBERS,
    check_limit,
    judge_rows,
    list_columns,
    needs_review,
    override_rule,
)
from raysegment.store.schema import METRICS_SCHEMA

LABELS = ("core", "whole")
FLOATS = ("share_near_threshold", "mirror_dice", "volume_ml")
numbers = st.one_of(st.none(), st.just(math.nan), st.sampled_from([0.0, 0.125, 0.5, 0.9]))
rows = st.fixed_dictionaries(
    {"label": st.sampled_from(LABELS), "voxels": st.one_of(st.none(), st.integers(0, 3))}
    | {name: numbers for name in FLOATS}
    | {"volume_in_training_range": st.one_of(st.none(), st.booleans())}
)
limits = st.sampled_from([0.0, 0.125, 0.5, 0.9, 2])
conditions = st.sampled_from([f"{name}_{side}" for name in (*FLOATS, "voxels") for side in ("below", "above")])
rules = st.dictionaries(
    conditions, st.one_of(limits, st.dictionaries(st.sampled_from([*LABELS, "gone"]), limits, min_size=1)), max_size=4
)


@given(st.lists(rows, max_size=12), rules, st.one_of(st.none(), st.booleans()))
@settings(max_examples=200, deadline=None)
def test_many_rows_are_judged_as_each_alone(found: list[dict], rule: dict, is_wanted: bool | None) -> None:
    if is_wanted is not None:
        rule = rule | {"volume_in_training_range_is": is_wanted}
    schema = pa.schema([METRICS_SCHEMA.field(name) for name in list_columns(rule)])
    table = pa.Table.from_pylist([{name: row[name] for name in schema.names} for row in found], schema=schema)
    assert judge_rows(table, rule).to_pylist() == [needs_review(row, rule) for row in found]


def test_every_number_and_answer_of_the_metrics_may_stand_in_a_rule() -> None:
    for name in (*NUMBERS, *ANSWERS):
        rule = {f"{name}_is": True} if name in ANSWERS else {f"{name}_above": 1}
        check_limit(*next(iter(rule.items())), "x")
        value = True if name in ANSWERS else 2
        table = pa.Table.from_pylist([{"label": "a", name: value}], schema=METRICS_SCHEMA)
        assert judge_rows(table, rule).to_pylist() == [True] == [needs_review({"label": "a", name: value}, rule)]
    assert {"dice", "volume_ml", "predicted_dice"} <= set(NUMBERS)
    assert ANSWERS == ("mask_is_empty", "reference_is_empty", "volume_in_training_range")


@pytest.mark.parametrize(
    ("before", "over", "after"),
    [
        ({"a_below": 1, "b_above": 2}, {"a_below": 3}, {"a_below": 3, "b_above": 2}),
        ({"a_below": 1}, {"a_below": None}, {}),
        ({"a_below": 1}, {"b_is": False}, {"a_below": 1, "b_is": False}),
        ({"a_below": 1}, {"a_below": {"core": 2}}, {"a_below": {"core": 2, "whole": 1}}),
        ({"a_below": {"core": 5, "whole": 6}}, {"a_below": {"core": None}}, {"a_below": {"whole": 6}}),
        ({"a_below": {"core": 5, "whole": 6}}, {"a_below": 1}, {"a_below": 1}),
        ({}, {"a_below": {"core": 5}}, {"a_below": {"core": 5}}),
        ({"a_below": {"core": 5}}, {"a_below": {"core": None}}, {}),
    ],
)
def test_limits_are_laid_over_those_of_the_bundle(before: dict, over: dict, after: dict) -> None:
    assert override_rule(before, over, LABELS) == after


def test_a_label_that_the_model_does_not_have_is_refused() -> None:
    with pytest.raises(UsageError, match="mirror_dice_below names the label 'edema'; the model has core, whole"):
        override_rule({}, {"mirror_dice_below": {"edema": 0.5}}, LABELS)


def test_a_bundle_without_a_rule_has_the_default_one_under_the_limits() -> None:
    labels = Labels()
    laid = lay_over(None, {"mirror_dice_below": 0.5}, labels)
    assert laid["rule"] == {**DEFAULT_RULE, "mirror_dice_below": 0.5}
    check_rule(laid)
    row = {"label": "lesion", "voxels": 1, "volume_ml": math.nan, "mirror_dice": 0.8}
    assert judge_doubt(row, None, (8, 8))["needs_review"] is True
    assert judge_doubt(row, laid, (8, 8))["needs_review"] is False
    none = lay_over(laid, dict.fromkeys(laid["rule"]), labels)
    assert none["rule"] == {}
    assert judge_doubt(row, none, (8, 8))["needs_review"] is None


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("review: strict", "line 5: review is 'strict'; expected conditions and limits"),
        ("review: {}", r"line 5: review is \{\}; expected conditions"),
        ("review:\n  mirror_dice: 0.9", "line 6: review: 'mirror_dice' is no condition; expected .*_below or _above"),
        ("review: {mirrordice_below: 0.9}", "'mirrordice_below' is no condition; .* one of voxels, volume_ml"),
        ("review: {needs_review_is: true}", "is no condition"),
        ("review: {volume_in_training_range_below: 1}", "is no condition"),
        ("review: {mirror_dice_is: 1}", "is no condition"),
        ("review: {mirror_dice_below: high}", "mirror_dice_below is 'high'; expected a finite number"),
        ("review: {mirror_dice_below: .nan}", "mirror_dice_below is nan; expected a finite number"),
        ("review: {mirror_dice_below: true}", "mirror_dice_below is True; expected a finite number"),
        ("review: {mirror_dice_below: {core: [1]}}", r"is \[1\]; expected a finite number"),
        ("review: {mirror_dice_below: {}}", r"is \{\}; expected a finite number"),
        ("review: {volume_in_training_range_is: 0}", "is 0; expected true or false, a mapping of labels"),
    ],
)
def test_a_wrong_limit_in_a_cohort_file_names_line_key_and_what_is_allowed(tmp_path: Path, line: str, said: str):
    (tmp_path / "cohort.yaml").write_text(f"name: a\nsource: b\nmodel: c\nout: d\n{line}\n")
    with pytest.raises(UsageError, match=said):
        read_cohort(str(tmp_path / "cohort.yaml"))


def test_limits_in_a_cohort_file_are_read(tmp_path: Path) -> None:
    text = "name: a\nsource: b\nmodel: c\nout: d\nreview:\n  mirror_dice_below: 0.85\n  volume_ml_above: {core: 3}\n"
    (tmp_path / "cohort.yaml").write_text(text + "  member_dice_below: null\n")
    assert read_cohort(str(tmp_path / "cohort.yaml")).review == {
        "mirror_dice_below": 0.85,
        "volume_ml_above": {"core": 3},
        "member_dice_below": None,
    }
