"""NIfTI files that nobody should write, with the error and the cause that each must give."""

from __future__ import annotations

import gzip
import struct
import zlib
from collections.abc import Callable

import nibabel
import numpy as np
from volumes_made import make_affine

from raysegment.errors import (
    AffineError,
    EmptyFileError,
    NonFinitePixelsError,
    OversizedScanError,
    ScanError,
    TruncatedFileError,
    UnknownFormatError,
    UnreadableFileError,
)

SIDE = 64
SECRET = b"MUSTERMANN^ERIKA"


def plain_file(dtype: str = "int16", shape: tuple[int, ...] = (16, 16, 16)) -> bytearray:
    """A good NIfTI-1 file with texts in its header."""
    image = nibabel.Nifti1Image(np.ones(shape, dtype), make_affine((1, 1, 2)))
    image.set_qform(make_affine((1, 1, 2)), 1)
    image.header["descrip"] = SECRET
    image.header["db_name"] = SECRET
    image.header["aux_file"] = SECRET
    return bytearray(image.to_bytes())


def patched(at: int, kind: str, *values: float, **choices: object) -> bytes:
    data = plain_file(**choices)  # type: ignore[arg-type]
    struct.pack_into("<" + kind, data, at, *values)
    return bytes(data)


def with_nan() -> bytes:
    data = plain_file("float32")
    struct.pack_into("<f", data, 400, float("nan"))
    return bytes(data)


def deflated_zeros(head: bytes, num_bytes: int) -> bytes:
    """A gzip file of a head and so many zeros, made without holding them."""
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    pieces = [packer.compress(head)]
    block = bytes(2**20)
    pieces += [packer.compress(block) for _ in range(num_bytes // len(block))]
    return b"".join([*pieces, packer.flush()])


def repeated_bomb(head: bytes, times: int) -> bytes:
    """Members of 256 MB of zeros one behind the other."""
    return deflated_zeros(head, 2**20) + deflated_zeros(b"", 2**28) * times


def no_place() -> bytes:
    """Neither sform nor qform, and a spacing of 0."""
    data = plain_file()
    struct.pack_into("<2h", data, 252, 0, 0)
    struct.pack_into("<f", data, 80, 0)
    return bytes(data)


def only_qform(**fields: tuple[int, float]) -> bytes:
    data = plain_file()
    struct.pack_into("<h", data, 254, 0)
    for at, value in fields.values():
        struct.pack_into("<f", data, at, value)
    return bytes(data)


HOSTILE: dict[str, tuple[Callable[[], bytes], type[ScanError], str]] = {
    "empty": (lambda: b"", EmptyFileError, "no bytes"),
    "cut": (lambda: bytes(plain_file()[:-1]), TruncatedFileError, "pixels end at byte"),
    "cut in the header": (lambda: bytes(plain_file()[:200]), TruncatedFileError, "before its header"),
    "no magic": (lambda: patched(344, "4s", b"xxxx"), UnknownFormatError, "no NIfTI magic.*Analyze"),
    "half of a pair": (lambda: patched(344, "4s", b"ni1\0"), UnknownFormatError, "half of a NIfTI pair"),
    "of another kind": (lambda: b"GIF89a" + bytes(400), UnknownFormatError, "first bytes"),
    "five dimensions": (
        lambda: bytes(plain_file(shape=(4, 4, 4, 2, 3))),
        UnreadableFileError,
        r"5 dimensions \(4 x 4 x 4 x 2 x 3\)",
    ),
    "vectors": (lambda: bytes(plain_file(shape=(4, 4, 4, 1, 3))), UnreadableFileError, "5 dimensions"),
    "no dimensions": (lambda: patched(40, "h", 0), UnreadableFileError, "declares 0 dimensions"),
    "nine dimensions": (lambda: patched(40, "h", 9), UnreadableFileError, "declares 9 dimensions"),
    "size of 0": (lambda: patched(42, "h", 0), UnreadableFileError, "sizes of"),
    "negative size": (lambda: patched(42, "h", -16), UnreadableFileError, "sizes of"),
    "huge": (lambda: patched(42, "3h", 32767, 32767, 32767), OversizedScanError, "declares a scan of"),
    "complex": (lambda: bytes(plain_file("complex64")), UnreadableFileError, "complex numbers"),
    "RGB": (lambda: patched(70, "h", 128), UnreadableFileError, "RGB colours"),
    "bits": (lambda: patched(70, "h", 1), UnreadableFileError, "single bits"),
    "unknown type": (lambda: patched(70, "h", 77), UnreadableFileError, r"unknown type \(77\)"),
    "offset of 1e30": (lambda: patched(108, "f", 1e30), UnreadableFileError, "vox_offset"),
    "offset of NaN": (lambda: patched(108, "f", float("nan")), UnreadableFileError, "vox_offset"),
    "negative offset": (lambda: patched(108, "f", -352), UnreadableFileError, "vox_offset"),
    "offset in the header": (lambda: patched(108, "f", 16), UnreadableFileError, "vox_offset"),
    "offset behind the end": (lambda: patched(108, "f", 1e6), TruncatedFileError, "pixels end at byte"),
    "NaN": (with_nan, NonFinitePixelsError, "1 values that are NaN"),
    "infinite intercept": (lambda: patched(112, "2f", 2, float("inf")), UnreadableFileError, "intercept"),
    "overflowing slope": (lambda: patched(112, "2f", 3e38, 3e38), NonFinitePixelsError, "infinite"),
    "singular sform": (lambda: patched(280, "12f", *[1, 2, 3, 4] * 3), AffineError, "sform is singular"),
    "sform of zeros": (lambda: patched(280, "12f", *[0] * 12), AffineError, "spacing of 0 x 0 x 0"),
    "sform of NaN": (lambda: patched(280, "f", float("nan")), AffineError, "NaN or infinity"),
    "sform of 1e38": (lambda: patched(280, "12f", *[3e38] * 12), AffineError, "holds 3e.38"),
    "no spacing": (no_place, AffineError, "spacing of 0 x 1 x 2 mm"),
    "qform without spacing": (lambda: only_qform(x=(80, 0)), AffineError, "spacing of 0 x 1 x 2 mm"),
    "negative spacing": (lambda: only_qform(x=(80, -1)), AffineError, "spacing of -1 x 1 x 2 mm"),
    "spacing of NaN": (lambda: only_qform(x=(84, float("nan"))), AffineError, "nan"),
    "quaternion of 7": (lambda: only_qform(x=(256, 7)), AffineError, "no rotation"),
    "quaternion of NaN": (lambda: only_qform(x=(260, float("nan"))), AffineError, "no rotation"),
    "packed, cut": (lambda: gzip.compress(noise_file())[:-2000], TruncatedFileError, "before its pixels"),
    "packed, cut before the end mark": (lambda: gzip.compress(noise_file())[:-4], TruncatedFileError, "pixels"),
    "packed, cut in the header": (lambda: gzip.compress(bytes(plain_file()))[:30], TruncatedFileError, "header"),
    "packed, damaged": (lambda: damaged_packed(), UnreadableFileError, "damaged"),
    "packed, wrong check sum": (lambda: wrong_checksum(), UnreadableFileError, "damaged"),
    "packed something else": (lambda: gzip.compress(b"hello " * 200), UnknownFormatError, "first bytes"),
    "1 MB of 1 GB": (
        lambda: deflated_zeros(bytes(plain_file(shape=(SIDE,) * 3)[:352]), 2**30),
        OversizedScanError,
        "unpacks to more than",
    ),
    "many members": (
        lambda: repeated_bomb(bytes(plain_file(shape=(SIDE,) * 3)[:352]), 12),
        OversizedScanError,
        "unpacks to more than",
    ),
    "declares more than deflate can hold": (
        lambda: gzip.compress(patched(42, "3h", 400, 400, 400)),
        TruncatedFileError,
        "before its pixels",
    ),
}


def noise_file() -> bytes:
    data = plain_file()
    data[352:] = np.random.default_rng(0).bytes(len(data) - 352)
    return bytes(data)


def damaged_packed() -> bytes:
    data = bytearray(gzip.compress(noise_file()))
    data[4000:4100] = bytes(100)
    return bytes(data)


def wrong_checksum() -> bytes:
    data = bytearray(gzip.compress(noise_file()))
    data[-6] ^= 255
    return bytes(data)
