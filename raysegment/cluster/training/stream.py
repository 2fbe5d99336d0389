"""Epochs on the cluster: steps made from kept scans and streamed to each rank in plan order."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import cv2
import numpy as np
import pyarrow as pa
import ray
import ray.data
from ray.data import ActorPoolStrategy, DataContext, ExecutionResources

from raysegment.choices import pick
from raysegment.cluster.ray_internals import hold_back
from raysegment.cluster.training.kept import MAX_RETRIES, KeptSet
from raysegment.imaging.augment import Augmentation
from raysegment.options import TrainOptions
from raysegment.pipeline.epoch_plan import Sampling, count_occurrences, count_steps, plan_epoch, take_share
from raysegment.pipeline.samples import make_batch

if TYPE_CHECKING:
    from raysegment.model.fit import Batch

SLICES_PER_TASK = 32
TASKS_PER_EXECUTION = 2000
PREFETCH_BYTES = 512 * 1024**2


@dataclass(frozen=True, kw_only=True)
class SharePlan:
    """Which samples one rank gets, in which order.

    Attributes:
        kept: The scans to train on.
        options: The run's choices.
        rank: This rank.
        num_workers: All ranks.
    """

    kept: KeptSet
    options: TrainOptions
    rank: int
    num_workers: int

    @property
    def sampling(self) -> Sampling:
        options = self.options
        return Sampling(
            seed=options.seed,
            batch_size=options.batch_size,
            lesion_fraction=options.lesion_fraction,
            slices_per_epoch=options.slices_per_epoch,
        )

    @property
    def augmentation(self) -> Augmentation | None:
        return pick(Augmentation, self.options) if self.options.augment else None

    @property
    def num_steps(self) -> int:
        return count_steps(len(self.kept.has_lesion), self.sampling)

    @property
    def steps_per_task(self) -> int:
        return max(1, SLICES_PER_TASK * self.num_workers // self.options.batch_size)

    @property
    def tasks_per_epoch(self) -> int:
        return -(-self.num_steps // self.steps_per_task)

    def make_task(self, epoch: int, task: int) -> pa.Table:
        """The steps of one task of an epoch, one row each."""
        plan = plan_epoch(self.kept.has_lesion, self.sampling, epoch)
        chunk = slice(task * self.steps_per_task, (task + 1) * self.steps_per_task)
        steps, occurrences = (
            take_share(whole[chunk], self.rank, self.num_workers) for whole in (plan, count_occurrences(plan))
        )
        find_scan = lru_cache(maxsize=None)(self.kept.fetch)
        rows = []
        for step, occurrence in zip(steps, occurrences, strict=True):
            pixels, reference = make_batch(
                np.column_stack([self.kept.slices[step], occurrence]).tolist(),
                find_scan,
                self.augmentation,
                context_slices=self.options.context_slices,
                seed=self.options.seed,
                epoch=epoch,
            )
            rows.append(
                {
                    "shape": list(pixels.shape),
                    "pixels": pixels.tobytes(),
                    "reference": reference.tobytes(),
                    "reference_type": reference.dtype.str,
                }
            )
        return pa.Table.from_pylist(rows, schema=STEP_SCHEMA)


def stream_batches(plan: SharePlan, first_epoch: int, num_makers: int = 1) -> Iterator[Batch]:
    """This rank's steps, epoch after epoch, made ahead of time in Ray Data tasks.

    One execution of Ray Data covers as many epochs as make about `TASKS_PER_EXECUTION` tasks, so that the next epoch is
    already being augmented while this one is validated.

    Args:
        plan: What to make.
        first_epoch: Counted from 0.
        num_makers: Processes that augment.
    """
    configure_execution()
    per_epoch = plan.tasks_per_epoch
    epochs_at_once = max(1, TASKS_PER_EXECUTION // per_epoch)
    for start in range(first_epoch, plan.options.epochs, epochs_at_once):
        epochs = range(start, min(plan.options.epochs, start + epochs_at_once))
        tasks = [{"epoch": epoch, "task": task} for epoch in epochs for task in range(per_epoch)]
        # Unlike from_arrow or range, from_items starts no task of its own, which would wait for a whole CPU.
        steps = ray.data.from_items(tasks, override_num_blocks=len(tasks)).map_batches(
            StepMaker,
            fn_constructor_args=(plan,),
            batch_size=None,
            batch_format="pyarrow",
            # No logical CPUs: whatever the workers were given, and wherever they were placed, their steps must come.
            num_cpus=0,
            compute=ActorPoolStrategy(size=num_makers),
            max_restarts=MAX_RETRIES,
            max_task_retries=MAX_RETRIES,
        )
        for table in steps.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=2):
            for row in range(table.num_rows):
                yield unpack_step(table.slice(row, 1))


class StepMaker:
    """Makes steps in a process that stays: Ray ends idle task processes within a second, and a new one imports anew."""

    def __init__(self, plan: SharePlan) -> None:
        cv2.setNumThreads(1)
        self.plan = plan

    def __call__(self, batch: pa.Table) -> pa.Table:
        return pa.concat_tables([self.plan.make_task(row["epoch"], row["task"]) for row in batch.to_pylist()])


STEP_SCHEMA = pa.schema(
    [
        ("shape", pa.list_(pa.int64())),
        ("pixels", pa.large_binary()),
        ("reference", pa.large_binary()),
        ("reference_type", pa.string()),
    ]
)


def unpack_step(row: pa.Table) -> Batch:
    """Arrays of one step; they share memory with the row."""
    shape = tuple(row["shape"][0].as_py())
    pixels = np.frombuffer(row["pixels"].chunk(0)[0].as_buffer(), np.float32).reshape(shape)
    label_type = np.dtype(row["reference_type"][0].as_py())
    reference = np.frombuffer(row["reference"].chunk(0)[0].as_buffer(), label_type).reshape(shape[:3])
    return pixels, reference


def configure_execution() -> None:
    """Keep the plan's order and bound what is made ahead."""
    context = DataContext.get_current()
    hold_back(context)
    context.enable_progress_bars = False
    context.execution_options.preserve_order = True
    # With slow training the buffers stay full for long, which Ray Data would take for a hang.
    context.execution_no_progress_timeout_s = -1
    context.execution_options.resource_limits = ExecutionResources(object_store_memory=PREFETCH_BYTES)
