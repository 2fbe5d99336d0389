"""Manifests as SOURCE: damaged ones, those written by hand, and those whose files have changed since."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tifffile

import raysegment
from raysegment.archive.decoder import Decoder
from raysegment.archive.manifest import entries


def write_scans(folder: Path, *names: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(names):
        tifffile.imwrite(folder / name, np.full((8, 8), number, np.uint8))


def index(source: Path, **choices: object):
    return raysegment.index(raysegment.IndexOptions(source=str(source), **choices))


def expect_wrong_usage(source: Path, text: str) -> None:
    with pytest.raises(raysegment.RaysegmentError, match=text) as caught:
        index(source)
    assert caught.value.exit_code == 2
    assert source.name in str(caught.value)


@pytest.mark.parametrize("name", ["m.csv", "m.parquet"])
def test_a_manifest_without_rows_is_wrong_usage(tmp_path, name):
    if name == "m.csv":
        (tmp_path / name).write_text("scan_id,files\n")
    else:
        write_scans(tmp_path / "a", "a.tif")
        table = index(tmp_path / "a").table
        pq.write_table(table.slice(0, 0), tmp_path / name)
    expect_wrong_usage(tmp_path / name, "no rows")


@pytest.mark.parametrize("share", [0.0, 0.3, 0.6, 0.99])
def test_a_truncated_manifest_is_wrong_usage(tmp_path, share):
    write_scans(tmp_path / "a", "a.tif")
    path = tmp_path / "m.parquet"
    index(tmp_path / "a", out=str(path))
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    expect_wrong_usage(path, "cannot be read as a manifest")


@pytest.mark.parametrize("twice", ["files", "scan_id", "site"])
def test_a_column_that_stands_twice_is_wrong_usage(tmp_path, twice):
    columns = ["scan_id", "files", "site"]
    (tmp_path / "m.csv").write_text(",".join([*columns, twice]) + "\none,a.tif,Ulm,b\n")
    expect_wrong_usage(tmp_path / "m.csv", f"{twice} .*more than once")


def test_null_among_files_is_wrong_usage_and_names_the_scan(tmp_path):
    pq.write_table(pa.table({"scan_id": ["one", "two"], "files": [["a.tif"], ["b.tif", None]]}), tmp_path / "m.parquet")
    expect_wrong_usage(tmp_path / "m.parquet", "two")
    (tmp_path / "m.csv").write_text('scan_id,files\none,a.tif\ntwo,"[""b.tif"", null]"\n')
    expect_wrong_usage(tmp_path / "m.csv", "two")


@pytest.mark.parametrize("files", [[None], [1]])
def test_files_that_are_no_text_are_wrong_usage_or_cannot_be_read(tmp_path, files):
    pq.write_table(pa.table({"scan_id": ["one"], "files": [files]}), tmp_path / "m.parquet")
    if files == [None]:
        expect_wrong_usage(tmp_path / "m.parquet", "one")
    else:
        assert index(tmp_path / "m.parquet").table["files"].to_pylist() == [["1"]]


@pytest.mark.parametrize("name", ["patient_id", "source", "reader", "reference_files", "bytes", "fingerprint", "split"])
def test_a_column_without_any_value_is_as_good_as_none(tmp_path, name):
    write_scans(tmp_path, "a.tif")
    columns = {"scan_id": ["one"], "files": [["a.tif"]]}
    pq.write_table(pa.table(columns), tmp_path / "without.parquet")
    pq.write_table(pa.table({**columns, name: pa.nulls(1)}), tmp_path / "with.parquet")
    assert index(tmp_path / "with.parquet").table.equals(index(tmp_path / "without.parquet").table)


def test_null_among_references_is_a_slice_without_one(tmp_path):
    write_scans(tmp_path, "1.tif", "2.tif", "2_mask.tif")
    text = 'scan_id,files,reference_files\none,"[""1.tif"", ""2.tif""]","[null, ""2_mask.tif""]"\n'
    (tmp_path / "m.csv").write_text(text)
    assert index(tmp_path / "m.csv").table["reference_files"].to_pylist() == [["", "2_mask.tif"]]


def test_brackets_without_end_are_wrong_usage(tmp_path):
    (tmp_path / "m.csv").write_text("scan_id,files\none," + "[" * 200_000 + "\n")
    expect_wrong_usage(tmp_path / "m.csv", "brackets")


@pytest.mark.parametrize("mode", ["stat", "content"])
def test_nul_in_a_name_is_a_scan_that_cannot_be_read(tmp_path, mode):
    write_scans(tmp_path, "good.tif")
    table = pa.table({"scan_id": ["bad", "good"], "files": [["a\0b.tif"], ["good.tif"]]})
    pq.write_table(table, tmp_path / "m.parquet")
    bad, good = entries(index(tmp_path / "m.parquet", fingerprint=mode).table)
    with Decoder() as decoder:
        assert decoder.read(good).scan.grid == (1, 8, 8)
        with pytest.raises(raysegment.RaysegmentError, match=r"x00b") as caught:
            decoder.read(bad)
    assert type(caught.value).__name__ == "AccessError"


@pytest.mark.parametrize("source", ["a\0b", "a\0b.parquet", "file:///a%00b"])
def test_nul_in_source_is_wrong_usage(source):
    with pytest.raises(raysegment.RaysegmentError) as caught:
        raysegment.index(raysegment.IndexOptions(source=source))
    assert caught.value.exit_code == 2


def test_absolute_paths_in_a_manifest_are_read_where_they_are(tmp_path):
    write_scans(tmp_path / "elsewhere", "a.tif", "a_mask.tif")
    (tmp_path / "here").mkdir()
    file = tmp_path / "elsewhere" / "a.tif"
    (tmp_path / "here" / "m.csv").write_text(f"scan_id,files,reference_files\none,{file},{file.with_stem('a_mask')}\n")
    for mode in ("stat", "content"):
        (entry,) = entries(index(tmp_path / "here" / "m.csv", fingerprint=mode).table)
        with Decoder() as decoder:
            decoded = decoder.read(entry, with_reference=True)
        assert decoded.scan.grid == (1, 8, 8)
        assert decoded.reference_error is None
        before = entry.fingerprint
        file.write_bytes(file.read_bytes() + b"\0")
        (entry,) = entries(index(tmp_path / "here" / "m.csv", fingerprint=mode).table)
        assert entry.fingerprint != before


def test_a_pipe_in_a_manifest_fails_its_scan_at_once(tmp_path):
    os.mkfifo(tmp_path / "a.tif")
    (tmp_path / "m.csv").write_text("scan_id,files\none,a.tif\n")
    (entry,) = entries(index(tmp_path / "m.csv").table)
    with Decoder(timeout_seconds=3) as decoder, pytest.raises(raysegment.RaysegmentError) as caught:
        decoder.read(entry)
    assert "no regular file" in str(caught.value)


@pytest.mark.parametrize("name", ["m.parquet", "m.csv"])
def test_a_file_that_changed_since_the_manifest_was_written_is_noticed(tmp_path, name):
    write_scans(tmp_path / "a", "x.tif", "y.tif")
    index(tmp_path / "a", out=str(tmp_path / name))
    before = index(tmp_path / name)
    write_scans(tmp_path / "a", "x.tif")
    os.utime(tmp_path / "a" / "x.tif", ns=(5, 5))
    after = index(tmp_path / name)
    fresh = index(tmp_path / "a").table["fingerprint"].to_pylist()
    assert after.table["fingerprint"].to_pylist() == fresh
    assert before.table["fingerprint"].to_pylist()[1] == fresh[1]
    assert before.table["fingerprint"].to_pylist()[0] != fresh[0]


def test_a_scan_whose_files_are_out_of_reach_keeps_its_fingerprint(tmp_path):
    write_scans(tmp_path / "a", "x.tif", "y.tif")
    before = index(tmp_path / "a", out=str(tmp_path / "m.parquet")).table["fingerprint"].to_pylist()
    shutil.rmtree(tmp_path / "a")
    assert index(tmp_path / "m.parquet").table["fingerprint"].to_pylist() == before


def test_fingerprints_of_ones_own_are_kept(tmp_path):
    write_scans(tmp_path, "x.tif")
    (tmp_path / "m.csv").write_text("scan_id,files,fingerprint\none,x.tif,version 3\n")
    assert index(tmp_path / "m.csv").table["fingerprint"].to_pylist() == ["version 3"]


def test_fingerprints_of_content_are_kept(tmp_path):
    write_scans(tmp_path / "a", "x.tif", "y.tif")
    before = index(tmp_path / "a", fingerprint="content", out=str(tmp_path / "m.parquet")).table
    os.utime(tmp_path / "a" / "x.tif", ns=(5, 5))
    assert index(tmp_path / "m.parquet").table["fingerprint"].equals(before["fingerprint"])


@pytest.mark.parametrize("mode", ["stat", "content"])
@pytest.mark.parametrize("name", ["m.csv", "m.parquet"])
def test_a_manifest_says_how_its_fingerprints_were_made_so_that_changes_of_all_files_are_noticed(tmp_path, name, mode):
    write_scans(tmp_path / "a", "one.tif")
    before = index(tmp_path / "a", out=str(tmp_path / name), fingerprint=mode).table
    assert index(tmp_path / name).table.column_names == before.column_names
    (tmp_path / "a" / "one.tif").write_bytes((tmp_path / "a" / "one.tif").read_bytes() + b"more")
    after = index(tmp_path / name).table
    assert (after["fingerprint"] != before["fingerprint"]) == (mode == "stat")
