"""Unpacking of gzip files that nobody vouches for: never more than what the file inside declares."""

from __future__ import annotations

import zlib

import imagecodecs
import numpy as np
import numpy.typing as npt

from raysegment.archive.names import show_name
from raysegment.errors import OversizedScanError, TruncatedFileError, UnreadableFileError

MAGIC = b"\x1f\x8b"
GZIP_WINDOW = 31
"""zlib's word for: with a gzip header."""

SPARE_BYTES = 64 * 1024
"""So much behind what a file declares is padding; more is refused."""

HIGHEST_RATIO = 1032
"""Deflate packs no byte string tighter than this."""

MAX_BYTES_AT_ONCE = 2**32 - 1
STEP_BYTES = 64 * 1024
UNPACKED_STEP_BYTES = 4 * 2**20


def unpack_head(data: bytes, num_bytes: int) -> bytes:
    """The first bytes of what is inside; fewer where the data end or are broken before."""
    try:
        return zlib.decompressobj(GZIP_WINDOW).decompress(data, num_bytes)
    except zlib.error:
        return b""


def unpack(data: bytes, num_bytes: int, name: str) -> npt.NDArray[np.uint8]:
    """The first `num_bytes` of what is inside, in memory bounded by them.

    Args:
        data: The whole gzip file.
        num_bytes: What the file inside declares.
        name: For messages.

    Raises:
        OversizedScanError: There is more inside than was declared.
        TruncatedFileError: There is less.
        UnreadableFileError: The data are damaged.
    """
    if num_bytes > len(data) * HIGHEST_RATIO:
        raise _truncated(name)
    room = np.empty(num_bytes + SPARE_BYTES, np.uint8)
    if len(room) <= MAX_BYTES_AT_ONCE:
        try:
            if len(imagecodecs.gzip_decode(data, out=room.data)) >= num_bytes:
                return room[:num_bytes]
        except imagecodecs.DeflateError:
            pass
    # Either the file has several members, which only zlib goes through, or zlib tells what is wrong with it.
    _unpack_in_steps(memoryview(data), room, num_bytes, name)
    return room[:num_bytes]


def _unpack_in_steps(data: memoryview, room: npt.NDArray[np.uint8], num_bytes: int, name: str) -> None:
    unpacker = zlib.decompressobj(GZIP_WINDOW)
    filled, position = 0, 0
    try:
        while True:
            piece = data[position : position + STEP_BYTES]
            found = unpacker.decompress(piece, UNPACKED_STEP_BYTES)
            if filled + len(found) > len(room):
                raise OversizedScanError(
                    f"{show_name(name)} unpacks to more than the {num_bytes} bytes that its header declares."
                )
            room[filled : filled + len(found)] = np.frombuffer(found, np.uint8)
            filled += len(found)
            # At the end of a member zlib may leave the same bytes in both.
            position += len(piece) - len(unpacker.unused_data if unpacker.eof else unpacker.unconsumed_tail)
            if unpacker.eof and bytes(data[position : position + 2]) == MAGIC:
                unpacker = zlib.decompressobj(GZIP_WINDOW)
            elif unpacker.eof or not (piece or found):
                break
    except zlib.error:
        raise UnreadableFileError(f"{show_name(name)} cannot be unpacked: its gzip data are damaged.") from None
    if filled < num_bytes or not unpacker.eof:
        raise _truncated(name)


def _truncated(name: str) -> TruncatedFileError:
    return TruncatedFileError(f"{show_name(name)} ends before its pixels do.")
