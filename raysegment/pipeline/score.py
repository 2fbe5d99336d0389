"""How well masks and references agree: Dice over scans, the summary of an evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from raysegment.imaging.geometry import Geometry, restore_grid
from raysegment.imaging.measure import dice_of, overlap_of
from raysegment.pipeline.doubt import count_review
from raysegment.scan import Labels

RESAMPLES = 10_000
DRAWS_AT_ONCE = 5_000_000

CONFUSION = ("true_negatives", "false_positives", "false_negatives", "true_positives")

MEANS = (
    "dice_mean",
    "dice_median",
    "dice_mean_at_half",
    "iou_mean",
    "iou_median",
    "lesion_slice_dice_mean",
    "hd95_mm_mean",
    "hd95_mm_median",
    "mean_surface_distance_mm_mean",
    "surface_dice_mean",
    "surface_tolerance_mm",
)
"""Numbers of a summary that are means over labels."""

SUMS = (
    "clean_slices",
    "clean_slices_with_mask",
    "lesions_reference",
    "lesions_found",
    "lesions_missed",
    "lesions_false",
)
"""Columns of the metrics of which a summary has the sum."""

COUNTS = (*SUMS, "hd95_scans", "hd95_undefined")
"""Numbers of a summary that are sums over labels. `hd95_scans`: scans that have a distance. `hd95_undefined`: those
where only one of mask and reference is empty, which have none."""


def summarise_metrics(
    metrics: pa.Table,
    *,
    scans_failed: int,
    threshold: float | dict[str, float] | None,
    training_patients: int | None,
) -> dict[str, Any]:
    """The summary of an evaluation.

    Of each label means and medians are over scans, the interval resamples patients; accuracy, precision, recall and f1
    are pooled over all voxels. Of several labels together means and medians are the means of the labels' own, counts
    their sums, and what is pooled comes from these.

    Args:
        metrics: Rows of the metrics table that have a reference.
        scans_failed: Scans that are not among them because they failed.
        threshold: Probability from which a voxel belongs to the mask; by name where labels have their own; None where
            nobody knows.
        training_patients: Patients among them that the model was trained on; None where nobody knows.

    Returns:
        The keys of summary.json; what has no value is NaN. `labels` has the same for each label.
    """
    names = metrics["label"].unique().to_pylist()
    labels = {name: _summarise_label(metrics.filter(pc.equal(metrics["label"], name))) for name in names}
    for name, numbers in labels.items():
        numbers["threshold"] = threshold[name] if isinstance(threshold, dict) else threshold
    every = list(labels.values()) or [_summarise_label(metrics)]
    counts = {name: sum(numbers["confusion"][name] for numbers in every) for name in CONFUSION}
    return {
        "scans": pc.count_distinct(metrics["scan_id"]).as_py(),
        "scans_failed": scans_failed,
        "patients": pc.count_distinct(metrics["patient_id"]).as_py(),
        **{name: mean_of(np.array([numbers[name] for numbers in every])) for name in MEANS},
        **{name: sum(numbers[name] for numbers in every) for name in COUNTS},
        **count_review(metrics),
        "dice_ci95": list(
            bootstrap_interval(
                _numbers(metrics, "dice"), metrics["patient_id"].to_pylist(), labels=metrics["label"].to_pylist()
            )
        ),
        **_pool(counts),
        "threshold": threshold,
        "empty_policy": describe_empty(metrics),
        "training_patients_included": training_patients,
        "labels": labels,
    }


def _summarise_label(metrics: pa.Table) -> dict[str, Any]:
    """`MEANS`, `COUNTS`, interval and pooled numbers of one label."""
    dice, iou, hd95 = (_numbers(metrics, name) for name in ("dice", "iou", "hd95_mm"))
    one_empty = pc.not_equal(metrics["reference_is_empty"], metrics["mask_is_empty"])
    return {
        "dice_mean": mean_of(dice),
        "dice_median": _median(dice),
        "dice_ci95": list(bootstrap_interval(dice, metrics["patient_id"].to_pylist())),
        "dice_mean_at_half": mean_of(_numbers(metrics, "dice_at_half")),
        "iou_mean": mean_of(iou),
        "iou_median": _median(iou),
        "lesion_slice_dice_mean": ratio_of(
            _numbers(metrics, "lesion_slice_dice_sum").sum(), _numbers(metrics, "lesion_slices").sum()
        ),
        "hd95_mm_mean": mean_of(hd95),
        "hd95_mm_median": _median(hd95),
        "hd95_scans": int(np.isfinite(hd95).sum()),
        "hd95_undefined": _count(one_empty),
        "mean_surface_distance_mm_mean": mean_of(_numbers(metrics, "mean_surface_distance_mm")),
        "surface_dice_mean": mean_of(_numbers(metrics, "surface_dice")),
        "surface_tolerance_mm": mean_of(_numbers(metrics, "surface_tolerance_mm")),
        **{name: _sum_all(metrics[name]) for name in SUMS},
        **count_review(metrics),
        **_pool({name: int(_numbers(metrics, name).sum()) for name in CONFUSION}),
    }


def _pool(counts: dict[str, int]) -> dict[str, Any]:
    """Overlap from counts of voxels of all scans, and the counts."""
    pooled = overlap_of(
        counts["true_positives"], counts["false_positives"], counts["false_negatives"], counts["true_negatives"]
    )
    return {name: pooled[name] for name in ("accuracy", "precision", "recall", "f1")} | {"confusion": counts}


def describe_empty(metrics: pa.Table) -> str:
    """How scans without lesion enter the means, and how many there are."""
    no_lesion, no_mask = metrics["reference_is_empty"], metrics["mask_is_empty"]
    both = _count(pc.and_(no_lesion, no_mask))
    alone = _count(no_lesion) - both, _count(no_mask) - both
    scans = "scans" if len(metrics["label"].unique()) < 2 else "scans of a label"
    return (
        f"dice and iou are per scan; {both} {scans} with empty reference and empty mask are left out of means, "
        f"{alone[0]} with empty reference only and {alone[1]} with empty mask only count as 0"
    )


def bootstrap_interval(
    values: npt.NDArray[np.float64], patients: Sequence[str], *, labels: Sequence[str] = (), seed: int = 0
) -> tuple[float, float]:
    """95 % percentile bootstrap interval of the mean over scans; NaN where there is no scan.

    With several labels it is that of the mean of the labels' means.

    Patients are drawn, each with all of its scans, because scans of one patient are alike: Efron (1979),
    doi:10.1214/aos/1176344552, and for clusters Field and Welsh (2007), J. R. Statist. Soc. B 69, 369.

    Args:
        values: One of each scan, or of each scan and label; NaN is left out.
        patients: The patient of each value.
        labels: The label of each value; one if not given.
        seed: Of the drawing.
    """
    known = ~np.isnan(values)
    if not known.any():
        return float("nan"), float("nan")
    names, patient = np.unique(np.asarray(patients)[known], return_inverse=True)
    label = np.unique(np.asarray(labels)[known], return_inverse=True)[1] if labels else np.zeros_like(patient)
    sums, counts = np.zeros((2, label.max() + 1, len(names)))
    np.add.at(sums, (label, patient), values[known])
    np.add.at(counts, (label, patient), 1)
    random = np.random.default_rng(seed)
    resamples = RESAMPLES if len(names) <= RESAMPLES else RESAMPLES // 10
    rows = max(1, DRAWS_AT_ONCE // len(names))
    means = []
    for start in range(0, resamples, rows):
        drawn = random.integers(0, len(names), (min(rows, resamples - start), len(names)))
        totals = np.stack([of_label[drawn].sum(axis=1) for of_label in counts])
        found = np.stack([of_label[drawn].sum(axis=1) for of_label in sums])
        # A label that no drawn patient has is not in that resample's mean.
        means.append(np.nanmean(np.divide(found, totals, out=np.full(found.shape, np.nan), where=totals > 0), axis=0))
    low, high = np.nanpercentile(np.concatenate(means), (2.5, 97.5))
    return float(low), float(high)


def summarise_scores(scores: npt.NDArray[np.float64], labels: Labels) -> dict[str, float]:
    """Mean loss per slice, and mean hard Dice over scans: the mean of the labels' means, and with several these too.

    A scan whose mask and reference are both empty is left out, as in evaluation; one where one of them is counts as 0.

    Args:
        scores: (scans, 3 · labels + 2): of each label true positives, mask voxels, reference voxels; then the sum of
            losses, and slices.
        labels: What is segmented.
    """
    means = [mean_of(column) for column in _dice_of_scores(scores, labels).T]
    apart = {f"val_dice_{name}": mean for name, mean in zip(labels.names, means, strict=True)}
    return {
        "val_loss": float(scores[:, -2].sum() / scores[:, -1].sum()),
        "val_dice": mean_of(np.array(means)),
        **(apart if len(labels) > 1 else {}),
    }


def dice_per_scan(scores: npt.NDArray[np.float64], labels: Labels) -> list[float]:
    """Hard Dice of each scan, the mean over its labels; NaN where masks and references are all empty.

    Args:
        scores: As in `summarise_scores`.
        labels: What is segmented.
    """
    return [mean_of(row) for row in _dice_of_scores(scores, labels)]


def _dice_of_scores(scores: npt.NDArray[np.float64], labels: Labels) -> npt.NDArray[np.float64]:
    """(scans, labels)."""
    counts = scores[:, :-2].reshape(-1, len(labels), 3)
    return np.asarray(dice_of(*np.moveaxis(counts, -1, 0)))


def find_strengths(probability: npt.NDArray[np.float32], geometry: Geometry, labels: Labels) -> npt.NDArray[np.float32]:
    """What each label's threshold is compared with, on the scan's own grid.

    That is its probability; where labels exclude each other, the largest of a voxel's labels has that of all labels
    together, and the others 0.

    Args:
        probability: (slices, image_size, image_size, labels).
        geometry: The one that brought the pixels there.
        labels: What is segmented.

    Returns:
        (labels, slices, rows, columns).
    """
    planes = np.moveaxis(probability, -1, 0)
    restored = [restore_grid(np.ascontiguousarray(plane), geometry) for plane in planes]
    if not labels.exclude_each_other:
        return restored[0][None] if len(restored) == 1 else np.stack(restored)
    together, largest = np.sum(restored, axis=0), np.argmax(restored, axis=0)
    return np.stack([np.where(largest == position, together, np.float32(0)) for position in range(len(labels))])


def count_voxels(mask: npt.NDArray[np.bool_], reference: npt.NDArray[np.bool_]) -> tuple[int, int, int]:
    """Voxels in both, in the mask and in the reference."""
    return int(np.count_nonzero(mask & reference)), int(np.count_nonzero(mask)), int(np.count_nonzero(reference))


def mean_of(values: npt.NDArray[np.float64]) -> float:
    """Mean, NaN left out; NaN where there is none."""
    return float(np.nanmean(values)) if np.isfinite(values).any() else float("nan")


def _numbers(metrics: pa.Table, name: str) -> npt.NDArray[np.float64]:
    return metrics[name].cast(pa.float64()).to_numpy()


def _median(values: npt.NDArray[np.float64]) -> float:
    return float(np.nanmedian(values)) if np.isfinite(values).any() else float("nan")


def ratio_of(part: float, whole: float) -> float:
    """A share, NaN of nothing."""
    return float(part / whole) if whole else float("nan")


def _sum_all(column: pa.ChunkedArray) -> float:
    """The sum, NaN where a scan has no number: part of a count would pass for all of it."""
    return float("nan") if column.null_count else int(pc.sum(column).as_py() or 0)


def _count(condition: pa.ChunkedArray | pa.Array) -> int:
    return int(pc.sum(condition).as_py() or 0)
