"""What two outputs know of their scans, joined as Arrow columns, and given out scan by scan in a stream."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from raysegment.errors import UsageError
from raysegment.pipeline.changes import Side
from raysegment.pipeline.unchanged import unchanged_rows
from raysegment.runs.record import read_record
from raysegment.store.pairs import MaskPairs, Pair, Row, find_shared_parts
from raysegment.store.place import Place
from raysegment.store.publish import check_tables, list_parts, read_rows
from raysegment.store.upgrade import read_version

MADE_BY = ("infer", "evaluate")
SCAN_COLUMNS = ["scan_id", "patient_id", "status", "model_id", "options_id", "fingerprint", "attempt"]
METRIC_COLUMNS = ["scan_id", "label", "voxels", "volume_ml"]
PARTS_AT_ONCE = 64
PAIRS_AT_ONCE = 32
"""Scans that a thread is given at a time."""


class Tables:
    """The tables of one side, with what is known of each scan but its mask.

    Args:
        folder: What `infer` or `evaluate` wrote.
        without: Parts whose rows are left out.

    Attributes:
        place: The folder.
        record: What its run.json holds.
        scans: Rows of `scans`, some of its columns.
        scan_ids: Their scan_ids.

    Raises:
        UsageError: The folder is no such output, or of a version that is not known.
        DamagedTablesError: Parts are lost or damaged.
    """

    def __init__(self, folder: str, without: Collection[str] = ()) -> None:
        self.place = Place(folder)
        self.record = read_record(self.place)
        if self.record.get("command") not in MADE_BY:
            raise UsageError(f"{folder} is no folder that `raysegment infer` or `evaluate` wrote.")
        read_version(self.place, self.record)
        check_tables(self.place, "metrics", "masks")
        parts = set(list_parts(self.place, "scans")).difference(without)
        self.scans = read_rows(self.place, "scans", SCAN_COLUMNS, parts)
        self.scan_ids: pa.Array = self.scans["scan_id"].combine_chunks()
        metrics = read_rows(self.place, "metrics", METRIC_COLUMNS, parts)
        owner = self.positions_of(metrics["scan_id"].combine_chunks())
        order = np.argsort(owner, kind="stable")
        self._metrics = metrics.take(order)
        self._first = np.searchsorted(owner[order], np.arange(len(self.scan_ids) + 1))

    @property
    def digest(self) -> str:
        """SHA-256 over what all rows were made of: a folder to which scans came is known as another one."""
        digest = hashlib.sha256()
        for part in list_parts(self.place, "scans"):
            rows = read_rows(self.place, "scans", SCAN_COLUMNS, [part])
            for column in rows.columns:
                digest.update("".join(f"{text}\0" for text in column.to_pylist()).encode("utf-8", "surrogateescape"))
        return digest.hexdigest()

    def positions_of(self, scan_ids: pa.Array) -> npt.NDArray[np.int64]:
        """Which row of `scans` is of each scan; -1 where there is none."""
        found = pc.fill_null(pc.index_in(scan_ids, value_set=self.scan_ids), -1)
        return np.asarray(found.to_numpy(zero_copy_only=False), np.int64)

    def sides(self, positions: npt.NDArray[np.int64], masks: Sequence[Row | None]) -> list[Side]:
        """Some scans as this side has them.

        Args:
            positions: From `positions_of`.
            masks: Their rows of `masks`.
        """
        known = positions[positions >= 0]
        scans = iter(self.scans.take(known).to_pylist())
        counts = self._first[known + 1] - self._first[known]
        # Rows of one scan lie together: from its first one on, as many as it has.
        wanted = np.repeat(self._first[known] - (np.cumsum(counts) - counts), counts) + np.arange(counts.sum())
        metrics, left = iter(self._metrics.take(wanted).to_pylist()), iter(counts.tolist())
        return [
            Side(
                scan=next(scans),
                metrics={row["label"]: row for row in islice(metrics, next(left))},
                mask=mask,
            )
            if position >= 0
            else Side(scan=None, metrics={}, mask=mask)
            for position, mask in zip(positions.tolist(), masks, strict=True)
        ]


@dataclass(frozen=True)
class Both:
    """Two sides.

    Attributes:
        before: Rows of the earlier one that are not shared.
        after: Those of the later one.
        shared: Parts whose masks are the very same files on both sides, and whose other rows are the same.
    """

    before: Tables
    after: Tables
    shared: tuple[str, ...]

    @property
    def have_a_scan_in_common(self) -> bool:
        """Whether anything can be compared."""
        return bool(self.shared) or bool((self.after.positions_of(self.before.scan_ids) >= 0).any())

    def count_scans(self) -> int:
        """Scans of either side."""
        shared = read_rows(self.before.place, "scans", ["scan_id"], self.shared).num_rows
        return shared + len(self.before.scan_ids) + int((self.before.positions_of(self.after.scan_ids) < 0).sum())

    def iterate_shared(self) -> Iterator[pa.Table]:
        """Rows of `changes` of the scans that both share, without reading a mask; some parts at a time.

        Raises:
            DamagedTablesError: A part cannot be read.
        """
        place = self.before.place
        for start in range(0, len(self.shared), PARTS_AT_ONCE):
            parts = self.shared[start : start + PARTS_AT_ONCE]
            scans = read_rows(place, "scans", SCAN_COLUMNS, parts)
            metrics = read_rows(place, "metrics", METRIC_COLUMNS, parts)
            yield unchanged_rows(scans, metrics, read_rows(place, "masks", ["scan_id", "spacing_mm"], parts))

    def iterate_sides(self) -> Iterator[list[tuple[Side, Side]]]:
        """Both sides of each scan that they do not share, those with a mask first; some scans at a time.

        Raises:
            DamagedTablesError: A part cannot be read.
        """
        before, after = self.before, self.after
        pairs = MaskPairs(before.place, after.place, without=self.shared)
        every = pc.unique(pa.chunked_array([before.scan_ids, after.scan_ids]))
        others = every.filter(pc.invert(pc.is_in(every, value_set=pairs.scan_ids)))
        scan_ids = pa.concat_arrays([pairs.scan_ids, others])
        positions = before.positions_of(scan_ids), after.positions_of(scan_ids)
        start = 0
        for batch in chain(pairs.batches(), _without_masks(len(others))):
            for first in range(0, len(batch), PAIRS_AT_ONCE):
                masks = batch[first : first + PAIRS_AT_ONCE]
                here = slice(start, start + len(masks))
                earlier = before.sides(positions[0][here], [mask for mask, _ in masks])
                later = after.sides(positions[1][here], [mask for _, mask in masks])
                yield list(zip(earlier, later, strict=True))
                start += len(masks)


def read_both(before: str, after: str) -> Both:
    """The tables of two outputs.

    Raises:
        UsageError: A folder is no output of `infer` or `evaluate`.
        DamagedTablesError: Parts are lost or damaged.
    """
    columns = {"scans": SCAN_COLUMNS, "metrics": METRIC_COLUMNS}
    shared = find_shared_parts(Place(before), Place(after), columns)
    return Both(Tables(before, shared), Tables(after, shared), tuple(sorted(shared)))


def _without_masks(count: int) -> Iterator[list[Pair]]:
    for first in range(0, count, PAIRS_AT_ONCE):
        yield [(None, None)] * min(PAIRS_AT_ONCE, count - first)
