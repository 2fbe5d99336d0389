"""Volumes of each patient over time, and how fast they grow, with 95 % intervals.

Growth is the slope of a straight line through the volumes of all scans against their days, by least squares: in
millilitres a year, and of the logarithms of the volumes in percent a year and as the time in which they double. Several
scans of one day count as several. An interval is the slope, more or less its standard error times Student's t with two
degrees of freedom fewer than there are scans; it takes scans for independent and the deviations from the line for
normal, so it says nothing of what all masks of a patient have wrong in the same way.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from raysegment.store.schema import GROWTH_SCHEMA, STATUS_OK, TRAJECTORIES_SCHEMA

DAYS_A_YEAR = 365.25
CONFIDENCE = 0.95

SCAN_COLUMNS = ["scan_id", "patient_id", "scan_date", "scan_day", "status"]
DAYS = ("scan_date", "scan_day")
METRIC_COLUMNS = ["scan_id", "label", "volume_ml", "needs_review"]

Numbers = npt.NDArray[np.float64]
Positions = npt.NDArray[np.intp]


@dataclass(frozen=True)
class Trajectories:
    """Volumes over time.

    Attributes:
        rows: Of `TRAJECTORIES_SCHEMA`.
        growth: Of `GROWTH_SCHEMA`; empty where no patient has volumes of two days.
        scans_without_date: Scans that are segmented and left out because nobody says their day.
        scans_without_volume: Scans with a date that are left out because their spacing is unknown.
    """

    rows: pa.Table
    growth: pa.Table
    scans_without_date: int
    scans_without_volume: int

    def count(self) -> dict[str, int]:
        """Patients who were followed, and in how many of them a label grows or shrinks beyond its interval."""
        growth = self.growth
        return {
            "patients_followed": _count_different(growth["patient_id"]),
            "patients_growing": _count_different(growth.filter(growth["grows"])["patient_id"]),
            "patients_shrinking": _count_different(growth.filter(growth["shrinks"])["patient_id"]),
            "patients_without_interval": _count_different(growth["patient_id"])
            - _count_different(growth.filter(pc.is_valid(growth["grows"]))["patient_id"]),
            "scans_without_date": self.scans_without_date,
            "scans_without_volume": self.scans_without_volume,
        }


@dataclass(frozen=True)
class Lines:
    """Straight lines by least squares, one for each group of points.

    Attributes:
        slope: Per unit of x.
        half: Half the width of the slope's interval; NaN for two points.
    """

    slope: Numbers
    half: Numbers

    @property
    def low(self) -> Numbers:
        return self.slope - self.half

    @property
    def high(self) -> Numbers:
        return self.slope + self.half


def build_trajectories(scans: pa.Table, metrics: pa.Table) -> Trajectories:
    """Volumes over time from the tables of a run.

    Args:
        scans: Rows of `scans` with SCAN_COLUMNS.
        metrics: Rows of `metrics` with METRIC_COLUMNS.
    """
    scans = _keep_one_count(scans.filter(pc.equal(scans["status"], STATUS_OK)))
    position = pc.index_in(metrics["scan_id"], value_set=scans["scan_id"].combine_chunks())
    table = metrics.select(METRIC_COLUMNS)
    for name in ("patient_id", *DAYS):
        table = table.append_column(name, pc.take(scans[name], position))
    has_date = pc.is_valid(count_days(table))
    has_volume = pc.is_valid(pc.if_else(pc.is_nan(table["volume_ml"]), None, table["volume_ml"]))
    lacks_volume = pc.and_(has_date, pc.invert(has_volume))
    rows = table.filter(pc.and_(has_date, has_volume)).select(TRAJECTORIES_SCHEMA.names).cast(TRAJECTORIES_SCHEMA)
    rows = rows.sort_by([(name, "ascending") for name in ("patient_id", "label", *DAYS, "scan_id")])
    left_out = {
        "scans_without_date": table.filter(pc.invert(has_date)),
        "scans_without_volume": table.filter(lacks_volume),
    }
    growth = measure_growth(rows)
    for name, lacking in left_out.items():
        index = growth.schema.get_field_index(name)
        growth = growth.set_column(index, GROWTH_SCHEMA.field(name), _count_by_label(growth, lacking))
    return Trajectories(rows, growth, *(_count_different(lacking["scan_id"]) for lacking in left_out.values()))


def measure_growth(rows: pa.Table) -> pa.Table:
    """How fast the volumes of each patient and label grow, where there are two days or more.

    Args:
        rows: Of `TRAJECTORIES_SCHEMA`, by patient, label and day.

    Returns:
        A table of `GROWTH_SCHEMA`; what was left out is not counted yet.
    """
    days = count_days(rows).to_numpy().astype(np.float64)
    volumes = rows["volume_ml"].to_numpy()
    starts = _find_starts(rows)
    counts = np.diff(np.append(starts, len(days)))
    first, last = days[starts], days[starts + counts - 1]
    chosen = np.repeat(last > first, counts)
    if not chosen.any():
        return GROWTH_SCHEMA.empty_table()
    rows, days, volumes = rows.filter(pa.array(chosen)), days[chosen], volumes[chosen]
    starts = _find_starts(rows)
    counts = np.diff(np.append(starts, len(days)))
    years = days / DAYS_A_YEAR
    lines = fit_lines(years, volumes, starts)
    first, last = days[starts], days[starts + counts - 1]
    with np.errstate(invalid="ignore"):
        grows, shrinks = lines.low > 0, lines.high < 0
    has_interval = np.isfinite(lines.half)
    has_no_date = rows["scan_date"].take(pa.array(starts)).is_null().to_numpy()
    columns: dict[str, Any] = {
        "patient_id": rows["patient_id"].take(pa.array(starts)),
        "label": rows["label"].take(pa.array(starts)),
        "num_scans": counts,
        "num_dates": np.add.reduceat(_is_new(days, starts), starts),
        "first_date": pa.array(first.astype(np.int32), pa.int32(), mask=has_no_date).cast(pa.date32()),
        "last_date": pa.array(last.astype(np.int32), pa.int32(), mask=has_no_date).cast(pa.date32()),
        "days": (last - first).astype(np.int64),
        "first_volume_ml": _mean_where(volumes, days == np.repeat(first, counts), starts),
        "last_volume_ml": _mean_where(volumes, days == np.repeat(last, counts), starts),
        "ml_per_year": lines.slope,
        "ml_per_year_low": _or_null(lines.low),
        "ml_per_year_high": _or_null(lines.high),
        **_measure_relative(years, volumes, starts, counts),
        "grows": pa.array(grows, mask=~has_interval),
        "shrinks": pa.array(shrinks, mask=~has_interval),
        "scans_without_date": np.zeros(len(starts), np.int64),
        "scans_without_volume": np.zeros(len(starts), np.int64),
    }
    return pa.table({name: columns[name] for name in GROWTH_SCHEMA.names}, schema=GROWTH_SCHEMA)


def count_days(rows: pa.Table) -> pa.ChunkedArray:
    """Days since 1970 where a scan has a date, else since the patient's first scan; null where neither is known."""
    return pc.coalesce(rows["scan_date"].cast(pa.int32()), rows["scan_day"])


def fit_lines(x: Numbers, y: Numbers, starts: Positions) -> Lines:
    """Fit a straight line to each group of points by least squares.

    Args:
        x: Of all points, group after group; at least two different ones in each.
        y: Of the same points.
        starts: Position of the first point of each group.
    """
    from scipy.special import stdtrit

    counts = np.diff(np.append(starts, len(x)))
    dx = x - np.repeat(np.add.reduceat(x, starts) / counts, counts)
    dy = y - np.repeat(np.add.reduceat(y, starts) / counts, counts)
    spread = np.add.reduceat(dx**2, starts)
    slope = np.add.reduceat(dx * dy, starts) / spread
    left = np.add.reduceat((dy - np.repeat(slope, counts) * dx) ** 2, starts)
    freedom = np.where(counts > 2, counts - 2, np.nan)
    return Lines(slope, stdtrit(freedom, 0.5 + CONFIDENCE / 2) * np.sqrt(left / freedom / spread))


def _keep_one_count(scans: pa.Table) -> pa.Table:
    """Days since the first scan only of patients of whom no date is known: the two cannot be put on one line."""
    dated = scans.filter(pc.is_valid(scans["scan_date"]))["patient_id"].unique()
    days = pc.if_else(pc.is_in(scans["patient_id"], value_set=dated), None, scans["scan_day"])
    return scans.set_column(scans.schema.get_field_index("scan_day"), "scan_day", days)


def _measure_relative(years: Numbers, volumes: Numbers, starts: Positions, counts: Positions) -> dict[str, pa.Array]:
    """Percent a year and days to double, by the logarithms of the volumes; null where one of them is 0."""
    is_positive = np.minimum.reduceat(volumes, starts) > 0
    lines = fit_lines(years, np.log(np.where(np.repeat(is_positive, counts), volumes, 1.0)), starts)
    with np.errstate(all="ignore"):
        bounds = np.stack([math.log(2) * DAYS_A_YEAR / side for side in (lines.high, lines.low)])
        is_one_way = lines.low * lines.high > 0
        found = {
            **{
                f"percent_per_year{end}": 100 * np.expm1(side)
                for end, side in (("", lines.slope), ("_low", lines.low), ("_high", lines.high))
            },
            "doubling_days": math.log(2) * DAYS_A_YEAR / lines.slope,
            "doubling_days_low": np.where(is_one_way, bounds[0], np.nan),
            "doubling_days_high": np.where(is_one_way, bounds[1], np.nan),
        }
    return {name: _or_null(np.where(is_positive, values, np.nan)) for name, values in found.items()}


def _find_starts(rows: pa.Table) -> Positions:
    """Position of the first row of each patient and label."""
    is_first = np.ones(rows.num_rows, np.bool_)
    if rows.num_rows:
        codes = [
            rows[name].combine_chunks().dictionary_encode().indices.to_numpy(zero_copy_only=False)
            for name in ("patient_id", "label")
        ]
        is_first[1:] = np.logical_or.reduce([code[1:] != code[:-1] for code in codes])
    return np.flatnonzero(is_first)


def _is_new(days: Numbers, starts: Positions) -> npt.NDArray[np.int64]:
    """1 for the first scan of each day of a group."""
    new = np.ones(len(days), np.int64)
    new[1:] = days[1:] != days[:-1]
    new[starts] = 1
    return new


def _mean_where(values: Numbers, chosen: npt.NDArray[np.bool_], starts: Positions) -> Numbers:
    return np.add.reduceat(np.where(chosen, values, 0.0), starts) / np.add.reduceat(chosen.astype(np.int64), starts)


def _or_null(values: Numbers) -> pa.Array:
    """Null for what is no number, or larger than all numbers."""
    return pa.array(values, mask=~np.isfinite(values))


def _count_by_label(growth: pa.Table, lacking: pa.Table) -> pa.Array:
    """How many of some rows are of each patient and label of `growth`."""
    grouped = lacking.group_by(["patient_id", "label"]).aggregate([("scan_id", "count")])
    keys = zip(grouped["patient_id"].to_pylist(), grouped["label"].to_pylist(), strict=True)
    counts = dict(zip(keys, grouped["scan_id_count"].to_pylist(), strict=True))
    wanted = zip(growth["patient_id"].to_pylist(), growth["label"].to_pylist(), strict=True)
    return pa.array([counts.get(key, 0) for key in wanted], pa.int64())


def _count_different(column: pa.ChunkedArray) -> int:
    return int(pc.count_distinct(column).as_py())
