"""A quick way to decode plain TIFF files: one page of strips, 8 or 16 bit, as most slice files are.

`tifffile` reads every kind; of this one the result here is the same, in less time.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import imagecodecs
import numpy as np

from raysegment.archive.tiff_pages import (
    BITS,
    COMPRESSION,
    LENGTH,
    PHOTOMETRIC,
    PLANAR,
    PREDICTOR,
    ROWS_PER_STRIP,
    SAMPLE_FORMAT,
    SAMPLES,
    STRIP_BYTES,
    STRIP_OFFSETS,
    SUBFILE,
    TILE_BYTES,
    TILE_OFFSETS,
    WIDTH,
    Page,
    Selection,
    shape_in,
)
from raysegment.scan import Pixels

Buffer = bytes | bytearray | memoryview

WHITE_IS_ZERO = 0
"""The photometric interpretation of pages whose smallest value is the brightest."""

_LAYOUT_TAGS = {254, 256, 257, 258, 259, 262, 273, 277, 278, 279, 284, 317, 339}
_HARMLESS_TAGS = {270, 271, 272, 274, 280, 281, 282, 283, 296, 305, 306, 315, 338}
_META_DESCRIPTIONS = (b"ImageJ=", b"<?xml", b"<OME", b"{", b"shape=", b"SCANIMAGE", b"Aperio")

TO_DECODE = Selection(frozenset(_LAYOUT_TAGS | {TILE_OFFSETS, TILE_BYTES}), frozenset(), 2**23, 64)
"""What `plain_layout` and `check_complete` look at."""


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


def plain_layout(page: Page) -> PlainLayout | None:
    """The layout of a page that `decode_plain` can decode; None where `tifffile` has to."""
    tags = page.tags
    if page.is_big or page.next_offset or tags.keys() - _LAYOUT_TAGS - _HARMLESS_TAGS:
        return None
    if not all(tags[code] for code in tags.keys() & _LAYOUT_TAGS):
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
        and page.first(SUBFILE, 0) == 0
        and all(_is_one_image(text, rows * columns * channels) for text in page.descriptions)
    )
    rows_per_strip = min(page.first(ROWS_PER_STRIP, rows), rows)
    offsets, counts = tags.get(STRIP_OFFSETS, ()), tags.get(STRIP_BYTES, ())
    if not plain or min(rows, columns, channels, rows_per_strip, *offsets, *counts) < 1:
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
    shape = shape_in(description)
    if shape and description.partition(b"]")[2].rstrip(b"\0") == b"}":
        return math.prod(shape) == size
    return not description.lstrip().startswith(_META_DESCRIPTIONS)
