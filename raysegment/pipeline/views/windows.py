"""What the network sees of each slice: the window around its foreground, and nothing of a slice that is empty."""

from __future__ import annotations

import numpy as np

from raysegment.imaging.foreground import slice_boxes
from raysegment.imaging.geometry import Box, Geometry
from raysegment.imaging.preprocess import PreparedScan
from raysegment.scan import Pixels

Windows = dict[int, Box]
"""By position of the slice, the part of the network's grid that the network sees; slices left out are empty."""

MARGIN = 12
"""Pixels of the scan's own grid around the foreground."""

STEP_SHARE = 1 / 16
"""Sides of windows are multiples of this share of the image size, so that few shapes occur."""

SLICES_TOGETHER = 4
"""Slices of a scan whose windows get one shape; the network is as fast with four slices as with many."""

SHORTEST_SHARE = 1 / 2
"""No side is shorter than this share of the image size: the network needs surroundings."""


def whole_windows(prepared: PreparedScan) -> Windows:
    """Everything of every slice."""
    geometry = prepared.geometry
    return dict.fromkeys(range(len(prepared.pixels)), Box(0, geometry.grid_rows, 0, geometry.grid_columns))


def skip_empty(windows: Windows, prepared: PreparedScan, context_slices: int) -> Windows:
    """Take out slices in which, neighbours included, all pixels are the same."""
    holds = [bool((plane != plane[:1, :1]).any()) for plane in prepared.pixels]
    reach = context_slices
    return {
        position: window
        for position, window in windows.items()
        if any(holds[max(0, position - reach) : position + reach + 1])
    }


def find_windows(raw: Pixels, prepared: PreparedScan, *, context_slices: int, grid_factor: int) -> Windows:
    """Windows around the foreground of each slice.

    A window depends on its scan alone. A slice where no foreground is found is seen through the window that holds all
    of its scan's, and a scan where none is found at all is seen whole. Windows lie on the network's coarsest grid, so
    that its pooling falls on the same pixels as without them. Where slices are seen in tiles, the windows only say
    which, and keep the foreground's shape.

    Args:
        raw: (slices, rows, columns, channels), on the scan's own grid, the channels that the network sees.
        prepared: The scan on the network's grid; not cropped.
        context_slices: Neighbours on each side that the network sees beside a slice, through the same window.
        grid_factor: Sides and starts divide by this.
    """
    boxes = slice_boxes(raw, MARGIN)
    found = [box for box in boxes if box is not None]
    if not found:
        return whole_windows(prepared)
    everything = _join(found)
    moved = {
        position: move_box(box or everything, prepared.geometry)
        for position, box in enumerate(_join_neighbours(boxes, context_slices))
    }
    return moved if prepared.geometry.is_tiled else _fit_windows(moved, prepared.geometry.image_size, grid_factor)


def _fit_windows(moved: Windows, side: int, grid_factor: int) -> Windows:
    """Grow boxes around the foreground to windows of a few shapes on the coarsest grid."""
    step = _round_up(max(grid_factor, round(side * STEP_SHARE)), grid_factor)
    shortest = min(side, _round_up(round(side * SHORTEST_SHARE), step))
    windows = {}
    for position, box in moved.items():
        rows = _fit(box.row_start, box.row_stop, side, step, shortest, grid_factor)
        columns = _fit(box.column_start, box.column_stop, side, step, shortest, grid_factor)
        windows[position] = Box(*rows, *columns)
    return share_shapes(windows, side, grid_factor)


def share_shapes(windows: Windows, side: int, grid_factor: int) -> Windows:
    """Grow windows so that their slices, ordered by area, come in fours of one shape.

    Args:
        windows: Their starts and sides divide by `grid_factor`.
        side: Of the network's grid.
        grid_factor: Starts and sides go on dividing by this.
    """
    order = sorted(windows, key=lambda position: (-windows[position].rows * windows[position].columns, position))
    shared = {}
    for start in range(0, len(order), SLICES_TOGETHER):
        together = order[start : start + SLICES_TOGETHER]
        rows = max(windows[position].rows for position in together)
        columns = max(windows[position].columns for position in together)
        for position in together:
            window = windows[position]
            shared[position] = Box(
                *_grow(window.row_start, window.row_stop, rows, side, grid_factor),
                *_grow(window.column_start, window.column_stop, columns, side, grid_factor),
            )
    return dict(sorted(shared.items()))


def move_box(box: Box, geometry: Geometry) -> Box:
    """A box of the scan's own grid on the network's grid, rounded outwards."""
    target = geometry.target
    row_scale = geometry.scaled_rows / geometry.box.rows
    column_scale = geometry.scaled_columns / geometry.box.columns
    return Box(
        max(0, target.row_start + int(np.floor(box.row_start * row_scale))),
        min(geometry.grid_rows, target.row_start + int(np.ceil(box.row_stop * row_scale))),
        max(0, target.column_start + int(np.floor(box.column_start * column_scale))),
        min(geometry.grid_columns, target.column_start + int(np.ceil(box.column_stop * column_scale))),
    )


def _join_neighbours(boxes: list[Box | None], reach: int) -> list[Box | None]:
    """The box of each slice grown to hold those of the slices within reach."""
    joined = []
    for position in range(len(boxes)):
        near = [box for box in boxes[max(0, position - reach) : position + reach + 1] if box is not None]
        joined.append(_join(near) if near else None)
    return joined


def _join(boxes: list[Box]) -> Box:
    return Box(
        min(box.row_start for box in boxes),
        max(box.row_stop for box in boxes),
        min(box.column_start for box in boxes),
        max(box.column_stop for box in boxes),
    )


def _fit(start: int, stop: int, side: int, step: int, shortest: int, grid_factor: int) -> tuple[int, int]:
    """Grow a stretch around its middle to a multiple of `step` that starts on the coarsest grid and holds it."""
    start, stop = start // grid_factor * grid_factor, _round_up(stop, grid_factor)
    length = max(shortest, _round_up(stop - start, step))
    return (0, side) if length >= side else _grow(start, stop, length, side, grid_factor)


def _grow(start: int, stop: int, length: int, side: int, grid_factor: int) -> tuple[int, int]:
    """Grow a stretch on the coarsest grid around its middle to a length on that grid, inside the side."""
    start = (start - (length - (stop - start)) // 2) // grid_factor * grid_factor
    start = min(max(0, start), side - length)
    return start, start + length


def _round_up(length: int, multiple: int) -> int:
    return -(-length // multiple) * multiple
