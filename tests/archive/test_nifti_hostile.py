"""Volumes that nobody should write: each is an error of its scan, in bounded time and memory."""

from __future__ import annotations

import gzip
import io
import struct
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest
from volumes_hostile import HOSTILE, SECRET, deflated_zeros, noise_file, plain_file
from volumes_made import entry_of_files, make_affine, write_nifti

from raysegment.archive.decoder import Decoder
from raysegment.archive.formats import nifti
from raysegment.archive.gzipped import unpack
from raysegment.archive.nifti_header import parse_header
from raysegment.archive.read import read_scan
from raysegment.errors import (
    OversizedScanError,
    TruncatedFileError,
    UnknownFormatError,
)


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
        ("a.mgz", gzip.compress(struct.pack(">4i", 1, 4, 4, 4) + bytes(600), mtime=0), "FreeSurfer"),
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


def test_a_long_gzip_header_hides_no_volume(tmp_path):
    packed = gzip.compress(noise_file())
    comment = b"c" * 2000 + b"\0"
    (tmp_path / "a.nii.gz").write_bytes(packed[:3] + b"\x10" + packed[4:10] + comment + packed[10:])
    entry = replace(entry_of_files(tmp_path, "a.nii.gz"), reader="")
    assert read_scan(entry).grid == (16, 16, 16)
