"""A folder of an older version goes on."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raysegment.errors import UsageError
from raysegment.store.parts import stage_part
from raysegment.store.place import Place
from raysegment.store.publish import list_parts, prepare_tables, publish_part, read_rows
from raysegment.store.schema import ADDED_COLUMNS, SCHEMA_VERSION, SCHEMAS
from raysegment.store.upgrade import bring_up_tables, read_version


@pytest.fixture
def old(tmp_path, make_rows) -> Place:
    """Two parts as version 0.2 wrote them, and one of today."""
    place = Place(str(tmp_path))
    prepare_tables(place)
    for number, scan_ids in enumerate((["a", "b"], ["c"], ["d"])):
        rows = [make_rows(scan_id, error_type="EmptyFileError" if scan_id == "b" else None) for scan_id in scan_ids]
        name = stage_part(place, "_staging/1-x", rows).name
        publish_part(place, "_staging/1-x", name)
        if number < 2:
            make_older(place, name, 1)
    return place


def make_older(place: Place, name: str, version: int) -> None:
    """Take the columns out of a part that came after a version."""
    for added in [ADDED_COLUMNS[later] for later in ADDED_COLUMNS if later > version]:
        for table, columns in added.items():
            path = place.path(f"{table}/{name}")
            pq.write_table(pq.read_table(path, partitioning=None).drop_columns(list(columns)), path)


def test_all_parts_get_todays_columns_under_their_own_names(old):
    names = {table: list_parts(old, table) for table in SCHEMAS}
    before = {table: read_rows(old, table) for table in SCHEMAS}
    assert bring_up_tables(old) == 4
    assert prepare_tables(old) == []
    assert {table: list_parts(old, table) for table in SCHEMAS} == names
    for table, schema in SCHEMAS.items():
        for name in names[table]:
            assert pq.read_schema(old.path(f"{table}/{name}")).equals(schema)
        new = read_rows(old, table).drop_columns(["patient_id"] if table == "metrics" else [])
        assert new.equals(before[table].select(new.column_names))
    assert len(pd.read_parquet(old.path("metrics"))) == 3


def test_the_patient_of_a_metric_is_the_one_of_its_scan(old):
    bring_up_tables(old)
    metrics, scans = read_rows(old, "metrics"), read_rows(old, "scans")
    known = dict(zip(scans["scan_id"].to_pylist(), scans["patient_id"].to_pylist(), strict=True))
    assert metrics["patient_id"].to_pylist() == [known[scan_id] for scan_id in metrics["scan_id"].to_pylist()]
    assert None not in known.values()


def test_what_is_up_is_left_alone_and_a_dead_start_is_taken_up(old, monkeypatch):
    moved, move = [], Place.move

    def die_at_the_third(place, source, target):
        if len(moved) == 2:
            raise KeyboardInterrupt
        moved.append(target)
        move(place, source, target)

    monkeypatch.setattr(Place, "move", die_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        bring_up_tables(old)
    monkeypatch.undo()
    assert prepare_tables(old) == []
    assert bring_up_tables(old) == 2
    assert bring_up_tables(old) == 0


def test_a_folder_of_version_2_gets_doubt_that_nobody_knows(tmp_path, make_rows):
    place = Place(str(tmp_path))
    prepare_tables(place)
    names = [stage_part(place, "_staging/1-x", [make_rows(scan_id)]).name for scan_id in ("a", "b")]
    for name in names:
        publish_part(place, "_staging/1-x", name)
    make_older(place, names[0], 2)
    assert read_version(place, {"schema_version": 2}) == 2
    assert bring_up_tables(place) == 2
    assert bring_up_tables(place) == 0
    metrics = read_rows(place, "metrics")
    assert metrics["patient_id"].to_pylist() == ["p", "p"]
    assert {metrics[name].null_count for name in ADDED_COLUMNS[3]["metrics"]} == {2}
    assert pq.read_schema(place.path(f"metrics/{names[0]}")).equals(SCHEMAS["metrics"])


def test_a_folder_of_version_3_goes_on_with_columns_that_nobody_knows(tmp_path, make_rows):
    place = Place(str(tmp_path))
    prepare_tables(place)
    names = [stage_part(place, "_staging/1-x", [make_rows(scan_id)]).name for scan_id in ("a", "b")]
    for name in names:
        publish_part(place, "_staging/1-x", name)
        make_older(place, name, 3)
    added = ADDED_COLUMNS[4]["scans"]
    assert not set(added) & set(pq.read_schema(place.path(f"scans/{names[0]}")).names)
    assert {read_rows(place, "scans")[name].null_count for name in added} == {2}, "reading needs no upgrade"
    assert bring_up_tables(place) == 2
    assert bring_up_tables(place) == 0
    assert {read_rows(place, "scans")[name].null_count for name in added} == {2}
    assert pq.read_schema(place.path(f"scans/{names[0]}")).equals(SCHEMAS["scans"])


def test_a_newer_folder_is_refused(old):
    assert read_version(old, {}) == 1
    assert read_version(old, {"schema_version": SCHEMA_VERSION}) == SCHEMA_VERSION
    with pytest.raises(UsageError, match=rf"schema_version 99; this raysegment writes {SCHEMA_VERSION}"):
        read_version(old, {"schema_version": 99})


def test_columns_were_only_ever_added():
    assert max(ADDED_COLUMNS) == SCHEMA_VERSION
    for table, added in [item for tables in ADDED_COLUMNS.values() for item in tables.items()]:
        assert set(added) < set(SCHEMAS[table].names)
        assert all(SCHEMAS[table].field(name).nullable for name in added)
    assert pa.types.is_floating(SCHEMAS["metrics"].field("hd95_mm").type)
    assert np.issubdtype(SCHEMAS["metrics"].field("lesions_found").type.to_pandas_dtype(), np.integer)
