"""Where the frames of a DICOM file lie, and how their values are scaled, from its header.

Files of one frame say it themselves; enhanced ones in groups, shared by all frames or one for each. What a frame's own
group says counts first, then the shared one, then the file. After PS3.3, C.7.6.2 and C.7.6.16.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from raysegment.archive.dicom import tags
from raysegment.archive.dicom.elements import Elements
from raysegment.archive.dicom.pixel_format import Rescale, find_frames
from raysegment.archive.names import show_name
from raysegment.errors import AffineError, SliceMismatchError, UnreadableFileError

SAME_SPACING = 1e-3
"""Share by which the spacing of frames may differ."""

RANGES = {
    tags.POSITION: ("position", -1e9, 1e9),
    tags.ORIENTATION: ("orientation", -1.01, 1.01),
    tags.SPACING: ("pixel spacing", 1e-6, 1e6),
    tags.THICKNESS: ("slice thickness", 0.0, 1e6),
}
"""What numbers may be, in millimetres but for directions. A thickness of 0 says that nobody knows."""

Numbers = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Places:
    """Where frames lie.

    Attributes:
        pixel_spacing: Distance of rows, distance of columns, in millimetres; None where it is missing.
        thickness: Of slices, in millimetres; None where it is missing.
        orientations: (frames, 6), direction of rows, then of columns; None where they are missing.
        positions: (frames, 3), of first pixels, in DICOM's millimetres; None where they are missing.
        rescale: Slope and intercept, one pair for all frames or one for each.
    """

    pixel_spacing: tuple[float, float] | None = None
    thickness: float | None = None
    orientations: Numbers | None = None
    positions: Numbers | None = None
    rescale: tuple[Rescale, ...] = ((1.0, 0.0),)


def find_places(elements: Elements, name: str) -> Places:
    """Where the frames of a file lie.

    Args:
        elements: Of the file.
        name: For messages.

    Raises:
        AffineError: Positions, directions or spacings are no numbers.
        SliceMismatchError: Frames have pixels of different sizes.
        UnreadableFileError: Fewer frames are described than there are, or slopes are no numbers.
    """
    num_frames = find_frames(elements, name)
    groups = _Groups(elements, num_frames, name)
    spacings = groups.find(tags.MEASURES, tags.SPACING, 2)
    thicknesses = groups.find(tags.MEASURES, tags.THICKNESS, 1)
    thickness = None if thicknesses is None else float(thicknesses[0, 0])
    return Places(
        pixel_spacing=None if spacings is None else _find_single(spacings, name),
        thickness=thickness if thickness else None,
        orientations=groups.find(tags.PLANE_ORIENTATION, tags.ORIENTATION, 6),
        positions=groups.find(tags.PLANE_POSITION, tags.POSITION, 3),
        rescale=_find_rescale(groups, name),
    )


class _Groups:
    """The functional groups of a file's frames."""

    def __init__(self, elements: Elements, num_frames: int, name: str) -> None:
        self.name = name
        self.elements = elements
        self.num_frames = num_frames
        self.shared = elements.first(tags.SHARED)
        self.frames = elements.items.get(tags.PER_FRAME, [])
        if self.frames and len(self.frames) < num_frames:
            raise UnreadableFileError(
                f"{show_name(name)} has {num_frames} frames; its header describes {len(self.frames)}."
            )

    def find(self, group: int, tag: int, size: int) -> Numbers | None:
        """Numbers of each frame, (frames, size); None where a frame has none."""
        shared = self._read(None if self.shared is None else self.shared.first(group), tag, size)
        if shared is None and (self.num_frames == 1 or tag == tags.SPACING or tag == tags.THICKNESS):
            shared = self._read(self.elements, tag, size)
        own = [self._read(frame.first(group), tag, size) for frame in self.frames[: self.num_frames]]
        found = [shared if numbers is None else numbers for numbers in own] or [shared] * self.num_frames
        if any(numbers is None for numbers in found):
            return None
        return np.array(found, np.float64)

    def _read(self, elements: Elements | None, tag: int, size: int) -> tuple[float, ...] | None:
        if elements is None:
            return None
        try:
            numbers = elements.numbers(tag)
        except ValueError:
            numbers = (np.nan,)
        if not numbers:
            return None
        word, least, most = RANGES[tag]
        if len(numbers) != size or not all(least <= number <= most for number in numbers):
            raise AffineError(
                f"{show_name(self.name)}: the {word} is not {size} number{'s' * (size > 1)} from {least:g} to {most:g}."
            )
        return numbers


def _find_single(spacings: Numbers, name: str) -> tuple[float, float]:
    first = np.asarray(spacings[0], np.float64)
    if np.abs(spacings - first).max() > SAME_SPACING * first.min():
        raise SliceMismatchError(f"{show_name(name)}: its frames have pixels of different sizes.")
    return float(first[0]), float(first[1])


def _find_rescale(groups: _Groups, name: str) -> tuple[Rescale, ...]:
    """One pair where all frames have the same."""
    holders = [groups.elements, groups.shared and groups.shared.first(tags.TRANSFORMATION)]
    pair = (1.0, 0.0)
    for holder in holders:
        pair = _read_pair(holder, pair, name)
    pairs = [_read_pair(frame.first(tags.TRANSFORMATION), pair, name) for frame in groups.frames[: groups.num_frames]]
    return tuple(pairs) if len(set(pairs)) > 1 else (pairs[0] if pairs else pair,)


def _read_pair(elements: Elements | None, otherwise: Rescale, name: str) -> Rescale:
    """Slope and intercept; those from outside where there are none."""
    if elements is None:
        return otherwise
    try:
        slopes, intercepts = elements.numbers(tags.SLOPE), elements.numbers(tags.INTERCEPT)
    except ValueError:
        slopes, intercepts = (np.nan,), ()
    if not slopes and not intercepts:
        return otherwise
    slope, intercept = (slopes or (1.0,))[0], (intercepts or (0.0,))[0]
    if not np.isfinite((slope, intercept)).all() or slope == 0:
        raise UnreadableFileError(f"{show_name(name)}: slope and intercept of its values are no numbers, or 0.")
    return slope, intercept
