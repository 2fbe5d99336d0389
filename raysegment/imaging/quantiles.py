"""How bright a scan is: quantiles of its foreground, by which scans of different nights are compared."""

from __future__ import annotations

import math

import numpy as np

from raysegment.imaging.foreground import foreground_of
from raysegment.scan import Pixels

QUANTILES = (0.05, 0.5, 0.95)
"""Of each channel; the outer ones are of little noise, and still far from the middle."""

MOST_SLICES, MOST_PIXELS, EVERY = 16, 2**16, 4
"""Slices, evenly spread, and pixels of each of them that are looked at, and of these every so-manyth that is sorted:
enough for quantiles to a few per mille."""


def measure_quantiles(pixels: Pixels) -> list[float]:
    """Quantiles of what is not background, of all pixels where nothing is.

    Args:
        pixels: (slices, rows, columns, channels), raw; at least one slice.

    Returns:
        `QUANTILES` of the first channel, then those of the second, and so on.
    """
    step = max(1, math.ceil(math.sqrt(pixels.shape[1] * pixels.shape[2] / MOST_PIXELS)))
    some = pixels[:: -(-len(pixels) // MOST_SLICES), ::step, ::step]
    inside = np.concatenate([plane[part] for plane, part in zip(some, foreground_of(some), strict=True)])
    values = inside[::EVERY] if len(inside) else some.reshape(-1, pixels.shape[-1])
    found = np.quantile(values.astype(np.float64), QUANTILES, axis=0)
    return [float(value) for value in found.T.ravel()]
