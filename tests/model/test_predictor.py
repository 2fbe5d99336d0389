import threading
import time

import keras
import numpy as np
import pytest
import tensorflow as tf
from test_unet import randomize

from raysegment.errors import UsageError
from raysegment.model import precision as module
from raysegment.model.bundle import BundleDescription, save_bundle
from raysegment.model.engines.fuse import FusedNetwork, trace_network
from raysegment.model.engines.tensorflow import Predictor, list_batch_sizes, split_batch
from raysegment.model.precision import resolve_precision
from raysegment.model.unet import build_network
from raysegment.options import Postprocessing, Preprocessing


def make_network(network="unet", norm="batch", channels=3, filters=4, **head):
    shape = (None, None, channels)
    return randomize(
        build_network(network=network, input_shape=shape, filters=filters, depth=2, norm=norm, dropout=0.1, **head)
    )


def make_pixels(num_slices, rows=16, columns=24, channels=3, seed=0):
    return np.random.default_rng(seed).normal(size=(num_slices, rows, columns, channels)).astype(np.float32)


# A bfloat16 keeps 8 bits, 0.004 of a value: single pixels of a noisy probability move by a few of these steps.
@pytest.mark.parametrize(
    ("precision", "largest", "mean"), [("float32", 1e-5, 1e-6), ("bfloat16", 4e-2, 5e-3), ("float16", 5e-3, 1e-3)]
)
@pytest.mark.parametrize("norm", ["batch", "group", "none"])
@pytest.mark.parametrize("network", ["unet", "attention_unet", "residual_unet"])
def test_the_inference_graph_equals_the_keras_network(network, norm, precision, largest, mean):
    model, pixels = make_network(network, norm), make_pixels(3)
    expected = np.asarray(model(pixels, training=False))
    probability = Predictor(model, precision=precision, batch_size=4).predict(pixels)
    assert probability.dtype == np.float32
    difference = np.abs(probability - expected)
    assert difference.max() <= largest
    assert difference.mean() <= mean


@pytest.mark.parametrize(("precision", "largest"), [("float32", 1e-5), ("bfloat16", 4e-2)])
def test_of_labels_that_exclude_each_other_the_background_is_left_out(precision, largest):
    model, pixels = make_network(num_labels=2, head="softmax"), make_pixels(3)
    everything = np.asarray(model(pixels, training=False))
    assert everything.shape == (3, 16, 24, 3)
    np.testing.assert_allclose(everything.sum(axis=-1), 1, atol=1e-6)
    predictor = Predictor(model, precision=precision, batch_size=4)
    assert predictor.num_labels == 2
    np.testing.assert_allclose(predictor.predict(pixels), everything[..., 1:], atol=largest)


def test_labels_that_overlap_have_probabilities_of_their_own():
    model, pixels = make_network(num_labels=3), make_pixels(2)
    probability = Predictor(model, precision="float32", batch_size=4).predict(pixels)
    assert probability.shape == (2, 16, 24, 3)
    np.testing.assert_allclose(probability, np.asarray(model(pixels, training=False)), atol=1e-5)


def test_batch_norm_and_dropout_leave_no_operation_in_the_graph():
    graph = trace_network(FusedNetwork(make_network(), "float32"), 3).graph
    kinds = {operation.type for operation in graph.get_operations()}
    assert kinds <= {
        *("Placeholder", "Const", "Conv2D", "BiasAdd", "Relu", "MaxPool"),
        *("DepthToSpace", "ConcatV2", "Sigmoid", "Identity"),
    }


def test_a_norm_whose_convolution_is_read_twice_is_not_folded():
    inputs = keras.Input((8, 8, 2))
    convolved = keras.layers.Conv2D(2, 1)(inputs)
    outputs = keras.layers.Add()([keras.layers.BatchNormalization()(convolved), convolved])
    model = randomize(keras.Model(inputs, keras.layers.Activation("sigmoid")(outputs)))
    pixels = make_pixels(2, 8, 8, channels=2)
    fused = trace_network(FusedNetwork(model, "float32"), 2)(tf.constant(pixels))
    np.testing.assert_allclose(fused, model(pixels), atol=1e-6)


def test_a_layer_that_the_graph_does_not_know_is_named():
    inputs = keras.Input((8, 8, 2))
    with pytest.raises(UsageError, match="Dense"):
        FusedNetwork(keras.Model(inputs, keras.layers.Dense(1)(inputs)), "float32")


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_slices_result_does_not_depend_on_its_neighbours(precision):
    predictor = Predictor(make_network(norm="group"), precision=precision, batch_size=4)
    first, other = make_pixels(4), make_pixels(4, seed=1) * 50
    other[2] = first[2]
    np.testing.assert_array_equal(predictor.predict(first)[2], predictor.predict(other)[2])
    alone = predictor.predict(first[2:3])[0]
    np.testing.assert_allclose(alone, predictor.predict(first)[2], atol=1e-6 if precision == "float32" else 1e-2)


def test_any_number_of_slices_and_any_grid_that_divides_is_predicted():
    model = make_network(channels=1)
    predictor = Predictor(model, precision="float32", batch_size=4)
    for num_slices, rows, columns in [(0, 8, 8), (1, 8, 8), (3, 12, 4), (9, 8, 20)]:
        pixels = make_pixels(num_slices, rows, columns, channels=1)
        probability = predictor.predict(pixels)
        assert probability.shape == (num_slices, rows, columns, 1)
        if num_slices:
            np.testing.assert_allclose(probability, np.asarray(model(pixels)), atol=1e-5)


def test_the_network_sees_only_the_fixed_batch_sizes(monkeypatch):
    predictor = Predictor(make_network(), precision="float32", batch_size=4)
    seen, (graph,) = [], predictor._graphs
    monkeypatch.setattr(predictor, "_graphs", [lambda batch: seen.append(batch.shape[0]) or graph(batch)])
    predictor.warm_up()
    for num_slices in (1, 2, 6, 9):
        predictor.predict(make_pixels(num_slices))
    assert sorted(seen) == sorted([1, *[1], *[1, 1], *[4, 1, 1], *[4, 4, 1]])


def test_batch_sizes_are_quarters_down_to_one():
    assert list_batch_sizes(16) == [16, 4, 1]
    assert list_batch_sizes(12) == [12, 3, 1]
    assert list_batch_sizes(1) == [1]


@pytest.mark.parametrize("num_slices", [0, 1, 3, 16, 35, 63])
def test_batches_are_cut_without_padding(num_slices):
    parts = split_batch(num_slices, [16, 4, 1])
    assert sum(parts) == num_slices
    assert parts == sorted(parts, reverse=True)
    assert parts.count(1) <= 3


def test_a_wrong_number_of_channels_is_said():
    with pytest.raises(ValueError, match=r"expected \(slices, rows, columns, 3\)"):
        Predictor(make_network(), precision="float32").predict(make_pixels(1, channels=2))


def test_a_grid_that_does_not_divide_is_said():
    with pytest.raises(ValueError, match="divide by 4"):
        Predictor(make_network(), precision="float32").predict(make_pixels(1, rows=18))


def test_a_bundle_is_predicted_with_as_its_network_is(tmp_path):
    model, pixels = make_network(), make_pixels(2)
    description = BundleDescription(
        preprocessing=Preprocessing(image_size=16),
        postprocessing=Postprocessing(threshold=0.5),
        num_channels=3,
        network={"network": "unet", "depth": 2},
    )
    bundle = save_bundle(tmp_path / "model", model, description)
    probability = Predictor(bundle, precision="float32").predict(pixels)
    np.testing.assert_allclose(probability, np.asarray(model(pixels)), atol=1e-5)


def test_threads_predict_side_by_side_while_python_goes_on():
    predictor = Predictor(make_network(filters=8), precision="float32", batch_size=4)
    pixels = [make_pixels(4, 128, 128, seed=seed) for seed in range(3)]
    expected = [predictor.predict(batch) for batch in pixels]
    results: dict[int, np.ndarray] = {}
    workers = [threading.Thread(target=lambda i=i: results.update({i: predictor.predict(pixels[i])})) for i in range(3)]
    for worker in workers:
        worker.start()
    ticks = 0
    while any(worker.is_alive() for worker in workers):
        ticks += 1
        time.sleep(0.001)
    assert ticks > 1
    for i in range(3):
        np.testing.assert_array_equal(results[i], expected[i])


@pytest.mark.parametrize(
    ("gpus", "flags", "expected"),
    [
        ([], {"avx512f"}, "float32"),
        ([], {"avx512f", "avx512_bf16"}, "bfloat16"),
        ([], {"amx_bf16"}, "bfloat16"),
        ([(8, 0), (9, 0)], set(), "bfloat16"),
        ([(7, 5)], {"avx512_bf16"}, "float16"),
        ([(6, 1)], set(), "float32"),
    ],
)
def test_auto_precision_follows_the_hardware(monkeypatch, gpus, flags, expected):
    monkeypatch.setattr(module, "find_gpus", lambda: gpus)
    monkeypatch.setattr(module, "_read_cpu_flags", lambda: frozenset(flags))
    assert resolve_precision("auto") == expected


def test_a_precision_that_is_asked_for_is_kept_and_an_unknown_one_refused():
    assert resolve_precision("bfloat16") == "bfloat16"
    with pytest.raises(UsageError, match="float64"):
        resolve_precision("float64")
