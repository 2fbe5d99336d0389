"""How a change of a scan is noticed: a hash over its files' sizes and times, or over their bytes."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import zip_longest

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raysegment.archive.filesystem import decode_name, hash_bytes, is_uri, join_source, open_source, split_zip
from raysegment.archive.formats import is_series, is_volume
from raysegment.archive.manifest import FINGERPRINT_MODE, entries
from raysegment.archive.sealed import is_sealed, open_name
from raysegment.archive.walk import FoundFile
from raysegment.archive.zipped import MARK
from raysegment.errors import ScanError
from raysegment.scan import ScanEntry

FIRST_ROWS = 1000
ROWS_AT_ONCE = 1000
CONCURRENT_LOOKS = 16
"""Batches whose files are looked at side by side where each look waits for an answer over a network."""

SLOW_LOOK_SECONDS = 2e-4
"""For one scan. Files of this machine take a tenth of it, and threads, which wait for each other, twice as long."""

COLUMNS = ["source", "reader", "files", "reference_files", "channel_names"]


def fingerprint_files(
    source: str, files: Iterable[tuple[str, FoundFile]], mode: str, channels: Sequence[tuple[str, str]] = ()
) -> str:
    """SHA-256 over the sorted names of a scan's files with size and time, or with the SHA-256 of their bytes.

    Args:
        source: Folder or bucket.
        files: Path below the source, and size and time, of every file of the scan, references included.
        mode: `stat` or `content`.
        channels: From `pair_channels`: the same files in another order are another scan.
    """
    if mode == "content":
        lines = sorted(f"{path}\0{_hash_bytes(source, path)}" for path, _ in files)
    else:
        lines = sorted(f"{path}\0{file.zip_size or file.size}\0{file.changed_ns}" for path, file in files)
    lines += [f"{name}\0{path}" for name, path in channels]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def pair_channels(reader: str, names: Sequence[str], files: Sequence[str]) -> list[tuple[str, str]]:
    """Name and path of each channel in order; empty for files of slices, and where there is one channel.

    Args:
        reader: Format module of the files.
        names: Of the channels; none where they have none.
        files: One for each channel, or one with all of them; of series as many for each, which may come in any order.
    """
    if is_series(reader) and len(names) < 2:
        return []
    if is_series(reader) and len(files) > 1:
        each = max(1, len(files) // len(names))
        return [(name, path) for index, name in enumerate(names) for path in sorted(files[index * each :][:each])]
    if max(len(names), len(files)) < 2 or not is_volume(reader):
        return []
    return list(zip_longest(names, files, fillvalue=""))


def renew_fingerprints(table: pa.Table, mode: str) -> pa.Table:
    """A manifest with fingerprints of its files as they are now, as far as their sizes and times tell.

    A fingerprint that is missing is computed. One that was made of size and time is compared with the files, where they
    are on this machine and all of them are there, and replaced where they have changed. All others are kept: those of
    contents, one's own, and those of files in buckets or out of reach.

    Args:
        table: A manifest.
        mode: How missing fingerprints are made, `stat` or `content`.
    """
    given = table["fingerprint"].to_pylist()
    renewed = _renew_stat(table, given) if _is_of_stat(table, given) else given
    if "" in renewed:
        renewed = [
            before
            or fingerprint_files(
                entry.source,
                _look_up(entry),
                mode,
                pair_channels(entry.reader, entry.channel_names, entry.files),
            )
            for before, entry in zip(renewed, entries(table), strict=True)
        ]
    index = table.schema.get_field_index("fingerprint")
    return table.set_column(index, table.schema.field(index), pa.array(renewed, pa.string()))


def _is_of_stat(table: pa.Table, given: list[str]) -> bool:
    """Whether fingerprints were made of sizes and times: the manifest says so, or one of the first is just that."""
    said = (table.schema.metadata or {}).get(FINGERPRINT_MODE)
    if said is not None:
        return bool(said == b"stat")
    present = _fingerprints_of_present(table.slice(0, FIRST_ROWS))
    return any(now == before for now, before in zip(present, given, strict=False))


def _renew_stat(table: pa.Table, given: list[str]) -> list[str]:
    present = _fingerprints_of_present(table)
    return [now if before and now else before for before, now in zip(given, present, strict=True)]


def _fingerprints_of_present(table: pa.Table) -> Iterator[str | None]:
    """Of each scan's local files by size and time; None where one of them is out of reach."""
    batches = iter(table.select(COLUMNS).to_batches(max_chunksize=ROWS_AT_ONCE))
    started, num_seen = time.perf_counter(), 0
    for batch in batches:
        yield from _fingerprint_batch(batch)
        num_seen += batch.num_rows
        # Over several batches, because any one of them may have waited for something else.
        if num_seen > FIRST_ROWS and time.perf_counter() - started > SLOW_LOOK_SECONDS * num_seen:
            break
    with ThreadPoolExecutor(CONCURRENT_LOOKS) as pool:
        for found in pool.map(_fingerprint_batch, batches):
            yield from found


def _fingerprint_batch(batch: pa.RecordBatch) -> list[str | None]:
    lists = [_lists_of(batch[name]) for name in ("files", "reference_files", "channel_names")]
    found: list[str | None] = []
    for source, reader, files, references, names in zip(
        batch["source"].to_pylist(), batch["reader"].to_pylist(), *lists, strict=True
    ):
        paths = [path for path in files + references if path]
        try:
            looked_up = [] if is_uri(source) else [(path, _stat(source, path)) for path in paths]
        except (OSError, ValueError):
            looked_up = []
        channels = pair_channels(reader, names, files)
        found.append(fingerprint_files(source, looked_up, "stat", channels) if looked_up else None)
    return found


def _lists_of(column: pa.ListArray) -> list[list[str]]:
    """A column of lists, without a Python object for each list in between."""
    values, stops = column.flatten().to_pylist(), np.cumsum(pc.list_value_length(column)).tolist()
    return [values[start:stop] for start, stop in zip([0, *stops], stops, strict=False)]


def _look_up(entry: ScanEntry) -> list[tuple[str, FoundFile]]:
    """Size and time of a scan's files; zero for those that cannot be reached."""
    paths = [path for path in entry.files + entry.reference_files if path]
    if is_uri(entry.source):
        return _look_up_in_bucket(entry.source, paths)
    found = []
    for path in paths:
        try:
            found.append((path, _stat(entry.source, path)))
        except (OSError, ValueError):
            found.append((path, FoundFile(path, 0, 0)))
    return found


def _look_up_in_bucket(source: str, paths: list[str]) -> list[tuple[str, FoundFile]]:
    filesystem, _ = open_source(source)
    try:
        zips = {path: split_zip(source, path) for path in paths if MARK in path.lower()}
        holders = [parts[0] if (parts := zips.get(path)) else path for path in paths]
        infos = filesystem.get_file_info([join_source(source, holder) for holder in holders])
    except (pa.ArrowException, OSError, ValueError):
        return [(path, FoundFile(path, 0, 0)) for path in paths]
    return [
        (path, FoundFile(path, info.size or 0, info.mtime_ns or 0)) for path, info in zip(paths, infos, strict=True)
    ]


def _stat(source: str, path: str) -> FoundFile:
    # As `join_source`, which takes as long as the look itself: a manifest may name a million files.
    root, below = open_source(source)[1], open_name(path) if is_sealed(source) else path
    try:
        status = os.stat(os.path.join(root, decode_name(below)))
    except NotADirectoryError:
        parts = split_zip(source, below)
        if parts is None:
            raise
        status = os.stat(os.path.join(root, decode_name(parts[0])))
    return FoundFile(path, status.st_size, status.st_mtime_ns)


def _hash_bytes(source: str, path: str) -> str:
    try:
        return hash_bytes(source, path)
    except ScanError:
        return ""
