from __future__ import annotations

import contextlib
import io
import struct

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from raysegment.archive.formats import raster, tiff
from raysegment.errors import (
    ScanError,
    SliceMismatchError,
    TruncatedFileError,
    UnknownFormatError,
    UnreadableFileError,
)


def tiff_bytes(pixels: np.ndarray, **options: object) -> bytes:
    stream = io.BytesIO()
    tifffile.imwrite(stream, pixels, **options)
    return stream.getvalue()


def image_bytes(image: Image.Image, kind: str) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind)
    return stream.getvalue()


def random_pixels(shape: tuple[int, ...], dtype: str, seed: int = 0) -> np.ndarray:
    return (np.random.default_rng(seed).random(shape) * 60_000).astype(dtype)


@settings(max_examples=60, deadline=None)
@given(
    dtype=st.sampled_from(["uint8", "uint16", "int16", "float32", "uint32", "float64"]),
    channels=st.sampled_from([1, 3, 4]),
    rows=st.integers(2, 40),
    columns=st.integers(2, 40),
    slices=st.sampled_from([1, 1, 3]),
    compression=st.sampled_from([None, "zlib", "lzw", "deflate", "packbits"]),
    predictor=st.booleans(),
    byteorder=st.sampled_from(["<", ">"]),
    layout=st.sampled_from(["strips", "tiles", "one strip", "plain"]),
    bigtiff=st.booleans(),
    seed=st.integers(0, 100),
)
def test_tiffs_of_every_kind_equal_what_tifffile_reads(
    dtype, channels, rows, columns, slices, compression, predictor, byteorder, layout, bigtiff, seed
):
    colour = channels > 1
    shape = (slices, rows, columns, channels) if colour else (slices, rows, columns)
    options: dict[str, object] = {"compression": compression, "byteorder": byteorder, "bigtiff": bigtiff}
    options |= {"photometric": "rgb"} if colour else {"photometric": "minisblack"}
    options |= {"predictor": True} if predictor and compression in ("zlib", "lzw", "deflate") else {}
    options |= {"strips": {"rowsperstrip": 4}, "tiles": {"tile": (16, 16)}}.get(layout, {})
    options |= {"metadata": None} if layout == "plain" else {}
    data = tiff_bytes(random_pixels(shape, dtype, seed), **options)
    expected = tifffile.imread(io.BytesIO(data)).reshape(slices, rows, columns, channels)
    pixels = tiff.read_slices(data, "a.tif").pixels
    np.testing.assert_array_equal(pixels, expected)
    assert pixels.dtype == np.dtype(dtype)
    header = tiff.read_header(io.BytesIO(data), "a.tif")
    assert (header.slices, header.rows, header.columns, header.channels) == (slices, rows, columns, channels)
    assert header.dtype == np.dtype(dtype)


def test_ome_axes_are_brought_to_slices_rows_columns_channels():
    volume = random_pixels((2, 5, 8, 9), "uint16")
    data = tiff_bytes(volume, ome=True, metadata={"axes": "CZYX"}, photometric="minisblack")
    pixels = tiff.read_slices(data, "a.ome.tif").pixels
    np.testing.assert_array_equal(pixels, volume.transpose(1, 2, 3, 0))
    assert tiff.read_header(io.BytesIO(data), "a.ome.tif").slices == 5


def test_imagej_stacks_are_read_whole():
    volume = random_pixels((6, 8, 9), "uint16")
    data = tiff_bytes(volume, imagej=True, metadata={"axes": "ZYX"})
    np.testing.assert_array_equal(tiff.read_slices(data, "a.tif").pixels[..., 0], volume)


def test_masks_of_one_bit_become_zero_and_one():
    mask = random_pixels((16, 16), "uint8") > 128
    np.testing.assert_array_equal(tiff.read_slices(tiff_bytes(mask), "a.tif").pixels[0, ..., 0], mask)


def test_pages_of_two_shapes_are_refused():
    stream = io.BytesIO()
    with tifffile.TiffWriter(stream) as writer:
        writer.write(np.zeros((8, 8), np.uint8), metadata=None)
        writer.write(np.zeros((9, 8), np.uint8), metadata=None)
    with pytest.raises(SliceMismatchError, match=r"a\.tif"):
        tiff.read_slices(stream.getvalue(), "a.tif")


def test_complex_numbers_are_refused():
    with pytest.raises(UnreadableFileError, match="complex64"):
        tiff.read_slices(tiff_bytes(np.zeros((4, 4), np.complex64)), "a.tif")


@pytest.mark.parametrize("compression", [None, "zlib", "lzw"])
@pytest.mark.parametrize("shape", [(32, 32, 3), (5, 32, 32)])
def test_a_tiff_cut_anywhere_is_an_error_of_the_scan(compression, shape):
    data = tiff_bytes(random_pixels(shape, "uint8"), compression=compression)
    for tenth in range(1, 10):
        with pytest.raises(TruncatedFileError, match=r"a\.tif"):
            tiff.read_slices(data[: len(data) * tenth // 10], "a.tif")


@settings(max_examples=150, deadline=None)
@given(position=st.integers(4, 400), value=st.integers(0, 255), compression=st.sampled_from([None, "zlib"]))
def test_a_damaged_tiff_gives_pixels_or_an_error_of_the_scan(position, value, compression):
    data = bytearray(tiff_bytes(random_pixels((8, 8, 3), "uint8"), photometric="rgb", compression=compression))
    data[min(position, len(data) - 1)] = value
    with contextlib.suppress(ScanError):
        header = tiff.read_header(io.BytesIO(data), "a.tif")
        if header.num_bytes < 2**20:
            tiff.read_slices(bytes(data), "a.tif")


def test_pages_in_a_loop_are_refused():
    data = bytearray(tiff_bytes(np.zeros((4, 4), np.uint8), metadata=None))
    (first,) = struct.unpack_from("<I", data, 4)
    (count,) = struct.unpack_from("<H", data, first)
    struct.pack_into("<I", data, first + 2 + 12 * count, first)
    with pytest.raises(UnreadableFileError, match="loop"):
        tiff.read_slices(bytes(data), "a.tif")


def test_what_a_header_says_does_not_reach_messages():
    data = tiff_bytes(random_pixels((2, 8, 8), "uint8"), compression="zlib", description="Jane Doe 1961-02-03")
    broken = data.replace(b"\x78\x01", b"\xff\xff").replace(b"\x78\x9c", b"\xff\xff").replace(b"\x78\xda", b"\xff\xff")
    with pytest.raises(ScanError) as caught:
        tiff.read_slices(broken, "a.tif")
    assert "Jane" not in str(caught.value)
    with pytest.raises(UnknownFormatError) as caught:
        tiff.read_slices(b"Jane Doe, born 1961", "a.tif")
    assert "Jane" not in str(caught.value)


RASTERS = {
    "grey png": (Image.fromarray(random_pixels((9, 7), "uint8")), "PNG"),
    "colour png": (Image.fromarray(random_pixels((9, 7, 3), "uint8")), "PNG"),
    "alpha png": (Image.fromarray(random_pixels((9, 7, 4), "uint8")), "PNG"),
    "16-bit png": (Image.fromarray(random_pixels((9, 7), "uint16")), "PNG"),
    "grey jpeg": (Image.fromarray(random_pixels((9, 7), "uint8")), "JPEG"),
    "colour jpeg": (Image.fromarray(random_pixels((9, 7, 3), "uint8")), "JPEG"),
}


@pytest.mark.parametrize(("image", "kind"), RASTERS.values(), ids=RASTERS.keys())
def test_png_and_jpeg_equal_what_pillow_reads(image, kind):
    data = image_bytes(image, kind)
    expected = np.asarray(Image.open(io.BytesIO(data)))
    pixels = raster.read_slices(data, "a").pixels
    np.testing.assert_array_equal(pixels, expected.reshape(1, 9, 7, -1))
    assert pixels.dtype == (np.uint16 if "16" in image.mode else np.uint8)
    header = raster.read_header(io.BytesIO(data), "a")
    assert (header.slices, header.rows, header.columns, header.channels) == pixels.shape
    assert header.dtype == pixels.dtype


@pytest.mark.parametrize(("image", "kind"), RASTERS.values(), ids=RASTERS.keys())
def test_a_png_or_jpeg_cut_anywhere_is_an_error_of_the_scan(image, kind):
    data = image_bytes(image, kind)
    for tenth in range(1, 10):
        with pytest.raises((TruncatedFileError, UnknownFormatError), match="a"):
            raster.read_slices(data[: len(data) * tenth // 10], "a.png")


def test_a_palette_png_becomes_rgb():
    image = Image.fromarray(random_pixels((9, 7, 3), "uint8")).quantize(8)
    pixels = raster.read_slices(image_bytes(image, "PNG"), "a").pixels
    np.testing.assert_array_equal(pixels[0], np.asarray(image.convert("RGB")))
