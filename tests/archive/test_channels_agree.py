"""A header promises the channels, size and type that the pixels then have, whoever wrote the file."""

from __future__ import annotations

import io

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from raysegment.archive.formats import Header, Reader, get_reader
from raysegment.errors import ScanError
from raysegment.scan import Pixels

ROWS, COLUMNS = 6, 9
INDICES = np.arange(ROWS * COLUMNS, dtype=np.uint8).reshape(ROWS, COLUMNS)
COLOURS = [level for index in range(256) for level in (index, 255 - index, index * 7 % 256)]
GREYS = [255 - index for index in range(256) for _ in range(3)]
PILLOW_MODES = ("L", "RGB", "CMYK", "YCbCr", "LAB", "I", "F", "1", "RGBA", "LA")
MODES_BY_KIND = {
    "TIFF": PILLOW_MODES,
    "TIFF tiff_lzw": PILLOW_MODES,
    "TIFF jpeg": ("L", "RGB", "CMYK", "YCbCr"),
    "TIFF group4": ("1",),
    "JPEG": ("L", "RGB", "CMYK", "YCbCr", "1"),
    "JPEG progressive": ("L", "RGB", "CMYK"),
}
MODES = ["1", "L", "LA", "P", "PG", "RGB", "RGBA", "I;16"]


def read_both(data: bytes, name: str) -> tuple[Header, Pixels]:
    reader: Reader = get_reader("tiff" if name.endswith("tif") else "raster")
    return reader.read_header(io.BytesIO(data), name), reader.read_slices(data, name).pixels


def assert_agree(data: bytes, name: str) -> Pixels:
    header, pixels = read_both(data, name)
    assert (header.slices, header.rows, header.columns, header.channels) == pixels.shape
    assert header.dtype == pixels.dtype
    return pixels


def make_image(mode: str, seed: int) -> Image.Image:
    random = np.random.default_rng(seed)
    if mode == "I;16":
        return Image.fromarray(random.integers(0, 65536, (ROWS, COLUMNS), np.uint16))
    if mode in ("P", "PG"):
        image = Image.fromarray(random.integers(0, 256, (ROWS, COLUMNS), np.uint8)).convert("P")
        image.putpalette(COLOURS if mode == "P" else GREYS)
        return image
    channels = {"1": 1, "L": 1, "LA": 2, "RGB": 3, "RGBA": 4}[mode]
    grey = random.integers(0, 256, (ROWS, COLUMNS, channels), np.uint8)
    if mode == "1":
        return Image.fromarray(grey[..., 0] > 127)
    return Image.fromarray(grey[..., 0] if channels == 1 else grey)


def save(image: Image.Image, kind: str, **choices: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **choices)
    return stream.getvalue()


@given(
    mode=st.sampled_from(MODES),
    seed=st.integers(0, 99),
    compression=st.sampled_from(["raw", "tiff_lzw", "tiff_adobe_deflate", "packbits"]),
    white_is_zero=st.booleans(),
)
@settings(max_examples=80, deadline=None)
def test_tiffs_of_pillow(mode, seed, compression, white_is_zero):
    tags = {262: 0} if white_is_zero and mode in ("1", "L") else {}
    image = make_image(mode, seed)
    pixels = assert_agree(save(image, "TIFF", compression=compression, tiffinfo=tags), "a.tif")
    if mode in ("P", "PG"):
        expected = np.asarray(image.convert("RGB" if mode == "P" else "L"))
        np.testing.assert_array_equal(pixels[0].reshape(expected.shape), expected)


@given(
    mode=st.sampled_from(MODES),
    seed=st.integers(0, 99),
    transparency=st.sampled_from([None, 3, bytes(range(0, 256, 2)), (1, 2, 3)]),
)
@settings(max_examples=80, deadline=None)
def test_pngs_of_pillow(mode, seed, transparency):
    image = make_image(mode, seed)
    fits = {"1": int, "L": int, "I;16": int, "P": (int, bytes), "PG": (int, bytes), "RGB": tuple}.get(mode, ())
    choices = {"transparency": transparency} if isinstance(transparency, fits) else {}
    pixels = assert_agree(save(image, "PNG", **choices), "a.png")
    if mode == "I;16":
        expected = np.asarray(image)
    else:
        expected = np.asarray(image.convert({"1": "L", "P": "RGB", "PG": "RGB"}.get(mode, mode)))
    np.testing.assert_array_equal(pixels[0].reshape(expected.shape), expected)


@pytest.mark.parametrize(
    ("kind", "mode"),
    [(kind, mode) for kind, modes in MODES_BY_KIND.items() for mode in modes],
)
def test_other_modes_of_pillow(kind, mode):
    image = make_image("RGB", 5).convert(mode)
    format_name, _, choice = kind.partition(" ")
    choices = {"progressive": True} if choice == "progressive" else {"compression": choice} if choice else {}
    name = "a.tif" if format_name == "TIFF" else "a.jpg"
    data = save(image, format_name, **choices)
    assert_agree(data, name)
    assert read_both(data, name)[0].is_lossy == (format_name == "JPEG" or choice == "jpeg")


@pytest.mark.parametrize("planar", ["contig", "separate"])
@pytest.mark.parametrize("compression", [None, "zlib", "jpeg"])
def test_colours_side_by_side_and_plane_by_plane(planar, compression):
    random = np.random.default_rng(0)
    values = random.integers(0, 256, (3, 16, 24) if planar == "separate" else (16, 24, 3), np.uint8)
    choices = {"photometric": "rgb", "planarconfig": planar, "compression": compression}
    assert assert_agree(write_tiff(values, **choices), "a.tif").shape == (1, 16, 24, 3)


@given(
    dtype=st.sampled_from(["bool", "u1", "u2", "u4", "i1", "i2", "i4", "f2", "f4", "f8"]),
    shape=st.sampled_from([(ROWS, COLUMNS), (3, ROWS, COLUMNS), (ROWS, COLUMNS, 2), (ROWS, COLUMNS, 5)]),
    photometric=st.sampled_from(["minisblack", "miniswhite"]),
    compression=st.sampled_from([None, "zlib", "lzw"]),
    options=st.sampled_from([{}, {"bigtiff": True}, {"byteorder": ">"}, {"tile": (16, 16)}, {"metadata": None}]),
    seed=st.integers(0, 99),
)
@settings(max_examples=150, deadline=None)
def test_tiffs_of_tifffile(dtype, shape, photometric, compression, options, seed):
    values = (np.random.default_rng(seed).random(shape) * 2 - 0.5) * 100
    values = (
        values > 30 if dtype == "bool" else np.abs(values).astype(dtype) if dtype[0] == "u" else values.astype(dtype)
    )
    planar = {"planarconfig": "contig"} if len(shape) == 3 and shape[2] < COLUMNS else {}
    stream = io.BytesIO()
    tifffile.imwrite(stream, values, photometric=photometric, compression=compression, **options, **planar)
    pixels = assert_agree(stream.getvalue(), "a.tif")
    if dtype == "bool":
        np.testing.assert_array_equal(pixels.reshape(values.shape), tifffile.imread(io.BytesIO(stream.getvalue())))
    elif photometric == "miniswhite":
        order = np.argsort(values.astype(np.float64), axis=None)
        assert (np.diff(pixels.reshape(-1)[order].astype(np.float64)) <= 0).all()


def write_tiff(values: np.ndarray, **choices: object) -> bytes:
    stream = io.BytesIO()
    tifffile.imwrite(stream, values, **choices)
    return stream.getvalue()


@pytest.mark.parametrize("choices", [{}, {"compression": "lzw"}, {"tile": (16, 16)}, {"bigtiff": True}])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_where_white_is_zero_values_are_turned_so_that_bright_is_large(choices, dtype):
    values = INDICES.astype(dtype)
    pixels = assert_agree(write_tiff(values, photometric="miniswhite", **choices), "a.tif")
    np.testing.assert_array_equal(pixels[0, ..., 0], np.iinfo(dtype).max - values)


def test_pillow_and_raysegment_see_the_same_where_white_is_zero():
    for image in (make_image("L", 1), make_image("1", 1)):
        data = save(image, "TIFF", tiffinfo={262: 0})
        seen = np.asarray(Image.open(io.BytesIO(data)).convert("L"))
        pixels = assert_agree(data, "a.tif")[0, ..., 0]
        np.testing.assert_array_equal(pixels * (255 // max(1, pixels.max())), seen)


def test_alpha_is_not_turned_where_white_is_zero():
    values = np.dstack([INDICES, np.full_like(INDICES, 200)])
    choices = {"photometric": "miniswhite", "planarconfig": "contig", "extrasamples": ["unassalpha"]}
    pixels = assert_agree(write_tiff(values, **choices), "a.tif")[0]
    np.testing.assert_array_equal(pixels, np.dstack([255 - INDICES, np.full_like(INDICES, 200)]))


def test_in_files_of_imagej_white_as_zero_is_a_matter_of_display():
    pixels = assert_agree(write_tiff(INDICES, photometric="miniswhite", imagej=True), "a.tif")
    np.testing.assert_array_equal(pixels[0, ..., 0], INDICES)


def test_a_palette_of_sixteen_bits_gives_eight_bit_colours():
    colours = np.stack([np.arange(256), 255 - np.arange(256), np.zeros(256)]).astype(np.uint16)
    for scale in (1, 256, 257):
        data = write_tiff(INDICES, photometric="palette", colormap=colours * np.uint16(scale))
        np.testing.assert_array_equal(assert_agree(data, "a.tif")[0], colours.T[INDICES])


def test_a_stack_with_a_palette_is_read_in_its_colours():
    colours = np.stack([np.arange(256), 255 - np.arange(256), np.zeros(256)]).astype(np.uint16) * 257
    stack = np.stack([INDICES, INDICES + 100])
    data = write_tiff(stack, photometric="palette", colormap=colours)
    np.testing.assert_array_equal(assert_agree(data, "a.tif"), (colours.T // 257)[stack])


def test_pages_with_palettes_of_their_own_are_refused():
    pages = [make_image("P", 1), make_image("PG", 2)]
    data = save(pages[0], "TIFF", save_all=True, append_images=pages[1:])
    with pytest.raises(ScanError, match=r"a\.tif.*palette"):
        read_both(data, "a.tif")


STACKS = {
    "ome channels of slices": ((2, 5, ROWS, COLUMNS), {"ome": True, "metadata": {"axes": "CZYX"}}),
    "ome slices of channels": ((5, 2, ROWS, COLUMNS), {"ome": True, "metadata": {"axes": "ZCYX"}}),
    "ome times": ((4, ROWS, COLUMNS), {"ome": True, "metadata": {"axes": "TYX"}}),
    "ome one plane": ((ROWS, COLUMNS), {"ome": True}),
    "ome colours": ((4, ROWS, COLUMNS, 3), {"ome": True, "metadata": {"axes": "ZYXS"}, "photometric": "rgb"}),
    "ome compressed": ((2, 5, ROWS, COLUMNS), {"ome": True, "metadata": {"axes": "CZYX"}, "compression": "zlib"}),
    "imagej slices": ((5, ROWS, COLUMNS), {"imagej": True, "metadata": {"axes": "ZYX"}}),
    "imagej channels": ((3, ROWS, COLUMNS), {"imagej": True, "metadata": {"axes": "CYX"}}),
    "imagej slices of channels": ((5, 2, ROWS, COLUMNS), {"imagej": True, "metadata": {"axes": "ZCYX"}}),
    "imagej times": ((5, ROWS, COLUMNS), {"imagej": True, "metadata": {"axes": "TYX"}}),
    "imagej colours": ((5, ROWS, COLUMNS, 3), {"imagej": True, "metadata": {"axes": "ZYXS"}}),
    "imagej compressed": ((5, ROWS, COLUMNS), {"imagej": True, "metadata": {"axes": "ZYX"}, "compression": "zlib"}),
    "tifffile channels": ((2, 5, ROWS, COLUMNS), {"metadata": {"axes": "CZYX"}}),
    "tifffile without axes": ((2, 5, ROWS, COLUMNS), {}),
    "tifffile compressed": ((2, 5, ROWS, COLUMNS), {"metadata": {"axes": "CZYX"}, "compression": "zlib"}),
    "tifffile with words": ((5, ROWS, COLUMNS), {"description": "two descriptions"}),
    "tifffile volume of tiles": ((32, ROWS, COLUMNS), {"volumetric": True, "tile": (16, 16, 16)}),
    "plain pages": ((5, ROWS, COLUMNS), {"metadata": None}),
    "plain pages in planes": ((3, ROWS, COLUMNS), {"metadata": None, "planarconfig": "separate", "photometric": "rgb"}),
    "big-endian": ((5, ROWS, COLUMNS), {"byteorder": ">", "metadata": {"axes": "ZYX"}}),
    "bigtiff": ((5, ROWS, COLUMNS), {"bigtiff": True}),
}


@pytest.mark.parametrize(("shape", "choices"), STACKS.values(), ids=STACKS.keys())
def test_stacks_of_every_program(shape, choices):
    values = np.random.default_rng(1).integers(0, 1000, shape).astype(np.uint8 if shape[-1] == 3 else np.uint16)
    stream = io.BytesIO()
    tifffile.imwrite(stream, values, **{"photometric": "minisblack", **choices})
    pixels = assert_agree(stream.getvalue(), "a.tif")
    assert pixels.size == values.size


@pytest.mark.parametrize("choices", [{"imagej": True}, {"ome": True}, {}])
def test_several_volumes_in_a_file_are_refused_by_header_and_decoder(choices):
    stream = io.BytesIO()
    values = np.zeros((2, 5, ROWS, COLUMNS), np.uint16)
    tifffile.imwrite(stream, values, photometric="minisblack", metadata={"axes": "TZYX"}, **choices)
    reader: Reader = get_reader("tiff")
    with pytest.raises(ScanError, match=r"a\.tif holds a volume at several times"):
        reader.read_header(io.BytesIO(stream.getvalue()), "a.tif")
    with pytest.raises(ScanError, match=r"a\.tif holds a volume at several times"):
        reader.read_slices(stream.getvalue(), "a.tif")


def test_thumbnails_and_pyramids_do_not_count():
    stream = io.BytesIO()
    with tifffile.TiffWriter(stream) as writer:
        writer.write(np.zeros((5, 32, 32), np.uint8), subifds=1, photometric="minisblack")
        writer.write(np.zeros((5, 16, 16), np.uint8), subfiletype=1, photometric="minisblack")
    assert assert_agree(stream.getvalue(), "a.tif").shape == (5, 32, 32, 1)
    stream = io.BytesIO()
    with tifffile.TiffWriter(stream) as writer:
        writer.write(np.zeros((32, 32), np.uint8), metadata=None, photometric="minisblack")
        writer.write(np.zeros((8, 8), np.uint8), subfiletype=1, metadata=None, photometric="minisblack")
    assert assert_agree(stream.getvalue(), "a.tif").shape == (1, 32, 32, 1)


def test_two_stacks_in_a_file_are_refused_by_header_and_decoder():
    stream = io.BytesIO()
    with tifffile.TiffWriter(stream) as writer:
        writer.write(np.zeros((5, 32, 32), np.uint8), photometric="minisblack", compression="zlib")
        writer.write(np.zeros((5, 32, 32), np.uint8), photometric="minisblack", compression="zlib")
    reader: Reader = get_reader("tiff")
    with pytest.raises(ScanError, match=r"a\.tif"):
        reader.read_header(io.BytesIO(stream.getvalue()), "a.tif")
    with pytest.raises(ScanError, match=r"a\.tif"):
        reader.read_slices(stream.getvalue(), "a.tif")
