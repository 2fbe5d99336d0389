import subprocess
import sys

import keras
import numpy as np
import pytest
from keras import layers

from raysegment.model.batch_norm import SynchronizedBatchNormalization
from raysegment.model.unet import build_network, copy_as_plain

NETWORKS = ["unet", "attention_unet", "residual_unet"]


def build_peer_network(filters, size, channels):
    """The network that peers are compared on, layer by layer as it is written there."""

    def block(features, width):
        for _ in range(2):
            features = layers.Conv2D(width, 3, padding="same", use_bias=False)(features)
            features = layers.BatchNormalization()(features)
            features = layers.Activation("relu")(features)
        return features

    inputs = keras.Input((size, size, channels))
    features, skipped = inputs, []
    for level in range(4):
        features = block(features, filters * 2**level)
        skipped.append(features)
        features = layers.MaxPooling2D()(features)
    features = block(features, filters * 16)
    for level in reversed(range(4)):
        features = layers.Conv2DTranspose(filters * 2**level, 2, strides=2)(features)
        features = block(layers.Concatenate()([features, skipped[level]]), filters * 2**level)
    return keras.Model(inputs, layers.Conv2D(1, 1, activation="sigmoid", dtype="float32")(features))


def randomize(model, seed=0):
    """Weights as after training: statistics and offsets that are neither 0 nor 1."""
    rng = np.random.default_rng(seed)
    model.set_weights([w + rng.uniform(0, 0.2, w.shape) if w.ndim == 1 else w for w in model.get_weights()])
    return model


def test_unet_has_the_weights_and_the_output_of_the_peers_network():
    ours = build_network(network="unet", input_shape=(32, 32, 3), filters=32, depth=4, norm="batch")
    peer = randomize(build_peer_network(32, 32, 3))
    assert [w.shape for w in ours.get_weights()] == [w.shape for w in peer.get_weights()]
    assert ours.count_params() == 7_768_929
    ours.set_weights(peer.get_weights())
    pixels = np.random.default_rng(1).random((2, 32, 32, 3), np.float32)
    np.testing.assert_allclose(ours(pixels), peer(pixels), atol=1e-6)


def test_the_small_variant_with_dropout_is_expressible():
    model = build_network(input_shape=(128, 128, 3), filters=64, depth=2, dropout=0.1, norm="none")
    widths = [layer.filters for layer in model.layers if isinstance(layer, layers.Conv2D)]
    assert widths[:6] == [64, 64, 128, 128, 256, 256]
    assert any(isinstance(layer, layers.Dropout) for layer in model.layers)


@pytest.mark.parametrize("norm", ["batch", "group", "none"])
@pytest.mark.parametrize("network", NETWORKS)
def test_every_network_gives_probabilities_on_any_grid_that_divides(network, norm):
    model = build_network(network=network, input_shape=(None, None, 2), filters=3, depth=2, norm=norm)
    for rows, columns in [(8, 12), (16, 4)]:
        probability = np.asarray(model(np.ones((1, rows, columns, 2), np.float32)))
        assert probability.shape == (1, rows, columns, 1)
        assert probability.dtype == np.float32
        assert probability.min() >= 0
        assert probability.max() <= 1


@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16"])
def test_softmax_shares_one_between_background_and_labels(policy):
    keras.mixed_precision.set_global_policy(policy)
    try:
        model = randomize(build_network(input_shape=(8, 8, 1), filters=4, depth=1, num_labels=3, head="softmax"))
    finally:
        keras.mixed_precision.set_global_policy("float32")
    probability = np.asarray(model(np.random.default_rng(0).random((2, 8, 8, 1), np.float32)))
    assert (probability.shape, probability.dtype) == ((2, 8, 8, 4), np.float32)
    np.testing.assert_allclose(probability.sum(axis=-1), 1, atol=1e-6)
    assert copy_as_plain(model).get_layer("probability").get_config()["activation"] == "softmax"


def test_group_norm_takes_groups_that_divide_any_number_of_filters():
    model = build_network(input_shape=(16, 16, 1), filters=6, depth=1, norm="group")
    groups = [layer.groups for layer in model.layers if isinstance(layer, layers.GroupNormalization)]
    assert groups == [2, 2, 4, 4, 2, 2]


def test_convolutions_before_a_norm_have_no_bias():
    model = build_network(input_shape=(16, 16, 1), filters=4, depth=1, norm="batch")
    assert not any(layer.use_bias for layer in model.layers if getattr(layer, "kernel_size", None) == (3, 3))


def test_a_gate_that_is_open_leaves_the_skipped_features_as_they_are():
    gated = build_network(network="attention_unet", input_shape=(16, 16, 1), filters=4, depth=1, norm="none")
    plain = build_network(network="unet", input_shape=(16, 16, 1), filters=4, depth=1, norm="none")
    weights = {layer.name: layer for layer in gated.layers}
    gates = [layer for layer in gated.layers if getattr(layer, "kernel_size", None) == (1, 1)][:3]
    opening = next(layer for layer in gates if layer.filters == 1)
    opening.set_weights([np.zeros((1, 1, 2, 1)), np.full(1, 50.0)])
    kept = [layer.get_weights() for layer in gated.layers if layer.get_weights() and layer not in gates]
    plain.set_weights([array for arrays in kept for array in arrays])
    pixels = np.random.default_rng(0).random((1, 16, 16, 1), np.float32)
    assert weights
    np.testing.assert_allclose(gated(pixels), plain(pixels), atol=1e-6)


@pytest.mark.parametrize("network", NETWORKS)
def test_a_plain_copy_has_the_same_output_and_no_synchronization(network):
    shape = (16, 16, 3)
    kind = SynchronizedBatchNormalization
    model = randomize(build_network(network=network, input_shape=shape, filters=4, depth=2, batch_norm=kind))
    twin = copy_as_plain(model, grid=(None, None))
    norms = [layer for layer in twin.layers if isinstance(layer, layers.BatchNormalization)]
    assert norms
    assert {type(layer) for layer in norms} == {keras.layers.BatchNormalization}
    pixels = np.random.default_rng(0).random((2, 16, 16, 3), np.float32)
    np.testing.assert_allclose(model(pixels), twin(pixels), atol=1e-6)


def test_a_plain_copy_of_a_mixed_precision_network_computes_in_float32():
    keras.mixed_precision.set_global_policy("mixed_bfloat16")
    try:
        model = build_network(input_shape=(16, 16, 1), filters=4, depth=1)
    finally:
        keras.mixed_precision.set_global_policy("float32")
    assert model.layers[1].compute_dtype == "bfloat16"
    twin = copy_as_plain(model)
    assert {layer.compute_dtype for layer in twin.layers} == {"float32"}


def test_raysegment_and_its_bundle_import_without_tensorflow():
    code = "import sys, raysegment.model.bundle; sys.exit('tensorflow' in sys.modules or 'keras' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
