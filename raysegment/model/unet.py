"""Networks as functional Keras models of built-in layers, so that a saved one loads without raysegment.

All three follow the same plan: `depth` times a block and a halving of the grid, a block at the bottom, and back up with
the skipped features joined in. The channels of level k are `filters * 2**k`. The way down may be an encoder instead.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import keras
from keras import layers

from raysegment.model.encoders import build_encoder
from raysegment.options import Encoder, Normalization
from raysegment.scan import Labels

Network = Literal["unet", "attention_unet", "residual_unet"]
Norm = Literal["batch", "group", "none"]
Head = Literal["sigmoid", "softmax"]

GROUPS = 8
"""Groups of group normalization, where the number of channels divides by it."""


@dataclass(frozen=True)
class BlockStyle:
    """What the blocks of one network have in common."""

    norm: Norm
    norm_momentum: float
    batch_norm: type[layers.BatchNormalization]
    dropout: float
    residual: bool


def build_network(
    *,
    network: Network = "unet",
    encoder: Encoder = "none",
    normalization: Normalization = "zscore",
    input_shape: tuple[int | None, int | None, int],
    filters: int = 32,
    depth: int = 4,
    dropout: float = 0.0,
    norm: Norm = "batch",
    norm_momentum: float = 0.9,
    batch_norm: type[layers.BatchNormalization] = layers.BatchNormalization,
    num_labels: int = 1,
    head: Head = "sigmoid",
) -> keras.Model:
    """Build an untrained network.

    Args:
        network: `unet` (Ronneberger et al. 2015, doi:10.1007/978-3-319-24574-4_28, with padded convolutions),
            `attention_unet` (Oktay et al. 2018, arXiv:1804.03999: gates on the skipped features) or `residual_unet`
            (Zhang et al. 2018, doi:10.1109/LGRS.2018.2802944: a shortcut around each block).
        encoder: What takes the place of the way down, see `build_encoder`; the rest is then of the way up.
        normalization: Of the pixels, which an encoder brings to what it is used to.
        input_shape: (rows, columns, channels); rows and columns divide by 2**depth, or are None for any such grid.
        filters: Channels of the first level.
        depth: How often the grid is halved; by an encoder always five times.
        dropout: Share of features dropped at each block's end, while training.
        norm: Feature normalization behind each convolution.
        norm_momentum: Momentum of batch normalization's moving statistics.
        batch_norm: Layer of batch normalization; those of `batch_norm` are for training only.
        num_labels: Regions to tell apart.
        head: `sigmoid` gives each label a probability of its own; `softmax` shares 1 between the background and all
            labels.

    Returns:
        A functional model, (batch, rows, columns, channels) to float32 probabilities (batch, rows, columns,
        labels); with softmax (batch, rows, columns, 1 + labels), the background's first.
    """
    style = BlockStyle(norm, norm_momentum, batch_norm, dropout, residual=network == "residual_unet")
    if encoder == "none":
        inputs = keras.Input(input_shape)
        skipped, features = _go_down(inputs, filters, depth, style)
    else:
        inputs, *skipped, features = build_encoder(
            encoder, input_shape, normalization, batch_norm=batch_norm, norm_momentum=norm_momentum
        )
        # Nothing of an encoder is as fine as the pixels.
        skipped = [None, *skipped]
    for level in reversed(range(len(skipped))):
        width, skip = filters * 2**level, skipped[level]
        if skip is not None and network == "attention_unet":
            skip = _gate(skip, features, max(1, width // 2))
        features = layers.Conv2DTranspose(width, 2, strides=2)(features)
        features = features if skip is None else layers.Concatenate()([features, skip])
        features = _block(features, width, style)
    is_half = keras.config.dtype_policy().compute_dtype in ("bfloat16", "float16")
    outputs = layers.Conv2D(
        num_labels + (head == "softmax"), 1, activation=head, dtype="float32" if is_half else None, name="probability"
    )(features)
    return keras.Model(inputs, outputs, name=network)


def choose_head(labels: Labels) -> Head:
    """What a network for these labels ends in."""
    return "softmax" if labels.exclude_each_other else "sigmoid"


def copy_as_plain(
    model: keras.Model, *, dtype: str = "float32", grid: tuple[int | None, int | None] | None = None
) -> keras.Model:
    """A twin with the same weights, of Keras' own layers and in one arithmetic.

    Args:
        model: A functional model of `build_network`.
        dtype: Keras dtype policy of the twin's layers, such as `float32` or `mixed_bfloat16`; the output stays float32.
        grid: (rows, columns) of the twin's input; the model's own if not given.
    """
    outputs = {id(layer) for layer in model.layers if any(layer.output is output for output in model.outputs)}

    def copy_layer(layer: keras.Layer) -> keras.Layer:
        config = dict(layer.get_config())
        config["dtype"] = "float32" if id(layer) in outputs else dtype
        kind = layers.BatchNormalization if isinstance(layer, layers.BatchNormalization) else type(layer)
        return kind.from_config(config)

    rows, columns = grid or model.input_shape[1:3]
    inputs = keras.Input((rows, columns, model.input_shape[-1]), dtype="float32")
    twin = keras.models.clone_model(model, input_tensors=inputs, clone_function=copy_layer)
    twin.set_weights(model.get_weights())
    return twin


def _go_down(features: Any, filters: int, depth: int, style: BlockStyle) -> tuple[list[Any], Any]:
    """The features to skip at each level, the finest first, and those at the bottom."""
    skipped = []
    for level in range(depth):
        features = _block(features, filters * 2**level, style)
        skipped.append(features)
        features = layers.MaxPooling2D()(features)
    return skipped, _block(features, filters * 2**depth, style)


def _block(features: Any, filters: int, style: BlockStyle) -> Any:
    """Two 3x3 convolutions, each normalized and rectified; with a shortcut around both if residual."""
    shortcut = features
    features = layers.Activation("relu")(_convolve(features, filters, 3, style))
    features = _convolve(features, filters, 3, style)
    if style.residual:
        if shortcut.shape[-1] != filters:
            shortcut = _convolve(shortcut, filters, 1, style)
        features = layers.Add()([features, shortcut])
    features = layers.Activation("relu")(features)
    return layers.Dropout(style.dropout)(features) if style.dropout else features


def _convolve(features: Any, filters: int, size: int, style: BlockStyle) -> Any:
    # A bias before a normalization has no effect and a zero gradient, which Adam turns into noise.
    features = layers.Conv2D(filters, size, padding="same", use_bias=style.norm == "none")(features)
    if style.norm == "batch":
        return style.batch_norm(momentum=style.norm_momentum)(features)
    if style.norm == "group":
        return layers.GroupNormalization(groups=math.gcd(filters, GROUPS))(features)
    return features


def _gate(skip: Any, coarse: Any, filters: int) -> Any:
    """Additive attention: the coarser features decide where the skipped ones count; equation 1 of Oktay et al."""
    query = layers.Conv2D(filters, 1, strides=2, use_bias=False)(skip)
    signal = layers.Conv2D(filters, 1)(coarse)
    joined = layers.Activation("relu")(layers.Add()([query, signal]))
    weight = layers.Conv2D(1, 1, activation="sigmoid")(joined)
    weight = layers.UpSampling2D(interpolation="bilinear")(weight)
    return layers.Multiply()([skip, weight])
