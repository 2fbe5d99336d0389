"""What is compared to notice drift: of each patient one scan, of each scan a number per feature.

    kind        features
    intensity   intensity_q05_channel_0, …_q50_…, …_q95_…: quantiles of what is not background, raw, of each channel
    spacing     spacing_between_slices_mm, spacing_in_plane_mm; 0 where the file has none
    shape       num_slices, height, width
    volume      volume_ml_<label>, or voxels_<label> where the spacing is unknown
    doubt       border_entropy_<label>, share_near_threshold_<label>; missing where the mask is empty

Numbers have four digits, so that those in a bundle tell no more than a comparison needs.

Scans of one patient are alike, and a test that took them for independent would raise false alarms. So each patient
counts once, with the scan whose scan_id has the smallest hash. It is not the median over a patient's scans: that
varies less the more scans there are, and a cohort's past has more of each patient than last night brought, so medians
would differ where scans do not. And it is not the first scan, because names often begin with dates.
"""

from __future__ import annotations

import hashlib
import heapq
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from raysegment.imaging.quantiles import QUANTILES
from raysegment.store.schema import STATUS_OK

DIGITS = 4
MOST_PATIENTS = 20_000
"""Patients of a set, drawn by their hashes, who stand for all where there are more; memory and time stay small."""

SCAN_COLUMNS = [
    *("scan_id", "patient_id", "fingerprint", "status", "num_slices", "height", "width"),
    *("spacing_mm", "intensity_quantiles"),
]
METRIC_COLUMNS = ["scan_id", "label", "voxels", "volume_ml", "border_entropy", "share_near_threshold"]

OF_SCANS, OF_MASKS = ("intensity", "spacing", "shape"), ("volume", "doubt")
"""Kinds of features: those of the scans themselves, and those that depend on the model and its choices."""

Values = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Feature:
    """A number that each scan may have."""

    kind: str
    name: str


Samples = Mapping[Feature, Values]
"""Numbers by feature, one for each patient who has it, in no order that tells who."""


def choose_scans(scan_ids: Sequence[str], patient_ids: Sequence[str | None], most: int = MOST_PATIENTS) -> list[int]:
    """Positions of the one scan that counts of each patient; a scan without patient is its own.

    Args:
        scan_ids: Of the scans.
        patient_ids: Whose they are.
        most: Patients who count at most; of more those with the smallest hashes do.
    """
    chosen: dict[str, tuple[bytes, int]] = {}
    for position, (scan_id, patient_id) in enumerate(zip(scan_ids, patient_ids, strict=True)):
        digest = _hash(scan_id)
        known = chosen.get(patient_id or scan_id)
        if known is None or digest < known[0]:
            chosen[patient_id or scan_id] = digest, position
    # By a hash of the patient, because the smallest one of many scans is smaller than that of one.
    patients = chosen if len(chosen) <= most else heapq.nsmallest(most, chosen, key=_hash)
    return sorted(chosen[patient][1] for patient in patients)


def sample_features(scans: pa.Table, metrics: pa.Table) -> dict[Feature, Values]:
    """The numbers of segmented scans, one scan of each patient.

    Args:
        scans: Rows with `SCAN_COLUMNS`; failed ones are left out.
        metrics: Rows with `METRIC_COLUMNS`, of these scans and perhaps of others.
    """
    finished = scans.filter(pc.equal(scans["status"], STATUS_OK))
    chosen = finished.take(choose_scans(finished["scan_id"].to_pylist(), finished["patient_id"].to_pylist()))
    of_chosen = metrics.filter(pc.is_in(metrics["scan_id"], value_set=chosen["scan_id"].combine_chunks()))
    found: dict[Feature, list[float]] = {}
    rows = [measure_scan(row) for row in chosen.to_pylist()] + [measure_label(row) for row in of_chosen.to_pylist()]
    for row in rows:
        for feature, value in row.items():
            found.setdefault(feature, []).append(value)
    return sort_samples(found)


def measure_scan(row: Mapping[str, object]) -> dict[Feature, float]:
    """The features of a scan itself, from its row of `scans`."""
    spacing = row["spacing_mm"] or (0.0, 0.0, 0.0)
    assert isinstance(spacing, Sequence)
    found = {
        Feature("spacing", "spacing_between_slices_mm"): float(spacing[0]),
        Feature("spacing", "spacing_in_plane_mm"): math.sqrt(spacing[1] * spacing[2]),
        **{Feature("shape", name): _as_number(row[name]) for name in ("num_slices", "height", "width")},
    }
    quantiles = row["intensity_quantiles"] or ()
    assert isinstance(quantiles, Sequence)
    for position, value in enumerate(quantiles):
        channel, which = divmod(position, len(QUANTILES))
        found[Feature("intensity", f"intensity_q{100 * QUANTILES[which]:02.0f}_channel_{channel}")] = float(value)
    return found


def measure_label(row: Mapping[str, object]) -> dict[Feature, float]:
    """The features of one label of a scan's mask, from its row of `metrics`."""
    label, volume_ml = row["label"], _as_number(row["volume_ml"])
    volume = (
        {Feature("volume", f"voxels_{label}"): _as_number(row["voxels"])}
        if math.isnan(volume_ml)
        else {Feature("volume", f"volume_ml_{label}"): volume_ml}
    )
    doubt = ("border_entropy", "share_near_threshold")
    return volume | {Feature("doubt", f"{name}_{label}"): _as_number(row[name]) for name in doubt}


def sort_samples(found: Mapping[Feature, Iterable[float]]) -> dict[Feature, Values]:
    """Numbers rounded and in ascending order, those that are missing left out."""
    arrays = {feature: np.asarray(list(values), np.float64) for feature, values in found.items()}
    return {feature: np.sort(round_digits(values[np.isfinite(values)])) for feature, values in arrays.items()}


def round_digits(values: Values) -> Values:
    """Each number to `DIGITS` digits that count."""
    with np.errstate(divide="ignore"):
        scale = np.floor(np.log10(np.abs(values)))
    factor = 10.0 ** (DIGITS - 1 - np.where(np.isfinite(scale), scale, 0))
    return np.asarray(np.round(values * factor) / factor, np.float64)


def _hash(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest()


def _as_number(value: object) -> float:
    return float(value) if isinstance(value, int | float) else math.nan
