"""The pool of inference workers: on every node, growing and shrinking with the cluster."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from raysegment.cluster.inference.worker import WorkerSettings, start_segmenter
from raysegment.cluster.session import live_nodes
from raysegment.errors import ClusterError, UsageError

SECONDS_BETWEEN_LOOKS = 2.0
CPUS_PER_WORKER = 8
"""A convolution scales to about this many cores; nodes with more get several workers."""

CPU_SHARE = 0.5
"""Share of a node's logical CPUs that workers ask for; reading tasks have the rest. Threads are set apart from this."""

MAX_FAILED_STARTS = 3


@dataclass(eq=False)
class Worker:
    """One inference worker, as the driver knows it.

    Attributes:
        handle: The actor.
        node_id: Where it runs.
        is_ready: Whether its network is loaded.
        calls: Blocks in hand, by the question for their scans or the call that works on them.
        waiting: Scans in its open part, which is not staged yet.
        staged_early: Scans in a staged part whose own call has not returned yet.
        part_opened: When the first of them came, in monotonic seconds.
        is_closing: Whether it was asked to close its part.
        heard: When it last answered, or first had something to answer, in monotonic seconds.
    """

    handle: Any
    node_id: str
    is_ready: bool = False
    calls: dict[Any, BlockInHand] = field(default_factory=dict)
    waiting: dict[str, None] = field(default_factory=dict)
    staged_early: set[str] = field(default_factory=set)
    part_opened: float = 0.0
    is_closing: bool = False
    heard: float = field(default_factory=time.monotonic)

    @property
    def is_owing(self) -> bool:
        """Whether it has something to answer."""
        return not self.is_ready or self.is_closing or bool(self.calls)

    def unfinished_blocks(self) -> list[list[str]]:
        """Scans that it works on, by block: if it dies now, one of them may be to blame."""
        told = [block.scan_ids for block in self.calls.values() if block.scan_ids is not None]
        left = ([scan_id for scan_id in block if scan_id not in self.staged_early] for block in told)
        return [block for block in left if block]


@dataclass(eq=False)
class BlockInHand:
    """A block that was given to a worker.

    Attributes:
        reference: The block in Ray's object store.
        scan_ids: Its scans; None until the worker told them, and begins.
        num_deaths: Workers that died before they told them.
    """

    reference: Any
    scan_ids: list[str] | None = None
    num_deaths: int = 0


class WorkerPool:
    """Starts workers on each node that is alive, and forgets those that died.

    Args:
        bundle: Reference to the bundle in Ray's object store.
        settings: For each worker; `threads` None means its share of the node's CPUs.
        workers_per_node: Workers on each node; by its CPUs or GPUs if None.
        admit: Called once with each new node; returns whether workers may run there.
        say: Called with a line for the user.
    """

    def __init__(
        self,
        bundle: Any,
        settings: WorkerSettings,
        *,
        workers_per_node: int | None,
        admit: Callable[[dict[str, Any]], bool] = lambda node: True,
        say: Callable[[str], None] = lambda line: None,
    ) -> None:
        self.workers: list[Worker] = []
        self._bundle = bundle
        self._settings = settings
        self._workers_per_node = workers_per_node
        self._admit = admit
        self._say = say
        self._refused: set[str] = set()
        self._known: set[str] = set()
        self._failed_starts: Counter[str] = Counter()
        self._next_look = 0.0

    def adjust(self) -> None:
        """Bring every live node to its number of workers, now and then.

        Raises:
            ClusterError: No node is left that may run workers.
        """
        if time.monotonic() < self._next_look:
            return
        self._next_look = time.monotonic() + SECONDS_BETWEEN_LOOKS
        nodes = live_nodes()
        if not nodes:
            raise ClusterError("no node of the Ray cluster is alive; start one and run the same command.")
        for node in nodes:
            node_id = node["NodeID"]
            if node_id not in self._known:
                self._known.add(node_id)
                if not self._admit(node):
                    self._refused.add(node_id)
            missing = share_node(node, self._workers_per_node)[0] - self._count(node_id)
            for _ in range(0 if node_id in self._refused else missing):
                self._start(node)
        if not self.workers and all(node["NodeID"] in self._refused for node in nodes):
            raise ClusterError("no node of the Ray cluster may run inference workers any more; the log says why.")

    def remove(self, worker: Worker, cause: str) -> None:
        """Forget a worker that died, and make sure it is dead.

        Raises:
            ClusterError: On every node workers died one after another before their network was loaded.
        """
        import ray

        self.workers.remove(worker)
        ray.kill(worker.handle, no_restart=True)
        self._next_look = 0.0
        if worker.is_ready:
            return
        self._failed_starts[worker.node_id] += 1
        if self._failed_starts[worker.node_id] > MAX_FAILED_STARTS:
            self._refused.add(worker.node_id)
            told = (
                f"{MAX_FAILED_STARTS + 1} inference workers in a row died on node {worker.node_id[:8]} while loading "
                "the network. If memory is too small, try --workers 1, a smaller --batch-size or, of an "
                "ensemble, fewer --members. The last one: "
                f"{' '.join(cause.split())[:300]}"
            )
            if all(node["NodeID"] in self._refused for node in live_nodes()):
                raise ClusterError(told)
            self._say(f"{told} No more are started there.")

    def mark_ready(self, worker: Worker) -> None:
        """Note that a worker's network is loaded."""
        worker.is_ready = True
        del self._failed_starts[worker.node_id]

    def close(self) -> None:
        """End all workers."""
        import ray

        for worker in self.workers:
            ray.kill(worker.handle, no_restart=True)
        self.workers = []

    def _count(self, node_id: str) -> int:
        return sum(worker.node_id == node_id for worker in self.workers)

    def _start(self, node: dict[str, Any]) -> None:
        _, threads, num_cpus, num_gpus = share_node(node, self._workers_per_node)
        settings = replace(self._settings, threads=self._settings.threads or threads)
        handle = start_segmenter(self._bundle, settings, node_id=node["NodeID"], num_cpus=num_cpus, num_gpus=num_gpus)
        self.workers.append(Worker(handle, node["NodeID"]))


def share_node(node: dict[str, Any], workers_per_node: int | None) -> tuple[int, int, float, float]:
    """How a node is shared between workers.

    Returns:
        Number of workers, TensorFlow threads of each, logical CPUs of each, GPUs of each.

    Raises:
        UsageError: Workers cannot share the GPUs equally.
    """
    cpus, gpus = float(node["Resources"].get("CPU", 1)), int(node["Resources"].get("GPU", 0))
    workers = workers_per_node or gpus or max(1, int(cpus) // CPUS_PER_WORKER)
    if gpus and workers > gpus and workers % gpus:
        raise UsageError(f"--workers {workers} cannot be shared by {gpus} GPUs of a node; give a multiple of {gpus}.")
    threads = max(1, int(cpus) // workers)
    return workers, threads, round(cpus * CPU_SHARE / workers, 3), min(1.0, gpus / workers)
