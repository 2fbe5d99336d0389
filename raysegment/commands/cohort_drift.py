"""What a night of `resegment` brought, beside what the model was trained on and what the cohort had before.

COHORT/drift/<run>/drift.parquet   one row per feature and set, see `pipeline/drift`
COHORT/drift/<run>/summary.json    what drifted, and what could not be compared
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from raysegment.cluster.inference.run import resolve_options
from raysegment.model.bundle import Bundle
from raysegment.options import InferOptions, Postprocessing
from raysegment.pipeline.drift import Comparison, find_drift, keep_kinds, summarise_drift
from raysegment.pipeline.scan_features import METRIC_COLUMNS, OF_MASKS, OF_SCANS, SCAN_COLUMNS, Samples, sample_features
from raysegment.pipeline.training_features import read_samples
from raysegment.runs.record import as_json
from raysegment.scan import Labels
from raysegment.store.place import Place
from raysegment.store.publish import read_rows
from raysegment.store.schema import STATUS_OK

NO_FEATURES = "the bundle keeps no numbers of its training scans, as those of earlier versions do not: no comparison"
OTHER_CHOICES = "volume and doubt were not compared with the training set: the cohort's choices are not the bundle's"
OTHER_MASKS = "volume and doubt were not compared with the cohort's past: its masks are of another model or choices"
KEY_COLUMNS = ["scan_id", "fingerprint", "status"]


@dataclass(frozen=True)
class NightTables:
    """The tables of a night, and what is known of how they were made.

    Attributes:
        before: The result before; None on the first night.
        after: The new result.
        bundle: Its model.
        is_new_model: Model or choices are others than those of the result before.
        is_as_bundled: The choices that decide masks are those the bundle brings.
    """

    before: Place | None
    after: Place
    bundle: Bundle
    is_new_model: bool
    is_as_bundled: bool


@dataclass(frozen=True)
class FoundDrift:
    """What was found.

    Attributes:
        table: Of `DRIFT_SCHEMA`.
        summary: From `summarise_drift`, with `notes`.
    """

    table: pa.Table
    summary: dict[str, Any]


def watch_drift(night: NightTables, rate: float) -> FoundDrift | None:
    """Compare the scans that a night segmented with those before; None where it segmented none.

    Args:
        night: Its tables.
        rate: Largest chance of a false alarm.

    Raises:
        DamagedTablesError: A part cannot be read.
    """
    after = _read_finished(night.after)
    known = after.slice(0, 0) if night.before is None else _read_finished(night.before, KEY_COLUMNS)
    new = after.filter(pa.array(~_is_among(after, known)))
    segmented = after if night.is_new_model else new
    if not segmented.num_rows:
        return None
    # A cohort may have a million scans of which a night segmented a few.
    del after, known
    metrics = _metrics_of(night.after, segmented)
    notes: list[str] = []
    comparisons = [
        *_compare_with_training(night, segmented, metrics, notes),
        *_compare_with_past(night, new, metrics, notes),
    ]
    table = find_drift(comparisons, rate)
    return FoundDrift(table, summarise_drift(table, comparisons, rate) | {"notes": notes})


def is_as_bundled(options: InferOptions, bundle: Bundle, drawn: Labels) -> bool:
    """Whether masks are made by all of the bundle's networks and by the choices it brings.

    Args:
        options: Choices of `infer`.
        bundle: The model.
        drawn: What the values of references mean.
    """
    # What it is called with would ask a cluster; the precision is the same on both sides.
    options = replace(options, address=None)
    left_open: dict[str, Any] = {item.name: None for item in fields(Postprocessing)} | {"members": None}
    resolved, own = (resolve_options(item, bundle, drawn, {}) for item in (options, replace(options, **left_open)))
    return all(getattr(resolved, name) == getattr(own, name) for name in left_open)


def write_drift(place: Place, run: str, found: FoundDrift) -> str:
    """Keep what a run found of drift, in the cohort's folder; returns the folder below it."""
    folder = f"drift/{run}"
    place.make_folder(folder)
    place.write_table(f"{folder}/drift.parquet", found.table)
    place.write_bytes(f"{folder}/summary.json", (json.dumps(as_json(found.summary), indent=2) + "\n").encode())
    return folder


def _compare_with_training(
    night: NightTables, segmented: pa.Table, metrics: pa.Table, notes: list[str]
) -> list[Comparison]:
    if not night.bundle.training_features:
        notes.append(NO_FEATURES)
        return []
    patients = segmented["patient_id"].to_pylist()
    seen = {patient: night.bundle.has_seen(patient) for patient in set(patients) if patient is not None}
    unseen = segmented.filter(pa.array([not seen.get(patient, False) for patient in patients], pa.bool_()))
    if left_out := sum(seen.values()):
        whom = "1 patient" if left_out == 1 else f"{left_out} patients"
        notes.append(f"not compared with the training set, on whom the model was trained: {whom}")
    kinds = OF_SCANS + OF_MASKS if night.is_as_bundled else OF_SCANS
    if not night.is_as_bundled:
        notes.append(OTHER_CHOICES)
    before = read_samples(night.bundle.training_features)
    return [_compare("training", before, unseen, metrics, kinds)]


def _compare_with_past(night: NightTables, new: pa.Table, metrics: pa.Table, notes: list[str]) -> list[Comparison]:
    if night.before is None or not new.num_rows:
        return []
    before = _read_finished(night.before)
    if not before.num_rows:
        return []
    kinds = OF_SCANS if night.is_new_model else OF_SCANS + OF_MASKS
    if night.is_new_model:
        notes.append(OTHER_MASKS)
    past = sample_features(before, read_rows(night.before, "metrics", METRIC_COLUMNS))
    return [_compare("past", past, new, metrics, kinds)]


def _compare(against: Any, before: Samples, new: pa.Table, metrics: pa.Table, kinds: Sequence[str]) -> Comparison:
    num_new = pc.count_distinct(pc.coalesce(new["patient_id"], new["scan_id"])).as_py()
    return Comparison(against, keep_kinds(before, kinds), keep_kinds(sample_features(new, metrics), kinds), num_new)


def _metrics_of(place: Place, scans: pa.Table) -> pa.Table:
    rows = read_rows(place, "metrics", METRIC_COLUMNS)
    return rows.filter(pc.is_in(rows["scan_id"], value_set=scans["scan_id"].combine_chunks()))


def _read_finished(place: Place, columns: list[str] = SCAN_COLUMNS) -> pa.Table:
    rows = read_rows(place, "scans", columns)
    return rows.filter(pc.equal(rows["status"], STATUS_OK))


def _is_among(scans: pa.Table, others: pa.Table) -> npt.NDArray[np.bool_]:
    """Which scans another table has, with the same files."""
    position = pc.index_in(scans["scan_id"], value_set=others["scan_id"].combine_chunks())
    same = pc.equal(pc.take(others["fingerprint"], position), scans["fingerprint"])
    return np.asarray(pc.fill_null(same, False).to_numpy(), bool)
