"""Made-up volumes: anatomy in millimetres, whatever the stored axes are, in the layouts of two public data sets."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel
import numpy as np
import pytest

from raysegment.imaging.volume_phantom import (
    BRATS_CHANNELS,
    STORED_ORDERS,
    make_tumour_volume,
    make_two_label_volume,
    write_brats,
    write_decathlon,
)


def centre_mm(phantom, value: int) -> np.ndarray:
    """Mean position of a value in millimetres."""
    return nibabel.affines.apply_affine(phantom.affine, np.argwhere(phantom.reference == value)).mean(axis=0)


def volume_mm3(phantom, value: int) -> float:
    return float(np.sum(phantom.reference == value) * abs(np.linalg.det(phantom.affine[:3, :3])))


def test_the_same_seed_gives_the_same_volume():
    for make in (make_two_label_volume, make_tumour_volume):
        first, second = make(5), make(5)
        assert np.array_equal(first.reference, second.reference)
        for name, voxels in first.channels.items():
            assert np.array_equal(voxels, second.channels[name])
        assert not np.array_equal(first.reference, make(6).reference)


@pytest.mark.parametrize("order", STORED_ORDERS)
@pytest.mark.parametrize("turn", [0.0, 14.0])
def test_stored_axes_say_where_they_lead_and_the_body_stays_where_it_is(order, turn):
    phantom, plain = make_two_label_volume(4, order=order, turn_degrees=turn), make_two_label_volume(4)
    assert "".join(nibabel.aff2axcodes(phantom.affine)) == order
    for value in (1, 2):
        assert centre_mm(phantom, value) == pytest.approx(centre_mm(plain, value), abs=0.5)
        assert volume_mm3(phantom, value) == pytest.approx(volume_mm3(plain, value), rel=0.1)


def test_the_two_labels_touch_and_the_head_lies_in_front():
    for seed in range(8):
        phantom = make_two_label_volume(seed)
        assert set(np.unique(phantom.reference)) == {0, 1, 2}
        assert centre_mm(phantom, 1)[1] > centre_mm(phantom, 2)[1] + 8
        head, tail = phantom.reference == 1, phantom.reference == 2
        assert (head[:, 1:] & tail[:, :-1]).any()
        assert 0.01 < head.mean() < 0.1
        assert 0.01 < tail.mean() < 0.1


def test_slices_are_thicker_than_pixels_are_wide():
    right, anterior, superior = nibabel.affines.voxel_sizes(make_two_label_volume(3).affine)
    assert right == anterior
    assert superior > 1.6 * right


def test_pixels_are_of_both_kinds_that_the_real_ones_have():
    kinds = {make_two_label_volume(seed).channels["MRI"].dtype for seed in range(2)}
    assert kinds == {np.dtype(np.uint8), np.dtype(np.float32)}


def test_tumours_have_the_values_of_brats_and_a_background_below_zero():
    for seed in range(5):
        phantom = make_tumour_volume(seed)
        assert set(np.unique(phantom.reference)) == ({0, 1, 2} if seed == 4 else {0, 1, 2, 4})
        borders = {float(voxels[0, 0, 0]) for voxels in phantom.channels.values()}
        assert len(borders) == 4
        assert max(borders) < -3
        for voxels in phantom.channels.values():
            brain = voxels[voxels > -3]
            assert brain.mean() == pytest.approx(0, abs=0.15)


def test_each_region_of_a_tumour_is_bright_where_radiologists_look_for_it():
    phantom = make_tumour_volume(1)
    brightness = {
        (name, value): float(np.median(voxels[phantom.reference == value]))
        for name, voxels in phantom.channels.items()
        for value in (1, 2, 4)
    }
    assert brightness["t1ce", 4] > brightness["t1ce", 2] + 1
    assert brightness["flair", 2] > 1
    assert brightness["t1", 1] < -0.5


def test_an_archive_has_the_layout_of_the_decathlon(tmp_path: Path):
    write_decathlon(tmp_path, scans=3, seed=0)
    described = json.loads((tmp_path / "dataset.json").read_text())
    assert described["labels"] == {"0": "background", "1": "Head", "2": "Tail"}
    assert [row["label"] for row in described["training"]] == [f"./labelsTr/phantom_00{n}.nii.gz" for n in (1, 2, 3)]
    for row in described["training"]:
        image, label = nibabel.load(tmp_path / row["image"]), nibabel.load(tmp_path / row["label"])
        assert image.shape == label.shape
        assert np.array_equal(image.affine, label.affine)
    skew = [np.abs(nibabel.load(tmp_path / row["image"]).affine[:3, :3]) for row in described["training"]]
    assert [int((matrix > 1e-6).sum()) for matrix in skew] == [3, 3, 9]


def test_an_archive_has_the_layout_of_brats(tmp_path: Path):
    write_brats(tmp_path, scans=2, seed=0, extent_mm=60, spacing_mm=3)
    name = "BraTS20_Training_002"
    found = sorted(path.name for path in (tmp_path / name).iterdir())
    assert found == sorted(f"{name}_{channel}.nii.gz" for channel in (*BRATS_CHANNELS, "seg"))
    assert {nibabel.load(tmp_path / name / file).shape for file in found} == {(20, 20, 20)}


def test_the_same_seed_writes_the_same_bytes(tmp_path: Path):
    for name in ("first", "second"):
        write_decathlon(tmp_path / name, scans=1, seed=4)
        write_brats(tmp_path / name, scans=1, seed=4, extent_mm=40, spacing_mm=4)
    for path in sorted((tmp_path / "first").rglob("*.nii.gz")):
        assert path.read_bytes() == (tmp_path / "second" / path.relative_to(tmp_path / "first")).read_bytes()
