"""DICOM series become volumes, voxel by voxel as ITK reads them, whatever their files are called."""

from __future__ import annotations

import os
import shutil
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from dicom_made import AXIAL, change, make_enhanced, make_instance, make_series, to_bytes, write_series
from volumes_made import make_affine, restack, write_nifti

from raysegment.archive.formats import dicom
from raysegment.archive.manifest import entries, read_manifest
from raysegment.archive.orientation import find_orientation
from raysegment.archive.read import read_scan
from raysegment.archive.reference import read_reference
from raysegment.errors import (
    AffineError,
    ChannelMismatchError,
    DuplicateSliceError,
    MissingSliceError,
    OversizedScanError,
    SliceMismatchError,
    TruncatedFileError,
    UnreadableFileError,
    UsageError,
)
from raysegment.scan import ReadSettings, ScanEntry

VOLUME = np.random.default_rng(0).integers(-900, 3000, (7, 5, 6)).astype(np.int16)

TURNS = {
    "axial": AXIAL,
    "sagittal": np.array([[-4, 0, 0, 9], [0, 0, -1, 3], [0, -2, 0, 7], [0, 0, 0, 1]], float),
    "coronal": np.array([[0, 0, -1, 9], [-4, 0, 0, 3], [0, -2, 0, 7], [0, 0, 0, 1]], float),
    "feet up": np.array([[0, 0, 1, 9], [0, -2, 0, 3], [-4, 0, 0, 7], [0, 0, 0, 1]], float),
    "rows upwards": np.array([[0, 0, -1, 9], [4, 0, 0, 3], [0, 2, 0, 7], [0, 0, 0, 1]], float),
    "oblique": make_affine((3, 2, 1), (20, -35, 80)),
    "oblique, reversed": make_affine((3, 2, 1), (170, 25, -100)) @ np.diag([-1, -1, 1, 1]),
}


def entry_of(folder, names=(), channels=(), reader="dicom"):
    return ScanEntry(
        scan_id="scan",
        patient_id="p",
        source=str(folder),
        reader=reader,
        files=tuple(names) or tuple(sorted(path.name for path in Path(folder).iterdir())),
        channel_names=tuple(channels),
    )


def read_with_itk(folder):
    """ITK's array, (slices, rows, columns), and its affine of them to RAS+ millimetres."""
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    image = reader.Execute()
    affine = np.eye(4)
    affine[:3, :3] = np.array(image.GetDirection()).reshape(3, 3) * image.GetSpacing()
    affine[:3, 3] = image.GetOrigin()
    return sitk.GetArrayFromImage(image), (np.diag([-1, -1, 1, 1]) @ affine)[:, [2, 1, 0, 3]]


def assert_same_as_itk(scan, folder):
    """Each voxel of ours lies on one of ITK's that has its value."""
    array, affine = read_with_itk(folder)
    ours = np.stack([*np.indices(scan.grid).reshape(3, -1), np.ones(scan.pixels[..., 0].size)])
    places = (np.linalg.inv(affine) @ scan.affine @ ours)[:3]
    indices = np.rint(places).astype(int)
    assert np.abs(places - indices).max() < 1e-3
    assert np.array_equal(array[tuple(indices)], scan.pixels[..., 0].ravel())
    assert array.size == scan.pixels.size


@pytest.mark.parametrize("turn", TURNS)
def test_every_voxel_lies_where_itk_puts_it(turn, tmp_path):
    affine = TURNS[turn].copy()
    to_lps = np.array([-1, -1, 1])
    if np.cross(affine[:3, 2] * to_lps, affine[:3, 1] * to_lps) @ (affine[:3, 0] * to_lps) < 0:
        affine[:3, 0] *= -1
    write_series(tmp_path, make_series(VOLUME, affine, modality="CT", RescaleSlope="2", RescaleIntercept="-7"))
    for slice_axis in ("auto", "axial", "coronal", "sagittal"):
        scan = read_scan(entry_of(tmp_path), ReadSettings(slice_axis=slice_axis))
        assert_same_as_itk(scan, tmp_path)
    turned = find_orientation(affine, VOLUME.shape, "sagittal")
    assert np.array_equal(scan.pixels[..., 0], turned.apply(VOLUME.astype(int) * 2 - 7))
    assert np.allclose(scan.affine, turned.affine(affine, VOLUME.shape), atol=1e-6)


DATA = pytest.mark.skipif("RAYSEGMENT_DATA" not in os.environ, reason="needs RAYSEGMENT_DATA with real scans")
REAL = (
    "ct-17slice",
    "ct-3slice",
    "mr-crop/13_HCropVolume",
    "mr-study/11_HCropVolume",
    "mr-study/11-T1post-18670",
    "mr-study/26401-T1prereg-52906",
    "mr-study/36468-FLAIRreg-58706",
    "mr-study/37830-T2reg-78532",
)


@DATA
@pytest.mark.parametrize("name", REAL)
def test_every_voxel_of_a_real_series_lies_where_itk_puts_it(name, tmp_path):
    source = Path(os.environ["RAYSEGMENT_DATA"], "dicom", name)
    files = sorted(path.name for path in source.iterdir())
    for number, file in enumerate(np.random.default_rng(1).permutation(files)):
        shutil.copyfile(source / file, tmp_path / f"{number}.dcm")
    assert_same_as_itk(read_scan(entry_of(tmp_path)), source)


@DATA
def test_four_real_series_are_four_channels_on_one_grid():
    source = Path(os.environ["RAYSEGMENT_DATA"], "dicom", "mr-study")
    folders = ("11-T1post-18670", "26401-T1prereg-52906", "36468-FLAIRreg-58706", "37830-T2reg-78532")
    names = [f"{folder}/{file}" for folder in folders for file in sorted(os.listdir(source / folder))]
    scan = read_scan(entry_of(source, names, ("post", "pre", "flair", "t2")))
    assert scan.pixels.shape == (22, 320, 280, 4)
    for channel, folder in enumerate(folders):
        alone = read_scan(entry_of(source / folder))
        assert np.array_equal(scan.pixels[..., channel], alone.pixels[..., 0])


def test_a_manifest_may_name_files_in_any_order_and_several_channels(tmp_path):
    first = write_series(tmp_path / "a", make_series(VOLUME, series="a"), seed=1)
    second = write_series(tmp_path / "b", make_series(VOLUME // 2, series="b"), seed=2)
    files = [f'""a/{name}""' for name in first] + [f'""b/{name}""' for name in second]
    (tmp_path / "m.csv").write_text(
        f'scan_id,files,channel_names\nx,"[{",".join(files)}]","[""t1"",""t2""]"\n', encoding="utf-8"
    )
    (entry,) = entries(read_manifest(str(tmp_path / "m.csv")))
    scan = read_scan(entry)
    assert entry.reader == "dicom"
    assert np.array_equal(scan.pixels, np.stack([VOLUME, VOLUME // 2], -1))
    assert np.allclose(scan.affine, AXIAL)


def test_a_manifest_with_uneven_channels_is_refused(tmp_path):
    (tmp_path / "m.csv").write_text(
        'scan_id,files,channel_names\nx,"[""a.dcm"",""b.dcm"",""c.dcm""]","[""t1"",""t2""]"\n', encoding="utf-8"
    )
    with pytest.raises(UsageError, match="3 files for the channels t1, t2"):
        read_manifest(str(tmp_path / "m.csv"))


@pytest.mark.parametrize("share", [(), ("orientation", "measures", "rescale")], ids=["of each frame", "shared"])
def test_one_enhanced_file_is_the_same_as_many(share, tmp_path):
    made = make_enhanced(VOLUME, order=[3, 1, 0, 2, 6, 5, 4], share=share, RescaleSlope=3, RescaleIntercept=1)
    (tmp_path / "all").write_bytes(to_bytes(made))
    scan = read_scan(entry_of(tmp_path))
    assert np.array_equal(scan.pixels[..., 0], VOLUME.astype(np.int32) * 3 + 1)
    assert np.allclose(scan.affine, AXIAL)


def test_each_frame_of_an_enhanced_file_may_be_scaled_its_own_way(tmp_path):
    slopes = np.arange(1, 8) / 4
    made = make_enhanced(VOLUME, order=[6, 5, 4, 3, 2, 1, 0], RescaleSlope=slopes.tolist(), RescaleIntercept=-1)
    (tmp_path / "all.dcm").write_bytes(to_bytes(made))
    scan = read_scan(entry_of(tmp_path))
    assert scan.pixels.dtype == np.float32
    assert np.array_equal(scan.pixels[..., 0], (VOLUME * slopes[:, None, None] - 1).astype(np.float32))


def test_slices_of_differently_scaled_files_share_a_type_that_holds_them(tmp_path):
    made = make_series(VOLUME.astype(np.uint16) % 4096)
    for index, instance in enumerate(made):
        change(instance, BitsStored=12, HighBit=11, RescaleSlope=str(1 + index / 8), RescaleIntercept="0")
    write_series(tmp_path, made)
    scan = read_scan(entry_of(tmp_path))
    expected = (VOLUME.astype(np.uint16) % 4096) * (1 + np.arange(7) / 8)[:, None, None]
    assert scan.pixels.dtype == np.float32
    assert np.allclose(scan.pixels[..., 0], expected)


def test_frames_without_a_place_are_slices_as_they_come(tmp_path):
    cine = np.arange(4 * 5 * 6 * 3, dtype=np.uint8).reshape(4, 5, 6, 3)
    (tmp_path / "cine").write_bytes(to_bytes(make_instance(cine)))
    scan = read_scan(entry_of(tmp_path))
    assert np.array_equal(scan.pixels, cine)
    assert scan.affine is None
    assert scan.spacing_mm is None


def test_a_reader_is_found_by_the_first_bytes(tmp_path):
    write_series(tmp_path, make_series(VOLUME), names=[f"1.2.840.{number}" for number in range(7)])
    assert read_scan(entry_of(tmp_path, reader="")).grid == VOLUME.shape


def test_a_header_alone_tells_size_and_place(tmp_path):
    path = tmp_path / "a.dcm"
    path.write_bytes(to_bytes(make_enhanced(VOLUME, order=[1, 0, 2, 3, 4, 5, 6])))
    with path.open("rb") as stream:
        header = dicom.read_header(stream, "a.dcm")
    assert (header.slices, header.rows, header.columns, header.channels) == (7, 5, 6, 1)
    assert header.spacing_mm == (3, 2, 1)
    assert np.allclose(header.affine, AXIAL)


def test_a_series_takes_little_more_memory_than_its_pixels(tmp_path):
    volume = np.arange(60 * 128 * 128, dtype=np.int16).reshape(60, 128, 128)
    write_series(tmp_path, make_series(volume))
    entry = entry_of(tmp_path)
    read_scan(entry)
    tracemalloc.start()
    scan = read_scan(entry)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert np.array_equal(scan.pixels[..., 0], volume)
    assert peak < 1.3 * volume.nbytes


@pytest.mark.parametrize("kind", ["nifti", "dicom"])
@pytest.mark.parametrize("slice_axis", ["auto", "sagittal"])
def test_a_reference_may_be_a_volume_of_another_format_or_a_series(kind, slice_axis, tmp_path):
    drawn = (VOLUME > 1000).astype(np.uint8)
    scan_files = [f"scan/{name}" for name in write_series(tmp_path / "scan", make_series(VOLUME))]
    if kind == "nifti":
        stored, affine = restack(drawn, AXIAL, (2, 0, 1), (True, False, True))
        write_nifti(tmp_path / "mask.nii.gz", stored, affine)
        references = ["mask.nii.gz"]
    else:
        made = make_series(drawn, series="mask")
        references = [f"mask/{name}" for name in write_series(tmp_path / "mask", made, seed=4)]
    entry = replace(entry_of(tmp_path, scan_files), reference_files=tuple(references))
    settings = ReadSettings(slice_axis=slice_axis)
    scan = read_scan(entry, settings)
    reference = read_reference(entry, scan.grid, settings, affine=scan.affine)
    assert np.array_equal(reference, scan.pixels[..., 0] > 1000)


def test_a_tilted_gantry_keeps_each_voxel_in_place_and_its_volume(tmp_path):
    tilted = AXIAL.copy()
    tilted[1, 0] = 1.5
    write_series(tmp_path, make_series(VOLUME, tilted))
    scan = read_scan(entry_of(tmp_path))
    assert np.allclose(scan.affine, tilted)
    assert np.array_equal(scan.pixels[..., 0], VOLUME)
    assert np.prod(scan.spacing_mm) == pytest.approx(6)


def drop(made):
    del made[3]


def repeat(made):
    made.append(make_series(VOLUME, series="series", StudyID="2")[3])


def shrink(made):
    made[3] = make_series(VOLUME[:, :4])[3]


def colour(made):
    made[3] = change(make_instance(np.zeros((5, 6, 3), np.uint8)), ImagePositionPatient=["0", "0", "0"])


def mix(made):
    made[3] = make_series(VOLUME, series="other")[3]


def widen(made):
    change(made[3], PixelSpacing=["2", "1.1"])


def lose(made):
    change(made[3], ImagePositionPatient=None)


def turn(made):
    change(made[3], ImageOrientationPatient=["0", "1", "0", "1", "0", "0"])


def report(made):
    change(made[3], SOPClassUID="1.2.840.10008.5.1.4.1.1.88.11")


def overstate(made):
    change(made[3], NumberOfFrames=str(2**31))


HOSTILE = {
    drop: (MissingSliceError, "1 of its slices is missing"),
    repeat: (DuplicateSliceError, "up to 2 slices at one position, at 1 of 7"),
    shrink: (SliceMismatchError, r"is \(4, 6\), .* is \(5, 6\)"),
    colour: (ChannelMismatchError, "has 3 channels, .* has 1"),
    mix: (SliceMismatchError, "are of different series"),
    widen: (SliceMismatchError, "pixels of different sizes"),
    lose: (SliceMismatchError, "6 of 7 files of the series say where"),
    turn: (SliceMismatchError, "look in another direction"),
    report: (UnreadableFileError, "is a report; expected an image"),
    overstate: (OversizedScanError, "2147483648 frames"),
}


@pytest.mark.parametrize("damage", HOSTILE, ids=lambda damage: damage.__name__)
def test_a_series_that_is_no_volume_is_told_why(damage, tmp_path):
    error, words = HOSTILE[damage]
    made = make_series(VOLUME)
    damage(made)
    names = write_series(tmp_path, made, names=[f"{number}.dcm" for number in range(len(made))])
    with pytest.raises(error, match=words) as caught:
        read_scan(entry_of(tmp_path, names))
    assert ".dcm" in str(caught.value)
    assert "Muster" not in str(caught.value)


def test_declared_sizes_are_checked_before_anything_is_decoded(tmp_path):
    write_series(tmp_path, make_series(VOLUME))
    with pytest.raises(OversizedScanError, match="declares a scan of"):
        read_scan(entry_of(tmp_path), max_bytes=VOLUME.nbytes - 1)


def test_a_file_that_ends_too_soon_is_told(tmp_path):
    (name, *_) = write_series(tmp_path, make_series(VOLUME))
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:-2])
    with pytest.raises(TruncatedFileError, match="its pixels end at byte"):
        read_scan(entry_of(tmp_path))


def test_channels_that_say_not_where_they_lie_are_not_joined(tmp_path):
    names = write_series(tmp_path, [make_instance(VOLUME[0], series=name) for name in "ab"])
    with pytest.raises(AffineError, match="cannot be laid on other channels"):
        read_scan(entry_of(tmp_path, names, ("a", "b")))
