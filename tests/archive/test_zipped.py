"""Files in zips: read through them as through folders, in memory; hostile zips are a row with an error each."""

from __future__ import annotations

import io
import os
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from dicom_made import make_instance, make_series, to_bytes

from raysegment.archive.filesystem import hash_bytes, open_file, read_bytes, split_zip
from raysegment.archive.fingerprint import renew_fingerprints
from raysegment.archive.index import find_scans, summarise
from raysegment.archive.manifest import entries
from raysegment.archive.read import read_scan
from raysegment.archive.zipped import MAX_DIRECTORY_BYTES, OpenZip
from raysegment.errors import AccessError, OversizedScanError, ScanError, UnreadableFileError, parse_scan_error
from raysegment.options import Finding
from raysegment.scan import ScanEntry

VOLUME = np.arange(4 * 3 * 5, dtype=np.int16).reshape(4, 3, 5)
FILES = {f"IM/{index}": to_bytes(made) for index, made in enumerate(make_series(VOLUME))}
ONE = to_bytes(make_instance(VOLUME[0], series="other"))


@pytest.fixture(autouse=True)
def config(tmp_path_factory, monkeypatch) -> Path:
    folder = tmp_path_factory.mktemp("config")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(folder))
    return folder


def write_zip(path: Path, files: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def encrypted(path: Path) -> None:
    """Set the flag that says so, in the local headers and in the list of files."""
    data = bytearray(path.read_bytes())
    for mark, offset in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        start = -1
        while (start := data.find(mark, start + 1)) >= 0:
            data[start + offset] |= 1
    path.write_bytes(data)


def test_a_series_in_a_zip_is_a_scan_like_one_in_a_folder(tmp_path):
    write_zip(tmp_path / "a" / "b.zip", FILES)
    (row,) = find_scans(str(tmp_path)).to_pylist()
    assert row["files"] == ["a/b.zip/IM/0", "a/b.zip/IM/1", "a/b.zip/IM/2", "a/b.zip/IM/3"]
    assert row["scan_id"].startswith("a/b.zip/IM/")
    assert (row["problem"], row["bytes"]) == (None, sum(map(len, FILES.values())))
    assert [read_bytes(str(tmp_path), name) for name in row["files"]] == list(FILES.values())


def test_a_bucket_is_read_through_zips_too(tmp_path):
    write_zip(tmp_path / "a" / "b.zip", FILES)
    (row,) = find_scans(f"file://{tmp_path}").to_pylist()
    assert row["files"] == [f"a/b.zip/{name}" for name in FILES]
    assert row["fingerprint"] == find_scans(str(tmp_path)).to_pylist()[0]["fingerprint"]
    assert [read_bytes(f"file://{tmp_path}", name) for name in row["files"]] == list(FILES.values())


def test_a_zip_within_other_folders_is_found_by_its_longest_way(tmp_path):
    write_zip(tmp_path / "x.zip" / "y.ZIP", {"z.zip.d/1": b"1"})
    (tmp_path / "x.zip" / "plain").write_bytes(b"2")
    assert split_zip(str(tmp_path), "x.zip/y.ZIP/z.zip.d/1") == ("x.zip/y.ZIP", "z.zip.d/1")
    assert read_bytes(str(tmp_path), "x.zip/y.ZIP/z.zip.d/1") == b"1"
    assert read_bytes(str(tmp_path), "x.zip/plain") == b"2"


def test_a_fingerprint_is_of_the_zip_and_is_the_same_when_it_is_renewed(tmp_path):
    path = write_zip(tmp_path / "b.zip", FILES)
    table = find_scans(str(tmp_path))
    assert renew_fingerprints(table, "stat")["fingerprint"] == table["fingerprint"]
    empty = table.set_column(
        table.schema.get_field_index("fingerprint"), table.schema.field("fingerprint"), pa.array([""])
    )
    assert renew_fingerprints(empty, "stat")["fingerprint"] == table["fingerprint"]
    os.utime(path, ns=(1, 1))
    assert renew_fingerprints(table, "stat")["fingerprint"] != table["fingerprint"]
    assert renew_fingerprints(table, "stat")["fingerprint"] == find_scans(str(tmp_path))["fingerprint"]


def test_bytes_in_a_zip_are_hashed_a_piece_at_a_time(tmp_path):
    write_zip(tmp_path / "b.zip", {"1": b"abc"})
    assert hash_bytes(str(tmp_path), "b.zip/1") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_seeks_cost_nothing_until_something_is_read(tmp_path):
    data = bytes(range(256)) * 400
    write_zip(tmp_path / "b.zip", {"1": data})
    with open_file(str(tmp_path), "b.zip/1", 64) as stream:
        assert stream.seek(0, io.SEEK_END) == len(data)
        assert stream.read() == b""
        stream.seek(1000)
        assert stream.read(10) == data[1000:1010]
        stream.seek(5)
        assert stream.read() == data[5:]


def test_a_zip_that_changes_is_opened_again(tmp_path):
    for content in (b"one", b"three"):
        write_zip(tmp_path / "b.zip", {"1": content})
        assert read_bytes(str(tmp_path), "b.zip/1") == content
    (tmp_path / "b.zip").unlink()
    with pytest.raises(AccessError, match=r"b\.zip/1 cannot be read"):
        read_bytes(str(tmp_path), "b.zip/1")


OUTSIDE = "UnreadableFileError: {} holds files that are left alone: a name that leads out of the zip ({})."
HOSTILE = {
    "above.zip": ({"../1.dcm": ONE, "a/../../2.dcm": ONE, "b//3.dcm": ONE}, OUTSIDE.format("above.zip", 3)),
    "absolute.zip": ({"/etc/1.dcm": ONE}, OUTSIDE.format("absolute.zip", 1)),
    "backslash.zip": ({"..\\1.dcm": ONE, "C:\\2.dcm": ONE}, OUTSIDE.format("backslash.zip", 2)),
    "nested.zip": (
        {"more.zip": ONE},
        "UnreadableFileError: nested.zip holds files that are left alone: a zip within a zip, which is not opened (1).",
    ),
}
NONE = "UnreadableFileError: {} is no zip that can be read (BadZipFile)."


@pytest.fixture(scope="module")
def hostile(tmp_path_factory) -> tuple[Path, dict[str, dict]]:
    """Zips with all kinds of faults, and the rows that they become."""
    folder = tmp_path_factory.mktemp("hostile")
    for name, (files, _) in HOSTILE.items():
        write_zip(folder / name, files)
        with zipfile.ZipFile(folder / name, "a") as archive:
            archive.writestr(f"{name}.dcm", to_bytes(make_instance(VOLUME[0], series=name)))
    write_zip(folder / "bzip2.zip", {"1.dcm": ONE}, zipfile.ZIP_BZIP2)
    write_zip(folder / "bomb.zip", {"1.dcm": ONE[:132] + bytes(70 * 2**20)})
    encrypted(write_zip(folder / "encrypted.zip", FILES | {"DICOMDIR": ONE}))
    twice = write_zip(folder / "twice.zip", {"1.dcm": ONE, "2.dcm": FILES["IM/0"]}, zipfile.ZIP_STORED)
    twice.write_bytes(twice.read_bytes().replace(b"2.dcm", b"1.dcm"))
    for cut in (0, 10, -1, -30, 200):
        path = write_zip(folder / f"cut{cut}.zip", FILES)
        path.write_bytes(path.read_bytes()[:cut])
    listed = sorted(os.listdir(folder))
    key = tmp_path_factory.mktemp("key") / "key"
    key.write_bytes(bytes(32))
    rows = {row["scan_id"]: row for row in find_scans(str(folder), Finding(key_file=str(key))).to_pylist()}
    # Nothing was unpacked anywhere.
    assert sorted(os.listdir(folder)) == listed
    return folder, rows


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        *((name, problem) for name, (_, problem) in HOSTILE.items()),
        *((f"cut{cut}.zip", NONE.format(f"cut{cut}.zip")) for cut in (0, 10, -1, -30, 200)),
        ("encrypted.zip", "UnreadableFileError: encrypted.zip holds files that are left alone: encrypted (5)."),
        (
            "twice.zip",
            "UnreadableFileError: twice.zip holds files that are left alone: a name that stands there more than once "
            "(1).",
        ),
        (
            "bzip2.zip",
            "UnreadableFileError: bzip2.zip holds files that are left alone: packed in a way that is not read (neither "
            "stored nor deflated) (1).",
        ),
        (
            "bomb.zip",
            "OversizedScanError: bomb.zip holds files that are left alone: unpacks to more than 2048 MB, or 200 times "
            "its size (1).",
        ),
    ],
)
def test_what_is_wrong_in_a_zip_is_one_row_whose_reading_fails_so(hostile, name, problem):
    folder, rows = hostile
    assert (rows[name]["files"], rows[name]["problem"]) == ([name], problem)
    entry = ScanEntry(scan_id=name, patient_id=name, source=str(folder), reader="dicom", files=(name,), problem=problem)
    with pytest.raises(ScanError) as caught:
        read_scan(entry)
    assert type(caught.value) is type(parse_scan_error(problem))


def test_what_is_sound_beside_what_is_wrong_is_read(hostile):
    folder, rows = hostile
    sound = {name for row in rows.values() for name in row["files"] if row["problem"] is None}
    assert sound == {f"{name}/{name}.dcm" for name in HOSTILE}
    for name, (files, _) in HOSTILE.items():
        for member in files:
            with pytest.raises(UnreadableFileError):
                read_bytes(str(folder), f"{name}/{member}")
    assert (folder / "bomb.zip").stat().st_size < 2**20


def test_a_file_that_declares_less_than_it_unpacks_to_is_damaged(tmp_path):
    path = write_zip(tmp_path / "b.zip", {"1.dcm": ONE * 50})
    data = path.read_bytes().replace((50 * len(ONE)).to_bytes(4, "little"), (300).to_bytes(4, "little"))
    path.write_bytes(data)
    with pytest.raises(UnreadableFileError, match=r"b\.zip/1\.dcm is damaged in its zip"):
        read_bytes(str(tmp_path), "b.zip/1.dcm")


def test_a_list_of_files_without_end_is_not_read():
    end = b"PK\5\6" + bytes(8) + (MAX_DIRECTORY_BYTES + 1).to_bytes(4, "little") + bytes(6)

    class Long(io.BytesIO):
        """A file that is as long as its list would need, without the memory."""

        def seek(self, offset: int, whence: int = 0) -> int:
            super().seek(0)
            self.place = offset if whence == 0 else MAX_DIRECTORY_BYTES + 1 + len(end) + offset
            return self.place

        def tell(self) -> int:
            return self.place

        def read(self, size: int | None = -1) -> bytes:
            assert size is None or size <= MAX_DIRECTORY_BYTES
            return end

    with pytest.raises(OversizedScanError, match="list of files"):
        OpenZip(Long(), "b.zip")


def test_what_is_wrong_in_a_zip_is_said_under_pseudonyms_too(tmp_path):
    write_zip(tmp_path / "erika.zip", {"../erika.dcm": ONE, "more.zip": ONE})
    (entry,) = entries(find_scans(str(tmp_path), Finding(pseudonymise=True)))
    with pytest.raises(UnreadableFileError, match="holds files that are left alone: a name that leads") as caught:
        read_scan(entry)
    assert "erika" not in f"{caught.value} {entry}"


def test_faults_of_a_zip_that_has_nothing_to_do_with_dicom_are_no_failed_scan(tmp_path, config):
    write_zip(tmp_path / "tools.zip", {"readme.txt": b"tools", "LICENSE": b"x" * 200, "lib/inner.zip": b"PK"})
    encrypted(write_zip(tmp_path / "secret.zip", {"passwords.txt": b"x", "KEYS": b"x" * 200}))
    from PIL import Image

    Image.new("L", (4, 4)).save(tmp_path / "x.png")
    table = find_scans(str(tmp_path))
    assert (table["scan_id"].to_pylist(), table["problem"].to_pylist()) == (["x.png"], [None])
    assert summarise(table).dicom_left_alone == {
        "zip of which some cannot be read, and nothing is or is called DICOM": 2
    }
    assert not list(config.iterdir())
    # Beside DICOM in the same zip they are told, as nobody knows what else lies there.
    write_zip(tmp_path / "tools.zip", {"lib/inner.zip": b"PK", "1": ONE})
    found = find_scans(str(tmp_path)).to_pylist()
    assert [row["scan_id"] for row in found if row["problem"]] == ["tools.zip"]
    assert [row["files"] for row in found if row["reader"] == "dicom" and not row["problem"]] == [["tools.zip/1"]]


def test_a_zip_without_dicom_is_left_alone_without_a_key(tmp_path, config):
    write_zip(tmp_path / "b.zip", {"README": b"scans", "a.tif": b"II*\0", "1.2.3": b"x" * 200})
    from PIL import Image

    Image.new("L", (4, 4)).save(tmp_path / "x.png")
    assert find_scans(str(tmp_path))["scan_id"].to_pylist() == ["x.png"]
    assert not list(config.iterdir())
