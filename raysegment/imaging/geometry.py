"""From a scan's own grid to the network's grid and back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from raysegment.errors import GridMismatchError
from raysegment.scan import Pixels

MAX_CHANNELS_AT_ONCE = 4
"""OpenCV's INTER_AREA and warps fail beyond four channels."""

DTYPES_OF_OPENCV = frozenset(np.dtype(name) for name in ("uint8", "uint16", "int16", "float32", "float64"))


@dataclass(frozen=True)
class Box:
    """A rectangle of a slice; stops are exclusive."""

    row_start: int
    row_stop: int
    column_start: int
    column_stop: int

    @property
    def rows(self) -> int:
        return self.row_stop - self.row_start

    @property
    def columns(self) -> int:
        return self.column_stop - self.column_start

    @property
    def window(self) -> tuple[slice, slice]:
        """Index of the box in (rows, columns)."""
        return slice(self.row_start, self.row_stop), slice(self.column_start, self.column_stop)


@dataclass(frozen=True)
class Geometry:
    """How the slices of a scan lie on the network's grid.

    The box of the scan's grid is scaled to (scaled_rows, scaled_columns) and laid into the middle of a square of
    `image_size`. A side that is longer than the square is as long on the network's grid; the network then sees tiles.

    Attributes:
        rows: Rows of the scan's own grid.
        columns: Columns of the scan's own grid.
        image_size: Side of the square that the network sees at once, pixels.
        box: Part of the scan's grid that the network sees.
        scaled_rows: Rows that the box has on the network's grid.
        scaled_columns: Columns that the box has on the network's grid.
    """

    rows: int
    columns: int
    image_size: int
    box: Box
    scaled_rows: int
    scaled_columns: int

    @property
    def grid_rows(self) -> int:
        """Rows of the network's grid."""
        return max(self.image_size, self.scaled_rows)

    @property
    def grid_columns(self) -> int:
        """Columns of the network's grid."""
        return max(self.image_size, self.scaled_columns)

    @property
    def is_tiled(self) -> bool:
        """Whether a slice is larger than what the network sees at once."""
        return max(self.scaled_rows, self.scaled_columns) > self.image_size

    @property
    def target(self) -> Box:
        """Where the box lies on the network's grid."""
        top = (self.grid_rows - self.scaled_rows) // 2
        left = (self.grid_columns - self.scaled_columns) // 2
        return Box(top, top + self.scaled_rows, left, left + self.scaled_columns)

    @property
    def has_padding(self) -> bool:
        """Whether a part of the network's grid lies outside the box."""
        return (self.scaled_rows, self.scaled_columns) != (self.grid_rows, self.grid_columns)

    @property
    def is_identity(self) -> bool:
        """Whether both grids are the same."""
        is_whole = self.box == Box(0, self.rows, 0, self.columns)
        return is_whole and self.target == Box(0, self.rows, 0, self.columns) and not self.has_padding

    @property
    def keeps_proportions(self) -> bool:
        """Whether rows and columns are scaled alike, but for rounding to whole pixels."""
        difference = abs(self.scaled_rows * self.box.columns - self.scaled_columns * self.box.rows)
        return difference <= max(self.box.rows, self.box.columns)


def fit_geometry(rows: int, columns: int, image_size: int, box: Box | None = None) -> Geometry:
    """Scale the longer side of the box (of the whole slice without one) to `image_size` and centre the rest."""
    box = box or Box(0, rows, 0, columns)
    factor = image_size / max(box.rows, box.columns)
    return Geometry(
        rows=rows,
        columns=columns,
        image_size=image_size,
        box=box,
        scaled_rows=max(1, round(box.rows * factor)),
        scaled_columns=max(1, round(box.columns * factor)),
    )


def fit_physical_geometry(
    rows: int,
    columns: int,
    image_size: int,
    box: Box | None = None,
    *,
    pixel_size_mm: tuple[float, float],
    pixel_mm: float,
) -> Geometry:
    """Give pixels one physical size and centre what is smaller than `image_size`.

    Args:
        rows: Of the scan's own grid.
        columns: Of the scan's own grid.
        image_size: Side of the square that the network sees at once, pixels.
        box: Part of the scan's grid that the network sees; all of it without one.
        pixel_size_mm: Of the scan, (rows, columns).
        pixel_mm: Side of the network's square pixels. Slices have a whole number of them, so they may be wider or
            narrower by half a pixel over the whole slice.
    """
    box = box or Box(0, rows, 0, columns)
    return Geometry(
        rows=rows,
        columns=columns,
        image_size=image_size,
        box=box,
        scaled_rows=max(1, round(box.rows * pixel_size_mm[0] / pixel_mm)),
        scaled_columns=max(1, round(box.columns * pixel_size_mm[1] / pixel_mm)),
    )


def resize_slices(pixels: Pixels, geometry: Geometry, background: npt.NDArray[np.float32]) -> Pixels:
    """Bring slices to the network's grid: by area averages when smaller, linearly when larger, background around them.

    Args:
        pixels: (slices, rows, columns, channels), on the scan's own grid.
        geometry: From `fit_geometry` or `fit_physical_geometry`.
        background: Level of what lies around the slices, (channels,); rounded where the pixels are whole numbers.

    Returns:
        (slices, grid_rows, grid_columns, channels) in the same type; the array itself where both grids are the same.

    Raises:
        GridMismatchError: The pixels are not on the geometry's grid.
    """
    _check_grid(pixels.shape, geometry)
    if geometry.is_identity:
        return pixels
    resized = np.empty((len(pixels), geometry.grid_rows, geometry.grid_columns, pixels.shape[3]), pixels.dtype)
    if geometry.has_padding:
        resized[:] = background.astype(pixels.dtype) if pixels.dtype.kind == "f" else np.rint(background)
    passes = _list_passes(geometry)

    def resize_group(group: Pixels, _: slice) -> Pixels:
        for size, interpolation in passes:
            group = cv2.resize(group, size, interpolation=interpolation)
        return group

    for source, target in zip(pixels, resized, strict=True):
        target[geometry.target.window] = map_channels(source[geometry.box.window], resize_group)
    return resized


def _list_passes(geometry: Geometry) -> list[tuple[tuple[int, int], int]]:
    """(columns, rows) and interpolation of each pass; two where one side shrinks and the other does not."""
    box, size = geometry.box, (geometry.scaled_columns, geometry.scaled_rows)
    row_mode = cv2.INTER_AREA if geometry.scaled_rows < box.rows else cv2.INTER_LINEAR
    column_mode = cv2.INTER_AREA if geometry.scaled_columns < box.columns else cv2.INTER_LINEAR
    if row_mode == column_mode or geometry.keeps_proportions:
        return [(size, row_mode)]
    # OpenCV would take linear samples for both sides, and leave out pixels of the one that shrinks.
    return [((box.columns, geometry.scaled_rows), row_mode), (size, column_mode)]


def resize_reference(reference: npt.NDArray[np.generic], geometry: Geometry) -> npt.NDArray[np.generic]:
    """Bring a mask to the network's grid by nearest neighbour.

    Args:
        reference: bool or integers, (slices, rows, columns), on the scan's own grid.
        geometry: From `fit_geometry` or `fit_physical_geometry`.

    Returns:
        (slices, grid_rows, grid_columns) in the same type; the array itself where both grids are the same.

    Raises:
        GridMismatchError: The reference is not on the geometry's grid.
    """
    _check_grid(reference.shape, geometry)
    if geometry.is_identity:
        return reference
    resized = np.zeros((len(reference), geometry.grid_rows, geometry.grid_columns), reference.dtype)
    size = (geometry.scaled_columns, geometry.scaled_rows)
    for source, target in zip(reference, resized, strict=True):
        cropped = np.ascontiguousarray(source[geometry.box.window])
        plain = cropped.view(np.uint8) if cropped.dtype == np.bool_ else cropped
        target[geometry.target.window] = cv2.resize(plain, size, interpolation=cv2.INTER_NEAREST_EXACT)
    return resized


def restore_grid(probability: npt.NDArray[np.float32], geometry: Geometry) -> npt.NDArray[np.float32]:
    """Bring probabilities back to the scan's own grid, linearly; 0 outside the box.

    Args:
        probability: (slices, grid_rows, grid_columns).
        geometry: The one that brought the pixels there.

    Returns:
        (slices, rows, columns); the array itself where both grids are the same.
    """
    if geometry.is_identity:
        return probability
    restored = np.zeros((len(probability), geometry.rows, geometry.columns), np.float32)
    size = (geometry.box.columns, geometry.box.rows)
    for source, target in zip(probability, restored, strict=True):
        scaled = source[geometry.target.window]
        target[geometry.box.window] = cv2.resize(scaled, size, interpolation=cv2.INTER_LINEAR)
    return restored


def map_channels(pixels: Pixels, function: Callable[[Pixels, slice], Pixels]) -> Pixels:
    """Apply an OpenCV function to one slice, four channels at a time, in a type that OpenCV knows.

    Args:
        pixels: (rows, columns, channels).
        function: From (rows, columns, up to 4 channels), and which channels these are, to the same number of channels;
            OpenCV may drop a single one.

    Returns:
        (new rows, new columns, channels) in the type of `pixels`; integers are rounded.
    """
    known = pixels if pixels.dtype in DTYPES_OF_OPENCV else pixels.astype(np.float64)
    groups = []
    for start in range(0, known.shape[2], MAX_CHANNELS_AT_ONCE):
        channels = slice(start, start + MAX_CHANNELS_AT_ONCE)
        mapped = function(np.ascontiguousarray(known[:, :, channels]), channels)
        groups.append(mapped[:, :, None] if mapped.ndim == 2 else mapped)
    mapped = groups[0] if len(groups) == 1 else np.concatenate(groups, axis=2)
    if mapped.dtype == pixels.dtype:
        return mapped
    return (np.rint(mapped) if pixels.dtype.kind in "iub" else mapped).astype(pixels.dtype)


def _check_grid(shape: tuple[int, ...], geometry: Geometry) -> None:
    if shape[1:3] != (geometry.rows, geometry.columns):
        raise GridMismatchError(
            f"slices are {shape[1]}x{shape[2]}, the scan's grid is {geometry.rows}x{geometry.columns}; "
            "both must share one grid."
        )
