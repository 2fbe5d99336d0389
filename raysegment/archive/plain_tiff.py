"""The structure of TIFF files: their pages, and a quick way to decode the plain ones.

TIFF 6.0 (Adobe, 1992) and BigTIFF. `tifffile` reads every kind; most slice files are of one plain kind (one page of
strips, 8 or 16 bit), which is decoded here in less time with the same result.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import BinaryIO

import imagecodecs
import numpy as np

from raysegment.archive.names import show_name
from raysegment.errors import TruncatedFileError, UnknownFormatError, UnreadableFileError
from raysegment.scan import Pixels

Tags = dict[int, tuple[int, ...]]
Buffer = bytes | bytearray | memoryview

MAGICS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
MAX_PAGES = 1_000_000
WIDTH, LENGTH, BITS, COMPRESSION, PHOTOMETRIC, DESCRIPTION = 256, 257, 258, 259, 262, 270
STRIP_OFFSETS, SAMPLES, ROWS_PER_STRIP, STRIP_BYTES, PLANAR = 273, 277, 278, 279, 284
PREDICTOR, TILE_OFFSETS, TILE_BYTES, SAMPLE_FORMAT = 317, 324, 325, 339

_STRUCT_OF_TYPE = {1: "B", 2: "B", 3: "H", 4: "I", 6: "b", 7: "B", 8: "h", 9: "i", 13: "I", 16: "Q", 17: "q", 18: "Q"}
_SIZE_OF_TYPE = {5: 8, 10: 8, 11: 4, 12: 8} | {code: struct.calcsize(kind) for code, kind in _STRUCT_OF_TYPE.items()}
_LAYOUT_TAGS = {254, 256, 257, 258, 259, 262, 273, 277, 278, 279, 284, 317, 339}
_HARMLESS_TAGS = {270, 271, 272, 274, 280, 281, 282, 283, 296, 305, 306, 315, 338}
_META_DESCRIPTIONS = (b"ImageJ=", b"<?xml", b"<OME", b"{", b"shape=", b"SCANIMAGE", b"Aperio")
_SHAPE_DESCRIPTION = re.compile(rb'\{"shape": \[([0-9, ]+)\]\}\0*')
_DESCRIPTION_BYTES = 64
WHITE_IS_ZERO = 0
"""The photometric interpretation of pages whose smallest value is the brightest."""


@dataclass(frozen=True)
class Page:
    """One page: values of its tags by tag number, and where the next page begins (0: nowhere)."""

    tags: Tags
    order: str
    next_offset: int
    is_big: bool

    def first(self, tag: int, default: int) -> int:
        return (self.tags.get(tag) or (default,))[0]


@dataclass(frozen=True)
class PlainLayout:
    """A single page of strips whose samples lie side by side."""

    rows: int
    columns: int
    channels: int
    dtype: np.dtype[np.generic]
    compression: int
    predictor: int
    is_white_zero: bool
    rows_per_strip: int
    offsets: tuple[int, ...]
    byte_counts: tuple[int, ...]


def read_pages(stream: BinaryIO, name: str, limit: int = MAX_PAGES) -> list[Page]:
    """The pages of a TIFF file in order, at most `limit`.

    Raises:
        UnknownFormatError: The file does not begin as a TIFF does.
        TruncatedFileError: A page's tags lie beyond the end of the file.
        UnreadableFileError: The pages form a loop.
    """
    head = stream.read(16)
    if head[:4] not in MAGICS:
        raise UnknownFormatError(f"{show_name(name)}: the first bytes are not those of a TIFF file.")
    order, is_big = "<" if head[:2] == b"II" else ">", b"+" in head[:4]
    try:
        (offset,) = struct.unpack_from(order + ("Q" if is_big else "I"), head, 8 if is_big else 4)
        pages: list[Page] = []
        seen: set[int] = set()
        while offset and len(pages) < limit:
            if offset in seen:
                raise UnreadableFileError(f"{show_name(name)}: the TIFF's pages form a loop.")
            seen.add(offset)
            pages.append(_read_page(stream, offset, order, is_big))
            offset = pages[-1].next_offset
    except struct.error:
        raise TruncatedFileError(f"{show_name(name)} ends before its TIFF tags do.") from None
    if not pages:
        raise TruncatedFileError(f"{show_name(name)}: the TIFF has no page.")
    return pages


def check_complete(pages: list[Page], num_bytes: int, name: str) -> None:
    """Refuse a file that ends before the last strip or tile of its pages.

    Raises:
        TruncatedFileError: Says how many bytes are missing.
    """
    end = 0
    for page in pages:
        for starts, counts in ((STRIP_OFFSETS, STRIP_BYTES), (TILE_OFFSETS, TILE_BYTES)):
            pairs = zip(page.tags.get(starts, ()), page.tags.get(counts, ()), strict=False)
            end = max(end, max((start + count for start, count in pairs), default=0))
    if end > num_bytes:
        raise TruncatedFileError(f"{show_name(name)} has {num_bytes} bytes; its pixels end at byte {end}.")


def plain_layout(page: Page) -> PlainLayout | None:
    """The layout of a page that `decode_plain` can decode; None where `tifffile` has to."""
    tags = page.tags
    if page.is_big or page.next_offset or tags.keys() - _LAYOUT_TAGS - _HARMLESS_TAGS:
        return None
    bits, formats = set(tags.get(BITS) or (1,)), set(tags.get(SAMPLE_FORMAT) or (1,))
    rows, columns, channels = page.first(LENGTH, 0), page.first(WIDTH, 0), page.first(SAMPLES, 1)
    kind = {(8, 1): "u1", (16, 1): "u2", (16, 2): "i2", (32, 3): "f4"}.get((min(bits), min(formats)))
    predictor, compression = page.first(PREDICTOR, 1), page.first(COMPRESSION, 1)
    plain = (
        len(bits) == len(formats) == 1
        and kind is not None
        and compression in (1, 5, 8, 32946)
        and (predictor == 1 or (predictor == 2 and kind != "f4"))
        and (channels == 1 or page.first(PLANAR, 1) == 1)
        and page.first(PHOTOMETRIC, 1) in ((0, 1, 2) if channels == 1 else (1, 2))
        and page.first(254, 0) == 0
        and _is_one_image(bytes(tags.get(DESCRIPTION, ())), rows * columns * channels)
    )
    rows_per_strip = min(page.first(ROWS_PER_STRIP, rows), rows)
    offsets, counts = tags.get(STRIP_OFFSETS, ()), tags.get(STRIP_BYTES, ())
    if not plain or min(rows, columns, channels, rows_per_strip) < 1 or 0 in offsets or 0 in counts:
        return None
    if len(offsets) != len(counts) or len(offsets) != -(-rows // rows_per_strip):
        return None
    dtype = np.dtype(f"{page.order}{kind}")
    predictor = predictor if compression > 1 else 1
    return PlainLayout(
        rows,
        columns,
        channels,
        dtype,
        compression,
        predictor,
        page.first(PHOTOMETRIC, 1) == WHITE_IS_ZERO,
        rows_per_strip,
        offsets,
        counts,
    )


def decode_plain(data: bytes, layout: PlainLayout) -> Pixels | None:
    """Pixels (rows, columns, channels) of a plain page; None where the strips do not hold what the tags say."""
    row_bytes = layout.columns * layout.channels * layout.dtype.itemsize
    decode = _DECODERS[layout.compression]
    strips = []
    for index, (offset, count) in enumerate(zip(layout.offsets, layout.byte_counts, strict=True)):
        rows = min(layout.rows_per_strip, layout.rows - index * layout.rows_per_strip)
        strip = decode(memoryview(data)[offset : offset + count], out=rows * row_bytes)
        if len(strip) < rows * row_bytes:
            return None
        strips.append(memoryview(strip)[: rows * row_bytes])
    joined = strips[0] if len(strips) == 1 else b"".join(strips)
    pixels = np.frombuffer(joined, layout.dtype).reshape(layout.rows, layout.columns, layout.channels)
    pixels = pixels.astype(layout.dtype.newbyteorder("="), copy=False)
    if layout.predictor == 2:
        pixels = np.asarray(imagecodecs.delta_decode(pixels, axis=-2))
    return turn_white(pixels, 8 * layout.dtype.itemsize) if layout.is_white_zero else pixels


def turn_white(pixels: Pixels, bits: int) -> Pixels:
    """Turn values of which 0 means white, so that a brighter one is larger.

    Unsigned values are taken from the largest that their bits hold, as libtiff does; signed and floating-point ones, of
    which the standard says nothing, change their order only: -1 - value and -value.
    """
    if pixels.dtype.kind == "u":
        return np.subtract(2**bits - 1, pixels, dtype=pixels.dtype)
    return np.subtract(0, pixels, dtype=pixels.dtype) if pixels.dtype.kind == "f" else np.invert(pixels)


_DECODERS: dict[int, Callable[..., Buffer]] = {
    1: lambda strip, out: strip,
    5: imagecodecs.lzw_decode,
    8: imagecodecs.deflate_decode,
    32946: imagecodecs.deflate_decode,
}


def _is_one_image(description: bytes, size: int) -> bool:
    """Whether a description does not say that the page stands for a stack, as those of ImageJ, OME and tifffile may."""
    shape = _SHAPE_DESCRIPTION.fullmatch(description)
    if shape:
        return math.prod(int(part) for part in shape[1].split(b",")) == size
    return not description.lstrip().startswith(_META_DESCRIPTIONS)


def _read_page(stream: BinaryIO, offset: int, order: str, is_big: bool) -> Page:
    count_kind, entry_size, link_kind = ("Q", 20, "Q") if is_big else ("H", 12, "I")
    stream.seek(offset)
    (num_tags,) = struct.unpack(order + count_kind, stream.read(struct.calcsize(order + count_kind)))
    if num_tags > 65535:
        raise struct.error
    link_size = struct.calcsize(order + link_kind)
    block = stream.read(num_tags * entry_size + link_size)
    (next_offset,) = struct.unpack_from(order + link_kind, block, num_tags * entry_size)
    tags: Tags = {}
    for index in range(num_tags):
        code, values = _read_tag(stream, block, index * entry_size, order, is_big)
        tags[code] = values
    return Page(tags, order, next_offset, is_big)


def _read_tag(stream: BinaryIO, block: bytes, position: int, order: str, is_big: bool) -> tuple[int, tuple[int, ...]]:
    code, kind, count = struct.unpack_from(order + ("HHQ" if is_big else "HHI"), block, position)
    inline_at, inline_size = (position + 12, 8) if is_big else (position + 8, 4)
    letter = _STRUCT_OF_TYPE.get(kind)
    needed = code in _LAYOUT_TAGS or code in (DESCRIPTION, TILE_OFFSETS, TILE_BYTES)
    if letter is None or not needed:
        return code, ()
    if code == DESCRIPTION:
        count = min(count, _DESCRIPTION_BYTES)
    size = count * _SIZE_OF_TYPE[kind]
    if size <= inline_size:
        raw = block[inline_at : inline_at + inline_size]
    else:
        (where,) = struct.unpack_from(order + ("Q" if is_big else "I"), block, inline_at)
        back = stream.tell()
        stream.seek(where)
        raw = stream.read(size)
        stream.seek(back)
    return code, struct.unpack_from(f"{order}{count}{letter}", raw)
