"""What a bundle keeps of the scans that it was made from, so that new scans can be compared with them.

Its key `training_features` is {kind: {feature: numbers}} with the features of `pipeline/scan_features`: intensity,
spacing and shape of the scans trained on, volume and doubt of the model's own masks of those validated on, because
masks of scans that a network was trained on are better and surer than any later ones. The numbers are one for each
patient, rounded to four digits, in ascending order of each feature alone: nothing tells who is who, which numbers
belong together, or which scans they are of. Where there are more than `MOST_NUMBERS` patients, it is so many numbers
evenly spread over all of them, which a test may take for a sample of that size: they vary less than one would.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from raysegment.imaging.postprocess import clean_labels
from raysegment.pipeline.doubt import measure_border_entropy
from raysegment.pipeline.passes import Values
from raysegment.pipeline.samples import KeptScan
from raysegment.pipeline.scan_features import (
    OF_MASKS,
    OF_SCANS,
    Feature,
    Samples,
    choose_scans,
    measure_label,
    measure_scan,
    sample_features,
    sort_samples,
)
from raysegment.pipeline.segment import allocate_probability
from raysegment.pipeline.slabs import Slabs, threshold_slabs
from raysegment.scan import Labels, Spacing
from raysegment.store.schema import METRICS_SCHEMA

MOST_NUMBERS = 1000
MOST_MEASURED = 500
"""Validation scans, one of each patient, whose masks are measured."""

Probabilities = Iterator[tuple[slice, Values]]
"""Some slices at a time: which, and (slices, rows, columns, labels) on the network's grid."""


@dataclass(frozen=True, kw_only=True)
class ScanTraits:
    """What is known of a kept scan besides its pixels.

    Attributes:
        num_slices: Of the scan's own grid.
        slice_shape: Rows and columns of it.
        spacing_mm: (slices, rows, columns); None where nobody knows.
        voxel_mm3: Volume of a voxel; NaN where nobody knows.
        intensity_quantiles: From `imaging/quantiles`.
    """

    num_slices: int
    slice_shape: tuple[int, int]
    spacing_mm: Spacing | None
    voxel_mm3: float
    intensity_quantiles: tuple[float, ...]

    @property
    def features(self) -> dict[Feature, float]:
        """Intensity, spacing and shape."""
        grid = {"num_slices": self.num_slices, "height": self.slice_shape[0], "width": self.slice_shape[1]}
        return measure_scan(
            {**grid, "spacing_mm": self.spacing_mm, "intensity_quantiles": self.intensity_quantiles or None}
        )


@dataclass(frozen=True)
class TrainingTraits:
    """What the driver tells of a training's scans, one scan of each patient.

    Attributes:
        train: Of those trained on.
        val: Of those validated on, by scan_id.
    """

    train: tuple[ScanTraits, ...] = ()
    val: Mapping[str, ScanTraits] | None = None


def choose_traits(
    train: Mapping[str, ScanTraits], val: Mapping[str, ScanTraits], patients: Mapping[str, str]
) -> TrainingTraits:
    """One scan of each patient, chosen as among the scans of a cohort.

    Args:
        train: Of each scan trained on.
        val: Of each scan validated on.
        patients: patient_id by scan_id.
    """

    def choose(scan_ids: Sequence[str]) -> list[str]:
        return [scan_ids[position] for position in choose_scans(scan_ids, [patients[name] for name in scan_ids])]

    return TrainingTraits(
        tuple(train[name] for name in choose(list(train))),
        {name: val[name] for name in choose(list(val))[:MOST_MEASURED]},
    )


def describe_training_features(
    probabilities: Callable[[KeptScan], Probabilities],
    labels: Labels,
    scores: Mapping[str, Any],
    validation: Sequence[KeptScan],
    traits: TrainingTraits,
) -> dict[str, dict[str, list[float]]] | None:
    """What a bundle keeps as `training_features`; None where nothing is known.

    Args:
        probabilities: What inference would find in a scan.
        labels: What is segmented.
        scores: `threshold` and `min_component_voxels` of the bundle.
        validation: Scans validated on.
        traits: Of the scans that count.
    """
    known = traits.val or {}
    rows = [scan.features for scan in traits.train]
    for kept in validation:
        if kept.scan_id in known:
            rows += measure_kept(probabilities(kept), labels, scores, kept, known[kept.scan_id].voxel_mm3)
    found: dict[Feature, list[float]] = {}
    for row in rows:
        for feature, value in row.items():
            found.setdefault(feature, []).append(value)
    return keep_samples(sort_samples(found)) if found else None


def measure_kept(
    probabilities: Probabilities, labels: Labels, scores: Mapping[str, Any], kept: KeptScan, voxel_mm3: float
) -> list[dict[Feature, float]]:
    """Volume and doubt of each label in the mask that the bundle will make of a validation scan."""
    probability = allocate_probability(len(labels), kept.pixels.shape[:3])
    for chosen, found in probabilities:
        probability[:, chosen] = np.moveaxis(found, -1, 0)
    slabs, threshold = Slabs(probability, kept.geometry), scores["threshold"]
    thresholds = tuple(threshold[name] if isinstance(threshold, Mapping) else threshold for name in labels.names)
    raw = threshold_slabs(slabs, labels, thresholds)
    mask = clean_labels(
        raw.mask,
        labels,
        min_component_voxels=scores["min_component_voxels"],
        largest_component=False,
        fill_holes=False,
    )
    entropies = measure_border_entropy(slabs, labels, mask)
    rows = []
    for position, name in enumerate(labels.names):
        voxels = int(np.count_nonzero(labels.plane_of_mask(mask, position)))
        row = {"label": name, "voxels": voxels, "volume_ml": voxels * voxel_mm3 / 1000}
        doubt = {"border_entropy": entropies[position], "share_near_threshold": raw.share_near_threshold[position]}
        rows.append(measure_label(row | doubt))
    return rows


def describe_held_out(scans: pa.Table) -> dict[str, dict[str, list[float]]] | None:
    """What the bundle of an ensemble keeps: intensity, spacing and shape of the scans of all its folds.

    Not volume and doubt: the ensemble has seen all of these patients, and its masks are other ones than those of the
    folds that had not.

    Args:
        scans: Rows of all folds together.
    """
    return keep_samples(sample_features(scans, METRICS_SCHEMA.empty_table())) or None


def keep_samples(samples: Samples) -> dict[str, dict[str, list[float]]]:
    """Numbers as model.json has them."""
    kept: dict[str, dict[str, list[float]]] = {}
    for feature, values in samples.items():
        if len(values) > MOST_NUMBERS:
            places = (np.arange(MOST_NUMBERS) + 0.5) * (len(values) / MOST_NUMBERS)
            values = values[places.astype(np.int64)]
        kept.setdefault(feature.kind, {})[feature.name] = values.tolist()
    return kept


def read_samples(kept: Mapping[str, Mapping[str, Sequence[float]]]) -> dict[Feature, Any]:
    """What `keep_samples` wrote; kinds that a newer version added are left out."""
    return {
        Feature(kind, name): np.asarray(values, np.float64)
        for kind, of_kind in kept.items()
        if kind in OF_SCANS + OF_MASKS
        for name, values in of_kind.items()
    }
