"""What the network sees of each slice: the window around its foreground, and nothing of a slice that is empty."""

from __future__ import annotations

from collections import defaultdict

import numpy as np

from raysegment.imaging.preprocess import Box, Geometry, PreparedScan, round_box, slice_boxes
from raysegment.scan import Pixels

Windows = dict[int, Box]
"""By position of the slice, the part of the network's grid that the network sees; slices left out are empty."""

MARGIN = 8
"""Pixels of the scan's own grid around the foreground."""

STEP_SHARE = 1 / 8
"""Sides of windows are multiples of this share of the image size, so that few shapes occur."""

SHORTEST_SHARE = 1 / 2
"""No side is shorter than this share of the image size: the network needs surroundings."""


def whole_windows(prepared: PreparedScan) -> Windows:
    """Everything of every slice."""
    side = prepared.geometry.image_size
    return dict.fromkeys(range(len(prepared.pixels)), Box(0, side, 0, side))


def skip_empty(windows: Windows, prepared: PreparedScan, context_slices: int) -> Windows:
    """Take out slices in which, neighbours included, all pixels are the same."""
    pixels = prepared.pixels
    holds = np.array([bool((plane != plane[:1, :1]).any()) for plane in pixels])
    if context_slices:
        holds = np.convolve(holds, np.ones(2 * context_slices + 1), "same") > 0
    return {position: window for position, window in windows.items() if holds[position]}


def find_windows(raw: Pixels, prepared: PreparedScan, *, context_slices: int, grid_factor: int) -> Windows:
    """Windows around the foreground of each slice.

    A window depends on its scan alone. Slices where no foreground is found are seen through the smallest window.

    Args:
        raw: (slices, rows, columns, channels), on the scan's own grid.
        prepared: The scan on the network's grid; not cropped.
        context_slices: Neighbours on each side that the network sees beside a slice, through the same window.
        grid_factor: Sides divide by this.
    """
    side = prepared.geometry.image_size
    step = _round_up(max(grid_factor, round(side * STEP_SHARE)), grid_factor)
    shortest = min(side, _round_up(round(side * SHORTEST_SHARE), step))
    middle = Box(side // 2, side // 2, side // 2, side // 2)
    windows = {}
    for position, box in enumerate(_join_neighbours(slice_boxes(raw, MARGIN), context_slices)):
        found = middle if box is None else move_box(box, prepared.geometry)
        widened = Box(
            *_widen(found.row_start, found.row_stop, shortest, side),
            *_widen(found.column_start, found.column_stop, shortest, side),
        )
        windows[position] = round_box(widened, side, side, multiple=step)
    return windows


def move_box(box: Box, geometry: Geometry) -> Box:
    """A box of the scan's own grid on the network's grid, rounded outwards."""
    side, target = geometry.image_size, geometry.target
    row_scale = geometry.scaled_rows / geometry.box.rows
    column_scale = geometry.scaled_columns / geometry.box.columns
    return Box(
        max(0, target.row_start + int(np.floor(box.row_start * row_scale))),
        min(side, target.row_start + int(np.ceil(box.row_stop * row_scale))),
        max(0, target.column_start + int(np.floor(box.column_start * column_scale))),
        min(side, target.column_start + int(np.ceil(box.column_stop * column_scale))),
    )


def group_by_shape(windows: Windows) -> list[list[int]]:
    """Positions of the slices whose windows have the same shape, the largest shape first."""
    groups: defaultdict[tuple[int, int], list[int]] = defaultdict(list)
    for position, window in windows.items():
        groups[window.rows, window.columns].append(position)
    return [groups[shape] for shape in sorted(groups, reverse=True)]


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


def _widen(start: int, stop: int, shortest: int, side: int) -> tuple[int, int]:
    """Grow a stretch of the grid around its middle until it is long enough."""
    missing = shortest - (stop - start)
    if missing <= 0:
        return start, stop
    start = min(max(0, start - missing // 2), side - shortest)
    return start, start + shortest


def _round_up(length: int, multiple: int) -> int:
    return -(-length // multiple) * multiple
