"""DICOM: one file of a series, which may be all of it. `archive/read` stacks the files of one."""

from __future__ import annotations

import io
from typing import BinaryIO

from raysegment.archive.dicom.elements import is_dicom
from raysegment.archive.dicom.header import check_complete, parse_instance
from raysegment.archive.dicom.series import check_image, order_instances, read_stack
from raysegment.archive.formats import Header
from raysegment.scan import Scan

EXTENSIONS = (".dcm", ".dicom", ".ima")
IS_VOLUME = True
IS_SERIES = True

MAX_FILE_BYTES = 4 * 2**30


def recognises(head: bytes) -> bool:
    """Whether the first bytes are a preamble and DICOM's mark."""
    return is_dicom(head)


def read_header(stream: BinaryIO, name: str) -> Header:
    """What one file declares; its frames count as slices, in the order of their positions.

    Raises:
        ScanError: No image, damaged, or a header that describes no slices of one grid.
    """
    found = parse_instance(stream, name)
    check_image(found, name)
    check_complete(found, stream.seek(0, io.SEEK_END), name)
    order = order_instances([found], name)
    return Header(
        found.frames,
        found.rows,
        found.columns,
        found.channels,
        found.dtype,
        order.spacing_mm,
        is_lossy=found.was_lossy,
        affine=order.affine,
        note=order.note,
    )


def read_slices(data: bytes, name: str) -> Scan:
    """Decode one file.

    Returns:
        Pixels (slices, rows, columns, channels), sorted by position; spacing and affine where the file has them.

    Raises:
        ScanError: It cannot be read.
    """
    return read_stack([(name, data)], 1, MAX_FILE_BYTES).scan
