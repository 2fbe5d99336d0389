"""How decoded scans travel: one row a scan, pixels as bytes with shape and dtype as stored in the file."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date
from itertools import groupby
from typing import Any

import numpy as np
import pyarrow as pa

from raysegment.archive.decoder import Decoder
from raysegment.errors import AccessError, DecoderMemoryError, ScanError, UnreadableFileError
from raysegment.scan import LabelMap, Scan, ScanEntry

MAX_BLOCK_BYTES = 128 * 2**20
"""A block holds at most this many bytes of pixels; a larger scan is alone in its block."""

SMALL_BYTES = 2**20
"""Pixels of scans below this size are copied together, so that a block of many has few buffers."""

BLOCK_SCHEMA = pa.schema(
    [
        ("scan_id", pa.string()),
        ("patient_id", pa.string()),
        ("source", pa.string()),
        ("fingerprint", pa.string()),
        ("scan_date", pa.date32()),
        ("scan_day", pa.int32()),
        ("shape", pa.list_(pa.int32())),
        ("dtype", pa.string()),
        ("pixels", pa.large_binary()),
        ("reference", pa.large_binary()),
        ("reference_dtype", pa.string()),
        ("spacing_mm", pa.list_(pa.float64())),
        ("affine", pa.list_(pa.float64())),
        ("reference_error", pa.string()),
        ("error_type", pa.string()),
        ("error_message", pa.string()),
        ("seconds_read", pa.float64()),
    ]
)
"""`reference` holds eight voxels a byte where `reference_dtype` is null, because no value is above 1. A failed scan has
`error_type` and no pixels."""

IDENTITY = ("scan_id", "patient_id", "source", "fingerprint", "scan_date", "scan_day")
"""Columns that come from the manifest as they are."""

BUFFERS = ("pixels", "reference")
"""Columns that are built from buffers; Table.from_pylist never lets go of a memoryview (PyArrow 26.0)."""


@dataclass(frozen=True, eq=False)
class ReadScan:
    """A scan as it came from the archive, or why it did not come.

    Attributes:
        scan: The pixels; None where reading failed.
        reference: (slices, rows, columns); None where there is none that can be used.
        error: Type and message of what went wrong; None where nothing did.
    """

    scan_id: str
    patient_id: str
    source: str
    fingerprint: str
    scan: Scan | None
    reference: LabelMap | None = None
    reference_error: str | None = None
    error: tuple[str, str] | None = None
    seconds_read: float = 0.0
    scan_date: date | None = None
    scan_day: int | None = None


def read_entry(decoder: Decoder, entry: ScanEntry) -> dict[str, Any]:
    """Read one scan and its reference into a row of a block; a scan that cannot be read becomes a row that says why."""
    started = time.perf_counter()
    row: dict[str, Any] = dict.fromkeys(BLOCK_SCHEMA.names)
    row |= {name: getattr(entry, name) for name in IDENTITY}
    try:
        decoded = decoder.read(entry, with_reference=True)
        row |= _pack(decoded.scan, decoded.reference) | {"reference_error": decoded.reference_error}
    except ScanError as error:
        row |= {"error_type": type(error).__name__, "error_message": str(error)}
    except OSError as error:
        row |= {"error_type": AccessError.__name__, "error_message": f"{entry.scan_id}: {error}"}
    except MemoryError:
        decoder.close()
        message = f"{entry.scan_id}: its pixels do not fit into the memory of the reading process."
        row |= {"error_type": DecoderMemoryError.__name__, "error_message": message}
    except Exception as error:
        decoder.close()
        message = f"{entry.scan_id}: reading it failed ({type(error).__name__})."
        row |= {"error_type": UnreadableFileError.__name__, "error_message": message}
    return row | {"seconds_read": time.perf_counter() - started}


def read_block(decoder: Decoder, entries: list[ScanEntry], max_bytes: int = MAX_BLOCK_BYTES) -> Iterator[pa.Table]:
    """Read scans into tables of at most `max_bytes` of pixels and label maps each; a larger scan is alone."""
    rows: list[dict[str, Any]] = []
    num_bytes = 0
    for entry in entries:
        row = read_entry(decoder, entry)
        size = row["pixels"].size if row["pixels"] is not None else 0
        size += row["reference"].size if row["reference_dtype"] is not None else 0
        if rows and num_bytes + size > max_bytes:
            yield build_block(rows)
            rows, num_bytes = [], 0
        rows.append(row)
        num_bytes += size
    if rows:
        yield build_block(rows)


def build_block(rows: list[dict[str, Any]]) -> pa.Table:
    """Rows of `read_entry` as a table, in which the pixels of larger scans lie where the decoder put them."""
    columns = {name: [row[name] for row in rows] for name in BLOCK_SCHEMA.names}
    buffers = {name: _join_buffers(columns[name]) for name in BUFFERS}
    return pa.table(columns | buffers, schema=BLOCK_SCHEMA)


def scans_of(block: pa.Table) -> Iterator[ReadScan]:
    """The scans of a block; their pixels are views of the block's memory and read-only."""
    plain = block.drop_columns(list(BUFFERS)).to_pylist()
    pixels, references = (_split_buffers(block[name]) for name in BUFFERS)
    for row, buffer, reference in zip(plain, pixels, references, strict=True):
        yield _unpack(row, buffer, reference)


def _pack(scan: Scan, reference: LabelMap | None) -> dict[str, Any]:
    pixels = np.ascontiguousarray(scan.pixels)
    return {
        "shape": list(pixels.shape),
        "dtype": pixels.dtype.str,
        "pixels": pa.py_buffer(pixels.reshape(-1).view(np.uint8)),
        **_pack_reference(reference),
        "spacing_mm": None if scan.spacing_mm is None else list(scan.spacing_mm),
        "affine": None if scan.affine is None else scan.affine.ravel().tolist(),
    }


def _pack_reference(reference: LabelMap | None) -> dict[str, Any]:
    if reference is None:
        return {"reference": None, "reference_dtype": None}
    if reference.max(initial=0) <= 1:
        return {"reference": pa.py_buffer(np.packbits(reference)), "reference_dtype": None}
    stored = np.ascontiguousarray(reference)
    return {"reference": pa.py_buffer(stored.reshape(-1).view(np.uint8)), "reference_dtype": stored.dtype.str}


def _join_buffers(buffers: list[pa.Buffer | None]) -> pa.ChunkedArray:
    """A large_binary column: neighbouring small buffers are copied into one chunk, a large one is a chunk as it is."""
    chunks: list[pa.Array] = []
    for is_large, group in groupby(buffers, key=lambda buffer: buffer is not None and buffer.size >= SMALL_BYTES):
        if is_large:
            chunks += [_wrap_buffer(buffer) for buffer in group]
        else:
            small = [None if buffer is None else buffer.to_pybytes() for buffer in group]
            chunks.append(pa.array(small, pa.large_binary()))
    return pa.chunked_array(chunks, pa.large_binary())


def _wrap_buffer(buffer: pa.Buffer) -> pa.Array:
    """One value of large_binary around a buffer, without a copy."""
    offsets = pa.py_buffer(np.array([0, buffer.size], np.int64))
    return pa.Array.from_buffers(pa.large_binary(), 1, [None, offsets, buffer])


def _split_buffers(column: pa.ChunkedArray) -> Iterator[pa.Buffer | None]:
    """The values of a large_binary column as views; a scalar of PyArrow would be a copy."""
    for chunk in filter(len, column.chunks):
        _, offsets, data = chunk.buffers()
        bounds = np.frombuffer(offsets, np.int64)[chunk.offset : chunk.offset + len(chunk) + 1].tolist()
        for is_valid, start, stop in zip(chunk.is_valid().to_pylist(), bounds, bounds[1:], strict=False):
            yield data.slice(start, stop - start) if is_valid else None


def _unpack(row: dict[str, Any], pixels: pa.Buffer | None, reference: pa.Buffer | None) -> ReadScan:
    identity = {name: row[name] for name in (*IDENTITY, "seconds_read")}
    if pixels is None:
        return ReadScan(**identity, scan=None, error=(row["error_type"], row["error_message"]))
    shape = tuple(row["shape"])
    scan = Scan(
        np.require(np.frombuffer(pixels, row["dtype"]), requirements="A").reshape(shape),
        None if row["spacing_mm"] is None else tuple(row["spacing_mm"]),
        None if row["affine"] is None else np.reshape(row["affine"], (4, 4)),
    )
    drawn = None if reference is None else _unpack_reference(reference, row["reference_dtype"], scan.grid)
    return ReadScan(**identity, scan=scan, reference=drawn, reference_error=row["reference_error"])


def _unpack_reference(reference: pa.Buffer, dtype: str | None, grid: tuple[int, int, int]) -> LabelMap:
    if dtype is None:
        return np.unpackbits(np.frombuffer(reference, np.uint8), count=math.prod(grid)).reshape(grid)
    return np.require(np.frombuffer(reference, dtype), requirements="A").reshape(grid)
