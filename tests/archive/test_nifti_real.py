"""Real volumes below the folder that RAYSEGMENT_DATA names, as nibabel and SimpleITK read them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from volumes_made import entry_of_files

from raysegment.archive.decoder import Decoder
from raysegment.scan import Labels, ReadSettings

FOLDERS = ("hippocampus/imagesTr", "brats")
LABELS = Labels(("Anterior", "Posterior"), ((1,), (2,)))


@pytest.fixture
def real_volumes() -> list[Path]:
    root = Path(os.environ.get("RAYSEGMENT_DATA") or "")
    found = [path for folder in FOLDERS for path in sorted((root / folder).rglob("[!.]*.nii.gz"))]
    if not os.environ.get("RAYSEGMENT_DATA") or not found:
        pytest.skip("RAYSEGMENT_DATA names no folder with real volumes")
    return found


@pytest.fixture
def decoder() -> Iterator[Decoder]:
    with Decoder(settings=ReadSettings(labels=LABELS, slice_axis="axial")) as decoder:
        yield decoder


def test_every_real_volume_is_what_simpleitk_reads_voxel_by_voxel(real_volumes, decoder):
    for path in real_volumes:
        scan = decoder.read(entry_of_files(path.parent, path.name)).scan
        # Columns from right to left, rows to the back, slices up are ITK's LPS.
        image = sitk.DICOMOrient(sitk.ReadImage(str(path)), "LPS")
        np.testing.assert_array_equal(scan.pixels[..., 0], sitk.GetArrayFromImage(image))
        assert scan.spacing_mm == pytest.approx(image.GetSpacing()[::-1], rel=1e-5)
        origin = np.array(image.GetOrigin()) * (-1, -1, 1)
        np.testing.assert_allclose(scan.affine[:3, 3], origin, atol=1e-3)
        far = [size - 1 for size in scan.grid]
        expected = np.array(image.TransformIndexToPhysicalPoint(far[::-1])) * (-1, -1, 1)
        np.testing.assert_allclose((scan.affine @ [*far, 1])[:3], expected, atol=1e-3)


def test_every_real_reference_lies_on_its_volume(real_volumes, decoder):
    volumes = [path for path in real_volumes if path.parent.name == "imagesTr"]
    for path in volumes:
        entry = entry_of_files(path.parents[1], f"imagesTr/{path.name}", reference=f"labelsTr/{path.name}")
        decoded = decoder.read(entry, with_reference=True)
        assert decoded.reference_error is None
        drawn = nibabel.as_closest_canonical(nibabel.load(path.parents[1] / entry.reference_files[0]))
        expected = np.asarray(drawn.dataobj)[::-1, ::-1].transpose(2, 1, 0)
        np.testing.assert_array_equal(decoded.reference, expected)


def test_the_reference_of_a_brats_case_that_lost_its_origin_counts_voxel_by_voxel(real_volumes):
    (flair,) = [path for path in real_volumes if path.name == "BraTS20_Training_001_flair.nii.gz"]
    name = flair.name.replace("flair", "seg")
    entry = entry_of_files(flair.parent, flair.name, reference=name)
    labels = Labels(("ET", "NCR", "ED"), ((1,), (2,), (3,)))
    for resample in (False, True):
        with Decoder(settings=ReadSettings(labels=labels, slice_axis="axial", resample_channels=resample)) as decoder:
            decoded = decoder.read(entry, with_reference=True)
        if not resample:
            assert decoded.reference_error.startswith("GridMismatchError")
    expected = np.asarray(nibabel.load(flair.parent / name).dataobj).transpose(2, 1, 0)
    np.testing.assert_array_equal(decoded.reference, expected)
    tissue = decoded.scan.pixels[..., 0] > 0
    assert tissue[decoded.reference > 0].all()
