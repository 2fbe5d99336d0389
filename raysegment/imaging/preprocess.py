"""From the pixels of a scan to what the network sees; training and inference share these functions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from raysegment.errors import ChannelMismatchError, NonFinitePixelsError
from raysegment.imaging.foreground import foreground_box, round_box
from raysegment.imaging.geometry import (
    Box,
    Geometry,
    fit_geometry,
    resize_reference,
    resize_slices,
    restore_grid,
)
from raysegment.options import Normalization, Preprocessing
from raysegment.scan import Pixels

__all__ = [
    "Box",
    "Geometry",
    "Intensity",
    "PreparedScan",
    "check_channels",
    "fit_geometry",
    "foreground_box",
    "measure_intensity",
    "normalize",
    "prepare_scan",
    "resize_reference",
    "resize_slices",
    "restore_grid",
    "round_box",
    "select_channels",
    "stack_context",
]

LOW_PERCENTILE, HIGH_PERCENTILE = 0.5, 99.5
FLAT_SHARE = 1e-6
"""A channel whose spread is below this share of its largest value is flat; it becomes 0."""

PerChannel = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Intensity:
    """Normalization of one scan: (clip(x, low, high) - offset) * scale; each float32, (channels,)."""

    offset: PerChannel
    scale: PerChannel
    low: PerChannel
    high: PerChannel

    def tile(self, num_channels: int) -> Intensity:
        """The same for stacked context slices, whose channels repeat.

        Raises:
            ChannelMismatchError: `num_channels` is no multiple of the channels measured.
        """
        times, rest = divmod(num_channels, len(self.offset))
        if rest or not times:
            raise ChannelMismatchError(
                f"pixels have {num_channels} channels; the normalization was measured on {len(self.offset)}."
            )
        return Intensity(*(np.tile(values, times) for values in (self.offset, self.scale, self.low, self.high)))


@dataclass(frozen=True, eq=False)
class PreparedScan:
    """A scan on the network's grid.

    Attributes:
        pixels: (slices, image_size, image_size, channels), type as stored, not yet normalized.
        intensity: Normalization measured on the whole scan.
        geometry: The way back to the scan's own grid.
    """

    pixels: Pixels
    intensity: Intensity
    geometry: Geometry


def prepare_scan(pixels: Pixels, preprocessing: Preprocessing) -> PreparedScan:
    """Choose channels, measure the normalization on the whole scan, and bring the slices to the network's grid.

    Args:
        pixels: (slices, rows, columns, channels), as stored in the file.
        preprocessing: The bundle's or the training's choices.

    Raises:
        ChannelMismatchError: A chosen channel does not exist.
        NonFinitePixelsError: The pixels hold NaN or infinity.
    """
    chosen = select_channels(pixels, preprocessing.channels)
    intensity = measure_intensity(chosen, preprocessing.normalization)
    box = foreground_box(chosen) if preprocessing.crop == "foreground" else None
    geometry = fit_geometry(pixels.shape[1], pixels.shape[2], preprocessing.image_size, box)
    return PreparedScan(resize_slices(chosen, geometry), intensity, geometry)


def select_channels(pixels: Pixels, channels: tuple[int, ...] | None) -> Pixels:
    """The chosen channels in the chosen order; the array itself where these are all.

    Raises:
        ChannelMismatchError: A chosen channel does not exist.
    """
    available = pixels.shape[-1]
    if channels is None or channels == tuple(range(available)):
        return pixels
    wrong = [channel for channel in channels if not 0 <= channel < available]
    if wrong or not channels:
        raise ChannelMismatchError(
            f"channels {','.join(map(str, channels))} were asked for, the scan has {available} (0 to {available - 1}). "
            "Choose others with --channels."
        )
    return np.ascontiguousarray(pixels[..., list(channels)])


def check_channels(pixels: Pixels, num_channels: int) -> None:
    """Refuse a scan that has not as many channels as the model.

    Raises:
        ChannelMismatchError: Names both numbers.
    """
    if pixels.shape[-1] != num_channels:
        raise ChannelMismatchError(f"the scan has {pixels.shape[-1]} channels, the model expects {num_channels}.")


def measure_intensity(pixels: Pixels, normalization: Normalization) -> Intensity:
    """Measure a normalization on a whole scan, per channel.

    `scale` divides integers by their type's maximum, and floats by the largest magnitude where that is above 1;
    `minmax` maps the extremes to 0 and 1; `zscore` gives mean 0 and standard deviation 1; `percentile` clips to the
    percentiles 0.5 and 99.5 and maps them to 0 and 1. A flat channel becomes 0.

    Args:
        pixels: (slices, rows, columns, channels), raw.
        normalization: One of the four words.

    Raises:
        NonFinitePixelsError: The pixels hold NaN or infinity.
    """
    _check_finite(pixels)
    channels = pixels.shape[-1]
    low, high = np.full(channels, -np.inf), np.full(channels, np.inf)
    if normalization == "scale":
        offset, span = np.zeros(channels), _full_range(pixels)
        scale = 1.0 / span
    elif normalization == "zscore":
        offset, span = _mean_and_deviation(pixels)
        scale = _inverse(span, np.abs(offset))
    else:
        percentiles = (0.0, 100.0) if normalization == "minmax" else (LOW_PERCENTILE, HIGH_PERCENTILE)
        low, high = _percentiles(pixels, percentiles)
        offset, scale = low, _inverse(high - low, np.maximum(np.abs(low), np.abs(high)))
    return Intensity(*(np.asarray(values, np.float32) for values in (offset, scale, low, high)))


def normalize(pixels: Pixels, intensity: Intensity) -> npt.NDArray[np.float32]:
    """Apply a normalization.

    Args:
        pixels: (…, channels), raw; channels may be those of stacked context slices.
        intensity: From `measure_intensity`.

    Returns:
        float32, same shape.
    """
    intensity = intensity.tile(pixels.shape[-1])
    if pixels.dtype == np.uint8 and pixels.ndim >= 3 and pixels.shape[-1] <= 4:
        table = _apply(np.arange(256, dtype=np.float32)[:, None], intensity)
        return look_up(pixels, table)
    return _apply(pixels, intensity)


def look_up(pixels: Pixels, table: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Replace each value by its entry in a table: pixels uint8 (…, rows, channels), table (256, channels)."""
    image = np.ascontiguousarray(pixels).reshape(-1, *pixels.shape[-2:])
    found = np.asarray(cv2.LUT(image, np.ascontiguousarray(table)[None]))
    return found.reshape(pixels.shape)


def stack_context(pixels: Pixels, context_slices: int) -> Pixels:
    """Give each slice its neighbours as more channels, from the slice before to the slice after.

    Args:
        pixels: (slices, rows, columns, channels).
        context_slices: Neighbours on each side; the first and last slice stand in for those that do not exist.

    Returns:
        (slices, rows, columns, channels * (2 * context_slices + 1)).
    """
    if context_slices == 0:
        return pixels
    last = len(pixels) - 1
    return np.concatenate(
        [
            pixels[np.clip(np.arange(len(pixels)) + shift, 0, last)]
            for shift in range(-context_slices, context_slices + 1)
        ],
        axis=3,
    )


def _apply(pixels: npt.NDArray[np.generic], intensity: Intensity) -> npt.NDArray[np.float32]:
    values = pixels.astype(np.float32)
    if np.isfinite(intensity.low).any() or np.isfinite(intensity.high).any():
        values = np.clip(values, intensity.low, intensity.high)
    values = values - intensity.offset
    values *= intensity.scale
    return values


def _check_finite(pixels: Pixels) -> None:
    if pixels.dtype.kind != "f":
        return
    bad = pixels.size - int(np.count_nonzero(np.isfinite(pixels)))
    if bad:
        raise NonFinitePixelsError(f"{bad} of {pixels.size} values are NaN or infinite; export the scan anew.")


def _full_range(pixels: Pixels) -> npt.NDArray[np.float64]:
    if np.issubdtype(pixels.dtype, np.integer):
        return np.full(pixels.shape[-1], float(np.iinfo(pixels.dtype.name).max))
    axes = tuple(range(pixels.ndim - 1))
    largest = np.maximum(np.abs(pixels.min(axis=axes)), np.abs(pixels.max(axis=axes)))
    return np.maximum(largest, 1).astype(np.float64)


def _inverse(span: npt.NDArray[np.float64], size: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """1 / span, or 0 where a channel is flat."""
    flat = span <= FLAT_SHARE * size
    return np.where(flat, 0.0, 1.0 / np.where(flat, 1.0, span))


def _mean_and_deviation(pixels: Pixels) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    if pixels.dtype == np.uint8:
        counts = _count_values(pixels)
        values = np.arange(256)
        mean = counts @ values / counts.sum(axis=1)
        square = np.stack([(values - centre) ** 2 for centre in mean])
        return mean, np.sqrt((counts * square).sum(axis=1) / counts.sum(axis=1))
    flat = pixels.reshape(len(pixels), -1, pixels.shape[-1])
    means = np.stack([plane.mean(axis=0, dtype=np.float64) for plane in flat])
    spreads = np.stack([plane.var(axis=0, dtype=np.float64) for plane in flat])
    return means.mean(axis=0), np.sqrt(spreads.mean(axis=0) + means.var(axis=0))


def _percentiles(
    pixels: Pixels, percentiles: tuple[float, float]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Two percentiles per channel, linear between ranks as `numpy.percentile`."""
    channels = range(pixels.shape[-1])
    if pixels.dtype == np.uint8:
        found = np.stack([_percentiles_of_counts(counts, percentiles) for counts in _count_values(pixels)])
    else:
        flat: npt.NDArray[Any] = pixels.reshape(-1, pixels.shape[-1])
        found = np.stack([np.percentile(flat[:, channel], percentiles) for channel in channels])
    return found[:, 0].astype(np.float64), found[:, 1].astype(np.float64)


def _count_values(pixels: Pixels) -> npt.NDArray[np.int64]:
    """How often each uint8 value occurs, (channels, 256)."""
    image = np.ascontiguousarray(pixels)
    counts = np.zeros((pixels.shape[-1], 256), np.int64)
    for plane in image:
        for channel in range(pixels.shape[-1]):
            counts[channel] += cv2.calcHist([plane], [channel], None, [256], [0, 256]).ravel().astype(np.int64)
    return counts


def _percentiles_of_counts(counts: npt.NDArray[np.int64], percentiles: tuple[float, float]) -> npt.NDArray[np.float64]:
    ranks = np.asarray(percentiles) / 100 * (counts.sum() - 1)
    below = np.floor(ranks)
    up_to = np.cumsum(counts)
    low = np.searchsorted(up_to, below, side="right")
    high = np.searchsorted(up_to, np.ceil(ranks), side="right")
    return np.asarray(low + (ranks - below) * (high - low), np.float64)
