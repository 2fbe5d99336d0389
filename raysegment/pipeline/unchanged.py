"""Rows of `changes` of scans that two runs share: nothing changed, which no mask needs to be read for."""

from __future__ import annotations

import math

import pyarrow as pa
import pyarrow.compute as pc

from raysegment.pipeline.changes import COMPARED, FAILED
from raysegment.store.schema import CHANGES_SCHEMA, STATUS_FAILED


def unchanged_rows(scans: pa.Table, metrics: pa.Table, masks: pa.Table) -> pa.Table:
    """What `compare_sides` says of scans of which both sides have the same rows.

    Args:
        scans: Rows of `scans`.
        metrics: Rows of `metrics` of the same scans.
        masks: `scan_id` and `spacing_mm` of those that have a mask.
    """
    return pa.concat_tables([_compared(scans, metrics, masks), _failed(scans)])


def _compared(scans: pa.Table, metrics: pa.Table, masks: pa.Table) -> pa.Table:
    size = metrics.num_rows
    scan = scans.take(pc.index_in(metrics["scan_id"], value_set=scans["scan_id"].combine_chunks()))
    mask = masks.take(pc.index_in(metrics["scan_id"], value_set=masks["scan_id"].combine_chunks()))
    volume = pc.if_else(pc.is_nan(metrics["volume_ml"]), None, metrics["volume_ml"])
    is_there = pc.greater(metrics["voxels"], 0)
    has_distance = pc.and_(is_there, pc.is_valid(mask["spacing_mm"]))
    columns = {
        **_common(scan, COMPARED),
        "label": metrics["label"],
        "is_change": pa.repeat(False, size),
        "voxels_before": metrics["voxels"],
        "voxels_after": metrics["voxels"],
        "volume_ml_before": volume,
        "volume_ml_after": volume,
        "difference_ml": pc.subtract(volume, volume),
        "difference_percent": pc.if_else(pc.not_equal(volume, 0.0), 0.0, None),
        "dice": pc.if_else(is_there, 1.0, math.nan),
        "hd95_mm": pc.if_else(has_distance, 0.0, math.nan),
        "appeared": pa.repeat(False, size),
        "vanished": pa.repeat(False, size),
    }
    return _as_changes(columns, size)


def _failed(scans: pa.Table) -> pa.Table:
    failed = scans.filter(pc.equal(scans["status"], STATUS_FAILED))
    return _as_changes(_common(failed, FAILED), failed.num_rows)


def _common(scans: pa.Table, state: str) -> dict[str, pa.ChunkedArray]:
    return {
        "scan_id": scans["scan_id"],
        "patient_id": scans["patient_id"],
        "state": pa.repeat(state, scans.num_rows),
        "newly_failed": pa.repeat(False, scans.num_rows),
        "model_id_before": scans["model_id"],
        "model_id_after": scans["model_id"],
    }


def _as_changes(columns: dict[str, pa.ChunkedArray], size: int) -> pa.Table:
    missing = {field.name: pa.nulls(size, field.type) for field in CHANGES_SCHEMA if field.name not in columns}
    return pa.table(columns | missing).select(CHANGES_SCHEMA.names).cast(CHANGES_SCHEMA)
