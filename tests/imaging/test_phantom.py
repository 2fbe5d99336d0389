"""Made-up brains."""

import numpy as np
import pytest
import tifffile

from raysegment.imaging.phantom import make_phantom, write_archive


def test_the_same_seed_gives_the_same_scan():
    first, second = make_phantom(5, image_size=64, slices=8), make_phantom(5, image_size=64, slices=8)
    assert np.array_equal(first[0], second[0])
    assert np.array_equal(first[1], second[1])
    assert not np.array_equal(first[0], make_phantom(6, image_size=64, slices=8)[0])


@pytest.mark.parametrize("image_size", [64, 96, 256])
def test_pixels_and_reference_share_one_grid(image_size):
    pixels, reference = make_phantom(0, image_size=image_size, slices=7)
    assert (pixels.shape, pixels.dtype) == ((7, image_size, image_size, 3), np.uint8)
    assert (reference.shape, reference.dtype) == ((7, image_size, image_size), np.bool_)


def test_every_scan_has_a_lesion_and_a_clean_slice():
    for seed in range(12):
        _, reference = make_phantom(seed, image_size=96, slices=14)
        has_lesion = reference.any(axis=(1, 2))
        assert has_lesion.any(), seed
        assert not has_lesion.all(), seed
        assert 0.001 < reference.mean() < 0.1


def test_lesions_are_bright_in_the_second_channel():
    pixels, reference = make_phantom(1, image_size=96, slices=14)
    brain = pixels[..., 0] > 50
    around = np.median(pixels[brain & ~reference], axis=0)
    gaps = np.median(pixels[reference], axis=0) - around
    assert gaps[1] > 30
    assert gaps[1] > 2 * np.abs(gaps[[0, 2]]).max()


def test_brightness_alone_does_not_find_the_lesions():
    best = []
    for seed in range(6):
        pixels, reference = make_phantom(seed, image_size=96, slices=14)
        masks = [pixels[..., 1] > threshold for threshold in range(80, 240, 4)]
        dice = [2 * np.sum(mask & reference) / (mask.sum() + reference.sum()) for mask in masks]
        best.append(max(dice))
    assert np.mean(best) < 0.8


def test_an_archive_has_the_layout_of_the_lgg_set(tmp_path):
    write_archive(tmp_path, patients=3, seed=0, image_size=64, slices=6)
    assert sorted(folder.name for folder in tmp_path.iterdir()) == ["PHANTOM_0001", "PHANTOM_0002", "PHANTOM_0003"]
    folder = tmp_path / "PHANTOM_0002"
    images = [path for path in folder.iterdir() if "_mask" not in path.name]
    for number in range(1, len(images) + 1):
        pixels = tifffile.imread(folder / f"PHANTOM_0002_{number}.tif")
        mask = tifffile.imread(folder / f"PHANTOM_0002_{number}_mask.tif")
        assert (pixels.shape, pixels.dtype) == ((64, 64, 3), np.uint8)
        assert mask.shape == (64, 64)
        assert set(np.unique(mask)) <= {0, 255}
    assert len(list(folder.iterdir())) == 2 * len(images)
    assert 6 <= len(images) <= 9


def test_the_same_seed_writes_the_same_bytes(tmp_path):
    for name in ("first", "second"):
        write_archive(tmp_path / name, patients=1, seed=4, image_size=64, slices=4)
    for path in sorted((tmp_path / "first").rglob("*.tif")):
        assert path.read_bytes() == (tmp_path / "second" / path.relative_to(tmp_path / "first")).read_bytes()
