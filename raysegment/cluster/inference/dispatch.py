"""Giving blocks to workers and taking receipts, until a round's blocks are done; workers may die meanwhile."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from raysegment.cluster.inference.feed import BlockFeed
from raysegment.cluster.inference.pool import BlockInHand, Worker, WorkerPool
from raysegment.cluster.inference.worker import CALLS_AT_ONCE, Receipt
from raysegment.cluster.session import raise_if_interrupted
from raysegment.errors import ClusterError, NetworkFailedError, RaysegmentError

WAIT_SECONDS = 0.05
SECONDS_FOR_LAST_WORDS = 1.0
MAX_DEATHS_UNTOLD = 2
"""Workers that may die on a block before they tell its scans; then it is read again in the next round."""


@dataclass(frozen=True, kw_only=True)
class RoundSettings:
    """How a round goes about its blocks.

    Attributes:
        part_seconds: Time after which a worker that waits for blocks is asked to close its part.
        calls_at_once: Blocks that a worker may have in hand. With one, it gets the next when its part is staged, so
            that one block is all that it can lose.
        worker_timeout_seconds: Time after which a worker that owes an answer and gives none is ended.
        reading_timeout_seconds: Time after which reading that gives no block to idle workers is given up.
    """

    part_seconds: float
    calls_at_once: int = CALLS_AT_ONCE
    worker_timeout_seconds: float = math.inf
    reading_timeout_seconds: float = math.inf


@dataclass(frozen=True)
class LostHand:
    """The unfinished scans of a worker that died, by block, and what is known of its death."""

    blocks: list[list[str]]
    cause: str

    @property
    def num_scans(self) -> int:
        return sum(len(block) for block in self.blocks)


@dataclass
class RoundOutcome:
    """What a round left.

    Attributes:
        hands: One for each worker that died.
        lost: Scans on which nothing died, but whose block or part was lost.
        read_error: Why reading ended early, or None.
    """

    hands: list[LostHand] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    read_error: BaseException | None = None


class Dispatcher:
    """One round: all blocks of a plan through the pool.

    Args:
        pool: The workers.
        feed: The blocks.
        on_receipt: Called with each receipt, in this thread.
        settings: How to go about it.
        on_lost: Called with the number of scans whose receipts came but whose part died with its worker.
        on_tick: Called in every turn of the loop.
    """

    def __init__(
        self,
        pool: WorkerPool,
        feed: BlockFeed,
        on_receipt: Callable[[Receipt], None],
        settings: RoundSettings,
        *,
        on_lost: Callable[[int], None] = lambda num_scans: None,
        on_tick: Callable[[], None] = lambda: None,
    ) -> None:
        self.pool = pool
        self.feed = feed
        self.on_receipt = on_receipt
        self.on_lost = on_lost
        self.on_tick = on_tick
        self.settings = settings
        self.outcome = RoundOutcome()
        self._returned: list[BlockInHand] = []
        self._pending: dict[Any, tuple[str, Worker, Any]] = {}
        self._moved = time.monotonic()

    def run(self) -> RoundOutcome:
        """Work until the feed is done and every part of this round is staged.

        Raises:
            RaysegmentError: What a worker raised on purpose, such as DiskFullError.
        """
        while True:
            raise_if_interrupted()
            self.pool.adjust()
            self._ask_new_workers()
            self._hand_out()
            self._close_overdue()
            self._end_silent()
            if self._is_finished():
                self.outcome.read_error = self.feed.error
                return self.outcome
            if self._is_reading_stuck():
                waited = f"{self.settings.reading_timeout_seconds:g} seconds"
                self.outcome.read_error = ClusterError(f"reading gave nothing to idle workers for {waited}")
                return self.outcome
            self._collect()
            self.on_tick()

    def _ask_new_workers(self) -> None:
        asked = {id(worker) for kind, worker, _ in self._pending.values() if kind == "start"}
        for worker in self.pool.workers:
            if not worker.is_ready and id(worker) not in asked:
                self._pending[worker.handle.identify.options(concurrency_group="questions").remote()] = (
                    "start",
                    worker,
                    None,
                )

    def _hand_out(self) -> None:
        for num_calls in range(self.settings.calls_at_once):
            for worker in self.pool.workers:
                if self._may_take(worker, num_calls) and not self._give_block(worker):
                    return

    def _may_take(self, worker: Worker, num_calls: int) -> bool:
        is_alone = self.settings.calls_at_once == 1
        return worker.is_ready and len(worker.calls) == num_calls and not (is_alone and worker.waiting)

    def _give_block(self, worker: Worker) -> bool:
        if self._returned:
            block = self._returned.pop()
        else:
            reference = self.feed.take()
            if reference is None:
                return False
            block = BlockInHand(reference)
        self._start_waiting_for(worker)
        question = worker.handle.describe.options(concurrency_group="questions").remote(block=block.reference)
        worker.calls[question] = block
        self._pending[question] = ("describe", worker, block)
        return True

    def _begin(self, worker: Worker, block: BlockInHand, scan_ids: list[str]) -> None:
        """The scans of a block are known, so whatever happens to it can be told; now the worker may begin."""
        block.scan_ids = scan_ids
        call = worker.handle.segment.options(concurrency_group="blocks").remote(block=block.reference)
        worker.calls[call] = block
        self._pending[call] = ("segment", worker, block)

    def _start_waiting_for(self, worker: Worker) -> None:
        """Count a worker's silence from now, unless it owes an answer already."""
        self._moved = time.monotonic()
        if not worker.is_owing:
            worker.heard = self._moved

    def _close_overdue(self) -> None:
        no_more = self.feed.is_done and not self._returned
        for worker in self.pool.workers:
            age = time.monotonic() - worker.part_opened
            is_idle = no_more and not worker.calls
            if worker.waiting and not worker.is_closing and (is_idle or age >= self.settings.part_seconds):
                self._start_waiting_for(worker)
                worker.is_closing = True
                call = worker.handle.close_part.options(concurrency_group="questions").remote()
                self._pending[call] = ("close", worker, None)

    def _end_silent(self) -> None:
        """Bury the workers that hang."""
        limit = self.settings.worker_timeout_seconds
        for worker in list(self.pool.workers):
            if worker.is_owing and time.monotonic() - worker.heard > limit:
                self._bury(worker, f"it answered nothing for {limit:g} seconds, the limit of --worker-timeout-seconds")

    def _is_reading_stuck(self) -> bool:
        if self._returned or any(worker.is_owing or worker.waiting for worker in self.pool.workers):
            self._moved = time.monotonic()
        return time.monotonic() - self._moved > self.settings.reading_timeout_seconds

    def _is_finished(self) -> bool:
        if not self.feed.is_done or self._returned:
            return False
        kinds = {kind for kind, _, _ in self._pending.values()} - {"start"}
        return not kinds and not any(worker.waiting for worker in self.pool.workers)

    def _collect(self) -> None:
        import ray

        if not self._pending:
            time.sleep(WAIT_SECONDS)
            return
        ready, _ = ray.wait(list(self._pending), num_returns=len(self._pending), timeout=0, fetch_local=False)
        if not ready:
            ready, _ = ray.wait(list(self._pending), num_returns=1, timeout=WAIT_SECONDS, fetch_local=False)
        for reference in ready:
            if reference in self._pending:
                self._take_answer(reference)

    def _take_answer(self, reference: Any) -> None:
        import ray

        kind, worker, block = self._pending.pop(reference)
        try:
            answer = ray.get(reference)
        except (
            ray.exceptions.RayActorError,
            ray.exceptions.OutOfMemoryError,
            ray.exceptions.ActorUnschedulableError,
            ray.exceptions.RuntimeEnvSetupError,
        ) as error:
            self._bury(worker, str(error))
        except ray.exceptions.RayTaskError as error:
            self._judge(error, kind, worker, reference)
        except ray.exceptions.RayError:
            self._drop_block(worker, reference)
            worker.is_closing = worker.is_closing and kind != "close"
        else:
            self._use(kind, worker, block, reference, answer)

    def _use(self, kind: str, worker: Worker, block: BlockInHand | None, reference: Any, answer: Any) -> None:
        if kind == "describe" and block is not None:
            worker.calls.pop(reference, None)
            self._begin(worker, block, answer)
            return
        worker.heard = time.monotonic()
        if kind == "start":
            self.pool.mark_ready(worker)
        else:
            worker.calls.pop(reference, None)
            worker.is_closing = worker.is_closing and kind != "close"
            self._settle(worker, answer)

    def _settle(self, worker: Worker, receipt: Receipt) -> None:
        staged = [scan_id for part in receipt.parts for scan_id in part.scan_ids]
        was_empty = not worker.waiting
        # A part may close with scans whose own call has not returned yet.
        told = [scan_id for scan_id in receipt.scan_ids if scan_id not in worker.staged_early]
        worker.staged_early.difference_update(receipt.scan_ids)
        worker.waiting.update(dict.fromkeys(told))
        for scan_id in staged:
            if scan_id in worker.waiting:
                del worker.waiting[scan_id]
            elif scan_id not in receipt.scan_ids:
                worker.staged_early.add(scan_id)
        if was_empty or staged:
            worker.part_opened = time.monotonic()
        self.on_receipt(receipt)

    def _judge(self, error: Any, kind: str, worker: Worker, reference: Any) -> None:
        """A worker raised: end one whose network fails, pass on what was meant for the user, drop a lost block."""
        import ray

        cause = getattr(error, "cause", None)
        if isinstance(cause, NetworkFailedError):
            self._bury(worker, str(cause))
            return
        if isinstance(cause, RaysegmentError):
            raise cause from error
        if isinstance(cause, ray.exceptions.RayError):
            self._drop_block(worker, reference)
            return
        raise ClusterError(f"an inference worker failed: {type(cause).__name__}: {cause}") from error

    def _drop_block(self, worker: Worker, reference: Any) -> None:
        """A block is lost with the node that held it."""
        block = worker.calls.pop(reference, None)
        if block is not None and block.scan_ids is not None:
            self.outcome.lost += block.scan_ids

    def _bury(self, worker: Worker, cause: str) -> None:
        """A worker died: remember what it had not finished, give what it had not begun to another one."""
        self._collect_last_words(worker)
        blocks = worker.unfinished_blocks()
        if blocks or worker.is_ready:
            self.outcome.hands.append(LostHand(blocks, " ".join(cause.split())[:300]))
            self.outcome.lost += worker.waiting
            self.on_lost(len(worker.waiting))
        for block in worker.calls.values():
            if block.scan_ids is None and block.num_deaths < MAX_DEATHS_UNTOLD:
                block.num_deaths += 1
                self._returned.append(block)
        if worker in self.pool.workers:
            self.pool.remove(worker, cause)

    def _collect_last_words(self, worker: Worker) -> None:
        """Receipts may have arrived before their worker died."""
        import ray

        said = {key: self._pending.pop(key) for key, (_, owner, _) in [*self._pending.items()] if owner is worker}
        said = {key: value for key, value in said.items() if value[0] in ("segment", "close")}
        if not said:
            return
        ready, _ = ray.wait(list(said), num_returns=len(said), timeout=SECONDS_FOR_LAST_WORDS, fetch_local=False)
        for reference in ready:
            kind, _, block = said[reference]
            try:
                answer = ray.get(reference, timeout=SECONDS_FOR_LAST_WORDS)
            except (ray.exceptions.RayError, TimeoutError):
                continue
            self._use(kind, worker, block, reference, answer)
