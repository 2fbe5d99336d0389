"""How the cluster's CPUs and GPUs are divided among training workers."""

from __future__ import annotations

import time
from dataclasses import dataclass

from raysegment.cluster.session import live_nodes
from raysegment.errors import ClusterError
from raysegment.options import TrainOptions

DATA_CPUS = 0.5
"""Logical CPUs of each node that training workers leave to data tasks."""

CPUS_PER_WORKER = 8
"""CPUs that a training worker makes good use of: where there are more, several trainings run side by side."""

MIN_CPUS_PER_WORKER = 2
"""CPUs for a worker and what makes its steps, however few threads it may have."""

SECONDS_FOR_NODES = 45.0
"""How long to wait for nodes that may still join, before saying that a request cannot be met."""
SECONDS_BETWEEN_LOOKS = 0.5


@dataclass(frozen=True, kw_only=True)
class WorkerShare:
    """What each training worker gets.

    Attributes:
        num_workers: Workers.
        cpus: Logical CPUs of each, for scheduling only.
        threads: TensorFlow threads of each.
        use_gpu: One GPU each.
        side_by_side: Trainings that share the cluster, each with as many workers.
    """

    num_workers: int
    cpus: float
    threads: int
    use_gpu: bool
    side_by_side: int = 1

    def __str__(self) -> str:
        """In a user's words."""
        workers = "1 worker" if self.num_workers == 1 else f"{self.num_workers} workers"
        each = " each" if self.num_workers > 1 else ""
        return f"{workers} with {self.threads} threads{' and a GPU' if self.use_gpu else ''}{each}"


def count_side_by_side(options: TrainOptions, num_trainings: int) -> int:
    """How many of several trainings the cluster has room for at the same time; at least one.

    Args:
        options: The choices of each.
        num_trainings: How many there are.
    """
    nodes = [node["Resources"] for node in live_nodes()]
    room = sum(int(node.get("GPU", 0)) for node in nodes)
    if not room:
        per_worker = max(MIN_CPUS_PER_WORKER, options.threads or CPUS_PER_WORKER)
        room = sum(max(1, int(node["CPU"]) // per_worker) for node in nodes)
    return max(1, min(num_trainings, room // options.workers))


def share_hardware(
    num_workers: int, options: TrainOptions, *, needs_gpu: bool = False, side_by_side: int = 1
) -> WorkerShare:
    """Divide the nodes that are there now among workers.

    Args:
        num_workers: Workers of each training.
        options: The choices of each.
        needs_gpu: Refuse CPUs where no GPU is left.
        side_by_side: Trainings that share the cluster.

    Raises:
        ClusterError: More workers than CPUs, or than GPUs where there are any.
    """
    nodes = [node["Resources"] for node in live_nodes()]
    num_gpus = sum(int(node.get("GPU", 0)) for node in nodes)
    use_gpu = needs_gpu or num_gpus > 0
    available = num_gpus if use_gpu else sum(int(node["CPU"]) for node in nodes)
    total = num_workers * side_by_side
    if total > available:
        kind = "GPUs" if use_gpu else "CPUs"
        raise ClusterError(
            f"--workers {num_workers} need one of the cluster's {kind} each; it has {available} on {len(nodes)} nodes"
            + (f", which {side_by_side} trainings share." if side_by_side > 1 else ".")
        )
    shares = []
    for per_node in range(1, total + 1):
        hosts = [node for node in nodes if node["CPU"] >= per_node and (not use_gpu or node.get("GPU", 0) >= per_node)]
        if len(hosts) * per_node < total:
            continue
        cpus = sorted((node["CPU"] for node in hosts), reverse=True)[: -(-total // per_node)]
        share = WorkerShare(
            num_workers=num_workers,
            cpus=round((cpus[-1] - DATA_CPUS) / per_node, 3),
            threads=options.threads or max(1, int(cpus[-1] // per_node)),
            use_gpu=use_gpu,
            side_by_side=side_by_side,
        )
        shares.append(share)
    if not shares:
        raise ClusterError(f"--workers {num_workers} need one CPU each; the nodes have no room for their shares.")
    return max(shares, key=lambda share: share.cpus)


def wait_for_hardware(num_workers: int, options: TrainOptions, num_trainings: int = 1) -> WorkerShare:
    """As `share_hardware`, after giving nodes of a cluster some time to join.

    Args:
        num_workers: Workers of each training.
        options: The choices of each.
        num_trainings: Those there are; as many as there is room for share the cluster.

    Raises:
        ClusterError: Within a minute, if the request cannot be met.
    """
    deadline = time.monotonic() + (SECONDS_FOR_NODES if options.address else 0.0)
    while True:
        try:
            return share_hardware(num_workers, options, side_by_side=count_side_by_side(options, num_trainings))
        except ClusterError:
            if time.monotonic() > deadline:
                raise
            time.sleep(SECONDS_BETWEEN_LOOKS)


def share_what_is_left(options: TrainOptions, before: WorkerShare) -> WorkerShare:
    """The largest number of workers, up to the one asked for, that fits now and divides the global batch.

    Args:
        options: The run's choices.
        before: What each worker had; a run that began on GPUs does not go on without.

    Raises:
        ClusterError: None fits, also after waiting for nodes to join.
    """
    deadline = time.monotonic() + SECONDS_FOR_NODES
    while True:
        for num_workers in range(options.workers, 0, -1):
            if options.batch_size % num_workers:
                continue
            try:
                return share_hardware(num_workers, options, needs_gpu=before.use_gpu, side_by_side=before.side_by_side)
            except ClusterError:
                continue
        if time.monotonic() > deadline:
            kind = "GPU" if before.use_gpu else "room"
            raise ClusterError(f"no node of the cluster has {kind} for a training worker any more.")
        time.sleep(SECONDS_BETWEEN_LOOKS)
