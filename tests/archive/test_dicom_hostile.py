"""The archive that nobody should send, below Ray: what is found in it, and what reading says of each scan."""

from __future__ import annotations

from pathlib import Path

import pytest
from dicom_hostile import BAD, GOOD, PLANTED, write_hostile

from raysegment.archive.index import find_scans
from raysegment.archive.manifest import entries
from raysegment.archive.read import read_scan
from raysegment.errors import ScanError
from raysegment.options import Finding


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    write_hostile(tmp_path / "archive")
    return tmp_path / "archive"


def test_each_bad_scan_is_one_row_and_one_typed_error_and_good_ones_are_read(archive, tmp_path, caplog, capfd):
    (tmp_path / "key").write_bytes(bytes(range(32)))
    (tmp_path / "key").chmod(0o600)
    found = find_scans(str(archive), Finding(key_file=str(tmp_path / "key")))
    assert found.num_rows == len(GOOD) + len(BAD)
    good, errors = [], {}
    told = [str(found.to_pylist())]
    for entry in entries(found):
        folder = entry.scan_id.split("/")[0]
        try:
            assert read_scan(entry).pixels.shape == (6, 64, 64, 1)
            good.append(folder)
        except ScanError as error:
            errors[folder] = type(error).__name__
            told.append(str(error))
    assert sorted(good) == sorted(GOOD)
    assert errors == {name: expected or errors.get(name) for name, expected in BAD.items()}
    told += [caplog.text, *capfd.readouterr()]
    assert [word for word in PLANTED if any(word in text for text in told)] == []
    assert not (archive.parent / "outside").exists()
