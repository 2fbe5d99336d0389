"""Every use of what Ray does not promise to keep: an upgrade of Ray opens this file. Written for Ray 2.60."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ray.data import DataContext
from ray.data._internal.execution.execution_callback import ExecutionCallback
from ray.exceptions import RayError, RayTaskError, WorkerCrashedError

SECONDS_BETWEEN_STEPS = 0.05
TASK_ERRORS = logging.getLogger("ray.data._internal.execution.streaming_executor_state")
"""Where Ray Data tells of a task that it goes on without, under `max_errored_blocks`; it does so nowhere else."""


class Pace(ExecutionCallback):
    """Lets the loop that schedules Ray Data's tasks rest after each step.

    In Ray 2.60 that loop spins without a pause while no task may run because enough is made ahead. It then takes most
    of a core, and Python's lock, from the training or inference it serves.
    """

    def on_execution_step(self, executor: object) -> None:
        time.sleep(SECONDS_BETWEEN_STEPS)


def hold_back(context: DataContext) -> None:
    """Let all executions under a context rest between steps."""
    if Pace not in context.custom_execution_callback_classes:
        context.custom_execution_callback_classes.append(Pace)


def hush_nodes() -> None:
    """Keep what nodes tell of processes that died off standard output, where programs read JSON lines.

    Raysegment says it in a line of its own, and Ray's logs have it; `log_to_driver` does not cover it.
    """
    from ray._private import worker

    worker.print_to_stdstream = lambda *_, **__: None


class LostTasks(logging.Filter):
    """Takes what Ray Data says of failed tasks out of its log.

    Attributes:
        death: What is known of the last one whose process or node died, or None.
        error: The last one that raised, or None.
    """

    def __init__(self) -> None:
        super().__init__()
        self.death: str | None = None
        self.error: BaseException | None = None

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        if error is None:
            return True
        if isinstance(error, WorkerCrashedError):
            self.death = "the process ended without a word, as after a crash or when the system has no memory left"
        elif isinstance(error, RayError) and not isinstance(error, RayTaskError):
            self.death = str(error)
        else:
            self.error = error
        return False


@contextmanager
def watch_lost_tasks() -> Iterator[LostTasks]:
    """Inside the block, what Ray Data says of failed tasks."""
    lost = LostTasks()
    TASK_ERRORS.addFilter(lost)
    try:
        yield lost
    finally:
        TASK_ERRORS.removeFilter(lost)


class Execution:
    """One execution of a Ray Data set whose blocks are handed on as references; close it while Ray runs.

    Ray Data ends an execution that nobody finished when it is garbage-collected. If Ray is gone by then it starts a new
    one and hangs, so `close` ends it before.

    Attributes:
        lost: Tasks whose blocks do not come.
    """

    def __init__(self, dataset: Any) -> None:
        self.lost = LostTasks()
        TASK_ERRORS.addFilter(self.lost)
        self._dataset = dataset
        self._executor = dataset._create_executor()

    def __iter__(self) -> Iterator[Any]:
        """References to blocks, as they come; the pixels stay in Ray's object store."""
        for bundle in self._dataset._build_bundle_iterator(self._executor):
            yield from bundle.block_refs

    def close(self) -> None:
        """Stop executing."""
        self._executor.shutdown(force=True)
        TASK_ERRORS.removeFilter(self.lost)


def list_blocks(materialized: Any) -> list[Any]:
    """References to the blocks of a materialized Ray Data set."""
    return [reference for bundle in materialized.iter_internal_ref_bundles() for reference in bundle.block_refs]


def make_trainer(train_on_worker: Any, **settings: Any) -> Any:
    """Ray Train's trainer for any framework; the public `TensorflowTrainer` would force Keras 2.

    It is given no datasets, so it need not start the process that would deal them out to workers.
    """
    from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
    from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

    class Trainer(DataParallelTrainer):
        def _create_default_callbacks(self) -> list[Any]:
            return [item for item in super()._create_default_callbacks() if not isinstance(item, DatasetsCallback)]

    return Trainer(train_on_worker, **settings)
