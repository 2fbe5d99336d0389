"""The box around what is not background, so that the network sees no empty margins."""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt

from raysegment.imaging.geometry import Box, map_channels
from raysegment.scan import Pixels

BORDER_SHARE = 0.03
"""Share of a side that counts as border; most of it is background."""

CONTRAST_SHARE = 0.1
"""Foreground differs from background by more than this share of what the brightest tissue does."""

NOISE_FACTOR = 4.0
"""Foreground differs from background by more than this many standard deviations of the background's noise."""


def foreground_box(pixels: Pixels, margin: int = 8) -> Box | None:
    """The smallest box that holds the foreground of all slices, and a margin.

    The background's level and noise are measured on the border of the slices, per channel, so it may be dark noise,
    a constant, negative (CT) or the zero of a z-normalised scan. Specks of a few pixels are ignored.

    Args:
        pixels: (slices, rows, columns, channels), raw.
        margin: Pixels added on each side, within the grid.

    Returns:
        The box, or None where nothing differs from the background.
    """
    rows, columns = pixels.shape[1:3]
    step = 2 if min(rows, columns) >= 64 else 1
    level, tolerance = _measure_background(pixels)
    union = np.zeros((-(-rows // step), -(-columns // step)), np.uint8)
    kernel = np.ones((3, 3), np.uint8)
    for plane in pixels:
        found = _differs(plane, step, level, tolerance)
        np.maximum(union, cv2.morphologyEx(found, cv2.MORPH_OPEN, kernel), out=union)
    if not union.any():
        return None
    row_start, row_stop = _extent(union.max(axis=1), step, margin, rows)
    column_start, column_stop = _extent(union.max(axis=0), step, margin, columns)
    return Box(row_start, row_stop, column_start, column_stop)


def round_box(box: Box, rows: int, columns: int, *, multiple: int = 32, sizes: tuple[int, ...] | None = None) -> Box:
    """Grow a box to sides that the network can take, so that few shapes occur.

    Args:
        box: On a grid of (rows, columns).
        rows: Rows of the grid.
        columns: Columns of the grid.
        multiple: Sides are rounded up to a multiple of this many pixels.
        sizes: The only sides that may occur, beside the whole grid's; every multiple if not given.

    Returns:
        A box that holds the given one. Where it would leave the grid it is shifted, and where no such side fits the
        whole side is taken.
    """
    row_start, row_stop = _grow(box.row_start, box.row_stop, rows, multiple, sizes)
    column_start, column_stop = _grow(box.column_start, box.column_stop, columns, multiple, sizes)
    return Box(row_start, row_stop, column_start, column_stop)


def _grow(start: int, stop: int, limit: int, multiple: int, sizes: tuple[int, ...] | None) -> tuple[int, int]:
    side = -(-(stop - start) // multiple) * multiple
    if sizes is not None:
        side = min((size for size in sizes if size >= side), default=limit)
    if side >= limit:
        return 0, limit
    start = min(max(0, start - (side - (stop - start)) // 2), limit - side)
    return start, start + side


def _measure_background(pixels: Pixels) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Level and tolerance per channel: float32, (channels,); an infinite tolerance where a channel shows nothing."""
    rows, columns, channels = pixels.shape[1:]
    width = max(1, round(BORDER_SHARE * min(rows, columns)))
    edges = (pixels[:, :width], pixels[:, -width:], pixels[:, :, :width], pixels[:, :, -width:])
    border = np.concatenate([edge.reshape(-1, channels)[::7] for edge in edges]).astype(np.float32)
    level = np.median(border, axis=0)
    noise = 1.4826 * np.median(np.abs(border - level), axis=0)
    sample = pixels[:, ::4, ::4].reshape(-1, channels).astype(np.float32)
    contrast = np.percentile(np.abs(sample - level), 99.5, axis=0)
    tolerance = np.maximum(CONTRAST_SHARE * contrast, NOISE_FACTOR * noise)
    tolerance = np.where((contrast > 0) & (tolerance < contrast), tolerance, np.inf)
    return level.astype(np.float32), tolerance.astype(np.float32)


def _differs(
    plane: Pixels, step: int, level: npt.NDArray[np.float32], tolerance: npt.NDArray[np.float32]
) -> npt.NDArray[np.uint8]:
    """Where any channel of a slice leaves the background, uint8, on a grid `step` times coarser."""
    size = (-(-plane.shape[1] // step), -(-plane.shape[0] // step))
    coarse = map_channels(plane, lambda group: cv2.resize(group, size, interpolation=cv2.INTER_AREA))
    found = np.zeros(coarse.shape[:2], np.uint8)
    for channel in np.flatnonzero(np.isfinite(tolerance)):
        low, high = level[channel] - tolerance[channel], level[channel] + tolerance[channel]
        values = np.ascontiguousarray(coarse[:, :, channel]).astype(np.float32)
        np.maximum(found, (values < low) | (values > high), out=found)
    return found


def _extent(profile: npt.NDArray[np.uint8], step: int, margin: int, limit: int) -> tuple[int, int]:
    found = np.flatnonzero(profile)
    return max(0, int(found[0]) * step - margin), min(limit, (int(found[-1]) + 1) * step + margin)
