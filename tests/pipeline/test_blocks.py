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
