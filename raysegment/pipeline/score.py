"""How well masks and references agree: Dice over scans, the threshold it chooses, the summary of an evaluation."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from raysegment.imaging.geometry import restore_grid
from raysegment.imaging.measure import dice_of, overlap_of

if TYPE_CHECKING:
    from raysegment.pipeline.samples import KeptScan

RESAMPLES = 10_000
DRAWS_AT_ONCE = 5_000_000
THRESHOLDS = np.arange(1, 20) / 20
"""Candidates for the bundle's threshold."""

PLATEAU = 0.001
"""Thresholds whose Dice is this close to the best count as equal; the one nearest to 0.5 is taken."""

CONFUSION = ("true_negatives", "false_positives", "false_negatives", "true_positives")


def summarise_metrics(
    metrics: pa.Table, *, scans_failed: int, threshold: float | dict[str, float], training_patients: int
) -> dict[str, Any]:
    """The summary of an evaluation.

    Means and medians are over scans, the interval resamples patients; accuracy, precision, recall and f1 are pooled
    over all voxels.

    Args:
        metrics: Rows of the metrics table that have a reference, with the `patient_id` that `scans` has.
        scans_failed: Scans that are not among them because they failed.
        threshold: Probability from which a voxel belongs to the mask.
        training_patients: Patients among them that the model was trained on.

    Returns:
        The keys of summary.json; what has no value is NaN.
    """
    columns = {name: _numbers(metrics, name) for name in ("dice", "iou", "dice_at_half")}
    counts = {name: int(_numbers(metrics, name).sum()) for name in CONFUSION}
    pooled = overlap_of(
        counts["true_positives"], counts["false_positives"], counts["false_negatives"], counts["true_negatives"]
    )
    lesion_slices = _numbers(metrics, "lesion_slices").sum()
    return {
        "scans": metrics.num_rows,
        "scans_failed": scans_failed,
        "patients": pc.count_distinct(metrics["patient_id"]).as_py(),
        "dice_mean": mean_of(columns["dice"]),
        "dice_median": _median(columns["dice"]),
        "dice_ci95": list(bootstrap_interval(columns["dice"], metrics["patient_id"].to_pylist())),
        "iou_mean": mean_of(columns["iou"]),
        "iou_median": _median(columns["iou"]),
        "lesion_slice_dice_mean": _ratio(_numbers(metrics, "lesion_slice_dice_sum").sum(), lesion_slices),
        "clean_slices": int(_numbers(metrics, "clean_slices").sum()),
        "clean_slices_with_mask": int(_numbers(metrics, "clean_slices_with_mask").sum()),
        **{name: pooled[name] for name in ("accuracy", "precision", "recall", "f1")},
        "confusion": counts,
        "threshold": threshold,
        "dice_mean_at_half": mean_of(columns["dice_at_half"]),
        "empty_policy": describe_empty(metrics),
        "training_patients_included": training_patients,
    }


def describe_empty(metrics: pa.Table) -> str:
    """How scans without lesion enter the means, and how many there are."""
    no_lesion, no_mask = metrics["reference_is_empty"], metrics["mask_is_empty"]
    both = _count(pc.and_(no_lesion, no_mask))
    alone = _count(no_lesion) - both, _count(no_mask) - both
    return (
        f"dice and iou are per scan; {both} scans with empty reference and empty mask are left out of means, "
        f"{alone[0]} with empty reference only and {alone[1]} with empty mask only count as 0"
    )


def bootstrap_interval(
    values: npt.NDArray[np.float64], patients: Sequence[str], *, seed: int = 0
) -> tuple[float, float]:
    """95 % percentile bootstrap interval of the mean over scans; NaN where there is no scan.

    Patients are drawn, each with all of its scans, because scans of one patient are alike: Efron (1979),
    doi:10.1214/aos/1176344552, and for clusters Field and Welsh (2007), J. R. Statist. Soc. B 69, 369.

    Args:
        values: One of each scan; NaN is left out.
        patients: The patient of each scan.
        seed: Of the drawing.
    """
    known = ~np.isnan(values)
    if not known.any():
        return float("nan"), float("nan")
    _, patient = np.unique(np.asarray(patients)[known], return_inverse=True)
    sums, counts = np.bincount(patient, values[known]), np.bincount(patient)
    random = np.random.default_rng(seed)
    resamples = RESAMPLES if len(sums) <= RESAMPLES else RESAMPLES // 10
    rows = max(1, DRAWS_AT_ONCE // len(sums))
    means = []
    for start in range(0, resamples, rows):
        drawn = random.integers(0, len(sums), (min(rows, resamples - start), len(sums)))
        means.append(sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1))
    low, high = np.percentile(np.concatenate(means), (2.5, 97.5))
    return float(low), float(high)


def summarise_scores(scores: npt.NDArray[np.float64]) -> dict[str, float]:
    """Mean loss per slice, and mean hard Dice over scans.

    A scan whose mask and reference are both empty is left out, as in evaluation; one where one of them is counts as 0.

    Args:
        scores: (scans, 5): true positives, mask voxels, reference voxels, loss sum, slices.
    """
    return {
        "val_loss": float(scores[:, 3].sum() / scores[:, 4].sum()),
        "val_dice": mean_of(dice_of(*scores[:, :3].T)),
    }


@dataclass(frozen=True, eq=False)
class ThresholdScores:
    """What masks at each of `THRESHOLDS` are worth on the validation scans.

    Attributes:
        dice: Mean per-scan Dice by evaluation's rule: a scan whose reference and mask are both empty is left out, one
            where only one of them is empty counts as 0. NaN where no scan is left.
        precision: Share of the masks' voxels that lie in the references, over all scans; NaN where all masks are empty.
    """

    dice: npt.NDArray[np.float64]
    precision: npt.NDArray[np.float64]

    def at(self, threshold: float) -> tuple[float, float]:
        """Dice and precision at one of the thresholds."""
        index = int(np.argmin(np.abs(THRESHOLDS - threshold)))
        return float(self.dice[index]), float(self.precision[index])


def score_thresholds(
    validation: Sequence[KeptScan], probabilities: Iterable[Iterable[tuple[slice, npt.NDArray[np.float32]]]]
) -> ThresholdScores:
    """Compare each scan's mask with its reference at each of `THRESHOLDS`.

    Args:
        validation: Scans with their references on their own grids.
        probabilities: Of each scan, some slices at a time: which, and (slices, rows, columns) on the network's grid.
    """
    counts = np.zeros((len(validation), len(THRESHOLDS), 3), np.int64)
    for row, kept, batches in zip(counts, validation, probabilities, strict=True):
        for chosen, probability in batches:
            row += count_at_thresholds(restore_grid(probability, kept.geometry), kept.compared_reference[chosen])
    dice = dice_of(*np.moveaxis(counts, -1, 0))
    found, masked, _ = counts.sum(axis=0).T
    precision = np.divide(found, masked, out=np.full(len(THRESHOLDS), np.nan), where=masked > 0)
    return ThresholdScores(np.array([mean_of(column) for column in dice.T]), precision)


def count_at_thresholds(
    probability: npt.NDArray[np.float32], reference: npt.NDArray[np.bool_]
) -> npt.NDArray[np.int64]:
    """Voxels in both, in the mask and in the reference at each of `THRESHOLDS`, (thresholds, 3)."""
    masks = (probability >= np.float32(threshold) for threshold in THRESHOLDS)
    in_reference = np.count_nonzero(reference)
    counted = [(np.count_nonzero(mask & reference), np.count_nonzero(mask), in_reference) for mask in masks]
    return np.array(counted, np.int64)


def choose_threshold(dice: npt.NDArray[np.float64]) -> float:
    """The best threshold; among equals the one nearest to 0.5; 0.5 where nothing could be measured."""
    if np.isnan(dice).all():
        return 0.5
    good = THRESHOLDS[dice >= np.nanmax(dice) - PLATEAU]
    return float(good[np.argmin(np.abs(good - 0.5))])


def mean_of(values: npt.NDArray[np.float64]) -> float:
    """Mean over scans, NaN left out; NaN where there is none."""
    return float(np.nanmean(values)) if np.isfinite(values).any() else float("nan")


def _numbers(metrics: pa.Table, name: str) -> npt.NDArray[np.float64]:
    return metrics[name].cast(pa.float64()).to_numpy()


def _median(values: npt.NDArray[np.float64]) -> float:
    return float(np.nanmedian(values)) if np.isfinite(values).any() else float("nan")


def _ratio(part: float, whole: float) -> float:
    return float(part / whole) if whole else float("nan")


def _count(condition: pa.ChunkedArray | pa.Array) -> int:
    return int(pc.sum(condition).as_py() or 0)
