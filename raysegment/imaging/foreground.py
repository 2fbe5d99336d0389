"""The boxes around what is not background, so that the network sees no empty margins."""

from __future__ import annotations

import math
from collections.abc import Iterator

import cv2
import numpy as np
import numpy.typing as npt

from raysegment.imaging.geometry import Box, map_channels
from raysegment.scan import Pixels

PerChannel = npt.NDArray[np.float32]

BORDER_SHARE = 0.03
"""Share of a side that counts as border; most of it is background."""

CONTRAST_SHARE = 0.1
"""Foreground differs from background by more than this share of what the brightest tissue does, over all channels."""

NOISE_FACTOR = 4.0
"""A channel counts if its brightest tissue differs by more than this many standard deviations of background noise."""

CELLS = 64
"""The shorter side is looked at in about this many cells, so noise averages out and specks vanish."""

PIECE_SHARE = 0.02
"""Pieces smaller than this share of the largest one are artefacts."""

LEVEL_SLICES = 8
"""About so many slices tell the level of the background."""


def foreground_box(pixels: Pixels, margin: int = 4) -> Box | None:
    """The smallest box that holds the foreground of all slices, and a margin.

    The background's level and noise are measured on the border of the slices, per channel, so it may be dark noise,
    a constant, negative (CT) or the zero of a z-normalised scan. Specks, thin lines and noise are ignored.

    Args:
        pixels: (slices, rows, columns, channels), raw.
        margin: Pixels added on each side, within the grid.

    Returns:
        The box, or None where nothing differs from the background.
    """
    cells = _find_foreground(pixels)
    return _box_around(cells.max(axis=0), margin, pixels.shape[1], pixels.shape[2])


def slice_boxes(pixels: Pixels, margin: int = 4) -> list[Box | None]:
    """The smallest box for each slice alone; foreground is what it is for the whole scan.

    Args:
        pixels: (slices, rows, columns, channels), raw.
        margin: Pixels added on each side, within the grid.

    Returns:
        A box for each slice, None where it has no foreground.
    """
    return [_box_around(plane, margin, pixels.shape[1], pixels.shape[2]) for plane in _find_foreground(pixels)]


def foreground_of(pixels: Pixels) -> Iterator[npt.NDArray[np.bool_]]:
    """Where each slice is foreground, (rows, columns) one after the other: the cells that leave the background, without
    pixels that equal it in all channels.

    Args:
        pixels: (slices, rows, columns, channels), raw.
    """
    rows, columns = pixels.shape[1:3]
    level = background_level(pixels)
    for plane, cells in zip(pixels, _find_foreground(pixels), strict=True):
        inside = cv2.resize(cells, (columns, rows), interpolation=cv2.INTER_NEAREST) > 0
        # The level is known in single precision, in which a plane of doubles or of large whole numbers never equals it.
        yield np.asarray(inside & (plane.astype(np.float32, copy=False) != level).any(axis=-1))


def _find_foreground(pixels: Pixels) -> npt.NDArray[np.uint8]:
    """(slices, rows, columns) of cells: 1 where a slice leaves the scan's background, specks dropped."""
    rows, columns = pixels.shape[1:3]
    cell = max(1, min(rows, columns) // CELLS)
    level, weight = _measure_background(pixels)
    cells = np.zeros((len(pixels), -(-rows // cell), -(-columns // cell)), np.uint8)
    kernel = np.ones((3, 3), np.uint8)
    for number, plane in enumerate(pixels if weight.any() else ()):
        found = _differs(plane, cells.shape[1:], level, weight)
        cells[number] = cv2.morphologyEx(found, cv2.MORPH_OPEN, kernel)
    return cells & _drop_small_pieces(cells.max(axis=0))


def _box_around(cells: npt.NDArray[np.uint8], margin: int, rows: int, columns: int) -> Box | None:
    """The box on the grid around the cells that are 1."""
    if not cells.any():
        return None
    row_start, row_stop = _extent(cells.max(axis=1), margin, rows)
    column_start, column_stop = _extent(cells.max(axis=0), margin, columns)
    return Box(row_start, row_stop, column_start, column_stop)


def background_level(pixels: Pixels) -> PerChannel:
    """The median of the slices' border, (channels,): what lies around the body, and around the slice.

    Args:
        pixels: (slices, rows, columns, channels), raw; up to 15 of the slices are looked at, evenly spread.
    """
    some = pixels[:: max(1, len(pixels) // LEVEL_SLICES)]
    return np.asarray(np.median(_border_of(some), axis=0), np.float32)


def _border_of(pixels: Pixels) -> PerChannel:
    """A sample of the outermost pixels of the slices, (samples, channels)."""
    rows, columns, channels = pixels.shape[1:]
    width = max(1, round(BORDER_SHARE * min(rows, columns)))
    edges = (pixels[:, :width], pixels[:, -width:], pixels[:, :, :width], pixels[:, :, -width:])
    return np.concatenate([edge.reshape(-1, channels)[::7] for edge in edges]).astype(np.float32)


def _measure_background(pixels: Pixels) -> tuple[PerChannel, PerChannel]:
    """Level and weight per channel: the weighted sum of distances from the level is about 1 in the brightest tissue."""
    border = _border_of(pixels)
    level = np.median(border, axis=0)
    noise = 1.4826 * np.median(np.abs(border - level), axis=0)
    sample = pixels[:, ::4, ::4].reshape(-1, pixels.shape[-1]).astype(np.float32)
    contrast = np.percentile(np.abs(sample - level), 99.5, axis=0)
    shows = (contrast > NOISE_FACTOR * noise) & (contrast > 0)
    with np.errstate(over="ignore"):
        weight = np.where(shows, 1 / np.where(shows, contrast, 1), 0) / max(1, np.count_nonzero(shows))
    return level.astype(np.float32), weight.astype(np.float32)


def _differs(plane: Pixels, shape: tuple[int, ...], level: PerChannel, weight: PerChannel) -> npt.NDArray[np.uint8]:
    """Where the cells of a slice leave the background, uint8."""
    size = (shape[1], shape[0])
    coarse = map_channels(plane, lambda group, _: cv2.resize(group, size, interpolation=cv2.INTER_AREA))
    with np.errstate(invalid="ignore"):
        distance = np.abs(coarse.astype(np.float32) - level) @ weight
    return (distance > CONTRAST_SHARE).view(np.uint8)


def _drop_small_pieces(union: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    _, numbers, statistics, _ = cv2.connectedComponentsWithStats(union, connectivity=8)
    sizes = statistics[:, cv2.CC_STAT_AREA].copy()
    sizes[0] = 0
    kept = (sizes > 0) & (sizes >= PIECE_SHARE * sizes.max())
    return kept[numbers].view(np.uint8)


def _extent(profile: npt.NDArray[np.uint8], margin: int, side: int) -> tuple[int, int]:
    found, cell = np.flatnonzero(profile), side / len(profile)
    start, stop = int(found[0] * cell), math.ceil((int(found[-1]) + 1) * cell)
    return max(0, start - margin), min(side, stop + margin)
