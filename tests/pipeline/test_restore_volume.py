"""A stored mask back on the axes of its source, whatever these are."""

from __future__ import annotations

import gzip
import io

import nibabel
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raysegment.archive.read import read_scan
from raysegment.errors import AccessError, SourceChangedError
from raysegment.pipeline.export import restore_volume
from raysegment.scan import ReadSettings, ScanEntry
from raysegment.store.masks import encode_mask

AXES = st.sampled_from(["axial", "coronal", "sagittal", "auto"])


def entry_of(folder, name="scan.nii", channels=()) -> ScanEntry:
    return ScanEntry(
        scan_id=name, patient_id=name, source=str(folder), reader="nifti", files=(name,), channel_names=channels
    )


def store(entry: ScanEntry, slice_axis):
    """The scan's first channel as if it were its mask: a row of the table, and the mask."""
    scan = read_scan(entry, ReadSettings(slice_axis=slice_axis))
    mask = np.ascontiguousarray(scan.pixels[..., 0])
    return encode_mask(entry.scan_id, mask, labels={"a": 1}, spacing_mm=scan.spacing_mm, affine=scan.affine), mask


def numbered(*shape: int) -> np.ndarray:
    return (np.arange(np.prod(shape)) % 251).astype(np.uint8).reshape(shape)


@settings(max_examples=60, deadline=None)
@given(
    angles=st.tuples(*[st.floats(-180, 180)] * 3),
    spacing=st.tuples(*[st.floats(0.3, 6)] * 3),
    mirror=st.booleans(),
    slice_axis=AXES,
    packed=st.booleans(),
)
def test_any_volume_comes_back_as_it_was_stored(tmp_path_factory, angles, spacing, mirror, slice_axis, packed):
    folder, name = tmp_path_factory.mktemp("volume"), "scan.nii.gz" if packed else "scan.nii"
    linear = nibabel.eulerangles.euler2mat(*np.deg2rad(angles)) @ np.diag(spacing)
    linear[:, 0] *= -1 if mirror else 1
    stored = numbered(3, 4, 5)
    image = nibabel.Nifti1Image(stored, nibabel.affines.from_matvec(linear, (9.5, -80.25, 1000 / 3)))
    image.to_filename(folder / name)
    entry = entry_of(folder, name)
    volume = restore_volume(*store(entry, slice_axis), entry, slice_axis)
    assert np.array_equal(volume.planes[0], stored)
    opened = gzip.open if packed else open
    with opened(folder / name, "rb") as stream:
        assert volume.header[:348] == stream.read(348)


@pytest.mark.parametrize("slice_axis", ["axial", "coronal", "sagittal"])
def test_a_volume_that_does_not_say_where_it_lies_comes_back_all_the_same(tmp_path, slice_axis):
    image = nibabel.Nifti1Image(numbered(3, 4, 5), None)
    image.header.set_zooms((1, 2, 3))
    image.to_filename(tmp_path / "scan.nii")
    row, mask = store(entry_of(tmp_path), slice_axis)
    assert row["affine"] is None
    assert np.array_equal(restore_volume(row, mask, entry_of(tmp_path), slice_axis).planes[0], numbered(3, 4, 5))


def test_the_mask_of_four_channels_in_one_file_has_three_axes(tmp_path):
    nibabel.Nifti1Image(numbered(3, 4, 5, 2), np.diag([-1, 2, 3, 1])).to_filename(tmp_path / "scan.nii")
    entry = entry_of(tmp_path, channels=("flair", "t1"))
    volume = restore_volume(*store(entry, "axial"), entry, "axial")
    assert np.array_equal(volume.planes[0], numbered(3, 4, 5, 2)[..., 0])


@pytest.mark.parametrize(("affine", "shape"), [(np.diag([2, 1, 1, 1]), (3, 4, 5)), (np.eye(4), (4, 3, 5))])
def test_a_source_on_another_grid_is_refused(tmp_path, affine, shape):
    nibabel.Nifti1Image(numbered(3, 4, 5), np.eye(4)).to_filename(tmp_path / "scan.nii")
    row, mask = store(entry_of(tmp_path), "axial")
    nibabel.Nifti1Image(numbered(*shape), affine).to_filename(tmp_path / "scan.nii")
    with pytest.raises(SourceChangedError, match="another grid"):
        restore_volume(row, mask, entry_of(tmp_path), "axial")


def test_a_source_that_is_gone_or_has_become_slices_is_refused(tmp_path):
    nibabel.Nifti1Image(numbered(3, 4, 5), np.eye(4)).to_filename(tmp_path / "scan.nii")
    entry = entry_of(tmp_path)
    row, mask = store(entry, "axial")
    (tmp_path / "scan.nii").unlink()
    with pytest.raises(AccessError, match="No such file"):
        restore_volume(row, mask, entry, "axial")
    with pytest.raises(SourceChangedError, match="no longer in the archive"):
        restore_volume(row, mask, None, "axial")


def test_an_affine_of_the_tables_places_slices_that_have_no_nifti_file(tmp_path):
    affine = np.array([[0, 0, -0.5, 3], [0, -0.7, 0, 4], [5, 0, 0, 6], [0, 0, 0, 1.0]])
    row = encode_mask("a", numbered(2, 3, 4), labels={"a": 1}, spacing_mm=(5, 0.7, 0.5), affine=affine)
    volume = restore_volume(row, numbered(2, 3, 4), None, None)
    assert volume.planes[0].shape == (4, 3, 2)
    header = nibabel.Nifti1Header.from_fileobj(io.BytesIO(volume.header))
    assert header.get_best_affine() == pytest.approx(affine[:, [2, 1, 0, 3]], rel=1e-6)
