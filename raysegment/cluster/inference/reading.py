"""Reading in Ray Data tasks: from blocks of the plan to blocks of pixels."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from raysegment.archive.decoder import Decoder
from raysegment.archive.manifest import entries
from raysegment.cluster.inference.remaining import PlannedBlock
from raysegment.pipeline.blocks import MAX_BLOCK_BYTES, read_block
from raysegment.scan import ReadSettings
from raysegment.store.place import Place

if TYPE_CHECKING:
    from raysegment.cluster.ray_internals import Execution

READ_CPUS = 1.0
"""Logical CPUs of a reading task, where nodes have as many to spare: one reads faster than two cores segment, and more
at once would only delay the start of the workers."""

UNBOUNDED = -1
"""Blocks that Ray Data may go on without: what did not come is known by what did."""


@dataclass(frozen=True)
class ReadTaskSettings:
    """What reading tasks need to know.

    Attributes:
        location: The output folder, which holds the plan.
        memory_mb: Memory limit for decoding one scan.
        timeout_seconds: Time limit for decoding one scan.
        scans: What reading depends on besides the plan.
        num_cpus: Logical CPUs of a reading task.
        max_retries: Times that a reading task is started again after its node or process was lost.
    """

    location: str
    memory_mb: int
    timeout_seconds: float
    scans: ReadSettings
    num_cpus: float = READ_CPUS
    max_retries: int = 1


def start_reading(planned: list[PlannedBlock], settings: ReadTaskSettings, *, store_bytes: int) -> Execution:
    """Blocks of pixels that Ray Data reads ahead of their use; iterate over it once, and close it while Ray runs.

    A task whose process dies again and again leaves its block out; the others come.

    Args:
        planned: The plan's blocks.
        settings: For the reading tasks.
        store_bytes: Room in Ray's object store for what is read ahead.
    """
    from raysegment.cluster.ray_internals import Execution

    return Execution(build_dataset(planned, settings, store_bytes))


def build_dataset(planned: list[PlannedBlock], settings: ReadTaskSettings, store_bytes: int) -> Any:
    """The reading of the plan as a Ray Data set, not started yet."""
    import ray.data
    from ray.data import DataContext, ExecutionResources

    context = DataContext.get_current().copy()
    context.target_max_block_size = MAX_BLOCK_BYTES // 2
    context.max_errored_blocks = UNBOUNDED
    context.execution_options.resource_limits = ExecutionResources(object_store_memory=store_bytes)
    rows = [{"file": block.file, "row_group": block.row_group} for block in planned]
    # Ray 2.60 says that `max_retries` goes away with 2.64; until then nothing else bounds its retries.
    with DataContext.current(context), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # Unlike from_arrow or range, from_items starts no task of its own, which would wait for a whole CPU.
        return ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
            read_planned,
            batch_size=None,
            batch_format="pyarrow",
            fn_kwargs={"settings": settings},
            num_cpus=settings.num_cpus,
            max_retries=settings.max_retries,
            retry_exceptions=False,
        )


def read_planned(batch: pa.Table, settings: ReadTaskSettings) -> Iterator[pa.Table]:
    """Read the scans of the planned blocks in a batch."""
    place = Place(settings.location)
    decoder = keep_decoder(settings.memory_mb, settings.timeout_seconds, settings.scans)
    for row in batch.to_pylist():
        with pq.ParquetFile(place.path(row["file"]), filesystem=place.filesystem) as file:
            scans = file.read_row_group(row["row_group"])
        yield from read_block(decoder, list(entries(scans)))


@lru_cache(maxsize=1)
def keep_decoder(memory_mb: int, timeout_seconds: float, settings: ReadSettings) -> Decoder:
    """The decoder of this process; it stays alive from task to task."""
    return Decoder(memory_mb, timeout_seconds, settings)
