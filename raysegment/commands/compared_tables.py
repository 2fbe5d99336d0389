"""What two outputs know of their scans, joined as Arrow columns, and given out scan by scan in a stream."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
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
from raysegment.store.publish import check_tables, read_rows
from raysegment.store.upgrade import read_version

MADE_BY = ("infer", "evaluate")
ROWS_AT_ONCE = 10_000
SCAN_COLUMNS = ["scan_id", "patient_id", "status", "model_id", "options_id", "fingerprint", "attempt"]
METRIC_COLUMNS = ["scan_id", "label", "voxels", "volume_ml"]
PAIRS_AT_ONCE = 32
"""Scans that a thread is given at a time."""


class Tables:
    """The tables of one side, with what is known of each scan but its mask.

    Args:
        folder: What `infer` or `evaluate` wrote.

    Attributes:
        place: The folder.
        record: What its run.json holds.
        scans: Rows of `scans`, some of its columns.
        scan_ids: Their scan_ids.

    Raises:
        UsageError: The folder is no such output, or of a version that is not known.
        DamagedTablesError: Parts are lost or damaged.
    """

    def __init__(self, folder: str) -> None:
        self.place = Place(folder)
        self.record = read_record(self.place)
        if self.record.get("command") not in MADE_BY:
            raise UsageError(f"{folder} is no folder that `raysegment infer` or `evaluate` wrote.")
        read_version(self.place, self.record)
        check_tables(self.place, "metrics", "masks")
        self.scans = read_rows(self.place, "scans", SCAN_COLUMNS)
        self.scan_ids: pa.Array = self.scans["scan_id"].combine_chunks()
        metrics = read_rows(self.place, "metrics", METRIC_COLUMNS)
        owner = self.positions_of(metrics["scan_id"].combine_chunks())
        order = np.argsort(owner, kind="stable")
        self._metrics = metrics.take(order)
        self._first = np.searchsorted(owner[order], np.arange(len(self.scan_ids) + 1))

    @property
    def digest(self) -> str:
        """SHA-256 over what the rows were made of, so that a folder to which scans came is known as another one."""
        order = self.scans.sort_by("scan_id")
        digest = hashlib.sha256()
        for name in SCAN_COLUMNS:
            for start in range(0, order.num_rows, ROWS_AT_ONCE):
                texts = map(str, order[name].slice(start, ROWS_AT_ONCE).to_pylist())
                digest.update("".join(f"{text}\0" for text in texts).encode("utf-8", "surrogateescape"))
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
class Shared:
    """Scans whose parts are the very same files on both sides.

    Attributes:
        parts: The files' names.
        changes: Their rows of `changes`.
        scan_ids: The scans.
    """

    parts: frozenset[str]
    changes: pa.Table
    scan_ids: pa.Array


def read_shared(before: Tables, after: Tables) -> Shared:
    """What both sides share, without reading a mask.

    Raises:
        DamagedTablesError: A part cannot be read.
    """
    parts = find_shared_parts(before.place, after.place)
    scans = read_rows(before.place, "scans", SCAN_COLUMNS, parts)
    metrics = read_rows(before.place, "metrics", METRIC_COLUMNS, parts)
    masks = read_rows(before.place, "masks", ["scan_id", "spacing_mm"], parts)
    return Shared(parts, unchanged_rows(scans, metrics, masks), scans["scan_id"].combine_chunks())


def iterate_sides(before: Tables, after: Tables, shared: Shared) -> Iterator[list[tuple[Side, Side]]]:
    """Both sides of each scan that they do not share, those with a mask first; some scans at a time."""
    pairs = MaskPairs(before.place, after.place, without=shared.parts)
    seen = pa.concat_arrays([shared.scan_ids, pairs.scan_ids])
    every = pc.unique(pa.chunked_array([before.scan_ids, after.scan_ids]))
    others = every.filter(pc.invert(pc.is_in(every, value_set=seen)))
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


def _without_masks(count: int) -> Iterator[list[Pair]]:
    for first in range(0, count, PAIRS_AT_ONCE):
        yield [(None, None)] * min(PAIRS_AT_ONCE, count - first)
