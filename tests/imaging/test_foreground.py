"""The box around the foreground."""

import os
from pathlib import Path

import numpy as np
import pytest
import tifffile

from raysegment.imaging.phantom import make_phantom
from raysegment.imaging.preprocess import Box, foreground_box


def disc(rows: int = 128, columns: int = 160, *, row: int = 60, column: int = 80, radius: int = 40) -> np.ndarray:
    y, x = np.mgrid[:rows, :columns]
    return (y - row) ** 2 + (x - column) ** 2 <= radius**2


def assert_close(box: Box | None, expected: Box, within: int) -> None:
    assert box is not None
    found = (box.row_start, box.row_stop, box.column_start, box.column_stop)
    wanted = (expected.row_start, expected.row_stop, expected.column_start, expected.column_stop)
    assert np.abs(np.subtract(found, wanted)).max() <= within


DISC_BOX = Box(20, 101, 40, 121)


@pytest.mark.parametrize(
    ("background", "tissue", "noise", "dtype"),
    [
        (0, 120, 0, np.uint8),
        (6, 90, 2, np.uint8),
        (-1000, 40, 10, np.int16),
        (0.0, 1.2, 0.0, np.float32),
        (-0.6, 1.5, 0.05, np.float32),
        (300, 2500, 60, np.uint16),
    ],
)
def test_the_box_holds_the_disc_whatever_the_background(background, tissue, noise, dtype):
    random = np.random.default_rng(0)
    values = np.where(disc(), tissue, background) + noise * random.standard_normal((3, 128, 160))
    pixels = np.clip(values, -2000, 255 if dtype is np.uint8 else 4000).astype(dtype)[..., None]
    if dtype is np.uint8:
        pixels = np.maximum(pixels, 0)
    assert_close(foreground_box(pixels, margin=0), DISC_BOX, within=4)


def test_the_box_is_the_union_over_slices():
    pixels = np.zeros((2, 128, 160, 1), np.uint8)
    pixels[0, ..., 0] = 100 * disc(row=40, column=40, radius=20)
    pixels[1, ..., 0] = 100 * disc(row=90, column=120, radius=20)
    assert_close(foreground_box(pixels, margin=0), Box(20, 111, 20, 141), within=4)


def test_stray_pixels_and_thin_lines_are_ignored():
    pixels = np.zeros((2, 128, 160, 3), np.uint8)
    pixels[:] = 100 * disc()[..., None]
    pixels[0, 3, 5] = 255
    pixels[1, 120:122, 150:152] = 255
    pixels[:, :, 1] = 200
    assert_close(foreground_box(pixels, margin=0), DISC_BOX, within=4)


def test_a_channel_of_constant_brightness_does_not_count():
    pixels = np.full((2, 128, 160, 2), 103, np.uint8)
    pixels[..., 1] = 100 * disc()
    assert_close(foreground_box(pixels, margin=0), DISC_BOX, within=4)


def test_the_margin_stays_inside_the_grid():
    pixels = (100 * disc())[None, ..., None].astype(np.uint8)
    assert foreground_box(pixels, margin=1000) == Box(0, 128, 0, 160)


@pytest.mark.parametrize("value", [0, 77])
def test_a_scan_without_foreground_has_no_box(value):
    assert foreground_box(np.full((3, 64, 64, 3), value, np.uint8)) is None


def test_a_scan_filled_to_its_edges_keeps_almost_everything():
    pixels = np.random.default_rng(0).integers(0, 255, (2, 96, 96, 3), dtype=np.uint8)
    pixels[:, 8:88, 8:88] //= 3
    box = foreground_box(pixels)
    assert box is None or box.rows * box.columns > 0.6 * 96 * 96


def test_the_box_of_a_phantom_holds_all_its_lesions():
    for seed in range(5):
        pixels, reference = make_phantom(seed, image_size=128, slices=12)
        box = foreground_box(pixels)
        assert box is not None
        assert reference[:, box.row_start : box.row_stop, box.column_start : box.column_stop].sum() == reference.sum()
        assert box.rows * box.columns < 0.9 * 128 * 128


@pytest.mark.skipif("RAYSEGMENT_DATA" not in os.environ, reason="RAYSEGMENT_DATA names no folder with real scans")
def test_the_box_of_real_scans_holds_all_lesions_and_leaves_out_margins():
    patients = sorted((Path(os.environ["RAYSEGMENT_DATA"]) / "lgg").iterdir())[::12]
    shares = []
    for patient in patients:
        masks = sorted(patient.glob("*_mask.tif"))
        pixels = np.stack([tifffile.imread(str(path).replace("_mask", "")) for path in masks])
        reference = np.stack([tifffile.imread(path) for path in masks]) > 0
        box = foreground_box(pixels)
        assert box is not None
        assert np.count_nonzero(reference[:, *box.window]) == np.count_nonzero(reference)
        shares.append(box.rows * box.columns / (256 * 256))
    assert np.mean(shares) < 0.8
