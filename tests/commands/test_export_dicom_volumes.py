"""Masks of DICOM series as NIfTI lie where the DICOM lies: as SimpleITK writes the same series, voxel by voxel."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813

sys.path.insert(0, str(Path(__file__).parents[1] / "archive"))

from dicom_made import AXIAL, make_enhanced, make_instance, make_series, to_bytes, write_series
from volumes_made import make_affine

from raysegment.archive.index import find_scans
from raysegment.archive.manifest import entries
from raysegment.archive.orientation import plane_of
from raysegment.archive.read import read_scan
from raysegment.commands.export import export_masks
from raysegment.errors import EXIT_DONE
from raysegment.options import ExportOptions
from raysegment.scan import ReadSettings
from raysegment.store.masks import encode_mask
from raysegment.store.parts import ScanRows, stage_part
from raysegment.store.place import Place
from raysegment.store.publish import prepare_tables, publish_part

VOLUME = np.random.default_rng(0).integers(0, 200, (7, 5, 6)).astype(np.int16)
TILTED = AXIAL.copy()
TILTED[1, 0] = 1.2
GRIDS = {
    "axial": AXIAL,
    "sagittal": np.array([[-4, 0, 0, 9], [0, 0, -1, 3], [0, -2, 0, 7], [0, 0, 0, 1]], float),
    "coronal": np.array([[0, 0, -1, 9], [4, 0, 0, 3], [0, -2, 0, 7], [0, 0, 0, 1]], float),
    "oblique": make_affine((3, 2, 1), (160, -35, 80)),
    "tilted": TILTED,
}


@pytest.fixture(autouse=True)
def key_folder(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path_factory.mktemp("config")))


def segment(archive: Path, tables: Path, slice_axis: str = "auto") -> list:
    """Tables whose masks are all voxels above 100, and the scans."""
    place = Place(str(tables))
    prepare_tables(place)
    found = list(entries(find_scans(str(archive))))
    rows = []
    for entry in found:
        scan = read_scan(entry, ReadSettings(slice_axis=slice_axis))
        mask = (scan.pixels[..., 0] > 100).astype(np.uint8)
        columns = {
            "scan_id": entry.scan_id,
            "status": "ok",
            "num_slices": len(mask),
            "source": entry.source,
            "fingerprint": entry.fingerprint,
            "model_id": "m",
            "slice_axis": None if scan.affine is None else plane_of(scan.affine),
        }
        row = encode_mask(entry.scan_id, mask, labels={"a": 1}, spacing_mm=scan.spacing_mm, affine=scan.affine)
        rows.append(ScanRows(columns, (), row))
    publish_part(place, "_staging/1", stage_part(place, "_staging/1", rows).name)
    return found


def export(tables: Path, out: Path):
    return export_masks(ExportOptions(tables=str(tables), out=str(out), to="nifti"))


def mask_by_itk(folder: Path, out: Path):
    """Voxels above 100 of a series, as SimpleITK reads it and writes it as NIfTI."""
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    sitk.WriteImage(sitk.Cast(reader.Execute() > 100, sitk.sitkUInt8), str(out))
    return nibabel.load(out)


@pytest.fixture(scope="module")
def archive(tmp_path_factory) -> Path:
    """A series on each grid, with a name to hide in its headers, and one enhanced file."""
    folder = tmp_path_factory.mktemp("archive")
    for name, affine in GRIDS.items():
        write_series(folder / name, make_series(VOLUME, affine, study=name, patient="SECRET-ID"))
    (folder / "enhanced").mkdir()
    made = make_enhanced(VOLUME, GRIDS["oblique"], order=[3, 0, 6, 1, 2, 5, 4], study="enhanced")
    (folder / "enhanced" / "a.dcm").write_bytes(to_bytes(made))
    (folder / "cine").mkdir()
    (folder / "cine" / "cine.dcm").write_bytes(to_bytes(make_instance(VOLUME.astype(np.uint8), study="cine")))
    return folder


@pytest.mark.parametrize("slice_axis", ["auto", "sagittal"])
def test_masks_lie_where_simpleitk_puts_their_series(archive, slice_axis, tmp_path):
    segment(archive, tmp_path / "tables", slice_axis)
    result = export(tmp_path / "tables", tmp_path / "masks")
    assert result.num_files == len(GRIDS) + 1
    for name, affine in GRIDS.items():
        (path,) = (tmp_path / "masks" / name).rglob("*.nii.gz")
        mask, expected = nibabel.load(path), mask_by_itk(archive / name, tmp_path / "itk.nii.gz")
        if name == "tilted":
            # ITK straightens the axes of a tilted gantry; here each voxel stays in its place.
            assert np.allclose(mask.affine, affine[:, [2, 1, 0, 3]], atol=1e-5)
        else:
            assert np.allclose(mask.affine, expected.affine, atol=1e-4)
        assert np.array_equal(np.asarray(mask.dataobj), np.asarray(expected.dataobj))
        assert b"SECRET" not in mask.to_bytes()
        assert b"Muster" not in mask.to_bytes()
    (path,) = (tmp_path / "masks" / "enhanced").rglob("*.nii.gz")
    mask, expected = nibabel.load(path), nibabel.load(next((tmp_path / "masks" / "oblique").rglob("*.nii.gz")))
    assert np.array_equal(np.asarray(mask.dataobj), np.asarray(expected.dataobj))
    assert np.allclose(mask.affine, expected.affine, atol=1e-5)
    assert [failure.error_type for failure in result.failures] == ["UnknownGridError"]


@pytest.mark.skipif("RAYSEGMENT_DATA" not in os.environ, reason="RAYSEGMENT_DATA names no folder of real scans")
def test_masks_of_a_real_study_lie_where_simpleitk_puts_them(tmp_path):
    study = Path(os.environ["RAYSEGMENT_DATA"], "dicom", "mr-study")
    segment(study, tmp_path / "tables")
    assert export(tmp_path / "tables", tmp_path / "masks").exit_code == EXIT_DONE
    for folder in study.iterdir():
        (path,) = (tmp_path / "masks" / folder.name).rglob("*.nii.gz")
        mask, expected = nibabel.load(path), mask_by_itk(folder, tmp_path / "itk.nii.gz")
        assert np.allclose(mask.affine, expected.affine, atol=1e-3)
        assert np.array_equal(np.asarray(mask.dataobj), np.asarray(expected.dataobj))
