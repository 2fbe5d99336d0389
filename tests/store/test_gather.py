"""The parts of several folders of tables in one."""

from __future__ import annotations

import os

import duckdb
import pytest

from raysegment.errors import DamagedTablesError
from raysegment.store import gather
from raysegment.store.gather import gather_parts
from raysegment.store.parts import stage_part
from raysegment.store.place import Place
from raysegment.store.publish import list_parts, prepare_tables, publish_part, read_rows, take_out

STAGED = "_staging/1-x"
FAILED = {"b": "EmptyFileError"}


@pytest.fixture
def sources(tmp_path, make_rows) -> dict[str, Place]:
    """Two folders whose parts have the same names: each was written by a first attempt over scans of one name."""
    found = {}
    for prefix in ("fold-0", "fold-1"):
        place = Place(str(tmp_path / prefix))
        prepare_tables(place)
        for scans in (["a", "b"], ["c"]):
            rows = [
                make_rows(f"{prefix}/{scan}", error_type="EmptyFileError" * (scan == "b") or None) for scan in scans
            ]
            receipt = stage_part(place, STAGED, rows)
            publish_part(place, STAGED, receipt.name)
        found[prefix] = place
    return found


@pytest.fixture
def together(tmp_path) -> Place:
    return Place(str(tmp_path / "together"))


def ids_of(place: Place, table: str) -> list[str]:
    return sorted(read_rows(place, table, ["scan_id"])["scan_id"].to_pylist())


OK = ["fold-0/a", "fold-0/c", "fold-1/a", "fold-1/c"]


def test_every_scan_is_there_once_and_duckdb_opens_the_tables(sources, together):
    gather_parts(together, sources)
    assert ids_of(together, "scans") == sorted([*OK, "fold-0/b", "fold-1/b"])
    assert (ids_of(together, "metrics"), ids_of(together, "masks")) == (OK, OK)
    assert all(name.startswith(("fold-0-", "fold-1-")) for name in list_parts(together, "scans"))
    joined = f"'{together.root}/scans/*.parquet' join '{together.root}/masks/*.parquet' using (scan_id)"
    assert duckdb.sql(f"select count(*) from {joined}").fetchall() == [(4,)]


def test_a_second_time_changes_nothing_and_what_is_gone_goes(sources, together):
    gather_parts(together, sources)
    before = {name: os.stat(together.path(f"scans/{name}")) for name in list_parts(together, "scans")}
    gather_parts(together, sources)
    assert {name: os.stat(together.path(f"scans/{name}")) for name in list_parts(together, "scans")} == before
    gather_parts(together, {"fold-1": sources["fold-1"]})
    assert [ids_of(together, table) for table in ("scans", "metrics", "masks")] == [
        ["fold-1/a", "fold-1/b", "fold-1/c"],
        OK[2:],
        OK[2:],
    ]


def test_a_part_that_was_replaced_under_its_own_name_is_followed(sources, together, make_rows):
    gather_parts(together, sources)
    take_out(sources["fold-0"], read_rows(sources["fold-0"], "scans", ["scan_id"])["scan_id"].slice(0, 1))
    assert len(ids_of(together, "scans")) == 6
    gather_parts(together, sources)
    assert len(ids_of(together, "scans")) == 5


@pytest.mark.parametrize("moves_before_death", range(1, 12))
def test_the_next_start_finishes_what_a_dead_driver_began(sources, together, monkeypatch, moves_before_death):
    left = [moves_before_death]
    move = Place.move

    def die(place: Place, source: str, target: str) -> None:
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        move(place, source, target)

    monkeypatch.setattr(Place, "move", die)
    with pytest.raises(KeyboardInterrupt):
        gather_parts(together, sources)
    published = ids_of(together, "scans")
    assert set(ids_of(together, "masks")) >= {name for name in published if not name.endswith("/b")}
    monkeypatch.undo()
    gather_parts(together, sources)
    assert [ids_of(together, table) for table in ("metrics", "masks")] == [OK, OK]
    assert len(ids_of(together, "scans")) == 6


def test_without_links_parts_are_copied(sources, together, monkeypatch):
    def refuse(*unused: object) -> None:
        raise OSError("no links here")

    monkeypatch.setattr(gather.os, "link", refuse)
    gather_parts(together, sources)
    assert ids_of(together, "masks") == OK


def test_a_source_with_a_lost_part_is_refused(sources, together):
    place = sources["fold-1"]
    place.delete(f"masks/{list_parts(place, 'masks')[0]}")
    with pytest.raises(DamagedTablesError):
        gather_parts(together, sources)
