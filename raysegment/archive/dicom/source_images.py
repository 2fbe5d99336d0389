"""The images that a scan was read from, for what refers to them: their headers, and the way back to their frames."""

from __future__ import annotations

import io
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import numpy as np

from raysegment.archive.dicom.header import Instance, parse_instance
from raysegment.archive.dicom.series import order_instances
from raysegment.archive.filesystem import describe, open_file
from raysegment.archive.names import show_name
from raysegment.archive.orientation import Affine, Orientation, find_turn
from raysegment.errors import AccessError, SourceChangedError, UnreadableFileError
from raysegment.scan import Mask, ScanEntry

SAME_PLACE = 1e-6


@dataclass(frozen=True, eq=False, repr=False)
class SourceImages:
    """The images of a scan's first channel.

    Attributes:
        headers: pydicom data sets without pixels, one for each frame or one with all frames. They name the patient.
        order: For each slice of the stack that was read, the frame that it came from.
        turn: From the stack to slices, rows, columns; None where the stack is that.
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
    shape: tuple[int, ...],
    affine: Affine | None,
    wanted: Collection[str],
) -> SourceImages:
    """Read the headers of a scan's first channel, which its mask lies on.

    To be called while libraries are silent.

    Args:
        entry: The scan.
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
    found = order_instances(instances, files[0])
    stored = len(found.order), instances[0].rows, instances[0].columns
    turn = None if found.affine is None or affine is None else find_turn(found.affine, affine)
    there = None if found.affine is None else found.affine if turn is None else turn.affine(found.affine, stored)
    if (stored if turn is None else turn.shape(stored)) != tuple(shape) or not _is_same(there, affine):
        raise SourceChangedError(f"{name} lies on another grid than when it was segmented; segment it again.")
    return SourceImages(tuple(header for _, header in read), found.order, turn)


def _read(source: str, name: str, wanted: Collection[str]) -> tuple[Instance, Any]:
    try:
        with open_file(source, name) as stream:
            instance = parse_instance(stream, name)
            place = None if instance.pixels is None else instance.pixels.place
            stream.seek(0)
            # Up to the pixels, unless these are packed together with the header.
            head = stream.read(-1 if place is None or place.packed_from is not None else place.offset)
            return instance, _parse_header(head, name, wanted)
    except OSError as error:
        raise AccessError(f"{show_name(name)} cannot be read: {describe(error)}") from error


def _parse_header(head: bytes, name: str, wanted: Collection[str]) -> Any:
    from pydicom import dcmread

    try:
        return dcmread(io.BytesIO(head), stop_before_pixels=True, specific_tags=list(wanted))
    except MemoryError:
        raise
    except Exception as error:
        # What pydicom says quotes the header.
        raise UnreadableFileError(f"{show_name(name)}: its header cannot be read ({type(error).__name__}).") from None


def _is_same(affine: Affine | None, stored: Affine | None) -> bool:
    if affine is None or stored is None:
        return affine is stored
    return bool(np.allclose(affine, stored, rtol=SAME_PLACE, atol=SAME_PLACE))
