"""Masks as NIfTI: on the grid of the scan's own file, from tables and archive alone, and only where both still fit."""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK

from raysegment.archive.index import find_scans
from raysegment.archive.manifest import entries, write_manifest
from raysegment.archive.read import read_scan
from raysegment.archive.reference import read_reference
from raysegment.commands import export_volumes
from raysegment.commands.export import describe_export, export_masks
from raysegment.errors import EXIT_DONE, EXIT_FAILED, EXIT_SOME_SCANS_FAILED, DiskFullError, UsageError
from raysegment.imaging.volume_phantom import write_brats, write_decathlon
from raysegment.options import ExportOptions
from raysegment.runs.export_names import name_endings, name_files
from raysegment.runs.record import write_record
from raysegment.scan import Labels, ReadSettings, SliceAxis
from raysegment.store.masks import encode_mask
from raysegment.store.parts import ScanRows, stage_part
from raysegment.store.place import Place
from raysegment.store.publish import prepare_tables, publish_part

LABELS = Labels(("Head", "Tail"), ((1,), (2,)))
SETTINGS = ReadSettings(labels=LABELS)


def publish(folder: Path, rows: list[ScanRows]) -> None:
    place = Place(str(folder))
    prepare_tables(place)
    publish_part(place, "_staging/1", stage_part(place, "_staging/1", rows).name)


def row_of(scan_id: str, mask: np.ndarray, labels: Mapping[str, int], scan=None, **columns: object) -> ScanRows:
    filled = {"scan_id": scan_id, "status": "ok", "num_slices": len(mask), **columns}
    spacing_mm, affine = (None, None) if scan is None else (scan.spacing_mm, scan.affine)
    return ScanRows(filled, (), encode_mask(scan_id, mask, labels=labels, spacing_mm=spacing_mm, affine=affine))


def segment_by_hand(archive: Path, tables: Path, slice_axis: SliceAxis = "auto", model: str = "m") -> None:
    """Tables whose masks are the references, as reading brings them to canonical axes."""
    settings = ReadSettings(labels=LABELS, slice_axis=slice_axis)
    rows = []
    for entry in entries(find_scans(str(archive))):
        scan = read_scan(entry, settings)
        mask = read_reference(entry, scan.grid, settings, affine=scan.affine)
        columns = {"source": entry.source, "fingerprint": entry.fingerprint, "slice_axis": slice_axis}
        rows.append(row_of(entry.scan_id, mask, LABELS.mask_values, scan, model_id=model, **columns))
    publish(tables, rows)


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """Six volumes, each with its axes in another order, two of them oblique."""
    write_decathlon(tmp_path / "archive", scans=6, seed=3)
    return tmp_path / "archive"


def export(tmp_path: Path, **given: object):
    return export_masks(
        ExportOptions(tables=str(tmp_path / "tables"), out=str(tmp_path / "masks"), to="nifti", **given)
    )


@pytest.mark.parametrize("slice_axis", ["auto", "axial", "coronal", "sagittal"])
def test_masks_go_back_where_they_came_from_voxel_by_voxel(archive, tmp_path, slice_axis):
    segment_by_hand(archive, tmp_path / "tables", slice_axis)
    result = export(tmp_path)
    assert (result.num_files, result.exit_code) == (6, EXIT_DONE)
    for number in range(1, 7):
        source = nibabel.load(archive / "imagesTr" / f"phantom_{number:03d}.nii.gz")
        drawn = nibabel.load(archive / "labelsTr" / f"phantom_{number:03d}.nii.gz")
        mask = nibabel.load(tmp_path / "masks" / "imagesTr" / f"phantom_{number:03d}_pred.nii.gz")
        assert np.array_equal(np.asarray(mask.dataobj), np.asarray(drawn.dataobj))
        assert mask.affine.tobytes() == source.affine.tobytes()
        for name in ("dim", "pixdim", "sform_code", "qform_code", "xyzt_units", "srow_x", "srow_y", "srow_z"):
            assert mask.header[name].tobytes() == source.header[name].tobytes()


@pytest.mark.skipif("RAYSEGMENT_DATA" not in os.environ, reason="RAYSEGMENT_DATA names no folder of real scans")
def test_real_volumes_get_back_what_was_drawn_on_them(tmp_path):
    real = Path(os.environ["RAYSEGMENT_DATA"]) / "hippocampus"
    names = sorted(path.name for path in (real / "imagesTr").glob("hippocampus_*.nii.gz"))[::10]
    for folder, name in itertools.product(("imagesTr", "labelsTr"), names):
        (tmp_path / "archive" / folder).mkdir(parents=True, exist_ok=True)
        (tmp_path / "archive" / folder / name).symlink_to(real / folder / name)
    segment_by_hand(tmp_path / "archive", tmp_path / "tables", "coronal")
    assert export(tmp_path).num_files == len(names)
    for name in names:
        source, drawn = nibabel.load(real / "imagesTr" / name), nibabel.load(real / "labelsTr" / name)
        mask = nibabel.load(tmp_path / "masks" / "imagesTr" / name.replace(".nii.gz", "_pred.nii.gz"))
        assert np.array_equal(np.asarray(mask.dataobj), np.asarray(drawn.dataobj))
        assert (mask.affine.tobytes(), mask.shape) == (source.affine.tobytes(), source.shape)
        assert mask.header["descrip"].tobytes().strip(b"\0") == b""


def test_itk_finds_each_voxel_of_mask_and_scan_at_the_same_place(archive, tmp_path):
    segment_by_hand(archive, tmp_path / "tables")
    export(tmp_path)
    for number in range(1, 7):
        path = tmp_path / "masks" / "imagesTr" / f"phantom_{number:03d}_pred.nii.gz"
        mask, image = SimpleITK.ReadImage(str(path)), nibabel.load(path)
        source = SimpleITK.ReadImage(str(archive / "imagesTr" / f"phantom_{number:03d}.nii.gz"))
        drawn = SimpleITK.ReadImage(str(archive / "labelsTr" / f"phantom_{number:03d}.nii.gz"))
        assert np.array_equal(SimpleITK.GetArrayFromImage(mask), SimpleITK.GetArrayFromImage(drawn))
        for index in itertools.product(*((0, size - 1) for size in image.shape)):
            place = mask.TransformIndexToPhysicalPoint(index)
            assert place == source.TransformIndexToPhysicalPoint(index)
            in_ras = nibabel.affines.apply_affine(image.affine, index)
            assert np.array([-1, -1, 1]) * place == pytest.approx(in_ras, abs=1e-3)


def test_a_mask_and_a_reference_that_are_moved_together_are_read_as_the_same(archive, tmp_path):
    segment_by_hand(archive, tmp_path / "tables")
    export(tmp_path)
    moved = tmp_path / "moved"
    for folder in ("imagesTr", "labelsTr"):
        (moved / folder).mkdir(parents=True)
    shutil.copy(archive / "dataset.json", moved)
    for number, order in zip(range(1, 7), ("LPS", "ASR", "RAS", "SRA", "PIL", "ILP"), strict=True):
        name = f"phantom_{number:03d}"
        mask, drawn = tmp_path / "masks" / "imagesTr" / f"{name}_pred.nii.gz", archive / "labelsTr" / f"{name}.nii.gz"
        for path, folder in ((mask, "imagesTr"), (drawn, "labelsTr")):
            image = nibabel.load(path)
            turn = nibabel.orientations.ornt_transform(
                nibabel.io_orientation(image.affine), nibabel.orientations.axcodes2ornt(tuple(order))
            )
            image.as_reoriented(turn).to_filename(moved / folder / f"{name}.nii.gz")
    for before, after in zip(entries(find_scans(str(archive))), entries(find_scans(str(moved))), strict=True):
        there, here = read_scan(before, SETTINGS), read_scan(after, SETTINGS)
        reference = read_reference(after, here.grid, SETTINGS, affine=here.affine)
        assert np.array_equal(reference, read_reference(before, there.grid, SETTINGS, affine=there.affine))
        assert np.array_equal(here.pixels[..., 0], reference)
        assert here.affine == pytest.approx(there.affine, abs=1e-4)


def test_labels_that_overlap_have_a_file_each(tmp_path):
    write_brats(tmp_path / "archive", scans=1, seed=0, extent_mm=48, spacing_mm=4)
    (tmp_path / "archive" / "BraTS20_Training_001" / "BraTS20_Training_001_seg.nii.gz").unlink()
    labels = Labels(("WT", "TC", "E/T"), ((1, 2, 4), (1, 4), (4,)))
    (entry, *_) = entries(find_scans(str(tmp_path / "archive")))
    scan = read_scan(entry)
    mask = np.zeros((3, *scan.grid), np.uint8)
    mask[0, 2:6, 1:9, 3:7], mask[1, 3:5, 2:8, 3:7], mask[2, 4, 2:4, 5] = 1, 1, 1
    columns = {"source": entry.source, "fingerprint": entry.fingerprint, "slice_axis": "axial"}
    publish(tmp_path / "tables", [row_of(entry.scan_id, mask, labels.mask_values, scan, **columns)])
    assert export(tmp_path).num_files == 3
    stem = name_files([entry.scan_id], max_bytes=4000, ending="")[entry.scan_id]
    for position, name in enumerate(("WT", "TC", "E_T")):
        image = nibabel.load(tmp_path / "masks" / f"{stem}_pred_{name}.nii.gz")
        assert image.affine.tobytes() == nibabel.load(Path(entry.source) / entry.files[0]).affine.tobytes()
        assert np.asarray(image.dataobj).sum() == mask[position].sum()
        # Slices run up, rows to the back, columns to the left: LPS, as these phantoms are stored.
        assert np.array_equal(np.asarray(image.dataobj), mask[position].transpose(2, 1, 0))


def test_a_scan_that_changed_or_went_is_refused_with_its_reason_and_the_others_are_written(archive, tmp_path):
    segment_by_hand(archive, tmp_path / "tables")
    (archive / "imagesTr" / "phantom_002.nii.gz").unlink()
    os.utime(archive / "imagesTr" / "phantom_004.nii.gz", (1, 1))
    result = export(tmp_path)
    assert (result.num_files, result.exit_code) == (4, EXIT_SOME_SCANS_FAILED)
    reasons = {failure.scan_id: (failure.error_type, failure.message) for failure in result.failures}
    assert {scan_id: error_type for scan_id, (error_type, _) in reasons.items()} == {
        "imagesTr/phantom_002.nii.gz": "SourceChangedError",
        "imagesTr/phantom_004.nii.gz": "SourceChangedError",
    }
    assert "no longer in the archive" in reasons["imagesTr/phantom_002.nii.gz"][1]
    assert "has changed" in reasons["imagesTr/phantom_004.nii.gz"][1]
    assert "phantom_002" in "\n".join(describe_export(result))
    assert not (tmp_path / "masks" / "imagesTr" / "phantom_004_pred.nii.gz").exists()


def test_the_same_command_goes_on_where_it_was_stopped(archive, tmp_path, monkeypatch):
    segment_by_hand(archive, tmp_path / "tables")
    written = []
    write = export_volumes.write_volume

    def count(path, *rest):
        if len(written) == 4:
            raise DiskFullError("no space left")
        written.append(path.name)
        write(path, *rest)

    monkeypatch.setattr(export_volumes, "write_volume", count)
    with pytest.raises(DiskFullError):
        export(tmp_path, workers=1)
    before = {path.name for path in (tmp_path / "masks" / "imagesTr").iterdir()}
    assert before == set(written)
    monkeypatch.undo()
    monkeypatch.setattr(
        export_volumes, "write_volume", lambda path, *rest: (written.append(path.name), write(path, *rest))
    )
    assert export(tmp_path).num_files == 6
    assert sorted(written) == [f"phantom_{number:03d}_pred.nii.gz" for number in range(1, 7)]
    assert export(tmp_path).num_files == 6
    assert len(written) == 6


def test_a_file_that_was_cut_or_is_of_another_model_is_written_anew(archive, tmp_path):
    segment_by_hand(archive, tmp_path / "tables")
    export(tmp_path)
    path = tmp_path / "masks" / "imagesTr" / "phantom_001_pred.nii.gz"
    whole = path.read_bytes()
    path.write_bytes(whole[:50])
    export(tmp_path)
    assert path.read_bytes() == whole
    shutil.rmtree(tmp_path / "tables")
    segment_by_hand(archive, tmp_path / "tables", model="another")
    os.utime(path, (1, 1))
    export(tmp_path)
    assert path.stat().st_mtime > 1


def test_two_exports_are_the_same_byte_for_byte(archive, tmp_path):
    segment_by_hand(archive, tmp_path / "tables")
    export(tmp_path, workers=3)
    first = {path.name: path.read_bytes() for path in (tmp_path / "masks").rglob("*.nii.gz")}
    shutil.rmtree(tmp_path / "masks")
    export(tmp_path, workers=1)
    assert first == {path.name: path.read_bytes() for path in (tmp_path / "masks").rglob("*.nii.gz")}


def test_an_archive_that_moved_is_found_with_source(archive, tmp_path):
    segment_by_hand(archive, tmp_path / "tables")
    archive.rename(tmp_path / "elsewhere")
    with pytest.raises(UsageError, match="archive"):
        export(tmp_path)
    assert export(tmp_path, source=str(tmp_path / "elsewhere")).num_files == 6
    with pytest.raises(UsageError, match="where the scans"):
        export_masks(
            ExportOptions(
                tables=str(tmp_path / "tables"),
                out=str(tmp_path / "elsewhere" / "masks"),
                to="nifti",
                source=str(tmp_path / "elsewhere"),
            )
        )


def test_nobody_takes_what_was_exported_for_scans(archive, tmp_path):
    segment_by_hand(archive, tmp_path / "tables")
    export(tmp_path)
    with pytest.raises(UsageError, match="raysegment wrote"):
        find_scans(str(tmp_path / "masks"))


def test_slices_become_a_volume_where_their_spacing_is_known_and_are_refused_where_not(tmp_path):
    mask = np.zeros((2, 3, 4), np.uint8)
    mask[1, 2, 3] = 1
    known, unknown = (row_of(name, mask, {"lesion": 1}) for name in ("known/a", "unknown/b"))
    known.mask["spacing_mm"] = [5.0, 0.5, 0.25]
    publish(tmp_path / "tables", [known, unknown])
    result = export(tmp_path)
    assert (result.num_files, result.exit_code) == (1, EXIT_SOME_SCANS_FAILED)
    ((name, error_type, message),) = ((item.scan_id, item.error_type, item.message) for item in result.failures)
    assert (name, error_type) == ("unknown/b", "UnknownGridError")
    assert "--spacing-mm" in message
    image = nibabel.load(tmp_path / "masks" / "known" / "a_pred.nii.gz")
    assert image.shape == (4, 3, 2)
    assert image.get_fdata()[3, 2, 1] == 1
    assert image.header.get_zooms() == (0.25, 0.5, 5.0)
    assert nibabel.aff2axcodes(image.affine) == ("L", "P", "S")


def test_where_no_mask_can_be_written_the_export_failed(tmp_path):
    publish(tmp_path / "tables", [row_of("a", np.ones((1, 2, 2), np.uint8), {"lesion": 1})])
    assert export(tmp_path).exit_code == EXIT_FAILED


def test_endings_of_labels_differ_and_hold_no_slash():
    assert name_endings(["WT", "a/b", "a_b", "x" * 300])[:3] == [
        "_pred_WT.nii.gz",
        "_pred_a_b.nii.gz",
        "_pred_a_b-2.nii.gz",
    ]
    assert len(name_endings(["x" * 300])[0]) < 80


def test_names_of_volumes_lose_their_whole_extension():
    names = name_files(["a/x.nii.gz", "a/x.nii", "b/.nii.gz", "c.v2"], max_bytes=4000, ending="_pred.nii.gz")
    assert sorted(names.values()) == [
        "a/x-2_pred.nii.gz",
        "a/x_pred.nii.gz",
        "b/.nii.gz_pred.nii.gz",
        "c.v2_pred.nii.gz",
    ]


def test_a_second_export_says_that_the_masks_are_there_and_a_moved_archive_that_source_names_it(archive, tmp_path):
    segment_by_hand(archive, tmp_path / "tables")
    assert describe_export(export(tmp_path))[0].startswith("6 masks written to")
    assert describe_export(export(tmp_path))[0].endswith("; 6 are there already")
    archive.rename(tmp_path / "moved")
    with pytest.raises(UsageError, match="--source"):
        export(tmp_path)
    assert export(tmp_path, source=str(tmp_path / "moved")).failures == ()


def test_how_scans_were_found_in_a_folder_is_not_asked_of_a_manifest(archive, tmp_path):
    segment_by_hand(archive, tmp_path / "tables")
    chosen = {
        "source": str(archive),
        "channel": ["MRI=*/{scan}.nii.gz"],
        "scan_pattern": "(.*)",
        "patient_pattern": "(.*)",
    }
    write_record(Place(str(tmp_path / "tables")), {"command": "infer", "status": "done", "chosen": chosen})
    write_manifest(find_scans(str(archive)), str(tmp_path / "moved.parquet"))
    assert export(tmp_path, source=str(tmp_path / "moved.parquet")).num_files == 6
