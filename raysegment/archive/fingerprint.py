"""How a change of a scan is noticed: a hash over its files' sizes and times, or over their bytes."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable

import pyarrow as pa
import pyarrow.compute as pc

from raysegment.archive.filesystem import is_uri, join_source, open_source, read_bytes
from raysegment.archive.manifest import entries
from raysegment.archive.walk import FoundFile
from raysegment.errors import ScanError


def fingerprint_files(source: str, files: Iterable[tuple[str, FoundFile]], mode: str) -> str:
    """SHA-256 over the sorted names of a scan's files with size and time, or with the SHA-256 of their bytes.

    Args:
        source: Folder or bucket.
        files: Path below the source, and size and time, of every file of the scan, references included.
        mode: `stat` or `content`.
    """
    if mode == "content":
        lines = sorted(f"{path}\0{_hash_bytes(source, path)}" for path, _ in files)
    else:
        lines = sorted(f"{path}\0{file.size}\0{file.changed_ns}" for path, file in files)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def fill_fingerprints(table: pa.Table, mode: str) -> pa.Table:
    """The manifest with the fingerprints that it lacks; those it has are kept."""
    is_empty = pc.equal(table["fingerprint"], "")
    if not pc.any(is_empty).as_py():
        return table
    found = [
        entry.fingerprint
        or fingerprint_files(entry.source, _look_up(entry.source, entry.files + entry.reference_files), mode)
        for entry in entries(table)
    ]
    index = table.schema.get_field_index("fingerprint")
    return table.set_column(index, table.schema.field(index), pa.array(found, pa.string()))


def _look_up(source: str, names: Iterable[str]) -> list[tuple[str, FoundFile]]:
    """Size and time of files; zero for those that cannot be reached."""
    paths = [name for name in names if name]
    if not is_uri(source):
        return [(path, _stat(join_source(source, path), path)) for path in paths]
    filesystem, _ = open_source(source)
    infos = filesystem.get_file_info([join_source(source, path) for path in paths])
    return [
        (path, FoundFile(path, info.size or 0, info.mtime_ns or 0)) for path, info in zip(paths, infos, strict=True)
    ]


def _stat(where: str, path: str) -> FoundFile:
    try:
        status = os.stat(where)
    except OSError:
        return FoundFile(path, 0, 0)
    return FoundFile(path, status.st_size, status.st_mtime_ns)


def _hash_bytes(source: str, path: str) -> str:
    try:
        return hashlib.sha256(read_bytes(source, path)).hexdigest()
    except ScanError:
        return ""
