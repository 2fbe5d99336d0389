"""From the rows of the metrics table to the summary of an evaluation."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from raysegment.archive.split import read_split_file
from raysegment.errors import UsageError
from raysegment.imaging.measure import overlap_of

RESAMPLES = 10_000
DRAWS_AT_ONCE = 5_000_000
CONFUSION = ("true_negatives", "false_positives", "false_negatives", "true_positives")


def summarise_metrics(
    metrics: pa.Table, *, scans_failed: int, threshold: float, training_patients: int
) -> dict[str, Any]:
    """The summary of an evaluation.

    Means, medians and the interval are over scans; accuracy, precision, recall and f1 are pooled over all voxels.

    Args:
        metrics: Rows of the metrics table that have a reference.
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
        "dice_mean": _mean(columns["dice"]),
        "dice_median": _median(columns["dice"]),
        "dice_ci95": list(bootstrap_interval(columns["dice"])),
        "iou_mean": _mean(columns["iou"]),
        "iou_median": _median(columns["iou"]),
        "lesion_slice_dice_mean": _ratio(_numbers(metrics, "lesion_slice_dice_sum").sum(), lesion_slices),
        "clean_slices": int(_numbers(metrics, "clean_slices").sum()),
        "clean_slices_with_mask": int(_numbers(metrics, "clean_slices_with_mask").sum()),
        **{name: pooled[name] for name in ("accuracy", "precision", "recall", "f1")},
        "confusion": counts,
        "threshold": threshold,
        "dice_mean_at_half": _mean(columns["dice_at_half"]),
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


def bootstrap_interval(values: npt.NDArray[np.float64], *, seed: int = 0) -> tuple[float, float]:
    """95 % percentile bootstrap interval of the mean over scans, NaN left out; NaN where there is no scan.

    After Efron (1979), doi:10.1214/aos/1176344552.
    """
    values = values[~np.isnan(values)]
    if not len(values):
        return float("nan"), float("nan")
    random = np.random.default_rng(seed)
    resamples = RESAMPLES if len(values) <= RESAMPLES else RESAMPLES // 10
    rows = max(1, DRAWS_AT_ONCE // len(values))
    means = [
        values[random.integers(0, len(values), (min(rows, resamples - start), len(values)))].mean(axis=1)
        for start in range(0, resamples, rows)
    ]
    low, high = np.percentile(np.concatenate(means), (2.5, 97.5))
    return float(low), float(high)


def choose_scans(
    manifest: pa.Table, *, split: str | None, split_file: str | None, run_manifest: pa.Table | None
) -> pa.Table:
    """The scans to evaluate: those with a reference, of one split if asked for.

    The split comes from the manifest's column, else from the split file, else from the training run's manifest.

    Raises:
        UsageError: No scan has a reference, the split is known from nowhere, or it is empty.
    """
    has_reference = pa.array([any(files) for files in manifest["reference_files"].to_pylist()], pa.bool_())
    chosen = manifest.filter(has_reference)
    if chosen.num_rows == 0:
        raise UsageError(f"none of the {manifest.num_rows} scans has a reference; `raysegment infer` needs none.")
    if split is None:
        return chosen
    chosen = chosen.filter(pc.equal(_find_splits(chosen, split_file, run_manifest), split))
    if chosen.num_rows == 0:
        raise UsageError(f"--split {split}: no scan with a reference is in it.")
    return chosen


def _find_splits(
    manifest: pa.Table, split_file: str | None, run_manifest: pa.Table | None
) -> pa.Array | pa.ChunkedArray:
    if manifest["split"].null_count < manifest.num_rows:
        return pc.fill_null(manifest["split"], "")
    if split_file is not None:
        by_patient = read_split_file(split_file)
    elif run_manifest is not None:
        pairs = zip(run_manifest["patient_id"].to_pylist(), run_manifest["split"].to_pylist(), strict=True)
        by_patient = {patient: split for patient, split in pairs if split}
    else:
        raise UsageError(
            "--split: the scans have no split column, there is no --split-file, and MODEL is no training run with a "
            "manifest.parquet. Give one of them."
        )
    return pa.array([by_patient.get(patient, "") for patient in manifest["patient_id"].to_pylist()], pa.string())


def count_known_patients(patients: Iterable[str], has_seen: Any) -> int:
    """Patients that the model was trained on."""
    return sum(bool(has_seen(patient)) for patient in set(patients))


def _numbers(metrics: pa.Table, name: str) -> npt.NDArray[np.float64]:
    return metrics[name].cast(pa.float64()).to_numpy()


def _mean(values: npt.NDArray[np.float64]) -> float:
    return float(np.nanmean(values)) if np.isfinite(values).any() else float("nan")


def _median(values: npt.NDArray[np.float64]) -> float:
    return float(np.nanmedian(values)) if np.isfinite(values).any() else float("nan")


def _ratio(part: float, whole: float) -> float:
    return float(part / whole) if whole else float("nan")


def _count(condition: pa.ChunkedArray | pa.Array) -> int:
    return int(pc.sum(condition).as_py() or 0)
