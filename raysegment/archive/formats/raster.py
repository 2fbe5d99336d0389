"""PNG and JPEG: one slice a file."""

from __future__ import annotations

import io
import os
import struct
from dataclasses import replace
from typing import BinaryIO

import imagecodecs
import numpy as np
import numpy.typing as npt

from raysegment.archive.formats import Header
from raysegment.archive.names import show_name
from raysegment.errors import ScanError, TruncatedFileError, UnknownFormatError, UnreadableFileError
from raysegment.scan import Scan

EXTENSIONS = (".png", ".jpg", ".jpeg")
PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
JPEG_MAGIC = b"\xff\xd8\xff"
MAX_JPEG_MARKERS = 50_000

_PNG_CHANNELS = {0: 1, 2: 3, 3: 3, 4: 2, 6: 4}
_JPEG_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
_JPEG_BARE = {0x01, *range(0xD0, 0xD9)}


def recognises(head: bytes) -> bool:
    """Whether the first bytes are a PNG's or a JPEG's."""
    return head.startswith((PNG_MAGIC, JPEG_MAGIC))


def read_header(stream: BinaryIO, name: str) -> Header:
    """Size and type from the first chunk (PNG) or the frame header (JPEG).

    Raises:
        ScanError: Neither PNG nor JPEG, or truncated.
    """
    head = stream.read(len(PNG_MAGIC))
    try:
        if head == PNG_MAGIC:
            return _png_header(stream, name)
        if head.startswith(JPEG_MAGIC):
            stream.seek(2)
            return _jpeg_header(stream, name)
    except (struct.error, IndexError):
        raise TruncatedFileError(f"{show_name(name)} ends before its header does.") from None
    raise UnknownFormatError(f"{show_name(name)}: the first bytes are not those of a PNG or JPEG file.")


def read_slices(data: bytes, name: str) -> Scan:
    """Decode the image.

    Returns:
        Pixels (1, rows, columns, channels) as stored: grey, grey and alpha, RGB or RGBA. Palettes become RGB; a
        transparent colour adds no channel; an orientation note of a camera is not followed.

    Raises:
        ScanError: Truncated or broken.
    """
    try:
        if data.startswith(PNG_MAGIC):
            _check_png_complete(data, name)
            # Of a file with a transparent colour (tRNS) the decoder makes one channel more than it declares.
            pixels = _with_channels(imagecodecs.png_decode(data))[
                ..., : _png_header(io.BytesIO(data[8:]), name).channels
            ]
        elif data.startswith(JPEG_MAGIC):
            _check_jpeg_complete(data, name)
            pixels = _with_channels(imagecodecs.jpeg8_decode(data))
        else:
            raise UnknownFormatError(f"{show_name(name)}: the first bytes are not those of a PNG or JPEG file.")
    except (ScanError, MemoryError):
        raise
    except Exception as error:
        kind = type(error).__name__
        raise UnreadableFileError(f"{show_name(name)} cannot be decoded: broken image ({kind}).") from error
    return Scan(pixels[None])


def _with_channels(pixels: npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:
    return pixels[..., None] if pixels.ndim == 2 else pixels


def _png_header(stream: BinaryIO, name: str) -> Header:
    kind, columns, rows, bits, colour = struct.unpack_from(">4sIIBB", stream.read(25), 4)
    if kind != b"IHDR" or colour not in _PNG_CHANNELS or bits not in (1, 2, 4, 8, 16):
        raise UnreadableFileError(f"{show_name(name)}: broken PNG header.")
    return _declared(rows, columns, _PNG_CHANNELS[colour], np.dtype(np.uint16 if bits == 16 else np.uint8), name)


def _jpeg_header(stream: BinaryIO, name: str) -> Header:
    for _ in range(MAX_JPEG_MARKERS):
        marker = stream.read(2)
        if marker[0] != 0xFF:
            raise UnreadableFileError(f"{show_name(name)}: broken JPEG markers.")
        if marker[1] == 0xFF:
            stream.seek(-1, os.SEEK_CUR)
            continue
        if marker[1] in _JPEG_BARE:
            continue
        (length,) = struct.unpack(">H", stream.read(2))
        if marker[1] in _JPEG_FRAMES:
            bits, rows, columns, channels = struct.unpack(">BHHB", stream.read(6))
            dtype = np.dtype(np.uint8 if bits <= 8 else np.uint16)
            return replace(_declared(rows, columns, channels, dtype, name), is_lossy=True)
        stream.seek(max(length - 2, 0), os.SEEK_CUR)
    raise UnreadableFileError(f"{show_name(name)}: no size among the first {MAX_JPEG_MARKERS} JPEG markers.")


def _declared(rows: int, columns: int, channels: int, dtype: np.dtype[np.generic], name: str) -> Header:
    if min(rows, columns, channels) < 1:
        raise UnreadableFileError(f"{show_name(name)} declares {rows} x {columns} pixels of {channels} channels.")
    return Header(1, rows, columns, channels, dtype)


def _check_png_complete(data: bytes, name: str) -> None:
    position = len(PNG_MAGIC)
    while position + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, position)
        position += length + 12
        if kind == b"IEND":
            break
    else:
        raise TruncatedFileError(f"{show_name(name)} ends before its last PNG chunk.")
    if position > len(data):
        raise TruncatedFileError(f"{show_name(name)} ends within a PNG chunk.")


def _check_jpeg_complete(data: bytes, name: str) -> None:
    """The end marker must follow the last scan of pixels; thumbnails in the header have their own."""
    start = data.rfind(b"\xff\xda")
    if start < 0 or data.find(b"\xff\xd9", start) < 0:
        raise TruncatedFileError(f"{show_name(name)} ends before its JPEG end marker.")
