"""The inference graph: batch normalization folded into the convolutions, weights as constants, one arithmetic.

The layers of a functional model become a list of steps over plain TensorFlow operations. Constants, unlike variables,
let oneDNN keep the weights in the order that the processor reads fastest, and TensorFlow join convolution, bias and
rectification into one pass.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf
from keras import layers

from raysegment.errors import UsageError

Array = npt.NDArray[np.float32]
Emit = Callable[..., Any]
"""Input tensors to output tensor."""


@dataclass
class Convolution:
    """Weights of one convolution while later layers are folded into it."""

    kernel: Array
    bias: Array

    def fold(self, scale: Array, shift: Array) -> None:
        """Put `scale * output + shift`, per output channel, into the weights."""
        self.kernel, self.bias = self.kernel * scale, self.bias * scale + shift


@dataclass(frozen=True)
class Step:
    """One operation: keys of the tensors it reads, key of the one it makes."""

    emit: Emit
    inputs: tuple[int, ...]
    output: int


class FusedNetwork:
    """A network as TensorFlow operations on constants; call it while tracing a `tf.function`.

    Args:
        model: A functional model of `build_network`.
        dtype: `float32`, `bfloat16` or `float16`: arithmetic between input and output, which are float32.
    """

    def __init__(self, model: keras.Model, dtype: str) -> None:
        self.dtype = tf.as_dtype(dtype)
        self._steps: list[Step] = []
        self._same: dict[int, int] = {}
        self._convolutions: dict[int, Convolution] = {}
        self._input, self._output = id(model.inputs[0]), id(model.outputs[0])
        self._readers = _count_readers(model)
        self.grid_factor = 1
        """Rows and columns divide by this."""
        self.has_background = gives_background(model)
        """Whether the network's first channel is the background."""
        self.num_labels = int(model.output_shape[-1]) - self.has_background
        """Regions that the network tells apart."""
        for layer in model.layers:
            if isinstance(layer, layers.MaxPooling2D):
                self.grid_factor *= layer.pool_size[0]
            if not isinstance(layer, layers.InputLayer):
                self._add(layer)

    def __call__(self, pixels: Any) -> Any:
        """float32 (batch, rows, columns, channels) to float32 probabilities (batch, rows, columns, labels), without
        that of the background."""
        tensors = {self._input: tf.cast(pixels, self.dtype)}
        for step in self._steps:
            tensors[step.output] = step.emit(*(tensors[key] for key in step.inputs))
        probability = tf.cast(tensors[self._find(self._output)], tf.float32)
        return probability[..., 1:] if self.has_background else probability

    def _add(self, layer: keras.Layer) -> None:
        inputs = layer.input if isinstance(layer.input, list) else [layer.input]
        keys = tuple(self._find(id(tensor)) for tensor in inputs)
        output = id(layer.output)
        if isinstance(layer, layers.Dropout) or (isinstance(layer, layers.BatchNormalization) and self._fold(layer)):
            self._same[output] = keys[0]
        else:
            self._steps.append(Step(self._emitter(layer, output), keys, output))

    def _find(self, key: int) -> int:
        return self._same.get(key, key)

    def _fold(self, layer: layers.BatchNormalization) -> bool:
        """Fold a normalization into the convolution before it, if nothing else reads that one's output."""
        key = id(layer.input)
        convolution = self._convolutions.get(key)
        if convolution is None or self._readers[key] != 1:
            return False
        convolution.fold(*_scale_and_shift(layer))
        return True

    def _emitter(self, layer: keras.Layer, output: int) -> Emit:
        if isinstance(layer, layers.Conv2D):
            return self._convolve(layer, output)
        if isinstance(layer, layers.Conv2DTranspose):
            return self._convolve_transposed(layer)
        if isinstance(layer, layers.BatchNormalization):
            scale, shift = _scale_and_shift(layer)
            return lambda features: features * self._constant(scale) + self._constant(shift)
        if isinstance(layer, layers.GroupNormalization):
            return self._normalize_groups(layer)
        return _emit_weightless(layer)

    def _constant(self, values: Array) -> Any:
        return tf.constant(values.astype(self.dtype.as_numpy_dtype))

    def _convolve(self, layer: layers.Conv2D, output: int) -> Emit:
        convolution = self._convolutions[output] = _weights_of(layer)
        if layer.activation is not keras.activations.linear:
            self._readers[output] = 0  # nothing may be folded across the activation

        def emit(features: Any) -> Any:
            kernel, bias = self._constant(convolution.kernel), self._constant(convolution.bias)
            features = tf.nn.conv2d(features, kernel, layer.strides, layer.padding.upper())
            return _activate(layer.activation, tf.nn.bias_add(features, bias))

        return emit

    def _convolve_transposed(self, layer: layers.Conv2DTranspose) -> Emit:
        """A transposed convolution whose windows do not overlap, as a 1x1 convolution and a move of depth to space."""
        side = layer.strides[0]
        if layer.kernel_size != layer.strides or layer.strides != (side, side):
            raise UsageError(
                f"layer {layer.name}: only transposed convolutions with stride = kernel size are supported."
            )
        weights = _weights_of(layer)
        kernel = np.transpose(weights.kernel, (3, 0, 1, 2)).reshape(1, 1, weights.kernel.shape[3], -1)
        bias = np.tile(weights.bias, side * side)

        def emit(features: Any) -> Any:
            features = tf.nn.conv2d(features, self._constant(kernel), 1, "VALID")
            features = tf.nn.bias_add(features, self._constant(bias))
            return _activate(layer.activation, tf.nn.depth_to_space(features, side))

        return emit

    def _normalize_groups(self, layer: layers.GroupNormalization) -> Emit:
        gamma, beta = (np.asarray(values, np.float32) for values in layer.get_weights())

        def emit(features: Any) -> Any:
            shape, channels = tf.shape(features), features.shape[-1]
            split = tf.concat([shape[:3], [layer.groups, channels // layer.groups]], 0)
            grouped = tf.reshape(tf.cast(features, tf.float32), split)
            mean, variance = tf.nn.moments(grouped, (1, 2, 4), keepdims=True)
            grouped = (grouped - mean) * tf.math.rsqrt(variance + layer.epsilon)
            return tf.cast(tf.reshape(grouped, shape) * gamma + beta, self.dtype)

        return emit


def gives_background(model: keras.Model) -> bool:
    """Whether a network shares 1 between the background, which comes first, and its labels."""
    last = next(layer for layer in model.layers if layer.output is model.outputs[0])
    return getattr(last, "activation", None) is keras.activations.softmax


def trace_network(network: FusedNetwork, num_channels: int) -> Callable[[Any], Any]:
    """Compile the graph, one for all grids and batch sizes: one for each would hold its own copies of the weights."""
    function = tf.function(network, autograph=False)
    return function.get_concrete_function(tf.TensorSpec((None, None, None, num_channels), tf.float32))


def _weights_of(layer: Any) -> Convolution:
    weights = layer.get_weights()
    kernel = np.asarray(weights[0], np.float32)
    filters = layer.filters
    bias = np.asarray(weights[1], np.float32) if layer.use_bias else np.zeros(filters, np.float32)
    return Convolution(kernel, bias)


def _scale_and_shift(layer: layers.BatchNormalization) -> tuple[Array, Array]:
    """What a trained batch normalization does to its input: scale * input + shift, per channel."""
    gamma, beta, mean, variance = (np.asarray(values, np.float32) for values in layer.get_weights())
    scale = gamma / np.sqrt(variance + layer.epsilon)
    return scale, beta - mean * scale


def _activate(activation: Callable[..., Any], features: Any) -> Any:
    if activation is keras.activations.linear:
        return features
    if activation is keras.activations.relu:
        return tf.nn.relu(features)
    if activation is keras.activations.sigmoid:
        return tf.sigmoid(tf.cast(features, tf.float32))
    if activation is keras.activations.softmax:
        return tf.nn.softmax(tf.cast(features, tf.float32))
    raise UsageError(f"activation {activation} is not supported in the inference graph.")


def _emit_weightless(layer: keras.Layer) -> Emit:
    if isinstance(layer, layers.Activation):
        return lambda features: _activate(layer.activation, features)
    if isinstance(layer, layers.MaxPooling2D):
        return lambda features: tf.nn.max_pool2d(features, layer.pool_size, layer.strides, layer.padding.upper())
    if isinstance(layer, layers.Concatenate):
        return lambda *features: tf.concat(features, layer.axis)
    if isinstance(layer, layers.Add):
        return lambda first, second: first + second
    if isinstance(layer, layers.Multiply):
        return lambda first, second: first * tf.cast(second, first.dtype)
    if isinstance(layer, layers.UpSampling2D):
        return lambda features: _upsample(layer, features)
    raise UsageError(f"layer {layer.name} ({type(layer).__name__}) is not supported in the inference graph.")


def _upsample(layer: layers.UpSampling2D, features: Any) -> Any:
    grid = tf.shape(features)[1:3] * layer.size
    return tf.image.resize(tf.cast(features, tf.float32), grid, method=layer.interpolation)


def _count_readers(model: keras.Model) -> dict[int, int]:
    """How many layers read each tensor; the model's outputs count as read."""
    counts = {id(tensor): 1 for tensor in model.outputs}
    for layer in model.layers:
        if isinstance(layer, layers.InputLayer):
            continue
        for tensor in layer.input if isinstance(layer.input, list) else [layer.input]:
            counts[id(tensor)] = counts.get(id(tensor), 0) + 1
    return counts
