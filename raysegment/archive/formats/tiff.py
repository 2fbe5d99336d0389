"""TIFF: single images and stacks, uncompressed or compressed, 8 to 64 bit, tiled, multi-page, OME and ImageJ axes.

Where 0 means white (photometric 0) values are turned, so that a brighter one is larger and a white region on black is
a region, as Pillow and OpenCV show it. Two programs write 0 for white without meaning it, and their values stay:
ImageJ, where it is a matter of display, and tifffile for arrays of bool. Numbers of a palette become its colours: RGB
of 8 bit, or grey where all colours of the palette are.
"""

from __future__ import annotations

import io
import logging
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
import tifffile

from raysegment.archive import plain_tiff
from raysegment.archive.formats import Header
from raysegment.archive.names import show_name
from raysegment.archive.tiff_header import PALETTE, REDUCED_IMAGE, colours_of, read_declared
from raysegment.archive.tiff_pages import MAGICS, check_complete, read_pages
from raysegment.errors import (
    ScanError,
    SliceMismatchError,
    TruncatedFileError,
    UnreadableFileError,
)
from raysegment.scan import Pixels, Scan

EXTENSIONS = (".tif", ".tiff")
ALPHA_SAMPLES = (1, 2)
TIFFFILE = "tifffile.py"
"""What tifffile calls itself in the files that it writes."""

logging.getLogger("tifffile").setLevel(logging.CRITICAL)


def recognises(head: bytes) -> bool:
    """Whether the first bytes are a TIFF's or BigTIFF's."""
    return head[:4] in MAGICS


def read_header(stream: BinaryIO, name: str) -> Header:
    """What the tags declare; the pixels are not decoded.

    Raises:
        ScanError: No TIFF, truncated, or of a kind that is no scan.
    """
    return read_declared(stream, name)


def read_slices(data: bytes, name: str) -> Scan:
    """Decode all pages.

    Returns:
        Pixels (slices, rows, columns, channels), brighter ones larger, palettes as their colours. TIFF knows no voxel
        spacing.

    Raises:
        ScanError: Truncated, broken, or of a kind that is no scan.
    """
    pages = read_pages(io.BytesIO(data), name, plain_tiff.TO_DECODE)
    check_complete(pages, len(data), name)
    try:
        layout = plain_tiff.plain_layout(pages[0])
        if layout is not None and (pixels := plain_tiff.decode_plain(data, layout)) is not None:
            return Scan(pixels[None])
        with tifffile.TiffFile(io.BytesIO(data)) as tiff:
            series = _single_series(tiff, name)
            _check_kind(series, name)
            _check_series_complete(series, len(data), name)
            pixels = _arrange(_turn_white(series.asarray(maxworkers=1), series), series.axes, name)
            colours = _find_palette(series, name)
            _check_palettes(series, name)
            return Scan(pixels if colours is None else colours[pixels[..., 0]])
    except (ScanError, MemoryError):
        raise
    except Exception as error:
        raise _unreadable(error, name) from error


def _single_series(tiff: tifffile.TiffFile, name: str) -> tifffile.TiffPageSeries:
    """The one image of the file; thumbnails and pyramid levels do not count."""
    found = [series for series in tiff.series if not _is_reduced(series)] or list(tiff.series)
    if not found:
        raise TruncatedFileError(f"{show_name(name)}: the TIFF has no page with pixels.")
    if len(found) > 1 and found[0].kind in ("generic", "uniform", "shaped"):
        shapes = sorted({str(series.keyframe.shape) for series in found})
        raise SliceMismatchError(f"{show_name(name)}: pages of {' and '.join(shapes[:3])}; all must share one shape.")
    if len(found) > 1:
        raise UnreadableFileError(f"{show_name(name)} holds {len(found)} images; a file must hold one scan.")
    return found[0]


def _is_reduced(series: tifffile.TiffPageSeries) -> bool:
    return bool(series.keyframe.subfiletype & REDUCED_IMAGE)


def _check_kind(series: tifffile.TiffPageSeries, name: str) -> None:
    """Refuse what is no image, no single volume, or of no numbers."""
    if "Y" not in series.axes or "X" not in series.axes or not series.size:
        raise UnreadableFileError(f"{show_name(name)}: the TIFF holds no image with rows and columns.")
    if {"T", "Z"} <= {axis for axis, size in zip(series.axes, series.shape, strict=True) if size > 1}:
        raise UnreadableFileError(f"{show_name(name)} holds a volume at several times; a file must hold one scan.")
    dtype = np.dtype(series.dtype)
    if dtype.kind not in "buif":
        raise UnreadableFileError(f"{show_name(name)} holds {dtype} values; expected whole or floating-point numbers.")


def _find_palette(series: tifffile.TiffPageSeries, name: str) -> npt.NDArray[np.uint8] | None:
    """The colours that a series' values stand for; None without any."""
    if series.keyframe.photometric != PALETTE:
        return None
    stored = series.keyframe.colormap
    if stored is None or np.dtype(series.dtype).kind != "u":
        raise UnreadableFileError(
            f"{show_name(name)}: the TIFF's palette is missing or its values are no numbers of it."
        )
    return colours_of(stored)


def _check_palettes(series: tifffile.TiffPageSeries, name: str) -> None:
    """Refuse a stack whose pages have palettes of their own."""
    if series.keyframe.photometric != PALETTE:
        return
    for page in series.pages:
        if page is not None and not np.array_equal(page.aspage().colormap, series.keyframe.colormap):
            raise SliceMismatchError(f"{show_name(name)}: its pages have different palettes; all must share one.")


def _turn_white(pixels: Pixels, series: tifffile.TiffPageSeries) -> Pixels:
    """Values as bright as they are large; alpha stays as it is."""
    page = series.keyframe
    means_nothing = page.is_imagej or (page.bitspersample == 1 and page.software == TIFFFILE)
    if page.photometric != plain_tiff.WHITE_IS_ZERO or means_nothing:
        return pixels
    bits = page.bitspersample
    num_alpha = sum(kind in ALPHA_SAMPLES for kind in page.extrasamples)
    if not num_alpha or "S" not in series.axes:
        return plain_tiff.turn_white(pixels, bits)
    samples = np.moveaxis(pixels, series.axes.index("S"), -1)
    colours, alpha = samples[..., :-num_alpha], samples[..., -num_alpha:]
    turned = np.concatenate([plain_tiff.turn_white(colours, bits), alpha], axis=-1)
    return np.moveaxis(turned, -1, series.axes.index("S"))


def _role(axis: str) -> str:
    """What an axis of tifffile means here: y, x, c(hannels) or z, the slices."""
    return {"Y": "y", "X": "x", "C": "c", "S": "c"}.get(axis, "z")


def _arrange(pixels: Pixels, axes: str, name: str) -> Pixels:
    """Bring axes in tifffile's letters to (slices, rows, columns, channels)."""
    if len(axes) != pixels.ndim:
        raise UnreadableFileError(f"{show_name(name)}: the TIFF's axes {axes} do not fit its {pixels.ndim} dimensions.")
    order = sorted(range(len(axes)), key=lambda index: "zyxc".index(_role(axes[index])))
    sizes = dict.fromkeys("zyxc", 1)
    for axis, size in zip(axes, pixels.shape, strict=True):
        sizes[_role(axis)] *= size
    arranged = pixels.transpose(order).reshape(tuple(sizes.values()))
    if arranged.dtype.kind == "b":
        return arranged.astype(np.uint8)
    return arranged.astype(arranged.dtype.newbyteorder("="), copy=False)


def _check_series_complete(series: tifffile.TiffPageSeries, num_bytes: int, name: str) -> None:
    """Refuse a stack with missing pages, or whose one block of pixels passes the end of the file."""
    if any(page is None for page in series.pages):
        raise TruncatedFileError(f"{show_name(name)}: pages of the stack are missing.")
    start = series.dataoffset
    if start is not None and start + series.nbytes > num_bytes:
        end = start + series.nbytes
        raise TruncatedFileError(f"{show_name(name)} has {num_bytes} bytes; its pixels end at byte {end}.")


def _unreadable(error: Exception, name: str) -> ScanError:
    """Only the kind of error is told: its text may quote the file's header."""
    return UnreadableFileError(f"{show_name(name)} cannot be decoded: broken TIFF ({type(error).__name__}).")
