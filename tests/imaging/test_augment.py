"""Random changes of training slices."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raysegment.imaging.augment import Augmentation, augment_slice
from raysegment.imaging.geometry import Box
from raysegment.imaging.intensity import Intensity
from raysegment.imaging.phantom import make_phantom
from raysegment.imaging.preprocess import measure_intensity, normalize
from raysegment.pipeline.views.slices import view_slice

NOTHING = Augmentation(rotation=0, shift=0, zoom=0, shear=0, flip=False, brightness=0, contrast=0, noise=0)
PIXELS, REFERENCE = make_phantom(3, image_size=96, slices=9)
SLICE = int(REFERENCE.sum(axis=(1, 2)).argmax())
INTENSITY = measure_intensity(PIXELS, "zscore")
NUMBERS = {"seed": 0, "epoch": 1, "scan_index": 2, "slice_index": 3}


def only(**choices) -> Augmentation:
    return Augmentation(**{**NOTHING.__dict__, **choices})


def augment(choices: Augmentation, *, seed=0, epoch=0, scan_index=0, slice_index=0):
    numbers = {"seed": seed, "epoch": epoch, "scan_index": scan_index, "slice_index": slice_index}
    return augment_slice(PIXELS[SLICE], REFERENCE[SLICE], INTENSITY, choices, **numbers)


def test_no_change_is_plain_normalization():
    pixels, reference = augment(NOTHING)
    np.testing.assert_allclose(pixels, normalize(PIXELS, INTENSITY)[SLICE], atol=1e-6)
    assert np.array_equal(reference, REFERENCE[SLICE])
    assert (pixels.dtype, reference.dtype) == (np.float32, np.uint8)


def test_the_same_numbers_give_the_same_slice_and_others_another():
    first, first_reference = augment(Augmentation(), seed=1, epoch=2, scan_index=3, slice_index=4)
    again, again_reference = augment(Augmentation(), seed=1, epoch=2, scan_index=3, slice_index=4)
    assert np.array_equal(first, again)
    assert np.array_equal(first_reference, again_reference)
    for change in ({"seed": 9}, {"epoch": 9}, {"scan_index": 9}, {"slice_index": 9}):
        numbers = {"seed": 1, "epoch": 2, "scan_index": 3, "slice_index": 4} | change
        assert not np.array_equal(first, augment(Augmentation(), **numbers)[0])


def test_slices_are_flipped_left_to_right_half_of_the_time():
    flipped = 0
    plain = normalize(PIXELS, INTENSITY)[SLICE]
    for epoch in range(40):
        pixels, reference = augment(only(flip=True), epoch=epoch)
        is_flipped = not np.array_equal(reference, REFERENCE[SLICE])
        flipped += is_flipped
        expected = plain[:, ::-1] if is_flipped else plain
        np.testing.assert_allclose(pixels, expected, atol=1e-6)
        assert np.array_equal(reference, REFERENCE[SLICE][:, ::-1] if is_flipped else REFERENCE[SLICE])
    assert 10 <= flipped <= 30


@given(epoch=st.integers(0, 10**6), rotation=st.floats(0, 180), shear=st.floats(0, 0.3), zoom=st.floats(0, 0.3))
@settings(max_examples=40, deadline=None)
def test_image_and_reference_move_together(epoch, rotation, shear, zoom):
    disc = (np.hypot(*(np.mgrid[:64, :64] - 31.5)) < 14) & (np.mgrid[:64, :64][1] < 34)
    choices = only(rotation=rotation, shear=shear, zoom=zoom, shift=0.05, flip=True)
    pixels = (disc * 200).astype(np.uint8)[..., None]
    intensity = measure_intensity(pixels[None], "minmax")
    moved, reference = augment_slice(pixels, disc, intensity, choices, seed=0, epoch=epoch, scan_index=0, slice_index=0)
    assert set(np.unique(reference)) == {0, 1}
    assert np.count_nonzero((moved[..., 0] > 0.5) ^ (reference > 0)) <= 0.08 * np.count_nonzero(disc)


def test_a_shift_stays_within_its_share_of_the_side():
    rows, columns = np.nonzero(REFERENCE[SLICE])
    for epoch in range(20):
        _, reference = augment(only(shift=0.1), epoch=epoch)
        moved_rows, moved_columns = np.nonzero(reference)
        assert abs(moved_rows.mean() - rows.mean()) <= 0.1 * 96 + 1
        assert abs(moved_columns.mean() - columns.mean()) <= 0.1 * 96 + 1


def test_contrast_and_brightness_change_each_channel_linearly():
    plain = normalize(PIXELS, INTENSITY)[SLICE]
    changed, _ = augment(only(contrast=0.2, brightness=0.3))
    for channel in range(3):
        gain, bias = np.polyfit(plain[..., channel].ravel(), changed[..., channel].ravel(), 1)
        assert abs(gain - 1) <= 0.2
        assert abs(bias) <= 0.3
        np.testing.assert_allclose(changed[..., channel], gain * plain[..., channel] + bias, atol=1e-4)


def test_noise_is_normal_with_the_drawn_deviation():
    plain = normalize(PIXELS, INTENSITY)[SLICE]
    deviations = []
    for epoch in range(30):
        noise = augment(only(noise=0.5), epoch=epoch)[0] - plain
        deviations.append(noise.std())
        assert abs(noise.mean()) < 5 * noise.std() / np.sqrt(noise.size)
        assert np.mean(np.abs(noise) < noise.std()) == pytest.approx(0.683, abs=0.02)
    assert max(deviations) <= 0.51
    assert np.mean(deviations) == pytest.approx(0.25, abs=0.1)


def test_context_slices_share_warp_and_contrast():
    choices = only(rotation=30, zoom=0.2, flip=True, contrast=0.3, brightness=0.3)
    alike = np.repeat(PIXELS[SLICE][None], 3, axis=0)
    stacked = view_slice(alike, 1, 1)
    pixels, _ = augment_slice(
        stacked, REFERENCE[SLICE], INTENSITY, choices, seed=0, epoch=0, scan_index=0, slice_index=0
    )
    alone, _ = augment(choices)
    np.testing.assert_allclose(pixels, np.concatenate([alone] * 3, axis=-1), atol=1e-6)


@pytest.mark.parametrize("dtype", [np.uint16, np.int16, np.float32])
@pytest.mark.parametrize("channels", [1, 2, 5])
def test_other_types_and_numbers_of_channels_are_augmented_too(dtype, channels):
    pixels = np.random.default_rng(0).integers(0, 1000, (32, 40, channels)).astype(dtype)
    intensity = measure_intensity(pixels[None], "percentile")
    changed, reference = augment_slice(
        pixels, np.ones((32, 40)), intensity, Augmentation(), seed=0, epoch=0, scan_index=0, slice_index=0
    )
    assert changed.shape == (32, 40, channels)
    assert np.isfinite(changed).all()
    assert reference.shape == (32, 40)


def test_a_warp_fills_from_outside_with_the_background():
    pixels = np.full((32, 32, 2), 103, np.uint8)
    pixels[10:20, 10:20] = 180
    intensity = measure_intensity(pixels[None], "scale")
    for epoch in range(5):
        changed, _ = augment_slice(
            pixels,
            np.zeros((32, 32)),
            intensity,
            only(rotation=45, shift=0.2),
            seed=0,
            epoch=epoch,
            scan_index=0,
            slice_index=0,
        )
        np.testing.assert_allclose(changed[[0, 0, -1, -1], [0, -1, 0, -1]], 103 / 255, atol=1e-6)


def test_a_patch_without_changes_is_a_part_of_the_slice():
    patch = Box(10, 42, 30, 78)
    pixels, reference = augment_slice(PIXELS[SLICE], REFERENCE[SLICE], INTENSITY, NOTHING, **NUMBERS, patch=patch)
    assert np.array_equal(pixels, normalize(PIXELS[SLICE][patch.window], INTENSITY))
    assert np.array_equal(reference, REFERENCE[SLICE][patch.window])


def test_a_patch_of_everything_changes_nothing():
    given = (PIXELS[SLICE], REFERENCE[SLICE], INTENSITY, Augmentation())
    whole = augment_slice(*given, **NUMBERS)
    patched = augment_slice(*given, **NUMBERS, patch=Box(0, 96, 0, 96))
    assert all(np.array_equal(first, second) for first, second in zip(whole, patched, strict=True))


def test_a_warped_patch_sees_what_lies_around_it():
    pixels, reference = np.full((96, 96, 1), 7, np.uint8), np.ones((96, 96), np.uint8)
    intensity = Intensity(*(np.array([value], np.float32) for value in (0, 1, 0, 255, 0)))
    choices = Augmentation(brightness=0, contrast=0, noise=0)
    for epoch in range(10):
        found, drawn = augment_slice(
            pixels, reference, intensity, choices, **NUMBERS | {"epoch": epoch}, patch=Box(32, 64, 32, 64)
        )
        assert found.shape == (32, 32, 1)
        assert (found == 7).all()
        assert drawn.all()


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_label_map_keeps_its_values_and_each_moves_as_it_would_alone(dtype):
    label_map = np.zeros((32, 40), dtype)
    label_map[8:20, 6:20], label_map[12:26, 18:30] = 2, np.iinfo(dtype).max
    pixels = np.zeros((32, 40, 1), np.uint8)
    intensity = measure_intensity(pixels[None], "scale")
    place = {"seed": 0, "epoch": 1, "scan_index": 2, "slice_index": 3}
    _, moved = augment_slice(pixels, label_map, intensity, Augmentation(), **place)
    assert moved.dtype == dtype
    assert not np.array_equal(moved, label_map)
    for value in (2, np.iinfo(dtype).max):
        alone = augment_slice(pixels, (label_map == value).astype(np.uint8), intensity, Augmentation(), **place)[1]
        np.testing.assert_array_equal(moved == value, alone != 0)
