"""The regression of Dice on doubt, against independent ones."""

from __future__ import annotations

import json
import math

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr

from raysegment.pipeline.predicted_dice import (
    MIN_SCANS,
    RIDGE,
    count_worst_met,
    fit_predicted_dice,
    predict_dice,
    rank_correlation,
)
from raysegment.store.schema import METRICS_SCHEMA


def make_rows(count: int, seed: int = 0, scans_of_a_patient: int = 1, **same) -> list[dict]:
    """Scans whose Dice falls with the entropy at their border."""
    random = np.random.default_rng(seed)
    rows = []
    for number in range(count):
        border, near = random.uniform(0.2, 0.9), random.uniform(0.02, 0.4)
        dice = float(np.clip(1.1 - 0.6 * border - 0.5 * near + random.normal(0, 0.03), 0, 1))
        rows.append(
            {
                "scan_id": f"s{number:03d}",
                "patient_id": f"p{number // scans_of_a_patient:03d}",
                "label": "lesion",
                "voxels": int(random.integers(100, 10_000)),
                "volume_ml": math.nan,
                "mean_probability": random.uniform(0.7, 0.99),
                "mask_is_empty": False,
                "border_entropy": border,
                "share_near_threshold": near,
                "dice": dice,
                **same,
            }
        )
    return rows


def table_of(rows: list[dict]) -> pa.Table:
    return pa.Table.from_pylist(rows, schema=METRICS_SCHEMA)


def solve_by_hand(rows: list[dict], names: list[str], row: dict) -> float:
    """Ridge regression as least squares over stacked equations, which is not how the module solves it."""

    def read(item: dict, name: str) -> float:
        return math.log10(item["voxels"]) if name == "log_voxels" else item[name]

    features = np.array([[read(item, name) for name in names] for item in rows])
    dice = np.array([item["dice"] for item in rows])
    mean, sd = features.mean(axis=0), features.std(axis=0)
    stacked = np.vstack([(features - mean) / sd, math.sqrt(RIDGE) * np.eye(len(names))])
    weight = np.linalg.lstsq(stacked, np.concatenate([dice - dice.mean(), np.zeros(len(names))]), rcond=None)[0]
    own = (np.array([read(row, name) for name in names]) - mean) / sd
    return float(np.clip(dice.mean() + own @ weight, 0, 1))


def test_predictions_and_their_judgement_are_those_of_an_independent_solution() -> None:
    rows = make_rows(36, scans_of_a_patient=2)
    numbers = fit_predicted_dice(table_of(rows))["lesion"]
    names = list(numbers["features"])
    assert names == ["border_entropy", "share_near_threshold", "mean_probability", "log_voxels"]
    assert predict_dice(numbers, rows[3]) == pytest.approx(solve_by_hand(rows, names, rows[3]))
    left_out = [
        solve_by_hand([item for item in rows if item["patient_id"] != row["patient_id"]], names, row) for row in rows
    ]
    dice = [row["dice"] for row in rows]
    assert numbers["rank_correlation"] == pytest.approx(spearmanr(left_out, dice).statistic)
    assert numbers["rank_correlation"] > 0.8
    assert numbers["mean_absolute_error"] == pytest.approx(np.mean(np.abs(np.subtract(left_out, dice))))
    assert numbers["mean_absolute_error"] < numbers["mean_absolute_error_of_the_mean"]
    worst, opened = set(np.argsort(dice)[:5].tolist()), set(np.argsort(left_out)[:10].tolist())
    assert numbers["worst_met"] == len(worst & opened)
    assert numbers["review_below"] == pytest.approx(np.quantile(left_out, 0.2))
    assert (numbers["scans"], numbers["patients"]) == (36, 18)
    assert json.loads(json.dumps(numbers, allow_nan=False)) == numbers


def test_nothing_is_fitted_to_few_scans_or_few_patients() -> None:
    assert fit_predicted_dice(table_of(make_rows(MIN_SCANS - 1))) == {}
    assert fit_predicted_dice(table_of(make_rows(60, scans_of_a_patient=10))) == {}
    assert fit_predicted_dice(table_of([])) == {}
    assert set(fit_predicted_dice(table_of(make_rows(MIN_SCANS)))) == {"lesion"}


def test_each_label_has_numbers_of_its_own_where_it_has_scans_enough() -> None:
    rows = make_rows(25) + make_rows(25, seed=1, label="other") + make_rows(5, seed=2, label="rare")
    fitted = fit_predicted_dice(table_of(rows))
    assert set(fitted) == {"lesion", "other"}
    assert fitted["lesion"] == fit_predicted_dice(table_of(rows[:25]))["lesion"]


def test_scans_without_dice_or_without_mask_do_not_count() -> None:
    rows = make_rows(30)
    unknown = make_rows(3, seed=7, dice=None) + make_rows(3, seed=8, dice=math.nan)
    empty = make_rows(3, seed=9, mask_is_empty=True, border_entropy=math.nan, dice=0.0)
    numbers = fit_predicted_dice(table_of(rows + unknown + empty))["lesion"]
    assert numbers == fit_predicted_dice(table_of(rows))["lesion"]
    assert predict_dice(numbers, empty[0]) is None


def test_passes_that_were_mirrored_are_used_and_missed_where_they_are_not() -> None:
    rows = make_rows(30)
    for number, row in enumerate(rows):
        row["mirror_dice"] = 0.8 + 0.005 * (number % 20)
        row["volume_ml"] = row["voxels"] / 100
    numbers = fit_predicted_dice(table_of(rows))["lesion"]
    assert list(numbers["features"])[-3:] == ["mirror_dice", "mean_probability", "log_volume_ml"]
    assert predict_dice(numbers, rows[0]) is not None
    assert predict_dice(numbers, {**rows[0], "mirror_dice": None}) is None
    assert predict_dice(numbers, {**rows[0], "volume_ml": math.nan}) is None


def test_a_feature_that_does_not_vary_says_nothing() -> None:
    rows = make_rows(30, mean_probability=0.9)
    numbers = fit_predicted_dice(table_of(rows))["lesion"]
    assert numbers["features"]["mean_probability"]["weight"] == 0
    assert predict_dice(numbers, {**rows[0], "mean_probability": 0.1}) == predict_dice(numbers, rows[0])
    constant = fit_predicted_dice(table_of(make_rows(30, dice=0.5)))["lesion"]
    assert constant["rank_correlation"] is None
    assert predict_dice(constant, rows[0]) == pytest.approx(0.5)


def test_predictions_that_are_no_better_than_the_mean_send_nobody_to_review() -> None:
    rows = make_rows(40)
    for row, dice in zip(rows, np.random.default_rng(5).uniform(0.85, 0.9, 40), strict=True):
        row["dice"] = float(dice)
    numbers = fit_predicted_dice(table_of(rows))["lesion"]
    assert numbers["mean_absolute_error"] >= numbers["mean_absolute_error_of_the_mean"]
    assert numbers["review_below"] is None


@given(st.floats(-100, 100), st.floats(0.001, 100))
@settings(max_examples=30, deadline=None)
def test_predictions_stay_between_none_and_all(border: float, scale: float) -> None:
    rows = make_rows(25)
    numbers = fit_predicted_dice(table_of(rows))["lesion"]
    predicted = predict_dice(numbers, {**rows[0], "border_entropy": border * scale})
    assert predicted is not None
    assert 0 <= predicted <= 1


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=3, max_size=30))
@settings(max_examples=60, deadline=None)
def test_the_rank_correlation_is_that_of_scipy(pairs: list[tuple[int, int]]) -> None:
    first, second = np.array(pairs, float).T
    found = rank_correlation(first, second)
    if np.ptp(first) == 0 or np.ptp(second) == 0:
        assert math.isnan(found)
    else:
        assert found == pytest.approx(spearmanr(first, second).statistic)


def test_the_worst_that_a_reviewer_meets_are_counted() -> None:
    dice = np.arange(20) / 20
    assert count_worst_met(dice, dice) == 5
    assert count_worst_met(dice, -dice) == 0
    predicted = np.where(np.arange(20) < 2, 1.0, dice)
    assert count_worst_met(dice, predicted) == 3
