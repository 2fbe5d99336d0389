"""Small files of every format, and damage to their headers; for the fuzz test and for benchmarks/fuzz_headers.py."""

from __future__ import annotations

import io
import struct
from functools import lru_cache

import numpy as np
import tifffile
from PIL import Image

FORMATS = ("tiff", "bigtiff", "png", "jpeg")
SUFFIXES = {"tiff": ".tif", "bigtiff": ".tif", "png": ".png", "jpeg": ".jpg"}
HEAD_BYTES = 700
ODD_NUMBERS = (
    0,
    1,
    2,
    3,
    4,
    7,
    8,
    255,
    256,
    65535,
    2**16,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**40,
    2**63 - 1,
    2**63,
    2**64 - 1,
)
TAG_TYPES = (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 12, 13, 16, 17, 18, 99)
TEXTS = (
    b'{"shape": [99999999999, 4, 4]}',
    b'{"shape": [,,]}',
    b'{"shape": [' + b"9" * 5000 + b"]}",
    b'{"shape": [' + b"9999999," * 3000 + b"1]}",
    b"ImageJ=1\nimages=99999999\nslices=99999999\nframes=99999999\n",
    b"ImageJ=1\nslices=" + b"9" * 5000 + b"\n",
    b'<?xml?><OME><Pixels SizeX="4" SizeY="4" SizeC="1" SizeZ="999999999999" SizeT="1"/></OME>',
    b"<?xml?><OME>" + b"<Pixels " * 5000 + b"</OME>",
)


@lru_cache(maxsize=4)
def originals(kind: str) -> tuple[bytes, ...]:
    """Whole files of one format, of the kinds that archives hold."""
    if kind in ("png", "jpeg"):
        return tuple(_images(kind))
    return tuple(_tiffs(big=kind == "bigtiff"))


def mutate(kind: str, random: np.random.Generator) -> bytes:
    """One of the files with one to four kinds of damage."""
    files = originals(kind)
    data = bytearray(files[random.integers(len(files))])
    damages = [_set_bytes, _set_number, _cut, _repeat, _insert]
    if kind in ("tiff", "bigtiff"):
        damages += [_change_tag, _change_tag, _change_tag, _change_tag, _lead_back, _describe]
    for _ in range(int(random.integers(1, 5))):
        damages[random.integers(len(damages))](data, random)
    return bytes(data)


def _tiffs(big: bool) -> list[bytes]:
    volume = np.arange(5 * 16 * 24, dtype=np.uint16).reshape(5, 16, 24)
    colours = np.stack([np.arange(256, dtype=np.uint16) * 257] * 2 + [np.zeros(256, np.uint16)])
    described = [
        (volume[0], {"metadata": None}),
        (volume[0], {}),
        (volume, {}),
        (volume, {"metadata": None}),
        (volume, {"compression": "zlib"}),
        (volume, {"tile": (16, 16)}),
        (volume, {"byteorder": ">"}),
        (volume.astype(np.float32), {"rowsperstrip": 4}),
        (volume[:3], {"photometric": "rgb", "planarconfig": "separate"}),
        (volume[0, ..., None].astype(np.uint8).repeat(3, -1), {"photometric": "rgb", "description": "text"}),
        (volume[0].astype(np.uint8), {"photometric": "palette", "colormap": colours}),
        (volume.reshape(5, 1, 16, 24), {"ome": True, "metadata": {"axes": "ZCYX"}}),
    ]
    if not big:
        described.append((volume, {"imagej": True, "metadata": {"axes": "ZYX"}}))
    files = []
    for pixels, choices in described:
        stream = io.BytesIO()
        choices = {"photometric": "minisblack", **choices}
        tifffile.imwrite(stream, pixels, bigtiff=big, **choices)
        files.append(stream.getvalue())
    stream = io.BytesIO()
    with tifffile.TiffWriter(stream, bigtiff=big) as writer:
        for _ in range(40):
            writer.write(volume[0, :4, :4], metadata=None, photometric="minisblack")
    return [*files, stream.getvalue()]


def _images(kind: str) -> list[bytes]:
    grey = Image.fromarray((np.arange(16 * 24) % 251).astype(np.uint8).reshape(16, 24))
    modes = ("1", "L", "LA", "P", "RGB", "RGBA", "I;16") if kind == "png" else ("L", "RGB", "CMYK")
    choices = ({},) if kind == "png" else ({}, {"progressive": True}, {"comment": b"x" * 300, "dpi": (96, 96)})
    files = []
    for mode in modes:
        for choice in choices:
            stream = io.BytesIO()
            grey.convert(mode).save(stream, kind.upper(), **choice)
            files.append(stream.getvalue())
    return files


def _place(data: bytearray, random: np.random.Generator) -> int:
    return int(random.integers(min(max(len(data), 1), HEAD_BYTES)))


def _set_bytes(data: bytearray, random: np.random.Generator) -> None:
    for _ in range(int(random.integers(1, 9))):
        if data:
            data[_place(data, random)] = int(random.integers(256))


def _set_number(data: bytearray, random: np.random.Generator) -> None:
    size = int(random.choice([2, 4, 8]))
    number = int(ODD_NUMBERS[random.integers(len(ODD_NUMBERS))]) % 256**size
    where = _place(data, random)
    data[where : where + size] = number.to_bytes(size, "little" if random.integers(2) else "big")


def _cut(data: bytearray, random: np.random.Generator) -> None:
    del data[_place(data, random) if random.integers(2) else int(random.integers(len(data) + 1)) :]


def _repeat(data: bytearray, random: np.random.Generator) -> None:
    where, size = _place(data, random), int(random.integers(1, 200))
    data[where:where] = data[where : where + size] * int(random.choice([1, 2, 50, 3000]))


def _insert(data: bytearray, random: np.random.Generator) -> None:
    where = _place(data, random)
    data[where:where] = bytes([random.choice([0, 0xFF, int(random.integers(256))])]) * int(
        random.choice([1, 3, 100_000])
    )


def _tags(data: bytearray) -> tuple[str, int, int, int, bool]:
    """Order of bytes, where the first page's tags begin, how many, size of an entry, whether it is big."""
    order, big = ("<" if data[:2] == b"II" else ">"), b"+" in data[:4]
    try:
        (first,) = struct.unpack_from(order + ("Q" if big else "I"), data, 8 if big else 4)
        (count,) = struct.unpack_from(order + ("Q" if big else "H"), data, first)
    except (struct.error, OverflowError):
        return order, 0, 0, 12, big
    return order, first + (8 if big else 2), min(count, 100), 20 if big else 12, big


def _change_tag(data: bytearray, random: np.random.Generator) -> None:
    order, start, count, size, big = _tags(data)
    if not count:
        return
    where = start + int(random.integers(count)) * size
    field = int(random.integers(4))
    number = int(ODD_NUMBERS[random.integers(len(ODD_NUMBERS))])
    try:
        if field == 0:
            struct.pack_into(
                order + "H", data, where, int(random.choice([256, 257, 258, 262, 270, 273, 277, 320, 339, 32997]))
            )
        elif field == 1:
            struct.pack_into(order + "H", data, where + 2, int(random.choice(TAG_TYPES)))
        else:
            kind, limit = ("Q", 2**64) if big else ("I", 2**32)
            offset = 4 if field == 2 else size - struct.calcsize(kind)
            struct.pack_into(order + kind, data, where + offset, number % limit)
    except (struct.error, OverflowError, IndexError):
        return


def _lead_back(data: bytearray, random: np.random.Generator) -> None:
    """Let the first page be followed by itself, or by any place."""
    order, start, count, size, big = _tags(data)
    target = start - (8 if big else 2) if random.integers(2) else _place(data, random)
    try:
        struct.pack_into(order + ("Q" if big else "I"), data, start + count * size, max(target, 0))
    except (struct.error, OverflowError, IndexError):
        return


def _describe(data: bytearray, random: np.random.Generator) -> None:
    """Give the first page a description that nobody would write."""
    order, start, count, size, big = _tags(data)
    text = TEXTS[random.integers(len(TEXTS))]
    if not count:
        return
    where = start + int(random.integers(count)) * size
    try:
        struct.pack_into(order + ("HHQQ" if big else "HHII"), data, where, 270, 2, len(text), len(data))
    except (struct.error, OverflowError, IndexError):
        return
    data += text
