"""Fitting one worker's copy of the network: optimisation steps, validation passes, checkpoints.

Keras 3 and `MultiWorkerMirroredStrategy` do not meet in `Model.fit` (keras issues 20329 and 20585), so the steps are
written out: each rank sums the per-slice losses of its share, divided by the global batch, and the optimizer sums
gradients over ranks. With one worker there is no strategy at all.
"""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf

from raysegment.model.batch_norm import (
    FusedBatchNormalization,
    SynchronizedBatchNormalization,
    find_statistics,
    observe,
)
from raysegment.model.init_from import WeightStart
from raysegment.model.losses import make_loss
from raysegment.model.optimizer import CosineRate, make_optimizer, make_rate
from raysegment.model.targets import find_masks, make_targets, pool_dice
from raysegment.model.unet import build_network, choose_head
from raysegment.options import TrainOptions
from raysegment.scan import LabelMap, Labels

Batch = tuple[npt.NDArray[np.float32], LabelMap]
"""Normalized pixels (slices, rows, columns, channels) and label map (slices, rows, columns) of one step."""

OBSERVED_STEPS = 20
"""Steps at an epoch's end whose pixels are seen again to measure the feature statistics of averaged weights."""

OBSERVED_BYTES = 512 * 1024**2
"""The most that these pixels may take, over all ranks together."""

POLICIES = {"float32": "float32", "bfloat16": "mixed_bfloat16", "float16": "mixed_float16"}


@dataclass(frozen=True, kw_only=True)
class FitTask:
    """What one worker must know to fit.

    Attributes:
        options: The run's choices; `precision` already resolved.
        num_channels: Channels of the network's input.
        steps_per_epoch: Optimisation steps in an epoch, the same on all ranks.
        labels: What the values of label maps mean, and whether a pixel can have several.
        rank: This worker, counted from 0.
        num_workers: All workers; N > 1 needs `TF_CONFIG` in the environment.
        threads: TensorFlow threads of this worker.
        start: Where the weights come from; at random if None.
    """

    options: TrainOptions
    num_channels: int
    steps_per_epoch: int
    labels: Labels = field(default_factory=Labels)
    rank: int = 0
    num_workers: int = 1
    threads: int | None = None
    start: WeightStart | None = None


@dataclass(frozen=True, kw_only=True)
class EpochStatistics:
    """What an epoch of training was like, over all ranks.

    Attributes:
        loss: Mean over slices.
        dice: Hard Dice at 0.5, pooled over all pixels of the epoch's slices as augmented; the mean over labels.
        num_slices: Slices used, all ranks.
        seconds: Wall-clock time of the training steps.
        wait_seconds: Of these, the time this rank waited for data.
    """

    loss: float
    dice: float
    num_slices: int
    seconds: float
    wait_seconds: float


class Fitter:
    """One rank's network, optimizer and moving average, and the compiled steps over them.

    `origin` tells the user what became of the weights that the task starts from.
    """

    def __init__(self, task: FitTask) -> None:
        self.task = task
        options = task.options
        set_training_threads(task.threads)
        self.strategy = join_workers(task.num_workers)
        keras.utils.set_random_seed(options.seed)
        keras.config.set_dtype_policy(POLICIES[options.precision])
        with self.strategy.scope() if self.strategy else nullcontext():
            kind = FusedBatchNormalization if task.num_workers == 1 else SynchronizedBatchNormalization
            self.model = build_chosen(options, task.num_channels, kind, task.labels)
            self.rate = make_rate(options, task.steps_per_epoch)
            self.optimizer = make_optimizer(options, self.rate)
            self.optimizer.build(self.model.trainable_variables)
        # Outside of the strategy, which would make the other network's variables those of all workers.
        self.origin = task.start.apply(self.model, task.labels) if task.start else ""
        self.average = _copy_variables(self.model.trainable_variables) if options.ema else []
        self._observed: deque[npt.NDArray[Any]] = deque(maxlen=self._count_observed())
        self._train = tf.function(self._train_steps, reduce_retracing=True)
        self._observe = tf.function(self._observe_step, reduce_retracing=True)
        self._infer = tf.function(lambda pixels: self.model(pixels, training=False), reduce_retracing=True)
        self._sum = tf.function(self._sum_over_ranks, reduce_retracing=True)
        self._loss = make_loss(options.loss, choose_head(task.labels))

    @property
    def learning_rate(self) -> float:
        """The rate of the next step."""
        return float(keras.ops.convert_to_numpy(self.optimizer.learning_rate))

    def anneal_over(self, num_epochs: int) -> None:
        """Let the learning rate reach its end after that many epochs in all, those done included."""
        if isinstance(self.rate, CosineRate):
            self.rate.end_after(num_epochs * self.task.steps_per_epoch)

    def train_epoch(self, batches: Iterator[Batch], on_step: Any = None) -> EpochStatistics:
        """Take one epoch's steps.

        Args:
            batches: This rank's share of each step; exactly `steps_per_epoch` are taken.
            on_step: Called with the number of steps done, after each execution.
        """
        start, wait_seconds, done = time.monotonic(), 0.0, 0
        totals = np.zeros(2 + 3 * len(self.task.labels), np.float64)
        self._observed.clear()
        while done < self.task.steps_per_epoch:
            waiting = time.monotonic()
            count = min(self.task.options.steps_per_execution, self.task.steps_per_epoch - done)
            taken = [next(batches) for _ in range(count)]
            wait_seconds += time.monotonic() - waiting
            self._keep_observed(taken, self.task.steps_per_epoch - done)
            pixels = np.stack([batch[0] for batch in taken]) if count > 1 else taken[0][0][None]
            reference = np.stack([batch[1] for batch in taken]) if count > 1 else taken[0][1][None]
            totals += self._train(tf.constant(pixels), tf.constant(reference)).numpy()
            done += count
            if on_step:
                on_step(done)
        loss, num_slices, *counts = self.sum_over_ranks(totals)
        return EpochStatistics(
            loss=loss / num_slices,
            dice=pool_dice(np.reshape(counts, (3, len(self.task.labels)))),
            num_slices=round(num_slices),
            seconds=time.monotonic() - start,
            wait_seconds=wait_seconds,
        )

    def predict(self, pixels: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """What the network gives for normalized pixels, done in batches of the training size, the last one padded.

        Args:
            pixels: (slices, rows, columns, channels); no rank waits for another.

        Returns:
            Probabilities (slices, rows, columns, outputs): the labels; where these exclude each other, the background
            comes before them.
        """
        size = max(1, self.task.options.batch_size // self.task.num_workers)
        padded = np.zeros((-(-len(pixels) // size) * size, *pixels.shape[1:]), np.float32)
        padded[: len(pixels)] = pixels
        parts = [self._infer(tf.constant(padded[i : i + size])).numpy() for i in range(0, len(padded), size)]
        return np.concatenate(parts)[: len(pixels)]

    def slice_losses(self, reference: LabelMap, probability: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """The training loss of each slice, from label map and what `predict` gave, both on the network's grid."""
        return np.asarray(self._loss(make_targets(reference, self.task.labels), probability))

    def sum_over_ranks(self, values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Add a vector over all ranks; each rank gets the sum."""
        if self.strategy is None:
            return values
        return self._sum(tf.constant(values)).numpy()

    @contextmanager
    def averaged_weights(self) -> Iterator[None]:
        """Use the moving average of the weights, where there is one, inside the block; all ranks enter it together.

        Batch norm's moving statistics belong to the weights of the steps they were taken from. So those of the averaged
        weights are measured, on pixels of the epoch's last steps: after Izmailov et al. (2018), arXiv:1803.05407,
        section 3.2.
        """
        if not self.average:
            yield
            return
        variables = [*self.model.trainable_variables, *find_statistics(self.model)]
        current = [variable.numpy() for variable in variables]
        for variable, average in zip(self.model.trainable_variables, self.average, strict=True):
            variable.assign(average.numpy())
        for position, pixels in enumerate(self._observed):
            self._observe(tf.constant(pixels.astype(np.float32)), tf.constant(1 / (position + 1), tf.float32))
        try:
            yield
        finally:
            for variable, value in zip(variables, current, strict=True):
                variable.assign(value)

    def save(self, folder: Path, state: dict[str, Any]) -> None:
        """Write weights, optimizer, moving average and a small state into an existing folder."""
        arrays: dict[str, Any] = {
            f"{group}_{i}": value for group, values in self._groups() for i, value in enumerate(values)
        }
        np.savez(folder / "arrays.npz", **arrays)
        (folder / "state.json").write_text(json.dumps(state), encoding="utf-8")

    def restore(self, folder: Path) -> dict[str, Any]:
        """Load what `save` wrote and return the state; nothing is changed where it cannot all be read."""
        state = dict(json.loads((folder / "state.json").read_text(encoding="utf-8")))
        with np.load(folder / "arrays.npz") as arrays:
            values = {
                group: [arrays[f"{group}_{i}"] for i in range(len(variables))] for group, variables in self._variables()
            }
        for group, variables in self._variables():
            for variable, value in zip(variables, values[group], strict=True):
                variable.assign(value)
        return state

    def _variables(self) -> list[tuple[str, list[Any]]]:
        return [("model", self.model.variables), ("optimizer", self.optimizer.variables), ("average", self.average)]

    def _groups(self) -> list[tuple[str, list[npt.NDArray[Any]]]]:
        return [(group, [variable.numpy() for variable in variables]) for group, variables in self._variables()]

    def _count_observed(self) -> int:
        """Steps whose pixels are kept for the statistics of averaged weights; the same on all ranks."""
        if not self.average or not find_statistics(self.model):
            return 0
        values = self.task.options.batch_size * self.task.options.image_size**2 * self.task.num_channels
        return max(1, min(OBSERVED_STEPS, OBSERVED_BYTES // (values * tf.bfloat16.size)))

    def _keep_observed(self, taken: list[Batch], steps_left: int) -> None:
        """Keep the pixels of the epoch's last steps, in half the memory."""
        if steps_left <= (self._observed.maxlen or 0) + len(taken):
            self._observed.extend(batch[0].astype(tf.bfloat16.as_numpy_dtype) for batch in taken)

    def _observe_step(self, pixels: Any, share: Any) -> None:
        def look(pixels: Any, share: Any) -> None:
            with observe(self.model, share):
                self.model(pixels, training=False)

        if self.strategy:
            self.strategy.run(look, (pixels, share))
        else:
            look(pixels, share)

    def _train_steps(self, pixels: Any, reference: Any) -> Any:
        """Steps over (steps, slices, rows, columns[, channels]) without Python between them."""
        if pixels.shape[0] == 1:
            return self._run_step(pixels[0], reference[0])
        totals = tf.zeros([2 + 3 * len(self.task.labels)], tf.float64)
        for i in tf.range(tf.shape(pixels)[0]):
            totals += self._run_step(pixels[i], reference[i])
        return totals

    def _run_step(self, pixels: Any, reference: Any) -> Any:
        if self.strategy:
            sums = self.strategy.run(self._train_step, (pixels, reference))
            sums = self.strategy.experimental_local_results(sums)[0]
        else:
            sums = self._train_step(pixels, reference)
        self._update_average()
        return sums

    def _train_step(self, pixels: Any, reference: Any) -> Any:
        expected = make_targets(reference, self.task.labels)
        with tf.GradientTape() as tape:
            probability = self.model(pixels, training=True)
            losses = self._loss(expected, probability)
            objective = tf.reduce_sum(losses) / self.task.options.batch_size
            if self.task.options.precision == "float16":
                objective = self.optimizer.scale_loss(objective)
        variables = self.model.trainable_variables
        gradients = tape.gradient(objective, variables)
        if self.strategy and self.task.options.precision == "float16":
            gradients = spread_overflow(gradients)
        if self.task.options.clip_norm is not None:
            gradients = self._clip(gradients, self.task.options.clip_norm)
        self.optimizer.apply(gradients, variables)
        mask = find_masks(probability, self.task.labels)
        sums = [tf.reduce_sum(losses)[None], tf.cast(tf.shape(losses), tf.float32)]
        sums += [tf.reduce_sum(planes, axis=(0, 1, 2)) for planes in (mask * expected, mask, expected)]
        return tf.cast(tf.concat(sums, 0), tf.float64)

    def _clip(self, gradients: list[Any], clip_norm: float) -> list[Any]:
        """Shorten this rank's gradients by what brings the sum over all ranks to the largest norm.

        Keras clips before it adds up the ranks, which would make the step depend on their number.
        """
        norm = tf.linalg.global_norm(sum_gradients(gradients) if self.strategy else gradients)
        limit = tf.constant(clip_norm, norm.dtype)
        if self.task.options.precision == "float16":
            limit *= self.optimizer.dynamic_scale.value
        share = limit / tf.maximum(norm, limit)
        return [gradient * share for gradient in gradients]

    def _update_average(self) -> None:
        """Move the average towards the weights; early on faster, so that it forgets the first random ones."""
        step = tf.cast(self.optimizer.iterations, tf.float32)
        momentum = tf.minimum(self.task.options.ema, (1 + step) / (10 + step))
        for average, variable in zip(self.average, self.model.trainable_variables, strict=bool(self.average)):
            average.assign(momentum * average + (1 - momentum) * tf.cast(variable.value, tf.float32))

    def _sum_over_ranks(self, values: Any) -> Any:
        def reduce(local: Any) -> Any:
            return tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, tf.identity(local))

        return self.strategy.experimental_local_results(self.strategy.run(reduce, (values,)))[0]


def spread_overflow(gradients: list[Any]) -> list[Any]:
    """Make gradients not-a-number on all ranks if they overflowed on one, so that all skip the step together.

    Keras' loss scaling looks at the local gradients only; a rank that skips alone leaves the others waiting for it.
    """
    finite = tf.reduce_all([tf.reduce_all(tf.math.is_finite(gradient)) for gradient in gradients])
    overflowed = tf.identity(1.0 - tf.cast(finite, tf.float32))
    total = tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, overflowed)
    return [gradient + tf.cast(tf.where(total > 0, float("nan"), 0.0), gradient.dtype) for gradient in gradients]


def sum_gradients(gradients: list[Any]) -> list[Any]:
    """Each gradient added up over all ranks; in the replica context of a strategy."""
    return list(tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, gradients))


def set_training_threads(threads: int | None) -> None:
    """Bound TensorFlow's threads; only before its first operation, later calls change nothing."""
    if threads is None:
        return
    try:
        tf.config.threading.set_intra_op_parallelism_threads(threads)
        tf.config.threading.set_inter_op_parallelism_threads(max(1, min(2, threads)))
    except RuntimeError:
        return


def join_workers(num_workers: int) -> Any:
    """The strategy that sums gradients over workers, or None for one worker."""
    if num_workers == 1:
        return None
    has_gpus = bool(tf.config.list_physical_devices("GPU"))
    implementation = tf.distribute.experimental.CommunicationImplementation
    return tf.distribute.MultiWorkerMirroredStrategy(
        communication_options=tf.distribute.experimental.CommunicationOptions(
            implementation=implementation.NCCL if has_gpus else implementation.RING
        )
    )


def build_plain(
    options: TrainOptions, num_channels: int, weights: list[npt.NDArray[Any]], labels: Labels
) -> keras.Model:
    """The run's network in float32 with given weights, as the bundle holds it."""
    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy("float32")
    try:
        model = build_chosen(options, num_channels, keras.layers.BatchNormalization, labels)
    finally:
        keras.config.set_dtype_policy(policy)
    model.set_weights(weights)
    return model


def build_chosen(
    options: TrainOptions, num_channels: int, batch_norm: type[keras.layers.BatchNormalization], labels: Labels
) -> keras.Model:
    """An untrained network as the options want it, in the arithmetic that Keras is set to."""
    return build_network(
        network=options.network,
        encoder=options.encoder,
        normalization=options.normalization,
        input_shape=(options.image_size, options.image_size, num_channels),
        filters=options.filters,
        depth=options.depth,
        dropout=options.dropout,
        norm=options.norm,
        norm_momentum=options.norm_momentum,
        batch_norm=batch_norm,
        num_labels=len(labels),
        head=choose_head(labels),
    )


def _copy_variables(variables: list[Any]) -> list[Any]:
    return [tf.Variable(variable.numpy(), dtype=tf.float32, trainable=False) for variable in variables]
