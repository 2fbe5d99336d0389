"""Which features drifted, corrected over all; what is too few; what a summary says."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from raysegment.pipeline.drift import (
    Comparison,
    compare_pairs,
    correct_holm,
    correct_sides,
    describe_drift,
    find_drift,
    list_sides,
    measure_stability_index,
    summarise_drift,
)
from raysegment.pipeline.scan_features import Feature
from raysegment.store.schema import DRIFT_SCHEMA

BRIGHT, SPACING, ROWS = (
    Feature("intensity", "intensity_q50_channel_0"),
    Feature("spacing", "spacing_between_slices_mm"),
    Feature("shape", "height"),
)
EMPTY = Feature("doubt", "border_entropy_lesion")


def compare(before: dict, new: dict, rate: float = 0.05, num_new: int = 40) -> tuple[dict, dict]:
    """Rows by feature, and the summary."""
    ascending = [
        {feature: np.sort(np.asarray(values, float)) for feature, values in side.items()} for side in (before, new)
    ]
    comparisons = [Comparison("past", ascending[0], ascending[1], num_new)]
    table = find_drift(comparisons, rate)
    assert table.schema == DRIFT_SCHEMA
    return {row["feature"]: row for row in table.to_pylist()}, summarise_drift(table, comparisons, rate)


def test_holm_is_what_one_gets_by_hand() -> None:
    found = correct_holm(np.array([0.01, 0.04, 0.03, 0.005]))
    assert found == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert correct_holm(np.array([0.9, 0.6])) == pytest.approx([1, 1])
    assert correct_holm(np.zeros(0)).size == 0


def test_a_shift_a_spread_and_another_spacing_are_found_and_nothing_else() -> None:
    rng = np.random.default_rng(4)
    wide = Feature("intensity", "intensity_q95_channel_0")
    before = {BRIGHT: rng.normal(100, 10, 300), wide: rng.normal(size=300), ROWS: rng.choice([256, 512], 300)}
    new = {BRIGHT: rng.normal(130, 10, 40), wide: rng.normal(0, 4, 40), ROWS: rng.choice([256, 512], 40)}
    rows, summary = compare(before | {SPACING: [5.0] * 300}, new | {SPACING: [5.0] * 20 + [3.0] * 20})
    assert [name for name, row in rows.items() if row["is_drift"]] == [BRIGHT.name, wide.name, SPACING.name]
    assert (rows["height"]["n_before"], rows["height"]["n_new"]) == (300, 40)
    assert rows[BRIGHT.name]["median_new"] == pytest.approx(130, abs=5)
    assert rows[BRIGHT.name]["stability_index"] > 1 > rows["height"]["stability_index"] >= 0
    assert (summary["is_drift"], summary["tested"]) == (True, 4)
    lines = describe_drift(summary, ["a note"], "drift/7")
    assert lines[0].startswith("warning: drift: the new scans differ from the cohort's past in 3 of 4 features: ")
    assert "(median 5 before, 3 now" in lines[0] or "(median 5 before, 4 now" in lines[0]
    assert lines[0].endswith("; table in drift/7")
    assert lines[1] == "drift: a note"


def test_a_feature_that_is_the_same_everywhere_does_not_cost_the_others_anything() -> None:
    rng = np.random.default_rng(5)
    varied = {BRIGHT: rng.normal(size=50)}, {BRIGHT: rng.normal(1, 1, 20)}
    alone, _ = compare(*varied)
    constant = {Feature("shape", f"side-{number}"): [256.0] * 50 for number in range(9)}
    beside, _ = compare(constant | varied[0], {name: values[:20] for name, values in constant.items()} | varied[1])
    assert beside[BRIGHT.name]["p_holm"] == alone[BRIGHT.name]["p_holm"] == alone[BRIGHT.name]["p"]
    assert {row["p_holm"] for name, row in beside.items() if name.startswith("side")} == {1.0}


def test_too_few_and_missing_numbers_are_not_tested_and_the_table_says_so() -> None:
    rows, summary = compare({BRIGHT: range(50), EMPTY: range(7)}, {BRIGHT: range(7), EMPTY: range(40)}, num_new=7)
    assert rows[BRIGHT.name]["why_not"] == "needs 8 new patients who have it, has 7"
    assert rows[EMPTY.name]["why_not"] == "needs 8 patients before who have it, has 7"
    assert {rows[BRIGHT.name][name] for name in ("p", "p_holm", "statistic", "is_drift")} == {None}
    assert rows[BRIGHT.name]["median_before"] == 24.5
    rows, _ = compare({BRIGHT: range(50)}, {})
    assert (rows[BRIGHT.name]["median_new"], rows[BRIGHT.name]["stability_index"]) == (None, None)
    assert (summary["is_drift"], summary["tested"]) == (False, 0)
    assert describe_drift(summary, [], "x") == [
        "drift against the cohort's past was not tested: it needs 8 new patients and has 7"
    ]
    assert compare({}, {})[0] == {}


def test_the_rate_decides() -> None:
    rng = np.random.default_rng(8)
    before, new = {BRIGHT: rng.normal(size=60)}, {BRIGHT: rng.normal(0.7, 1, 20)}
    p = compare(before, new)[0][BRIGHT.name]["p"]
    assert 0.0001 < p < 0.05
    assert not compare(before, new, rate=p / 2)[1]["is_drift"]
    assert compare(before, new, rate=p)[1]["is_drift"]


def test_the_stability_index_is_the_sum_that_one_gets_by_hand() -> None:
    before = np.repeat(np.arange(10.0), 10)
    assert measure_stability_index(before, before) == 0
    # Tenths of the set before are its ten numbers; the new ones all lie in the first.
    old, new = 10.5 / 105, (40.5 / 45, 0.5 / 45)
    expected = (new[0] - old) * math.log(new[0] / old) + 9 * (new[1] - old) * math.log(new[1] / old)
    assert measure_stability_index(before, np.zeros(40)) == pytest.approx(expected)
    assert math.isnan(measure_stability_index(before, np.zeros(0)))
    assert measure_stability_index(np.full(9, 5.0), np.full(9, 7.0)) > 1


@pytest.mark.parametrize("num_new", [30, 300])
def test_runs_without_drift_raise_an_alarm_as_rarely_as_said(num_new: int) -> None:
    """benchmarks/drift_rate.py does the same with 2,000 cohorts whose features are those of scans."""
    rng = np.random.default_rng(num_new)

    def make(count: int) -> dict[Feature, np.ndarray]:
        scanner = rng.integers(0, 2, count)
        found = {Feature("intensity", f"f{number}"): rng.normal(size=count) for number in range(5)}
        found |= {SPACING: np.where(scanner, 3.0, 5.0), BRIGHT: np.round(100 + 9 * scanner + rng.normal(size=count))}
        return {feature: np.sort(values) for feature, values in found.items()} | {ROWS: np.full(count, 256.0)}

    alarms, cohorts = 0, []
    for _ in range(400):
        training, past, new = make(80), make(301), make(num_new)
        cohorts.append([Comparison("training", training, new, num_new), Comparison("past", past, new, num_new)])
    sides = [list_sides(cohort) for cohort in cohorts]
    assert {side.why_not for of_cohort in sides for side in of_cohort} == {None}
    p_values = compare_pairs([(side.before, side.new) for of_cohort in sides for side in of_cohort]).p_value
    for cohort, of_cohort, own in zip(cohorts, sides, p_values.reshape(400, -1), strict=True):
        alarms += bool((correct_sides(of_cohort, own, cohort) <= 0.05).any())
    assert stats.binom.ppf(0.001, 400, 0.02) <= alarms <= stats.binom.ppf(0.999, 400, 0.05)
