"""Encoders of keras.applications: features, input scaling, weights from files, and the way through a bundle."""

from __future__ import annotations

import io
from functools import cache
from pathlib import Path

import h5py
import keras
import numpy as np
import pytest
from keras import layers
from keras.src.legacy.saving import legacy_h5_format
from test_unet import randomize

from raysegment.errors import UsageError
from raysegment.model.batch_norm import FusedBatchNormalization
from raysegment.model.bundle import BundleDescription, save_bundle
from raysegment.model.encoder_file import SHAPES, EncoderStart, check_shapes, read_encoder_file
from raysegment.model.encoders import PLANS, adapt_kernel, build_encoder, find_scaling
from raysegment.model.engines.fuse import find_grid_factor
from raysegment.model.engines.tensorflow import Predictor
from raysegment.model.fit import FitTask, Fitter, build_plain
from raysegment.model.unet import build_network
from raysegment.options import ENCODERS, Postprocessing, Preprocessing, TrainOptions
from raysegment.scan import Labels

SIDE, CHANNELS = 32, 2
PUBLISHED = {"efficientnetv2-b0": keras.applications.EfficientNetV2B0, "resnet50v2": keras.applications.ResNet50V2}
WIDTHS = {"efficientnetv2-b0": [16, 32, 48, 112, 192], "resnet50v2": [64, 64, 128, 256, 2048]}


class Made:
    """What takes seconds to build, once for each encoder."""

    def __init__(self, encoder: str, folder: Path) -> None:
        keras.utils.set_random_seed(1)
        self.encoder = encoder
        self.published = randomize(PUBLISHED[encoder](include_top=False, weights=None), seed=1)
        self.keras_file = folder / f"{encoder}.weights.h5"
        self.published.save_weights(self.keras_file)
        self.published_file = folder / f"{encoder}_notop.h5"
        with h5py.File(self.published_file, "w") as file:
            legacy_h5_format.save_weights_to_hdf5_group(file, self.published)
        shape = (None, None, CHANNELS)
        model = build_network(encoder=encoder, normalization="scale", input_shape=shape, filters=2, dropout=0.1)
        self.model = randomize(model)
        head = self.model.get_layer("probability")
        head.set_weights([10 * head.get_weights()[0], head.get_weights()[1]])


@pytest.fixture(scope="module")
def make(tmp_path_factory):
    return cache(lambda encoder: Made(encoder, tmp_path_factory.mktemp(encoder)))


@pytest.fixture(params=ENCODERS)
def made(request, make) -> Made:
    return make(request.param)


def make_pixels(num_slices=2, channels=CHANNELS, side=SIDE):
    return np.random.default_rng(0).random((num_slices, side, side, channels), np.float32)


def read_file(path: Path, encoder: str, **choices) -> EncoderStart:
    options = TrainOptions(source="a", out="b", encoder=encoder, encoder_weights=str(path), **choices)
    found = read_encoder_file(options)
    assert found is not None
    return found


def test_features_come_from_grids_halved_once_to_five_times(made):
    taps = [made.model.get_layer(name).output for name in PLANS[made.encoder].taps]
    assert [tap.shape[-1] for tap in taps] == WIDTHS[made.encoder]
    sizes = keras.Model(made.model.input, taps)(make_pixels(1, side=64))
    assert [size.shape[1] for size in sizes] == [32, 16, 8, 4, 2]
    assert find_grid_factor(made.model) == 32


@pytest.mark.parametrize(
    ("made", "precision", "largest"),
    [("efficientnetv2-b0", "float32", 1e-5), ("efficientnetv2-b0", "bfloat16", 5e-2), ("resnet50v2", "float32", 1e-5)],
    indirect=["made"],
)
def test_the_inference_graph_equals_the_keras_network(made, precision, largest):
    pixels = make_pixels(3, side=64)[:, :32]
    expected = np.asarray(made.model(pixels, training=False))
    assert expected.std() > 0.01
    predictor = Predictor(made.model, precision=precision, batch_size=4)
    assert predictor.grid_factor == 32
    np.testing.assert_allclose(predictor.predict(pixels), expected, atol=largest)


def test_a_bundle_holds_an_encoder_and_plain_keras_loads_it(made, tmp_path):
    description = BundleDescription(
        preprocessing=Preprocessing(image_size=SIDE, normalization="scale"),
        postprocessing=Postprocessing(),
        num_channels=CHANNELS,
        network={"network": "unet", "filters": 2, "norm": "batch", "encoder": made.encoder, "depth": 5},
    )
    bundle = save_bundle(tmp_path / "model", made.model, description)
    assert bundle.grid_factor == 32
    assert bundle.sees_whole_slices == (made.encoder == "efficientnetv2-b0")
    loaded = bundle.load_network()
    np.testing.assert_allclose(loaded(make_pixels()), made.model(make_pixels()), atol=1e-6)
    kinds = {type(layer) for layer in loaded.layers if isinstance(layer, layers.BatchNormalization)}
    assert kinds == {layers.BatchNormalization}


def test_three_colours_are_seen_as_the_published_network_sees_them(made):
    pixels = make_pixels(1, channels=3)
    plan = PLANS[made.encoder]
    inputs, *features = build_encoder(
        made.encoder, (None, None, 3), "scale", batch_norm=layers.BatchNormalization, norm_momentum=0.9
    )
    ours = keras.Model(inputs, features[0])
    for layer in ours.layers:
        if layer.get_weights():
            layer.set_weights(made.published.get_layer(layer.name).get_weights())
    theirs = keras.Model(made.published.input, made.published.get_layer(plan.taps[0]).output)
    seen = 255 * pixels
    if made.encoder == "resnet50v2":
        # EfficientNetV2 has its scaling inside.
        seen = keras.applications.resnet_v2.preprocess_input(seen)
    np.testing.assert_allclose(ours(pixels), theirs(seen), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("made", "kind"),
    [
        ("efficientnetv2-b0", "published_file"),
        ("efficientnetv2-b0", "keras_file"),
        ("resnet50v2", "published_file"),
    ],
    indirect=["made"],
)
def test_weights_of_both_formats_are_loaded_and_the_rest_stays(made, kind):
    before = made.model.get_layer("probability").get_weights()[0]
    start = read_file(getattr(made, kind), made.encoder)
    said = start.apply(made.model, Labels())
    assert said.endswith("its first convolution (3 colours -> 2)")
    assert start.sha256[:12] in said
    plan = PLANS[made.encoder]
    for layer in made.model.layers:
        given = [item for item in made.published.layers if item.name == layer.name and item.get_weights()]
        if given and layer.name != plan.first:
            for mine, theirs in zip(layer.get_weights(), given[0].get_weights(), strict=True):
                np.testing.assert_array_equal(mine, theirs)
    colours = made.published.get_layer(plan.first).get_weights()[0]
    np.testing.assert_allclose(made.model.get_layer(plan.first).get_weights()[0], colours[:, :, :2] * 1.5)
    np.testing.assert_array_equal(made.model.get_layer("probability").get_weights()[0], before)
    randomize(made.model)


def test_the_arrays_that_are_expected_are_those_of_keras_applications(made):
    weights = [array.shape for array in made.published.get_weights()]
    assert (len(weights), sum(int(np.prod(shape)) for shape in weights)) == SHAPES[made.encoder][:2]
    for file in (made.published_file, made.keras_file):
        check_shapes(file, made.encoder)


def test_weights_of_another_encoder_are_refused_by_name(made):
    other = next(encoder for encoder in ENCODERS if encoder != made.encoder)
    with pytest.raises(UsageError, match=f"{other} has {SHAPES[other][0]} with .* It is of {made.encoder}"):
        check_shapes(made.keras_file, other)


def test_what_is_no_file_of_weights_is_refused(tmp_path):
    (tmp_path / "text.h5").write_text("weights")
    (tmp_path / "empty.weights.h5").write_bytes(h5_of({"layers/dense/vars/0": np.zeros((3, 4))}))
    for name, said in [
        ("missing.h5", "No such file"),
        ("text.h5", "it is no HDF5 file"),
        ("empty.weights.h5", "holds 1 arrays with 12 values; resnet50v2 has 270 with 23,564,800"),
    ]:
        with pytest.raises(UsageError, match=said):
            read_file(tmp_path / name, "resnet50v2")


def h5_of(arrays) -> bytes:
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        for name, array in arrays.items():
            file[name] = array
    return buffer.getvalue()


def test_a_grey_picture_in_one_channel_gives_what_it_gives_in_three():
    kernel = np.random.default_rng(0).normal(size=(3, 3, 3, 5)).astype(np.float32)
    grey = np.random.default_rng(1).random((1, 3, 3, 1), np.float32)
    expected = np.einsum("brcx,rcxf->bf", np.repeat(grey, 3, axis=-1), kernel)
    for channels in (1, 3, 6):
        adapted = adapt_kernel(kernel, channels)
        assert adapted.shape == (3, 3, channels, 5)
        found = np.einsum("brcx,rcxf->bf", np.repeat(grey, channels, axis=-1), adapted)
        np.testing.assert_allclose(found, expected, rtol=1e-5)
    np.testing.assert_array_equal(adapt_kernel(kernel, 4)[:, :, 3], kernel[:, :, 0] * np.float32(0.75))


@pytest.mark.parametrize(
    ("encoder", "normalization", "channels", "scale", "offset"),
    [
        # A picture of ImageNet's mean and deviation is to EfficientNet what it is after normalization.
        ("efficientnetv2-b0", "zscore", 3, [1, 1, 1], [0, 0, 0]),
        ("efficientnetv2-b0", "zscore_foreground", 1, [1], [0]),
        (
            "efficientnetv2-b0",
            "minmax",
            3,
            [1 / 0.229, 1 / 0.224, 1 / 0.225],
            [-0.485 / 0.229, -0.456 / 0.224, -1.8044],
        ),
        ("resnet50v2", "percentile", 2, [2, 2], [-1, -1]),
        # (z * 0.226 + 0.449 - 0.5) / 0.5, with the means of the colours' constants.
        ("resnet50v2", "zscore", 1, [0.452], [-0.102]),
    ],
)
def test_pixels_are_brought_to_what_the_encoder_is_used_to(encoder, normalization, channels, scale, offset):
    found = find_scaling(PLANS[encoder], normalization, channels)
    np.testing.assert_allclose(found[0], scale, atol=1e-3)
    np.testing.assert_allclose(found[1], offset, atol=1e-3)


@pytest.mark.parametrize(
    ("choices", "said"),
    [
        ({"encoder": "resnet50v2", "depth": 3}, "--depth 3 does nothing beside --encoder resnet50v2"),
        ({"encoder_weights": "a.h5"}, "--encoder-weights a.h5 does nothing beside --encoder none"),
        (
            {"encoder": "resnet50v2", "encoder_weights": "a.h5", "init_from": "base"},
            "--encoder-weights a.h5 does nothing beside --init-from base",
        ),
        (
            {"encoder": "efficientnetv2-b0", "image_size": 240},
            r"--image-size 240 must divide by 32 \(of --encoder efficientnetv2-b0\); the nearest are 224 or 256",
        ),
    ],
)
def test_what_does_nothing_or_does_not_fit_is_refused(choices, said):
    with pytest.raises(UsageError, match=said):
        TrainOptions(source="a", out="b", **choices)


@pytest.fixture
def float32_afterwards():
    yield
    keras.config.set_dtype_policy("float32")


@pytest.mark.usefixtures("float32_afterwards")
@pytest.mark.parametrize("made", ["efficientnetv2-b0"], indirect=True)
def test_averaged_weights_start_from_the_file_and_become_a_plain_network(made):
    choices = {"image_size": SIDE, "filters": 2, "batch_size": 2, "ema": 0.9, "precision": "bfloat16"}
    start = read_file(made.keras_file, made.encoder, **choices)
    options = TrainOptions(source="a", out="b", encoder=made.encoder, encoder_weights=start.name, **choices)
    fitter = Fitter(FitTask(options=options, num_channels=1, steps_per_epoch=1, start=start))
    norms = [layer for layer in fitter.model.layers if isinstance(layer, layers.BatchNormalization)]
    assert {type(layer) for layer in norms} == {FusedBatchNormalization}
    assert {layer.momentum for layer in norms} == {0.9}
    given = made.published.get_layer("block6h_project_conv").get_weights()[0]
    assert any(np.array_equal(average.numpy(), given) for average in fitter.average if average.shape == given.shape)
    plain = build_plain(options, 1, fitter.model.get_weights(), Labels())
    assert {layer.dtype_policy.name for layer in plain.layers} == {"float32"}
    pixels = make_pixels(1, channels=1)
    np.testing.assert_allclose(plain(pixels), fitter.model(pixels, training=False), atol=5e-2)
