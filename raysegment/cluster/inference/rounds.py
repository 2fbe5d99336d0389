"""Rounds: a plan is done until every scan of it is published, however many workers and nodes die on the way."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from raysegment.archive.manifest import entries
from raysegment.cluster.inference.dispatch import BlockFeed, Dispatcher, RoundOutcome
from raysegment.cluster.inference.nodes import check_node, check_nodes, describe_versions
from raysegment.cluster.inference.pool import CPU_SHARE, WorkerPool
from raysegment.cluster.inference.reading import READ_CPUS, ReadSettings, start_reading
from raysegment.cluster.inference.remaining import MAX_BLOCK_SCANS, write_plan
from raysegment.cluster.inference.worker import CALLS_AT_ONCE, Receipt, WorkerSettings
from raysegment.cluster.session import live_nodes
from raysegment.errors import ClusterError, TooManyFailuresError, UsageError, WorkerCrashedError
from raysegment.model.bundle import Bundle
from raysegment.options import InferOptions
from raysegment.pipeline.blocks import ReadScan
from raysegment.pipeline.segment import fail_scan
from raysegment.runs.console import Console
from raysegment.runs.lock import RunLock
from raysegment.runs.progress import ScanProgress
from raysegment.store.parts import MAX_FAILURES_SHOWN, Failure, PartReceipt, stage_part
from raysegment.store.place import Place
from raysegment.store.publish import publish_part, read_finished

MAX_FAILED_AT_START = 50
MAX_READ_FAILURES = 3
STORE_BYTES_PER_WORKER = 64 * 2**20
"""Room in Ray's object store for blocks that were read ahead: some seconds of work on processors."""

STORE_BYTES_PER_GPU = 512 * 2**20
"""The same for a worker with a GPU."""


class Rounds:
    """Does a plan with a pool of workers, and publishes what they stage.

    A round reads the plan, hands its blocks to workers, and publishes parts as they close. What is not published at its
    end was lost with a worker or a node and is done in the next round; scans that a worker died on go one at a time, so
    that the one to blame fails alone.
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
        self.first_prediction: float | None = None
        self.failed: Counter[str] = Counter()
        self.failures: list[Failure] = []
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self._bundle = bundle
        self._versions = describe_versions()
        self._are_nodes_checked = False
        self._num_ok = num_ok_before
        self._crashes: Counter[str] = Counter()
        self._causes: dict[str, str] = {}
        self._given_up: set[str] = set()
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
                suspects = pc.is_in(plan["scan_id"], value_set=pa.array(list(self._crashes), pa.string()))
                others = plan.filter(pc.invert(suspects))
                if others.num_rows:
                    self._do(pool, others, calls_at_once=CALLS_AT_ONCE, max_scans=MAX_BLOCK_SCANS)
                else:
                    self._do(pool, plan, calls_at_once=1, max_scans=1)
                plan = self._find_left(plan)
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

    def _do(self, pool: WorkerPool, plan: pa.Table, *, calls_at_once: int, max_scans: int) -> None:
        """One round."""
        self._round += 1
        nodes = [node["Resources"] for node in live_nodes()]
        cpus = [float(node.get("CPU", 0)) for node in nodes]
        has_gpus = any(node.get("GPU", 0) for node in nodes)
        folder = f"{self.worker.staging}/plan-{self._round}"
        blocks = write_plan(self.place, folder, plan, num_cpus=sum(cpus), max_scans=max_scans)
        settings = ReadSettings(
            self.place.location,
            self.options.read_memory_mb,
            self.options.read_timeout_seconds,
            num_cpus=min(READ_CPUS, CPU_SHARE * min(cpus, default=1.0)),
        )
        room = (STORE_BYTES_PER_GPU if has_gpus else STORE_BYTES_PER_WORKER) * max(1, len(pool.workers))
        feed = BlockFeed(start_reading(blocks, settings, store_bytes=room), num_ahead=max(1, len(pool.workers)))
        try:
            outcome = Dispatcher(
                pool,
                feed,
                self._take,
                on_lost=self.progress.step_back,
                on_tick=self.progress.tick,
                part_seconds=self.worker.part_seconds if max_scans > 1 else 0.0,
                calls_at_once=calls_at_once,
            ).run()
        finally:
            feed.close()
        self._judge(outcome, is_isolated=max_scans == 1)

    def _judge(self, outcome: RoundOutcome, *, is_isolated: bool) -> None:
        for hand in outcome.hands:
            self._crashes.update(hand.scan_ids)
            self._causes.update(dict.fromkeys(hand.scan_ids, hand.cause))
            self.console.say(
                f"an inference worker died with {len(hand.scan_ids)} scans in hand ({hand.cause}); they are done again."
            )
            if is_isolated:
                given_up = [name for name in hand.scan_ids if self._crashes[name] >= self.options.max_attempts]
                self._given_up.update(given_up)
        if outcome.read_error is not None:
            self._read_failures += 1
            reason = " ".join(str(outcome.read_error).split())[:300]
            self.console.say(f"reading stopped: {reason}")
            if self._read_failures >= MAX_READ_FAILURES:
                raise ClusterError(f"reading failed {self._read_failures} times: {reason}") from outcome.read_error

    def _find_left(self, plan: pa.Table) -> pa.Table:
        """What of a plan is not published, without the scans that were tried as often as they may be: these fail."""
        published = read_finished(self.place)["scan_id"].combine_chunks()
        left = plan.filter(pc.invert(pc.is_in(plan["scan_id"], value_set=published)))
        given_up = pc.is_in(left["scan_id"], value_set=pa.array(sorted(self._given_up), pa.string()))
        self._give_up(left.filter(given_up))
        if left.num_rows == plan.num_rows:
            self._fruitless_rounds += 1
        if self._fruitless_rounds > self.options.max_attempts + MAX_READ_FAILURES:
            raise ClusterError(f"{left.num_rows} scans were lost again and again with their nodes; nothing was done.")
        return left.filter(pc.invert(given_up))

    def _give_up(self, plan: pa.Table) -> None:
        rows = []
        for entry in entries(plan):
            error = WorkerCrashedError(
                f"{entry.scan_id}: the inference worker died on it {self._crashes[entry.scan_id]} times, at last of: "
                f"{self._causes[entry.scan_id]}"
            )
            read = ReadScan(entry.scan_id, entry.patient_id, entry.source, entry.fingerprint, scan=None)
            rows.append(fail_scan(read, error, self.worker.segment))
        if rows:
            receipt = Receipt(parts=[stage_part(self.place, self.worker.staging, rows)])
            for row in rows:
                receipt.add(row)
            self._take(receipt)

    def _take(self, receipt: Receipt) -> None:
        """Count what a receipt tells and publish the parts it brings."""
        num_failed = sum(receipt.failed.values())
        self._num_ok += len(receipt.scan_ids) - num_failed
        self.failed.update(receipt.failed)
        self.failures = [*self.failures, *receipt.failures][:MAX_FAILURES_SHOWN]
        if receipt.first_prediction is not None:
            self.first_prediction = min(receipt.first_prediction, self.first_prediction or receipt.first_prediction)
        for stage, seconds in receipt.seconds.items():
            self.seconds[stage] += seconds
        self.progress.advance(len(receipt.scan_ids), num_failed, receipt.num_slices)
        for part in receipt.parts:
            self._publish(part)
        if self._num_ok == 0 and sum(self.failed.values()) >= MAX_FAILED_AT_START:
            first = self.failures[0]
            raise TooManyFailuresError(
                f"the first {sum(self.failed.values())} finished scans all failed, most with "
                f"{self.failed.most_common(1)[0][0]}; is this the right archive and the right model? The first: "
                f"{first.error_type}: {first.message}"
            )

    def _publish(self, part: PartReceipt) -> None:
        self.lock.check()
        started = time.perf_counter()
        publish_part(self.place, self.worker.staging, part.name)
        self.num_published += len(part.scan_ids)
        self.seconds["stage"] += part.seconds_stage
        self.seconds["publish"] += time.perf_counter() - started
