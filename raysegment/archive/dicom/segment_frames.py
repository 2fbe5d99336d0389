"""The frames of a DICOM segmentation: what each shows of which segment, one in memory at a time.

After PS3.3, C.8.20.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from raysegment.archive.dicom import tags
from raysegment.archive.dicom.alphabets import find_encoding
from raysegment.archive.dicom.elements import Elements, Wanted, read_elements
from raysegment.archive.dicom.header import Instance, parse_instance
from raysegment.archive.dicom.pixels import iterate_stored
from raysegment.archive.names import show_name
from raysegment.errors import OversizedScanError, UnreadableFileError

Kind = Literal["BINARY", "FRACTIONAL", "LABELMAP"]
Frame = npt.NDArray[np.unsignedinteger[Any]]

SEGMENTATION_TYPE, SEGMENTS, SEGMENT_NUMBER, SEGMENT_LABEL = 0x00620001, 0x00620002, 0x00620004, 0x00620005
IDENTIFICATION, REFERENCED_SEGMENT, LARGEST_FRACTION = 0x0062000A, 0x0062000B, 0x0062000E
BACKGROUND = 0x00280120

OF_FRAME: Wanted = {
    IDENTIFICATION: {REFERENCED_SEGMENT: None},
    tags.DERIVATION: {tags.SOURCE_IMAGE: {tags.REFERENCED_SOP: None}},
}
WANTED: Wanted = {
    **dict.fromkeys([tags.CHARACTER_SET, SEGMENTATION_TYPE, LARGEST_FRACTION, BACKGROUND]),
    SEGMENTS: {SEGMENT_NUMBER: None, SEGMENT_LABEL: None},
    tags.SHARED: OF_FRAME,
    tags.PER_FRAME: OF_FRAME,
}

CLASSES = ("1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7")
"""SOP classes of segmentations and of label maps."""

BITS: dict[Kind, tuple[int, ...]] = {"BINARY": (1, 8), "FRACTIONAL": (8,), "LABELMAP": (8, 16)}
LARGEST_BYTE = 255


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Segments:
    """What a segmentation declares.

    Attributes:
        kind: Whether frames show one segment each, as 0 and 1 or by fractions, or all segments by their numbers.
        labels: SegmentLabel of each segment, by its number. They may hold anything and are not shown.
        numbers: Of the segment that each frame shows; 0 where it shows all.
        sources: SOPInstanceUID of the image that each frame was drawn on; empty where it does not say.
        largest: The value that means all of a voxel, where fractions are stored.
        background: The value of no segment, where segments are stored by their numbers.
        instance: What it declares as other files do: where frames lie, and how they are stored.
    """

    kind: Kind
    labels: dict[int, str]
    numbers: tuple[int, ...]
    sources: tuple[str, ...]
    largest: int
    background: int
    instance: Instance

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of a frame."""
        return self.instance.rows, self.instance.columns


def is_segmentation(data: bytes, name: str) -> bool:
    """Whether a DICOM file is a segmentation of any type.

    Raises:
        ScanError: It is damaged.
    """
    found = read_elements(io.BytesIO(data), {tags.SOP_CLASS: None}, name)
    return found.elements.text(tags.SOP_CLASS) in CLASSES


def read_segments(data: bytes, name: str, max_bytes: int) -> Segments:
    """Read what a segmentation declares, and check that its frames can be there.

    Args:
        data: The file.
        name: For messages.
        max_bytes: Largest size of one frame, unpacked.

    Raises:
        ScanError: It is damaged, truncated or declares what no segmentation has.
    """
    elements = read_elements(io.BytesIO(data), WANTED, name).elements
    instance = parse_instance(data, name)
    kind = elements.text(SEGMENTATION_TYPE).upper()
    if kind not in BITS:
        raise UnreadableFileError(f"{show_name(name)} is neither a binary, nor a fractional, nor a label map one.")
    pixels = instance.pixels
    if pixels is None:
        raise UnreadableFileError(f"{show_name(name)} has no pixel data.")
    if pixels.allocated not in BITS[kind] or pixels.samples != 1 or pixels.is_signed:
        raise UnreadableFileError(
            f"{show_name(name)}: its type is {kind.lower()}, its voxels have {pixels.allocated} bits; expected "
            f"{' or '.join(map(str, BITS[kind]))}, and no sign."
        )
    if pixels.rows * pixels.columns * 2 > max_bytes:
        raise OversizedScanError(
            f"{show_name(name)} declares frames of {pixels.rows} x {pixels.columns}; at most "
            f"{max_bytes / 2**20:.0f} MB are read."
        )
    labels = _find_labels(elements, name)
    return Segments(
        kind=kind,
        labels=labels,
        numbers=_find_numbers(elements, pixels.frames, kind == "LABELMAP", labels, name),
        sources=_find_sources(elements, pixels.frames),
        largest=elements.short(LARGEST_FRACTION) or LARGEST_BYTE,
        background=elements.short(BACKGROUND) or 0,
        instance=instance,
    )


def iterate_frames(data: bytes, segments: Segments, name: str) -> Iterator[Frame]:
    """The values of each frame, (rows, columns), as stored; of bits 0 and 1.

    Args:
        data: The file.
        segments: What it declares.
        name: For messages.

    Raises:
        ScanError: It is truncated, or cannot be decoded.
    """
    for frame in iterate_stored(data, segments.instance, name):
        yield frame[..., 0]


def _find_labels(elements: Elements, name: str) -> dict[int, str]:
    encoding = find_encoding(elements.texts(tags.CHARACTER_SET))
    labels: dict[int, str] = {}
    for item in elements.items.get(SEGMENTS, []):
        number = item.short(SEGMENT_NUMBER)
        if number is None or number in labels:
            raise UnreadableFileError(f"{show_name(name)}: its segments are not numbered, or two have one number.")
        labels[number] = item.text(SEGMENT_LABEL, encoding)
    if not labels:
        raise UnreadableFileError(f"{show_name(name)} describes no segment.")
    return labels


def _find_numbers(
    elements: Elements, num_frames: int, is_map: bool, labels: dict[int, str], name: str
) -> tuple[int, ...]:
    if is_map:
        return (0,) * num_frames
    shared = elements.first(tags.SHARED, IDENTIFICATION)
    common = None if shared is None else shared.short(REFERENCED_SEGMENT)
    numbers = []
    frames = elements.items.get(tags.PER_FRAME, [])[:num_frames]
    for index in range(num_frames):
        own = frames[index].first(IDENTIFICATION) if index < len(frames) else None
        number = common if own is None else own.short(REFERENCED_SEGMENT)
        if number not in labels:
            raise UnreadableFileError(f"{show_name(name)} has a frame of a segment that it does not describe.")
        numbers.append(number)
    return tuple(numbers)


def _find_sources(elements: Elements, num_frames: int) -> tuple[str, ...]:
    """The first image of each frame."""
    found = []
    for frame in elements.items.get(tags.PER_FRAME, [])[:num_frames]:
        image = frame.first(tags.DERIVATION, tags.SOURCE_IMAGE)
        found.append("" if image is None else image.text(tags.REFERENCED_SOP))
    return tuple(found + [""] * (num_frames - len(found)))
