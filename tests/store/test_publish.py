from __future__ import annotations

import duckdb
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raysegment.errors import DiskFullError
from raysegment.store import publish
from raysegment.store.masks import decode_mask
from raysegment.store.parts import OpenPart, ScanRows, stage_part
from raysegment.store.place import Place, report_full_disk
from raysegment.store.publish import list_parts, prepare_tables, publish_part, read_finished, read_rows, take_out

FOLDER = "_staging/1-x"


def ids_of(place: Place, table: str) -> list[str]:
    return sorted(read_rows(place, table, ["scan_id"])["scan_id"].to_pylist())


def publish_rows(place: Place, rows: list[ScanRows]) -> str:
    receipt = stage_part(place, FOLDER, rows)
    publish_part(place, FOLDER, receipt.name)
    return receipt.name


@pytest.fixture
def place(tmp_path) -> Place:
    place = Place(str(tmp_path))
    prepare_tables(place)
    return place


def test_a_published_part_is_in_all_tables_under_one_name(place, make_rows):
    name = publish_rows(place, [make_rows("a"), make_rows("b", error_type="EmptyFileError")])
    assert [list_parts(place, table) for table in ("scans", "metrics", "masks")] == [[name]] * 3
    assert (ids_of(place, "scans"), ids_of(place, "metrics"), ids_of(place, "masks")) == (["a", "b"], ["a"], ["a"])


def test_pandas_and_duckdb_open_the_tables(place, make_rows):
    publish_rows(place, [make_rows("a"), make_rows("b", error_type="EmptyFileError")])
    publish_rows(place, [make_rows("c")])
    assert sorted(pd.read_parquet(place.path("scans"))["scan_id"]) == ["a", "b", "c"]
    found = duckdb.sql(
        f"select s.scan_id, m.voxels, k.shape from '{place.root}/scans/*.parquet' s "
        f"join '{place.root}/metrics/*.parquet' m using (scan_id) join '{place.root}/masks/*.parquet' k using (scan_id)"
        " order by 1"
    ).fetchall()
    assert found == [("a", 24, [2, 3, 4]), ("c", 24, [2, 3, 4])]
    mask = pd.read_parquet(place.path("masks")).iloc[0]
    assert decode_mask(mask).shape == (2, 3, 4)


def test_a_part_of_failed_scans_only_still_opens(place, make_rows):
    publish_rows(place, [make_rows("b", error_type="EmptyFileError")])
    assert len(pd.read_parquet(place.path("masks"))) == 0


def test_start_up_removes_what_a_dead_driver_left_between_two_renames(place, make_rows):
    publish_rows(place, [make_rows("a")])
    receipt = stage_part(place, FOLDER, [make_rows("b")])
    for table in ("masks", "metrics"):
        place.move(f"{FOLDER}/{table}/{receipt.name}", f"{table}/{receipt.name}")
    prepare_tables(place)
    assert [ids_of(place, table) for table in ("scans", "metrics", "masks")] == [["a"]] * 3
    assert place.list_names("_staging") == []


def test_scans_are_taken_out_of_their_part_and_empty_parts_vanish(place, make_rows):
    first = publish_rows(place, [make_rows("a"), make_rows("b")])
    publish_rows(place, [make_rows("c", error_type="AccessError")])
    take_out(place, pa.array(["b", "c", "unknown"]))
    assert [ids_of(place, table) for table in ("scans", "metrics", "masks")] == [["a"]] * 3
    assert list_parts(place, "scans") == list_parts(place, "masks") == [first]


@pytest.mark.parametrize("moves_before_death", [0, 1, 2])
def test_taking_out_is_finished_by_the_next_start(place, make_rows, monkeypatch, moves_before_death):
    publish_rows(place, [make_rows("a"), make_rows("b")])
    moves = []

    def die_later(source: str, target: str) -> None:
        if len(moves) == moves_before_death:
            raise KeyboardInterrupt
        moves.append(target)
        Place.move(place, source, target)

    monkeypatch.setattr(place, "move", die_later)
    with pytest.raises(KeyboardInterrupt):
        take_out(place, pa.array(["b"]))
    monkeypatch.undo()
    prepare_tables(place)
    assert [ids_of(place, table) for table in ("scans", "metrics", "masks")] == [["a"]] * 3
    assert not place.exists(publish.TAKING_OUT)


def test_what_is_finished_tells_status_and_fingerprint(place, make_rows):
    publish_rows(place, [make_rows("a", fingerprint="1"), make_rows("b", error_type="AccessError")])
    rows = {row["scan_id"]: row for row in read_finished(place).to_pylist()}
    assert rows["a"] == {"scan_id": "a", "fingerprint": "1", "status": "ok", "error_type": None}
    assert rows["b"]["error_type"] == "AccessError"


def test_reading_tables_that_do_not_exist_yet_gives_no_rows(tmp_path):
    assert read_finished(Place(str(tmp_path / "none"))).num_rows == 0


def test_an_open_part_is_due_at_its_size_or_some_time_after_its_first_scan(place, make_rows):
    now = [100.0]
    part = OpenPart(place, FOLDER, max_bytes=2500, max_seconds=10, clock=lambda: now[0])
    assert not part.is_due
    part.add(make_rows("a"))
    assert not part.is_due
    now[0] = 110.0
    assert part.is_due
    assert part.close().scan_ids == ("a",)
    assert part.close() is None
    for scan_id in ("b", "c", "d"):
        part.add(make_rows(scan_id))
    assert part.is_due


def test_staging_the_same_scans_twice_gives_the_same_name(place, make_rows):
    first, second = (stage_part(place, FOLDER, [make_rows("a")]) for _ in range(2))
    assert first.name == second.name != stage_part(place, FOLDER, [make_rows("b")]).name


def test_a_write_in_one_step_leaves_nothing_behind(place):
    place.write_bytes("run.json", b"1")
    place.write_bytes("run.json", b"2")
    assert place.read_bytes("run.json") == b"2"
    assert place.list_names() == ["masks", "metrics", "run.json", "scans"]


def test_no_space_left_is_a_typed_error():
    with pytest.raises(DiskFullError, match=r"part\.parquet"), report_full_disk("part.parquet"):
        raise OSError(28, "No space left on device")
    with pytest.raises(PermissionError), report_full_disk("part.parquet"):
        raise PermissionError(13, "no")


def test_columns_do_not_depend_on_the_part(place, make_rows):
    names = [publish_rows(place, [make_rows(scan_id)]) for scan_id in ("a", "bb")]
    schemas = [pq.read_schema(place.path(f"metrics/{name}")) for name in names]
    assert schemas[0].equals(schemas[1])
