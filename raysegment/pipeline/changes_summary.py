"""What a table of changes says in numbers, and which of its scans changed most."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from raysegment.archive.names import show_name
from raysegment.pipeline.changes import COMPARED, FAILED, NEWLY_FAILED, ONLY_AFTER, ONLY_BEFORE, RECOVERED

STATES = (COMPARED, ONLY_BEFORE, ONLY_AFTER, NEWLY_FAILED, RECOVERED, FAILED)
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
MOST_SHOWN = 10
DESCRIBED = ("difference_ml", "difference_percent", "dice", "hd95_mm")
SUMMARISED = ["state", "is_change", "appeared", "vanished", "volume_ml_before", "volume_ml_after", *DESCRIBED]


def summarise_changes(table: pa.Table) -> dict[str, Any]:
    """The keys of summary.json of a comparison.

    Args:
        table: Of `CHANGES_SCHEMA`.

    Returns:
        `scans` by state, `changed_scans`, and of each label `compared`, `changed`, `appeared`, `vanished`, the volumes'
        sums, and mean and quantiles of `difference_ml`, `difference_percent`, `dice` and `hd95_mm`; NaN without values.
    """
    counts = pc.value_counts(table.group_by(["scan_id", "state"]).aggregate([])["state"]).to_pylist()
    states = {item["values"]: item["counts"] for item in counts}
    changed = table.select(["scan_id"]).filter(pc.fill_null(table["is_change"], False))
    numbers = table.select(SUMMARISED)
    names = [name for name in table["label"].unique().to_pylist() if name is not None]
    return {
        "scans": {state: states.get(state, 0) for state in STATES},
        "changed_scans": pc.count_distinct(changed["scan_id"]).as_py(),
        "labels": {name: _summarise_label(numbers.filter(pc.equal(table["label"], name))) for name in sorted(names)},
    }


def _summarise_label(rows: pa.Table) -> dict[str, Any]:
    compared = rows.filter(pc.equal(rows["state"], COMPARED))
    return {
        "compared": compared.num_rows,
        **{
            name: int(pc.sum(compared[column]).as_py() or 0)
            for name, column in (("changed", "is_change"), ("appeared", "appeared"), ("vanished", "vanished"))
        },
        **{name: _sum(compared, name) for name in ("volume_ml_before", "volume_ml_after")},
        **{name: _describe(compared[name]) for name in DESCRIBED},
    }


def _describe(column: pa.ChunkedArray) -> dict[str, float]:
    values = _known(column)
    numbers = {"mean": float(values.mean()) if len(values) else math.nan}
    for quantile in QUANTILES:
        numbers[f"q{round(100 * quantile):02d}"] = float(np.quantile(values, quantile)) if len(values) else math.nan
    return numbers


def _sum(rows: pa.Table, name: str) -> float:
    values = _known(rows[name])
    return float(values.sum()) if len(values) else math.nan


def _known(column: pa.ChunkedArray) -> npt.NDArray[np.float64]:
    values = np.asarray(column.drop_null().to_numpy(), np.float64)
    return values[~np.isnan(values)]


def choose_largest(table: pa.Table, count: int = MOST_SHOWN) -> list[tuple[str, str, str]]:
    """The labels of scans that changed most: by the difference of their volumes, then by the lowest Dice.

    Returns:
        Title, scan_id and label of each.
    """
    rows = table.filter(pc.and_(pc.equal(table["state"], COMPARED), pc.fill_null(table["is_change"], False)))
    has_volume = pc.and_(pc.is_valid(rows["volume_ml_before"]), pc.is_valid(rows["volume_ml_after"]))
    voxels = pc.subtract(pc.fill_null(rows["voxels_after"], 0), pc.fill_null(rows["voxels_before"], 0))
    change = pc.abs(pc.if_else(has_volume, rows["difference_ml"], pc.cast(voxels, pa.float64())))
    dice = pc.fill_null(pc.if_else(pc.is_nan(rows["dice"]), None, rows["dice"]), 1.0)
    order = [("change", "descending"), ("rank_dice", "ascending"), ("scan_id", "ascending"), ("label", "ascending")]
    largest = rows.append_column("change", change).append_column("rank_dice", dice).sort_by(order).slice(0, count)
    return [(_title(row), row["scan_id"], row["label"]) for row in largest.to_pylist()]


def _title(row: Mapping[str, Any]) -> str:
    if row["volume_ml_before"] is not None and row["volume_ml_after"] is not None:
        volumes = f"{row['volume_ml_before']:.2f} to {row['volume_ml_after']:.2f} ml"
    else:
        volumes = f"{row['voxels_before']} to {row['voxels_after']} voxels"
    dice = "" if row["dice"] is None or math.isnan(row["dice"]) else f", Dice {row['dice']:.2f}"
    return f"{row['label']}{dice}\n{volumes}\n{row['scan_id']}"


def describe_changes(summary: Mapping[str, Any], out: str) -> list[str]:
    """What `compare` prints at its end."""
    scans = summary["scans"]
    others = ", ".join(f"{count} {state.replace('_', ' ')}" for state, count in scans.items() if count)
    lines = [f"{sum(scans.values())} scans: {others}; {summary['changed_scans']} changed; table in {out}/changes"]
    for name, numbers in summary["labels"].items():
        volume, dice = numbers["difference_ml"], numbers["dice"]
        grown = "" if math.isnan(volume["mean"]) else f", volume {volume['mean']:+.3f} ml on average"
        alike = "" if math.isnan(dice["mean"]) else f", Dice of old and new mask {dice['mean']:.4f} on average"
        lines.append(
            f"  {show_name(name)}: {numbers['changed']} of {numbers['compared']} changed, {numbers['appeared']} "
            f"appeared, {numbers['vanished']} vanished{grown}{alike}"
        )
    return lines
