"""NIfTI-1 and NIfTI-2 in one file, `.nii` or `.nii.gz`: a volume, or one of each channel behind each other.

Axes stay as they are stored; `archive/volumes` turns them. Slope and intercept are applied, in single precision, unless
they change nothing.
"""

from __future__ import annotations

from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from raysegment.archive.formats import Header
from raysegment.archive.gzipped import MAGIC, unpack, unpack_head
from raysegment.archive.names import show_name
from raysegment.archive.nifti_header import MAX_HEADER_BYTES, NiftiHeader, is_nifti_head, parse_header
from raysegment.errors import TruncatedFileError, UnreadableFileError
from raysegment.scan import Pixels, Scan

EXTENSIONS = (".nii", ".nii.gz")
IS_VOLUME = True

PACKED_HEAD_BYTES = 16 * 1024
"""Compressed bytes that hold the header, whatever a gzip header brings with it."""

SAFE_BYTES = 2
"""Whole numbers of so many bytes are exact in single precision, before they are scaled."""


def recognises(head: bytes) -> bool:
    """Whether the first bytes are NIfTI's or Analyze's, packed or not.

    Packed data whose first bytes tell nothing count as such, because a gzip header may be longer than they are.
    """
    if not head.startswith(MAGIC):
        return is_nifti_head(head)
    start = unpack_head(head, 4)
    return len(start) < 4 or is_nifti_head(start)


def read_header(stream: BinaryIO, name: str) -> Header:
    """What the header declares; only its first bytes are unpacked.

    Raises:
        ScanError: No NIfTI, truncated, or a header that describes no volume.
    """
    found = parse_header(read_head(stream.read(PACKED_HEAD_BYTES), name), name)
    first, second, third, *channels = found.shape
    return Header(
        first,
        second,
        third,
        channels[0] if channels else 1,
        found.dtype,
        found.spacing_mm,
        affine=found.affine,
        note=found.note,
    )


def read_slices(data: bytes, name: str) -> Scan:
    """Decode the voxels.

    Returns:
        Pixels (first, second, third stored axis, channels); spacing and affine of these axes.

    Raises:
        ScanError: Truncated, damaged, more inside than declared, or a header that describes no volume.
    """
    header = parse_header(read_head(data[:PACKED_HEAD_BYTES], name), name)
    try:
        pixels = _scale(_read_values(data, header, name), header).reshape(header.shape, order="F")
    except (ValueError, OverflowError) as error:
        raise UnreadableFileError(f"{show_name(name)} cannot be decoded ({type(error).__name__}).") from None
    return Scan(pixels if pixels.ndim == 4 else pixels[..., None], header.spacing_mm, header.affine)


def read_head(start: bytes, name: str) -> bytes:
    """A file's first bytes unpacked, at least its header where it has one.

    Args:
        start: `PACKED_HEAD_BYTES` of the file.
        name: For messages.

    Raises:
        TruncatedFileError: There are too few.
    """
    if not start.startswith(MAGIC):
        return start[:MAX_HEADER_BYTES]
    head = unpack_head(start, MAX_HEADER_BYTES)
    if len(head) < 4:
        raise TruncatedFileError(f"{show_name(name)} ends before its header does, or its gzip data are damaged.")
    return head


def _read_values(data: bytes, header: NiftiHeader, name: str) -> npt.NDArray[Any]:
    """The voxels in a row, as stored; without a copy where the file is not packed."""
    end = header.offset + header.num_values * header.stored.itemsize
    if data.startswith(MAGIC):
        unpacked: Any = unpack(data, end, name)
    elif len(data) < end:
        raise TruncatedFileError(f"{show_name(name)} has {len(data)} bytes; its pixels end at byte {end}.")
    else:
        unpacked = data
    return np.frombuffer(unpacked, header.stored, header.num_values, header.offset)


def _scale(values: npt.NDArray[Any], header: NiftiHeader) -> Pixels:
    """Values in this machine's byte order, with slope and intercept; large ones are scaled in double precision."""
    if header.scaling is None:
        return values.astype(header.dtype, copy=False)
    slope, intercept = header.scaling
    scaled = np.empty(len(values), np.float32)
    exact: Any = np.float32 if values.dtype.itemsize <= SAFE_BYTES or values.dtype.char == "f" else np.float64
    with np.errstate(over="ignore", invalid="ignore"):
        for start in range(0, len(values), 2**20):
            piece: npt.NDArray[Any] = values[start : start + 2**20].astype(exact)
            piece *= exact(slope)
            piece += exact(intercept)
            scaled[start : start + 2**20] = piece
    return scaled
