"""From a manifest's row to pixels and to the reference."""

from __future__ import annotations

import io
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import chain, islice
from typing import Any

import numpy as np
import numpy.typing as npt

from raysegment.archive.filesystem import is_uri, read_bytes
from raysegment.archive.formats import HEAD_BYTES, Reader, get_reader, recognise
from raysegment.archive.names import show_name
from raysegment.errors import (
    AccessError,
    ChannelMismatchError,
    EmptyFileError,
    GridMismatchError,
    NonFinitePixelsError,
    OversizedScanError,
    ScanError,
    SliceMismatchError,
    UnknownFormatError,
    UnreadableReferenceError,
)
from raysegment.scan import Pixels, Scan, ScanEntry

Reference = npt.NDArray[np.bool_]
"""(slices, rows, columns), True inside the region."""

MAX_SCAN_BYTES = 4 * 2**30
"""Decoded size from which a scan's header is not believed, unless a caller says otherwise."""

LARGEST_LABEL = 15
"""References whose largest value is at most this hold label numbers, larger ones hold grey levels."""

CONCURRENT_READS = 8


def read_scan(entry: ScanEntry, *, max_bytes: int = MAX_SCAN_BYTES) -> Scan:
    """Read all slices of one scan.

    Args:
        entry: The scan's row of the manifest.
        max_bytes: Largest decoded size, compared with what the headers declare before anything is decoded.

    Returns:
        Pixels (slices, rows, columns, channels) as stored; spacing and affine where the format has them.

    Raises:
        ScanError: The scan cannot be read; the message names the file and the cause.
    """
    if not entry.files:
        cause = entry.problem or "there is no file to read"
        raise AccessError(f"{show_name(entry.scan_id)}: {cause}.")
    scan = _read_volume(entry.source, entry.reader, entry.files, max_bytes)
    if not scan.pixels.size:
        raise EmptyFileError(f"{show_name(entry.scan_id)} has no pixels.")
    return scan


def read_reference(entry: ScanEntry, grid: tuple[int, int, int], *, max_bytes: int = MAX_SCAN_BYTES) -> Reference:
    """Read the reference of one scan as True and False.

    A value counts as region where it is over half of full scale. Full scale is 1 for bool and for values up to 1, 255
    for values up to 255, 65535 for values up to 65535, else the largest value. A reference whose largest value lies
    between 2 and 15 holds label numbers: each label counts as region. Of colours the brightest counts, alpha does not.

    Args:
        entry: The scan's row of the manifest; an empty name among its reference files is a slice without region.
        grid: The scan's (slices, rows, columns).
        max_bytes: Largest decoded size, as in `read_scan`.

    Returns:
        bool, (slices, rows, columns).

    Raises:
        GridMismatchError: The reference lies on another grid.
        UnreadableReferenceError: There is none, or it cannot be read.
    """
    names = [name for name in entry.reference_files if name]
    if not names:
        raise UnreadableReferenceError(f"{show_name(entry.scan_id)} has no reference.")
    try:
        drawn = _read_volume(entry.source, "", tuple(names), max_bytes).pixels
    except ScanError as error:
        raise UnreadableReferenceError(str(error)) from error
    present = [index for index, name in enumerate(entry.reference_files) if name]
    by_slice = len(entry.reference_files) > 1
    slices = len(entry.reference_files) if by_slice else drawn.shape[0]
    if (slices, *drawn.shape[1:3]) != tuple(grid) or (by_slice and len(present) != drawn.shape[0]):
        shape = (slices, *drawn.shape[1:3])
        raise GridMismatchError(
            f"{show_name(names[0])}: reference is {shape}, scan is {tuple(grid)}; both must share one grid."
        )
    region = _binarise(drawn)
    if not by_slice or len(present) == slices:
        return region
    reference = np.zeros(grid, bool)
    reference[present] = region
    return reference


def _read_volume(source: str, reader_name: str, files: tuple[str, ...], max_bytes: int) -> Scan:
    """Stack the slices of all files; without a reader's name each file's first bytes choose it."""
    parts = _decode_files(source, reader_name, files, max_bytes)
    first = next(parts)
    if len(files) == 1:
        return first
    stack = np.empty((len(files), *first.pixels.shape[1:]), first.pixels.dtype)
    for index, part in enumerate(chain([first], parts)):
        if part.num_slices != 1:
            raise SliceMismatchError(
                f"{show_name(files[index])} holds {part.num_slices} slices; a series has one a file."
            )
        _check_same(part.pixels, stack, files[index], files[0])
        stack[index] = part.pixels[0]
    return Scan(stack, first.spacing_mm, first.affine)


def _decode_files(source: str, reader_name: str, files: tuple[str, ...], max_bytes: int) -> Iterator[Scan]:
    """Decode file by file; declared sizes are checked first, and the pixels afterwards."""
    for name, data in zip(files, _read_ahead(source, files), strict=True):
        reader = _reader_for(reader_name, data, name)
        header = reader.read_header(io.BytesIO(data), name)
        _check_size(header.num_bytes * len(files), max_bytes, name)
        part = reader.read_slices(data, name)
        _check_finite(part.pixels, name)
        yield part


def _read_ahead(source: str, files: tuple[str, ...]) -> Iterator[bytes]:
    """Bytes of each file in order; from a bucket several at once."""
    if not is_uri(source) or len(files) == 1:
        yield from (read_bytes(source, name) for name in files)
        return
    with ThreadPoolExecutor(CONCURRENT_READS) as pool:
        left = iter(files)
        waiting = [pool.submit(read_bytes, source, name) for name in islice(left, CONCURRENT_READS)]
        while waiting:
            data = waiting.pop(0).result()
            waiting += [pool.submit(read_bytes, source, name) for name in islice(left, 1)]
            yield data


def _reader_for(reader_name: str, data: bytes, name: str) -> Reader:
    if not data:
        raise EmptyFileError(f"{show_name(name)} has no bytes.")
    found = reader_name or recognise(data[:HEAD_BYTES])
    if found is None:
        raise UnknownFormatError(f"{show_name(name)}: the first bytes belong to no format that raysegment reads.")
    return get_reader(found)


def _check_size(num_bytes: int, max_bytes: int, name: str) -> None:
    if num_bytes > max_bytes:
        raise OversizedScanError(
            f"{show_name(name)} declares a scan of {num_bytes / 2**20:.0f} MB; at most "
            f"{max_bytes / 2**20:.0f} MB are read."
        )


def _check_finite(pixels: Pixels, name: str) -> None:
    if pixels.dtype.kind == "f" and not np.isfinite(pixels).all():
        bad = int(pixels.size - np.isfinite(pixels).sum())
        raise NonFinitePixelsError(f"{show_name(name)} holds {bad} values that are NaN or infinite.")


def _check_same(pixels: Pixels, first: Pixels, name: str, first_name: str) -> None:
    """Refuse a slice that does not fit the first one."""
    if pixels.shape[3] != first.shape[3]:
        raise ChannelMismatchError(
            f"{show_name(name)} has {pixels.shape[3]} channels, {show_name(first_name)} has {first.shape[3]}."
        )
    if pixels.shape[1:3] != first.shape[1:3] or pixels.dtype != first.dtype:
        raise SliceMismatchError(
            f"{show_name(name)} is {pixels.shape[1:3]} {pixels.dtype}, {show_name(first_name)} is {first.shape[1:3]} "
            f"{first.dtype}; the slices of a scan must share shape and type."
        )


def _binarise(drawn: npt.NDArray[Any]) -> Reference:
    """Which values are region; see `read_reference` for the rule."""
    colours = drawn[..., :-1] if drawn.shape[-1] in (2, 4) else drawn
    value = colours[..., 0] if colours.shape[-1] == 1 else colours.max(axis=-1)
    largest = float(value.max(initial=0))
    if 1 < largest <= LARGEST_LABEL and value.dtype.kind in "ui":
        return np.asarray(value > 0)
    full_scale = next((scale for scale in (1.0, 255.0, 65535.0) if largest <= scale), largest)
    return np.asarray(value > 0.5 * full_scale)
