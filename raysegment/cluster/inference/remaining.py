"""What there is to do: the manifest minus what is done, in blocks of whole scans."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from raysegment.errors import AccessError
from raysegment.store.place import Place, report_full_disk
from raysegment.store.schema import STATUS_FAILED

BLOCK_BYTES = 16 * 2**20
"""Pixels that a block aims at: some seconds of work on two cores."""

MAX_BLOCK_SCANS = 256
MAX_ESTIMATE_BYTES = 2**50
"""What a manifest by hand may declare at most, so that sums stay whole numbers."""

BLOCKS_PER_FILE = 256


@dataclass(frozen=True, kw_only=True)
class Remaining:
    """What a start of the command finds.

    Attributes:
        plan: Rows of the manifest that are to be done.
        take_out: scan_ids among them that the tables already hold.
        num_ok: Scans of the manifest that are done and ok.
        num_failed: Scans of the manifest that are done and failed.
    """

    plan: pa.Table
    take_out: pa.ChunkedArray | pa.Array
    num_ok: int
    num_failed: int


@dataclass(frozen=True)
class PlannedBlock:
    """Where the rows of a block are: a row group of a plan file."""

    file: str
    row_group: int
    num_scans: int


def find_remaining(manifest: pa.Table, finished: pa.Table, *, retry_failed: bool) -> Remaining:
    """Compare the manifest with the tables.

    A scan is done if it is in the tables with the same fingerprint. Failed ones count as done, but those that could not
    be accessed are always tried again, the others on request.

    Args:
        manifest: All scans that are wanted.
        finished: scan_id, fingerprint, status, error_type of the scans in the tables.
        retry_failed: Do failed scans again.
    """
    position = pc.index_in(manifest["scan_id"], value_set=finished["scan_id"].combine_chunks())
    is_there = pc.is_valid(position)
    known = {name: pc.take(finished[name], position) for name in ("fingerprint", "status", "error_type")}
    same = _true(pc.equal(known["fingerprint"], manifest["fingerprint"]))
    failed = _true(pc.equal(known["status"], STATUS_FAILED))
    again = failed if retry_failed else _true(pc.equal(known["error_type"], AccessError.__name__))
    done = pc.and_(same, pc.invert(again))
    return Remaining(
        plan=manifest.filter(pc.invert(done)),
        take_out=manifest["scan_id"].filter(pc.and_(is_there, pc.invert(done))),
        num_ok=_count(pc.and_(done, pc.invert(failed))),
        num_failed=_count(pc.and_(done, failed)),
    )


def estimate_bytes(plan: pa.Table) -> npt.NDArray[np.int64]:
    """About how many bytes of pixels each scan has, by its headers and file sizes."""
    sizes = [pc.fill_null(plan[name], 1) for name in ("height", "width", "channels")]
    declared = np.prod([column.to_numpy().astype(np.float64) for column in (*sizes, plan["num_files"])], axis=0)
    known = np.maximum(declared, plan["bytes"].to_numpy().astype(np.float64))
    return np.clip(known, 0, MAX_ESTIMATE_BYTES).astype(np.int64)


def group_scans(num_bytes: npt.NDArray[np.int64], *, max_bytes: int, max_scans: int) -> list[tuple[int, int]]:
    """Cut consecutive scans into blocks: (start, stop) of each. A larger scan is alone."""
    groups, start, total = [], 0, 0
    for position, size in enumerate(num_bytes.tolist()):
        if position > start and (total + size > max_bytes or position - start >= max_scans):
            groups.append((start, position))
            start, total = position, 0
        total += size
    return [*groups, (start, len(num_bytes))] if len(num_bytes) else []


def cut_plan(plan: pa.Table, *, num_cpus: float, max_scans: int = MAX_BLOCK_SCANS) -> list[tuple[int, int]]:
    """Cut a plan into blocks: (start, stop) of each.

    Args:
        plan: Rows of the manifest.
        num_cpus: CPUs of the cluster: small plans are cut finer, so that all have work.
        max_scans: Scans in a block.
    """
    share = max(1, round(plan.num_rows / (8 * max(1.0, num_cpus))))
    return group_scans(estimate_bytes(plan), max_bytes=BLOCK_BYTES, max_scans=min(max_scans, share))


def arrange_plan(plan: pa.Table, groups: list[list[str]]) -> tuple[pa.Table, list[tuple[int, int]]]:
    """Rows of a plan in the order of groups of scan_ids, and (start, stop) of each group."""
    wanted = pa.array([scan_id for group in groups for scan_id in group], pa.string())
    rows = plan.take(pc.index_in(wanted, value_set=plan["scan_id"].combine_chunks()))
    stops = [*accumulate(len(group) for group in groups)]
    return rows, list(zip([0, *stops], stops, strict=False))


def write_plan(place: Place, folder: str, plan: pa.Table, groups: list[tuple[int, int]]) -> list[PlannedBlock]:
    """Write the plan as Parquet files whose row groups are the blocks.

    Args:
        place: The output folder.
        folder: Where below it.
        plan: Rows of the manifest.
        groups: (start, stop) of each block.
    """
    plan = plan.combine_chunks()
    blocks: list[PlannedBlock] = []
    place.make_folder(folder)
    for first in range(0, len(groups), BLOCKS_PER_FILE):
        name = f"{folder}/plan-{first:08d}.parquet"
        with (
            report_full_disk(place.path(name)),
            pq.ParquetWriter(place.path(name), plan.schema, filesystem=place.filesystem, use_dictionary=False) as file,
        ):
            for number, (start, stop) in enumerate(groups[first : first + BLOCKS_PER_FILE]):
                file.write_table(plan.slice(start, stop - start), row_group_size=stop - start)
                blocks.append(PlannedBlock(name, number, stop - start))
    return blocks


def _true(condition: pa.ChunkedArray) -> pa.ChunkedArray:
    return pc.fill_null(condition, False)


def _count(condition: pa.ChunkedArray) -> int:
    return int(pc.sum(pc.cast(condition, pa.int64())).as_py() or 0)
