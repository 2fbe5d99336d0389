"""From the pixels of a scan to what the network sees; training and inference share these functions."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from raysegment.errors import ChannelMismatchError, OversizedScanError, UnknownSpacingError
from raysegment.imaging.foreground import foreground_box
from raysegment.imaging.geometry import (
    Box,
    Geometry,
    fit_geometry,
    fit_physical_geometry,
    resize_reference,
    resize_slices,
    restore_grid,
)
from raysegment.imaging.intensity import Intensity, measure_intensity, normalize
from raysegment.options import Preprocessing
from raysegment.scan import Pixels, Spacing

__all__ = [
    "Box",
    "Geometry",
    "Intensity",
    "PreparedScan",
    "check_channels",
    "fit_geometry",
    "fit_physical_geometry",
    "foreground_box",
    "measure_intensity",
    "normalize",
    "prepare_scan",
    "resize_reference",
    "resize_slices",
    "restore_grid",
    "select_channels",
]

LARGEST_SIDE = 8192
"""Pixels that a slice resampled to a physical size may have on either side."""

MOST_VALUES = 2**31
"""Values (slices x rows x columns x channels) that a scan resampled to a physical size may have."""


@dataclass(frozen=True, eq=False)
class PreparedScan:
    """A scan on the network's grid.

    Attributes:
        pixels: (slices, grid_rows, grid_columns, channels) of the geometry, type as stored, not yet normalized.
        intensity: Normalization measured on the whole scan.
        geometry: The way back to the scan's own grid.
    """

    pixels: Pixels
    intensity: Intensity
    geometry: Geometry


def prepare_scan(pixels: Pixels, preprocessing: Preprocessing, spacing_mm: Spacing | None = None) -> PreparedScan:
    """Choose channels, measure the normalization on the whole scan, and bring the slices to the network's grid.

    Args:
        pixels: (slices, rows, columns, channels), as stored in the file.
        preprocessing: The bundle's or the training's choices.
        spacing_mm: (slices, rows, columns), None where it is unknown; needed for `pixel_mm` alone.

    Raises:
        ChannelMismatchError: A chosen channel does not exist.
        NonFinitePixelsError: The pixels hold NaN, infinity or numbers that single precision cannot calculate with.
        UnknownSpacingError: Pixels are to have a physical size, and nobody knows which they have.
        OversizedScanError: With that size the slices would be too large.
    """
    chosen = select_channels(pixels, preprocessing.channels)
    intensity = measure_intensity(
        chosen, preprocessing.normalization, preprocessing.rules, preprocessing.clip_percentiles
    )
    box = foreground_box(chosen) if preprocessing.crop == "foreground" else None
    geometry = _choose_geometry(pixels, preprocessing, box, spacing_mm)
    return PreparedScan(resize_slices(chosen, geometry, intensity.background), intensity, geometry)


def _choose_geometry(
    pixels: Pixels, preprocessing: Preprocessing, box: Box | None, spacing_mm: Spacing | None
) -> Geometry:
    """By the size of the slices in pixels, or in millimetres where that is chosen."""
    rows, columns, pixel_mm = pixels.shape[1], pixels.shape[2], preprocessing.pixel_mm
    if pixel_mm is None:
        return fit_geometry(rows, columns, preprocessing.image_size, box)
    if spacing_mm is None:
        raise UnknownSpacingError(
            f"the size of its pixels is unknown, and --pixel-mm {pixel_mm:g} needs it; give --spacing-mm."
        )
    geometry = fit_physical_geometry(
        rows, columns, preprocessing.image_size, box, pixel_size_mm=spacing_mm[1:], pixel_mm=pixel_mm
    )
    _check_size(pixels, geometry, pixel_mm)
    return geometry


def _check_size(pixels: Pixels, geometry: Geometry, pixel_mm: float) -> None:
    """Refuse to resample a scan to more than one can hold."""
    grid_rows, grid_columns = geometry.grid_rows, geometry.grid_columns
    num_values = pixels.shape[0] * grid_rows * grid_columns * pixels.shape[3]
    if max(grid_rows, grid_columns) > LARGEST_SIDE or num_values > MOST_VALUES:
        raise OversizedScanError(
            f"its {pixels.shape[0]} slices would have {grid_rows}x{grid_columns} pixels with --pixel-mm {pixel_mm:g}; "
            f"at most {LARGEST_SIDE} on a side and {MOST_VALUES:,} values in all can be used."
        )


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
        has = f"{pixels.shape[-1]} channel{'s' * (pixels.shape[-1] != 1)}"
        raise ChannelMismatchError(f"the scan has {has}, the model expects {num_channels}.")
