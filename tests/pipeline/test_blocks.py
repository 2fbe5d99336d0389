"""How pixels travel, and that nothing of them stays behind."""

from __future__ import annotations

import gc
import weakref
from types import SimpleNamespace

import numpy as np

from raysegment.pipeline.blocks import read_block, scans_of
from raysegment.scan import Scan, ScanEntry


class FakeDecoder:
    """Makes scans of 4 slices, and watches whether their pixels are let go."""

    def __init__(self) -> None:
        self.made: list[weakref.ref[np.ndarray]] = []

    def read(self, entry: ScanEntry, *, with_reference: bool) -> SimpleNamespace:
        pixels = np.full((4, 8, 8, 1), len(self.made), np.uint8)
        self.made.append(weakref.ref(pixels))
        return SimpleNamespace(scan=Scan(pixels), reference=pixels[..., 0] > 1, reference_error=None)


def entries_of(count: int) -> list[ScanEntry]:
    return [
        ScanEntry(scan_id=f"s{n}", patient_id="p", source="/a", reader="tiff", files=("x.tif",), fingerprint=str(n))
        for n in range(count)
    ]


def test_scans_come_back_as_they_went_in_blocks_of_bounded_size():
    tables = list(read_block(FakeDecoder(), entries_of(5), max_bytes=2 * 4 * 64))
    assert [table.num_rows for table in tables] == [2, 2, 1]
    scans = [scan for table in tables for scan in scans_of(table)]
    assert [int(scan.scan.pixels.max()) for scan in scans] == [0, 1, 2, 3, 4]
    assert scans[3].scan.pixels.shape == (4, 8, 8, 1)
    assert [bool(scan.reference.all()) for scan in scans] == [False, False, True, True, True]


def test_a_reading_process_keeps_nothing_of_what_it_read():
    decoder = FakeDecoder()
    for _ in read_block(decoder, entries_of(6), max_bytes=4 * 64):
        pass
    gc.collect()
    assert [made() for made in decoder.made] == [None] * 6


def test_large_scans_and_small_ones_share_a_block_and_the_large_are_not_copied():
    sizes = [(1, 3, 5, 1), (4, 512, 512, 1), (1, 7, 3, 1), (4, 600, 512, 1), (1, 2, 2, 3)]
    made = [np.arange(np.prod(size), dtype=np.uint16).reshape(size) for size in sizes]

    class Listed(FakeDecoder):
        def read(self, entry: ScanEntry, *, with_reference: bool) -> SimpleNamespace:
            return SimpleNamespace(scan=Scan(made[int(entry.fingerprint)]), reference=None, reference_error=None)

    (table,) = read_block(Listed(), entries_of(len(sizes)))
    pixels = [read.scan.pixels for read in scans_of(table)]
    for found, expected in zip(pixels, made, strict=True):
        np.testing.assert_array_equal(found, expected)
        assert not found.flags.writeable
    assert [bool(np.shares_memory(*pair)) for pair in zip(pixels, made, strict=True)] == [
        False,
        True,
        False,
        True,
        False,
    ]


def test_what_goes_wrong_outside_the_decoder_is_an_error_of_that_scan():
    class Sick(FakeDecoder):
        def read(self, entry: ScanEntry, *, with_reference: bool) -> SimpleNamespace:
            if entry.scan_id != "s1":
                raise {"s0": MemoryError(), "s2": ValueError("secret header")}[entry.scan_id]
            return super().read(entry, with_reference=with_reference)

        def close(self) -> None:
            pass

    (table,) = read_block(Sick(), entries_of(3))
    assert table["error_type"].to_pylist() == ["DecoderMemoryError", None, "UnreadableFileError"]
    assert "secret" not in str(table["error_message"].to_pylist())
    assert [scan.scan is None for scan in scans_of(table)] == [True, False, True]


def test_label_maps_take_a_bit_a_voxel_where_that_is_enough_and_come_back_in_their_type():
    drawn = [np.full((4, 8, 8), value, dtype) for value, dtype in ((1, "u1"), (1, "u2"), (4, "u1"), (300, "u2"))]

    class Labelled(FakeDecoder):
        def read(self, entry: ScanEntry, *, with_reference: bool) -> SimpleNamespace:
            pixels = np.zeros((4, 8, 8, 1), np.uint8)
            reference = drawn[int(entry.fingerprint)]
            return SimpleNamespace(scan=Scan(pixels), reference=reference, reference_error=None)

    (table,) = read_block(Labelled(), entries_of(len(drawn)))
    assert [len(stored) for stored in table["reference"].to_pylist()] == [32, 32, 256, 512]
    found = [read.reference for read in scans_of(table)]
    assert [reference.dtype for reference in found] == ["u1", "u1", "u1", "u2"]
    for reference, expected in zip(found, drawn, strict=True):
        np.testing.assert_array_equal(reference, expected)
