"""Volumes as nibabel and SimpleITK read them, whichever way they are stored."""

from __future__ import annotations

from dataclasses import replace
from itertools import permutations, product
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
import tifffile
from volumes_made import entry_of_files, make_affine, restack, write_nifti

from raysegment.archive.index import find_scans
from raysegment.archive.read import read_scan
from raysegment.archive.reference import read_reference
from raysegment.errors import ChannelMismatchError, GridMismatchError, MissingChannelError, UnreadableReferenceError
from raysegment.scan import Labels, ReadSettings

SHAPE = (7, 8, 9)
DTYPES = ("uint8", "int8", "int16", "uint16", "int32", "uint32", "int64", "uint64", "float32", "float64")
OBLIQUE = make_affine((0.9, 1.1, 4), (8, -15, 20))


def make_volume(dtype: str = "int16", shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    return (np.random.default_rng(1).random(shape) * 100).astype(dtype)


def check_with_itk(path: Path, scan) -> None:
    """Each voxel has the value that SimpleITK finds at its place; SimpleITK's world is LPS."""
    image = sitk.ReadImage(str(path))
    for index in np.random.default_rng(0).integers(0, scan.grid, (60, 3)):
        x, y, z, _ = scan.affine @ [*index, 1]
        place = image.TransformPhysicalPointToContinuousIndex((-x, -y, z))
        stored = [round(value) for value in place]
        np.testing.assert_allclose(place, stored, atol=1e-3)
        assert image[stored] == pytest.approx(float(scan.pixels[(*index, 0)]))


@pytest.mark.parametrize("order", list(permutations(range(3))))
@pytest.mark.parametrize("flips", [(False, False, False), (True, False, False), (False, True, True)])
@pytest.mark.parametrize("slice_axis", ["auto", "coronal"])
def test_voxels_lie_where_simpleitk_finds_them(tmp_path, order, flips, slice_axis):
    volume, affine = restack(make_volume(), OBLIQUE, order, flips)
    path = write_nifti(tmp_path / "a.nii.gz", volume, affine)
    scan = read_scan(entry_of_files(tmp_path, "a.nii.gz"), ReadSettings(slice_axis=slice_axis))
    check_with_itk(path, scan)
    assert scan.spacing_mm == pytest.approx((4, 1.1, 0.9) if slice_axis == "auto" else (1.1, 4, 0.9), rel=1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
@pytest.mark.parametrize("version", [1, 2])
def test_values_and_types_are_those_of_the_file(tmp_path, dtype, name, version):
    volume = make_volume(dtype)
    kind = nibabel.Nifti1Image if version == 1 else nibabel.Nifti2Image
    nibabel.save(kind(volume, np.diag([-1, -1, 1, 1]), dtype=volume.dtype), tmp_path / name)
    scan = read_scan(entry_of_files(tmp_path, name))
    assert scan.pixels.dtype == dtype
    np.testing.assert_array_equal(scan.pixels[..., 0], volume.transpose(2, 1, 0))


@pytest.mark.parametrize("dtype", ["int16", "float32", "uint8", "float64"])
@pytest.mark.parametrize("version", [1, 2])
def test_big_endian_files_are_the_same(tmp_path, dtype, version):
    volume = make_volume(dtype)
    kind = nibabel.Nifti1Header if version == 1 else nibabel.Nifti2Header
    header = kind(endianness=">")
    header.set_data_dtype(np.dtype(dtype).newbyteorder(">"))
    image = (nibabel.Nifti1Image if version == 1 else nibabel.Nifti2Image)(volume, OBLIQUE, header)
    (tmp_path / "a.nii").write_bytes(image.to_bytes())
    assert (tmp_path / "a.nii").read_bytes()[0] == 0
    scan = read_scan(entry_of_files(tmp_path, "a.nii"))
    assert scan.pixels.dtype == np.dtype(dtype)
    if version == 1:
        check_with_itk(tmp_path / "a.nii", scan)  # SimpleITK reads no big-endian NIfTI-2.
    (tmp_path / "b.nii").write_bytes(type(image)(volume, OBLIQUE).to_bytes())
    np.testing.assert_array_equal(read_scan(entry_of_files(tmp_path, "b.nii")).pixels, scan.pixels)


@pytest.mark.parametrize("dtype", ["int16", "uint8", "int32", "float32", "float64"])
@pytest.mark.parametrize(("slope", "intercept"), [(2.5, 0), (1, -1024), (0.001, 7)])
def test_slope_and_intercept_are_applied_in_single_precision(tmp_path, dtype, slope, intercept):
    volume = make_volume(dtype)
    path = write_nifti(tmp_path / "a.nii.gz", volume, OBLIQUE, slope=slope, intercept=intercept)
    scan = read_scan(entry_of_files(tmp_path, "a.nii.gz"))
    assert scan.pixels.dtype == np.float32
    expected = nibabel.load(path).get_fdata(dtype=np.float64)
    assert abs(expected - volume).max() > 1
    np.testing.assert_allclose(np.sort(scan.pixels.ravel()), np.sort(expected.ravel()), rtol=1e-5, atol=1e-4)
    check_with_itk(path, scan)


@pytest.mark.parametrize("slope", [0, np.nan, np.inf])
def test_a_slope_that_says_nothing_leaves_values_as_stored(tmp_path, slope):
    write_nifti(tmp_path / "a.nii.gz", make_volume(), OBLIQUE, slope=slope, intercept=3)
    assert read_scan(entry_of_files(tmp_path, "a.nii.gz")).pixels.dtype == np.int16


def test_qform_counts_where_there_is_no_sform(tmp_path):
    image = nibabel.Nifti1Image(make_volume(), OBLIQUE)
    image.set_sform(None, 0)
    image.set_qform(OBLIQUE, 1)
    nibabel.save(image, tmp_path / "a.nii")
    scan = read_scan(entry_of_files(tmp_path, "a.nii"))
    check_with_itk(tmp_path / "a.nii", scan)
    # A left-handed grid needs the quaternion's sign (pixdim[0]).
    volume, affine = restack(make_volume(), OBLIQUE, (0, 1, 2), (True, False, False))
    image = nibabel.Nifti1Image(volume, affine)
    image.set_sform(None, 0)
    image.set_qform(affine, 1)
    nibabel.save(image, tmp_path / "b.nii")
    other = read_scan(entry_of_files(tmp_path, "b.nii"))
    np.testing.assert_array_equal(other.pixels, scan.pixels)
    np.testing.assert_allclose(other.affine, scan.affine, atol=1e-4)


def test_sform_counts_before_qform_and_a_disagreement_is_said(tmp_path):
    image = nibabel.Nifti1Image(make_volume(), OBLIQUE)
    image.set_sform(OBLIQUE, 1)
    image.set_qform(make_affine((0.9, 1.1, 4)), 1)
    nibabel.save(image, tmp_path / "a.nii.gz")
    scan = read_scan(entry_of_files(tmp_path, "a.nii.gz"), ReadSettings(slice_axis="axial"))
    np.testing.assert_allclose(scan.affine[:3, 0], OBLIQUE[:3, 2], atol=1e-5)
    (problem,) = find_scans(str(tmp_path))["problem"].to_pylist()
    assert "sform and qform" in problem


def test_without_orientation_there_is_spacing_but_no_affine(tmp_path):
    header = nibabel.Nifti1Header()
    header.set_data_shape(SHAPE)
    header.set_zooms((0.5, 0.6, 3))
    volume = make_volume("float32")
    data = bytearray(header.binaryblock + b"\0" * 4 + volume.tobytes(order="F"))
    (tmp_path / "a.nii").write_bytes(data)
    scan = read_scan(entry_of_files(tmp_path, "a.nii"))
    assert scan.affine is None
    assert scan.spacing_mm == pytest.approx((3, 0.6, 0.5))
    np.testing.assert_array_equal(scan.pixels[..., 0], volume.transpose(2, 1, 0)[:, ::-1, ::-1])


def test_metres_and_micrometres_become_millimetres(tmp_path):
    image = nibabel.Nifti1Image(make_volume(), make_affine((0.001, 0.001, 0.003), origin=(0.01, 0.02, 0.03)))
    image.header.set_xyzt_units("meter")
    nibabel.save(image, tmp_path / "a.nii.gz")
    scan = read_scan(entry_of_files(tmp_path, "a.nii.gz"))
    assert scan.spacing_mm == pytest.approx((3, 1, 1))


def test_axes_of_one_behind_the_third_are_dropped_and_an_image_is_one_slice(tmp_path):
    write_nifti(tmp_path / "a.nii.gz", make_volume(shape=(4, 5, 6, 1, 1)), np.eye(4))
    assert read_scan(entry_of_files(tmp_path, "a.nii.gz")).pixels.shape == (6, 5, 4, 1)
    write_nifti(tmp_path / "b.nii.gz", make_volume(shape=(4, 5)), np.eye(4))
    assert read_scan(entry_of_files(tmp_path, "b.nii.gz")).pixels.shape == (1, 5, 4, 1)


def test_a_fourth_axis_is_channels_only_where_they_are_named(tmp_path):
    volume = make_volume(shape=(4, 5, 6, 2))
    write_nifti(tmp_path / "a.nii.gz", volume, np.eye(4))
    with pytest.raises(ChannelMismatchError, match=r"a\.nii\.gz has four dimensions; its 2 volumes.*--channel"):
        read_scan(entry_of_files(tmp_path, "a.nii.gz"))
    (problem,) = find_scans(str(tmp_path))["problem"].to_pylist()
    assert "a.nii.gz has four dimensions; its 2 volumes" in problem
    with pytest.raises(ChannelMismatchError, match="named are the channels a, b, c"):
        read_scan(entry_of_files(tmp_path, "a.nii.gz", channels=("a", "b", "c")))
    scan = read_scan(entry_of_files(tmp_path, "a.nii.gz", channels=("flair", "t1")))
    np.testing.assert_array_equal(scan.pixels, volume[::-1, ::-1].transpose(2, 1, 0, 3))


def test_files_of_one_channel_each_become_one_scan(tmp_path):
    flair, t1 = make_volume("int16"), make_volume("float32") + 0.5
    write_nifti(tmp_path / "flair.nii.gz", flair, OBLIQUE)
    write_nifti(tmp_path / "t1.nii", *restack(t1, OBLIQUE, (2, 0, 1), (True, False, True)))
    scan = read_scan(entry_of_files(tmp_path, "flair.nii.gz", "t1.nii", channels=("flair", "t1")))
    alone = [read_scan(entry_of_files(tmp_path, name)) for name in ("flair.nii.gz", "t1.nii")]
    assert scan.pixels.dtype == np.float32
    np.testing.assert_array_equal(scan.pixels, np.concatenate([part.pixels for part in alone], axis=-1))
    np.testing.assert_allclose(scan.affine, alone[0].affine)


def test_a_channel_without_a_file_is_named(tmp_path):
    write_nifti(tmp_path / "flair.nii.gz", make_volume(), OBLIQUE)
    with pytest.raises(MissingChannelError, match="scan has no file of channel t1ce"):
        read_scan(entry_of_files(tmp_path, "flair.nii.gz", "", channels=("flair", "t1ce")))


@pytest.mark.parametrize(
    "affine", [make_affine((1, 1, 2), origin=(0, 0, 1.5)), make_affine((1, 1, 2.1), origin=(0, 0, 0))]
)
def test_a_channel_of_another_grid_is_refused(tmp_path, affine):
    write_nifti(tmp_path / "a.nii.gz", make_volume(), make_affine((1, 1, 2), origin=(0, 0, 0)))
    write_nifti(tmp_path / "b.nii.gz", make_volume(), affine)
    with pytest.raises(GridMismatchError, match=r"b\.nii\.gz lies on another grid.*--resample-channels"):
        read_scan(entry_of_files(tmp_path, "a.nii.gz", "b.nii.gz", channels=("a", "b")))


def test_a_channel_of_another_grid_is_resampled_where_asked_for(tmp_path):
    volume = np.full((10, 10, 10), -3.0, np.float32)
    volume[3:7, 3:7, 3:7] = np.random.default_rng(0).random((4, 4, 4)) * 10
    write_nifti(tmp_path / "a.nii.gz", np.zeros((24, 22, 20), np.float32), make_affine((0.7, 0.6, 0.9), (0, 10, 20)))
    write_nifti(tmp_path / "b.nii.gz", volume, make_affine((1, 1.1, 1.2), (5, 0, 0), (-18, 5, 31)))
    entry = entry_of_files(tmp_path, "a.nii.gz", "b.nii.gz", channels=("a", "b"))
    scan = read_scan(entry, ReadSettings(resample_channels=True, slice_axis="axial"))
    target, moving = (sitk.ReadImage(str(tmp_path / name)) for name in ("a.nii.gz", "b.nii.gz"))
    expected = sitk.Resample(moving, target, sitk.Transform(), sitk.sitkLinear, -3.0)
    stored = scan.affine @ np.array([5, 7, 8, 1.0])
    place = target.TransformPhysicalPointToIndex((-stored[0], -stored[1], stored[2]))
    assert scan.pixels[5, 7, 8, 1] == pytest.approx(expected[place], abs=1e-3)
    assert scan.pixels[..., 1].max() > 5
    difference = np.sort(scan.pixels[..., 1].ravel()) - np.sort(sitk.GetArrayFromImage(expected).ravel())
    assert np.abs(difference).max() < 1e-3


LABELS = ReadSettings(labels=Labels(("a", "b"), ((1,), (2,))))


def make_reference() -> np.ndarray:
    return np.random.default_rng(2).integers(0, 3, SHAPE).astype(np.uint8)


@pytest.mark.parametrize("order", list(permutations(range(3)))[1:])
def test_a_reference_in_another_order_of_axes_lies_on_the_same_grid(tmp_path, order):
    write_nifti(tmp_path / "a.nii.gz", make_volume(), OBLIQUE)
    write_nifti(tmp_path / "mask.nii.gz", make_reference(), OBLIQUE)
    entry = entry_of_files(tmp_path, "a.nii.gz", reference="mask.nii.gz")
    scan = read_scan(entry)
    expected = read_reference(entry, scan.grid, LABELS, affine=scan.affine)
    for flips in product([False, True], repeat=3):
        write_nifti(tmp_path / "mask.nii.gz", *restack(make_reference(), OBLIQUE, order, flips))
        found = read_reference(entry, scan.grid, LABELS, affine=scan.affine)
        np.testing.assert_array_equal(found, expected)
    assert set(np.unique(expected)) == {0, 1, 2}


def test_a_reference_of_another_grid_is_refused_or_resampled_by_the_nearest_voxel(tmp_path):
    write_nifti(tmp_path / "a.nii.gz", make_volume(shape=(20, 20, 20)), make_affine())
    write_nifti(tmp_path / "mask.nii.gz", make_reference(), make_affine((2, 2, 2), (0, 0, 9)))
    entry = entry_of_files(tmp_path, "a.nii.gz", reference="mask.nii.gz")
    scan = read_scan(entry)
    with pytest.raises(GridMismatchError, match=r"mask\.nii\.gz lies on another grid"):
        read_reference(entry, scan.grid, LABELS, affine=scan.affine)
    settings = ReadSettings(labels=LABELS.labels, resample_channels=True)
    found = read_reference(entry, scan.grid, settings, affine=scan.affine)
    images = [sitk.ReadImage(str(tmp_path / name)) for name in ("mask.nii.gz", "a.nii.gz")]
    expected = sitk.GetArrayFromImage(sitk.Resample(*images, sitk.Transform(), sitk.sitkNearestNeighbor))
    assert (found == expected[:, ::-1, ::-1]).mean() > 0.99
    assert set(np.unique(found)) == {0, 1, 2}


def test_a_reference_that_does_not_say_where_it_lies_is_refused(tmp_path):
    write_nifti(tmp_path / "a.nii.gz", make_volume(), OBLIQUE)
    image = nibabel.Nifti1Image(make_reference(), None)
    image.set_sform(None, 0)
    image.set_qform(None, 0)
    nibabel.save(image, tmp_path / "mask.nii.gz")
    entry = entry_of_files(tmp_path, "a.nii.gz", reference="mask.nii.gz")
    scan = read_scan(entry)
    with pytest.raises(GridMismatchError, match="does not say where it lies"):
        read_reference(entry, scan.grid, LABELS, affine=scan.affine)


def test_a_reference_that_lost_its_origin_is_taken_voxel_by_voxel_where_asked_for(tmp_path):
    placed, lost = make_affine((-1, -1, 1), origin=(0, 239, 0)), make_affine((-1, -1, 1), origin=(0, 0, 0))
    shape = (240, 240, 3)
    drawn = np.random.default_rng(0).integers(0, 3, shape).astype(np.uint8)
    write_nifti(tmp_path / "a.nii.gz", make_volume(shape=shape), placed)
    entry = entry_of_files(tmp_path, "a.nii.gz", reference="mask.nii.gz")
    scan = read_scan(entry)
    asked = ReadSettings(labels=LABELS.labels, resample_channels=True)
    write_nifti(tmp_path / "mask.nii.gz", drawn, placed)
    expected = read_reference(entry, scan.grid, LABELS, affine=scan.affine)
    write_nifti(tmp_path / "mask.nii.gz", drawn, lost)
    with pytest.raises(GridMismatchError, match=r"has the scan's shape, but lies 239 mm away.*lost origin"):
        read_reference(entry, scan.grid, LABELS, affine=scan.affine)
    np.testing.assert_array_equal(read_reference(entry, scan.grid, asked, affine=scan.affine), expected)
    write_nifti(tmp_path / "mask.nii.gz", drawn[:200], lost)
    with pytest.raises(GridMismatchError, match="outside of the scan; there is nothing to resample"):
        read_reference(entry, scan.grid, asked, affine=scan.affine)


def test_slices_are_no_reference_of_a_volume_nor_the_other_way_round(tmp_path):
    tifffile.imwrite(tmp_path / "mask.tif", np.zeros((9, 8, 7), np.uint8), photometric="minisblack")
    write_nifti(tmp_path / "a.nii.gz", make_volume(), make_affine())
    entry = entry_of_files(tmp_path, "a.nii.gz", reference="mask.tif")
    scan = read_scan(entry)
    assert scan.grid == (9, 8, 7)
    with pytest.raises(GridMismatchError, match=r"mask\.tif is made of slices, the scan is a volume"):
        read_reference(entry, scan.grid, affine=scan.affine)
    entry = replace(entry, reader="tiff", files=("mask.tif",), reference_files=("a.nii.gz",))
    with pytest.raises(GridMismatchError, match=r"a\.nii\.gz is a volume.*, the scan is made of slices"):
        read_reference(entry, scan.grid)


def test_a_reference_with_a_fourth_axis_is_refused(tmp_path):
    write_nifti(tmp_path / "a.nii.gz", make_volume(), OBLIQUE)
    write_nifti(tmp_path / "mask.nii.gz", np.zeros((*SHAPE, 2), np.uint8), OBLIQUE)
    entry = entry_of_files(tmp_path, "a.nii.gz", reference="mask.nii.gz")
    with pytest.raises(UnreadableReferenceError, match="four dimensions"):
        read_reference(entry, read_scan(entry).grid, LABELS, affine=OBLIQUE)


def test_two_volumes_are_no_reference(tmp_path):
    write_nifti(tmp_path / "a.nii.gz", make_volume(), OBLIQUE)
    write_nifti(tmp_path / "m1.nii.gz", make_reference(), OBLIQUE)
    write_nifti(tmp_path / "m2.nii.gz", make_reference(), OBLIQUE)
    entry = replace(entry_of_files(tmp_path, "a.nii.gz"), reference_files=("m1.nii.gz", "m2.nii.gz"))
    with pytest.raises(UnreadableReferenceError, match=r"m1\.nii\.gz is one of 2 volumes"):
        read_reference(entry, read_scan(entry).grid, LABELS, affine=OBLIQUE)
