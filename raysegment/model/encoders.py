"""Networks of keras.applications as the way down of a U-Net.

What a colour picture of 0 to 255 is to such a network, a scan becomes by one rule: normalizations to 0..1 are taken for
a picture's brightness; those to mean 0 and deviation 1 get mean and deviation of ImageNet's pictures first. Then the
network's own scaling follows. Three channels count as red, green and blue; any other number takes the means of the
three colours' constants.
"""

from __future__ import annotations

import io
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import keras
import numpy as np
import numpy.typing as npt
from keras import layers

from raysegment.errors import UsageError
from raysegment.options import Encoder, Normalization

Colours = tuple[float, float, float]

IMAGENET_MEAN: Colours = (0.485, 0.456, 0.406)
IMAGENET_DEVIATION: Colours = (0.229, 0.224, 0.225)
"""Of its pictures' red, green and blue, from 0 to 1."""

NUM_COLOURS = 3


@dataclass(frozen=True)
class EncoderPlan:
    """One network of keras.applications.

    Attributes:
        build: Its function.
        taps: Layers whose features go on, of grids halved once to five times.
        first: The convolution that sees the pixels.
        mean: The network's own scaling of colours from 0 to 1 is (colour - mean) / deviation.
        deviation: See `mean`.
    """

    build: Callable[..., keras.Model]
    taps: tuple[str, str, str, str, str]
    first: str
    mean: Colours
    deviation: Colours


PLANS: dict[Encoder, EncoderPlan] = {
    # Tan and Le (2021), arXiv:2104.00298; the end of each stage before the grid is halved again.
    "efficientnetv2-b0": EncoderPlan(
        build=lambda **given: keras.applications.EfficientNetV2B0(include_preprocessing=False, **given),
        taps=("block1a_project_activation", "block2b_add", "block3b_add", "block5e_add", "block6h_add"),
        first="stem_conv",
        mean=IMAGENET_MEAN,
        deviation=IMAGENET_DEVIATION,
    ),
    # He et al. (2016), arXiv:1603.05027; features are normalized inside the next block, before that halves the grid.
    "resnet50v2": EncoderPlan(
        build=keras.applications.ResNet50V2,
        taps=("conv1_conv", "conv2_block3_1_relu", "conv3_block4_1_relu", "conv4_block6_1_relu", "post_relu"),
        first="conv1_conv",
        mean=(0.5, 0.5, 0.5),
        deviation=(0.5, 0.5, 0.5),
    ),
}


def build_encoder(
    encoder: Encoder,
    input_shape: tuple[int | None, int | None, int],
    normalization: Normalization,
    *,
    batch_norm: type[layers.BatchNormalization],
    norm_momentum: float,
) -> list[Any]:
    """An encoder with weights at random.

    Args:
        encoder: One of `PLANS`.
        input_shape: (rows, columns, channels); any number of channels.
        normalization: Of the pixels.
        batch_norm: Layer that takes the place of Keras' own.
        norm_momentum: Momentum of its moving statistics.

    Returns:
        The input, and the features of grids that are halved once, twice, … five times.
    """
    plan = PLANS[encoder]
    inputs = keras.Input(input_shape)
    scale, offset = find_scaling(plan, normalization, input_shape[-1])
    is_scaled = all(value == 1 for value in scale) and not any(offset)
    scaled = inputs if is_scaled else layers.Rescaling(scale, offset, name="input_scaling")(inputs)
    network = plan.build(include_top=False, weights=None, input_tensor=scaled)
    network = keras.Model(inputs, network.get_layer(plan.taps[-1]).output)
    for layer in network.layers:
        if isinstance(layer, layers.BatchNormalization):
            layer.momentum = norm_momentum
    if batch_norm is not layers.BatchNormalization:
        network = keras.models.clone_model(network, clone_function=lambda layer: _copy_layer(layer, batch_norm))
    return [network.input, *(network.get_layer(name).output for name in plan.taps)]


def find_scaling(plan: EncoderPlan, normalization: Normalization, num_channels: int) -> tuple[list[float], list[float]]:
    """Scale and offset of each channel, from normalized pixels to what the encoder's first convolution is used to."""
    constants = np.array([IMAGENET_DEVIATION, IMAGENET_MEAN, plan.deviation, plan.mean])
    if num_channels != NUM_COLOURS:
        constants = np.repeat(constants.mean(axis=1, keepdims=True), num_channels, axis=1)
    spread, level, deviation, mean = constants
    if normalization not in ("zscore", "zscore_foreground"):
        spread, level = np.ones(num_channels), np.zeros(num_channels)
    scale, offset = spread / deviation, (level - mean) / deviation
    return scale.tolist(), offset.tolist()


def load_pretrained(model: keras.Model, encoder: Encoder, content: bytes, name: str) -> int:
    """Give the encoder inside a network the weights of a file.

    Args:
        model: From `build_network`.
        encoder: Which it has.
        content: The file's bytes: the published `*_notop.h5`, or a `.weights.h5` that Keras wrote.
        name: The file, for messages.

    Returns:
        Layers that got weights.

    Raises:
        UsageError: The weights are not those of that encoder.
    """
    plan = PLANS[encoder]
    reference = read_reference(encoder, content, name)
    given = {layer.name: layer.get_weights() for layer in reference.layers}
    mine = [layer for layer in model.layers if given.get(layer.name)]
    for layer in mine:
        weights = given[layer.name]
        if layer.name == plan.first:
            weights = [adapt_kernel(weights[0], layer.get_weights()[0].shape[2]), *weights[1:]]
        layer.set_weights(weights)
    return len(mine)


def read_reference(encoder: Encoder, content: bytes, name: str) -> keras.Model:
    """The network of keras.applications itself, for three colours, with the weights of a file.

    Raises:
        UsageError: Keras cannot load them.
    """
    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy("float32")
    try:
        reference = PLANS[encoder].build(include_top=False, weights=None)
    finally:
        keras.config.set_dtype_policy(policy)
    with h5py.File(io.BytesIO(content)) as file:
        is_legacy = "layer_names" in file.attrs or "model_weights" in file
    with tempfile.TemporaryDirectory() as folder:
        # Keras knows the two formats by the names of their files.
        path = Path(folder) / ("encoder.h5" if is_legacy else "encoder.weights.h5")
        path.write_bytes(content)
        try:
            reference.load_weights(path)
        except Exception as error:
            reason = " ".join(str(error).split())[:200]
            raise UsageError(f"--encoder-weights {name} does not fit --encoder {encoder}: {reason}") from error
    return reference


def adapt_kernel(kernel: npt.NDArray[np.float32], num_channels: int) -> npt.NDArray[np.float32]:
    """The kernels of three colours for any number of channels.

    One channel gets their sum, which is what a grey picture sees; others take red, green, blue, red, … in turn, scaled
    so that the features keep their size. As in Wightman, PyTorch Image Models (2019), doi:10.5281/zenodo.4414861.

    Args:
        kernel: (rows, columns, 3, filters).
        num_channels: Those of the network's input.

    Returns:
        (rows, columns, num_channels, filters).
    """
    if num_channels == NUM_COLOURS:
        return kernel
    if num_channels == 1:
        return kernel.sum(axis=2, keepdims=True)
    turns = kernel[:, :, np.arange(num_channels) % NUM_COLOURS]
    return turns * np.float32(NUM_COLOURS / num_channels)


def _copy_layer(layer: keras.Layer, batch_norm: type[layers.BatchNormalization]) -> keras.Layer:
    kind = batch_norm if isinstance(layer, layers.BatchNormalization) else type(layer)
    return kind.from_config(layer.get_config())
