"""Elastic warps, coarser slices, gamma and shading of training slices."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.interpolate import BSpline

from raysegment.imaging.augment import Augmentation, augment_slice
from raysegment.imaging.gamma import measure_gamma
from raysegment.imaging.geometry import Box
from raysegment.imaging.intensity import Intensity, measure_intensity, normalize
from raysegment.imaging.phantom import make_phantom
from raysegment.imaging.smooth_field import CONTROLS, INTERVALS, STEEPEST, draw_smooth_field
from raysegment.imaging.warp import WarpChoices, draw_warp
from raysegment.pipeline.views.slices import view_slice

NOTHING = {"rotation": 0, "shift": 0, "zoom": 0, "shear": 0, "flip": False, "brightness": 0, "contrast": 0, "noise": 0}
PIXELS, REFERENCE = make_phantom(3, image_size=96, slices=9)
SLICE = int(REFERENCE.sum(axis=(1, 2)).argmax())
INTENSITY = measure_intensity(PIXELS, "zscore")
PLAIN = normalize(PIXELS, INTENSITY)[SLICE]
EVERY = {"elastic": 0.05, "low_resolution": 1.0, "gamma": 0.5, "bias_field": 0.3}


def augment(*, epoch=0, pixels=PIXELS[SLICE], reference=REFERENCE[SLICE], intensity=INTENSITY, seed=0, **choices):
    numbers = {"seed": seed, "epoch": epoch, "scan_index": 0, "slice_index": 0}
    return augment_slice(pixels, reference, intensity, Augmentation(**NOTHING | choices), **numbers)


@pytest.mark.parametrize("name", EVERY)
def test_a_change_happens_and_at_zero_does_not(name):
    assert not np.array_equal(augment(**{name: EVERY[name]})[0], PLAIN)
    np.testing.assert_allclose(augment(**{name: 0.0})[0], PLAIN, atol=1e-6)


@given(
    epoch=st.integers(0, 10**6),
    elastic=st.floats(0, 0.08),
    low_resolution=st.floats(0, 1),
    gamma=st.floats(0, 4),
    bias_field=st.floats(0, 0.9),
    dtype=st.sampled_from(["uint8", "uint16", "int16", "float32"]),
    size=st.sampled_from([(32, 32, 1), (40, 32, 2), (32, 48, 5)]),
)
@settings(max_examples=40, deadline=None)
def test_seeds_tell_all_and_labels_shape_and_type_stay(epoch, elastic, low_resolution, gamma, bias_field, dtype, size):
    random = np.random.default_rng(epoch)
    pixels = random.integers(0, 200, size).astype(dtype)
    label_map = random.choice(np.array([0, 3, 200], np.uint8), size[:2])
    intensity = measure_intensity(pixels[None], "zscore")
    choices = {"elastic": elastic, "low_resolution": low_resolution, "gamma": gamma, "bias_field": bias_field}
    same = {"pixels": pixels, "reference": label_map, "intensity": intensity, "epoch": epoch, "rotation": 30, **choices}
    (first, first_map), (again, again_map) = augment(**same), augment(**same)
    assert np.array_equal(first, again)
    assert np.array_equal(first_map, again_map)
    assert (first.shape, first.dtype) == (size, np.float32)
    assert (first_map.shape, first_map.dtype) == (size[:2], np.uint8)
    assert np.isfinite(first).all()
    assert set(np.unique(first_map)) <= {0, 3, 200}


def test_another_seed_gives_another_slice():
    assert not np.array_equal(augment(**EVERY, seed=1)[0], augment(**EVERY, seed=2)[0])


@pytest.mark.parametrize("name", EVERY)
def test_neighbouring_slices_change_alike(name):
    stacked = view_slice(np.repeat(PIXELS[SLICE][None], 3, axis=0), 1, 1)
    pixels, _ = augment(pixels=stacked, **{name: EVERY[name]})
    if name == "bias_field":
        field = (pixels[..., :3] - PLAIN).any()
        assert field
    else:
        alone, _ = augment(**{name: EVERY[name]})
        np.testing.assert_allclose(pixels[..., :3], alone, atol=1e-5)
    np.testing.assert_allclose(pixels[..., 3:6], pixels[..., :3], atol=1e-5)
    np.testing.assert_allclose(pixels[..., 6:], pixels[..., :3], atol=1e-5)


@pytest.mark.parametrize("dtype", [np.uint16, np.float32])
@pytest.mark.parametrize("name", ["gamma", "bias_field"])
def test_one_byte_changes_as_other_types_do(name, dtype):
    wide, _ = augment(pixels=PIXELS[SLICE].astype(dtype), **{name: EVERY[name]})
    np.testing.assert_allclose(wide, augment(**{name: EVERY[name]})[0], atol=1e-4)


def test_a_smooth_field_is_a_cubic_spline_of_its_control_points():
    controls = np.random.default_rng(5).uniform(-1, 1, (CONTROLS, CONTROLS)).astype(np.float32)
    knots = np.arange(-3, CONTROLS + 1)
    rows, columns = np.linspace(0, INTERVALS, 21), np.linspace(0, INTERVALS, 34)
    along_rows = BSpline(knots, controls.astype(float), 3)(rows)
    expected = BSpline(knots, along_rows.T, 3)(columns).T
    found = draw_smooth_field(np.random.default_rng(5), 21, 34)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    repeated = draw_smooth_field(np.random.default_rng(5), 21, 34, repeats=3)
    np.testing.assert_allclose(repeated.reshape(21, 34, 3), np.repeat(found[..., None], 3, axis=2), atol=1e-6)


@given(seed=st.integers(0, 2**32), side=st.integers(32, 160))
@settings(max_examples=30, deadline=None)
def test_the_strongest_elastic_warp_moves_no_further_than_it_says_and_never_folds(seed, side):
    choices = WarpChoices(rotation=0, shift=0, zoom=0, shear=0, flip=False, elastic=0.08)
    columns, rows = draw_warp(np.random.default_rng(seed), choices, Box(0, side, 0, side)).places
    plain = np.arange(side)
    assert np.abs(columns - plain).max() <= 0.08 * side + 1e-3
    assert np.abs(rows - plain[:, None]).max() <= 0.08 * side + 1e-3
    # The determinant of the Jacobian, by differences.
    (column_down, column_right), (row_down, row_right) = np.gradient(columns), np.gradient(rows)
    assert (column_right * row_down - column_down * row_right).min() > 0
    assert np.abs(np.diff(columns - plain, axis=1)).max() <= STEEPEST * 0.08 * side / (side - 1) + 1e-3


def test_an_elastic_warp_moves_image_and_reference_together():
    disc = np.hypot(*(np.mgrid[:96, :96] - 47.5)) < 20
    pixels = (disc * 200).astype(np.uint8)[..., None]
    intensity = measure_intensity(pixels[None], "minmax")
    moved = 0
    for epoch in range(10):
        image, reference = augment(
            pixels=pixels, reference=disc, intensity=intensity, epoch=epoch, elastic=0.08, rotation=40
        )
        assert np.count_nonzero((image[..., 0] > 0.5) ^ (reference > 0)) <= 0.04 * np.count_nonzero(disc)
        moved += np.count_nonzero(reference != disc) > 0.05 * np.count_nonzero(disc)
    assert moved >= 5


def test_what_elastic_warps_bring_in_from_outside_is_background():
    pixels = np.full((64, 64, 6), 103, np.uint8)
    pixels[20:44, 20:44] = 180
    intensity = Intensity(*(np.full(2, value, np.float32) for value in (0, 1, 0, 255, 103)))
    for epoch in range(5):
        image, _ = augment(
            pixels=pixels,
            reference=np.zeros((64, 64), np.uint8),
            intensity=intensity,
            epoch=epoch,
            elastic=0.08,
            shift=0.1,
            bias_field=0.9,
        )
        border = np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]])
        np.testing.assert_allclose(border, 103, atol=1e-4)


def test_a_share_of_slices_is_coarser_and_keeps_its_mean():
    sharpness = [np.abs(np.diff(augment(low_resolution=0.5, epoch=epoch)[0], axis=1)).mean() for epoch in range(60)]
    plain = np.abs(np.diff(PLAIN, axis=1)).mean()
    coarser = [value < 0.995 * plain for value in sharpness]
    assert 15 <= sum(coarser) <= 45
    image, _ = augment(low_resolution=1, low_resolution_factor=8)
    assert image.mean() == pytest.approx(PLAIN.mean(), abs=0.02)


def test_gamma_bends_between_the_ends_of_the_range_and_keeps_mean_and_spread():
    # 1001 values from 0 to 1; of these the range is 0.005 to 0.995, and the background at -1 is no part of it.
    sample = np.concatenate([np.full(500, -1.0), np.linspace(0, 1, 1001)]).astype(np.float32)[:, None]
    gamma = measure_gamma(sample, np.array([-1], np.float32), np.array([2], np.float32))
    assert (gamma.low[0], gamma.high[0]) == (pytest.approx(0.005), pytest.approx(0.995))
    found = gamma.apply(sample)[500:, 0]
    assert found.mean() == pytest.approx(0.5, abs=1e-5)
    assert found.std() == pytest.approx(sample[500:].std(), abs=1e-5)
    assert (np.diff(found) > 0).all()
    # Up to a gain and a bias these are squares.
    inside = sample[510:1490, 0]
    square = ((inside - 0.005) / 0.99) ** 2
    gain, bias = np.polyfit(square, found[10:990], 1)
    np.testing.assert_allclose(gain * square + bias, found[10:990], atol=1e-4)


def test_gamma_of_a_flat_or_empty_foreground_changes_nothing():
    for sample in (np.zeros((50, 1), np.float32), np.ones((50, 1), np.float32)):
        gamma = measure_gamma(sample, np.zeros(1, np.float32), np.array([3], np.float32))
        np.testing.assert_allclose(gamma.apply(sample), sample, atol=1e-6)


def test_shading_is_smooth_bounded_and_leaves_the_background():
    intensity = Intensity(*(np.array([value], np.float32) for value in (10, 0.1, -np.inf, np.inf, 20)))
    pixels = np.full((64, 64, 1), 60, np.uint8)
    pixels[:8] = 20
    image, _ = augment(
        pixels=pixels, reference=np.zeros((64, 64), np.uint8), intensity=intensity, bias_field=0.5, epoch=3
    )
    # Normalized background is 1, and what is not background stands 4 above it.
    np.testing.assert_allclose(image[:8], 1, atol=1e-6)
    factor = (image[8:, :, 0] - 1) / 4
    assert 0.5 <= factor.min() < 0.95
    assert 1.05 < factor.max() <= 1.5
    assert np.abs(np.diff(factor, axis=1)).max() <= 0.5 * STEEPEST / 63 + 1e-4
