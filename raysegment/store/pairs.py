"""Masks of two output folders side by side, in a stream: neither table is ever in memory as a whole."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from raysegment.store.damage import report_damage
from raysegment.store.place import Place
from raysegment.store.publish import list_parts

CACHE_BYTES = 2**29
"""Parts of the earlier table that are kept: scans near to each other in one table mostly are so in the other."""

BATCH_BYTES = 4 * 2**20
"""Stored masks of one table that come at a time, about."""

MAX_BATCH = 256
PARTS_AT_ONCE = 4
"""Of which it is looked whether both folders have the same."""

Row = Mapping[str, Any]
Pair = tuple[Row | None, Row | None]


def find_shared_parts(before: Place, after: Place, columns: Mapping[str, Sequence[str]]) -> frozenset[str]:
    """Parts whose masks are one and the same file in both folders: the later was begun from links to them.

    Args:
        before: The earlier folder.
        after: The later one.
        columns: Of the other tables those that must be the same too; a part that got new columns has another file.

    Raises:
        DamagedTablesError: A part cannot be read.
    """
    if not (before.is_local and after.is_local):
        return frozenset()
    common = set(list_parts(before, "scans")) & set(list_parts(after, "scans"))
    with ThreadPoolExecutor(PARTS_AT_ONCE) as pool:
        same = pool.map(lambda part: _is_shared(before, after, part, columns), sorted(common))
        return frozenset(part for part, is_shared in zip(sorted(common), same, strict=True) if is_shared)


def _is_shared(before: Place, after: Place, part: str, columns: Mapping[str, Sequence[str]]) -> bool:
    return _is_one_file(before, after, f"masks/{part}") and all(
        _is_one_file(before, after, f"{table}/{part}")
        or _read_known(before, f"{table}/{part}", names).equals(_read_known(after, f"{table}/{part}", names))
        for table, names in columns.items()
    )


def _is_one_file(before: Place, after: Place, name: str) -> bool:
    try:
        return os.path.samefile(before.path(name), after.path(name))
    except OSError:
        return False


def _read_known(place: Place, name: str, columns: Sequence[str]) -> pa.Table:
    """Some columns of a part, with null for NaN, which is never its own equal."""
    with report_damage(place, name):
        rows = pq.read_table(place.path(name), columns=list(columns), filesystem=place.filesystem, partitioning=None)
    values = [
        pc.if_else(pc.is_nan(column), None, column) if pa.types.is_floating(column.type) else column
        for column in rows.columns
    ]
    return pa.table(values, names=rows.column_names).combine_chunks()


class MaskPairs:
    """Rows of `masks` of the same scan in two folders, in the later one's order; then those that only the earlier has.

    Args:
        before: The earlier folder.
        after: The later one.
        without: Parts that are left out of both.
        cache_bytes: Size of the earlier one's parts that are kept in memory.

    Attributes:
        scan_ids: Of the pairs, in their order.
    """

    def __init__(
        self, before: Place, after: Place, *, without: Collection[str] = (), cache_bytes: int = CACHE_BYTES
    ) -> None:
        self._before = MaskRows(before, without=without, cache_bytes=cache_bytes)
        self._after = MaskRows(after, without=without)
        earlier, later = self._before.scan_ids, self._after.scan_ids
        self._position = _positions(later, earlier)
        self._alone = np.flatnonzero(_positions(earlier, later) < 0)
        self.scan_ids: pa.Array = pa.concat_arrays([later, earlier.take(pa.array(self._alone))])

    def batches(self) -> Iterator[list[Pair]]:
        """The pairs, some at a time; None where a folder has no mask of the scan.

        Raises:
            DamagedTablesError: A part cannot be read.
        """
        start = 0
        for rows in self._after.batches():
            known = self._position[start : start + len(rows)]
            yield list(zip(self._before.take(known), rows, strict=True))
            start += len(rows)
        for first in range(0, len(self._alone), MAX_BATCH):
            yield [(row, None) for row in self._before.take(self._alone[first : first + MAX_BATCH])]


class MaskRows:
    """Rows of a table `masks` by scan.

    Args:
        place: The output folder.
        without: Parts that are left out.
        cache_bytes: Size of the parts that are kept in memory.

    Attributes:
        scan_ids: Of all rows, part by part.
    """

    def __init__(self, place: Place, *, without: Collection[str] = (), cache_bytes: int = CACHE_BYTES) -> None:
        self._place, self._room = place, cache_bytes
        self._kept: OrderedDict[int, pa.Table] = OrderedDict()
        published = set(list_parts(place, "scans")).difference(without)
        self._parts = [f"masks/{part}" for part in list_parts(place, "masks") if part in published]
        ids = [self._read(part, ["scan_id"])["scan_id"] for part in self._parts]
        self.scan_ids: pa.Array = pa.chunked_array(ids, pa.string()).combine_chunks()
        self._starts = np.cumsum([0, *map(len, ids)])

    def find(self, scan_id: str) -> Row | None:
        """The row of a scan, or None.

        Raises:
            DamagedTablesError: Its part cannot be read.
        """
        position = pc.index(self.scan_ids, scan_id).as_py()
        return None if position < 0 else self.take(np.array([position]))[0]

    def take(self, positions: npt.NDArray[np.int64]) -> list[Row | None]:
        """Rows by their positions in `scan_ids`; None for negative ones.

        Raises:
            DamagedTablesError: A part cannot be read.
        """
        found: list[Row | None] = [None] * len(positions)
        parts = np.searchsorted(self._starts, positions, side="right") - 1
        for part in np.unique(parts[positions >= 0]):
            where = np.flatnonzero((parts == part) & (positions >= 0))
            rows = self._open(int(part)).take(positions[where] - self._starts[part]).to_pylist()
            for index, row in zip(where, rows, strict=True):
                found[index] = row
        return found

    def batches(self) -> Iterator[list[Row]]:
        """All rows in order, about as many at a time as their masks leave room for.

        Raises:
            DamagedTablesError: A part cannot be read.
        """
        for name in self._parts:
            path, filesystem = self._place.path(name), self._place.filesystem
            with report_damage(self._place, name), pq.ParquetFile(path, filesystem=filesystem) as file:
                groups = [file.metadata.row_group(number) for number in range(file.num_row_groups)]
                num_bytes = sum(group.total_byte_size for group in groups) / max(1, file.metadata.num_rows)
                for batch in file.iter_batches(
                    batch_size=int(min(MAX_BATCH, max(1, BATCH_BYTES // max(1, num_bytes))))
                ):
                    yield batch.to_pylist()

    def _read(self, name: str, columns: list[str] | None = None) -> pa.Table:
        path, filesystem = self._place.path(name), self._place.filesystem
        with report_damage(self._place, name):
            return pq.read_table(path, columns=columns, filesystem=filesystem, partitioning=None)

    def _open(self, part: int) -> pa.Table:
        if part in self._kept:
            self._kept.move_to_end(part)
            return self._kept[part]
        table = self._kept[part] = self._read(self._parts[part])
        while len(self._kept) > 1 and sum(kept.nbytes for kept in self._kept.values()) > self._room:
            self._kept.popitem(last=False)
        return table


def _positions(wanted: pa.Array, known: pa.Array) -> npt.NDArray[np.int64]:
    """Where each wanted scan is among the known ones; -1 where it is not."""
    found = pc.fill_null(pc.index_in(wanted, value_set=known), -1)
    return np.asarray(found.to_numpy(zero_copy_only=False), np.int64)
