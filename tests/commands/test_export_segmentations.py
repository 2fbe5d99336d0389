"""Masks as DICOM segmentations: on the images they came from, from tables and archive alone."""

from __future__ import annotations

import io
import logging
import os
import shutil
import subprocess
import warnings
import zipfile
from pathlib import Path

import highdicom
import numpy as np
import pydicom
import pytest
from dicom_made import change, make_enhanced, make_instance, make_series, make_uid, to_bytes, write_series
from volumes_made import make_affine, restack

from raysegment.archive.channels import order_channels
from raysegment.archive.index import find_scans, summarise
from raysegment.archive.manifest import entries
from raysegment.archive.read import read_scan
from raysegment.archive.reference import read_reference
from raysegment.commands import export_segmentations
from raysegment.commands.export import describe_export, export_masks
from raysegment.errors import (
    EXIT_DONE,
    EXIT_FAILED,
    EXIT_SOME_SCANS_FAILED,
    DiskFullError,
    MissingExtraError,
    UsageError,
)
from raysegment.imaging.volume_phantom import write_decathlon
from raysegment.options import ExportOptions, Finding
from raysegment.runs.record import write_record
from raysegment.scan import Labels, ReadSettings, Scan, ScanEntry, SliceAxis
from raysegment.store.masks import encode_mask
from raysegment.store.parts import ScanRows, stage_part
from raysegment.store.place import Place
from raysegment.store.publish import prepare_tables, publish_part

LABELS = Labels(("Anterior", "Posterior"), ((1,), (2,)), ((214, 39, 40), None), ("SCT:5366008", None))
SHAPE = (4, 5, 6)
ORIENTATIONS = {
    "axial": ((0, 1, 2), (False, False, False)),
    "reversed": ((0, 1, 2), (True, False, True)),
    "coronal": ((1, 0, 2), (False, True, False)),
    "sagittal": ((2, 0, 1), (True, False, False)),
}


@pytest.fixture(autouse=True)
def _key_file(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path_factory.mktemp("config")))


def draw(seed: int, shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 3, shape).astype(np.uint8)


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """Series in several orientations, obliquely, under shuffled names; the value of a pixel is that of its mask."""
    for number, (word, (order, flips)) in enumerate(ORIENTATIONS.items()):
        _, affine = restack(np.zeros(SHAPE), make_affine((1, 1.5, 2.5), (5, -8, 11)), order, flips)
        write_series(tmp_path / "archive" / word, make_series(draw(number), affine, series=word), seed=number)
    return tmp_path / "archive"


def publish(folder: Path, rows: list[ScanRows], labels: Labels = LABELS) -> None:
    place = Place(str(folder))
    prepare_tables(place)
    publish_part(place, "_staging/1", stage_part(place, "_staging/1", rows).name)
    versions = {"raysegment": "0.6.0"}
    write_record(place, {"labels": labels.as_plain, "versions": versions, "started": "2026-03-04T05:06:07Z"})


def row_of(entry: ScanEntry, scan: Scan, mask: np.ndarray, slice_axis: SliceAxis | None, model: str) -> ScanRows:
    columns = {"source": entry.source, "fingerprint": entry.fingerprint, "slice_axis": slice_axis, "model_id": model}
    filled = {"scan_id": entry.scan_id, "status": "ok", "num_slices": mask.shape[-3], "options_id": "o", **columns}
    values = LABELS.mask_values
    return ScanRows(
        filled,
        (),
        encode_mask(entry.scan_id, mask, labels=values, spacing_mm=scan.spacing_mm, affine=scan.affine),
    )


def segment(archive: Path, tables: Path, slice_axis: SliceAxis = "auto", model: str = "m", **how: object) -> None:
    """Tables whose masks are the scans themselves, as they are read."""
    rows = []
    for entry in entries(find_scans(str(archive), Finding(**how))):
        scan = read_scan(entry, ReadSettings(slice_axis=slice_axis))
        mask = (scan.pixels[..., 0] % 3).astype(np.uint8)
        rows.append(row_of(entry, scan, mask, None if scan.affine is None else slice_axis, model))
    publish(tables, rows)


def export(tmp_path: Path, **given: object):
    options = {"tables": str(tmp_path / "tables"), "out": str(tmp_path / "masks"), "to": "dicom-seg", **given}
    return export_masks(ExportOptions(**options))


def written(tmp_path: Path) -> dict[str, Path]:
    """Segmentations by the SeriesInstanceUID that they refer to."""
    paths = (tmp_path / "masks").rglob("*_pred.dcm")
    return {pydicom.dcmread(path).ReferencedSeriesSequence[0].SeriesInstanceUID: path for path in paths}


def check_voxels(path: Path, sources: list[pydicom.Dataset]) -> None:
    """Each image's voxels are those of the frames that refer to it, as highdicom reads them."""
    found = highdicom.seg.segread(path).get_pixels_by_source_instance(
        [source.SOPInstanceUID for source in sources], assert_missing_frames_are_empty=True
    )
    for source, frame in zip(sources, found, strict=True):
        for number, plane in enumerate(np.moveaxis(frame, -1, 0), 1):
            np.testing.assert_array_equal(plane, source.pixel_array % 3 == number)


def check_by_dciodvfy(path: Path) -> None:
    done = subprocess.run(["dciodvfy", str(path)], capture_output=True, text=True, timeout=60)
    assert [line for line in (done.stdout + done.stderr).splitlines() if line.startswith("Error")] == []


def read_sources(folder: Path) -> list[pydicom.Dataset]:
    return [pydicom.dcmread(path) for path in sorted(folder.glob("*.dcm"))]


@pytest.mark.parametrize("slice_axis", ["auto", "axial", "coronal", "sagittal"])
def test_masks_go_back_to_their_images_voxel_by_voxel(archive, tmp_path, slice_axis):
    segment(archive, tmp_path / "tables", slice_axis)
    result = export(tmp_path)
    assert (result.num_files, result.exit_code, result.failures) == (4, EXIT_DONE, ())
    for word in ORIENTATIONS:
        sources, path = read_sources(archive / word), written(tmp_path)[make_uid("study", word)]
        check_voxels(path, sources)
        made = pydicom.dcmread(path)
        referred = made.ReferencedSeriesSequence[0].ReferencedInstanceSequence
        assert {item.ReferencedSOPInstanceUID for item in referred} == {source.SOPInstanceUID for source in sources}
        assert made.FrameOfReferenceUID == sources[0].FrameOfReferenceUID
        assert (made.StudyInstanceUID, made.PatientID) == (sources[0].StudyInstanceUID, sources[0].PatientID)
        assert made.SegmentSequence[0].SegmentedPropertyTypeCodeSequence[0].CodeMeaning == "Hippocampus"
        assert made.SoftwareVersions == "0.6.0"
        assert made.ContentDate == "20260304"


@pytest.mark.skipif(shutil.which("dciodvfy") is None, reason="dciodvfy is not on the PATH")
def test_dciodvfy_finds_no_error(archive, tmp_path):
    segment(archive, tmp_path / "tables")
    export(tmp_path)
    for path in written(tmp_path).values():
        check_by_dciodvfy(path)


def test_read_as_a_reference_a_segmentation_is_the_mask_again_and_index_takes_none_of_ours(archive, tmp_path):
    segment(archive, tmp_path / "tables")
    export(tmp_path)
    for number, path in enumerate(written(tmp_path).values()):
        shutil.copy(path, archive / f"own{number}.dcm")
        person = pydicom.dcmread(path)
        person.ManufacturerModelName = "Pencil"
        person.save_as(archive / f"drawn{number}.dcm")
    table = find_scans(str(archive))
    assert summarise(table).scans == 4
    settings = ReadSettings(labels=LABELS)
    for entry in entries(table):
        scan = read_scan(entry, settings)
        assert len(entry.reference_files) == 1
        assert entry.reference_files[0].startswith("drawn")
        reference = read_reference(entry, scan.grid, settings, affine=scan.affine)
        np.testing.assert_array_equal(reference, scan.pixels[..., 0] % 3)


def test_labels_that_overlap_are_segments_of_one_file(archive, tmp_path):
    table = find_scans(str(archive))
    rows, masks = [], {}
    for number, entry in enumerate(entries(table)):
        scan = read_scan(entry)
        mask = np.random.default_rng(number).integers(0, 2, (2, *scan.grid)).astype(np.uint8)
        masks[entry.scan_id] = mask
        rows.append(row_of(entry, scan, mask, "auto", "m"))
    publish(tmp_path / "tables", rows)
    assert export(tmp_path).num_files == 4
    for entry in entries(table):
        volume = highdicom.seg.segread(tmp_path / "masks" / f"{entry.scan_id}_pred.dcm").get_volume()
        scan = read_scan(entry)
        for voxel in np.ndindex(scan.grid):
            place = np.linalg.inv(np.diag([-1.0, -1.0, 1.0, 1.0]) @ volume.affine) @ scan.affine @ [*voxel, 1]
            found = volume.array[tuple(np.rint(place[:3]).astype(int))]
            assert found.tolist() == masks[entry.scan_id][(slice(None), *voxel)].tolist()


def test_a_scan_of_channels_is_drawn_on_the_first_one_that_the_model_sees(tmp_path):
    affine, archive = make_affine((3, 1, 1), (4, 0, 9)), tmp_path / "archive"
    for number, word in enumerate(("FLAIR", "T1")):
        write_series(archive / word, make_series(draw(number), affine, series=word), seed=number)
    channels = ("flair=FLAIR", "t1=T1")
    (entry,) = entries(order_channels(find_scans(str(archive), Finding(channel=channels)), ("T1", "FLAIR")))
    scan = read_scan(entry)
    publish(tmp_path / "tables", [row_of(entry, scan, scan.pixels[..., 0], "auto", "m")])
    chosen = {"channel": list(channels), "source": str(archive)}
    write_record(Place(str(tmp_path / "tables")), {"chosen": chosen, "channel_names": ["T1", "FLAIR"]})
    assert export(tmp_path).num_files == 1
    ((series, path),) = written(tmp_path).items()
    assert series == make_uid("study", "T1")
    check_voxels(path, read_sources(archive / "T1"))


def test_images_in_a_zip_and_enhanced_ones_are_referred_to(tmp_path):
    folder = tmp_path / "archive"
    folder.mkdir()
    with zipfile.ZipFile(folder / "a.zip", "w") as packed:
        for number, image in enumerate(make_series(draw(0), series="zipped")):
            packed.writestr(f"IM/{number}", to_bytes(image))
    image = make_enhanced(draw(1), order=(2, 0, 3, 1), series="enhanced")
    (folder / "enhanced.dcm").write_bytes(to_bytes(image))
    segment(folder, tmp_path / "tables")
    assert export(tmp_path).num_files == 2
    found = written(tmp_path)
    check_voxels(found[make_uid("study", "zipped")], make_series(draw(0), series="zipped"))
    read = highdicom.seg.segread(found[make_uid("study", "enhanced")])
    frames = read.get_pixels_by_source_frame(
        image.SOPInstanceUID, [1, 2, 3, 4], combine_segments=True, assert_missing_frames_are_empty=True
    )
    np.testing.assert_array_equal(frames, image.pixel_array)


def test_a_single_image_without_a_place_has_a_segmentation_that_refers_to_it(tmp_path):
    folder = tmp_path / "archive"
    folder.mkdir()
    image = make_instance(draw(2)[0], series="single")
    (folder / "1.dcm").write_bytes(to_bytes(image))
    segment(folder, tmp_path / "tables")
    assert export(tmp_path).num_files == 1
    ((_, path),) = written(tmp_path).items()
    made = pydicom.dcmread(path)
    reference = made.ReferencedSeriesSequence[0].ReferencedInstanceSequence[0]
    assert reference.ReferencedSOPInstanceUID == image.SOPInstanceUID
    np.testing.assert_array_equal(made.pixel_array, np.stack([draw(2)[0] == 1, draw(2)[0] == 2]))
    made.ManufacturerModelName = "Pencil"
    made.save_as(folder / "drawn.dcm")
    (entry,) = entries(find_scans(str(folder)))
    settings = ReadSettings(labels=LABELS)
    np.testing.assert_array_equal(read_reference(entry, (1, 5, 6), settings), draw(2)[:1])


@pytest.mark.skipif("RAYSEGMENT_DATA" not in os.environ, reason="RAYSEGMENT_DATA names no folder of real scans")
def test_the_real_study_of_four_channels_has_one_segmentation_of_the_first(tmp_path):
    real = Path(os.environ["RAYSEGMENT_DATA"]) / "dicom" / "mr-study"
    channels = ("T1pre=T1pre_reg", "T1post=T1post", "FLAIR=FLAIR*", "T2=t2_reg")
    segment(real, tmp_path / "tables", channel=channels)
    chosen = {"channel": list(channels), "source": str(real)}
    write_record(Place(str(tmp_path / "tables")), {"chosen": chosen, "labels": LABELS.as_plain})
    assert export(tmp_path).num_files == 1
    ((_, path),) = written(tmp_path).items()
    check_voxels(path, read_sources(real / "26401-T1prereg-52906"))
    if shutil.which("dciodvfy"):
        check_by_dciodvfy(path)


@pytest.mark.skipif("RAYSEGMENT_DATA" not in os.environ, reason="RAYSEGMENT_DATA names no folder of real scans")
def test_real_series_get_their_masks_back(tmp_path):
    real = Path(os.environ["RAYSEGMENT_DATA"]) / "dicom"
    for word in ("ct-3slice", "mr-study/11-T1post-18670", "mr-study/11_HCropVolume", "mr-crop"):
        shutil.copytree(real / word, tmp_path / "archive" / word)
    segment(tmp_path / "archive", tmp_path / "tables")
    assert export(tmp_path).num_files == 4
    by_series: dict[str, list[pydicom.Dataset]] = {}
    for path in (tmp_path / "archive").rglob("*.dcm"):
        source = pydicom.dcmread(path)
        by_series.setdefault(source.SeriesInstanceUID, []).append(source)
    for series, path in written(tmp_path).items():
        slope = getattr(by_series[series][0], "RescaleSlope", 1)
        shift = int(getattr(by_series[series][0], "RescaleIntercept", 0)) % 3
        assert slope == 1
        assert shift == (2 if "ct" in str(path) else 0)
        found = highdicom.seg.segread(path).get_pixels_by_source_instance(
            [source.SOPInstanceUID for source in by_series[series]],
            assert_missing_frames_are_empty=True,
            combine_segments=True,
        )
        for source, plane in zip(by_series[series], found, strict=True):
            np.testing.assert_array_equal(plane, (source.pixel_array.astype(np.int64) + shift) % 3)


def test_a_scan_that_changed_or_went_is_refused_with_its_reason_and_the_others_are_written(archive, tmp_path):
    segment(archive, tmp_path / "tables")
    shutil.rmtree(archive / "axial")
    os.utime(next((archive / "coronal").iterdir()), (1, 1))
    result = export(tmp_path)
    assert (result.num_files, result.exit_code) == (2, EXIT_SOME_SCANS_FAILED)
    assert [failure.error_type for failure in result.failures] == ["SourceChangedError"] * 2
    assert "no longer in the archive" in "\n".join(describe_export(result))


def test_scans_of_other_formats_are_failures_of_their_own_and_alone_a_wrong_command(archive, tmp_path):
    write_decathlon(archive / "others", scans=2, seed=3)
    segment(archive, tmp_path / "tables")
    result = export(tmp_path)
    assert (result.num_files, result.exit_code) == (4, EXIT_SOME_SCANS_FAILED)
    assert [failure.error_type for failure in result.failures] == ["SourceFormatError"] * 2
    segment(archive / "others", tmp_path / "others")
    with pytest.raises(UsageError, match="none of these 2 scans is DICOM"):
        export(tmp_path, tables=str(tmp_path / "others"), out=str(tmp_path / "none"))
    assert not (tmp_path / "none").exists()


def test_a_second_export_is_the_same_to_the_last_byte(archive, tmp_path):
    segment(archive, tmp_path / "tables")
    export(tmp_path)
    export(tmp_path, out=str(tmp_path / "again"))
    paths = sorted((tmp_path / "masks").rglob("*.dcm"))
    assert len(paths) == 4
    for path in paths:
        assert path.read_bytes() == (tmp_path / "again" / path.relative_to(tmp_path / "masks")).read_bytes()


def test_the_same_command_goes_on_where_it_was_stopped(archive, tmp_path, monkeypatch):
    segment(archive, tmp_path / "tables")
    done = []
    write = export_segmentations.write_segmentation

    def count(path, *rest):
        if len(done) == 2:
            raise DiskFullError("no space left")
        done.append(path.name)
        write(path, *rest)

    monkeypatch.setattr(export_segmentations, "write_segmentation", count)
    with pytest.raises(DiskFullError):
        export(tmp_path, workers=1)
    monkeypatch.setattr(
        export_segmentations, "write_segmentation", lambda path, *rest: (done.append(path.name), write(path, *rest))
    )
    result = export(tmp_path)
    assert (result.num_files, result.num_kept) == (4, 2)
    assert len(done) == len(set(done)) == 4


def test_an_empty_mask_is_written_too(archive, tmp_path):
    rows = []
    for entry in entries(find_scans(str(archive))):
        scan = read_scan(entry)
        rows.append(row_of(entry, scan, np.zeros(scan.grid, np.uint8), "auto", "m"))
    publish(tmp_path / "tables", rows)
    assert export(tmp_path).num_files == 4
    for path in written(tmp_path).values():
        assert not pydicom.dcmread(path).pixel_array.any()


def test_what_headers_hold_reaches_the_file_as_the_standard_demands_and_nothing_else(tmp_path, capfd, caplog):
    odd = {
        "PatientName": "SECRET-name",
        "PatientBirthDate": "SECRET-birth",
        "StudyTime": "SECRET-time",
        "PatientSex": "SECRET-sex",
        "AccessionNumber": "SECRET-accession" * 3,
        "PatientComments": "SECRET-comment",
        "InstitutionName": "SECRET-institution",
        "OperatorsName": "SECRET-operator",
    }
    folder = tmp_path / "archive"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        write_series(folder / "good", make_series(draw(0), series="good", **odd))
        bad = make_series(draw(1), series="bad", **odd)
        for image in bad:
            change(image, FrameOfReferenceUID=None)
        write_series(folder / "bad", bad)
    segment(folder, tmp_path / "tables")
    capfd.readouterr()
    stream, root = io.StringIO(), logging.getLogger()
    handler, level = logging.StreamHandler(stream), root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            result = export(tmp_path)
    finally:
        root.removeHandler(handler)
        root.setLevel(level)
    assert result.num_files == 1
    assert [failure.error_type for failure in result.failures] == ["UnknownGridError"]
    said = capfd.readouterr()
    told = [*describe_export(result), said.out, said.err, stream.getvalue(), *(str(each.message) for each in caught)]
    assert not any("SECRET" in text for text in told)
    held = {path.name: path.read_bytes() for path in (tmp_path / "masks").rglob("*") if path.is_file()}
    (made,) = [content for name, content in held.items() if name.endswith(".dcm")]
    assert b"SECRET-name" in made
    for word in (b"SECRET-comment", b"SECRET-institution", b"SECRET-operator", b"SECRET-sex", b"SECRET-birth"):
        assert word not in made
    assert not any(b"SECRET" in content for name, content in held.items() if not name.endswith(".dcm"))


def test_pseudonymised_scans_go_back_to_their_images_and_their_paths_are_not_told(archive, tmp_path):
    (archive / "axial").rename(archive / "Muster-Erika")
    segment(archive, tmp_path / "tables", pseudonymise=True)
    chosen = {"pseudonymise": True, "source": str(archive)}
    write_record(Place(str(tmp_path / "tables")), {"chosen": chosen, "labels": LABELS.as_plain})
    os.utime(next((archive / "Muster-Erika").iterdir()), (1, 1))
    result = export(tmp_path)
    assert (result.num_files, len(result.failures)) == (3, 1)
    for word in ("coronal", "sagittal", "reversed"):
        check_voxels(written(tmp_path)[make_uid("study", word)], read_sources(archive / word))
    told = [*describe_export(result), *(str(path) for path in (tmp_path / "masks").rglob("*"))]
    assert not any("Muster" in text or "coronal" in text or "~" in text for text in told)


def test_without_highdicom_the_command_says_how_to_install_it(archive, tmp_path, monkeypatch):
    segment(archive, tmp_path / "tables")
    monkeypatch.setitem(__import__("sys").modules, "highdicom", None)
    with pytest.raises(MissingExtraError, match=r"raysegment\[dicom\]"):
        export(tmp_path)
    assert not (tmp_path / "masks").exists()


def test_where_no_scan_is_written_the_command_fails(archive, tmp_path):
    segment(archive, tmp_path / "tables")
    for path in archive.rglob("*.dcm"):
        os.utime(path, (1, 1))
    assert export(tmp_path).exit_code == EXIT_FAILED
