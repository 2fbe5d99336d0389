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
    """Weights of one convolution while later layers are folded into it.

    The kernel is (rows, columns, inputs, outputs); where each channel has its own, (rows, columns, channels, 1).
    """

    kernel: Array
    bias: Array

    def fold(self, scale: Array, shift: Array) -> None:
        """Put `scale * output + shift`, per output channel, into the weights."""
        is_per_channel = self.kernel.shape[-1] != len(scale)
        self.kernel = self.kernel * (scale[:, None] if is_per_channel else scale)
        self.bias = self.bias * scale + shift


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
        self.grid_factor = find_grid_factor(model)
        """Rows and columns divide by this."""
        self.has_background = gives_background(model)
        """Whether the network's first channel is the background."""
        self.num_labels = int(model.output_shape[-1]) - self.has_background
        """Regions that the network tells apart."""
        for layer in model.layers:
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
        # A depthwise convolution is a kind of its own to Keras, not one of Conv2D.
        if isinstance(layer, layers.Conv2D | layers.DepthwiseConv2D):
            return self._convolve(layer, output)
        if isinstance(layer, layers.Conv2DTranspose):
            return self._convolve_transposed(layer)
        if isinstance(layer, layers.BatchNormalization):
            return self._scale(*_scale_and_shift(layer))
        if isinstance(layer, layers.Rescaling):
            return self._scale(np.asarray(layer.scale, np.float32), np.asarray(layer.offset, np.float32))
        if isinstance(layer, layers.GroupNormalization):
            return self._normalize_groups(layer)
        return _emit_weightless(layer)

    def _constant(self, values: Array) -> Any:
        return tf.constant(values.astype(self.dtype.as_numpy_dtype))

    def _scale(self, scale: Array, shift: Array) -> Emit:
        return lambda features: features * self._constant(scale) + self._constant(shift)

    def _convolve(self, layer: Any, output: int) -> Emit:
        convolution = self._convolutions[output] = _weights_of(layer)
        if layer.activation is not keras.activations.linear:
            self._readers[output] = 0  # nothing may be folded across the activation
        is_depthwise, padding = isinstance(layer, layers.DepthwiseConv2D), layer.padding.upper()

        def emit(features: Any) -> Any:
            kernel, bias = self._constant(convolution.kernel), self._constant(convolution.bias)
            if is_depthwise:
                features = tf.nn.depthwise_conv2d(features, kernel, (1, *layer.strides, 1), padding)
            else:
                features = tf.nn.conv2d(features, kernel, layer.strides, padding)
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


def find_grid_factor(model: keras.Model) -> int:
    """What rows and columns must divide by: how far apart the pixels of the coarsest features are."""
    strides = {id(model.inputs[0]): 1}
    for layer in model.layers:
        if isinstance(layer, layers.InputLayer):
            continue
        inputs = layer.input if isinstance(layer.input, list) else [layer.input]
        stride = max(strides[id(tensor)] for tensor in inputs)
        if isinstance(layer, layers.Conv2DTranspose):
            stride //= layer.strides[0]
        elif isinstance(layer, layers.UpSampling2D):
            stride //= layer.size[0]
        elif isinstance(layer, layers.GlobalAveragePooling2D):
            stride = 1
        else:
            stride *= getattr(layer, "strides", (1,))[0]
        strides[id(layer.output)] = stride
    return max(strides.values())


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
    bias = np.asarray(weights[1], np.float32) if layer.use_bias else np.zeros(layer.output.shape[-1], np.float32)
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
    if activation is keras.activations.silu:
        return tf.nn.silu(features)
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
    if isinstance(layer, layers.ZeroPadding2D):
        return lambda features: tf.pad(features, ((0, 0), *layer.padding, (0, 0)))
    if isinstance(layer, layers.GlobalAveragePooling2D):
        return lambda features: _average(layer, features)
    if isinstance(layer, layers.Reshape):
        return lambda features: tf.reshape(features, (-1, *layer.target_shape))
    raise UsageError(f"layer {layer.name} ({type(layer).__name__}) is not supported in the inference graph.")


def _average(layer: layers.GlobalAveragePooling2D, features: Any) -> Any:
    """Means over the grid, added up in single precision."""
    mean = tf.reduce_mean(tf.cast(features, tf.float32), (1, 2), keepdims=layer.keepdims)
    return tf.cast(mean, features.dtype)


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
