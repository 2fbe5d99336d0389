"""References of every kind through whole runs: what counts as region, what is refused; and images of every kind."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tifffile
from PIL import Image

import raysegment
from raysegment.errors import TooManyFailuresError
from raysegment.imaging.phantom import make_phantom
from raysegment.options import EvaluateOptions, InferOptions, TrainOptions

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("ray_here")]

SIZE = 64
REGION = np.zeros((SIZE, SIZE), bool)
REGION[20:40, 10:42] = True
SMALL = np.zeros((SIZE, SIZE), bool)
SMALL[50:55, 50:60] = True
PIXELS = make_phantom(3, image_size=SIZE, slices=8)[0][4]
REGION_VOXELS = 640
BOTH_VOXELS = 690


def two(value: float, dtype: str) -> np.ndarray:
    return np.where(REGION, value, 0).astype(dtype)


def label_map(first: float, second: float, dtype: str) -> np.ndarray:
    return np.where(SMALL, second, np.where(REGION, first, 0)).astype(dtype)


INSTANCES = np.where(REGION, 1 + np.arange(SIZE * SIZE).reshape(SIZE, SIZE) % 200, 0).astype(np.uint8)

MASKS = {
    "bool": (REGION, REGION_VOXELS),
    "u1_255": (two(255, "u1"), REGION_VOXELS),
    "u1_1": (two(1, "u1"), REGION_VOXELS),
    "f4_1": (two(1, "f4"), REGION_VOXELS),
    "u2_65535": (two(65535, "u2"), REGION_VOXELS),
    "u1_100": (two(100, "u1"), REGION_VOXELS),
    "u2_1000": (two(1000, "u2"), REGION_VOXELS),
    "u1_16": (two(16, "u1"), REGION_VOXELS),
    "u1_64": (two(64, "u1"), REGION_VOXELS),
    "u1_127": (two(127, "u1"), REGION_VOXELS),
    "u2_256": (two(256, "u2"), REGION_VOXELS),
    "u2_20000": (two(20000, "u2"), REGION_VOXELS),
    "f4_0.4": (two(0.4, "f4"), REGION_VOXELS),
    "two_without_0": (np.where(REGION, 2, 1).astype(np.uint8), REGION_VOXELS),
    "labels": (label_map(1, 4, "u1"), BOTH_VOXELS),
    "labels_100_200": (label_map(100, 200, "u1"), BOTH_VOXELS),
    "float_labels": (label_map(1.0005, 2.9996, "f4"), BOTH_VOXELS),
    "instances": (INSTANCES, REGION_VOXELS),
    "empty": (two(0, "u1"), 0),
}
REFUSED = {
    "i2_minus_1": (two(-1, "i2"), "-1"),
    "u2_three": (label_map(1000, 2000, "u2"), "2000"),
    "f4_halves": (label_map(0.3, 0.6, "f4"), "0.3"),
}


def write_scan(folder: Path, mask: np.ndarray | None = None, pixels: np.ndarray = PIXELS) -> Path:
    folder.mkdir(parents=True)
    tifffile.imwrite(folder / "image.tif", pixels, photometric="rgb")
    if mask is not None:
        tifffile.imwrite(folder / "image_mask.tif", mask)
    return folder


def write_masks(archive: Path) -> None:
    """Scans that differ in their references alone."""
    for name, (mask, _) in {**MASKS, **REFUSED}.items():
        write_scan(archive / name, mask)
    folder = write_scan(archive / "jpeg")
    Image.fromarray(two(255, "u1")).save(folder / "image_mask.jpg", quality=70)
    folder = write_scan(archive / "palette_png")
    indexed = Image.fromarray(two(1, "u1")).convert("P")
    indexed.putpalette([0, 0, 0, 128, 0, 0])
    indexed.save(folder / "image_mask.png")
    folder = write_scan(archive / "palette_tiff")
    indexed.save(folder / "image_mask.tif")
    folder = write_scan(archive / "white_is_zero")
    tifffile.imwrite(folder / "image_mask.tif", 255 - two(255, "u1"), photometric="miniswhite")
    folder = write_scan(archive / "white_is_zero_bits")
    Image.fromarray(REGION).save(folder / "image_mask.tif", tiffinfo={262: 0}, compression="group4")
    folder = write_scan(archive / "one_slice")
    (folder / "image.tif").unlink()
    (folder / "image_mask.tif").unlink(missing_ok=True)
    for number in range(1, 4):
        tifffile.imwrite(folder / f"s_{number}.tif", PIXELS, photometric="rgb")
        tifffile.imwrite(folder / f"s_{number}_mask.tif", np.full((SIZE, SIZE), 255 * (number == 2), np.uint8))


def write_images(archive: Path) -> None:
    """Scans that differ in how the same pixels are stored, or that no network can use."""
    write_scan(archive / "plain_rgb")
    folder = write_scan(archive / "transparent")
    (folder / "image.tif").unlink()
    Image.fromarray(PIXELS).save(folder / "image.png", transparency=(1, 2, 3))
    folder = write_scan(archive / "palette_image")
    Image.fromarray(PIXELS).quantize(32).save(folder / "image.tif")
    for name, value, dtype in (("huge", 1e300, "f8"), ("large", 3e38, "f4"), ("tiny", 1e-42, "f4")):
        pixels = PIXELS.astype(dtype) / 255
        if name == "tiny":
            pixels = (pixels * value).astype(dtype)
        else:
            pixels[0, 0], pixels[5, 5] = value, -value
        write_scan(archive / name, pixels=pixels)
    upright = np.ascontiguousarray(PIXELS[:, 14:50]).astype(np.int16)
    write_scan(archive / "upright", pixels=upright)
    write_scan(archive / "upright_ct", pixels=upright - 1000)


@pytest.fixture(scope="module")
def segmented(tmp_path_factory, tiny_bundle, ray_here) -> pd.DataFrame:
    """Scans and metrics of one run of `infer` over all kinds of references and images, by folder."""
    root = tmp_path_factory.mktemp("kinds")
    write_masks(root / "archive")
    write_images(root / "archive")
    raysegment.infer(InferOptions(model=str(tiny_bundle), source=str(root / "archive"), out=str(root / "out")))
    scans = pd.read_parquet(root / "out" / "scans").merge(
        pd.read_parquet(root / "out" / "metrics"), on="scan_id", how="left"
    )
    masks = pd.read_parquet(root / "out" / "masks")[["scan_id", "mask"]]
    scans = scans.merge(masks, on="scan_id", how="left")
    return scans.set_index(scans["scan_id"].str.split("/").str[0])


@pytest.mark.parametrize("name", MASKS)
def test_a_reference_of_one_region_holds_the_region_whatever_its_values(segmented, name):
    row = segmented.loc[name]
    assert pd.isna(row["reference_error"])
    assert row["reference_voxels"] == MASKS[name][1]


@pytest.mark.parametrize("name", REFUSED)
def test_a_reference_that_says_no_region_is_an_error_that_names_its_values(segmented, name):
    row = segmented.loc[name]
    assert row["status"] == "ok"
    assert row["reference_error"].startswith("ReferenceValuesError: ")
    assert REFUSED[name][1] in row["reference_error"]
    assert np.isnan(row["dice"])


def test_a_jpeg_reference_is_nearly_the_region(segmented):
    assert abs(segmented.loc["jpeg"]["reference_voxels"] - REGION_VOXELS) <= 0.05 * REGION_VOXELS


def test_values_are_judged_over_all_slices_of_a_scan(segmented):
    assert segmented.loc["one_slice"]["reference_voxels"] == SIZE * SIZE


@pytest.mark.parametrize("name", ["palette_png", "palette_tiff", "white_is_zero", "white_is_zero_bits"])
def test_palettes_and_white_as_zero_keep_the_region(segmented, name):
    assert segmented.loc[name]["reference_voxels"] == REGION_VOXELS


def test_a_transparent_colour_of_a_png_adds_no_channel(segmented):
    assert segmented.loc["transparent"]["status"] == "ok"
    assert segmented.loc["transparent"]["mask"] == segmented.loc["plain_rgb"]["mask"]


def test_an_image_with_a_palette_is_read_in_its_colours(segmented):
    assert segmented.loc["palette_image"]["status"] == "ok"


@pytest.mark.parametrize("name", ["huge", "large", "tiny"])
def test_pixels_beyond_single_precision_fail_the_scan(segmented, name):
    assert segmented.loc[name]["status"] == "failed"
    assert segmented.loc[name]["error_type"] == "NonFinitePixelsError"


def test_the_padding_is_background_so_that_shifted_intensities_give_the_same_mask(segmented):
    upright, shifted = segmented.loc["upright"], segmented.loc["upright_ct"]
    assert upright["voxels"] > 0
    assert upright["mask"] == shifted["mask"]
    assert upright["mean_probability"] == pytest.approx(shifted["mean_probability"], abs=1e-4)


def test_evaluate_fails_a_scan_whose_reference_says_no_region(tmp_path, tiny_bundle):
    for name in ("u2_three", "u1_255"):
        write_scan(tmp_path / "archive" / name, {**MASKS, **REFUSED}[name][0])
    options = EvaluateOptions(model=str(tiny_bundle), source=str(tmp_path / "archive"), out=str(tmp_path / "out"))
    result = raysegment.evaluate(options)
    scans = pd.read_parquet(tmp_path / "out" / "scans").set_index("scan_id")
    assert result.exit_code == 3
    assert scans.loc["u2_three/image.tif", "error_type"] == "ReferenceValuesError"
    assert scans.loc["u1_255/image.tif", "status"] == "ok"


def test_training_leaves_out_what_inference_and_evaluation_refuse(tmp_path):
    archive = tmp_path / "archive"
    for patient in range(6):
        write_scan(archive / f"good_{patient}", MASKS["u1_255"][0])
    write_scan(archive / "negative", REFUSED["i2_minus_1"][0])
    extreme = PIXELS.astype(np.float32)
    extreme[0, 0] = 3e38
    write_scan(archive / "extreme", MASKS["u1_255"][0], extreme)
    options = TrainOptions(
        source=str(archive), out=str(tmp_path / "run"), image_size=64, filters=4, depth=2, epochs=1, batch_size=2,
        train_fraction=0.7, val_fraction=0.3, patient_pattern="^([^/]+)/",
    )  # fmt: skip
    with pytest.raises(TooManyFailuresError, match="2 of 8 scans are unusable"):
        raysegment.train(options)
    manifest = pd.read_parquet(tmp_path / "run" / "manifest.parquet").set_index("patient_id")
    assert manifest.loc["negative", "error_type"] == "ReferenceValuesError"
    assert manifest.loc["extreme", "error_type"] == "NonFinitePixelsError"
