"""Masks as NIfTI: where voxels are is the source's to the last digit, its texts stay behind."""

from __future__ import annotations

import gzip
import itertools
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK
from hypothesis import given, settings
from hypothesis import strategies as st

from raysegment.errors import DiskFullError, OutputError
from raysegment.store.writers import nifti
from raysegment.store.writers.nifti import adapt_header, make_header, write_volume

SECRET = b"Jane Doe 1970"
HEADERS = [nibabel.Nifti1Header, nibabel.Nifti2Header]
NEW_FIELDS = {"datatype", "bitpix", "vox_offset", "scl_slope", "scl_inter", "cal_max", "cal_min", "magic"} | {
    f"intent_{name}" for name in ("p1", "p2", "p3", "code")
}
TEXTS = ("descrip", "aux_file", "db_name", "intent_name", "data_type")


def oblique_affine(degrees: float = 25.0, spacing=(0.7, 1.3, 3.1), origin=(-71.3, 12.7, 1e3 / 7)) -> np.ndarray:
    turn = nibabel.eulerangles.euler2mat(*np.deg2rad([degrees, 10.0, -5.0]))
    return nibabel.affines.from_matvec(turn @ np.diag(spacing), origin)


def source_image(affine, shape=(5, 6, 7), *, kind=nibabel.Nifti1Header, endianness="<", dtype=np.float32):
    header = kind(endianness=endianness)
    header.set_data_dtype(dtype)
    header.set_xyzt_units("mm", "sec")
    for name in TEXTS:
        if name in header:
            header[name] = SECRET[: header[name].dtype.itemsize]
    header["cal_max"], header["toffset"], header["slice_code"], header["intent_code"] = 9.5, 3.25, 1, 5
    image_type = nibabel.Nifti1Image if kind is nibabel.Nifti1Header else nibabel.Nifti2Image
    image = image_type(np.zeros(shape, dtype), affine, header)
    image.set_sform(affine, code=1)
    image.set_qform(affine, code=4)
    image.header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", SECRET))
    return image


def head_of(path: Path) -> bytes:
    with gzip.open(path) as stream:
        return stream.read(540)


def write_pair(folder: Path, image, mask: np.ndarray) -> tuple[Path, Path]:
    source, target = folder / "source.nii.gz", folder / "deep" / "mask.nii.gz"
    image.to_filename(source)
    write_volume(target, mask, head_of(source))
    return source, target


@pytest.mark.parametrize("kind", HEADERS)
@pytest.mark.parametrize("endianness", ["<", ">"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_the_header_is_the_sources_but_for_what_values_mean(tmp_path, kind, endianness, dtype):
    mask = np.random.default_rng(0).integers(0, 200, (5, 6, 7)).astype(dtype)
    source, target = write_pair(tmp_path, source_image(oblique_affine(), kind=kind, endianness=endianness), mask)
    before, after = nibabel.load(source).header, nibabel.load(target)
    assert np.array_equal(np.asarray(after.dataobj), mask)
    assert after.header.get_data_dtype() == np.dtype(dtype).newbyteorder(endianness)
    assert after.header.endianness == endianness
    for name in before:
        if name not in NEW_FIELDS.union(TEXTS):
            assert before[name].tobytes() == after.header[name].tobytes(), name
    assert np.array_equal(nibabel.load(source).affine, after.affine)


@pytest.mark.parametrize("kind", HEADERS)
def test_no_text_of_the_source_is_copied(tmp_path, kind):
    _, target = write_pair(tmp_path, source_image(oblique_affine(), kind=kind), np.ones((5, 6, 7), np.uint8))
    content = gzip.decompress(target.read_bytes())
    assert SECRET[:4] not in content
    assert len(content) == {nibabel.Nifti1Header: 352, nibabel.Nifti2Header: 544}[kind] + 5 * 6 * 7
    assert not nibabel.load(target).header.extensions


def test_a_fourth_axis_of_channels_goes_and_one_of_size_one_stays(tmp_path):
    mask = np.ones((5, 6, 7), np.uint8)
    _, target = write_pair(tmp_path, source_image(oblique_affine(), (5, 6, 7, 3)), mask)
    assert nibabel.load(target).shape == (5, 6, 7)
    _, target = write_pair(tmp_path, source_image(oblique_affine(), (5, 6, 7, 1)), mask)
    assert nibabel.load(target).shape == (5, 6, 7, 1)
    _, target = write_pair(tmp_path, source_image(oblique_affine(), (5, 6)), mask[:, :, :1])
    assert nibabel.load(target).shape == (5, 6)


def test_the_same_mask_gives_the_same_bytes(tmp_path):
    mask = np.random.default_rng(0).integers(0, 3, (5, 6, 7)).astype(np.uint8)
    header = make_header(mask.shape, oblique_affine())
    for name in ("first.nii.gz", "second.nii.gz"):
        write_volume(tmp_path / name, mask, header)
    assert (tmp_path / "first.nii.gz").read_bytes() == (tmp_path / "second.nii.gz").read_bytes()
    assert (tmp_path / "first.nii.gz").read_bytes()[4:8] == bytes(4)


@settings(max_examples=25, deadline=None)
@given(
    degrees=st.floats(-180, 180),
    order=st.permutations(range(3)),
    signs=st.tuples(*[st.sampled_from((-1.0, 1.0))] * 3),
    spacing=st.tuples(*[st.floats(0.2, 9.0)] * 3),
)
def test_itk_and_nibabel_agree_on_where_each_voxel_is(tmp_path_factory, degrees, order, signs, spacing):
    folder = tmp_path_factory.mktemp("volume")
    affine = oblique_affine(degrees, spacing)
    affine[:3, :3] = affine[:3, order] * np.array(signs)
    mask = np.zeros((4, 5, 6), np.uint8)
    mask[1, 3, 2] = 7
    _, target = write_pair(folder, source_image(affine, mask.shape), mask)
    volume, image = SimpleITK.ReadImage(str(target)), nibabel.load(target)
    assert volume.GetPixel(1, 3, 2) == 7
    for index in itertools.product((0, 3), (0, 4), (0, 5)):
        in_ras = np.array([-1, -1, 1]) * volume.TransformIndexToPhysicalPoint(index)
        assert nibabel.affines.apply_affine(image.affine, index) == pytest.approx(in_ras, abs=2e-3)


def test_a_grid_without_source_gets_a_header_of_its_own(tmp_path):
    affine, mask = oblique_affine(), np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    write_volume(tmp_path / "mask.nii.gz", mask, make_header(mask.shape, affine))
    image = nibabel.load(tmp_path / "mask.nii.gz")
    assert image.affine == pytest.approx(affine, rel=1e-6)
    assert image.header.get_xyzt_units() == ("mm", "unknown")
    assert np.array_equal(SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(tmp_path / "mask.nii.gz"))), mask.T)


def test_large_masks_are_written_in_pieces(tmp_path, monkeypatch):
    monkeypatch.setattr(nifti, "BYTES_AT_ONCE", 50)
    mask = np.random.default_rng(1).integers(0, 3, (5, 6, 7)).astype(np.uint8)
    write_volume(tmp_path / "mask.nii.gz", np.flip(mask, 1), make_header(mask.shape, np.eye(4)))
    assert np.array_equal(np.asarray(nibabel.load(tmp_path / "mask.nii.gz").dataobj), np.flip(mask, 1))


def test_other_voxels_than_the_header_declares_are_a_mistake():
    with pytest.raises(ValueError, match="under a header"):
        adapt_header(make_header((2, 3, 4), np.eye(4)), np.zeros((2, 4, 3), np.uint8))
    with pytest.raises(ValueError, match="no NIfTI header"):
        adapt_header(b"", np.zeros((2, 4, 3), np.uint8))


def test_a_full_disk_and_a_refused_file_leave_nothing_half(tmp_path):
    mask = np.zeros((2, 3, 4), np.uint8)
    (tmp_path / "folder").mkdir()
    with pytest.raises(OutputError, match="cannot be written"):
        write_volume(tmp_path / "folder", mask, make_header(mask.shape, np.eye(4)))
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_no_space_left_is_told_as_such(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(nifti, "_write_slabs", fail)
    with pytest.raises(DiskFullError):
        write_volume(tmp_path / "mask.nii.gz", np.zeros((2, 3, 4), np.uint8), make_header((2, 3, 4), np.eye(4)))
    assert not list(tmp_path.iterdir())
