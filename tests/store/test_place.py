from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from raysegment.errors import OutputError, UsageError
from raysegment.store.place import Place


def test_what_lies_below_a_place_is_a_place(tmp_path: Path) -> None:
    assert Place(str(tmp_path)).locate("results/a") == str(tmp_path / "results" / "a")
    options = "?endpoint_override=localhost:9&scheme=http&region=eu-west-1"
    bucket = Place(f"s3://lake/a%20folder/{options}")
    assert bucket.locate("results/b") == f"s3://lake/a%20folder/results/b{options}"
    assert Place(bucket.locate("results/b")).path("c") == "lake/a folder/results/b/c"


def test_a_repeated_file_keeps_its_content_when_the_first_is_replaced(tmp_path: Path) -> None:
    place = Place(str(tmp_path))
    place.write_bytes("first", b"before")
    place.repeat("first", "second")
    assert os.path.samefile(tmp_path / "first", tmp_path / "second"), "no bytes are copied"
    place.write_bytes("first", b"after")
    assert place.read_bytes("second") == b"before"


def test_a_folder_that_takes_no_link_says_so(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    place = Place(str(tmp_path))
    place.write_bytes("first", b"before")
    mounted = subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(tmp_path / "disk")], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"a tmpfs cannot be mounted here: {mounted.stderr.decode().strip()}")
    try:
        with pytest.raises(OutputError, match=r"disk/second cannot be made a hard link to .*first: .*cross-device"):
            place.repeat("first", "disk/second")
    finally:
        subprocess.run(["umount", "-l", str(tmp_path / "disk")], check=False)
    with pytest.raises(OutputError, match=r"gone: No such file"):
        place.repeat("gone", "third")


@pytest.mark.parametrize("location", ["s3://key:secret@lake/out", "gs://secret@lake/out?scheme=http"])
def test_credentials_in_a_location_are_refused_and_not_repeated(location: str) -> None:
    with pytest.raises(UsageError, match="lake/out holds credentials") as caught:
        Place(location)
    assert "secret" not in str(caught.value)
