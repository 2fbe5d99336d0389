"""What the pages of a TIFF declare: how many slices of which shape and type, without `tifffile`.

The indexing process reads headers of files that nobody vouches for, so it reads a bounded number of tags and a bounded
piece of text, and interprets nothing else. Where the pages are not slices one by one, a description says what they are:

- `tifffile` writes `{"shape": [5, 32, 32], "axes": "ZYX"}`;
- ImageJ writes lines such as `channels=2` and `slices=5`;
- OME-XML has an element `Pixels` with attributes such as `SizeZ="5"` (openmicroscopy.org, 2016-06).
"""

from __future__ import annotations

import math
import os
import re
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from raysegment.archive.formats import Header
from raysegment.archive.names import show_name
from raysegment.archive.tiff_pages import (
    BITS,
    COMPRESSION,
    LENGTH,
    MAX_DIGITS,
    PHOTOMETRIC,
    PLANAR,
    SAMPLE_FORMAT,
    SAMPLES,
    SUBFILE,
    WIDTH,
    Page,
    Selection,
    read_pages,
    shape_in,
)
from raysegment.errors import SliceMismatchError, TruncatedFileError, UnreadableFileError

DEPTH, COLOURS = 32997, 320
REDUCED_IMAGE = 1
PALETTE = 3
LOSSY_COMPRESSIONS = frozenset((6, 7, 33007, 34892))
"""The kinds of JPEG."""

SEPARATE_PLANES = 2
SHAPE_TAGS = (LENGTH, WIDTH, SAMPLES, DEPTH)
TO_DECLARE = Selection(
    frozenset({*SHAPE_TAGS, SUBFILE, BITS, COMPRESSION, PHOTOMETRIC, PLANAR, SAMPLE_FORMAT}),
    frozenset({COLOURS}),
    max_values=500_000,
    description_bytes=2**20,
)
KINDS = {1: "u", 2: "i", 3: "f", 4: "u", 5: "c", 6: "c"}
"""NumPy's kind of a SampleFormat; 4 is undefined, which `tifffile` takes for whole numbers."""

_NUMBER = rb"([0-9]{1,%d})" % MAX_DIGITS
_AXES = re.compile(rb'"axes": "([A-Z]{1,16})"')
_IMAGEJ_LINE = re.compile(rb"^(images|channels|slices|frames)=" + _NUMBER + rb"[ \r]?$", re.MULTILINE)
_OME_PIXELS = re.compile(rb"<(?:[A-Za-z]{1,16}:)?Pixels\s([^<>]{0,4096})>")
_OME_SIZE = re.compile(rb"\bSize([CZT])\s?=\s?[\"']" + _NUMBER + rb"[\"']")


@dataclass(frozen=True)
class _Plane:
    """What one page holds; the pages of a scan share it."""

    rows: int
    columns: int
    channels: int
    depth: int
    bits: int
    dtype: np.dtype[np.generic]
    is_compressed: bool
    is_separate: bool

    @property
    def num_values(self) -> int:
        return self.rows * self.columns * self.channels * self.depth


@dataclass(frozen=True)
class _Stack:
    """What a description declares: planes along all axes but channels, channels beyond those of one page."""

    num_slices: int
    num_channels: int = 1
    has_times: bool = False


def read_declared(stream: BinaryIO, name: str) -> Header:
    """What a TIFF declares; thumbnails and pyramid levels do not count.

    Raises:
        ScanError: No TIFF, truncated, or of a kind that is no scan.
    """
    pages = read_pages(stream, name, TO_DECLARE)
    full = [page for page in pages if not page.first(SUBFILE, 0) & REDUCED_IMAGE] or pages
    _check_one_shape(full, name)
    plane = _plane_of(full[0], name)
    stack = _described_stack(pages[0].descriptions, plane, name) or _Stack(len(full))
    if stack.has_times:
        raise UnreadableFileError(f"{show_name(name)} holds a volume at several times; a file must hold one scan.")
    _check_count(stack.num_slices * stack.num_channels, len(full), plane, stream.seek(0, os.SEEK_END), name)
    channels, dtype = plane.channels * stack.num_channels, plane.dtype
    if full[0].first(PHOTOMETRIC, 1) == PALETTE:
        if channels != 1:
            raise UnreadableFileError(f"{show_name(name)} has a palette and {channels} channels; expected one channel.")
        channels, dtype = _palette_of(pages[0], plane, name).shape[1], np.dtype(np.uint8)
    is_lossy = full[0].first(COMPRESSION, 1) in LOSSY_COMPRESSIONS
    return Header(stack.num_slices * plane.depth, plane.rows, plane.columns, channels, dtype, is_lossy=is_lossy)


def colours_of(stored: npt.NDArray[np.integer[Any]]) -> npt.NDArray[np.uint8]:
    """The colours of a palette, (values, 3), or (values, 1) where all are grey, from (3, values) as stored.

    Some writers give 8 bits in the palette's 16.
    """
    colours = np.ascontiguousarray((stored if stored.max() < 256 else stored >> 8).astype(np.uint8).T)
    return colours[:, :1] if (colours == colours[:, :1]).all() else colours


def _palette_of(page: Page, plane: _Plane, name: str) -> npt.NDArray[np.uint8]:
    stored = page.tags.get(COLOURS, ())
    is_whole = plane.bits <= 16 and len(stored) == 3 * 2**plane.bits and 0 <= min(stored) <= max(stored) < 2**16
    if plane.dtype.kind != "u" or not is_whole:
        raise UnreadableFileError(
            f"{show_name(name)}: the TIFF's palette is missing or its values are no numbers of it."
        )
    return colours_of(np.array(stored).reshape(3, -1))


def _plane_of(page: Page, name: str) -> _Plane:
    rows, columns, channels, depth = _shape(page)
    if min(rows, columns, channels, depth) < 1:
        raise UnreadableFileError(f"{show_name(name)}: the TIFF holds no image with rows and columns.")
    bits = max(page.tags.get(BITS) or (1,))
    kind = KINDS.get(page.first(SAMPLE_FORMAT, 1))
    size = next((size for size in (8, 16, 32, 64, 128) if bits <= size), None)
    if kind is None or size is None or bits < 1:
        raise UnreadableFileError(f"{show_name(name)}: the TIFF's values are of an unknown type of {bits} bits.")
    if kind == "c":
        raise UnreadableFileError(
            f"{show_name(name)} holds complex{size} values; expected whole or floating-point numbers."
        )
    if size > 64 or (kind == "f" and size < 16):
        raise UnreadableFileError(f"{show_name(name)}: the TIFF's values are of an unknown type of {bits} bits.")
    return _Plane(
        rows,
        columns,
        channels,
        depth,
        bits,
        np.dtype(f"{kind}{size // 8}"),
        is_compressed=page.first(COMPRESSION, 1) != 1,
        is_separate=page.first(PLANAR, 1) == SEPARATE_PLANES,
    )


def _shape(page: Page) -> tuple[int, int, int, int]:
    """Rows, columns, samples and depth of a page; 0 where a tag says nothing that can be used."""
    rows, columns, samples, depth = (
        page.first(tag, 0) if tag in page.tags else default
        for tag, default in zip(SHAPE_TAGS, (0, 0, 1, 1), strict=True)
    )
    return rows, columns, samples, depth


def _check_one_shape(pages: list[Page], name: str) -> None:
    shapes = {_shape(page) for page in pages}
    if len(shapes) > 1:
        shown = " and ".join([str(shape[:3]) for shape in sorted(shapes)][:3])
        raise SliceMismatchError(f"{show_name(name)}: pages of {shown}; all must share one shape.")


def _check_count(num_planes: int, num_pages: int, plane: _Plane, num_bytes: int, name: str) -> None:
    """Refuse what a description declares beyond the pages, unless one page stands for a block of bytes."""
    if num_planes == num_pages:
        return
    if num_planes < num_pages:
        raise UnreadableFileError(
            f"{show_name(name)} holds {num_pages} pages, {num_planes} in its first image; a file must hold one scan."
        )
    if num_pages > 1 or plane.is_compressed or num_planes * plane.num_values * plane.bits // 8 > num_bytes:
        raise TruncatedFileError(f"{show_name(name)} declares {num_planes} pages and holds {num_pages}.")


def _described_stack(descriptions: tuple[bytes, ...], plane: _Plane, name: str) -> _Stack | None:
    """What the descriptions make of the pages; None where they say nothing."""
    for text in descriptions:
        if shape := shape_in(text):
            return _shaped_stack(shape, text, plane)
    for text in descriptions:
        if text[-16:].rstrip(b"\0\r\n ").endswith(b"OME>") or text.lstrip().startswith((b"<?xml", b"<OME")):
            return _ome_stack(text, plane, name)
        if text.startswith((b"ImageJ=", b"SCIFIO=")):
            return _imagej_stack(text, plane)
    return None


def _shaped_stack(shape: tuple[int, ...], text: bytes, plane: _Plane) -> _Stack | None:
    num_planes, rest = divmod(math.prod(shape), plane.num_values)
    if rest or not num_planes:
        return None
    found = _AXES.search(text)
    if found is None or len(found[1]) != len(shape):
        return _Stack(num_planes)
    sizes = list(zip(found[1].decode(), shape, strict=True))
    channels, rest = divmod(math.prod(size for axis, size in sizes if axis in "CS"), plane.channels)
    if rest or not channels or num_planes % channels:
        return None
    return _Stack(num_planes // channels, channels, {"T", "Z"} <= {axis for axis, size in sizes if size > 1})


def _imagej_stack(text: bytes, plane: _Plane) -> _Stack | None:
    sizes = {key.decode(): int(value) for key, value in reversed(_IMAGEJ_LINE.findall(text))}
    frames, slices, channels = (sizes.get(key, 1) for key in ("frames", "slices", "channels"))
    if min(frames, slices, channels) < 1 or frames * slices * channels == 1:
        return None
    within_pages = plane.is_separate or sizes.get("images", 1) == frames * slices
    if plane.channels == channels and within_pages:
        channels = 1
    return _Stack(frames * slices, channels, has_times=min(frames, slices) > 1)


def _ome_stack(text: bytes, plane: _Plane, name: str) -> _Stack | None:
    images = _OME_PIXELS.findall(text)
    if len(images) > 1:
        raise UnreadableFileError(f"{show_name(name)} holds {len(images)} images; a file must hold one scan.")
    sizes = {key.decode(): int(value) for key, value in _OME_SIZE.findall(images[0])} if images else {}
    channels, slices, times = (sizes.get(key, 0) for key in "CZT")
    if min(channels, slices, times) < 1:
        return None
    channels, rest = divmod(channels, plane.channels)
    return None if rest else _Stack(slices * times, channels, has_times=min(slices, times) > 1)
