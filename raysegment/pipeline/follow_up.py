"""The folder `trajectories`: volumes over time and their growth as tables, and a picture of some patients."""

from __future__ import annotations

import io
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from raysegment.pipeline.trajectories import (
    DAYS_A_YEAR,
    METRIC_COLUMNS,
    SCAN_COLUMNS,
    Trajectories,
    build_trajectories,
)
from raysegment.store.place import Place, report_full_disk
from raysegment.store.publish import read_rows

FOLDER = "trajectories"
TRAJECTORIES_FILE, GROWTH_FILE, PICTURE_FILE = (
    f"{FOLDER}/{name}" for name in ("trajectories.parquet", "growth.parquet", "trajectories.png")
)
MADE_FROM = b"raysegment.made_from"
"""Key of both tables' metadata: the result that they were made from."""

MAX_PANELS = 12
LINE_POINTS = 40
LEFT_OUT = ("scans_without_date", "scans_without_volume")


def publish_trajectories(tables: Place, out: Place, made_from: str) -> Trajectories:
    """Write what a run's tables tell of patients over time; where no patient has volumes of two days, nothing is left.

    Each file is replaced in one step.

    Args:
        tables: The run's folder.
        out: Where `trajectories/` goes.
        made_from: Name of the run, for the tables' metadata.

    Raises:
        DamagedTablesError: A part cannot be read.
        DiskFullError: No space left; files of before stay.
    """
    found = build_trajectories(read_rows(tables, "scans", SCAN_COLUMNS), read_rows(tables, "metrics", METRIC_COLUMNS))
    if not found.growth.num_rows:
        out.delete(FOLDER)
        return found
    picture = draw_followed(found)
    out.make_folder(FOLDER)
    for name, table in ((TRAJECTORIES_FILE, found.rows), (GROWTH_FILE, found.growth)):
        sink = io.BytesIO()
        pq.write_table(table.replace_schema_metadata({MADE_FROM: made_from}), sink, compression="zstd")
        out.write_bytes(name, sink.getvalue())
    out.write_bytes(PICTURE_FILE, picture)
    out.sync_folder(FOLDER)
    return found


def draw_followed(found: Trajectories) -> bytes:
    """The picture, as PNG: at most `MAX_PANELS` patients of `choose_shown`."""
    from raysegment.pictures.trajectories import draw_trajectories

    shown = choose_shown(found.growth)
    rows = found.rows.filter(pc.is_in(found.rows["patient_id"], value_set=pa.array(shown, pa.string())))
    growth = found.growth.filter(pc.is_in(found.growth["patient_id"], value_set=pa.array(shown, pa.string())))
    by_key: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in rows.to_pylist():
        by_key.setdefault((row["patient_id"], row["label"]), []).append(row)
    patients: dict[str, list[Any]] = {patient: [] for patient in shown}
    for measured in growth.to_pylist():
        patients[measured["patient_id"]].append(
            _make_course(by_key[measured["patient_id"], measured["label"]], measured)
        )
    num_followed = found.count()["patients_followed"]
    which = f": {len(shown)} of {num_followed} patients, who grow most or have most scans"
    title = f"volume over time{which if num_followed > len(shown) else ''}"
    with tempfile.TemporaryDirectory() as folder, report_full_disk(folder):
        path = Path(folder) / "trajectories.png"
        draw_trajectories(patients, path, title=title)
        return path.read_bytes()


def choose_shown(growth: pa.Table) -> list[str]:
    """Patients for the picture: those who grow beyond their interval by how fast they do, then those with most scans.

    Args:
        growth: Of `GROWTH_SCHEMA`.
    """
    best: dict[str, tuple[Any, ...]] = {}
    for row in growth.select(["patient_id", "grows", "ml_per_year", "num_scans"]).to_pylist():
        grows = bool(row["grows"])
        rank = (not grows, -row["ml_per_year"] if grows else 0.0, -row["num_scans"], -abs(row["ml_per_year"]))
        best[row["patient_id"]] = min(best.get(row["patient_id"], rank), rank)
    return sorted(best, key=lambda patient: (best[patient], patient))[:MAX_PANELS]


def describe_trajectories(counts: dict[str, int], where: str) -> list[str]:
    """One line on patients over time; none where nobody was followed.

    Args:
        counts: Of `Trajectories.count`.
        where: The folder that has them.
    """
    followed = counts["patients_followed"]
    if not followed:
        return []
    parts = [f"{counts['patients_growing']} grew beyond the interval, {counts['patients_shrinking']} shrank"]
    if counts["patients_without_interval"]:
        parts.append(f"{counts['patients_without_interval']} with too few scans for one")
    people = "1 patient has" if followed == 1 else f"{followed} patients have"
    left_out = [f"{counts[name]} {name.replace('_', ' ')}" for name in LEFT_OUT if counts[name]]
    without = f"; left out: {', '.join(left_out)}" if left_out else ""
    return [f"{'follow-up':<10}{people} scans of two days or more: {', '.join(parts)}{without}; {where}"]


def _make_course(rows: list[dict[str, Any]], measured: dict[str, Any]) -> Any:
    """What is drawn of one patient and label."""
    from raysegment.pictures.trajectories import Course

    is_dated = rows[0]["scan_date"] is not None
    days = np.array([row["scan_date"].toordinal() if is_dated else row["scan_day"] for row in rows], np.float64)
    days -= np.datetime64(0, "D").astype(object).toordinal() if is_dated else 0
    volumes = np.array([row["volume_ml"] for row in rows])
    line_days = np.linspace(days[0], days[-1], LINE_POINTS)
    centred = (line_days - days.mean()) / DAYS_A_YEAR
    spread = float((((days - days.mean()) / DAYS_A_YEAR) ** 2).sum())
    high = measured["ml_per_year_high"]
    half_slope = np.nan if high is None else high - measured["ml_per_year"]
    return Course(
        label=measured["label"],
        days=days,
        is_dated=is_dated,
        volumes_ml=volumes,
        needs_review=np.array([bool(row["needs_review"]) for row in rows]),
        line_days=line_days,
        line_ml=volumes.mean() + measured["ml_per_year"] * centred,
        half_ml=half_slope * np.sqrt(spread / len(days) + centred**2),
        growth=_describe_growth(measured),
    )


def _describe_growth(measured: dict[str, Any]) -> str:
    low, high = measured["ml_per_year_low"], measured["ml_per_year_high"]
    interval = "" if low is None else f" ({low:.3g} to {high:.3g})"
    return f"{measured['ml_per_year']:+.3g}{interval} ml a year"
