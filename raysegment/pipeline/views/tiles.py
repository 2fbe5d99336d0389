"""Slices that are larger than what the network sees at once: tiles that overlap, and one picture from them again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from raysegment.imaging.geometry import Box, Geometry
from raysegment.pipeline.views.windows import Windows

Values = npt.NDArray[np.float32]

OVERLAP_SHARE = 1 / 4
"""Neighbouring tiles share at least this part of their side."""

WEIGHT_STEPS = 2**12
"""Weights along one side are multiples of one part of so many, so that sums of products are exactly 1 in float32."""


class View(NamedTuple):
    """What the network sees at once: a window of one slice with its neighbours."""

    position: int
    window: Box


def cut_views(windows: Windows, geometry: Geometry) -> list[View]:
    """The windows themselves, or, of slices that are larger than what the network sees, the tiles that meet them.

    Tiles lie where the geometry puts them, whatever the windows, and all have the sides that the network was trained
    with.
    """
    if not geometry.is_tiled:
        return [View(position, window) for position, window in windows.items()]
    tiles = list_tiles(geometry)
    return [View(position, tile) for position, window in windows.items() for tile in tiles if _meet(tile, window)]


def list_tiles(geometry: Geometry) -> list[Box]:
    """The tiles of a slice, row by row: the whole slice where the network can see it at once."""
    side = geometry.image_size
    return [
        Box(row, row + side, column, column + side)
        for row in tile_starts(geometry.grid_rows, side)
        for column in tile_starts(geometry.grid_columns, side)
    ]


def tile_starts(length: int, side: int) -> list[int]:
    """Where tiles of a side begin along a length that is at least as long: evenly spread, from one end to the other."""
    overlap = round(side * OVERLAP_SHARE)
    num_gaps = -(-(length - side) // (side - overlap))
    return [round(number * (length - side) / num_gaps) for number in range(num_gaps + 1)] if num_gaps else [0]


@lru_cache(maxsize=64)
def tile_weights(length: int, side: int) -> Values:
    """How much each tile counts at each of its pixels along one side of the slice.

    Weights fall linearly towards the ends of a tile and add up to exactly 1 everywhere.

    Returns:
        float32, (tiles, side).
    """
    starts = tile_starts(length, side)
    distance = np.minimum(np.arange(side), np.arange(side)[::-1]) + 0.5
    counted = np.zeros((len(starts), length))
    for row, start in zip(counted, starts, strict=True):
        row[start : start + side] = distance
    steps = np.floor(counted / counted.sum(axis=0) * WEIGHT_STEPS)
    steps[counted.argmax(axis=0), np.arange(length)] += WEIGHT_STEPS - steps.sum(axis=0)
    weights = np.stack([row[start : start + side] for row, start in zip(steps, starts, strict=True)])
    found = (weights / WEIGHT_STEPS).astype(np.float32)
    found.setflags(write=False)
    return found


def add_view(probability: Values, found: Values, window: Box, geometry: Geometry) -> None:
    """Put what the network found in a window into the probabilities of its slice, which were 0 there.

    Args:
        probability: (grid_rows, grid_columns, …) of one slice; changed.
        found: (rows, columns, …) of the window.
        window: From `cut_views`.
        geometry: Of the scan.
    """
    if not geometry.is_tiled:
        probability[window.window] = found
        return
    side = geometry.image_size
    rows, columns = (
        tile_weights(length, side)[tile_starts(length, side).index(start)]
        for length, start in ((geometry.grid_rows, window.row_start), (geometry.grid_columns, window.column_start))
    )
    weights = np.multiply.outer(rows, columns)
    probability[window.window] += found * weights.reshape(weights.shape + (1,) * (found.ndim - 2))


def predict_slices(predict: Callable[[Values], Values], pixels: Values, geometry: Geometry) -> Values:
    """Probabilities of whole slices, in tiles where they are larger than what the network sees at once.

    Args:
        predict: The network, (samples, rows, columns, channels) to (samples, rows, columns, …), any number of samples.
        pixels: Normalized, (slices, grid_rows, grid_columns, channels).
        geometry: Of the scan.

    Returns:
        float32, (slices, grid_rows, grid_columns, …).
    """
    if not geometry.is_tiled:
        return predict(pixels)
    tiles = list_tiles(geometry)
    seen = np.stack([plane[tile.window] for plane in pixels for tile in tiles])
    found = predict(seen)
    probability = np.zeros((*pixels.shape[:3], *found.shape[3:]), np.float32)
    for number, part in enumerate(found):
        add_view(probability[number // len(tiles)], part, tiles[number % len(tiles)], geometry)
    return probability


def count_slices_at_once(batch_size: int, geometry: Geometry) -> int:
    """Slices whose tiles fill a batch, and at least one."""
    return max(1, batch_size // len(list_tiles(geometry)))


def group_by_shape(views: Sequence[View]) -> list[list[View]]:
    """Views of the same shape together, the largest shape first."""
    groups: dict[tuple[int, int], list[View]] = {}
    for view in views:
        groups.setdefault((view.window.rows, view.window.columns), []).append(view)
    return [groups[shape] for shape in sorted(groups, reverse=True)]


def _meet(first: Box, second: Box) -> bool:
    return (
        first.row_start < second.row_stop
        and second.row_start < first.row_stop
        and first.column_start < second.column_stop
        and second.column_start < first.column_stop
    )
