"""A DICOM series as one stack: whatever its files are called and in whatever order they come."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from raysegment.archive.dicom.geometry import SliceOrder, order_slices
from raysegment.archive.dicom.header import Instance, parse_instance
from raysegment.archive.dicom.pixels import read_frames
from raysegment.archive.names import show_name
from raysegment.errors import ChannelMismatchError, OversizedScanError, SliceMismatchError, UnreadableFileError
from raysegment.scan import Pixels, Scan

SAME_SPACING = 1e-3


@dataclass(frozen=True, eq=False)
class Stack:
    """A series of slices in their order.

    Attributes:
        scan: Pixels (slices, rows, columns, channels), with the affine of these axes where files say where they lie.
        order: How it was stacked.
        is_lossy: Whether a file was compressed with losses.
    """

    scan: Scan
    order: SliceOrder
    is_lossy: bool


def read_stack(files: Iterable[tuple[str, bytes]], num_files: int, max_bytes: int) -> Stack:
    """Decode the files of one series and sort their slices by position.

    Args:
        files: Name and bytes of each, in any order; slices without a position stay in this one.
        num_files: How many there are.
        max_bytes: Largest decoded size, compared with what headers declare before anything is decoded.

    Raises:
        ScanError: A file cannot be read, or is none of the same series and shape; slices are missing or lie twice at
            one place.
    """
    found: list[Instance] = []
    stack = _Stack(num_files)
    first_name, num_bytes = "", 0
    for name, data in files:
        instance = parse_instance(data, name)
        check_image(instance, name)
        first_name = first_name or name
        if found:
            _check_same_series(instance, name, found[0], first_name)
        num_bytes += _count_bytes(instance)
        _check_size(max(num_bytes, _count_bytes(instance) * num_files), max_bytes, name)
        stack.add(read_frames(data, instance, name))
        found.append(instance)
    order = order_instances(found, first_name)
    scan = Scan(stack.sort(order.order), order.spacing_mm, order.affine)
    return Stack(scan, order, any(instance.was_lossy for instance in found))


def order_instances(instances: list[Instance], name: str) -> SliceOrder:
    """The order of all frames of a series' files, counted through.

    Args:
        instances: What the files declare, all of one series.
        name: Of the series, for messages.

    Raises:
        ScanError: As `order_slices`; or some slices say where they lie, others do not.
    """
    first = instances[0]
    placed = [each for each in instances if each.positions is not None and each.orientations is not None]
    num_slices = sum(instance.frames for instance in instances)
    if placed and len(placed) < len(instances):
        raise SliceMismatchError(
            f"{show_name(name)}: {len(placed)} of {len(instances)} files of the series say where their slices lie, the "
            "others do not."
        )
    if not placed:
        return order_slices(None, None, first.pixel_spacing, first.thickness, name, num_slices)
    positions = np.concatenate([each.positions for each in placed if each.positions is not None])
    orientations = np.concatenate([each.orientations for each in placed if each.orientations is not None])
    return order_slices(positions, orientations, first.pixel_spacing, first.thickness, name)


class _Stack:
    """Frames behind each other, in memory that is taken once."""

    def __init__(self, num_files: int) -> None:
        self.num_files = num_files
        self.filled = 0
        self.pixels: Pixels | None = None

    def add(self, frames: Pixels) -> None:
        """Put frames behind the others, in a type that holds all of them."""
        if self.pixels is None:
            self.pixels = frames
            if self.num_files > 1:
                self.pixels = np.empty((len(frames) * self.num_files, *frames.shape[1:]), frames.dtype)
        dtype = _promote(self.pixels.dtype, frames.dtype)
        self.pixels = self.pixels.astype(dtype, copy=False)
        end = self.filled + len(frames)
        if end > len(self.pixels):
            more = np.empty((end - len(self.pixels), *frames.shape[1:]), dtype)
            self.pixels = np.concatenate([self.pixels, more])
        if self.num_files > 1:
            self.pixels[self.filled : end] = frames
        self.filled = end

    def sort(self, order: Sequence[int]) -> Pixels:
        """All frames in an order, moved one by one: slice i of the result is what was frame order[i]."""
        assert self.pixels is not None
        pixels = self.pixels[: self.filled]
        is_placed = [False] * len(order)
        for start in range(len(order)):
            place, kept = start, None
            while not is_placed[place] and order[place] != place:
                kept = pixels[start].copy() if kept is None else kept
                is_placed[place] = True
                source = order[place]
                pixels[place] = kept if source == start else pixels[source]
                place = source
        return pixels


def _promote(first: np.dtype[np.generic], second: np.dtype[np.generic]) -> np.dtype[np.generic]:
    """The smallest type for both; single precision is enough beside whole numbers."""
    both = np.result_type(first, second)
    return np.dtype(np.float32) if both == np.float64 and np.float64 not in (first, second) else both


def check_image(instance: Instance, name: str) -> None:
    """Refuse what is no image.

    Raises:
        UnreadableFileError: Says what it is instead.
    """
    if instance.kind != "image":
        article = "an" if instance.kind == "other" else "a"
        what = "object of another kind" if instance.kind == "other" else instance.kind
        raise UnreadableFileError(f"{show_name(name)} is {article} {what}; expected an image.")


def _check_same_series(instance: Instance, name: str, first: Instance, first_name: str) -> None:
    if instance.series != first.series:
        raise SliceMismatchError(
            f"{show_name(name)} and {show_name(first_name)} are of different series; a scan is one, or one for each "
            "channel."
        )
    if (instance.patient, instance.study) != (first.patient, first.study):
        what = "studies" if instance.patient == first.patient else "patients"
        raise SliceMismatchError(
            f"{show_name(name)} and {show_name(first_name)} are of one series, but name different {what}, or only one "
            "of them names any."
        )
    if instance.channels != first.channels:
        raise ChannelMismatchError(
            f"{show_name(name)} has {instance.channels} channel{'s' * (instance.channels != 1)}, "
            f"{show_name(first_name)} has {first.channels}."
        )
    shape, first_shape = (instance.rows, instance.columns), (first.rows, first.columns)
    if shape != first_shape:
        raise SliceMismatchError(
            f"{show_name(name)} is {shape}, {show_name(first_name)} is {first_shape}; the slices of a series must "
            "share their shape."
        )
    spacing, first_spacing = instance.pixel_spacing, first.pixel_spacing
    if (spacing is None) != (first_spacing is None) or not np.allclose(
        spacing or (), first_spacing or (), rtol=SAME_SPACING, atol=0
    ):
        raise SliceMismatchError(
            f"{show_name(name)} and {show_name(first_name)} have pixels of different sizes; the slices of a series "
            "must share them."
        )


def _count_bytes(instance: Instance) -> int:
    return instance.frames * instance.rows * instance.columns * instance.channels * instance.dtype.itemsize


def _check_size(num_bytes: int, max_bytes: int, name: str) -> None:
    if num_bytes > max_bytes:
        raise OversizedScanError(
            f"{show_name(name)} declares a scan of {num_bytes / 2**20:.0f} MB; at most "
            f"{max_bytes / 2**20:.0f} MB are read."
        )
