"""References from DICOM segmentations: their frames laid on the scan's grid, their segments as a label map.

Frames are found by where they lie, whatever their order and however many are left out; where they or the scan have no
place, by the image that they were drawn on. Of fractions a voxel is in the segment from half of the largest value on.

Segments are taken by their SegmentLabel, whatever its case, where labels are declared: a voxel has the value that lies
in exactly the labels whose segments cover it. Without declared labels all segments are the one region.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from raysegment.archive.dicom.header import Instance
from raysegment.archive.dicom.segment_frames import Frame, Segments, iterate_frames, read_segments
from raysegment.archive.names import show_name
from raysegment.archive.orientation import Affine
from raysegment.errors import GridMismatchError, OversizedScanError, ReferenceValuesError, UnreadableReferenceError
from raysegment.scan import LabelMap, Labels

SAME_VOXEL = 0.2
"""Share of a voxel by which a frame may lie off its slice: slices of a series may do so by half of it."""

TO_RAS = np.array([-1.0, -1.0, 1.0])

Region = npt.NDArray[np.bool_]
Numbers = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Plane:
    """Where a frame or an image lies, in DICOM's millimetres.

    Attributes:
        position: Of its first pixel.
        orientation: Direction of rows, then of columns.
        pixel_spacing: Distance of rows, distance of columns.
    """

    position: Numbers
    orientation: Numbers
    pixel_spacing: tuple[float, float]


def find_plane(instance: Instance, index: int) -> Plane | None:
    """Where a frame of a file lies; None where the file does not say."""
    if instance.positions is None or instance.orientations is None or instance.pixel_spacing is None:
        return None
    return Plane(instance.positions[index], instance.orientations[index], instance.pixel_spacing)


@dataclass(frozen=True, eq=False, repr=False)
class SegmentedGrid:
    """The scan that a segmentation was drawn on.

    Attributes:
        shape: (slices, rows, columns), in canonical order.
        affine: 4x4, (slice, row, column, 1) to RAS+ millimetres; None where nobody knows.
        frame_of_reference: UID of its frame of reference, empty where it is not known.
        find_planes: Reads where its images lie, by SOPInstanceUID; for one without a place the number of its slice.
    """

    shape: tuple[int, int, int]
    affine: Affine | None
    frame_of_reference: str = ""
    find_planes: Callable[[], Mapping[str, Plane | int]] = dict

    @cached_property
    def planes(self) -> Mapping[str, Plane | int]:
        """What `find_planes` reads, once."""
        return self.find_planes()


def read_segmentation(data: bytes, name: str, grid: SegmentedGrid, labels: Labels, max_bytes: int) -> LabelMap:
    """Read a segmentation as the reference of a scan.

    Args:
        data: The file.
        name: For messages.
        grid: Of the scan.
        labels: Declared ones decide what segments mean.
        max_bytes: Largest size of one frame.

    Returns:
        (slices, rows, columns) in the smallest unsigned type for the declared values; uint8 0 and 1 where none are.

    Raises:
        GridMismatchError: It was drawn on something else than this scan.
        ReferenceValuesError: Segments that no label names, or that cover voxels together for which no value is.
        ScanError: It cannot be read.
    """
    segments = read_segments(data, name, max_bytes)
    known = segments.instance.frame_of_reference, grid.frame_of_reference
    if all(known) and known[0] != known[1]:
        raise GridMismatchError(
            f"{show_name(name)} is a segmentation in another frame of reference than the scan; it was drawn on "
            "something else."
        )
    combiner, finder = _Combiner(segments, labels, name), _Finder(segments, grid, name)
    states: LabelMap = np.zeros(grid.shape, combiner.dtype)
    for index, frame in enumerate(iterate_frames(data, segments, name)):
        plane = finder.find(states, index)
        for number, region in combiner.find_regions(frame, index):
            combiner.cover(plane, region, number)
    return combiner.to_values(states)


def list_segment_values(data: bytes, name: str, labels: Labels, max_bytes: int) -> set[int]:
    """The different values of a segmentation as a reference, 0 included, wherever its frames lie.

    Args:
        data: The file.
        name: For messages.
        labels: As in `read_segmentation`.
        max_bytes: Largest size of all planes.

    Raises:
        ReferenceValuesError: As `read_segmentation`.
        ScanError: It cannot be read.
    """
    segments = read_segments(data, name, max_bytes)
    positions = segments.instance.positions
    keys = segments.sources if positions is None else tuple(map(bytes, positions.round(2)))
    rows, columns = segments.shape
    combiner = _Combiner(segments, labels, name)
    if len(set(keys)) * rows * columns * combiner.dtype.itemsize > max_bytes:
        raise OversizedScanError(
            f"{show_name(name)} declares {len(set(keys))} slices of {rows} x {columns}; at most "
            f"{max_bytes / 2**20:.0f} MB are read."
        )
    planes: dict[object, LabelMap] = {}
    for index, frame in enumerate(iterate_frames(data, segments, name)):
        plane = planes.setdefault(keys[index], np.zeros(segments.shape, combiner.dtype))
        for number, region in combiner.find_regions(frame, index):
            combiner.cover(plane, region, number)
    return {0} | {int(value) for plane in planes.values() for value in combiner.list_values(plane)}


class _Combiner:
    """Voxels by the set of labels whose segments cover them: a number for each set that occurs."""

    def __init__(self, segments: Segments, labels: Labels, name: str) -> None:
        self.segments = segments
        self.labels = labels
        self.name = name
        exact = {label: place for place, label in enumerate(labels.names)}
        folded = {label.casefold(): place for place, label in enumerate(labels.names)}
        self._label_of = {
            number: exact.get(text, folded.get(text.casefold())) if labels.are_declared else 0
            for number, text in segments.labels.items()
        }
        self._sets: list[frozenset[int]] = [frozenset()]
        self.dtype: np.dtype[Any] = np.dtype(np.uint8 if len(labels) <= 8 else np.uint16)

    def find_regions(self, frame: Frame, index: int) -> Iterator[tuple[int, Region]]:
        """The segments that a frame shows anything of, by their numbers, and where."""
        segments = self.segments
        if segments.kind == "LABELMAP":
            for number in np.unique(frame).tolist():
                if number != segments.background and (number or number in segments.labels):
                    yield number, frame == number
            return
        region = frame != 0 if segments.kind == "BINARY" else 2 * frame.astype(np.uint32) >= segments.largest
        if region.any():
            yield segments.numbers[index], region

    def cover(self, plane: LabelMap, region: Region, number: int) -> None:
        """Add a segment to a plane of sets."""
        if number not in self._label_of:
            raise UnreadableReferenceError(f"{show_name(self.name)} holds a segment that it does not describe.")
        label = self._label_of[number]
        if label is None:
            raise ReferenceValuesError(
                f"{show_name(self.name)}: the SegmentLabel of its segment {number} is that of no label; expected "
                f"{', '.join(self.labels.names)}. Name labels as the segments are called, with --labels NAME=VALUE."
            )
        before = plane[region]
        lookup = np.arange(len(self._sets), dtype=np.int64)
        for found in np.unique(before).tolist():
            lookup[found] = self._number(self._sets[found] | {label})
        plane[region] = lookup[before]

    def list_values(self, states: LabelMap) -> LabelMap:
        """The value of each set that occurs."""
        return np.asarray(self._find_values(states)[np.unique(states)])

    def to_values(self, states: LabelMap) -> LabelMap:
        """Sets as values, in the smallest type."""
        return np.asarray(self._find_values(states)[states])

    def _number(self, labels: frozenset[int]) -> int:
        if labels not in self._sets:
            if len(self._sets) > np.iinfo(self.dtype).max:
                raise ReferenceValuesError(f"{show_name(self.name)}: its segments overlap in too many ways.")
            self._sets.append(labels)
        return self._sets.index(labels)

    def _find_values(self, states: LabelMap) -> LabelMap:
        """By the number of a set its value; only those that occur need one."""
        known = sorted(self.labels.known_values) if self.labels.are_declared else [0, 1]
        found = np.zeros(len(self._sets), np.min_scalar_type(known[-1]))
        occurs = np.zeros(len(self._sets), bool)
        for plane in states if states.ndim == 3 else [states]:
            # Counting takes eight bytes a voxel.
            occurs |= np.bincount(plane.ravel(), minlength=len(self._sets)) > 0
        for number in np.flatnonzero(occurs).tolist():
            found[number] = self._find_value(self._sets[number])
        return found

    def _find_value(self, labels: frozenset[int]) -> int:
        """The value that lies in exactly these labels."""
        if not labels or not self.labels.are_declared:
            return int(bool(labels))
        for value in sorted(self.labels.known_values):
            if {place for place, region in enumerate(self.labels.regions) if value in region} == labels:
                return value
        names = [self.labels.names[place] for place in sorted(labels)]
        raise ReferenceValuesError(
            f"{show_name(self.name)}: voxels lie in {' and '.join(names)} and in no other label, and no value is that; "
            "expected segments that overlap as the values of --labels do."
        )


class _Finder:
    """Finds the plane of a scan's grid that a frame shows."""

    def __init__(self, segments: Segments, grid: SegmentedGrid, name: str) -> None:
        self.segments = segments
        self.grid = grid
        self.name = name
        self._inverse = None if grid.affine is None else np.linalg.inv(grid.affine)

    def find(self, volume: LabelMap, index: int) -> LabelMap:
        """A view of the volume: rows and columns of the frame.

        Raises:
            GridMismatchError: The frame is no plane of it.
        """
        place = self._place(index)
        if isinstance(place, int):
            if self.segments.shape != self.grid.shape[1:]:
                raise self._mismatch(f"its frames are {self.segments.shape}, those of the scan {self.grid.shape[1:]}")
            return volume[place]
        origin, along_rows, along_columns = self._to_voxels(place)
        axes = int(np.argmax(np.abs(along_rows))), int(np.argmax(np.abs(along_columns)))
        if axes[0] == axes[1]:
            raise self._mismatch("it looks in another direction")
        (across,) = {0, 1, 2} - set(axes)
        view = volume.transpose(across, *axes)
        if view.shape[1:] != self.segments.shape:
            raise self._mismatch(f"its frames are {self.segments.shape}, those of the scan {view.shape[1:]}")
        ways = bool(along_rows[axes[0]] < 0), bool(along_columns[axes[1]] < 0)
        number = self._check_corners(origin, along_rows, along_columns, (across, *axes), ways)
        return view[number][:: -1 if ways[0] else 1, :: -1 if ways[1] else 1]

    def _place(self, index: int) -> Plane | int:
        """Where a frame lies: by its own header, else by that of the image that it was drawn on."""
        own, grid = find_plane(self.segments.instance, index), self.grid
        if own is not None and grid.affine is not None:
            return own
        found = grid.planes.get(self.segments.sources[index])
        if found is None:
            raise self._mismatch("it has frames that refer to no image of the scan, and no place of their own")
        return found

    def _to_voxels(self, plane: Plane) -> tuple[Numbers, Numbers, Numbers]:
        """First pixel, the way to the next row and to the next column, in voxels of the scan."""
        assert self._inverse is not None
        between_rows, between_columns = plane.pixel_spacing
        turn = self._inverse[:3, :3] * TO_RAS
        origin = turn @ plane.position + self._inverse[:3, 3]
        return origin, turn @ plane.orientation[3:] * between_rows, turn @ plane.orientation[:3] * between_columns

    def _check_corners(
        self,
        origin: Numbers,
        along_rows: Numbers,
        along_columns: Numbers,
        axes: tuple[int, int, int],
        ways: tuple[bool, bool],
    ) -> int:
        """The number of the plane, once all four corners lie at its corners."""
        rows, columns = self.segments.shape
        number = int(np.rint(origin[axes[0]]))
        if not 0 <= number < self.grid.shape[axes[0]]:
            raise self._mismatch("it has frames where the scan has no slice")
        for row in (0, rows - 1):
            for column in (0, columns - 1):
                expected = np.empty(3)
                expected[list(axes)] = (
                    number,
                    rows - 1 - row if ways[0] else row,
                    columns - 1 - column if ways[1] else column,
                )
                apart = np.abs(origin + row * along_rows + column * along_columns - expected).max()
                if apart > SAME_VOXEL:
                    raise self._mismatch(f"its voxels lie up to {apart:.3g} voxels from those of the scan")
        return number

    def _mismatch(self, how: str) -> GridMismatchError:
        return GridMismatchError(
            f"{show_name(self.name)} is a segmentation on another grid: {how}. Export it on the scan's own grid."
        )
