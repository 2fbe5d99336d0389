from __future__ import annotations

import hashlib
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import tifffile
from PIL import Image

from raysegment.archive.decoder import Decoder
from raysegment.archive.fingerprint import renew_fingerprints
from raysegment.archive.index import find_scans, summarise
from raysegment.archive.manifest import MANIFEST_SCHEMA, entries, to_table, write_manifest
from raysegment.archive.read import read_scan
from raysegment.errors import UsageError
from raysegment.options import Finding
from raysegment.pipeline.training_set import hash_data
from raysegment.scan import Labels, ScanEntry


def write_image(path: Path, size: int = 8) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros((size, size, 3), np.uint8)).save(path)


def column(table, name: str) -> list:
    return table[name].to_pylist()


def test_lgg_folders_are_scans_with_references_in_natural_order(tmp_path, write_series):
    write_series(tmp_path / "TCGA_1_1999", "TCGA_1_1999_", slices=11)
    write_series(tmp_path / "TCGA_2_1999", "TCGA_2_1999_", slices=2)
    table = find_scans(str(tmp_path))
    assert table.schema.equals(MANIFEST_SCHEMA)
    assert column(table, "scan_id") == ["TCGA_1_1999", "TCGA_2_1999"] == column(table, "patient_id")
    assert column(table, "files")[0] == [f"TCGA_1_1999/TCGA_1_1999_{n}.tif" for n in range(1, 12)]
    assert column(table, "reference_files")[0] == [f"TCGA_1_1999/TCGA_1_1999_{n}_mask.tif" for n in range(1, 12)]
    assert column(table, "num_files") == [22, 4]
    assert column(table, "bytes")[1] == sum(file.stat().st_size for file in (tmp_path / "TCGA_2_1999").iterdir())
    row = table.to_pylist()[0]
    assert (row["height"], row["width"], row["channels"], row["reader"]) == (16, 16, 3, "tiff")
    assert row["split"] is row["problem"] is None


def test_a_folder_above_all_scans_names_no_patient(tmp_path, write_series):
    for patient in ("a", "b"):
        write_series(tmp_path / "kaggle_3m" / patient, f"{patient}_")
    write_image(tmp_path / "overview.png")
    table = find_scans(str(tmp_path))
    assert column(table, "scan_id") == ["kaggle_3m/a", "kaggle_3m/b", "overview.png"]
    assert column(table, "patient_id") == ["a", "b", "overview.png"]


def test_two_series_of_one_patient_share_the_patient(tmp_path, write_series):
    write_series(tmp_path / "a" / "before", "x_")
    write_series(tmp_path / "a" / "after", "x_")
    write_series(tmp_path / "b" / "before", "x_")
    table = find_scans(str(tmp_path))
    assert column(table, "scan_id") == ["a/after", "a/before", "b/before"]
    assert column(table, "patient_id") == ["a", "a", "b"]


def test_slices_of_several_patients_in_one_folder_are_told_apart_by_name(tmp_path, write_series):
    write_series(tmp_path, "a_")
    write_series(tmp_path, "b_")
    table = find_scans(str(tmp_path))
    assert column(table, "scan_id") == ["a", "b"] == column(table, "patient_id")


def test_a_source_that_is_one_scan_is_named_by_its_folder(tmp_path, write_series):
    write_series(tmp_path / "TCGA_1", "TCGA_1_")
    assert column(find_scans(str(tmp_path / "TCGA_1")), "scan_id") == ["TCGA_1"]


def test_images_and_masks_with_equal_stems_belong_together(tmp_path):
    for name in ("1", "2", "x y"):
        write_image(tmp_path / "images" / f"{name}.jpg")
    write_image(tmp_path / "masks" / "1.png")
    write_image(tmp_path / "masks" / "2_mask.png")
    write_image(tmp_path / "masks" / "9.png")
    table = find_scans(str(tmp_path))
    assert column(table, "scan_id") == ["images/1.jpg", "images/2.jpg", "images/x y.jpg"]
    assert column(table, "reference_files") == [["masks/1.png"], ["masks/2_mask.png"], []]
    summary = summarise(table)
    assert (summary.own_patients, summary.masks_without_image) == (3, 1)
    assert (summary.patients, summary.with_reference) == (3, 2)


@pytest.mark.parametrize("layout", ["{split}/images/{name}.png", "images/{split}/{name}.png"])
def test_split_folders_fill_the_split_and_equal_names_are_no_common_patient(tmp_path, layout):
    for split in ("train", "valid", "test"):
        write_image(tmp_path / layout.format(split=split, name="1"))
        write_image(tmp_path / layout.format(split=split, name="1").replace("images", "masks"))
    table = find_scans(str(tmp_path))
    assert sorted(column(table, "split")) == ["test", "train", "val"]
    assert all(len(references) == 1 for references in column(table, "reference_files"))
    assert summarise(table).patients == 3


def test_split_folders_may_hold_patient_folders(tmp_path, write_series):
    write_series(tmp_path / "train" / "a", "a_")
    write_series(tmp_path / "val" / "b", "b_")
    table = find_scans(str(tmp_path))
    assert column(table, "patient_id") == ["a", "b"]
    assert column(table, "split") == ["train", "val"]


def test_patient_folders_may_hold_images_and_masks(tmp_path):
    for patient in ("a", "b"):
        for name in ("x", "y"):
            write_image(tmp_path / patient / "images" / f"{name}.png")
            write_image(tmp_path / patient / "masks" / f"{name}.png")
    table = find_scans(str(tmp_path))
    assert column(table, "patient_id") == ["a", "a", "b", "b"]
    assert column(table, "reference_files")[3] == ["b/masks/y.png"]
    assert summarise(table).own_patients == 0


def test_numbered_stacks_are_scans_of_their_own(tmp_path):
    for number in range(3):
        tifffile.imwrite(tmp_path / f"ct_{number}.tif", np.zeros((5, 8, 8), np.int16))
        tifffile.imwrite(tmp_path / f"ct_{number}_mask.tif", np.zeros((5, 8, 8), np.uint8))
    table = find_scans(str(tmp_path))
    assert column(table, "scan_id") == ["ct_0.tif", "ct_1.tif", "ct_2.tif"] == column(table, "patient_id")
    assert column(table, "reference_files")[1] == ["ct_1_mask.tif"]


def test_files_with_scattered_numbers_are_single_images(tmp_path):
    for number in (24, 3000, 910000):
        write_image(tmp_path / f"ISIC_{number:07d}.jpg")
    assert find_scans(str(tmp_path)).num_rows == 3


def test_a_missing_slice_does_not_break_a_series(tmp_path, write_series):
    write_series(tmp_path / "a", "a_", slices=6)
    (tmp_path / "a" / "a_3.tif").unlink()
    assert find_scans(str(tmp_path)).num_rows == 1


def test_linked_folders_are_followed_and_loops_are_not(tmp_path, write_series):
    write_series(tmp_path / "real" / "a", "a_")
    archive = tmp_path / "archive"
    archive.mkdir()
    (archive / "one").symlink_to(tmp_path / "real" / "a")
    (archive / "two").symlink_to(tmp_path / "real" / "a")
    (archive / "loop").symlink_to(archive)
    (tmp_path / "real" / "a" / "up").symlink_to(archive)
    (archive / "self").symlink_to("self")
    table = find_scans(str(archive))
    assert column(table, "scan_id") == ["one", "self"]
    assert column(table, "problem") == [
        "also reached as two, which is indexed once",
        "cannot be opened: Too many levels of symbolic links",
    ]


def test_broken_links_are_rows_with_a_problem(tmp_path, write_series):
    write_series(tmp_path / "a", "a_")
    (tmp_path / "b").symlink_to(tmp_path / "gone")
    (tmp_path / "c.tif").symlink_to(tmp_path / "gone.tif")
    (tmp_path / "a" / "a_2.tif").unlink()
    (tmp_path / "a" / "a_2.tif").symlink_to("gone.tif")
    problems = dict(summarise(find_scans(str(tmp_path))).problems)
    assert problems == {
        "a": "a/a_2.tif is a link to nowhere",
        "b": "b is a link to nowhere",
        "c.tif": "c.tif is a link to nowhere",
    }


def test_what_is_no_regular_file_is_never_opened(tmp_path, write_series):
    write_series(tmp_path / "a", "a_")
    os.mkfifo(tmp_path / "pipe.tif")
    assert dict(summarise(find_scans(str(tmp_path))).problems) == {"pipe.tif": "pipe.tif is no regular file"}


def test_a_reader_that_cannot_be_imported_is_wrong_usage(tmp_path, write_series, monkeypatch):
    write_series(tmp_path / "a", "a_")
    monkeypatch.setenv("RAYSEGMENT_READERS", "no_such_reader")
    with pytest.raises(UsageError, match="RAYSEGMENT_READERS names 'no_such_reader'"):
        find_scans(str(tmp_path))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may list every folder")
def test_a_folder_that_cannot_be_listed_is_a_row_with_a_problem(tmp_path, write_series):
    write_series(tmp_path / "a", "a_")
    write_series(tmp_path / "b", "b_")
    (tmp_path / "b").chmod(0)
    table = find_scans(str(tmp_path))
    (tmp_path / "b").chmod(0o700)
    assert dict(summarise(table).problems)["b"] == "the folder cannot be listed: Permission denied"


NAMES = [
    b"with spaces",
    b'quote\'s "double"',
    b"new\nline\ttab",
    "ünïcödé 病".encode(),
    b"undecodable \xff\xfe",
    "\U0010fe80".encode(),
    b"percent%20 & ? # [x] * ;",
    b"-dash",
    b"comma, semicolon; | `x` $HOME",
    b"back\\slash",
]


def test_names_of_every_kind_are_found_written_and_read(tmp_path, write_series):
    pixels = write_series(tmp_path / "plain", "x_")
    for name in NAMES:
        os.rename(tmp_path / "plain", os.path.join(os.fsencode(tmp_path), name))
        pixels = write_series(tmp_path / "plain", "x_")
    table = find_scans(str(tmp_path))
    assert table.num_rows == len(NAMES) + 1
    assert not summarise(table).problems
    for suffix in ("parquet", "csv"):
        path = str(tmp_path / f"manifest.{suffix}")
        write_manifest(table, path)
        again = find_scans(path)
        assert again.equals(table)
    with Decoder() as decoder:
        for entry in entries(again):
            decoded = decoder.read(entry, with_reference=True)
            np.testing.assert_array_equal(decoded.scan.pixels, pixels)
            assert decoded.reference_error is None


def test_hidden_files_are_left_out(tmp_path, write_series):
    write_series(tmp_path / "a", "a_")
    (tmp_path / "a" / "._a_1.tif").write_bytes(b"resource fork")
    write_series(tmp_path / ".trash", "x_")
    table = find_scans(str(tmp_path))
    assert column(table, "scan_id") == ["a"]
    assert column(table, "num_files") == [6]


def test_a_png_called_tif_is_read_as_png(tmp_path):
    write_image(tmp_path / "a.png")
    (tmp_path / "a.png").rename(tmp_path / "a.tif")
    (entry,) = entries(find_scans(str(tmp_path)))
    assert entry.reader == "raster"
    assert read_scan(entry).grid == (1, 8, 8)


def test_the_patient_pattern_reads_patients_from_scan_ids(tmp_path):
    for name in ("p1_t1", "p1_t2", "p2_t1"):
        write_image(tmp_path / "images" / f"{name}.png")
    table = find_scans(str(tmp_path), Finding(patient_pattern=r"images/([^_]+)_"))
    assert column(table, "patient_id") == ["p1", "p1", "p2"]
    assert summarise(table).own_patients == 0


def test_the_scan_pattern_joins_images_and_references_of_one_folder(tmp_path):
    for name in ("p1-10", "p1-9", "p2-1"):
        write_image(tmp_path / "images" / f"{name}.png")
    for name in ("p1-9", "p2-1_mask"):
        write_image(tmp_path / "masks" / f"{name}.png")
    table = find_scans(str(tmp_path), Finding(scan_pattern=r"(p\d+)-"))
    assert column(table, "scan_id") == ["p1", "p2"] == column(table, "patient_id")
    assert column(table, "files") == [["images/p1-9.png", "images/p1-10.png"], ["images/p2-1.png"]]
    assert column(table, "reference_files") == [["masks/p1-9.png", ""], ["masks/p2-1_mask.png"]]
    summary = summarise(table)
    assert (summary.own_patients, summary.masks_without_image) == (2, 0)
    (first, _) = entries(table)
    assert read_scan(first).grid == (2, 8, 8)


def test_the_scan_pattern_splits_a_series_and_the_folder_is_still_the_patient(tmp_path):
    for patient in ("a", "b"):
        for name in ("t1_1", "t1_2", "t2_1"):
            write_image(tmp_path / patient / f"{name}.png")
    table = find_scans(str(tmp_path), Finding(scan_pattern=r"(\w/t\d)_"))
    assert column(table, "scan_id") == ["a/t1", "a/t2", "b/t1", "b/t2"]
    assert column(table, "patient_id") == ["a", "a", "b", "b"]


def test_the_scan_pattern_may_join_images_of_several_folders(tmp_path):
    for patient in ("a", "b"):
        for slice_ in ("1", "2"):
            write_image(tmp_path / patient / slice_ / "flair.png")
    table = find_scans(str(tmp_path), Finding(scan_pattern=r"^(\w)/"))
    assert column(table, "scan_id") == ["a", "b"] == column(table, "patient_id")
    assert column(table, "files")[0] == ["a/1/flair.png", "a/2/flair.png"]


def test_a_scan_torn_between_split_folders_has_no_split_and_says_so(tmp_path):
    for folder, name in (("train", "p1_1"), ("test", "p1_2"), ("test", "p2_1")):
        write_image(tmp_path / folder / "images" / f"{name}.png")
    table = find_scans(str(tmp_path), Finding(scan_pattern=r"(p\d)_"))
    assert column(table, "split") == [None, "test"]
    assert [scan_id for scan_id, _ in summarise(table).problems] == ["p1"]


def test_stacks_are_no_slices_of_a_named_scan(tmp_path):
    for number in range(2):
        tifffile.imwrite(tmp_path / f"ct_{number}.tif", np.zeros((5, 8, 8), np.int16))
    table = find_scans(str(tmp_path), Finding(scan_pattern=r"(ct)_"))
    assert summarise(table).problems == [("ct", "ct_0.tif holds 5 slices; a scan of several files has one in each")]


@pytest.mark.parametrize("pattern", ["images/.*", "(", "(nothing)"])
def test_a_patient_pattern_that_cannot_work_is_refused(tmp_path, pattern):
    write_image(tmp_path / "images" / "a.png")
    with pytest.raises(UsageError, match="--patient-pattern"):
        find_scans(str(tmp_path), Finding(patient_pattern=pattern))


def test_the_fingerprint_changes_with_any_file_of_the_scan_and_with_nothing_else(tmp_path, write_series):
    write_series(tmp_path / "a", "a_")
    write_series(tmp_path / "b", "b_")
    before = column(find_scans(str(tmp_path)), "fingerprint")
    assert before == column(find_scans(str(tmp_path)), "fingerprint")
    os.utime(tmp_path / "a" / "a_2_mask.tif", ns=(1, 1))
    after = column(find_scans(str(tmp_path)), "fingerprint")
    assert after[0] != before[0]
    assert after[1] == before[1]


def test_the_content_fingerprint_ignores_times_and_sees_bytes(tmp_path, write_series):
    write_series(tmp_path / "a", "a_")
    before = column(find_scans(str(tmp_path), Finding(fingerprint="content")), "fingerprint")
    os.utime(tmp_path / "a" / "a_2.tif", ns=(1, 1))
    assert column(find_scans(str(tmp_path), Finding(fingerprint="content")), "fingerprint") == before
    file = tmp_path / "a" / "a_2.tif"
    data = file.read_bytes()
    file.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    assert column(find_scans(str(tmp_path), Finding(fingerprint="content")), "fingerprint") != before


def test_a_missing_source_and_a_source_without_scans_are_wrong_usage(tmp_path):
    with pytest.raises(UsageError, match=r"gone.*No such file"):
        find_scans(str(tmp_path / "gone"))
    (tmp_path / "notes.txt").write_text("nothing here")
    with pytest.raises(UsageError, match=r"no scans found in .*\*\.png.*\*\.tif"):
        find_scans(str(tmp_path))
    with pytest.raises(UsageError, match=r"is a file"):
        find_scans(str(tmp_path / "notes.txt"))
    with pytest.raises(UsageError, match="unknown scheme"):
        find_scans("ftp://host/scans")


def test_partial_references_are_counted(tmp_path, write_series):
    write_series(tmp_path / "a", "a_")
    write_series(tmp_path / "b", "b_")
    (tmp_path / "b" / "b_1_mask.tif").unlink()
    write_series(tmp_path / "c", "c_", masks=False)
    summary = summarise(find_scans(str(tmp_path)))
    assert (summary.scans, summary.with_reference, summary.with_partial_reference) == (3, 1, 1)
    assert summary.shapes == {"16 x 16 x 3": 3}


def test_the_real_archive_is_fifty_patients_with_references(real_lgg):
    summary = summarise(find_scans(str(real_lgg)))
    assert (summary.scans, summary.patients, summary.files) == (50, 50, 3494)
    assert summary.with_reference == 50
    assert summary.problems == []


@pytest.mark.parametrize("mode", ["stat", "content"])
def test_which_file_is_which_channel_enters_the_fingerprint(tmp_path, mode):
    for name in ("a", "b"):
        (tmp_path / f"{name}.nii").write_bytes(name.encode())
    common = {"scan_id": "s", "patient_id": "s", "source": str(tmp_path), "reader": "nifti"}
    orders = [
        (("a.nii", "b.nii"), ("T1", "T2")),
        (("a.nii", "b.nii"), ("T2", "T1")),
        (("b.nii", "a.nii"), ("T1", "T2")),
        (("b.nii", "a.nii"), ()),
        (("a.nii", "b.nii"), ()),
    ]
    tables = [to_table([ScanEntry(**common, files=files, channel_names=names)]) for files, names in orders]
    assert len({column(renew_fingerprints(table, mode), "fingerprint")[0] for table in tables}) == 5
    # A manifest's own fingerprints are kept, so a training run compares the channels themselves.
    marked = [table.set_column(11, table.schema.field(11), pa.array(["own"])) for table in tables]
    assert len({hash_data(table, Labels()) for table in marked[:3]}) == 3


def test_the_order_of_slices_does_not_enter_the_fingerprint(tmp_path):
    for name in ("a", "b"):
        (tmp_path / f"{name}.tif").write_bytes(name.encode())
    common = {"scan_id": "s", "patient_id": "s", "source": str(tmp_path), "reader": "tiff"}
    tables = [to_table([ScanEntry(**common, files=files)]) for files in (("a.tif", "b.tif"), ("b.tif", "a.tif"))]
    first, second = (column(renew_fingerprints(table, "content"), "fingerprint") for table in tables)
    lines = [f"{name}.tif\0{hashlib.sha256(name.encode()).hexdigest()}" for name in ("a", "b")]
    assert first == second == [hashlib.sha256("\n".join(lines).encode()).hexdigest()]
