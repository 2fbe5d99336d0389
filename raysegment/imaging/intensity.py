"""Intensity normalization: measured on a whole scan, applied to its slices."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, fields
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from raysegment.errors import ChannelMismatchError, NonFinitePixelsError
from raysegment.imaging.foreground import background_level, foreground_of
from raysegment.imaging.geometry import DTYPES_OF_OPENCV, MAX_CHANNELS_AT_ONCE
from raysegment.options import Normalization, Rules
from raysegment.scan import Pixels

LOW_PERCENTILE, HIGH_PERCENTILE = 0.5, 99.5
FLAT_SHARE = 1e-6
"""A channel whose spread is below this share of its largest value is flat; it becomes 0."""

MAX_MAGNITUDE = float(np.sqrt(np.finfo(np.float32).max))
"""1.8e19. The square of a larger number is infinite in the network's arithmetic; so large are only fill values."""

ONE_BYTE = 255.0
"""Whole numbers are scaled by this at least, so that one byte or two make no difference."""

PerChannel = npt.NDArray[np.float32]
Values = npt.NDArray[np.float32]
PerChannelExact = npt.NDArray[np.float64]
Inside = list[npt.NDArray[np.uint8]]
"""Of each slice what counts, (rows, columns), 1 or 0."""


@dataclass(frozen=True, eq=False)
class Intensity:
    """Normalization of one scan: (clip(x, low, high) - offset) * scale; each float32, (channels,).

    `background` is the raw level of what lies around the body, and so of what is put around a slice.
    """

    offset: PerChannel
    scale: PerChannel
    low: PerChannel
    high: PerChannel
    background: PerChannel

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
        return Intensity(*(np.tile(getattr(self, item.name), times) for item in fields(self)))


def measure_intensity(
    pixels: Pixels,
    normalization: Normalization,
    rules: Rules = "0.2",
    clip_percentiles: tuple[float, ...] | None = None,
) -> Intensity:
    """Measure a normalization on a whole scan, per channel.

    `scale` divides integers by the scan's largest magnitude, over all channels, or 255 where that is more, so that 12
    bits stored in 16 fill the range as 8 bits in 8 do; and floats by the largest magnitude where that is above 1;
    `minmax` maps the extremes to 0 and 1; `zscore` gives mean 0 and standard deviation 1; `zscore_foreground` gives
    these to what is not background alone, such as the brain; `percentile` clips to the percentiles 0.5 and 99.5 and
    maps them to 0 and 1. A flat channel becomes 0.

    Args:
        pixels: (slices, rows, columns, channels), raw.
        normalization: One of the words.
        rules: Of which version; with `0.1` integers are divided by their type's largest number, and `background` is 0.
        clip_percentiles: For `zscore` and `zscore_foreground`: clip at these two percentiles of what they measure, and
            measure what is then there.

    Raises:
        NonFinitePixelsError: The pixels hold NaN, infinity or numbers beyond `MAX_MAGNITUDE`, or are not finite once
            normalized.
    """
    _check_finite(pixels)
    channels = pixels.shape[-1]
    low, high = np.full(channels, -np.inf), np.full(channels, np.inf)
    if normalization == "scale":
        offset, span = np.zeros(channels), _full_range(pixels, rules)
        scale = 1.0 / span
    elif normalization in ("zscore", "zscore_foreground"):
        inside = _find_inside(pixels) if normalization == "zscore_foreground" else None
        if clip_percentiles is not None:
            low, high = _percentiles(pixels, clip_percentiles, inside)
        clipped = pixels if clip_percentiles is None else _clip_planes(pixels, low, high)
        offset, span = _mean_and_deviation(clipped) if inside is None else _mean_and_deviation_inside(clipped, inside)
        scale = _inverse(span, np.abs(offset))
    else:
        low, high = _extremes(pixels) if normalization == "minmax" else _percentiles(pixels)
        offset, scale = low, _inverse(high - low, np.maximum(np.abs(low), np.abs(high)))
    with np.errstate(over="ignore"):
        background = background_level(pixels) if rules != "0.1" else np.zeros(channels)
        measured = (offset, scale, low, high, background)
        intensity = Intensity(*(np.asarray(values, np.float32) for values in measured))
    _check_normalized(pixels, intensity)
    return intensity


def normalize(pixels: Pixels, intensity: Intensity, bend: Callable[[Values], Values] | None = None) -> Values:
    """Apply a normalization.

    Args:
        pixels: (…, channels), raw; channels may be those of stacked context slices.
        intensity: From `measure_intensity`.
        bend: What becomes of normalized values (…, channels) then, each by itself; of one byte there are only 256.

    Returns:
        float32, same shape.
    """
    intensity = intensity.tile(pixels.shape[-1])
    if pixels.dtype == np.uint8 and pixels.ndim >= 3:
        table = _apply(np.repeat(np.arange(256.0)[:, None], pixels.shape[-1], axis=1), intensity)
        return look_up(pixels, bend(table) if bend else table)
    applied = _apply(pixels, intensity)
    return bend(applied) if bend else applied


def look_up(pixels: Pixels, table: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Replace each value by its entry in a table: pixels uint8 (…, rows, channels), table (256, channels)."""
    image = np.ascontiguousarray(pixels).reshape(-1, *pixels.shape[-2:])
    found = np.asarray(cv2.LUT(image, np.ascontiguousarray(table)[None]))
    return found.reshape(pixels.shape)


def _apply(pixels: npt.NDArray[np.generic], intensity: Intensity) -> npt.NDArray[np.float32]:
    """Normalize any shape; rows are flattened first, since NumPy is slow on short last axes."""
    repeats = pixels.shape[-2]
    offset, scale, low, high = (
        np.tile(values, repeats) for values in (intensity.offset, intensity.scale, intensity.low, intensity.high)
    )
    values = pixels.reshape(-1, len(offset)).astype(np.float32)
    if np.isfinite(low).any() or np.isfinite(high).any():
        np.clip(values, low, high, out=values)
    values -= offset
    values *= scale
    return values.reshape(pixels.shape)


def _check_finite(pixels: Pixels) -> None:
    """Refuse numbers that single precision cannot calculate with; NaN passes through minima and maxima."""
    if pixels.dtype.kind != "f" or not pixels.size:
        return
    if all(np.abs(extreme, dtype=np.float64) <= MAX_MAGNITUDE for extreme in (pixels.min(), pixels.max())):
        return
    good = sum(np.count_nonzero(np.abs(plane.astype(np.float64)) <= MAX_MAGNITUDE) for plane in pixels)
    bad = pixels.size - int(good)
    raise NonFinitePixelsError(
        f"{bad} of {pixels.size} values are NaN, infinite or beyond ±{MAX_MAGNITUDE:.1e}, which single precision "
        "cannot square; export the scan anew, without fill values."
    )


def _check_normalized(pixels: Pixels, intensity: Intensity) -> None:
    """Refuse floats whose spread is so small that normalized they are infinite; the extremes stand for all."""
    if pixels.dtype.kind != "f" or not pixels.size:
        return
    with np.errstate(all="ignore"):
        found = _apply(np.stack(_extremes(pixels)), intensity)
    if not np.isfinite(found).all():
        raise NonFinitePixelsError(
            "normalized to single precision the values are infinite, because they hardly differ; multiply the scan's "
            "values by a constant and export it anew."
        )


def _full_range(pixels: Pixels, rules: Rules) -> PerChannelExact:
    low, high = _extremes(pixels)
    magnitude = np.maximum(np.abs(low), np.abs(high))
    if not np.issubdtype(pixels.dtype, np.integer):
        return np.maximum(magnitude, 1)
    if rules == "0.1":
        return np.full(pixels.shape[-1], float(np.iinfo(pixels.dtype.name).max))
    return np.full(pixels.shape[-1], max(ONE_BYTE, float(magnitude.max(initial=0))))


def _extremes(pixels: Pixels) -> tuple[PerChannelExact, PerChannelExact]:
    rows = pixels.reshape(-1, pixels.shape[-2] * pixels.shape[-1])
    low, high = (found.reshape(pixels.shape[-2:]) for found in (rows.min(axis=0), rows.max(axis=0)))
    return low.min(axis=0).astype(np.float64), high.max(axis=0).astype(np.float64)


def _inverse(span: PerChannelExact, size: PerChannelExact) -> PerChannelExact:
    """1 / span, or 0 where a channel is flat."""
    flat = span <= FLAT_SHARE * size
    return np.where(flat, 0.0, 1.0 / np.where(flat, 1.0, span))


def _find_inside(pixels: Pixels) -> Inside | None:
    """Where each slice is foreground, uint8; None where there is nothing but background."""
    inside = [plane.view(np.uint8) for plane in foreground_of(pixels)]
    return inside if any(plane.any() for plane in inside) else None


def _clip_planes(pixels: Pixels, low: PerChannelExact, high: PerChannelExact) -> Iterator[Pixels]:
    """Each slice with its values brought between two levels, in double precision."""
    return (np.clip(plane.astype(np.float64), low, high) for plane in pixels)


def _mean_and_deviation(planes: Iterable[Pixels]) -> tuple[PerChannelExact, PerChannelExact]:
    measured = np.stack([_measure_plane(plane) for plane in planes])
    means, deviations = measured[:, 0], measured[:, 1]
    return means.mean(axis=0), np.sqrt((deviations**2).mean(axis=0) + means.var(axis=0))


def _mean_and_deviation_inside(planes: Iterable[Pixels], inside: Inside) -> tuple[PerChannelExact, PerChannelExact]:
    """Of a part of each slice."""
    counts, measured = [], []
    for plane, part in zip(planes, inside, strict=True):
        if part.any():
            counts.append(np.count_nonzero(part))
            measured.append(_measure_plane(plane, part))
    shares, found = np.asarray(counts, np.float64) / sum(counts), np.stack(measured)
    mean = shares @ found[:, 0]
    return mean, np.sqrt(shares @ (found[:, 1] ** 2 + (found[:, 0] - mean) ** 2))


def _measure_plane(plane: Pixels, inside: npt.NDArray[np.uint8] | None = None) -> PerChannelExact:
    """Mean and standard deviation of a slice or a part of it, (2, channels), four channels at a time as OpenCV can."""
    known = plane if plane.dtype in DTYPES_OF_OPENCV else plane.astype(np.float64)
    starts = range(0, known.shape[-1], MAX_CHANNELS_AT_ONCE)
    groups = [
        cv2.meanStdDev(np.ascontiguousarray(known[..., at : at + MAX_CHANNELS_AT_ONCE]), mask=inside) for at in starts
    ]
    return np.concatenate([np.stack(group)[:, :, 0] for group in groups], axis=1)


def _percentiles(
    pixels: Pixels,
    percentiles: tuple[float, ...] = (LOW_PERCENTILE, HIGH_PERCENTILE),
    inside: Inside | None = None,
) -> tuple[PerChannelExact, PerChannelExact]:
    """Two percentiles per channel of a part of each slice, or of all, linear between ranks as `numpy.percentile`."""
    if pixels.dtype == np.uint8:
        found = np.stack([_percentiles_of_counts(counts, percentiles) for counts in _count_values(pixels, inside)])
    else:
        flat: npt.NDArray[Any] = pixels.reshape(-1, pixels.shape[-1])
        if inside is not None:
            flat = np.concatenate([plane[part != 0] for plane, part in zip(pixels, inside, strict=True)])
        found = np.stack([np.percentile(flat[:, channel], percentiles) for channel in range(flat.shape[-1])])
    return found[:, 0].astype(np.float64), found[:, 1].astype(np.float64)


def _count_values(pixels: Pixels, inside: Inside | None = None) -> npt.NDArray[np.int64]:
    """How often each uint8 value occurs, (channels, 256), in a part of each slice or in all."""
    image = np.ascontiguousarray(pixels)
    counts = np.zeros((pixels.shape[-1], 256), np.int64)
    for number, plane in enumerate(image):
        part = None if inside is None else inside[number]
        for channel in range(pixels.shape[-1]):
            counts[channel] += cv2.calcHist([plane], [channel], part, [256], [0, 256]).ravel().astype(np.int64)
    return counts


def _percentiles_of_counts(counts: npt.NDArray[np.int64], percentiles: tuple[float, ...]) -> PerChannelExact:
    ranks = np.asarray(percentiles) / 100 * (counts.sum() - 1)
    below = np.floor(ranks)
    up_to = np.cumsum(counts)
    low = np.searchsorted(up_to, below, side="right")
    high = np.searchsorted(up_to, np.ceil(ranks), side="right")
    return np.asarray(low + (ranks - below) * (high - low), np.float64)
