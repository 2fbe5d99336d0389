"""Damaged headers of every format: a header or an error of the scan, never anything else, and never for long."""

from __future__ import annotations

import io
import time
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mutants import EVERY_FORMAT, FORMATS, READERS, SUFFIXES, mutate
from volumes_made import entry_of_files

from raysegment.archive.decoder import Decoder
from raysegment.archive.formats import HEAD_BYTES, get_reader, recognise
from raysegment.archive.index import find_scans
from raysegment.archive.read import read_scan
from raysegment.errors import ScanError

LIMIT_CPU_SECONDS = 1.0


@pytest.mark.parametrize("kind", EVERY_FORMAT)
@settings(max_examples=400, deadline=None, derandomize=True, database=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_a_damaged_header_is_a_header_or_an_error_of_the_scan(kind, seed):
    data = mutate(kind, np.random.default_rng(seed))
    reader = get_reader(recognise(data[:HEAD_BYTES]) or READERS[kind])
    started = time.process_time()
    try:
        header = reader.read_header(io.BytesIO(data), "a")
    except ScanError:
        header = None
    assert time.process_time() - started < LIMIT_CPU_SECONDS
    assert header is None or min(header.slices, header.rows, header.columns, header.channels) >= 1


def test_an_archive_of_damaged_files_is_indexed_file_by_file(tmp_path):
    for kind in FORMATS:
        for seed in range(100):
            name = f"{kind} {seed} x{SUFFIXES[kind]}"
            (tmp_path / name).write_bytes(mutate(kind, np.random.default_rng(seed)))
    table = find_scans(str(tmp_path))
    assert table.num_rows == 100 * len(FORMATS)
    assert all(row["problem"] or row["height"] for row in table.select(["problem", "height"]).to_pylist())


def test_damaged_dicom_is_read_or_is_an_error_of_the_scan_that_quotes_no_text(tmp_path):
    outcomes: Counter[str] = Counter()
    with Decoder(memory_mb=512, timeout_seconds=5) as decoder:
        for seed in range(600):
            (tmp_path / f"{seed}.dcm").write_bytes(mutate("dicom", np.random.default_rng((1, seed))))
            entry = replace(entry_of_files(tmp_path, f"{seed}.dcm"), reader="dicom")
            started = time.monotonic()
            try:
                scan, error = decoder.read(entry), None
            except ScanError as caught:
                scan, error = None, caught
            outcomes[type(error).__name__] += 1
            assert time.monotonic() - started < 5 * LIMIT_CPU_SECONDS
            if scan is None:
                assert "MUSTERMANN" not in str(error)
                assert str(seed) in str(error)
                continue
            assert scan.scan.pixels.ndim == 4
            assert scan.scan.affine is None or np.linalg.matrix_rank(scan.scan.affine) == 4
    assert outcomes["NoneType"] > 50
    assert len(outcomes) >= 5


@pytest.mark.parametrize("kind", ["nifti", "packed"])
def test_damaged_volumes_are_read_or_are_errors_of_the_scan_that_quote_no_text(kind, tmp_path):
    outcomes: Counter[str] = Counter()
    for seed in range(300):
        (tmp_path / f"{seed}{SUFFIXES[kind]}").write_bytes(mutate(kind, np.random.default_rng((1, seed))))
        entry = entry_of_files(tmp_path, f"{seed}{SUFFIXES[kind]}")
        try:
            scan, error = read_scan(entry, max_bytes=2**26), None
        except ScanError as caught:
            error = caught
        outcomes[type(error).__name__] += 1
        if error is not None:
            assert "MUSTERMANN" not in str(error)
            assert str(seed) in str(error)
            continue
        assert scan.pixels.ndim == 4
        assert min(scan.spacing_mm) > 0
        assert scan.affine is None or np.linalg.matrix_rank(scan.affine) == 4
    assert outcomes["NoneType"] > 10
    assert len(outcomes) > 5
