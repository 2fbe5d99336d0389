"""Headers that lie: each is one row of the manifest with a problem, in bounded time, and its neighbours are found."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import tifffile

import raysegment

LIMIT_SECONDS = 60
PLAIN_TAGS = {
    256: (4, 1, 4),
    257: (4, 1, 4),
    258: (3, 1, struct.pack("<H", 8)),
    259: (3, 1, struct.pack("<H", 1)),
    262: (3, 1, struct.pack("<H", 1)),
    273: (4, 1, 8),
    277: (3, 1, struct.pack("<H", 1)),
    278: (4, 1, 4),
    279: (4, 1, 16),
}
"""Code: type, count, value of a 4x4 image of bytes."""


def page_bytes(tags: dict, next_offset: int, big: bool = False) -> bytes:
    """One page of a little-endian TIFF; values are what stands in the entry itself."""
    count, entry, link = ("<Q", "<HHQ", "<Q") if big else ("<H", "<HHI", "<I")
    body = struct.pack(count, len(tags))
    for code, (kind, number, value) in sorted(tags.items()):
        raw = value if isinstance(value, bytes) else struct.pack(link, value)
        body += struct.pack(entry, code, kind, number) + raw.ljust(8 if big else 4, b"\0")
    return body + struct.pack(link, next_offset)


def tiff_bytes(changes: dict | None = None, *, big: bool = False, first: int | None = None, next_offset: int = 0):
    """A TIFF of one page of 4x4 bytes, with some tags replaced."""
    start = 16 if big else 8
    head = b"II" + (struct.pack("<HHHQ", 43, 8, 0, first or start) if big else struct.pack("<HI", 42, first or start))
    return head + page_bytes(PLAIN_TAGS | (changes or {}), next_offset, big) + bytes(64)


def described(text: bytes, next_offset: int = 0) -> bytes:
    """A TIFF of one page with a description, which stands at the end of the file."""
    where = len(tiff_bytes({270: (2, len(text), 0)}))
    return tiff_bytes({270: (2, len(text), where)}, next_offset=next_offset) + text


def chain_bytes(num_pages: int, tags: dict, last: int) -> bytes:
    """Pages that follow each other; the last one points to page number `last`."""
    size = len(page_bytes(tags, 0))
    links = [8 + size * (index + 1) for index in range(num_pages - 1)] + [8 + size * last]
    return b"II*\0" + struct.pack("<I", 8) + b"".join(page_bytes(tags, link) for link in links) + bytes(64)


def png_bytes(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")


def write_good(folder: Path) -> None:
    tifffile.imwrite(folder / "good.tif", np.zeros((8, 8), np.uint8))


def index_rows(folder: Path) -> dict[str, dict]:
    """Rows of the manifest by scan_id, after it was written too."""
    options = raysegment.IndexOptions(source=str(folder), out=str(folder.parent / "m.parquet"))
    return {row["scan_id"]: row for row in raysegment.index(options).table.to_pylist()}


def index_elsewhere(folder: Path) -> list[str]:
    """Problems that the command prints, from a process that is ended when it hangs."""
    words = [sys.executable, "-m", "raysegment", "index", str(folder), "--json"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=LIMIT_SECONDS, check=True)
    return [problem for _, problem in json.loads(done.stdout)["problems"]]


ENDED_IN_A_TRACEBACK = {
    "a PNG of 2^32-1 columns": ("a.png", png_bytes(2**32 - 1, 4), "declares"),
    "a PNG of 2^31 squared": ("a.png", png_bytes(2**31, 2**31), "declares"),
    "a TIFF of 2^32-1 columns": ("a.tif", tiff_bytes({256: (4, 1, 2**32 - 1)}), "declares"),
    "a TIFF of 2^32-1 channels": ("a.tif", tiff_bytes({277: (4, 1, 2**32 - 1)}), "declares"),
    "a first page at 2^63": ("a.tif", tiff_bytes(big=True, first=2**63), "ends before"),
    "a first page at 2^64-1": ("a.tif", tiff_bytes(big=True, first=2**64 - 1), "ends before"),
    "a BigTIFF of 2^63 squared": ("a.tif", tiff_bytes({256: (16, 1, 2**63), 257: (16, 1, 2**63)}, big=True), "a.tif"),
    "strips beyond 2^63": ("a.tif", tiff_bytes({273: (16, 10**15, 2**63)}, big=True), "a.tif"),
    "2^62 strips": ("a.tif", tiff_bytes({273: (16, 2**62, 64)}, big=True), "a.tif"),
}


@pytest.mark.parametrize(("name", "data", "problem"), ENDED_IN_A_TRACEBACK.values(), ids=ENDED_IN_A_TRACEBACK.keys())
def test_absurd_sizes_and_offsets_are_one_row_with_a_problem(tmp_path, name, data, problem):
    folder = tmp_path / "archive"
    folder.mkdir()
    write_good(folder)
    (folder / name).write_bytes(data)
    rows = index_rows(folder)
    assert problem in rows[name]["problem"]
    assert (rows["good.tif"]["height"], rows["good.tif"]["problem"]) == (8, None)


ODD_DESCRIPTIONS = {
    "bytes below zero": tiff_bytes({270: (6, 4, b"\xff\xff\xff\xff")}),
    "words instead of letters": tiff_bytes({270: (3, 2, b"\xff\xff\xff\xff")}),
    "a shape of commas": described(b'{"shape": [,,,]}'),
    "a shape of spaces": described(b'{"shape": [ ]}'),
}


@pytest.mark.parametrize("data", ODD_DESCRIPTIONS.values(), ids=ODD_DESCRIPTIONS.keys())
def test_a_description_that_says_nothing_is_no_obstacle(tmp_path, data):
    folder = tmp_path / "archive"
    folder.mkdir()
    write_good(folder)
    (folder / "a.tif").write_bytes(data)
    rows = index_rows(folder)
    assert (rows["a.tif"]["height"], rows["a.tif"]["width"], rows["a.tif"]["channels"]) == (4, 4, 1)
    assert rows["good.tif"]["problem"] is None


@pytest.mark.parametrize("code", [256, 257, 277])
def test_sizes_below_zero_are_a_problem(tmp_path, code):
    folder = tmp_path / "archive"
    folder.mkdir()
    (folder / "a.tif").write_bytes(tiff_bytes({code: (9, 1, struct.pack("<i", -4))}))
    row = index_rows(folder)["a.tif"]
    assert row["problem"] is not None
    assert row["height"] is None


@pytest.mark.parametrize(
    ("kind", "count", "value"),
    [(2, 4, b"4\0\0\0"), (5, 1, 8), (12, 1, 8)],
    ids=["text", "fraction", "double"],
)
def test_sizes_of_the_wrong_type_are_a_problem(tmp_path, kind, count, value):
    folder = tmp_path / "archive"
    folder.mkdir()
    (folder / "a.tif").write_bytes(tiff_bytes({256: (kind, count, value)}))
    row = index_rows(folder)["a.tif"]
    assert row["problem"] is not None
    assert row["width"] is None


ENDLESS = {
    "ImageJ's page that points to itself": described(b"ImageJ=1.11a\nimages=100000000\nslices=100000000\n", 8),
    "a thousand pages that lead back": chain_bytes(1000, PLAIN_TAGS, last=1),
    "half a million pages of one tag": chain_bytes(500_000, {256: (4, 1, 4)}, last=1),
}


@pytest.mark.parametrize("data", ENDLESS.values(), ids=ENDLESS.keys())
def test_pages_without_end_are_a_problem_and_no_hang(tmp_path, data):
    write_good(tmp_path)
    (tmp_path / "a.tif").write_bytes(data)
    (problem,) = index_elsewhere(tmp_path)
    assert "a.tif" in problem
