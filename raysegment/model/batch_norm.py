"""Batch normalization for training, by TensorFlow's fused kernels; in bundles Keras' own layer takes its place.

Keras writes it as a dozen operations in float32, which take a quarter of a step's time on processors.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import keras
import tensorflow as tf
from keras import layers


class FusedBatchNormalization(layers.BatchNormalization):
    """Batch normalization over the slices of one worker."""

    observing = False

    def call(self, inputs: Any, training: bool | None = None, mask: Any = None) -> Any:
        training = training or self.observing
        if not training or inputs.dtype == tf.float64:
            return super().call(inputs, training=training, mask=mask)
        outputs, mean, variance = normalize(inputs, self.gamma._value, self.beta._value, self.epsilon)
        _keep_moving(self, mean, variance)
        return outputs


class SynchronizedBatchNormalization(layers.BatchNormalization):
    """Batch normalization over the shares of all workers, which are of equal size.

    Keras' own `synchronized=True` takes E[x²] − E[x]² of float32 sums, which loses digits; this takes the mean first
    and the squared distances from it second.
    """

    observing = False

    def call(self, inputs: Any, training: bool | None = None, mask: Any = None) -> Any:
        training = training or self.observing
        if not training or inputs.dtype == tf.float64:
            return super().call(inputs, training=training, mask=mask)
        outputs, mean, variance = normalize_together(
            inputs, tf.identity(self.gamma._value), tf.identity(self.beta._value), self.epsilon
        )
        _keep_moving(self, mean, variance)
        return outputs

    def _moments(self, inputs: Any, mask: Any) -> tuple[Any, Any]:
        axes = list(self._reduction_axes)
        mean = _average_over_workers(tf.reduce_mean(inputs, axes))
        squared = tf.math.squared_difference(inputs, mean)
        return mean, _average_over_workers(tf.reduce_mean(squared, axes))


def find_statistics(model: keras.Model) -> list[Any]:
    """Batch norm's moving means and variances."""
    norms = [layer for layer in model.layers if isinstance(layer, keras.layers.BatchNormalization)]
    return [variable for layer in norms for variable in (layer.moving_mean, layer.moving_variance)]


@contextmanager
def observe(model: keras.Model, share: Any) -> Iterator[None]:
    """Let batch norm use the statistics of what it sees inside the block, and move its own towards them.

    Nothing else in the network is as in training: no features are dropped.

    Args:
        model: Its layers of batch norm are of this module.
        share: How far the moving statistics move: with 1/1, 1/2, 1/3, … they become the mean over all that was seen.
    """
    norms = [layer for layer in model.layers if isinstance(layer, layers.BatchNormalization)]
    momenta = [layer.momentum for layer in norms]
    for layer in norms:
        layer.observing, layer.momentum = True, 1 - tf.cast(share, layer.moving_mean.dtype)
    try:
        yield
    finally:
        for layer, momentum in zip(norms, momenta, strict=True):
            layer.observing, layer.momentum = False, momentum


def normalize(inputs: Any, scale: Any, offset: Any, epsilon: float) -> tuple[Any, Any, Any]:
    """Normalize features by their own statistics.

    Args:
        inputs: (slices, rows, columns, channels), float32 or a half type.
        scale: float32, (channels,).
        offset: float32, (channels,).
        epsilon: Added to the variance.

    Returns:
        The outputs, and mean and biased variance per channel.
    """
    outputs, mean, variance = tf.compat.v1.nn.fused_batch_norm(inputs, scale, offset, epsilon=epsilon)
    return outputs, mean, _as_biased(variance, inputs)


def normalize_together(inputs: Any, scale: Any, offset: Any, epsilon: float) -> tuple[Any, Any, Any]:
    """As `normalize`, by the statistics over all workers; in the replica context of a strategy.

    The kernel's gradient takes means over this worker's share; what is missing to the means over all is a straight line
    in the inputs, per channel, and is added. After Ioffe and Szegedy (2015), arXiv:1502.03167, section 3.
    """
    share_mean, share_variance = normalize(tf.stop_gradient(inputs), scale, offset, epsilon)[1:]
    mean = _average_over_workers(share_mean)
    variance = _average_over_workers(share_variance + tf.math.squared_difference(share_mean, mean))
    count = tf.cast(tf.size(inputs) / inputs.shape[-1], tf.float32)

    @tf.custom_gradient
    def apply(inputs: Any, scale: Any, offset: Any) -> tuple[Any, Any]:
        outputs = _scale_and_shift(inputs, scale, offset, mean, variance, epsilon)

        def differentiate(upstream: Any) -> tuple[Any, Any, Any]:
            share, scale_gradient, offset_gradient, *_ = tf.raw_ops.FusedBatchNormGradV3(
                y_backprop=upstream,
                x=inputs,
                scale=scale,
                reserve_space_1=mean,
                reserve_space_2=variance,
                reserve_space_3=tf.zeros([0], tf.float32),
                epsilon=epsilon,
                is_training=True,
            )
            both = tf.stack([scale_gradient, offset_gradient])
            missing_scale, missing_offset = tf.unstack((both - _average_over_workers(both)) / count)
            slope = scale * tf.math.rsqrt(variance + epsilon)
            line = _scale_and_shift(inputs, slope * missing_scale, slope * missing_offset, mean, variance, epsilon)
            return share + line, scale_gradient, offset_gradient

        return outputs, differentiate

    return apply(inputs, scale, offset), mean, variance


def _scale_and_shift(inputs: Any, scale: Any, offset: Any, mean: Any, variance: Any, epsilon: float) -> Any:
    """scale * (inputs - mean) / sqrt(variance + epsilon) + offset, in one pass."""
    return tf.compat.v1.nn.fused_batch_norm(
        inputs, scale, offset, mean=mean, variance=variance, epsilon=epsilon, is_training=False
    )[0]


def _average_over_workers(values: Any) -> Any:
    replica = tf.distribute.get_replica_context()
    return replica.all_reduce(tf.distribute.ReduceOp.MEAN, tf.identity(values))


def _as_biased(variance: Any, inputs: Any) -> Any:
    """The kernel divides by one less than the count; Keras, and what is normalized by, by the count."""
    count = tf.cast(tf.size(inputs) / inputs.shape[-1], tf.float32)
    return variance * (count - 1) / count


def _keep_moving(layer: layers.BatchNormalization, mean: Any, variance: Any) -> None:
    """Move the statistics for inference towards those of this step."""
    for moving, value in ((layer.moving_mean, mean), (layer.moving_variance, variance)):
        moving.assign(layer.momentum * moving._value + (1 - layer.momentum) * value)
