"""Fused batch normalization does what Keras' own does."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

from raysegment.model.batch_norm import FusedBatchNormalization, SynchronizedBatchNormalization

SHAPE = (3, 8, 6, 5)


def step(kind: type[keras.layers.BatchNormalization], dtype: str) -> dict[str, np.ndarray]:
    """Outputs, gradients and moving statistics after one step on the same features and weights."""
    random = np.random.default_rng(0)
    layer = kind(momentum=0.8, dtype=dtype)
    layer.build(SHAPE)
    layer.set_weights([random.normal(1, 0.3, SHAPE[-1]) for _ in range(4)])
    features = tf.constant(random.normal(2, 3, SHAPE), layer.compute_dtype)
    upstream = tf.constant(random.normal(0, 1, SHAPE), layer.compute_dtype)
    with tf.GradientTape() as tape:
        tape.watch(features)
        outputs = layer(features, training=True)
        objective = tf.reduce_sum(tf.cast(outputs * upstream, tf.float32))
    gradients = tape.gradient(objective, [features, *layer.trainable_variables])
    moving = [layer.moving_mean, layer.moving_variance]
    names = ("outputs", "features", "gamma", "beta", "moving_mean", "moving_variance")
    values = [outputs, *gradients, *moving]
    return {
        name: keras.ops.convert_to_numpy(keras.ops.cast(value, "float32"))
        for name, value in zip(names, values, strict=True)
    }


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("mixed_bfloat16", 3e-2), ("float64", 1e-6)])
@pytest.mark.parametrize("kind", [FusedBatchNormalization, SynchronizedBatchNormalization])
def test_one_step_is_that_of_keras(kind, dtype, tolerance):
    expected, found = step(keras.layers.BatchNormalization, "float64"), step(kind, dtype)
    for name, value in expected.items():
        difference = np.linalg.norm(found[name] - value) / np.linalg.norm(value)
        assert difference <= tolerance, name


def test_inference_uses_the_moving_statistics():
    layer = FusedBatchNormalization()
    layer.build(SHAPE)
    features = np.full(SHAPE, 7, np.float32)
    np.testing.assert_allclose(layer(features, training=False), features / np.sqrt(1 + layer.epsilon), rtol=1e-6)
