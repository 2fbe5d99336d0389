"""Slices as the network sees them: each with its neighbours as more channels."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from raysegment.scan import Pixels

Window = tuple[slice, slice]
"""Index of a part of (rows, columns)."""

WHOLE: Window = (slice(None), slice(None))


def view_slice(pixels: Pixels, position: int, context_slices: int, window: Window = WHOLE) -> Pixels:
    """One slice with its neighbours, from the slice before to the slice after.

    Args:
        pixels: (slices, rows, columns, channels).
        position: The slice in the middle.
        context_slices: Neighbours on each side; the first and last slice stand in for those that do not exist.
        window: Part of the slice that is seen.

    Returns:
        (rows, columns, channels * (2 * context_slices + 1)) of the window.
    """
    last = len(pixels) - 1
    reach = range(position - context_slices, position + context_slices + 1)
    planes = [pixels[min(max(0, neighbour), last)][window] for neighbour in reach]
    return planes[0] if context_slices == 0 else np.concatenate(planes, axis=-1)


def view_slices(pixels: Pixels, positions: Iterable[int], context_slices: int) -> Pixels:
    """Several slices with their neighbours, (positions, rows, columns, channels * (2 * context_slices + 1))."""
    return np.stack([view_slice(pixels, position, context_slices) for position in positions])
