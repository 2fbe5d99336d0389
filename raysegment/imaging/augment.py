"""Random changes of training slices: one composed warp, then brightness, contrast and noise."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from statistics import NormalDist

import cv2
import numpy as np
import numpy.typing as npt

from raysegment.imaging.geometry import Box, map_channels
from raysegment.imaging.intensity import Intensity, look_up, normalize
from raysegment.scan import LabelMap, Pixels

Matrix = npt.NDArray[np.float64]

IDENTITY = np.eye(2, 3)
LINEAR = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
NEAREST = cv2.INTER_NEAREST | cv2.WARP_INVERSE_MAP


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """The largest random changes; 0 and False leave a slice as it is."""

    rotation: float = 15.0
    """Degrees, to either side."""
    shift: float = 0.05
    """Share of the side."""
    zoom: float = 0.1
    """Share, larger or smaller."""
    shear: float = 0.1
    """Share of the side."""
    flip: bool = True
    """Flip half of the slices left to right."""
    brightness: float = 0.1
    """Added to the normalized intensity, per channel."""
    contrast: float = 0.1
    """Share by which the normalized intensity is stretched, per channel."""
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
) -> tuple[npt.NDArray[np.float32], LabelMap]:
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
    matrix = _draw_warp(random, choices, patch)
    num_channels = len(intensity.offset)
    gain = np.float32(1) + _draw(random, choices.contrast, num_channels)
    bias = _draw(random, choices.brightness, num_channels)
    deviation = float(random.random()) * choices.noise
    varied = normalize(_warp(pixels, matrix, patch, intensity.background), _vary(intensity, gain, bias))
    if deviation > 0:
        varied += _draw_noise(random, varied.shape, deviation)
    return varied, _warp_reference(reference, matrix, patch)


def _draw(random: np.random.Generator, largest: float, count: int) -> npt.NDArray[np.float32]:
    return (random.uniform(-1, 1, count) * largest).astype(np.float32)


def _draw_warp(random: np.random.Generator, choices: Augmentation, patch: Box) -> Matrix:
    """A 2x3 matrix from the patch's coordinates to those of the slice, about the patch's centre."""
    angle, shift_x, shift_y, zoom, shear = random.uniform(-1, 1, 5)
    flip = choices.flip and random.random() < 0.5
    turn = np.deg2rad(choices.rotation) * angle
    cosine, sine = np.cos(turn), np.sin(turn)
    linear = np.array([[cosine, -sine], [sine, cosine]])
    linear = linear @ np.array([[1.0, choices.shear * shear], [0.0, 1.0]]) / (1 + choices.zoom * zoom)
    if flip:
        linear[:, 0] *= -1
    rows, columns = patch.rows, patch.columns
    centre = np.array([(columns - 1) / 2, (rows - 1) / 2])
    moved = np.array([shift_x * columns, shift_y * rows]) * choices.shift
    start = np.array([patch.column_start, patch.row_start], np.float64)
    return np.column_stack([linear, centre + moved - linear @ centre + start])


def _warp(pixels: Pixels, matrix: Matrix, patch: Box, background: npt.NDArray[np.float32]) -> Pixels:
    """One linear warp of a slice (rows, columns, channels) into a patch; what comes from outside it is background."""
    if np.array_equal(matrix, IDENTITY):
        return pixels[: patch.rows, : patch.columns]
    size = (patch.columns, patch.rows)
    outside = np.tile(background.astype(np.float64), pixels.shape[2] // len(background))

    def warp_group(group: Pixels, channels: slice) -> Pixels:
        return cv2.warpAffine(group, matrix, size, flags=LINEAR, borderValue=tuple(outside[channels]))

    return map_channels(pixels, warp_group)


def _warp_reference(reference: LabelMap, matrix: Matrix, patch: Box) -> LabelMap:
    plain = reference.view(np.uint8) if reference.dtype == np.bool_ else reference
    if np.array_equal(matrix, IDENTITY):
        return plain[: patch.rows, : patch.columns]
    return np.asarray(cv2.warpAffine(plain, matrix, (patch.columns, patch.rows), flags=NEAREST), plain.dtype)


def _vary(intensity: Intensity, gain: npt.NDArray[np.float32], bias: npt.NDArray[np.float32]) -> Intensity:
    """The normalization followed by `x * gain + bias`, as one normalization; a flat channel stays as it is."""
    scale = intensity.scale * gain
    shift = np.divide(bias, scale, out=np.zeros_like(bias), where=scale != 0)
    return replace(intensity, offset=intensity.offset - shift, scale=scale)


def _draw_noise(random: np.random.Generator, shape: tuple[int, ...], deviation: float) -> npt.NDArray[np.float32]:
    """Normal noise from 256 quantiles: a random byte per value and a table, five times as fast as exact draws."""
    drawn = np.frombuffer(random.bytes(int(np.prod(shape))), np.uint8)
    return look_up(drawn.reshape(shape[0], -1, 1), _normal_quantiles()[:, None] * np.float32(deviation)).reshape(shape)


@cache
def _normal_quantiles() -> npt.NDArray[np.float32]:
    """256 quantiles of the standard normal distribution, scaled to standard deviation 1."""
    normal = NormalDist()
    quantiles = np.array([normal.inv_cdf((index + 0.5) / 256) for index in range(256)])
    return (quantiles / quantiles.std()).astype(np.float32)
