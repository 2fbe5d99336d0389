"""Smooth random fields: cubic B-splines through a few random control points, for elastic warps and shading."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt

Field = npt.NDArray[np.float32]

INTERVALS = 3
"""Spline pieces along a side: a field rises and falls about once over a slice."""

CONTROLS = INTERVALS + 3

STEEPEST = 2 * INTERVALS
"""The most that a field changes over a whole side along one axis: control points differ by 2 at most, and the slope of
a cubic B-spline is an average of their differences."""


def draw_smooth_field(random: np.random.Generator, rows: int, columns: int, *, repeats: int = 1) -> Field:
    """One random field whose values lie within -1 and 1, because each is a weighted mean of such control points.

    Args:
        random: Where the control points come from, uniform from -1 to 1.
        rows: Of the field.
        columns: Of the field.
        repeats: How often each value follows itself along a row, such as once for each channel.

    Returns:
        float32, (rows, columns * repeats).
    """
    controls = random.uniform(-1, 1, (CONTROLS, CONTROLS)).astype(np.float32)
    return np.asarray(_weigh_controls(rows, 1) @ controls @ _weigh_controls(columns, repeats).T, np.float32)


@lru_cache(maxsize=64)
def _weigh_controls(size: int, repeats: int) -> Field:
    """Weights of the control points at each of `size` places along a side, (size * repeats, CONTROLS); rows add to 1.

    Uniform cubic B-splines; de Boor (1978), A Practical Guide to Splines.
    """
    place = np.linspace(0, INTERVALS, size)
    piece = np.minimum(place.astype(int), INTERVALS - 1)
    along = place - piece
    weights = np.zeros((size, CONTROLS))
    pieces = (
        (1 - along) ** 3,
        3 * along**3 - 6 * along**2 + 4,
        -3 * along**3 + 3 * along**2 + 3 * along + 1,
        along**3,
    )
    for number, weight in enumerate(pieces):
        weights[np.arange(size), piece + number] = weight / 6
    return np.repeat(weights, repeats, axis=0).astype(np.float32)
