"""Optimizers, and the learning rate over a run."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from raysegment.options import TrainOptions

FIRST_SHARE, LAST_SHARE = 0.02, 0.01
"""The cosine schedule's first and last learning rate, as shares of the largest."""


class CosineRate(keras.optimizers.schedules.LearningRateSchedule):
    """Half a cosine from the largest rate to a hundredth of it, after a warm-up along a line; its end may be moved.

    After Loshchilov and Hutter (2017), arXiv:1608.03983, without restarts.

    Args:
        largest: The rate at the end of the warm-up.
        warmup_steps: Optimisation steps over which the rate rises.
        num_steps: Optimisation steps after which the rate is at its end.
    """

    def __init__(self, largest: float, warmup_steps: int, num_steps: int) -> None:
        self.largest, self.warmup_steps = largest, warmup_steps
        self._num_steps = tf.Variable(num_steps, dtype=tf.float32, trainable=False)

    def end_after(self, num_steps: int) -> None:
        """Move the end."""
        self._num_steps.assign(num_steps)

    def __call__(self, step: Any) -> Any:
        done = tf.cast(step, tf.float32)
        falling_steps = tf.maximum(1.0, self._num_steps - self.warmup_steps)
        share = tf.clip_by_value((done - self.warmup_steps) / falling_steps, 0.0, 1.0)
        falling = LAST_SHARE + (1 - LAST_SHARE) * 0.5 * (1 + tf.cos(np.pi * share))
        rising = FIRST_SHARE + (1 - FIRST_SHARE) * done / max(1, self.warmup_steps)
        return self.largest * tf.where(done < self.warmup_steps, rising, falling)

    def get_config(self) -> dict[str, Any]:
        """What the constructor takes."""
        steps = {"warmup_steps": self.warmup_steps, "num_steps": int(self._num_steps.numpy())}
        return {"largest": self.largest, **steps}


def make_rate(options: TrainOptions, steps_per_epoch: int) -> float | CosineRate:
    """The learning rate, or its schedule over all epochs."""
    if options.schedule == "constant":
        return options.learning_rate
    warmup_steps = round(options.warmup_epochs * steps_per_epoch)
    return CosineRate(options.learning_rate, warmup_steps, options.epochs * steps_per_epoch)


def make_optimizer(options: TrainOptions, rate: float | CosineRate) -> Any:
    """Optimizer with its learning rate."""
    if options.optimizer == "sgd":
        optimizer = keras.optimizers.SGD(rate, momentum=options.momentum, nesterov=options.momentum > 0)
    elif options.optimizer == "adam":
        optimizer = keras.optimizers.Adam(rate)
    else:
        optimizer = keras.optimizers.AdamW(rate, weight_decay=options.weight_decay)
        optimizer.exclude_from_weight_decay(var_names=["bias", "gamma", "beta"])
    if options.precision == "float16":
        return keras.optimizers.LossScaleOptimizer(optimizer)
    return optimizer
