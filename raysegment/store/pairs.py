"""Masks of two output folders side by side, in a stream: neither table is ever in memory as a whole."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from raysegment.store.damage import report_damage
from raysegment.store.masks import iterate_masks
from raysegment.store.place import Place
from raysegment.store.publish import list_parts

CACHE_BYTES = 2**29
"""Parts of the earlier table that are kept: scans near to each other in one table mostly are so in the other."""


def iterate_pairs(before: Place, after: Place) -> Iterator[tuple[Mapping[str, Any] | None, Mapping[str, Any] | None]]:
    """Rows of `masks` of the same scan in two folders, in the later one's order; then those that only the earlier has.

    Args:
        before: The earlier folder.
        after: The later one.

    Yields:
        The earlier and the later row; None where that folder has none.

    Raises:
        DamagedTablesError: A part cannot be read.
    """
    rows = MaskRows(before)
    unseen = set(rows.places)
    for _, row in iterate_masks(after):
        unseen.discard(row["scan_id"])
        yield rows.find(row["scan_id"]), row
    if unseen:
        yield from ((row, None) for _, row in iterate_masks(before) if row["scan_id"] in unseen)


class MaskRows:
    """Rows of a table `masks` by scan.

    Args:
        place: The output folder.
        cache_bytes: Size of the parts that are kept in memory.

    Attributes:
        places: For each scan its part and the row in it.
    """

    def __init__(self, place: Place, cache_bytes: int = CACHE_BYTES) -> None:
        self.places: dict[str, tuple[str, int]] = {}
        self._place, self._room = place, cache_bytes
        self._parts: OrderedDict[str, pa.Table] = OrderedDict()
        published = set(list_parts(place, "scans"))
        for part in list_parts(place, "masks"):
            if part in published:
                self._list(f"masks/{part}")

    def find(self, scan_id: str) -> dict[str, Any] | None:
        """The row of a scan, or None.

        Raises:
            DamagedTablesError: Its part cannot be read.
        """
        if scan_id not in self.places:
            return None
        part, index = self.places[scan_id]
        row: dict[str, Any] = self._open(part).slice(index, 1).to_pylist()[0]
        return row

    def _list(self, part: str) -> None:
        path, filesystem = self._place.path(part), self._place.filesystem
        with report_damage(self._place, part):
            ids = pq.read_table(path, columns=["scan_id"], filesystem=filesystem, partitioning=None)
        for index, scan_id in enumerate(ids["scan_id"].to_pylist()):
            self.places[scan_id] = part, index

    def _open(self, part: str) -> pa.Table:
        if part in self._parts:
            self._parts.move_to_end(part)
            return self._parts[part]
        with report_damage(self._place, part):
            table = self._place.read_table(part)
        self._parts[part] = table
        while len(self._parts) > 1 and sum(kept.nbytes for kept in self._parts.values()) > self._room:
            self._parts.popitem(last=False)
        return table
