from __future__ import annotations

import os
import struct

import numpy as np
import pytest
import tifffile

from raysegment.archive.decoder import Decoder
from raysegment.archive.index import find_scans
from raysegment.archive.manifest import entries
from raysegment.archive.read import read_scan
from raysegment.archive.reference import read_reference
from raysegment.errors import (
    AccessError,
    ChannelMismatchError,
    EmptyFileError,
    GridMismatchError,
    NonFinitePixelsError,
    OversizedScanError,
    SliceMismatchError,
    UnknownFormatError,
    UnreadableReferenceError,
)
from raysegment.scan import ScanEntry


def only_entry(source: object) -> ScanEntry:
    (entry,) = entries(find_scans(str(source)))
    return entry


def write_reference(folder, values: np.ndarray) -> ScanEntry:
    tifffile.imwrite(folder / "a.tif", np.zeros((*values.shape[:2], 3), np.uint8), photometric="rgb")
    tifffile.imwrite(folder / "a_mask.tif", values)
    return only_entry(folder)


def test_slices_are_stacked_in_natural_order(tmp_path, write_series):
    pixels = write_series(tmp_path / "p", "p_", slices=12)
    np.testing.assert_array_equal(read_scan(only_entry(tmp_path)).pixels, pixels)


def test_a_file_without_bytes_is_empty(tmp_path):
    (tmp_path / "a.tif").touch()
    with pytest.raises(EmptyFileError, match=r"a\.tif has no bytes"):
        read_scan(only_entry(tmp_path))


def test_a_text_file_called_tif_is_of_unknown_format(tmp_path):
    (tmp_path / "a.tif").write_text("patient Jane Doe")
    entry = only_entry(tmp_path)
    assert "first bytes" in entry.problem
    with pytest.raises(UnknownFormatError, match=r"a\.tif"):
        read_scan(entry)


def test_a_tiff_that_declares_absurd_size_is_refused_before_anything_is_allocated(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((4, 4), np.uint8), metadata=None)
    data = bytearray((tmp_path / "a.tif").read_bytes())
    (first,) = struct.unpack_from("<I", data, 4)
    (count,) = struct.unpack_from("<H", data, first)
    for index in range(count):
        code, _, _, _ = struct.unpack_from("<HHII", data, first + 2 + 12 * index)
        if code in (256, 257, 278):
            struct.pack_into("<HHII", data, first + 2 + 12 * index, code, 4, 1, 100_000)
    (tmp_path / "a.tif").write_bytes(data)
    entry = only_entry(tmp_path)
    assert "9537 MB" in entry.problem
    with pytest.raises(OversizedScanError, match=r"a\.tif declares a scan of 9537 MB"):
        read_scan(entry)


def test_nan_and_infinity_are_refused(tmp_path):
    pixels = np.zeros((4, 4), np.float32)
    pixels[1, 1], pixels[2, 2] = np.nan, np.inf
    tifffile.imwrite(tmp_path / "a.tif", pixels)
    with pytest.raises(NonFinitePixelsError, match=r"a\.tif holds 2 values"):
        read_scan(only_entry(tmp_path))


def test_slices_of_two_shapes_are_refused(tmp_path, write_series):
    write_series(tmp_path, "p_", masks=False)
    tifffile.imwrite(tmp_path / "p_2.tif", np.zeros((8, 8, 3), np.uint8), photometric="rgb")
    with pytest.raises(SliceMismatchError, match=r"p_2\.tif is \(8, 8\) uint8, p_1\.tif is \(16, 16\) uint8"):
        read_scan(only_entry(tmp_path))


def test_slices_of_two_types_are_refused(tmp_path, write_series):
    write_series(tmp_path, "p_", masks=False)
    tifffile.imwrite(tmp_path / "p_3.tif", np.zeros((16, 16, 3), np.uint16), photometric="rgb")
    with pytest.raises(SliceMismatchError, match="uint16"):
        read_scan(only_entry(tmp_path))


def test_slices_of_other_channels_are_refused(tmp_path, write_series):
    write_series(tmp_path, "p_", masks=False)
    tifffile.imwrite(tmp_path / "p_2.tif", np.zeros((16, 16), np.uint8))
    with pytest.raises(ChannelMismatchError, match=r"p_2\.tif has 1 channel, p_1\.tif has 3"):
        read_scan(only_entry(tmp_path))


def test_a_link_to_nowhere_is_a_row_and_an_access_error(tmp_path):
    os.symlink(tmp_path / "gone.tif", tmp_path / "a.tif")
    entry = only_entry(tmp_path)
    assert entry.problem == "a.tif is a link to nowhere"
    with pytest.raises(AccessError, match=r"a\.tif.*No such file"):
        read_scan(entry)


def test_alpha_of_a_reference_does_not_count(tmp_path):
    values = np.zeros((2, 2, 4), np.uint8)
    values[..., 3] = 255
    values[0, 0, 0] = 255
    entry = write_reference(tmp_path, values)
    np.testing.assert_array_equal(read_reference(entry, (1, 2, 2))[0], [[True, False], [False, False]])


def test_a_slice_without_a_mask_has_an_empty_reference(tmp_path, write_series):
    pixels = write_series(tmp_path, "p_")
    (tmp_path / "p_2_mask.tif").unlink()
    entry = only_entry(tmp_path)
    assert entry.reference_files == ("p_1_mask.tif", "", "p_3_mask.tif")
    reference = read_reference(entry, (3, 16, 16))
    assert not reference[1].any()
    np.testing.assert_array_equal(reference[2], pixels[2, ..., 0] > 128)


def test_a_reference_on_another_grid_is_no_error_of_the_scan(tmp_path):
    entry = write_reference(tmp_path, np.zeros((4, 4), np.uint8))
    with pytest.raises(GridMismatchError, match=r"reference is \(1, 4, 4\), scan is \(1, 8, 8\)"):
        read_reference(entry, (1, 8, 8))
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((8, 8, 3), np.uint8), photometric="rgb")
    with Decoder() as decoder:
        decoded = decoder.read(entry, with_reference=True)
    assert decoded.scan.grid == (1, 8, 8)
    assert decoded.reference_error.startswith("GridMismatchError: a_mask.tif")


def test_an_unreadable_reference_is_told_apart(tmp_path):
    entry = write_reference(tmp_path, np.zeros((4, 4), np.uint8))
    (tmp_path / "a_mask.tif").write_text("no mask")
    with pytest.raises(UnreadableReferenceError, match=r"a_mask\.tif"):
        read_reference(entry, (1, 4, 4))


def test_a_stack_has_a_stack_as_its_reference(tmp_path):
    volume = np.zeros((5, 8, 8), np.uint8)
    volume[2] = 255
    tifffile.imwrite(tmp_path / "ct.tif", np.zeros((5, 8, 8), np.int16))
    tifffile.imwrite(tmp_path / "ct_mask.tif", volume)
    entry = only_entry(tmp_path)
    assert read_scan(entry).grid == (5, 8, 8)
    np.testing.assert_array_equal(read_reference(entry, (5, 8, 8)), volume > 0)
