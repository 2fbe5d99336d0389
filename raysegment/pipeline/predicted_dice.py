"""Dice as a scan's doubt predicts it: a ridge regression on scans that the network had not seen, as plain numbers.

After Hoerl and Kennard (1970), doi:10.1080/00401706.1970.10488634, on standardised features; small, because a training
has tens of patients. `mirror_dice` and the others are what the folds' networks gave, so a regression holds for masks
that were made with the same mirroring and smoothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

FEATURES = ("border_entropy", "share_near_threshold", "mirror_dice", "mean_probability", "log_volume_ml", "log_voxels")
"""Candidates; of the last two the second is only used where the first is unknown."""

RIDGE = 10.0
"""Weight of the penalty, in scans: features tell much the same, and there are few scans to tell them apart by."""

MIN_SCANS = 20
"""Scans with a Dice below which nothing is fitted."""

MIN_PATIENTS = 10
"""Patients below which nothing is fitted: leaving one out would judge too little."""

KNOWN_SHARE = 0.9
"""Share of scans that must have a feature for it to be used."""

REVIEW_SHARE = 0.2
"""Share of scans, those with the lowest predictions, that the fitted limit sends to review."""

NUM_WORST, NUM_OPENED = 5, 10
"""How many of the worst scans a reviewer meets who opens those with the lowest predictions."""

Numbers = npt.NDArray[np.float64]


def fit_predicted_dice(metrics: pa.Table) -> dict[str, Any]:
    """Fit the Dice of each label by its doubt, and judge the fit by leaving one patient out after another.

    Scans without mask are left out, and have no prediction: nothing is measured at their border.

    Args:
        metrics: Rows of scans that the network that segmented them was not trained on; those without dice are left
            out.

    Returns:
        For each label with `MIN_SCANS` of `MIN_PATIENTS`: `features` ({name: {mean, sd, weight}}), `mean_dice`,
        `scans`, `patients`; of the judgement `rank_correlation` (Spearman), `mean_absolute_error`,
        `mean_absolute_error_of_the_mean` (of predicting each other patients' mean), `worst`, `opened`, `worst_met`;
        and `review_below`, the limit that `REVIEW_SHARE` of these predictions lie below, where they are nearer to the
        truth than the mean is. None for what cannot be told.
    """
    fitted = {}
    usable = pc.and_(pc.is_finite(metrics["dice"]), pc.invert(metrics["mask_is_empty"]))
    rows = metrics.filter(pc.fill_null(usable, False))
    for label in rows["label"].unique().to_pylist():
        numbers = _fit_label(rows.filter(pc.equal(rows["label"], label)).to_pylist())
        if numbers is not None:
            fitted[label] = numbers
    return fitted


def predict_dice(numbers: Mapping[str, Any], row: Mapping[str, Any]) -> float | None:
    """The Dice that a row's doubt lets expect, from 0 to 1.

    Args:
        numbers: Of the row's label, from `fit_predicted_dice`.
        row: Of metrics.

    Returns:
        None where a feature is unknown, and for empty masks.
    """
    if row["mask_is_empty"]:
        return None
    predicted = float(numbers["mean_dice"])
    for name, feature in numbers["features"].items():
        predicted += feature["weight"] * (_read_feature(row, name) - feature["mean"]) / feature["sd"]
    return None if math.isnan(predicted) else min(1.0, max(0.0, predicted))


def rank_correlation(first: Numbers, second: Numbers) -> float:
    """Spearman's rank correlation, ties ranked by their mean; NaN where one of them does not vary."""
    if len(first) < 2 or np.ptp(first) == 0 or np.ptp(second) == 0:
        return math.nan
    return float(np.corrcoef(_rank(first), _rank(second))[0, 1])


def count_worst_met(dice: Numbers, predicted: Numbers) -> int:
    """How many of the `NUM_WORST` scans with the lowest Dice are among the `NUM_OPENED` with the lowest prediction."""
    worst, opened = np.argsort(dice, kind="stable")[:NUM_WORST], np.argsort(predicted, kind="stable")[:NUM_OPENED]
    return len(np.intersect1d(worst, opened))


def _fit_label(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    values = np.array([[_read_feature(row, name) for name in FEATURES] for row in rows]).reshape(-1, len(FEATURES))
    used = np.isfinite(values).mean(axis=0) >= KNOWN_SHARE if len(values) else np.zeros(len(FEATURES), bool)
    used[FEATURES.index("log_voxels")] &= not used[FEATURES.index("log_volume_ml")]
    whole = np.isfinite(values[:, used]).all(axis=1)
    features, dice = values[whole][:, used], np.array([row["dice"] for row in rows])[whole]
    patients = np.array([row["patient_id"] for row in rows])[whole]
    num_patients = len(np.unique(patients))
    if not used.any() or len(dice) < MIN_SCANS or num_patients < MIN_PATIENTS:
        return None
    predicted, means = _leave_patients_out(features, dice, patients)
    mean_dice, mean, sd, weight = _solve(features, dice)
    names = [name for name, is_used in zip(FEATURES, used.tolist(), strict=True) if is_used]
    return {
        "features": {
            name: {"mean": float(mean[index]), "sd": float(sd[index]), "weight": float(weight[index])}
            for index, name in enumerate(names)
        },
        "mean_dice": mean_dice,
        "scans": len(dice),
        "patients": num_patients,
        **_judge(dice, predicted, means),
    }


def _judge(dice: Numbers, predicted: Numbers, means: Numbers) -> dict[str, Any]:
    correlation = rank_correlation(dice, predicted)
    error, error_of_the_mean = (float(np.abs(dice - guess).mean()) for guess in (predicted, means))
    return {
        "rank_correlation": None if math.isnan(correlation) else correlation,
        "mean_absolute_error": error,
        "mean_absolute_error_of_the_mean": error_of_the_mean,
        "review_below": float(np.quantile(predicted, REVIEW_SHARE)) if error < error_of_the_mean else None,
        "worst": NUM_WORST,
        "opened": NUM_OPENED,
        "worst_met": count_worst_met(dice, predicted),
    }


def _leave_patients_out(features: Numbers, dice: Numbers, patients: npt.NDArray[np.str_]) -> tuple[Numbers, Numbers]:
    """For each scan the prediction, and the mean Dice, by the scans of all other patients."""
    predicted, means = np.empty(len(dice)), np.empty(len(dice))
    for patient in np.unique(patients):
        own = patients == patient
        mean_dice, mean, sd, weight = _solve(features[~own], dice[~own])
        predicted[own] = np.clip(mean_dice + (features[own] - mean) / sd @ weight, 0, 1)
        means[own] = mean_dice
    return predicted, means


def _solve(features: Numbers, dice: Numbers) -> tuple[float, Numbers, Numbers, Numbers]:
    """Mean Dice; mean, standard deviation and weight of each feature, (features,)."""
    mean, spread = features.mean(axis=0), features.std(axis=0)
    # A feature that does not vary says nothing.
    varies = spread > 1e-12 * np.maximum(1, np.abs(mean))
    sd = np.where(varies, spread, 1).astype(np.float64, copy=False)
    scaled, mean_dice = np.where(varies, (features - mean) / sd, 0), float(dice.mean())
    gram = scaled.T @ scaled + RIDGE * np.eye(features.shape[1])
    weight = np.asarray(np.linalg.solve(gram, scaled.T @ (dice - mean_dice)), np.float64)
    return mean_dice, mean, sd, weight


def _read_feature(row: Mapping[str, Any], name: str) -> float:
    """NaN where it is unknown."""
    if name.startswith("log_"):
        value = row[name.removeprefix("log_")]
        return math.log10(value) if value is not None and value > 0 else math.nan
    value = row[name]
    return math.nan if value is None else float(value)


def _rank(values: Numbers) -> Numbers:
    """Ranks from 1, equal values with the mean of theirs."""
    _, group, counts = np.unique(values, return_inverse=True, return_counts=True)
    return np.asarray((np.cumsum(counts) - (counts - 1) / 2)[group])
