"""Lost and damaged parts are found, and their scans leave all tables."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raysegment.errors import DamagedTablesError, OutputError
from raysegment.store import publish
from raysegment.store.damage import END_BYTES, find_damage
from raysegment.store.parts import stage_part
from raysegment.store.place import Place
from raysegment.store.publish import check_tables, list_parts, prepare_tables, publish_part, read_rows, take_out

FOLDER = "_staging/1-x"
TABLES = ("scans", "metrics", "masks")


@pytest.fixture
def place(tmp_path, make_rows) -> Place:
    """Three parts: two ok scans, an ok and a failed one, a failed one."""
    place = Place(str(tmp_path))
    prepare_tables(place)
    groups = ([("a", None), ("b", None)], [("c", None), ("d", "EmptyFileError")], [("e", "EmptyFileError")])
    for group in groups:
        rows = [make_rows(scan_id, error_type=error) for scan_id, error in group]
        publish_part(place, FOLDER, stage_part(place, FOLDER, rows).name)
    return place


def ids_of(place: Place, table: str) -> list[str]:
    return sorted(read_rows(place, table, ["scan_id"])["scan_id"].to_pylist())


def part_of(place: Place, scan_id: str) -> str:
    return next(
        name for name in list_parts(place, "scans") if scan_id in list(pd.read_parquet(file_of(place, name))["scan_id"])
    )


def file_of(place: Place, name: str, table: str = "scans") -> Path:
    return Path(place.root) / table / name


def test_whole_tables_are_left_as_they_are(place):
    before = {table: ids_of(place, table) for table in TABLES}
    assert prepare_tables(place) == []
    check_tables(place, "metrics", "masks")
    assert {table: ids_of(place, table) for table in TABLES} == before


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("share", [None, 0.0, 0.3, 0.99])
def test_a_part_that_is_lost_empty_or_cut_in_one_table_goes_from_all(table, share, place):
    part = part_of(place, "a")
    file = file_of(place, part, table)
    whole = file.read_bytes()
    file.unlink()
    if share is not None:
        file.write_bytes(whole[: int(share * len(whole))])
    if (table, share) == ("scans", None):
        assert prepare_tables(place) == []
    else:
        with pytest.raises(DamagedTablesError, match=f"{table}/{part}"):
            check_tables(place, "metrics", "masks")
        assert [(item.table, item.part) for item in prepare_tables(place)] == [(table, part)]
    assert [ids_of(place, name) for name in TABLES] == [["c", "d", "e"], ["c"], ["c"]]
    check_tables(place, "metrics", "masks")


@pytest.mark.parametrize(("table", "other"), [("masks", "c"), ("metrics", "e")])
def test_a_part_with_the_rows_of_another_one_goes(table, other, place):
    part = part_of(place, "a")
    file_of(place, part, table).write_bytes(file_of(place, part_of(place, other), table).read_bytes())
    assert [item.table for item in prepare_tables(place)] == [table]
    assert ids_of(place, "scans") == ["c", "d", "e"]


def test_as_many_rows_of_other_scans_are_noticed(place):
    file = file_of(place, part_of(place, "a"), "masks")
    table = pq.read_table(file)
    renamed = table.set_column(0, table.schema.field(0), pa.array(["a", "x"]))
    pq.write_table(renamed, file)
    assert [item.cause for item in prepare_tables(place)] == ["holds other scans"]


def test_several_labels_are_several_rows_for_each_scan(place):
    file = file_of(place, part_of(place, "a"), "metrics")
    table = pq.read_table(file)
    pq.write_table(pa.concat_tables([table, table]), file)
    assert prepare_tables(place) == []


def test_a_footer_longer_than_what_is_read_at_first_is_read_whole(place):
    file = file_of(place, part_of(place, "a"), "masks")
    table = pq.read_table(file)
    pq.write_table(table.replace_schema_metadata({"note": "n" * (2 * END_BYTES)}), file)
    assert file.stat().st_size > 2 * END_BYTES
    assert prepare_tables(place) == []


def test_what_cannot_be_opened_is_not_thrown_away(place, monkeypatch):
    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(place, "read_end", refuse)
    with pytest.raises(OutputError, match="Permission denied"):
        find_damage(place, list_parts(place, "scans"))
    monkeypatch.undo()
    assert len(list_parts(place, "masks")) == 3


def test_a_part_half_taken_out_is_finished_and_not_done_again(place, monkeypatch):
    move = place.move

    def die_after_scans(source: str, target: str) -> None:
        if not target.startswith("scans/"):
            raise KeyboardInterrupt
        move(source, target)

    monkeypatch.setattr(place, "move", die_after_scans)
    with pytest.raises(KeyboardInterrupt):
        take_out(place, pa.array(["b"]))
    monkeypatch.undo()
    file_of(place, part_of(place, "c"), "masks").write_bytes(b"")
    assert place.exists(publish.TAKING_OUT)
    assert [item.table for item in prepare_tables(place)] == ["masks"]
    assert [ids_of(place, table) for table in TABLES] == [["a", "e"], ["a"], ["a"]]


class SilentStorage:
    """Answers nothing, as a bucket without network."""

    def get_file_info(self, *_: object) -> None:
        raise OSError("When listing objects: AWS Error NETWORK_CONNECTION")


def test_a_bucket_that_does_not_answer_is_a_typed_error(place):
    place.filesystem, place.is_local = SilentStorage(), False
    with pytest.raises(OutputError, match="NETWORK_CONNECTION"):
        place.exists("run.json")
    with pytest.raises(OutputError, match="NETWORK_CONNECTION"):
        place.list_names("scans")


def spoil_column(file: Path, column: str) -> None:
    """Overwrite the pages of one column; the footer stays whole."""
    footer = pq.read_metadata(file)
    chunk = footer.row_group(0).column(footer.schema.names.index(column))
    start = min(filter(None, (chunk.dictionary_page_offset, chunk.data_page_offset)))
    content = bytearray(file.read_bytes())
    content[start : start + chunk.total_compressed_size] = b"\xaa" * chunk.total_compressed_size
    file.write_bytes(content)


def test_a_part_of_scans_whose_footer_alone_is_whole_is_done_again(place):
    part = part_of(place, "a")
    spoil_column(file_of(place, part), "fingerprint")
    assert [damage.part for damage in prepare_tables(place)] == [part]
    assert ids_of(place, "scans") == ["c", "d", "e"]


@pytest.mark.parametrize(("table", "column"), [("metrics", "voxels"), ("masks", "mask")])
def test_what_footers_do_not_tell_names_the_file_to_delete_and_deleting_it_helps(table, column, place):
    part = part_of(place, "a")
    file = file_of(place, part, table)
    spoil_column(file, column)
    with pytest.raises(DamagedTablesError, match=f"Delete {file}, then run") as caught:
        read_rows(place, table)
    assert f"{table}/{part} cannot be read" in str(caught.value)
    file.unlink()
    assert [damage.part for damage in prepare_tables(place)] == [part]
    assert ids_of(place, table) == ["c"]
