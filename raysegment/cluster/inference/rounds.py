"""Rounds: a plan is done until every scan of it is published, however many workers and nodes die on the way."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raysegment.archive.manifest import entries
from raysegment.cluster.inference.dispatch import Dispatcher, RoundOutcome, RoundSettings
from raysegment.cluster.inference.feed import BlockFeed
from raysegment.cluster.inference.nodes import check_node, check_nodes, describe_versions
from raysegment.cluster.inference.pool import CPU_SHARE, WorkerPool
from raysegment.cluster.inference.reading import READ_CPUS, ReadTaskSettings, start_reading
from raysegment.cluster.inference.remaining import arrange_plan, cut_plan, write_plan
from raysegment.cluster.inference.suspects import Suspects
from raysegment.cluster.inference.worker import CALLS_AT_ONCE, Receipt, WorkerSettings
from raysegment.cluster.session import live_nodes
from raysegment.errors import (
    ClusterError,
    ReaderCrashedError,
    ScanError,
    TooManyFailuresError,
    UsageError,
    WorkerCrashedError,
)
from raysegment.model.bundle import Bundle
from raysegment.options import InferOptions
from raysegment.pipeline.blocks import IDENTITY, ReadScan
from raysegment.pipeline.segment import fail_scan
from raysegment.runs.console import Console
from raysegment.runs.lock import RunLock
from raysegment.runs.progress import ScanProgress
from raysegment.scan import ReadSettings
from raysegment.store.parts import MAX_FAILURES_SHOWN, Failure, PartReceipt, stage_part
from raysegment.store.place import Place
from raysegment.store.publish import publish_part, read_finished

MAX_FAILED_AT_START = 50
MAX_READ_FAILURES = 3
TRIES_TO_READ = 4
"""Time limits that a scan may take to read: pixels and reference, each with a second decoder after a crash."""

STORE_BYTES_PER_WORKER = 64 * 2**20
"""Room in Ray's object store for blocks that were read ahead: some seconds of work on processors."""

STORE_BYTES_PER_GPU = 512 * 2**20
"""The same for a worker with a GPU."""


@dataclass(frozen=True, kw_only=True)
class Round:
    """What one round does.

    Attributes:
        plan: Rows of the manifest.
        groups: (start, stop) of each block.
        is_careful: Whether each process gets one block at a time, so that a death tells of that block alone.
    """

    plan: pa.Table
    groups: list[tuple[int, int]]
    is_careful: bool

    @property
    def scan_ids(self) -> pa.ChunkedArray:
        return self.plan["scan_id"]


class Rounds:
    """Does a plan with a pool of workers, and publishes what they stage.

    A round reads the plan, hands its blocks to workers, and publishes parts as they close. What is not published at its
    end is done in the next. Scans that were unfinished when a process died on them, of those that read or of those that
    predict, are suspects: when all others are done they are tried in ever smaller groups, so that the one to blame
    fails alone. Each round publishes something or narrows the search, or it counts as fruitless, and few may be.
    """

    def __init__(
        self,
        *,
        options: InferOptions,
        bundle: Bundle,
        worker: WorkerSettings,
        place: Place,
        lock: RunLock,
        console: Console,
        progress: ScanProgress,
        num_ok_before: int,
    ) -> None:
        self.options = options
        self.worker = worker
        self.place = place
        self.lock = lock
        self.console = console
        self.progress = progress
        self.num_published = 0
        self.num_slices = 0
        self.first_prediction: float | None = None
        self.failed: Counter[str] = Counter()
        self.failures: list[Failure] = []
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self._bundle = bundle
        self._versions = describe_versions()
        self._are_nodes_checked = False
        self._num_ok = num_ok_before
        self._suspects = Suspects(options.max_attempts)
        self._fruitless_rounds = 0
        self._read_failures = 0
        self._round = 0

    def run(self, plan: pa.Table) -> None:
        """Do every scan of a plan.

        Raises:
            RaysegmentError: The run cannot go on; what is published stays valid.
        """
        import ray

        pool = WorkerPool(
            ray.put(self._bundle),
            self.worker,
            workers_per_node=self.options.workers,
            admit=self._admit,
            say=self.console.say,
        )
        try:
            pool.adjust()
            check_nodes(self._versions)
            self._are_nodes_checked = True
            while plan.num_rows:
                plan = self._do(pool, self._choose_round(plan), plan)
        finally:
            pool.close()

    def _admit(self, node: dict[str, Any]) -> bool:
        """Whether workers may run on a node: at the start on all, where one misfit ends the run; later as it joins."""
        if not self._are_nodes_checked:
            return True
        try:
            check_node(node, self._versions)
        except UsageError as error:
            self.console.say(f"no workers there: {error}")
            return False
        return True

    def _choose_round(self, plan: pa.Table) -> Round:
        """All scans above suspicion first; when none is left, the suspects."""
        others = plan.filter(pc.invert(_is_among(plan["scan_id"], self._suspects.scan_ids)))
        if others.num_rows:
            num_cpus = sum(float(node["Resources"].get("CPU", 0)) for node in live_nodes())
            return Round(plan=others, groups=cut_plan(others, num_cpus=num_cpus), is_careful=False)
        rows, groups = arrange_plan(plan, self._suspects.groups)
        return Round(plan=rows, groups=groups, is_careful=True)

    def _do(self, pool: WorkerPool, current: Round, plan: pa.Table) -> pa.Table:
        """Do one round of a plan; returns what is left of the plan."""
        before = (self.num_published, self._suspects.num_accusations)
        outcome, death = self._dispatch(pool, current)
        published = read_finished(self.place)["scan_id"].combine_chunks()
        if self.num_published > before[0]:
            self._fruitless_rounds = self._read_failures = 0
        self._accuse_workers(outcome)
        if outcome.read_error is None:
            self._accuse_readers(current, outcome, published, death)
        else:
            self._count_read_failure(outcome.read_error)
        left = plan.filter(pc.invert(pc.is_in(plan["scan_id"], value_set=published)))
        left = self._give_up_hopeless(left)
        suspects = left["scan_id"].filter(_is_among(left["scan_id"], self._suspects.scan_ids))
        self._suspects.keep_only(set(suspects.to_pylist()))
        if (self.num_published, self._suspects.num_accusations) == before:
            self._fruitless_rounds += 1
        if self._fruitless_rounds > self.options.max_attempts + MAX_READ_FAILURES:
            raise ClusterError(f"{left.num_rows} scans were lost again and again with their nodes; nothing was done.")
        return left

    def _dispatch(self, pool: WorkerPool, current: Round) -> tuple[RoundOutcome, str]:
        """Read and segment the blocks of a round; returns also what is known of reading processes that died."""
        self._round += 1
        nodes = [node["Resources"] for node in live_nodes()]
        cpus = [float(node.get("CPU", 0)) for node in nodes]
        has_gpus = any(node.get("GPU", 0) for node in nodes)
        folder = f"{self.worker.staging}/plan-{self._round}"
        reading = start_reading(
            write_plan(self.place, folder, current.plan, current.groups),
            ReadTaskSettings(
                self.place.location,
                self.options.read_memory_mb,
                self.options.read_timeout_seconds,
                ReadSettings(
                    labels=self.worker.segment.drawn_labels,
                    slice_axis=self.worker.segment.preprocessing.slice_axis,
                    resample_channels=self.options.resample_channels,
                ),
                num_cpus=min(READ_CPUS, CPU_SHARE * min(cpus, default=1.0)),
                max_retries=0 if current.is_careful else 1,
            ),
            store_bytes=(STORE_BYTES_PER_GPU if has_gpus else STORE_BYTES_PER_WORKER) * max(1, len(pool.workers)),
        )
        feed = BlockFeed(reading, num_ahead=max(1, len(pool.workers)))
        try:
            outcome = Dispatcher(
                pool,
                feed,
                self._take,
                self._settings_of(current),
                on_lost=self.progress.step_back,
                on_tick=self.progress.tick,
            ).run()
        finally:
            feed.close()
        outcome.read_error = outcome.read_error or reading.lost.error
        return outcome, _shorten(reading.lost.death or "their process or node was lost")

    def _settings_of(self, current: Round) -> RoundSettings:
        largest = max(stop - start for start, stop in current.groups)
        return RoundSettings(
            part_seconds=0.0 if current.is_careful else self.worker.part_seconds,
            calls_at_once=1 if current.is_careful else CALLS_AT_ONCE,
            worker_timeout_seconds=self.options.worker_timeout_seconds,
            reading_timeout_seconds=self.options.worker_timeout_seconds
            + largest * TRIES_TO_READ * self.options.read_timeout_seconds,
        )

    def _accuse_workers(self, outcome: RoundOutcome) -> None:
        for hand in outcome.hands:
            self._suspects.accuse(hand.blocks, WorkerCrashedError, hand.cause)
            self.console.say(
                f"an inference worker died with {hand.num_scans} unfinished scans in hand ({hand.cause}); "
                "they are done again."
            )

    def _accuse_readers(self, current: Round, outcome: RoundOutcome, published: pa.Array, death: str) -> None:
        """Scans that neither came to a worker nor are published were lost with a process that read their block."""
        told = [*outcome.lost, *(scan_id for hand in outcome.hands for block in hand.blocks for scan_id in block)]
        came = pc.or_(pc.is_in(current.scan_ids, value_set=published), _is_among(current.scan_ids, told))
        missing = np.flatnonzero(~came.to_numpy())
        if not len(missing):
            return
        self.console.say(f"{len(missing)} scans did not come out of reading ({death}); they are read again.")
        for start, stop in current.groups:
            block = missing[np.searchsorted(missing, start) : np.searchsorted(missing, stop)]
            if len(block):
                self._suspects.accuse([current.scan_ids.take(block).to_pylist()], ReaderCrashedError, death)

    def _count_read_failure(self, error: BaseException) -> None:
        self._read_failures += 1
        self.console.say(f"reading stopped: {_shorten(error)}")
        if self._read_failures >= MAX_READ_FAILURES:
            raise ClusterError(f"reading failed {self._read_failures} times: {_shorten(error)}") from error

    def _give_up_hopeless(self, left: pa.Table) -> pa.Table:
        """Fail the scans that were tried as often as they may be; returns the others."""
        hopeless = self._suspects.take_hopeless()
        is_hopeless = _is_among(left["scan_id"], list(hopeless))
        self._fail(left.filter(is_hopeless), hopeless)
        return left.filter(pc.invert(is_hopeless))

    def _fail(self, plan: pa.Table, errors: dict[str, ScanError]) -> None:
        rows = []
        for entry in entries(plan):
            read = ReadScan(**{name: getattr(entry, name) for name in IDENTITY}, scan=None)
            rows.append(fail_scan(read, errors[entry.scan_id], self.worker.segment))
        if rows:
            receipt = Receipt(parts=[stage_part(self.place, self.worker.staging, rows)])
            for row in rows:
                receipt.add(row)
            self._take(receipt)

    def _take(self, receipt: Receipt) -> None:
        """Show what a receipt tells and publish the parts it brings; only what is published counts."""
        if receipt.first_prediction is not None:
            self.first_prediction = min(receipt.first_prediction, self.first_prediction or receipt.first_prediction)
        for stage, seconds in receipt.seconds.items():
            self.seconds[stage] += seconds
        self.progress.advance(len(receipt.scan_ids), receipt.num_failed, receipt.num_slices)
        for part in receipt.parts:
            self._publish(part)
        if self._num_ok == 0 and self.failed.total() >= MAX_FAILED_AT_START:
            first = self.failures[0]
            raise TooManyFailuresError(
                f"the first {self.failed.total()} finished scans all failed, most with "
                f"{self.failed.most_common(1)[0][0]}; is this the right archive and the right model? The first: "
                f"{first.error_type}: {first.message}"
            )

    def _publish(self, part: PartReceipt) -> None:
        self.lock.check()
        started = time.perf_counter()
        publish_part(self.place, self.worker.staging, part.name)
        self.num_published += len(part.scan_ids)
        self.num_slices += part.num_slices
        self.failed.update(part.failed)
        self.failures = [*self.failures, *part.failures][:MAX_FAILURES_SHOWN]
        self._num_ok += len(part.scan_ids) - part.failed.total()
        self.seconds["stage"] += part.seconds_stage
        self.seconds["publish"] += time.perf_counter() - started


def _is_among(scan_ids: pa.ChunkedArray, names: list[str]) -> pa.ChunkedArray:
    return pc.is_in(scan_ids, value_set=pa.array(names, pa.string()))


def _shorten(error: object) -> str:
    return " ".join(str(error).split())[:300]
