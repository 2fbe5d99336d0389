from __future__ import annotations

from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raysegment.archive.manifest import MANIFEST_SCHEMA, entries, read_manifest, to_table, write_manifest
from raysegment.errors import UsageError
from raysegment.scan import ScanEntry

ENTRY = ScanEntry(
    scan_id="a",
    patient_id="p",
    source="/scans",
    reader="tiff",
    files=("a/1.tif", 'a/"2", x.tif'),
    reference_files=("a/1_mask.tif", ""),
    num_files=3,
    bytes=12,
    height=4,
    width=5,
    channels=3,
    fingerprint="f",
    split=None,
    problem="odd\nname",
)


@pytest.mark.parametrize("name", ["m.parquet", "m.csv"])
def test_a_manifest_comes_back_as_it_was_written(tmp_path, name):
    write_manifest(to_table([ENTRY]), str(tmp_path / name))
    table = read_manifest(str(tmp_path / name))
    assert table.schema.equals(MANIFEST_SCHEMA)
    assert list(entries(table)) == [ENTRY]
    assert [file.name for file in tmp_path.iterdir()] == [name]


def test_a_csv_by_hand_needs_only_scan_ids_and_files(tmp_path):
    (tmp_path / "x.tif").write_bytes(b"1234")
    (tmp_path / "m.csv").write_text('scan_id,files,site\none,x.tif,Ulm\ntwo,"[""1.png"", ""2.png""]",Bonn\n')
    table = read_manifest(str(tmp_path / "m.csv"))
    first, second = entries(table)
    assert (first.files, first.patient_id, first.source, first.reader) == (("x.tif",), "one", str(tmp_path), "tiff")
    assert (second.files, second.num_files, second.reader) == (("1.png", "2.png"), 2, "raster")
    assert table["site"].to_pylist() == ["Ulm", "Bonn"]


def test_a_relative_source_starts_from_the_manifest(tmp_path):
    (tmp_path / "m.csv").write_text("scan_id,files,source\none,x.tif,../scans\ntwo,y.tif,/else\n")
    assert [entry.source for entry in entries(read_manifest(str(tmp_path / "m.csv")))] == [
        str(tmp_path.parent / "scans"),
        "/else",
    ]


def test_a_manifest_with_a_scan_twice_is_refused(tmp_path):
    write_manifest(pa.concat_tables([to_table([ENTRY])] * 2), str(tmp_path / "m.parquet"))
    with pytest.raises(UsageError, match="scan_id a more than once"):
        read_manifest(str(tmp_path / "m.parquet"))


def test_files_that_are_no_manifest_are_refused(tmp_path):
    pq.write_table(pa.table({"x": [1]}), tmp_path / "m.parquet")
    with pytest.raises(UsageError, match="no column scan_id and files"):
        read_manifest(str(tmp_path / "m.parquet"))
    (tmp_path / "n.parquet").write_text("no parquet")
    with pytest.raises(UsageError, match="cannot be read as a manifest"):
        read_manifest(str(tmp_path / "n.parquet"))
    with pytest.raises(UsageError, match="does not exist"):
        read_manifest(str(tmp_path / "gone.csv"))


def test_more_columns_are_kept(tmp_path):
    table = to_table([ENTRY]).append_column("status", pa.array(["ok"]))
    write_manifest(table, str(tmp_path / "m.parquet"))
    assert read_manifest(str(tmp_path / "m.parquet"))["status"].to_pylist() == ["ok"]


def test_a_folder_of_parquet_files_is_one_manifest(tmp_path):
    (tmp_path / "m.parquet").mkdir()
    for name in ("a", "b"):
        write_manifest(to_table([replace(ENTRY, scan_id=name)]), str(tmp_path / "m.parquet" / f"{name}.parquet"))
    assert read_manifest(str(tmp_path / "m.parquet"))["scan_id"].to_pylist() == ["a", "b"]


def test_names_of_channels_come_back_from_parquet_and_csv(tmp_path):
    entry = replace(ENTRY, files=("a_flair.nii", "a_t1.nii"), channel_names=("flair", "t1, after contrast"))
    for name in ("m.parquet", "m.csv"):
        write_manifest(to_table([entry, replace(ENTRY, scan_id="other")]), str(tmp_path / name))
        read = list(entries(read_manifest(str(tmp_path / name))))
        assert [row.channel_names for row in read] == [entry.channel_names, ()]


def test_a_manifest_without_names_of_channels_is_read(tmp_path):
    old = to_table([ENTRY]).drop_columns(["channel_names"])
    pq.write_table(old, tmp_path / "m.parquet")
    assert next(entries(read_manifest(str(tmp_path / "m.parquet")))).channel_names == ()


@pytest.mark.parametrize("names", [("a", "b", "c"), ("a", "a"), ("a", "")])
def test_channels_that_do_not_fit_the_files_are_refused(tmp_path, names):
    entry = replace(ENTRY, files=("x.nii", "y.nii"), channel_names=names)
    write_manifest(to_table([entry]), str(tmp_path / "m.parquet"))
    with pytest.raises(UsageError, match="2 files for the channels a"):
        read_manifest(str(tmp_path / "m.parquet"))
