"""Ranges that the type does not tell, numbers that are too large, and what lies around a slice that is no square."""

import numpy as np
import pytest

from raysegment.errors import NonFinitePixelsError
from raysegment.imaging.augment import Augmentation
from raysegment.imaging.phantom import make_phantom
from raysegment.imaging.preprocess import measure_intensity, normalize, prepare_scan
from raysegment.options import Preprocessing
from raysegment.pipeline.samples import keep_scan, make_batch
from raysegment.scan import Scan

NORMALIZATIONS = ["scale", "minmax", "zscore", "zscore_foreground", "percentile"]
PHANTOM = make_phantom(3, image_size=64, slices=6)[0]
UPRIGHT = np.ascontiguousarray(PHANTOM[:, :, 12:52])
WARP = Augmentation(rotation=90, shift=0.3, flip=False, brightness=0, contrast=0, noise=0)


def scaled(pixels: np.ndarray) -> np.ndarray:
    return normalize(pixels, measure_intensity(pixels, "scale"))


@pytest.mark.parametrize(
    ("largest", "dtype", "span"),
    [
        (4095, np.uint16, 4095),
        (3000, np.uint16, 3000),
        (200, np.uint16, 255),
        (3, np.uint16, 255),
        (1023, np.int16, 1023),
        (2047, np.uint16, 2047),
        (2048, np.uint16, 2048),
        (70_000, np.int32, 70_000),
    ],
)
def test_scale_divides_by_the_scans_largest_number_and_by_255_at_least(largest, dtype, span):
    pixels = np.linspace(0, largest, 2 * 8 * 8 * 3).reshape(2, 8, 8, 3).astype(dtype)
    np.testing.assert_allclose(scaled(pixels), pixels / span, rtol=1e-6)


@pytest.mark.parametrize(
    ("largest", "dtype", "span"),
    [
        (3, np.uint8, 255),
        (255, np.uint8, 255),
        (65535, np.uint16, 65535),
        (32767, np.int16, 32767),
        (9, np.int8, 255),
        (3_000_000_000, np.uint32, 3_000_000_000),
    ],
)
def test_scale_divides_by_the_type_s_range_where_the_scan_fills_it(largest, dtype, span):
    pixels = np.linspace(0, largest, 2 * 8 * 8 * 3).reshape(2, 8, 8, 3).astype(dtype)
    np.testing.assert_allclose(scaled(pixels), pixels / span, rtol=1e-6)


def test_scale_of_signed_values_is_by_the_largest_magnitude():
    pixels = np.array([-1024, -1000, 0, 400], np.int16).reshape(1, 2, 2, 1)
    np.testing.assert_allclose(scaled(pixels), pixels / 1024, rtol=1e-6)
    lowest = np.array([-32768, 0, 0, 400], np.int16).reshape(1, 2, 2, 1)
    np.testing.assert_allclose(scaled(lowest), lowest / 32768, rtol=1e-6)


def test_the_same_values_are_scaled_alike_in_one_byte_and_in_two():
    np.testing.assert_array_equal(scaled(PHANTOM.astype(np.uint16)) * np.float32(1), scaled(PHANTOM))


def test_what_was_trained_with_version_0_1_is_scaled_and_padded_as_it_was():
    pixels = np.full((2, 64, 32, 1), 1000, np.uint16)
    prepared = prepare_scan(pixels, Preprocessing(image_size=64, normalization="scale", rules="0.1"))
    seen = normalize(prepared.pixels, prepared.intensity)
    np.testing.assert_allclose(seen[:, :, 16:48], 1000 / 65535, rtol=1e-6)
    assert not seen[:, :, :16].any()
    assert not seen[:, :, 48:].any()


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
@pytest.mark.parametrize(("value", "dtype"), [(1e300, np.float64), (3e38, np.float32), (-1e30, np.float32)])
def test_numbers_whose_squares_pass_single_precision_are_refused(normalization, value, dtype):
    pixels = PHANTOM.astype(dtype)
    pixels[0, 0, 0, 1] = value
    with pytest.raises(NonFinitePixelsError, match="1 of"):
        prepare_scan(pixels, Preprocessing(image_size=64, normalization=normalization))


@pytest.mark.parametrize("normalization", ["minmax", "zscore", "zscore_foreground", "percentile"])
def test_a_spread_too_small_for_single_precision_is_refused(normalization):
    pixels = PHANTOM.astype(np.float64) * 1e-42
    with pytest.raises(NonFinitePixelsError, match="normalized"):
        prepare_scan(pixels, Preprocessing(image_size=64, normalization=normalization))


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
@pytest.mark.parametrize("size", [1e-20, 1e-3, 1e15])
def test_large_and_small_numbers_that_single_precision_holds_are_normalized(normalization, size):
    pixels = PHANTOM.astype(np.float64) * size
    found = normalize(pixels, measure_intensity(pixels, normalization))
    assert np.isfinite(found).all()
    assert found.max() > found.min()


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float32])
@pytest.mark.parametrize("air", [0, 90])
def test_the_padding_has_the_background_s_level_in_each_channel(dtype, air):
    pixels = np.full((3, 60, 40, 2), air, dtype)
    pixels[..., 1] += 5
    pixels[:, 20:40, 12:28] = 200
    prepared = prepare_scan(pixels, Preprocessing(image_size=64))
    assert prepared.pixels.dtype == dtype
    for columns in (slice(0, 10), slice(54, 64)):
        np.testing.assert_array_equal(prepared.pixels[:, :, columns, 0], air)
        np.testing.assert_array_equal(prepared.pixels[:, :, columns, 1], air + 5)


def test_what_the_network_sees_does_not_depend_on_where_the_scale_begins():
    found = []
    for shift in (0, -1000):
        prepared = prepare_scan(UPRIGHT.astype(np.int16) + np.int16(shift), Preprocessing(image_size=64))
        found.append(normalize(prepared.pixels, prepared.intensity))
    np.testing.assert_allclose(found[0], found[1], atol=1e-4)


def kept(pixels: np.ndarray, preprocessing: Preprocessing):
    reference = np.zeros(pixels.shape[:3], bool)
    return keep_scan("s", Scan(pixels), reference, preprocessing, num_channels=None, for_validation=False)


@pytest.mark.parametrize("context_slices", [0, 1])
def test_training_sees_the_padding_that_inference_sees(context_slices):
    preprocessing = Preprocessing(image_size=64, context_slices=context_slices)
    pixels = UPRIGHT.astype(np.int16) - 1000
    prepared = prepare_scan(pixels, preprocessing)
    found, _ = make_batch(
        [(0, 2, 0)], lambda _: kept(pixels, preprocessing), None, context_slices=context_slices, seed=0, epoch=0
    )
    seen = normalize(prepared.pixels[2], prepared.intensity)
    np.testing.assert_array_equal(found[0][..., 3 * context_slices : 3 * context_slices + 3], seen)


@pytest.mark.parametrize("context_slices", [0, 2])
def test_what_a_warp_brings_in_from_outside_is_background(context_slices):
    pixels = np.full((3, 64, 64, 2), -1000, np.int16)
    pixels[..., 1] = 40
    pixels[:, 16:48, 16:48] = 300
    pixels[1, [0, 0, -1, -1], [0, -1, 0, -1]] = 3000
    scan = kept(pixels, Preprocessing(image_size=64))
    for epoch in range(8):
        found, _ = make_batch([(0, 1, 0)], lambda _: scan, WARP, context_slices=context_slices, seed=1, epoch=epoch)
        outside = normalize(np.array([-1000, 40], np.int16).reshape(1, 1, 2), scan.intensity).ravel()
        inside = normalize(np.array([300, 300], np.int16).reshape(1, 1, 2), scan.intensity).ravel()
        channels = found[0].reshape(64, 64, -1, 2)
        for channel in range(2):
            low, high = sorted((outside[channel], inside[channel]))
            share = ((channels[..., channel] >= low - 0.01) & (channels[..., channel] <= high + 0.01)).mean()
            assert share > 0.995
