"""Dates and judgements of finished rows that are brought up to date where they lie."""

from __future__ import annotations

import os
from datetime import date
from pathlib import Path

import pyarrow as pa
import pytest

from raysegment.store.amend import Outdated, amend_tables, find_outdated
from raysegment.store.parts import stage_part
from raysegment.store.place import Place
from raysegment.store.publish import list_parts, prepare_tables, publish_part, read_rows

DAY, OTHER = date(2020, 1, 2), date(2021, 3, 4)
RULE = {"voxels_above": 10}


@pytest.fixture
def place(tmp_path: Path, make_rows) -> Place:
    """Four scans in two parts."""
    place = Place(str(tmp_path))
    prepare_tables(place)
    for scan_ids in (("a", "b"), ("c", "d")):
        rows = [make_rows(scan_id, error_type="EmptyFileError" if scan_id == "b" else None) for scan_id in scan_ids]
        publish_part(place, "_staging/1-x", stage_part(place, "_staging/1-x", rows).name)
    return place


def manifest(**dates: date | None) -> pa.Table:
    """Scans with their days, each of the patient that `make_rows` gives it."""
    columns = {"scan_id": list(dates), "patient_id": ["p"] * len(dates)}
    table = pa.table({name: pa.array(values, pa.string()) for name, values in columns.items()})
    table = table.append_column("scan_date", pa.array(list(dates.values()), pa.date32()))
    return table.append_column("scan_day", pa.nulls(len(dates), pa.int32()))


def inodes(place: Place, table: str) -> dict[str, int]:
    return {name: os.stat(place.path(f"{table}/{name}")).st_ino for name in list_parts(place, table)}


def dates(place: Place) -> dict[str, date | None]:
    rows = read_rows(place, "scans").to_pylist()
    return {row["scan_id"]: row["scan_date"] for row in rows}


def test_the_manifest_decides_and_scans_that_it_does_not_have_keep_their_day(place: Place) -> None:
    first = manifest(a=DAY, b=DAY, c=DAY, d=DAY)
    assert find_outdated(place, first) == Outdated(dates=4)
    assert amend_tables(place, first) == Outdated(dates=4)
    assert not amend_tables(place, first)
    assert amend_tables(place, manifest(a=OTHER, c=None, x=DAY)) == Outdated(dates=2)
    assert dates(place) == {"a": OTHER, "b": DAY, "c": None, "d": DAY}


def test_a_manifest_without_any_day_takes_none_away(place: Place) -> None:
    amend_tables(place, manifest(a=DAY, c=DAY))
    assert not amend_tables(place, manifest(a=None, b=None, c=None, d=None))
    assert dates(place) == {"a": DAY, "b": None, "c": DAY, "d": None}


def test_only_parts_that_are_out_of_date_are_written_anew_and_links_to_them_stay(place: Place, tmp_path: Path) -> None:
    before = {table: inodes(place, table) for table in ("scans", "metrics", "masks")}
    content = {table: read_rows(place, table) for table in ("metrics", "masks")}
    for name in before["scans"]:
        os.link(place.path(f"scans/{name}"), tmp_path / name)
    amend_tables(place, manifest(c=DAY))
    after = {table: inodes(place, table) for table in ("scans", "metrics", "masks")}
    assert sum(before["scans"][name] != after["scans"][name] for name in before["scans"]) == 1
    assert (before["metrics"], before["masks"]) == (after["metrics"], after["masks"])
    assert all(read_rows(place, table).equals(rows) for table, rows in content.items())
    assert prepare_tables(place) == []
    assert all(pa.parquet.read_table(tmp_path / name)["scan_date"].null_count == 2 for name in before["scans"])


def test_rows_are_judged_by_the_rule(place: Place) -> None:
    voxels = read_rows(place, "metrics")["voxels"].to_pylist()
    found = amend_tables(place, manifest(), RULE)
    assert found.reviews == len(voxels) == 3
    assert read_rows(place, "metrics")["needs_review"].to_pylist() == [number > 10 for number in voxels]
    assert not find_outdated(place, manifest(), RULE)
    assert find_outdated(place, manifest(), {}).reviews == 3
    amend_tables(place, manifest(), {})
    assert read_rows(place, "metrics")["needs_review"].to_pylist() == [None] * 3


def test_a_scan_of_another_patient_has_that_one_in_all_tables(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    named = manifest(a=None, d=None)
    named = named.set_column(1, "patient_id", pa.array(["new", "newer"]))
    move, moved = Place.move, []

    def die_at_the_second(place: Place, source: str, target: str) -> None:
        if len(moved) == 1:
            raise KeyboardInterrupt
        moved.append(target)
        move(place, source, target)

    monkeypatch.setattr(Place, "move", die_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        amend_tables(place, named)
    monkeypatch.undo()
    assert amend_tables(place, named) == Outdated(patients=2), "a start that died is taken up"
    assert not amend_tables(place, named)
    for table in ("scans", "metrics"):
        rows = read_rows(place, table).to_pylist()
        assert {row["scan_id"]: row["patient_id"] for row in rows if row["scan_id"] in "ad"} == {
            "a": "new",
            "d": "newer",
        }
        assert {row["patient_id"] for row in rows if row["scan_id"] not in "ad"} == {"p"}
