"""Channels, normalization, context and the whole preparation."""

import tracemalloc

import numpy as np
import pytest
from sklearn.preprocessing import MinMaxScaler, StandardScaler

from raysegment.errors import ChannelMismatchError, NonFinitePixelsError
from raysegment.imaging.phantom import make_phantom
from raysegment.imaging.preprocess import (
    check_channels,
    fit_geometry,
    measure_intensity,
    normalize,
    prepare_scan,
    resize_reference,
    select_channels,
)
from raysegment.imaging.volume_phantom import make_tumour_volume
from raysegment.options import Preprocessing

DTYPES = [np.uint8, np.uint16, np.int16, np.float32]


def random_scan(dtype, *, channels: int = 3) -> np.ndarray:
    random = np.random.default_rng(7)
    values = random.gamma(2.0, 20.0, (5, 24, 30, channels)) * np.arange(1, channels + 1)
    if dtype is np.int16:
        values -= 100
    return np.clip(values, -1000, 255 if dtype is np.uint8 else 30000).astype(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("channels", [1, 3, 5])
def test_zscore_agrees_with_scikit_learn(dtype, channels):
    pixels = random_scan(dtype, channels=channels)
    flat = pixels.reshape(-1, channels).astype(np.float64)
    expected = StandardScaler().fit_transform(flat).reshape(pixels.shape)
    found = normalize(pixels, measure_intensity(pixels, "zscore"))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=2e-5)


@pytest.mark.parametrize("seed", range(3))
def test_zscore_foreground_measures_the_brain_alone(seed):
    phantom = make_tumour_volume(seed)
    pixels = np.stack(list(phantom.channels.values()), axis=-1).transpose(2, 1, 0, 3)
    brain = (pixels != pixels[0, 0, 0]).any(axis=-1)
    found = normalize(pixels, measure_intensity(pixels, "zscore_foreground"))
    np.testing.assert_allclose(found[brain].mean(axis=0), 0, atol=0.02)
    np.testing.assert_allclose(found[brain].std(axis=0), 1, atol=0.02)


def test_a_wider_field_of_view_leaves_zscore_foreground_as_it_is():
    pixels = make_phantom(2, image_size=96, slices=12)[0]
    wide = np.pad(pixels, ((0, 0), (48, 48), (48, 48), (0, 0)), mode="edge")
    near, far = (measure_intensity(each, "zscore_foreground") for each in (pixels, wide))
    np.testing.assert_allclose(far.offset, near.offset, rtol=0.06)
    np.testing.assert_allclose(far.scale, near.scale, rtol=0.15)


def test_zscore_foreground_of_a_scan_that_is_all_alike_is_that_of_everything():
    pixels = np.full((2, 16, 16, 1), 7, np.int16)
    pixels[0, 3, 3] = 8
    expected, found = (measure_intensity(pixels, words) for words in ("zscore", "zscore_foreground"))
    assert (expected.offset, expected.scale) == (found.offset, found.scale)


@pytest.mark.parametrize("background", [-3.2, 0.1])
def test_zscore_foreground_of_doubles_is_that_of_single_precision(background):
    pixels = np.full((6, 64, 64, 1), background)
    pixels[:, 20:45, 20:45] = np.random.default_rng(3).normal(2, 0.5, (6, 25, 25, 1))
    single, double = (measure_intensity(pixels.astype(dtype), "zscore_foreground") for dtype in ("f4", "f8"))
    np.testing.assert_allclose(double.offset, single.offset, rtol=1e-5)
    np.testing.assert_allclose(double.offset, pixels[:, 20:45, 20:45].mean(), rtol=1e-3)


@pytest.mark.parametrize("normalization", ["zscore", "zscore_foreground"])
@pytest.mark.parametrize("dtype", [np.int32, np.uint32, np.int8])
def test_types_that_opencv_does_not_know_are_measured_plane_by_plane(normalization, dtype):
    pixels = np.zeros((24, 96, 96, 1), dtype)
    pixels[:, 20:70, 20:70] = np.random.default_rng(4).integers(20, 90, (24, 50, 50, 1))
    expected = measure_intensity(pixels.astype(np.int16), normalization)
    tracemalloc.start()
    found = measure_intensity(pixels, normalization)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    np.testing.assert_allclose((found.offset, found.scale), (expected.offset, expected.scale), rtol=1e-6)
    assert peak < 4 * pixels.size


@pytest.mark.parametrize("dtype", DTYPES)
def test_minmax_agrees_with_scikit_learn(dtype):
    pixels = random_scan(dtype)
    expected = MinMaxScaler().fit_transform(pixels.reshape(-1, 3).astype(np.float64)).reshape(pixels.shape)
    np.testing.assert_allclose(normalize(pixels, measure_intensity(pixels, "minmax")), expected, atol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
def test_percentile_clips_and_maps_as_numpy_does(dtype):
    pixels = random_scan(dtype)
    low, high = np.percentile(pixels.astype(np.float64), [0.5, 99.5], axis=(0, 1, 2))
    expected = np.clip((pixels - low) / (high - low), 0, 1)
    np.testing.assert_allclose(normalize(pixels, measure_intensity(pixels, "percentile")), expected, atol=1e-5)


def test_scale_leaves_floats_up_to_one_alone_and_shrinks_larger_ones():
    small = np.array([0.0, 0.25, 0.5], np.float32).reshape(1, 1, 3, 1)
    large = small * 400
    np.testing.assert_allclose(normalize(small, measure_intensity(small, "scale")), small)
    np.testing.assert_allclose(normalize(large, measure_intensity(large, "scale")), large / 200)


@pytest.mark.parametrize("normalization", ["minmax", "zscore", "zscore_foreground", "percentile"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_flat_channel_becomes_zero(normalization, dtype):
    pixels = random_scan(dtype)
    pixels[..., 1] = 103
    found = normalize(pixels, measure_intensity(pixels, normalization))
    assert np.isfinite(found).all()
    np.testing.assert_allclose(found[..., 1], 0, atol=1e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_pixels_that_are_no_numbers_are_refused(bad):
    pixels = random_scan(np.float32)
    pixels[1, 2, 3, 0] = bad
    with pytest.raises(NonFinitePixelsError, match="1 of 10800"):
        prepare_scan(pixels, Preprocessing(image_size=32))


def test_channels_are_chosen_in_the_given_order():
    pixels = random_scan(np.uint8)
    assert np.array_equal(select_channels(pixels, (2, 0)), np.stack([pixels[..., 2], pixels[..., 0]], axis=-1))
    assert select_channels(pixels, (0, 1, 2)) is pixels
    assert select_channels(pixels, None) is pixels


@pytest.mark.parametrize("channels", [(3,), (-1,), (0, 5), ()])
def test_a_channel_that_does_not_exist_is_refused(channels):
    with pytest.raises(ChannelMismatchError, match="the scan has 3"):
        select_channels(random_scan(np.uint8), channels)


def test_a_wrong_number_of_channels_names_both_numbers():
    with pytest.raises(ChannelMismatchError, match="has 3 channels, the model expects 4"):
        check_channels(random_scan(np.uint8), 4)


def test_a_prepared_scan_is_normalized_by_the_whole_scan():
    pixels, _ = make_phantom(0, image_size=96, slices=8)
    whole = measure_intensity(pixels, "zscore")
    prepared = prepare_scan(pixels, Preprocessing(image_size=64, crop="foreground"))
    assert prepared.pixels.shape == (8, 64, 64, 3)
    assert prepared.pixels.dtype == np.uint8
    assert np.array_equal(prepared.intensity.offset, whole.offset)
    assert prepared.geometry.box.rows < 96


def test_a_crop_of_an_empty_scan_keeps_the_whole_slice():
    prepared = prepare_scan(np.zeros((2, 40, 50, 1), np.uint8), Preprocessing(image_size=32, crop="foreground"))
    assert prepared.geometry == fit_geometry(40, 50, 32)


def test_a_cropped_reference_lies_on_the_bright_lesion():
    pixels = np.zeros((1, 128, 128, 1), np.uint8)
    pixels[0, 30:100, 20:110] = 80
    pixels[0, 50:70, 40:60] = 200
    prepared = prepare_scan(pixels, Preprocessing(image_size=64, crop="foreground"))
    reference = resize_reference(pixels[..., 0] == 200, prepared.geometry)
    bright = prepared.pixels[..., 0] > 140
    assert np.count_nonzero(reference ^ bright) < 0.1 * np.count_nonzero(bright)


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float32])
def test_clipped_zscore_foreground_measures_the_brain_between_its_percentiles(dtype):
    pixels = np.zeros((4, 64, 64, 2), dtype)
    random = np.random.default_rng(1)
    pixels[:, 16:48, 16:48] = random.normal(100, 10, (4, 32, 32, 2)).astype(dtype)
    pixels[:, 16, 16:30] = 250
    intensity = measure_intensity(pixels, "zscore_foreground", clip_percentiles=(1, 98))
    brain = pixels[:, 16:48, 16:48].reshape(-1, 2).astype(np.float64)
    low, high = np.percentile(brain, (1, 98), axis=0)
    clipped = np.clip(brain, low, high)
    np.testing.assert_allclose(intensity.low, low, rtol=1e-6)
    np.testing.assert_allclose(intensity.high, high, rtol=1e-6)
    found = normalize(pixels, intensity)[:, 16:48, 16:48].reshape(-1, 2)
    np.testing.assert_allclose(found, (clipped - clipped.mean(axis=0)) / clipped.std(axis=0), atol=1e-4)


def test_clipped_zscore_measures_all_between_its_percentiles():
    pixels = np.random.default_rng(2).integers(0, 1000, (3, 20, 30, 1)).astype(np.uint16)
    clipped = np.clip(pixels.astype(np.float64), *np.percentile(pixels, (5, 90)))
    found = normalize(pixels, measure_intensity(pixels, "zscore", clip_percentiles=(5, 90)))
    np.testing.assert_allclose(found, (clipped - clipped.mean()) / clipped.std(), atol=1e-5)


def test_percentiles_that_clip_belong_to_the_preprocessing():
    pixels = make_phantom(2, image_size=64, slices=6)[0]
    plain, clipped = (
        prepare_scan(pixels, Preprocessing(image_size=64, normalization="zscore_foreground", clip_percentiles=given))
        for given in (None, (0.5, 99.5))
    )
    assert np.isinf(plain.intensity.high).all()
    assert np.isfinite(clipped.intensity.high).all()
