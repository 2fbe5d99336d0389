"""What compressed pixels say of themselves, before a decoder believes them: fragments, and the sizes in their heads.

After PS3.5, A.4; ITU-T T.81 (JPEG), T.87 (JPEG-LS) and T.800 (JPEG 2000).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from raysegment.archive.dicom.elements import ITEM, SEQUENCE_END
from raysegment.archive.names import show_name
from raysegment.errors import TruncatedFileError, UnreadableFileError

FRAME_MARKERS = frozenset({0xC0, 0xC1, 0xC2, 0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF, 0xF7})
"""Second bytes of the markers that say how large a JPEG or JPEG-LS picture is."""

BARE_MARKERS = frozenset({0x01, *range(0xD0, 0xD9)})
"""Second bytes of those that have no length behind them."""

JPEG_2000 = b"\xff\x4f\xff\x51"
WHERE_JPEG_2000_BEGINS = 1024
MAX_MARKERS = 1000
MAX_FRAGMENTS = 1_000_000


@dataclass(frozen=True, slots=True)
class Picture:
    """What a compressed picture declares.

    Attributes:
        rows: Height in pixels.
        columns: Width in pixels.
        samples: Values of a pixel.
        bits: Of a value.
    """

    rows: int
    columns: int
    samples: int
    bits: int


def check_fragments(data: bytes, offset: int, name: str) -> None:
    """Refuse fragments that do not follow each other to their end.

    Args:
        data: The file.
        offset: Of the first fragment, the table of offsets.
        name: For messages.

    Raises:
        TruncatedFileError: The file ends within a fragment.
        UnreadableFileError: Something else lies between them, or there are too many.
    """
    for _ in range(MAX_FRAGMENTS):
        head = data[offset : offset + 8]
        if len(head) < 8:
            break
        group, number, length = struct.unpack("<HHI", head)
        tag = group << 16 | number
        if tag == SEQUENCE_END:
            return
        if tag != ITEM:
            raise UnreadableFileError(f"{show_name(name)}: between its compressed pixels lies something else.")
        offset += 8 + length
        if offset >= len(data):
            break
    else:
        raise UnreadableFileError(f"{show_name(name)} has its pixels in more than {MAX_FRAGMENTS} pieces.")
    raise TruncatedFileError(f"{show_name(name)} has {len(data)} bytes; its compressed pixels do not end there.")


def read_picture(codes: bytes) -> Picture | None:
    """What a JPEG, JPEG-LS or JPEG 2000 picture declares; None where it does not say, or is none of these."""
    try:
        if codes.startswith(b"\xff\xd8"):
            return _read_jpeg(codes)
        start = codes.find(JPEG_2000, 0, WHERE_JPEG_2000_BEGINS)
        return None if start < 0 else _read_jpeg_2000(codes, start)
    except struct.error:
        return None


def _read_jpeg(codes: bytes) -> Picture | None:
    at = 2
    for _ in range(MAX_MARKERS):
        mark, kind = struct.unpack_from(">BB", codes, at)
        if mark != 0xFF:
            return None
        if kind == 0xFF:
            at += 1
        elif kind in BARE_MARKERS:
            at += 2
        elif kind in FRAME_MARKERS:
            bits, rows, columns, samples = struct.unpack_from(">BHHB", codes, at + 4)
            return Picture(rows, columns, samples, bits)
        else:
            at += 2 + int(struct.unpack_from(">H", codes, at + 2)[0])
    return None


def _read_jpeg_2000(codes: bytes, start: int) -> Picture:
    right, bottom, left, top = struct.unpack_from(">4I", codes, start + 8)
    samples, bits = struct.unpack_from(">HB", codes, start + 40)
    return Picture(bottom - top, right - left, samples, (bits & 127) + 1)
