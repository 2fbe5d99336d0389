"""References that are DICOM segmentations: which files are, and the scan that one was drawn on."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TypeVar

from raysegment.archive.dicom.elements import MAGIC, MAGIC_OFFSET, is_dicom
from raysegment.archive.dicom.header import Instance, parse_instance
from raysegment.archive.dicom.segment_frames import is_segmentation
from raysegment.archive.dicom.segmentation import (
    Plane,
    SegmentedGrid,
    find_plane,
    list_segment_values,
    read_segmentation,
)
from raysegment.archive.filesystem import describe, open_file, read_bytes
from raysegment.archive.formats import readers_by_extension
from raysegment.archive.names import extension_of, show_name
from raysegment.archive.orientation import Affine
from raysegment.errors import (
    AccessError,
    GridMismatchError,
    ReferenceValuesError,
    ScanError,
    UnreadableFileError,
    UnreadableReferenceError,
)
from raysegment.scan import LabelMap, Labels, ScanEntry

READER = "dicom"
HEAD_BYTES = MAGIC_OFFSET + len(MAGIC)

Result = TypeVar("Result")


def read_drawn_segmentation(
    entry: ScanEntry, shape: tuple[int, int, int], affine: Affine | None, labels: Labels, max_bytes: int
) -> LabelMap | None:
    """The reference of a scan, where it is a DICOM segmentation; None where it is anything else.

    Args:
        entry: The scan's row of the manifest.
        shape: The scan's (slices, rows, columns).
        affine: Of these, to RAS+ millimetres; None where nobody knows.
        labels: What its segments mean.
        max_bytes: Largest size of one frame.

    Returns:
        As `read_reference` of `archive/reference`.

    Raises:
        GridMismatchError: It was drawn on something else.
        ReferenceValuesError: No label has the name of a segment, or no value its overlaps.
        UnreadableReferenceError: It cannot be read.
    """

    def read(data: bytes, name: str) -> LabelMap:
        return read_segmentation(data, name, _grid_of(entry, shape, affine), labels, max_bytes)

    return _read(entry, read)


def list_drawn_values(entry: ScanEntry, labels: Labels, max_bytes: int) -> set[int] | None:
    """The different values of a reference that is a DICOM segmentation; None where it is anything else.

    Args:
        entry: The scan's row of the manifest.
        labels: What its segments mean.
        max_bytes: Largest size of all its slices.

    Raises:
        ReferenceValuesError: As `read_drawn_segmentation`.
        UnreadableReferenceError: It cannot be read.
    """
    return _read(entry, lambda data, name: list_segment_values(data, name, labels, max_bytes))


def _read(entry: ScanEntry, read: Callable[[bytes, str], Result]) -> Result | None:
    """What a function reads of the one file of a reference, None where this is no segmentation."""
    names = tuple(name for name in entry.reference_files if name)
    if not names or not _may_be_dicom(entry.source, names[0]):
        return None
    try:
        data = read_bytes(entry.source, names[0])
        if not is_segmentation(data, names[0]):
            return None
        if len(names) > 1:
            raise UnreadableFileError(
                f"{show_name(names[0])} is a DICOM segmentation, one of {len(names)} files that are to be one "
                "reference; expected one with all segments."
            )
        return read(data, names[0])
    except (GridMismatchError, ReferenceValuesError):
        raise
    except ScanError as error:
        raise UnreadableReferenceError(str(error)) from error


def _may_be_dicom(source: str, name: str) -> bool:
    """Whether a file begins as DICOM does; those with the extension of another format are not opened."""
    if readers_by_extension().get(extension_of(name), READER) != READER:
        return False
    try:
        with open_file(source, name) as stream:
            return is_dicom(stream.read(HEAD_BYTES))
    except (AccessError, OSError):
        return False


def _grid_of(entry: ScanEntry, shape: tuple[int, int, int], affine: Affine | None) -> SegmentedGrid:
    """The grid of a scan, with what its DICOM headers say of it; of other scans, and without their files, as it is."""
    if entry.reader != READER or not entry.files:
        return SegmentedGrid(shape, affine)
    num_slices = len(entry.files) // max(1, len(entry.channel_names))
    frame_of_reference = _read_header(entry.source, entry.files[0]).frame_of_reference
    find_planes = partial(_find_planes, entry.source, entry.files, num_slices)
    return SegmentedGrid(shape, affine, frame_of_reference, find_planes)


def _find_planes(source: str, files: tuple[str, ...], num_slices: int) -> dict[str, Plane | int]:
    """Where the images of all channels lie, by their SOPInstanceUID; without places their number in the channel."""
    planes: dict[str, Plane | int] = {}
    for number, name in enumerate(files):
        found = _read_header(source, name)
        if found.frames == 1:
            planes[found.sop] = find_plane(found, 0) or number % num_slices
    return planes


def _read_header(source: str, name: str) -> Instance:
    try:
        with open_file(source, name) as stream:
            return parse_instance(stream, name)
    except OSError as error:
        raise AccessError(f"{show_name(name)} cannot be read: {describe(error)}") from error
