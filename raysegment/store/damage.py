"""Parts of the tables that were lost or damaged, found without reading what is in them.

A part has one file in each table. Of `metrics` and `masks` only the footer at the end is read: enough to see that a
file is missing, empty, cut or foreign, or that it does not hold the scans that it should. `scans`, by which every start
tells what is done, is read whole.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from raysegment.errors import DamagedTablesError, OutputError
from raysegment.store.place import Place
from raysegment.store.schema import STATUS_OK

CONCURRENT_PARTS = 16
END_BYTES = 64 * 1024
"""Read of a file's end at first; footers take some thousand bytes."""

FOOTER_TAIL_BYTES = 8
"""Length of the footer and four letters, with which every Parquet file ends."""


@dataclass(frozen=True, kw_only=True)
class Damage:
    """What is wrong with one part.

    Attributes:
        part: File name of the part, the same in all tables.
        table: Where it shows.
        cause: In a few words.
        is_unreadable: A file is missing or no Parquet; otherwise it does not fit the part's rows in `scans`.
    """

    part: str
    table: str
    cause: str
    is_unreadable: bool = True

    def __str__(self) -> str:
        return f"{self.table}/{self.part} {self.cause}"


def find_damage(place: Place, parts: Sequence[str], tables: Sequence[str] = ("metrics", "masks")) -> list[Damage]:
    """The parts that cannot be used, of those that `scans` has.

    Args:
        place: The output folder.
        parts: File names of the parts.
        tables: What is compared with `scans`.

    Raises:
        OutputError: The storage refuses a file, which says nothing of what is in it.
    """
    if not parts:
        return []
    with ThreadPoolExecutor(min(CONCURRENT_PARTS, len(parts))) as pool:
        return [damage for damage in pool.map(lambda part: _inspect(place, part, tables), parts) if damage is not None]


@contextmanager
def report_damage(place: Place, name: str) -> Iterator[None]:
    """Turn what PyArrow or a codec says of a damaged file of the tables into one error.

    Raises:
        DamagedTablesError: Names the file and what to do.
        OutputError: The operating system refuses the file.
    """
    try:
        yield
    except FileNotFoundError:
        raise damaged(place, f"{name} is missing") from None
    except (pa.ArrowException, OSError, ValueError, zlib.error) as error:
        if isinstance(error, OSError) and error.errno:
            raise OutputError(f"{place.path(name)} cannot be read: {os.strerror(error.errno)}.") from error
        cause = " ".join(str(error).split())[:200].rstrip(".")
        raise damaged(place, f"{name} cannot be read: {cause}", to_delete=name) from error


def damaged(place: Place, what: str, *, to_delete: str | None = None) -> DamagedTablesError:
    """The error for tables of which something is lost.

    Args:
        place: The output folder.
        what: What is wrong.
        to_delete: The file whose footer may be whole, so that a start would not notice what is wrong with it.
    """
    first = f"Delete {place.path(to_delete)}, then run" if to_delete else "Run"
    return DamagedTablesError(
        f"{place.location}: {what}. {first} the `raysegment infer` or `evaluate` that wrote these tables once more: it "
        "does the scans of lost and damaged parts again."
    )


def _inspect(place: Place, part: str, tables: Sequence[str]) -> Damage | None:
    try:
        scan_ids = _read_ok_scans(place, part)
        footers = {table: _read_footer(place, f"{table}/{part}") for table in tables}
    except _UnreadableError as error:
        table = error.name.partition("/")[0]
        return Damage(part=part, table=table, cause=error.cause)
    for table, footer in footers.items():
        if (cause := _compare(scan_ids, footer, has_labels=table == "metrics")) is not None:
            return Damage(part=part, table=table, cause=cause, is_unreadable=False)
    return None


class _UnreadableError(Exception):
    def __init__(self, name: str, cause: str) -> None:
        super().__init__(name, cause)
        self.name, self.cause = name, cause


def _read_ok_scans(place: Place, part: str) -> pa.ChunkedArray:
    """Scans of a part that have a mask and metrics."""
    name = f"scans/{part}"
    with _storage(place, name):
        content = place.read_bytes(name)
    with _format(name, len(content)):
        rows = pq.ParquetFile(pa.BufferReader(content)).read(use_threads=False)
        return rows["scan_id"].filter(pc.equal(rows["status"], STATUS_OK))


def _read_footer(place: Place, name: str) -> pq.FileMetaData:
    with _storage(place, name):
        size, end = place.read_end(name, END_BYTES)
        footer_bytes = int.from_bytes(end[-FOOTER_TAIL_BYTES:-4], "little") + FOOTER_TAIL_BYTES
        if len(end) < footer_bytes <= size:
            end = place.read_end(name, footer_bytes)[1]
    with _format(name, size):
        return pq.read_metadata(pa.BufferReader(end))


def _compare(scan_ids: pa.ChunkedArray, footer: pq.FileMetaData, *, has_labels: bool) -> str | None:
    """Whether a file's rows can be those of the scans: one for each, or as many for each as there are labels."""
    expected, found = len(scan_ids), footer.num_rows
    fits = found >= expected and found % expected == 0 if has_labels and expected else found == expected
    if not fits:
        return f"has {found} rows for {expected} scans"
    first_and_last = _read_bounds(footer)
    if not expected or first_and_last is None:
        return None
    bounds = pc.min_max(scan_ids).as_py()
    return None if first_and_last == (bounds["min"], bounds["max"]) else "holds other scans"


def _read_bounds(footer: pq.FileMetaData) -> tuple[Any, Any] | None:
    """Smallest and largest scan_id by the footer; None where it does not say."""
    column = footer.schema.names.index("scan_id") if "scan_id" in footer.schema.names else None
    if column is None:
        return None
    found = [footer.row_group(group).column(column).statistics for group in range(footer.num_row_groups)]
    if not found or any(item is None or not item.has_min_max for item in found):
        return None
    return min(item.min for item in found), max(item.max for item in found)


@contextmanager
def _storage(place: Place, name: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise _UnreadableError(name, "is missing") from None
    except (pa.ArrowException, OSError) as error:
        raise OutputError(f"{place.path(name)} cannot be read: {' '.join(str(error).split())[:200]}") from error


@contextmanager
def _format(name: str, size: int) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError, ValueError, KeyError):
        raise _UnreadableError(name, f"is no whole Parquet file ({size} bytes)" if size else "is empty") from None
