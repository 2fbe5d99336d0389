"""Growth of volumes against SciPy's regressions, and what is left out of it."""

from __future__ import annotations

import math
from datetime import date, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from raysegment.pipeline.follow_up import (
    MAX_PANELS,
    choose_shown,
    describe_trajectories,
    draw_followed,
    publish_trajectories,
)
from raysegment.pipeline.trajectories import METRIC_COLUMNS, SCAN_COLUMNS, Trajectories, build_trajectories
from raysegment.store.place import Place
from raysegment.store.schema import GROWTH_SCHEMA, METRICS_SCHEMA, SCANS_SCHEMA, TRAJECTORIES_SCHEMA

START = date(2020, 1, 1)


def build(*scans: tuple[str, int | None, float], label: str = "lesion", status: str = "ok") -> Trajectories:
    """Scans as (patient, days since the start or None, volume)."""
    return build_trajectories(*tables(scans, label, status))


def tables(scans, label: str = "lesion", status: str = "ok") -> tuple[pa.Table, pa.Table]:
    rows, metrics = [], []
    for number, (patient, day, volume) in enumerate(scans):
        known = {"scan_id": f"{number:03d}", "patient_id": patient}
        day_of = None if day is None else START + timedelta(days=day)
        rows.append(known | {"scan_date": day_of, "status": status})
        metrics.append(known | {"label": label, "volume_ml": volume, "needs_review": number == 0})
    schemas = (
        pa.schema([schema.field(name) for name in names])
        for schema, names in ((SCANS_SCHEMA, SCAN_COLUMNS), (METRICS_SCHEMA, METRIC_COLUMNS))
    )
    first, second = schemas
    return pa.Table.from_pylist(rows, schema=first), pa.Table.from_pylist(metrics, schema=second)


patient_scans = st.lists(
    st.tuples(st.integers(0, 4000), st.one_of(st.just(0.0), st.floats(0.01, 500))), min_size=0, max_size=8
)


@given(st.lists(patient_scans, min_size=1, max_size=5))
@settings(max_examples=80, deadline=None)
def test_growth_and_interval_are_those_of_scipy(patients: list[list[tuple[int, float]]]) -> None:
    found = build(*((f"p{number}", *scan) for number, scans in enumerate(patients) for scan in scans))
    followed = {f"p{n}": sorted(scans) for n, scans in enumerate(patients) if len({day for day, _ in scans}) > 1}
    assert found.growth.schema.equals(GROWTH_SCHEMA)
    assert found.growth["patient_id"].to_pylist() == sorted(followed)
    for row in found.growth.to_pylist():
        days, volumes = (np.array(column, float) for column in zip(*followed[row["patient_id"]], strict=True))
        check_line(row, "ml_per_year", days, volumes, lambda slope: slope)
        assert (row["num_scans"], row["num_dates"]) == (len(days), len(set(days)))
        assert row["days"] == days.max() - days.min() == (row["last_date"] - row["first_date"]).days
        assert row["first_volume_ml"] == pytest.approx(volumes[days == days.min()].mean())
        assert row["last_volume_ml"] == pytest.approx(volumes[days == days.max()].mean())
        if (volumes > 0).all():
            logs = np.log(volumes)
            check_line(row, "percent_per_year", days, logs, lambda slope: 100 * (np.exp(min(slope, 1e3)) - 1))
        else:
            assert row["percent_per_year"] is row["doubling_days"] is row["percent_per_year_low"] is None


def check_line(row: dict, name: str, days: np.ndarray, values: np.ndarray, turn) -> None:
    line = stats.linregress(days / 365.25, values)
    scale = np.abs(values).max() / (np.ptp(days) / 365.25) + 1e-9
    close = {"rel": 1e-6, "abs": 1e-7 * scale}
    expected = turn(line.slope)
    if math.isfinite(expected) and expected < 1e6:
        assert row[name] == pytest.approx(expected, **(close if name == "ml_per_year" else {"rel": 1e-5, "abs": 1e-3}))
    if len(days) == 2:
        assert row[f"{name}_low"] is row[f"{name}_high"] is row["grows"] is row["shrinks"] is None
        return
    # SciPy knows no error of a line through values that are all the same; it is 0.
    half = 0.0 if np.ptp(values) == 0 else stats.t.ppf(0.975, len(days) - 2) * line.stderr
    for end, side in (("low", line.slope - half), ("high", line.slope + half)):
        found = row[f"{name}_{end}"]
        if name == "ml_per_year":
            assert found == pytest.approx(side, rel=1e-5, abs=1e-5 * scale)
        elif abs(side) < 20:
            assert math.log1p(found / 100) == pytest.approx(side, rel=1e-5, abs=1e-5 * scale)


def test_a_volume_that_doubles_every_hundred_days() -> None:
    scans = [("a", day, 3.0 * 2 ** (day / 100)) for day in (0, 50, 200, 330)]
    row = build(*scans).growth.to_pylist()[0]
    assert row["doubling_days"] == pytest.approx(100)
    assert row["percent_per_year"] == pytest.approx(100 * (2**3.6525 - 1))
    assert row["doubling_days_low"] == pytest.approx(100, rel=1e-6)
    halved = build(*((patient, day, 1 / volume) for patient, day, volume in scans)).growth.to_pylist()[0]
    assert halved["doubling_days"] == pytest.approx(-100)


def test_doubling_has_an_interval_only_where_growth_has_a_sign() -> None:
    row = build(("a", 0, 10.0), ("a", 100, 13.0), ("a", 200, 14.0), ("a", 300, 18.0)).growth.to_pylist()[0]
    days, logs = np.array([0, 100, 200, 300.0]), np.log([10.0, 13.0, 14.0, 18.0])
    line = stats.linregress(days, logs)
    half = stats.t.ppf(0.975, 2) * line.stderr
    assert row["grows"]
    assert row["doubling_days"] == pytest.approx(math.log(2) / line.slope)
    assert row["doubling_days_low"] == pytest.approx(math.log(2) / (line.slope + half))
    assert row["doubling_days_high"] == pytest.approx(math.log(2) / (line.slope - half))
    unsure = build(("a", 0, 10.0), ("a", 100, 17.0), ("a", 200, 11.0)).growth.to_pylist()[0]
    assert (unsure["grows"], unsure["shrinks"], unsure["doubling_days_low"]) == (False, False, None)


def test_volumes_that_stay_grow_by_nothing() -> None:
    row = build(("a", 0, 5.0), ("a", 100, 5.0), ("a", 200, 5.0)).growth.to_pylist()[0]
    assert (row["ml_per_year"], row["ml_per_year_low"], row["percent_per_year"]) == (0, 0, 0)
    assert (row["grows"], row["shrinks"], row["doubling_days"]) == (False, False, None)


def test_scans_without_date_or_volume_are_left_out_and_counted() -> None:
    found = build(("a", 0, 1.0), ("a", 10, math.nan), ("a", None, 2.0), ("a", 20, 2.0), ("b", None, 1.0))
    assert found.rows["scan_id"].to_pylist() == ["000", "003"]
    assert found.rows.schema.equals(TRAJECTORIES_SCHEMA)
    row = found.growth.to_pylist()[0]
    assert (row["num_scans"], row["scans_without_date"], row["scans_without_volume"]) == (2, 1, 1)
    counts = found.count()
    assert counts == {
        "patients_followed": 1,
        "patients_growing": 0,
        "patients_shrinking": 0,
        "patients_without_interval": 1,
        "scans_without_date": 2,
        "scans_without_volume": 1,
    }
    assert describe_trajectories(counts, "here") == [
        "follow-up 1 patient has scans of two days or more: 0 grew beyond the interval, 0 shrank, 1 with too few scans "
        "for one; left out: 2 scans without date, 1 scans without volume; here"
    ]
    assert build(("a", 0, 1.0), ("a", 9, 2.0), status="failed").growth.num_rows == 0


def test_labels_of_a_patient_are_apart() -> None:
    scans, first = tables([("a", 0, 1.0), ("a", 365, 2.0)], label="core")
    _, second = tables([("a", 0, 10.0), ("a", 365, 8.0)], label="whole")
    growth = build_trajectories(scans, pa.concat_tables([second, first])).growth
    assert growth["label"].to_pylist() == ["core", "whole"]
    assert growth["ml_per_year"].to_pylist() == pytest.approx([1.0 * 365.25 / 365, -2.0 * 365.25 / 365])


def write_tables(place: Place, scans: pa.Table, metrics: pa.Table) -> None:
    for name, table in (("scans", scans), ("metrics", metrics)):
        place.write_table(f"{name}/1-x.parquet", table)


def test_the_folder_is_written_and_goes_again_where_nobody_is_followed(tmp_path: Path) -> None:
    place, out = Place(str(tmp_path / "run")), Place(str(tmp_path / "cohort"))
    out.make_folder()
    followed = tables([(f"p{number:02d}", day, 1.0 + number + day) for number in range(14) for day in (0, 30, 60)])
    write_tables(place, *followed)
    found = publish_trajectories(place, out, "000001-x")
    assert sorted(path.name for path in (tmp_path / "cohort" / "trajectories").iterdir()) == [
        "growth.parquet",
        "trajectories.parquet",
        "trajectories.png",
    ]
    growth = pq.read_table(out.path("trajectories/growth.parquet"))
    assert growth.schema.metadata == {b"raysegment.made_from": b"000001-x"}
    assert growth.equals(found.growth)
    assert pq.read_table(out.path("trajectories/trajectories.parquet")).num_rows == 42
    assert Path(out.path("trajectories/trajectories.png")).read_bytes().startswith(b"\x89PNG")
    write_tables(place, *tables([("a", 0, 1.0), ("a", 0, 2.0), ("b", 4, 1.0)]))
    assert publish_trajectories(place, out, "000002-x").growth.num_rows == 0
    assert not (tmp_path / "cohort" / "trajectories").exists()


def test_the_picture_shows_those_who_grow_most_then_those_with_most_scans() -> None:
    scans = [(f"grows{rate:02d}", day, 1.0 + rate * day) for rate in range(1, 9) for day in (0, 10, 20)]
    scans += [(f"stays{count:02d}", day, 5.0 + day % 2) for count in range(3, 12) for day in range(count)]
    shown = choose_shown(build(*scans).growth)
    assert shown == [f"grows{rate:02d}" for rate in range(8, 0, -1)] + [f"stays{count:02d}" for count in (11, 10, 9, 8)]
    assert len(shown) == MAX_PANELS


def test_days_since_the_first_scan_take_the_place_of_dates_that_nobody_may_know(tmp_path: Path) -> None:
    scans, metrics = tables(
        [("dated", day, 1.0 + day) for day in (0, 100)] + [("p", day, 2.0 + day) for day in (7, 373)]
    )
    days = pa.array([None, 5, 0, 366], pa.int32())
    dates = pa.array([*scans["scan_date"].to_pylist()[:2], None, None], pa.date32())
    scans = scans.set_column(scans.schema.get_field_index("scan_day"), "scan_day", days)
    scans = scans.set_column(scans.schema.get_field_index("scan_date"), "scan_date", dates)
    found = build_trajectories(scans, metrics)
    dated, followed = found.growth.to_pylist()
    assert (dated["first_date"], dated["days"]) == (START, 100)
    assert (followed["first_date"], followed["last_date"]) == (None, None)
    assert (followed["days"], followed["num_dates"]) == (366, 2)
    assert followed["ml_per_year"] == pytest.approx(365.25)
    assert found.rows["scan_day"].to_pylist() == [None, None, 0, 366]
    assert draw_followed(found).startswith(b"\x89PNG")


def test_a_scan_with_a_day_among_dated_ones_of_its_patient_is_left_out() -> None:
    scans, metrics = tables([("p", 0, 1.0), ("p", 10, 2.0), ("p", None, 3.0)])
    scans = scans.set_column(
        scans.schema.get_field_index("scan_day"), "scan_day", pa.array([None, None, 4], pa.int32())
    )
    found = build_trajectories(scans, metrics)
    assert (found.rows.num_rows, found.scans_without_date) == (2, 1)
