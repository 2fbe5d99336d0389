"""How a scan's own file stores the voxels that were read as slices, rows and columns: what an exported mask goes by."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

from raysegment.archive.filesystem import describe, open_file
from raysegment.archive.formats.nifti import PACKED_HEAD_BYTES, read_head
from raysegment.archive.names import show_name
from raysegment.archive.nifti_header import parse_header
from raysegment.archive.orientation import Affine, Orientation, find_orientation, find_turn
from raysegment.archive.volumes import assume_affine
from raysegment.errors import AccessError
from raysegment.scan import ScanEntry, SliceAxis


@dataclass(frozen=True, eq=False)
class StoredGrid:
    """The grid of a volume's file.

    Attributes:
        head: First bytes of the file, unpacked: its header. They may hold texts that name patients.
        shape: Sizes of the three stored axes.
        turn: From these axes to slices, rows, columns.
        affine: 4x4 of (slice, row, column), None where the file has none.
    """

    head: bytes
    shape: tuple[int, int, int]
    turn: Orientation
    affine: Affine | None


def read_stored_grid(entry: ScanEntry, slice_axis: SliceAxis, affine: Affine | None) -> StoredGrid:
    """The grid of a scan of NIfTI files, which is that of its first channel; only the header is read.

    Args:
        entry: The scan.
        slice_axis: How it was cut into slices; counts where there is no affine.
        affine: Of (slice, row, column) when it was read, None where the file had none.

    Raises:
        ScanError: The file is missing, or its header describes no volume any more.
    """
    name = entry.files[0]
    try:
        with open_file(entry.source, name, PACKED_HEAD_BYTES) as stream:
            head = read_head(stream.read(PACKED_HEAD_BYTES), name)
    except OSError as error:
        raise AccessError(f"{show_name(name)} cannot be read: {describe(error)}") from error
    header = parse_header(head, name)
    shape = cast(tuple[int, int, int], header.shape[:3])
    if header.affine is None or affine is None:
        turn = find_orientation(assume_affine(header.affine, header.spacing_mm), shape, slice_axis)
    else:
        turn = find_turn(header.affine, affine)
    return StoredGrid(head, shape, turn, None if header.affine is None else turn.affine(header.affine, shape))
