"""From the pixels of a scan to what the network sees; training and inference share these functions."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from raysegment.errors import ChannelMismatchError
from raysegment.imaging.foreground import foreground_box
from raysegment.imaging.geometry import (
    Box,
    Geometry,
    fit_geometry,
    resize_reference,
    resize_slices,
    restore_grid,
)
from raysegment.imaging.intensity import Intensity, measure_intensity, normalize
from raysegment.options import Preprocessing
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
    "select_channels",
]


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
        NonFinitePixelsError: The pixels hold NaN, infinity or numbers that single precision cannot calculate with.
    """
    chosen = select_channels(pixels, preprocessing.channels)
    intensity = measure_intensity(chosen, preprocessing.normalization, preprocessing.rules)
    box = foreground_box(chosen) if preprocessing.crop == "foreground" else None
    geometry = fit_geometry(pixels.shape[1], pixels.shape[2], preprocessing.image_size, box)
    return PreparedScan(resize_slices(chosen, geometry, intensity.background), intensity, geometry)


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
