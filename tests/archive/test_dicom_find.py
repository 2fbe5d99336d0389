"""DICOM series as scans: which files are joined, in which order, under which names, and what is left alone."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pydicom
import pytest
from dicom_made import make_series, make_uid, write_series

from raysegment.archive.index import find_scans, summarise
from raysegment.archive.pseudonyms import Pseudonyms
from raysegment.options import Finding

KEY = bytes(range(32))
REGISTERED = ("T1pre=T1pre_reg", "T1post=T1post", "FLAIR=FLAIR*", "T2=t2_reg")


@pytest.fixture(autouse=True)
def key_file(tmp_path_factory, monkeypatch) -> Path:
    folder = tmp_path_factory.mktemp("config")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(folder))
    path = folder / "raysegment" / "pseudonyms.key"
    path.parent.mkdir()
    path.write_bytes(KEY)
    path.chmod(0o600)
    return path


@pytest.fixture
def real_dicom() -> Path:
    folder = os.environ.get("RAYSEGMENT_DATA")
    if not folder or not (Path(folder) / "dicom").is_dir():
        pytest.skip("RAYSEGMENT_DATA names no folder that holds dicom/")
    return Path(folder) / "dicom"


def volume(slices: int = 5, rows: int = 4, columns: int = 6) -> np.ndarray:
    return np.arange(slices * rows * columns, dtype=np.int16).reshape(slices, rows, columns)


def rows_of(folder: Path, **how: object) -> list[dict]:
    return find_scans(str(folder), Finding(**how)).to_pylist()


def problems_of(folder: Path, **how: object) -> dict[str, str]:
    return {row["scan_id"]: row["problem"] for row in rows_of(folder, **how)}


def hashed(kind: str, text: str, digits: int) -> str:
    return Pseudonyms(KEY).hash(kind, text, digits)


def test_a_series_is_a_scan_with_its_slices_in_order(tmp_path):
    names = write_series(tmp_path / "a" / "b", make_series(volume(), series="s", patient="P-7"))
    (row,) = rows_of(tmp_path)
    assert row["files"] == [f"a/b/{name}" for name in names]
    assert row["scan_id"] == f"a/b/{hashed('series', make_uid('study', 's'), 12)}"
    assert row["patient_id"] == hashed("patient", "P-7", 16)
    assert (row["reader"], row["height"], row["width"], row["channels"]) == ("dicom", 4, 6, 1)
    assert (row["problem"], row["scan_date"], row["scan_day"]) == (None, None, 0)


def test_two_series_of_one_folder_are_two_scans_and_neither_renames_the_other(tmp_path):
    write_series(tmp_path, make_series(volume(), series="one"))
    before = rows_of(tmp_path)
    write_series(tmp_path, make_series(volume(), series="two"), names=[f"x{index}" for index in range(5)])
    after = rows_of(tmp_path)
    assert len(before) == 1
    assert len(after) == 2
    assert before[0] in after


def test_days_are_counted_from_the_patients_first_scan(tmp_path):
    for day, series in (("20200131", "one"), ("20200305", "two")):
        write_series(tmp_path / series, make_series(volume(), series=series, StudyDate=day))
    assert sorted(row["scan_day"] for row in rows_of(tmp_path)) == [0, 34]
    kept = {str(row["scan_date"]) for row in rows_of(tmp_path, keep_dates=True)}
    assert kept == {"2020-01-31", "2020-03-05"}


def test_patients_keep_their_ids_where_asked_for_and_are_their_study_without_one(tmp_path):
    write_series(tmp_path / "a", make_series(volume(), series="a", patient="P-7"))
    write_series(tmp_path / "b", make_series(volume(), series="b", study="x", PatientID=None))
    patients = {row["patient_id"] for row in rows_of(tmp_path, keep_patient_ids=True)}
    assert patients == {"P-7", hashed("study", make_uid("x"), 16)}


def test_the_real_study_is_five_scans_without_channels(real_dicom):
    rows = rows_of(real_dicom / "mr-study")
    assert sorted(len(row["files"]) for row in rows) == [22, 22, 22, 22, 40]
    assert len({row["patient_id"] for row in rows}) == 1
    for row in rows:
        places = [
            float(pydicom.dcmread(real_dicom / "mr-study" / name).ImagePositionPatient[2]) for name in row["files"]
        ]
        assert places == sorted(places)


def test_the_real_study_is_one_scan_of_four_channels(real_dicom):
    table = find_scans(str(real_dicom / "mr-study"), Finding(channel=REGISTERED))
    (row,) = table.to_pylist()
    assert row["channel_names"] == ["T1pre", "T1post", "FLAIR", "T2"]
    folders = [name.partition("/")[0] for name in row["files"]]
    assert folders == [
        name
        for name in ("26401-T1prereg-52906", "11-T1post-18670", "36468-FLAIRreg-58706", "37830-T2reg-78532")
        for _ in range(22)
    ]
    assert (row["height"], row["width"], row["channels"]) == (320, 280, 4)
    assert summarise(table).dicom_left_alone == {"image of a series that no channel names": 40}


def test_the_real_segmentation_is_the_reference_of_its_series(real_dicom):
    table = find_scans(str(real_dicom))
    references = {row["scan_id"].partition("/")[0]: row["reference_files"] for row in table.to_pylist()}
    assert references.pop("ct-3slice") == ["liver.dcm"]
    assert not any(references.values())
    # The other segmentation was drawn on a series that is not there.
    assert summarise(table).masks_without_image == 1


def test_a_bucket_is_surveyed_too(tmp_path):
    write_series(tmp_path / "a", make_series(volume(), series="s"), names=["1.2.3", "IM2", "x.IMA", "y.dcm", "5"])
    (tmp_path / "a" / "README").write_text("x" * 200)
    (bucket,) = find_scans(f"file://{tmp_path}").to_pylist()
    (local,) = rows_of(tmp_path)
    assert bucket == local | {"source": f"file://{tmp_path}"}
    assert bucket["files"] == ["a/1.2.3", "a/IM2", "a/x.IMA", "a/y.dcm", "a/5"]


def test_a_bucket_without_dicom_needs_no_key(tmp_path, write_series, key_file):
    key_file.unlink()
    write_series(tmp_path, "x_")
    (tmp_path / "README").write_text("scans" * 100)
    assert find_scans(f"file://{tmp_path}").num_rows == 1
    assert not key_file.exists()


def test_an_archive_without_dicom_needs_no_key(tmp_path, write_series, key_file):
    key_file.unlink()
    write_series(tmp_path, "x_")
    (tmp_path / "README").write_text("scans")
    (tmp_path / "1.2.3").write_bytes(b"")
    assert find_scans(str(tmp_path)).num_rows == 1
    assert not key_file.exists()
