"""From a manifest's row to pixels."""

from __future__ import annotations

import io
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import chain, islice

import numpy as np

from raysegment.archive.dicom.series import read_stack
from raysegment.archive.filesystem import is_uri, read_bytes
from raysegment.archive.formats import HEAD_BYTES, Reader, get_reader, is_turned, reads_series, recognise
from raysegment.archive.names import show_name
from raysegment.archive.neighbours import describe_unknown
from raysegment.archive.volumes import Grid, join_channels, lay_on_grid, turn_scan
from raysegment.errors import (
    AccessError,
    AffineError,
    ChannelMismatchError,
    EmptyFileError,
    GridMismatchError,
    MissingChannelError,
    NonFinitePixelsError,
    OversizedScanError,
    ScanError,
    SliceMismatchError,
    UnknownFormatError,
    UnreadableReferenceError,
    parse_scan_error,
)
from raysegment.scan import READ_AS_STORED, Pixels, ReadSettings, Scan, ScanEntry

MAX_SCAN_BYTES = 4 * 2**30
"""Decoded size from which a scan's header is not believed, unless a caller says otherwise."""

CONCURRENT_READS = 8


def read_scan(entry: ScanEntry, settings: ReadSettings = READ_AS_STORED, *, max_bytes: int = MAX_SCAN_BYTES) -> Scan:
    """Read all slices of one scan.

    Args:
        entry: The scan's row of the manifest.
        settings: How volumes are cut into slices, and what is brought to their grid.
        max_bytes: Largest decoded size, compared with what the headers declare before anything is decoded.

    Returns:
        Pixels (slices, rows, columns, channels) as stored, those of volumes in canonical order (`orientation`);
        spacing and affine where the format has them.

    Raises:
        ScanError: The scan cannot be read; the message names the file and the cause.
    """
    if not entry.files:
        raise _describe_no_file(entry)
    _check_channels_there(entry)
    scan, _ = read_volume(
        entry.source, entry.reader, entry.files, max_bytes, settings, channel_names=entry.channel_names
    )
    if not scan.pixels.size:
        raise EmptyFileError(f"{show_name(entry.scan_id)} has no pixels.")
    return scan


def read_volume(
    source: str,
    reader_name: str,
    files: tuple[str, ...],
    max_bytes: int,
    settings: ReadSettings = READ_AS_STORED,
    *,
    channel_names: tuple[str, ...] = (),
    grid: Grid | None = None,
) -> tuple[Scan, bool]:
    """Stack the slices of all files, or the channels where files are volumes or series of slices.

    Args:
        source: What the files are below.
        reader_name: Reader of all files; if empty each file's first bytes choose it.
        files: One or more.
        max_bytes: As in `read_scan`.
        settings: As in `read_scan`.
        channel_names: Without at least two of them a volume's fourth axis is refused. The files of DICOM series come
            channel by channel, as many of each.
        grid: Of a scan, that a volume is a reference of and must lie on.

    Returns:
        The scan, and whether a file was compressed with losses.
    """
    others = zip(files, _read_ahead(source, files), strict=True)
    first_name, first_data = next(others)
    contents = chain([(first_name, first_data)], others)
    if reads_series(_reader_for(reader_name, first_data, first_name)):
        return _read_series(contents, files, max_bytes, settings, channel_names, grid)
    parts = _decode_files(contents, reader_name, len(files), max_bytes)
    first = next(parts)
    _check_place(first, grid)
    if first.is_volume:
        if len(files) > 1 and grid is not None:
            raise UnreadableReferenceError(
                f"{show_name(first.name)} is one of {len(files)} volumes that are to be one reference; expected one "
                "volume, of all slices and labels."
            )
        if len(files) > 1:
            volumes = ((part.scan, part.name) for part in chain([first], parts))
            return join_channels(volumes, len(files), settings), False
        _check_fourth_axis(first, channel_names)
        if grid is None:
            return turn_scan(first.scan, settings.slice_axis), False
        return lay_on_grid(first.scan, grid, settings, first.name, is_reference=True), False
    if len(files) == 1:
        return first.scan, first.is_lossy
    return _stack_slices(first, parts, files)


def _read_series(
    contents: Iterator[tuple[str, bytes]],
    files: tuple[str, ...],
    max_bytes: int,
    settings: ReadSettings,
    channel_names: tuple[str, ...],
    grid: Grid | None,
) -> tuple[Scan, bool]:
    """Sort and stack a series, or one for each channel, and put them on one grid."""
    num_series = max(1, len(channel_names)) if len(files) > 1 else 1
    if len(files) % num_series:
        raise ChannelMismatchError(
            f"{show_name(files[0])} and {len(files) - 1} more files are not as many of each of {num_series} channels."
        )
    parts = _stack_series(contents, len(files) // num_series, num_series, max_bytes)
    if num_series > 1:
        joined: list[_Part] = []
        return join_channels(_volumes_of(parts, joined), num_series, settings), any(part.is_lossy for part in joined)
    (part,) = parts
    _check_place(part, grid)
    _check_colours(part, channel_names)
    if not part.is_volume:
        return part.scan, part.is_lossy
    if grid is not None:
        return lay_on_grid(part.scan, grid, settings, part.name, is_reference=True), part.is_lossy
    return turn_scan(part.scan, settings.slice_axis), part.is_lossy


def _stack_series(
    contents: Iterator[tuple[str, bytes]], num_files: int, num_series: int, max_bytes: int
) -> Iterator[_Part]:
    """The stack of each series in turn."""
    for _ in range(num_series):
        first = next(contents)
        stack = read_stack(chain([first], islice(contents, num_files - 1)), num_files, max_bytes // num_series)
        _check_finite(stack.scan.pixels, first[0])
        yield _Part(stack.scan, first[0], stack.is_lossy, stack.scan.affine is not None)


def _volumes_of(parts: Iterator[_Part], seen: list[_Part]) -> Iterator[tuple[Scan, str]]:
    """Stacks as channels; each must say where it lies."""
    for part in parts:
        if not part.is_volume:
            raise AffineError(
                f"{show_name(part.name)} does not say where its slices lie, so it cannot be laid on other channels."
            )
        seen.append(replace(part, scan=replace(part.scan, pixels=part.scan.pixels[:0])))
        yield part.scan, part.name


@dataclass(frozen=True)
class _Part:
    """What one file holds."""

    scan: Scan
    name: str
    is_lossy: bool
    is_volume: bool


def _stack_slices(first: _Part, others: Iterator[_Part], files: tuple[str, ...]) -> tuple[Scan, bool]:
    stack = np.empty((len(files), *first.scan.pixels.shape[1:]), first.scan.pixels.dtype)
    is_lossy = False
    for index, part in enumerate(chain([first], others)):
        if part.is_volume or part.scan.num_slices != 1:
            raise SliceMismatchError(
                f"{show_name(part.name)} holds {part.scan.num_slices} slices; a series has one a file."
            )
        _check_same(part.scan.pixels, stack, part.name, first.name)
        stack[index] = part.scan.pixels[0]
        is_lossy |= part.is_lossy
    return Scan(stack, first.scan.spacing_mm, first.scan.affine), is_lossy


def _decode_files(
    contents: Iterator[tuple[str, bytes]], reader_name: str, num_files: int, max_bytes: int
) -> Iterator[_Part]:
    """Decode file by file; declared sizes are checked first, and the pixels afterwards."""
    for name, data in contents:
        reader = _reader_for(reader_name, data, name)
        header = reader.read_header(io.BytesIO(data), name)
        _check_size(header.num_bytes * num_files, max_bytes, name)
        part = reader.read_slices(data, name)
        _check_finite(part.pixels, name)
        yield _Part(part, name, header.is_lossy, is_turned(reader, part))


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
        raise UnknownFormatError(describe_unknown(data[:HEAD_BYTES], name))
    return get_reader(found)


def describe_fourth_axis(name: str, num_volumes: int) -> str:
    """What to tell of a file with a fourth axis that nobody named."""
    return (
        f"{show_name(name)} has four dimensions; its {num_volumes} volumes are channels only where --channel or a "
        "dataset.json names them"
    )


def _describe_no_file(entry: ScanEntry) -> ScanError:
    """The error of a scan without files: the one that its problem names, or that none can be opened."""
    kind, _, _ = (entry.problem or "").partition(": ")
    if kind.isidentifier() and kind.endswith("Error") and entry.problem is not None:
        return parse_scan_error(entry.problem)
    return AccessError(f"{show_name(entry.scan_id)}: {entry.problem or 'there is no file to read'}.")


def _check_channels_there(entry: ScanEntry) -> None:
    missing = [index for index, name in enumerate(entry.files) if not name]
    if missing:
        # A series has as many files for each channel; a volume has one.
        num_each, rest = divmod(len(entry.files), max(1, len(entry.channel_names)))
        named = entry.channel_names and not rest
        words = [entry.channel_names[index // num_each] if named else str(index) for index in missing]
        raise MissingChannelError(
            f"{show_name(entry.scan_id)} has no file of channel {', '.join(map(show_name, dict.fromkeys(words)))}."
        )


def _describe_place(is_volume: bool) -> str:
    return "is a volume that may be stored any way round" if is_volume else "is made of slices"


def _check_place(part: _Part, grid: Grid | None) -> None:
    """Refuse slices as the reference of a volume, and the other way round."""
    if grid is not None and grid.is_volume is not None and grid.is_volume != part.is_volume:
        raise GridMismatchError(
            f"{show_name(part.name)} {_describe_place(part.is_volume)}, the scan {_describe_place(grid.is_volume)}: "
            "how one lies on the other is not known. Give both in one format."
        )


def _check_colours(part: _Part, channel_names: tuple[str, ...]) -> None:
    """Refuse one series under several names, unless these are its colours."""
    found = part.scan.pixels.shape[3]
    if len(channel_names) > 1 and found != len(channel_names):
        raise ChannelMismatchError(
            f"{show_name(part.name)} has {found} channel{'s' * (found != 1)}; named are {', '.join(channel_names)}."
        )


def _check_fourth_axis(part: _Part, channel_names: tuple[str, ...]) -> None:
    """Whether the fourth axis is time, directions or channels nobody can tell from the file."""
    found = part.scan.pixels.shape[3]
    if found == 1 and len(channel_names) < 2:
        return
    if len(channel_names) < 2:
        raise ChannelMismatchError(f"{describe_fourth_axis(part.name, found)}.")
    if found != len(channel_names):
        raise ChannelMismatchError(
            f"{show_name(part.name)} has {found} volumes; named are the channels {', '.join(channel_names)}."
        )


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
            f"{show_name(name)} has {pixels.shape[3]} channel{'s' * (pixels.shape[3] != 1)}, "
            f"{show_name(first_name)} has {first.shape[3]}."
        )
    if pixels.shape[1:3] != first.shape[1:3] or pixels.dtype != first.dtype:
        raise SliceMismatchError(
            f"{show_name(name)} is {pixels.shape[1:3]} {pixels.dtype}, {show_name(first_name)} is {first.shape[1:3]} "
            f"{first.dtype}; the slices of a scan must share shape and type."
        )
