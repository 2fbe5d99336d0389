"""Volumes that nobody should write: each is an error of its scan, in bounded time and memory."""

from __future__ import annotations

import gzip
import io
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import nibabel
import numpy as np
import pytest
from volumes_made import entry_of_files, make_affine, write_nifti

from raysegment.archive.decoder import Decoder
from raysegment.archive.formats import nifti
from raysegment.archive.gzipped import unpack
from raysegment.archive.nifti_header import parse_header
from raysegment.archive.read import read_scan
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
    """Members of 1 GB of zeros one behind the other."""
    return deflated_zeros(head, 2**20) + deflated_zeros(b"", 2**30) * times


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
        lambda: repeated_bomb(bytes(plain_file(shape=(SIDE,) * 3)[:352]), 3),
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


@pytest.fixture(scope="module")
def decoder() -> Iterator[Decoder]:
    with Decoder(memory_mb=256, timeout_seconds=20) as decoder:
        yield decoder


@pytest.mark.parametrize("what", HOSTILE)
def test_a_hostile_volume_is_a_typed_error_that_names_file_and_cause(decoder, tmp_path, what):
    make, error, cause = HOSTILE[what]
    (tmp_path / "a.nii.gz").write_bytes(make())
    with pytest.raises(error, match=rf"a\.nii\.gz.*{cause}") as caught:
        decoder.read(entry_of_files(tmp_path, "a.nii.gz"))
    assert SECRET.decode() not in str(caught.value)


def test_the_good_file_that_the_hostile_ones_come_from_is_read(decoder, tmp_path):
    (tmp_path / "a.nii").write_bytes(plain_file())
    assert decoder.read(entry_of_files(tmp_path, "a.nii")).scan.grid == (16, 16, 16)


def test_a_file_of_several_gzip_members_is_whole(tmp_path):
    data = noise_file()
    packed = gzip.compress(data[:1000]) + gzip.compress(b"") + gzip.compress(data[1000:]) + bytes(20)
    (tmp_path / "a.nii.gz").write_bytes(packed)
    (tmp_path / "b.nii").write_bytes(data)
    scans = [read_scan(entry_of_files(tmp_path, name)) for name in ("a.nii.gz", "b.nii")]
    np.testing.assert_array_equal(scans[0].pixels, scans[1].pixels)


def test_members_that_end_anywhere_are_joined():
    pieces = [bytes([index]) * (700_000 * index + 13) for index in range(1, 5)]
    packed, expected = b"".join(gzip.compress(piece) for piece in pieces), b"".join(pieces)
    assert bytes(unpack(packed, len(expected), "a")) == expected
    with pytest.raises(TruncatedFileError):
        unpack(packed[:-30], len(expected), "a")
    with pytest.raises(OversizedScanError):
        unpack(packed + gzip.compress(bytes(100_000)), len(expected), "a")


def test_a_little_padding_behind_the_voxels_is_no_matter(tmp_path):
    (tmp_path / "a.nii.gz").write_bytes(gzip.compress(noise_file() + bytes(5000)))
    assert read_scan(entry_of_files(tmp_path, "a.nii.gz")).grid == (16, 16, 16)


def test_extensions_are_passed_over(tmp_path):
    image = nibabel.Nifti1Image(np.arange(64, dtype=np.int16).reshape(4, 4, 4), make_affine())
    image.header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", SECRET * 100))
    nibabel.save(image, tmp_path / "a.nii.gz")
    assert sorted(read_scan(entry_of_files(tmp_path, "a.nii.gz")).pixels.ravel()) == list(range(64))


def test_unpacking_takes_memory_for_what_is_declared_only():
    data = deflated_zeros(b"", 2**28)
    assert len(data) < 2**19
    with pytest.raises(OversizedScanError):
        unpack(data, 1000, "a")
    assert len(unpack(gzip.compress(bytes(1000)), 1000, "a")) == 1000


def test_a_header_alone_is_read_from_the_first_bytes():
    packed = gzip.compress(noise_file())
    header = nifti.read_header(io.BytesIO(packed[:2000]), "a")
    assert (header.slices, header.rows, header.columns, header.channels) == (16, 16, 16, 1)
    assert parse_header(noise_file()[:544], "a").offset == 352


@pytest.mark.parametrize(
    ("name", "data", "word"),
    [
        ("a.nrrd", b"NRRD0004\n" + bytes(600), "NRRD"),
        ("a.mha", b"ObjectType = Image\n" + bytes(600), "MetaImage"),
        ("a.mhd", b"Comment = x\n" + bytes(600), "MetaImage"),
        ("a.mgz", gzip.compress(struct.pack(">4i", 1, 4, 4, 4) + bytes(600)), "FreeSurfer"),
        ("a.img", bytes(600), "half of a pair"),
    ],
)
def test_neighbours_of_nifti_are_named(tmp_path: Path, name, data, word):
    (tmp_path / name).write_bytes(data)
    entry = entry_of_files(tmp_path, name)
    with pytest.raises(UnknownFormatError, match=rf"{name} is .*{word}.*convert it to NIfTI"):
        read_scan(entry.__class__(**{**vars(entry), "reader": ""}))


def test_analyze_is_named(tmp_path):
    image = nibabel.AnalyzeImage(np.ones((4, 4, 4), np.int16), np.eye(4))
    (tmp_path / "a.hdr").write_bytes(image.header.binaryblock)
    entry = entry_of_files(tmp_path, "a.hdr")
    with pytest.raises(UnknownFormatError, match=r"a\.hdr.*Analyze.*convert it to \.nii\.gz"):
        read_scan(entry)


def test_a_volume_turned_by_a_good_header_is_not_refused(tmp_path):
    write_nifti(tmp_path / "a.nii.gz", np.ones((3, 4, 5), np.uint8), make_affine((0.5, 0.5, 5), (40, 40, 40)))
    assert read_scan(entry_of_files(tmp_path, "a.nii.gz")).spacing_mm[0] == pytest.approx(5)
