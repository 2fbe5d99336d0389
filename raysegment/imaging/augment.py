"""Random changes of training slices: one warp, then resolution, gamma, brightness, contrast, shading and noise."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from statistics import NormalDist

import cv2
import numpy as np
import numpy.typing as npt

from raysegment.imaging.gamma import measure_gamma, sample_values
from raysegment.imaging.geometry import Box, map_channels
from raysegment.imaging.intensity import Intensity, look_up, normalize
from raysegment.imaging.smooth_field import draw_smooth_field
from raysegment.imaging.warp import WarpChoices, draw_warp
from raysegment.scan import LabelMap, Pixels

Values = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Augmentation(WarpChoices):
    """The largest random changes; 0 and False leave a slice as it is."""

    low_resolution: float = 0.0
    """Share of slices that are made coarser and brought back to their grid."""
    low_resolution_factor: float = 2.0
    """By how much, at most."""
    gamma: float = 0.0
    """Share by which the exponent of the foreground's intensities grows, or shrinks as a ratio, per channel."""
    brightness: float = 0.1
    """Added to the normalized intensity, per channel."""
    contrast: float = 0.1
    """Share by which the normalized intensity is stretched, per channel."""
    bias_field: float = 0.0
    """Share by which a smooth field brightens or darkens what is not background."""
    noise: float = 0.05
    """Largest standard deviation of noise, normalized intensity."""


def augment_slice(
    pixels: Pixels,
    reference: LabelMap,
    intensity: Intensity,
    choices: Augmentation,
    *,
    seed: int,
    epoch: int,
    scan_index: int,
    slice_index: int,
    occurrence: int = 0,
    patch: Box | None = None,
) -> tuple[Values, LabelMap]:
    """Warp, normalize and vary one slice; the same numbers always give the same result.

    Args:
        pixels: (rows, columns, channels), raw; with context slices their channels follow one another.
        reference: Label map, (rows, columns); bool or uint8 where there is one label.
        intensity: Normalization of the scan, for its own channels.
        choices: The largest changes.
        seed: Of the training.
        epoch: Counted from 0.
        scan_index: Position of the scan among those that are trained on.
        slice_index: Position of the slice in the scan.
        occurrence: How often this slice came before in the epoch.
        patch: Part of the slice that is seen; all of it without one. What a warp brings in from around it is there.

    Returns:
        Normalized pixels of the patch, float32, and the label map, warped alike by nearest neighbour.
    """
    bits = np.random.SFC64(np.random.SeedSequence((seed, epoch, scan_index, slice_index, occurrence)))
    random = np.random.Generator(bits)
    patch = patch or Box(0, reference.shape[0], 0, reference.shape[1])
    warp = draw_warp(random, choices, patch)
    num_channels = len(intensity.offset)
    gain = np.float32(1) + _draw(random, choices.contrast, num_channels)
    bias = _draw(random, choices.brightness, num_channels)
    deviation = float(random.random()) * choices.noise
    raw = _coarsen(random, warp.warp_pixels(pixels, intensity.background), choices)
    varied = _shade(random, raw, _vary(intensity, gain, bias), choices)
    if deviation > 0:
        varied += _draw_noise(random, varied.shape, deviation)
    return varied, warp.warp_reference(reference)


def _draw(random: np.random.Generator, largest: float, count: int) -> Values:
    return (random.uniform(-1, 1, count) * largest).astype(np.float32)


def _coarsen(random: np.random.Generator, pixels: Pixels, choices: Augmentation) -> Pixels:
    """Bring some slices to a coarser grid and back, all neighbours alike; the others stay."""
    if not choices.low_resolution or random.random() >= choices.low_resolution:
        return pixels
    rows, columns = pixels.shape[:2]
    factor = random.uniform(1, choices.low_resolution_factor)
    coarse = (max(1, round(columns / factor)), max(1, round(rows / factor)))

    def coarsen_group(group: Pixels, _: slice) -> Pixels:
        small = cv2.resize(group, coarse, interpolation=cv2.INTER_AREA)
        return cv2.resize(small, (columns, rows), interpolation=cv2.INTER_LINEAR)

    return map_channels(pixels, coarsen_group)


def _shade(random: np.random.Generator, raw: Pixels, intensity: Intensity, choices: Augmentation) -> Values:
    """Normalize a slice, bend its intensities, and let a smooth field brighten and darken what is not background."""
    bend = _draw_gamma(random, raw, intensity, choices) if choices.gamma else None
    shaded = normalize(raw, intensity, bend)
    if choices.bias_field:
        rows, columns, channels = shaded.shape
        level = np.tile(
            normalize(intensity.background[None, None], intensity, bend).ravel(), channels // len(intensity.background)
        )
        field = draw_smooth_field(random, rows, columns, repeats=channels)
        flat = shaded.reshape(rows, columns * channels)
        flat += (flat - np.tile(level, columns)) * (field * np.float32(choices.bias_field))
    return shaded


def _draw_gamma(
    random: np.random.Generator, raw: Pixels, intensity: Intensity, choices: Augmentation
) -> Callable[[Values], Values]:
    """A curve for the foreground's intensities, the same for a slice and its neighbours."""
    num_channels = len(intensity.offset)
    exponent = (1 + choices.gamma) ** random.uniform(-1, 1, num_channels).astype(np.float32)
    sample = normalize(sample_values(raw, num_channels)[None], intensity)[0]
    level = normalize(intensity.background[None, None], intensity)[0, 0]
    return measure_gamma(sample, level, exponent).apply


def _vary(intensity: Intensity, gain: Values, bias: Values) -> Intensity:
    """The normalization followed by `x * gain + bias`, as one normalization; a flat channel stays as it is."""
    scale = intensity.scale * gain
    shift = np.divide(bias, scale, out=np.zeros_like(bias), where=scale != 0)
    return replace(intensity, offset=intensity.offset - shift, scale=scale)


def _draw_noise(random: np.random.Generator, shape: tuple[int, ...], deviation: float) -> Values:
    """Normal noise from 256 quantiles: a random byte per value and a table, five times as fast as exact draws."""
    drawn = np.frombuffer(random.bytes(int(np.prod(shape))), np.uint8)
    return look_up(drawn.reshape(shape[0], -1, 1), _normal_quantiles()[:, None] * np.float32(deviation)).reshape(shape)


@cache
def _normal_quantiles() -> Values:
    """256 quantiles of the standard normal distribution, scaled to standard deviation 1."""
    normal = NormalDist()
    quantiles = np.array([normal.inv_cdf((index + 0.5) / 256) for index in range(256)])
    return (quantiles / quantiles.std()).astype(np.float32)
