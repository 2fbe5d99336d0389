"""The images that a scan was read from, for what refers to them: their headers, and the way back to their frames."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np

from raysegment.archive.dicom.geometry import SliceOrder, order_slices
from raysegment.archive.dicom.header import Instance, parse_instance
from raysegment.archive.filesystem import describe, open_file
from raysegment.archive.names import show_name
from raysegment.archive.orientation import Affine, Orientation, find_orientation, find_turn
from raysegment.archive.volumes import assume_affine
from raysegment.errors import AccessError, ScanError, SourceChangedError, UnreadableFileError
from raysegment.scan import Mask, ScanEntry, SliceAxis

SAME_PLACE = 1e-6


@dataclass(frozen=True, eq=False, repr=False)
class SourceImages:
    """The images of a scan's first channel.

    Attributes:
        headers: pydicom data sets without pixels, one for each frame or one with all frames. They name the patient.
        order: For each slice of the stack that was read, the frame that it came from.
        turn: From the stack to slices, rows, columns.
    """

    headers: tuple[Any, ...]
    order: tuple[int, ...]
    turn: Orientation | None

    def to_frames(self, mask: Mask) -> Mask:
        """A mask (slices, rows, columns) as (frames, rows, columns), in the order of headers; so with labels before."""
        if mask.ndim == 4:
            return np.stack([self.to_frames(plane) for plane in mask])
        stack = mask if self.turn is None else self.turn.undo(mask)
        return stack[np.argsort(self.order)]


def read_source_images(
    entry: ScanEntry,
    slice_axis: SliceAxis | None,
    shape: tuple[int, ...],
    affine: Affine | None,
    wanted: Collection[str],
) -> SourceImages:
    """Read the headers of a scan's first channel, which its mask lies on.

    To be called while libraries are silent.

    Args:
        entry: The scan.
        slice_axis: How it was cut into slices; None where it was made of slices as they are.
        shape: (slices, rows, columns) of its mask.
        affine: Of these when the mask was made, None where there was none.
        wanted: Keywords of elements that the headers are to have.

    Raises:
        SourceChangedError: The images lie on another grid.
        ScanError: A header cannot be read.
    """
    name = show_name(entry.scan_id)
    files = entry.files[: len(entry.files) // max(1, len(entry.channel_names))]
    read = [_read(entry.source, file, wanted) for file in files]
    instances = [instance for instance, _ in read]
    found = _order(instances, entry.scan_id)
    stored = len(found.order), instances[0].rows, instances[0].columns
    turn = _find_turn(found, stored, slice_axis, affine)
    there = None if found.affine is None else found.affine if turn is None else turn.affine(found.affine, stored)
    if (stored if turn is None else turn.shape(stored)) != tuple(shape) or not _is_same(there, affine):
        raise SourceChangedError(f"{name} lies on another grid than when it was segmented; segment it again.")
    return SourceImages(tuple(header for _, header in read), found.order, turn)


def _read(source: str, name: str, wanted: Collection[str]) -> tuple[Instance, Any]:
    try:
        with open_file(source, name) as stream:
            instance = parse_instance(stream, name)
            stream.seek(0)
            return instance, _read_header(stream, name, wanted)
    except OSError as error:
        raise AccessError(f"{show_name(name)} cannot be read: {describe(error)}") from error


def _read_header(stream: BinaryIO, name: str, wanted: Collection[str]) -> Any:
    from pydicom import dcmread

    try:
        return dcmread(stream, stop_before_pixels=True, specific_tags=list(wanted))
    except (OSError, MemoryError, ScanError):
        raise
    except Exception as error:
        # What pydicom says quotes the header.
        raise UnreadableFileError(f"{show_name(name)}: its header cannot be read ({type(error).__name__}).") from None


def _order(instances: list[Instance], name: str) -> SliceOrder:
    positions = [instance.positions for instance in instances]
    orientations = [instance.orientations for instance in instances]
    known = [each for each in positions if each is not None], [each for each in orientations if each is not None]
    are_placed = len(known[0]) == len(known[1]) == len(instances)
    return order_slices(
        np.concatenate(known[0]) if are_placed else None,
        np.concatenate(known[1]) if are_placed else None,
        instances[0].pixel_spacing,
        instances[0].thickness,
        name,
        sum(instance.frames for instance in instances),
    )


def _find_turn(
    found: SliceOrder, stored: tuple[int, int, int], slice_axis: SliceAxis | None, affine: Affine | None
) -> Orientation | None:
    if slice_axis is None:
        return None
    if found.affine is None or affine is None:
        spacing_mm = found.spacing_mm or (1.0, 1.0, 1.0)
        return find_orientation(assume_affine(found.affine, spacing_mm), stored, slice_axis)
    return find_turn(found.affine, affine)


def _is_same(affine: Affine | None, stored: Affine | None) -> bool:
    if affine is None or stored is None:
        return affine is stored
    return bool(np.allclose(affine, stored, rtol=SAME_PLACE, atol=SAME_PLACE))
