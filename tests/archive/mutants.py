"""Small files of every format, and damage to their headers; for the fuzz test and for benchmarks/fuzz_headers.py."""

from __future__ import annotations

import gzip
import io
import struct
from copy import deepcopy
from functools import lru_cache

import imagecodecs
import nibabel
import numpy as np
import tifffile
from dicom_made import compress, make_enhanced, make_instance, make_series, to_bytes
from PIL import Image
from pydicom.uid import UID, RLELossless

from raysegment.archive.dicom.elements import LONG_KINDS

READERS = {"tiff": "tiff", "bigtiff": "tiff", "png": "raster", "jpeg": "raster", "nifti": "nifti", "packed": "nifti"}
FORMATS = tuple(READERS)
READERS["dicom"] = "dicom"
EVERY_FORMAT = (*FORMATS, "dicom")
"""Those of which each file is a scan, and DICOM, of which several may be one."""

SUFFIXES = {
    "tiff": ".tif",
    "bigtiff": ".tif",
    "png": ".png",
    "jpeg": ".jpg",
    "nifti": ".nii",
    "packed": ".nii.gz",
    "dicom": ".dcm",
}
"""`nifti` is damaged as it is, `packed` before it is packed and half of the time afterwards."""
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
NIFTI_FLOATS = (0.0, -0.0, 1.0, -1.0, 1e-30, 1e30, -1e30, 3e38, 1e300, 352.5, 2.0**31, 2.0**63, np.nan, np.inf, -np.inf)
DICOM_TAGS = (
    0x00280008,
    0x00280010,
    0x00280100,
    0x00281053,
    0x00200032,
    0x00200037,
    0x52009230,
    0x7FE00010,
    0xFFFEE00D,
)
DICOM_KINDS = (b"SQ", b"UN", b"OB", b"OW", b"US", b"DS", b"UT", b"\0\0", b"ZZ")
DICOM_TEXTS = (
    b"2147483648 ",
    b"-1",
    b"nan\\inf",
    b"1e308\\-1e308\\1e-308",
    b"0\\0\\0\\0\\0\\0",
    b"MUSTERMANN",
    b"9" * 5000,
    b"\\" * 3000,
    b"1.2.840.10008.1.2.4.70",
    b"1.2.840.10008.5.1.4.1.1.66.4",
    b"MONOCHROME1 ",
    b"\xff\xff\xff\xff",
)
NESTED = struct.pack("<HH2sHIHHI", 9, 0x1001, b"SQ", 0, 0xFFFFFFFF, 0xFFFE, 0xE000, 0xFFFFFFFF)
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


@lru_cache(maxsize=8)
def originals(kind: str) -> tuple[bytes, ...]:
    """Whole files of one format, of the kinds that archives hold."""
    if kind in ("png", "jpeg"):
        return tuple(_images(kind))
    if READERS[kind] == "nifti":
        return tuple(_volumes())
    if kind == "dicom":
        return tuple(_instances())
    return tuple(_tiffs(big=kind == "bigtiff"))


def mutate(kind: str, random: np.random.Generator) -> bytes:
    """One of the files with one to four kinds of damage."""
    files = originals(kind)
    data = bytearray(files[random.integers(len(files))])
    damages = [_set_bytes, _set_number, _cut, _repeat, _insert]
    if kind in ("tiff", "bigtiff"):
        damages += [_change_tag, _change_tag, _change_tag, _change_tag, _lead_back, _describe]
    if READERS[kind] == "nifti":
        damages += [_change_field] * 8
    if kind == "dicom":
        damages += [_change_element] * 25
    for _ in range(int(random.integers(1, 5))):
        damages[random.integers(len(damages))](data, random)
    if kind != "packed":
        return bytes(data)
    packed = bytearray(gzip.compress(bytes(data), 1))
    if random.integers(2):
        (_set_bytes, _cut, _repeat, _insert)[random.integers(4)](packed, random)
    return bytes(packed)


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


def _volumes() -> list[bytes]:
    volume = np.arange(5 * 6 * 7, dtype=np.int16).reshape(5, 6, 7)
    turned = np.array([[0, -0.8, 0.1, 4], [1.1, 0, 0, -9], [0, 0.1, 3, 30], [0, 0, 0, 1]])
    files = []
    for kind, header in ((nibabel.Nifti1Image, nibabel.Nifti1Header), (nibabel.Nifti2Image, nibabel.Nifti2Header)):
        for order in "<>":
            for pixels in (volume, volume.astype(np.float32), volume[None].repeat(2, 0), volume[0].astype(np.uint8)):
                made = header(endianness=order)
                made.set_data_dtype(pixels.dtype.newbyteorder(order))
                made["descrip"] = b"MUSTERMANN^ERIKA"
                image = kind(pixels, turned, made)
                image.set_qform(turned, 1)
                files.append(image.to_bytes())
    return files


def _instances() -> list[bytes]:
    """DICOM files of every encoding, with texts that name somebody."""
    volume = np.arange(4 * 12 * 16, dtype=np.int16).reshape(4, 12, 16)
    colours = volume[0, ..., None].astype(np.uint8).repeat(3, -1)
    jpeg = "1.2.840.10008.1.2.4."
    plain = make_series(volume, RescaleSlope="2", RescaleIntercept="-1024", modality="CT")[0]
    enhanced = make_enhanced(volume, RescaleSlope=[1, 2, 3, 4], RescaleIntercept=0)
    made = [plain, enhanced, make_instance(colours), make_instance(volume.astype(np.uint8))]
    for syntax in ("1.2.840.10008.1.2", "1.2.840.10008.1.2.2", "1.2.840.10008.1.2.1.99"):
        other = deepcopy(enhanced)
        other.file_meta.TransferSyntaxUID = UID(syntax)
        made.append(other)
    packed = deepcopy(enhanced)
    packed.compress(RLELossless)
    made.append(packed)
    frames = volume.view(np.uint16)
    made.append(compress(enhanced, f"{jpeg}80", [imagecodecs.jpegls_encode(frame) for frame in frames]))
    made.append(compress(enhanced, f"{jpeg}90", [imagecodecs.jpeg2k_encode(frame, level=0) for frame in frames]))
    made.append(compress(make_instance(colours), f"{jpeg}50", [imagecodecs.jpeg8_encode(colours)]))
    for each in made:
        each.PatientName = "MUSTERMANN^ERIKA"
        each.PatientComments = "MUSTERMANN " * 9
    return [to_bytes(each) for each in made]


def _elements(data: bytearray) -> list[tuple[int, int]]:
    """Where elements begin, as far as their types are written, and how long their heads are."""
    at, found = 132, []
    while at + 8 <= len(data) and len(found) < 500:
        kind = bytes(data[at + 4 : at + 6])
        if kind in LONG_KINDS:
            size, (length,) = 12, struct.unpack_from("<I", data.ljust(at + 12, b"\0"), at + 8)
        elif kind.isalpha():
            size, (length,) = 8, struct.unpack_from("<H", data, at + 6)
        else:
            size, (length,) = 8, struct.unpack_from("<I", data, at + 4)
        found.append((at, size))
        at += size + (0 if length == 0xFFFFFFFF or kind == b"SQ" or data[at : at + 2] == b"\xfe\xff" else length)
    return found


def _change_element(data: bytearray, random: np.random.Generator) -> None:
    """Give an element of a DICOM file another tag, type, length or value, or nest it deep."""
    found = _elements(data)
    if not found:
        return
    at, size = found[random.integers(len(found))]
    odd = int(ODD_NUMBERS[random.integers(len(ODD_NUMBERS))])
    field = int(random.integers(10))
    if field == 0:
        tag = DICOM_TAGS[random.integers(len(DICOM_TAGS))]
        data[at : at + 4] = struct.pack("<HH", tag >> 16, tag & 0xFFFF)
    elif field == 1:
        data[at + 4 : at + 6] = DICOM_KINDS[random.integers(len(DICOM_KINDS))]
    elif field == 2:
        width = 4 if size == 12 else 2
        data[at + size - width : at + size] = (odd % 256**width).to_bytes(width, "little")
    elif size == 8 and field < 9:
        (length,) = struct.unpack_from("<H", data.ljust(at + 8, b"\0"), at + 6)
        text = DICOM_TEXTS[random.integers(len(DICOM_TEXTS))]
        if data[at + 4 : at + 6] == b"US" or random.integers(4) == 0:
            text = (odd % 256**8).to_bytes(8, "little")
        if field < 6:
            text = text[:length].ljust(length)
        data[at + 6 : at + 8 + length] = struct.pack("<H", len(text) % 65536) + text
    else:
        data[at:at] = NESTED * int(random.choice([1, 3, 60, 2000]))


def _change_field(data: bytearray, random: np.random.Generator) -> None:
    """Set a number of a NIfTI header: sizes, types, spacing, offset, slope, codes, quaternion or matrix."""
    order = "<" if data[:2] in (b"\x5c\x01", b"\x1c\x02") else ">"
    is_first = b"\x5c" in data[:4]
    whole = [(40 + 2 * i, "h") for i in range(8)] + [(70, "h"), (72, "h"), (252, "h"), (254, "h"), (123, "B")]
    parts = [(76 + 4 * i, "f") for i in range(8)] + [(at, "f") for at in (108, 112, 116, *range(256, 328, 4))]
    if not is_first:
        whole = [(16 + 8 * i, "q") for i in range(8)] + [(12, "h"), (168, "q"), (344, "i"), (348, "i"), (500, "i")]
        parts = [(104 + 8 * i, "d") for i in range(8)] + [(at, "d") for at in (176, 184, *range(352, 496, 8))]
    fields = whole if random.integers(2) else parts
    at, kind = fields[random.integers(len(fields))]
    number: float = float(NIFTI_FLOATS[random.integers(len(NIFTI_FLOATS))])
    if fields is whole:
        limit = 256 ** struct.calcsize(kind)
        number = int(ODD_NUMBERS[random.integers(len(ODD_NUMBERS))]) % limit
        number -= limit if kind != "B" and number >= limit // 2 else 0
    try:
        struct.pack_into(order + kind, data, at, number)
    except (struct.error, OverflowError):
        return


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
