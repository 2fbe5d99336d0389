"""How a scan's own files store the voxels that were read as slices, rows and columns: what an exported mask goes by.

A NIfTI file has axes of its own. Of a DICOM series slices along their normal, rows and columns count as stored, as
other programs stack them; a header of one of its files tells them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

from raysegment.archive.dicom.geometry import find_axes
from raysegment.archive.dicom.header import Instance, parse_instance
from raysegment.archive.filesystem import describe, open_file
from raysegment.archive.formats import is_series
from raysegment.archive.formats.nifti import PACKED_HEAD_BYTES, read_head
from raysegment.archive.names import show_name
from raysegment.archive.nifti_header import parse_header
from raysegment.archive.orientation import Affine, Orientation, find_orientation, find_turn
from raysegment.archive.volumes import assume_affine
from raysegment.errors import AccessError, AffineError
from raysegment.scan import ScanEntry, SliceAxis

UNTURNED = Orientation("axial", (0, 1, 2), (False, False, False))


@dataclass(frozen=True, eq=False)
class StoredGrid:
    """The grid of a volume's file or files.

    Attributes:
        head: First bytes of a NIfTI file, unpacked: its header. They may hold texts that name patients. None of a DICOM
            series.
        shape: Sizes of the three stored axes.
        turn: From these axes to slices, rows, columns.
        affine: 4x4 of (slice, row, column), None where the file has none.
        stored_affine: The same of the stored axes.
    """

    head: bytes | None
    shape: tuple[int, int, int]
    turn: Orientation
    affine: Affine | None
    stored_affine: Affine | None


def read_stored_grid(
    entry: ScanEntry, slice_axis: SliceAxis, affine: Affine | None, grid: tuple[int, int, int]
) -> StoredGrid:
    """The grid of a scan's first channel; only one header is read.

    Args:
        entry: The scan, of NIfTI files or of DICOM series.
        slice_axis: How it was cut into slices; counts where there is no affine.
        affine: Of (slice, row, column) when it was read, None where the files had none.
        grid: (slices, rows, columns) when it was read.

    Raises:
        ScanError: The file is missing, or its header describes no volume any more.
    """
    name = entry.files[0]
    try:
        with open_file(entry.source, name, PACKED_HEAD_BYTES) as stream:
            if is_series(entry.reader):
                return _grid_of_series(parse_instance(stream, name), affine, grid, name)
            head = read_head(stream.read(PACKED_HEAD_BYTES), name)
    except OSError as error:
        raise AccessError(f"{show_name(name)} cannot be read: {describe(error)}") from error
    return _grid_of_file(head, slice_axis, affine, name)


def _grid_of_series(instance: Instance, affine: Affine | None, grid: tuple[int, int, int], name: str) -> StoredGrid:
    """Slices run along the normal of the file's rows and columns; where they lie was told when they were read."""
    if affine is None:
        return StoredGrid(None, (grid[0], instance.rows, instance.columns), UNTURNED, None, None)
    if instance.orientations is None or instance.pixel_spacing is None:
        raise AffineError(f"{show_name(name)} does not say any more where its slices lie.")
    turn = find_turn(find_axes(instance.orientations[0], instance.pixel_spacing, name), affine)
    num_slices = grid[turn.axes.index(0)]
    shape = (num_slices, instance.rows, instance.columns)
    return StoredGrid(None, shape, turn, affine, turn.undo_affine(affine, shape))


def _grid_of_file(head: bytes, slice_axis: SliceAxis, affine: Affine | None, name: str) -> StoredGrid:
    header = parse_header(head, name)
    shape = cast(tuple[int, int, int], header.shape[:3])
    if header.affine is None or affine is None:
        turn = find_orientation(assume_affine(header.affine, header.spacing_mm), shape, slice_axis)
    else:
        turn = find_turn(header.affine, affine)
    turned = None if header.affine is None else turn.affine(header.affine, shape)
    return StoredGrid(head, shape, turn, turned, header.affine)
