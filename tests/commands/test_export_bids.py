"""Masks as BIDS derivatives: names, sidecars, where they may be written, and that they are never read as references."""

from __future__ import annotations

import gzip
import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import nibabel
import numpy as np
import pytest
from dicom_made import AXIAL, make_series, write_series

from raysegment.archive.index import find_scans
from raysegment.archive.manifest import entries
from raysegment.archive.names import drop_seals
from raysegment.archive.own_folders import EXPORT_FILE, EXPORT_PROGRESS_FILE
from raysegment.archive.pseudonymise import hide_source
from raysegment.archive.read import read_scan
from raysegment.archive.sealed import KEY_FILE_VARIABLE
from raysegment.commands import export_volumes
from raysegment.commands.export import export_masks
from raysegment.errors import EXIT_FAILED, EXIT_SOME_SCANS_FAILED, DiskFullError, UsageError
from raysegment.imaging.volume_phantom import write_decathlon
from raysegment.options import ExportOptions, Finding, IndexOptions
from raysegment.runs.record import write_record
from raysegment.scan import Labels
from raysegment.store.masks import encode_mask
from raysegment.store.parts import ScanRows, stage_part
from raysegment.store.place import Place
from raysegment.store.publish import prepare_tables, publish_part

PLANTED = "PlantedName^Header"
PARTS = Labels(("Head", "Tail"), ((1,), (2,)))
NESTED = Labels(("whole", "core!"), ((1, 2), (2,)))


def write_scan(path: Path, seed: int = 0) -> None:
    """A small volume on an oblique grid, with a name in its header."""
    path.parent.mkdir(parents=True, exist_ok=True)
    affine = np.array([[0.0, -1.2, 0.1, 20], [1.0, 0.1, 0, -30], [0, 0, 2.5, 7], [0, 0, 0, 1]])
    image = nibabel.Nifti1Image(np.random.default_rng(seed).normal(100, 9, (6, 7, 5)).astype(np.float32), affine)
    image.header["descrip"] = PLANTED
    image.header.set_xyzt_units("mm")
    image.to_filename(path)


def segment(archive: Path, tables: Path, labels: Labels = PARTS, *, key: Path | None = None) -> Path:
    """Tables and record as `infer` leaves them, with a key pseudonymised; masks are drawn by the index of the voxel."""
    chosen = {} if key is None else {"pseudonymise": True, "key_file": str(key)}
    given = hide_source(IndexOptions(source=str(archive), **chosen))
    rows = []
    for entry in entries(find_scans(given.source, Finding(**chosen))):
        scan = read_scan(entry)
        mask = (np.arange(np.prod(scan.grid)).reshape(scan.grid) % 3).astype(np.uint8)
        if labels is NESTED:
            mask = np.stack([mask > 0, mask > 1]).view(np.uint8)
        row = {"scan_id": entry.scan_id, "patient_id": entry.patient_id, "status": "ok"}
        row["source"] = drop_seals(entry.source)
        row |= {"fingerprint": entry.fingerprint, "slice_axis": "auto", "model_id": "m1", "num_slices": scan.grid[0]}
        values = labels.mask_values
        encoded = encode_mask(entry.scan_id, mask, labels=values, spacing_mm=scan.spacing_mm, affine=scan.affine)
        rows.append(ScanRows(row, (), encoded))
    place = Place(str(tables))
    prepare_tables(place)
    publish_part(place, "_staging/1", stage_part(place, "_staging/1", rows).name)
    threshold = "whole=0.4,core!=0.7" if labels is NESTED else 0.45
    write_record(
        place,
        {
            "command": "infer",
            "options_id": "o",
            "chosen": {"source": drop_seals(given.source), **chosen},
            "result_options": {"threshold": threshold},
            "versions": {"raysegment": "0.6.0"},
            "labels": labels.as_plain,
        },
    )
    return tables


def export(tables: Path, out: Path, **given: object):
    return export_masks(ExportOptions(tables=str(tables), out=str(out), to="bids", **given))


def files_below(folder: Path) -> dict[str, bytes]:
    """Files and their bytes, without the list that an export keeps for itself."""
    found = {str(path.relative_to(folder)): path for path in folder.rglob("*") if path.is_file()}
    return {name: path.read_bytes() for name, path in found.items() if not name.startswith(".")}


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """A BIDS dataset of three sessions, which have one contrast in common."""
    root = tmp_path / "study"
    for number, owner in enumerate(("sub-01/ses-a", "sub-01/ses-b", "sub-P2/ses-a")):
        stem = owner.replace("/", "_")
        write_scan(root / owner / "anat" / f"{stem}_acq-fast_run-1_T1w.nii.gz", number)
    write_scan(root / "sub-01" / "ses-a" / "anat" / "sub-01_ses-a_T2w.nii.gz", 7)
    (root / "dataset_description.json").write_text('{"Name": "made up", "BIDSVersion": "1.10.0"}')
    (root / "README").write_text("Made-up scans of nobody, to test with. " * 8)
    return root


def test_a_dataset_gets_its_derivatives_with_the_entities_of_its_own_files(dataset, tmp_path):
    segment(dataset, tmp_path / "tables")
    before = find_scans(str(dataset)).to_pylist()
    out = dataset / "derivatives" / "raysegment"
    result = export(tmp_path / "tables", out)
    assert (result.num_files, result.exit_code) == (3, 0)
    names = {
        f"{owner}/anat/{owner.replace('/', '_')}_acq-fast_run-1_space-orig_desc-raysegment_dseg{ending}"
        for owner in ("sub-01/ses-a", "sub-01/ses-b", "sub-P2/ses-a")
        for ending in (".nii.gz", ".json")
    }
    common = {"dataset_description.json", "README", "desc-raysegment_dseg.tsv"}
    assert set(files_below(out)) == names | common
    sidecar = json.loads((out / min(name for name in names if name.endswith("json"))).read_text())
    assert sidecar["Sources"] == ["bids:source:sub-01/ses-a/anat/sub-01_ses-a_acq-fast_run-1_T1w.nii.gz"]
    assert sidecar["SpatialReference"] == sidecar["Sources"][0]
    assert (sidecar["ModelID"], sidecar["RaysegmentVersion"], sidecar["Threshold"]) == ("m1", "0.6.0", 0.45)
    assert sidecar["Labels"] == {"Head": {"Value": 1}, "Tail": {"Value": 2}}
    assert sidecar["Manual"] is False
    described = json.loads((out / "dataset_description.json").read_text())
    assert described["DatasetType"] == "derivative"
    assert described["DatasetLinks"] == {"source": "../.."}
    assert described["GeneratedBy"][0]["Name"] == "raysegment"
    assert (out / "desc-raysegment_dseg.tsv").read_text() == "index\tname\n1\tHead\n2\tTail\n"
    assert find_scans(str(dataset)).to_pylist() == before


def test_masks_are_those_of_the_export_to_nifti_bit_for_bit(dataset, tmp_path):
    segment(dataset, tmp_path / "tables")
    export(tmp_path / "tables", tmp_path / "bids")
    export_masks(ExportOptions(tables=str(tmp_path / "tables"), out=str(tmp_path / "nifti"), to="nifti"))
    as_bids = sorted(path.read_bytes() for path in (tmp_path / "bids").rglob("*.nii.gz"))
    assert as_bids == sorted(path.read_bytes() for path in (tmp_path / "nifti").rglob("*.nii.gz"))


def test_nothing_else_below_the_scans_may_be_written(dataset, tmp_path):
    tables = segment(dataset, tmp_path / "tables")
    (dataset / "derivatives").mkdir()
    (dataset / "derivatives" / "link").symlink_to(dataset / "sub-01")
    for below in (
        "derivatives",
        "derivatives/other",
        "derivatives/raysegment/deeper",
        "sub-01",
        "",
        "derivatives/link",
    ):
        with pytest.raises(UsageError, match="derivatives/raysegment"):
            export(tables, dataset / below)
    with pytest.raises(UsageError, match="lies in"):
        export_masks(
            ExportOptions(tables=str(tables), out=str(dataset / "derivatives" / "raysegment"), to="nifti"),
        )
    (dataset / "derivatives" / "raysegment").symlink_to(dataset / "sub-P2")
    with pytest.raises(UsageError, match="lies in"):
        export(tables, dataset / "derivatives" / "raysegment")
    (dataset / "derivatives" / "raysegment").unlink()
    (dataset / "derivatives" / "raysegment").mkdir()
    (dataset / "derivatives" / "raysegment" / "notes.txt").write_text("of somebody")
    with pytest.raises(UsageError, match="not empty"):
        export(tables, dataset / "derivatives" / "raysegment")


def test_derivatives_are_no_references_even_where_nothing_tells_whose_folder_it_is(dataset, tmp_path):
    tables = segment(dataset, tmp_path / "tables")
    out = dataset / "derivatives" / "raysegment"
    export(tables, out)
    for name in (EXPORT_FILE, EXPORT_PROGRESS_FILE):
        (out / name).unlink()
    # As somebody does who merges a dataset and its derivatives.
    shutil.copytree(out / "sub-P2", dataset / "sub-P2", dirs_exist_ok=True)
    found = find_scans(str(dataset))
    assert found.num_rows == 3
    assert found["reference_files"].to_pylist() == [[], [], []]


def test_labels_that_overlap_have_a_mask_and_a_threshold_each(dataset, tmp_path):
    export(segment(dataset, tmp_path / "tables", NESTED), tmp_path / "out")
    written = files_below(tmp_path / "out")
    folder = "sub-P2/ses-a/anat/"
    stem = folder + "sub-P2_ses-a_acq-fast_run-1_space-orig_label-{}_desc-raysegment_mask"
    core = next(name for name in written if "label-core" in name and name.startswith(folder) and name.endswith("json"))
    (word,) = re.findall("label-(core[a-z0-9]*)_", core)
    assert json.loads(written[core])["Threshold"] == 0.7
    assert json.loads(written[stem.format("whole") + ".json"])["Labels"] == {"whole": {"Value": 1}}
    assert json.loads(written[core])["Type"] == "ROI"
    sizes = [
        int(np.asarray(nibabel.load(tmp_path / "out" / (stem.format(each) + ".nii.gz")).dataobj).sum())
        for each in ("whole", word)
    ]
    assert sizes == [140, 70]
    assert not [name for name in written if name.endswith(".tsv")]


def test_scans_of_no_dataset_are_called_after_patient_and_scan(tmp_path):
    for name in ("p_1/before", "p_1/after", "p1/before", "P1/before", "sub-p1/before"):
        write_scan(tmp_path / "scans" / f"{name}.nii.gz")
    tables = segment(tmp_path / "scans", tmp_path / "tables")
    export(tables, tmp_path / "out")
    volumes = sorted(name for name in files_below(tmp_path / "out") if name.endswith(".nii.gz"))
    assert len(volumes) == 5
    subjects = {name.split("/")[0] for name in volumes}
    assert len({subject.lower() for subject in subjects}) == 4
    rule = r"(sub-[A-Za-z0-9]+)/(ses-[A-Za-z0-9]+)/anat/\1_\2_space-orig_desc-raysegment_dseg\.nii\.gz"
    assert all(re.fullmatch(rule, name) for name in volumes)
    sidecar = json.loads((tmp_path / "out" / volumes[0].replace(".nii.gz", ".json")).read_text())
    assert "Sources" not in sidecar
    assert sidecar["SpatialReference"] == "orig"
    for name in volumes:
        said = json.loads((tmp_path / "out" / name.replace(".nii.gz", ".json")).read_text())["ScanID"]
        assert (tmp_path / "scans" / said).is_file()


def test_a_new_scan_gives_no_other_one_a_new_name(tmp_path):
    write_scan(tmp_path / "scans" / "q" / "x.nii.gz")
    write_scan(tmp_path / "scans" / "p" / "late.nii.gz")
    export(segment(tmp_path / "scans", tmp_path / "tables"), tmp_path / "first")
    write_scan(tmp_path / "scans" / "p" / "early.nii.gz")
    export(segment(tmp_path / "scans", tmp_path / "more"), tmp_path / "second")
    first, second = files_below(tmp_path / "first"), files_below(tmp_path / "second")
    assert {name for name in first if name not in second} == set()
    assert len(second) == len(first) + 2


def test_no_header_text_and_no_absolute_path_gets_in(dataset, tmp_path):
    export(segment(dataset, tmp_path / "tables"), dataset / "derivatives" / "raysegment")
    write_decathlon(tmp_path / "cases", scans=1, seed=3)
    export(segment(tmp_path / "cases", tmp_path / "other"), tmp_path / "apart")
    for folder in (dataset / "derivatives" / "raysegment", tmp_path / "apart"):
        for name, content in files_below(folder).items():
            assert str(tmp_path).encode() not in content, name
            assert PLANTED.encode() not in content, name
            if name.endswith(".nii.gz"):
                assert nibabel.load(folder / name).header["descrip"].tobytes().strip(b"\0") == b""


def test_pseudonymised_scans_are_not_called_as_their_files(dataset, tmp_path, monkeypatch):
    monkeypatch.setenv(KEY_FILE_VARIABLE, "")
    (tmp_path / "own").mkdir()
    key = tmp_path / "own" / "key"
    key.write_bytes(bytes(range(32)))
    key.chmod(0o600)
    out = dataset / "derivatives" / "raysegment"
    tables = segment(dataset, tmp_path / "tables", key=key)
    assert export(tables, out).num_files == 3
    written = files_below(out)
    told = b"".join(name.encode() + content for name, content in written.items() if not name.endswith(".gz"))
    assert [
        word for word in (b"sub-01", b"sub-P2", b"T1w", b"acq-", b"Sources", b"Links", b"study") if word in told
    ] == []
    assert len([name for name in written if name.endswith("_dseg.nii.gz")]) == 3
    with pytest.raises(UsageError) as refused:
        export(tables, dataset / "sub-01")
    assert "study" not in str(refused.value).replace(str(dataset / "sub-01"), "")


def test_series_of_dicom_are_named_by_their_hashes_and_no_identifier_gets_in(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    for name in ("one", "two"):
        series = make_series(np.arange(60, dtype=np.int16).reshape(3, 4, 5), series=name, PatientComments=PLANTED)
        write_series(tmp_path / "scans" / name, series)
    tables = segment(tmp_path / "scans", tmp_path / "tables")
    export(tables, tmp_path / "out")
    written = files_below(tmp_path / "out")
    volumes = [name for name in written if name.endswith(".nii.gz")]
    rule = r"(sub-[0-9a-f]{16})/(ses-[0-9a-f]{12})/anat/\1_\2_space-orig_desc-raysegment_dseg\.nii\.gz"
    assert [bool(re.fullmatch(rule, name)) for name in volumes] == [True, True]
    assert len({name.split("/")[0] for name in volumes}) == 1
    image = nibabel.load(tmp_path / "out" / volumes[0])
    # As slices, rows and columns lie, which the affine of the made series says in RAS.
    assert np.array_equal(np.asarray(image.dataobj).transpose(2, 1, 0), (np.arange(60) % 3).reshape(3, 4, 5))
    assert image.affine[:, [2, 1, 0, 3]] == pytest.approx(AXIAL)
    told = b"".join(name.encode() + content for name, content in written.items())
    told += b"".join(gzip.decompress(written[name]) for name in volumes)
    assert [word for word in (PLANTED, "Muster", "P-1", "19700101", "20200131") if word.encode() in told] == []


def test_two_exports_are_the_same_and_the_second_start_writes_nothing(dataset, tmp_path, monkeypatch):
    tables = segment(dataset, tmp_path / "tables")
    export(tables, tmp_path / "out", workers=3)
    first = files_below(tmp_path / "out")
    assert export(tables, tmp_path / "out").num_kept == 3
    export(tables, tmp_path / "again", workers=1)
    assert files_below(tmp_path / "again") == first
    (gone,) = (tmp_path / "out" / "sub-P2").rglob("*.json")
    gone.unlink()
    assert export(tables, tmp_path / "out").num_kept == 2
    assert files_below(tmp_path / "out") == first


def test_an_export_that_was_stopped_goes_on(dataset, tmp_path, monkeypatch):
    tables = segment(dataset, tmp_path / "tables")
    written = []
    write = export_volumes.write_volume

    def fail_at_the_third(path, *rest):
        if len(written) == 2:
            raise DiskFullError("no space left")
        written.append(path.name)
        write(path, *rest)

    monkeypatch.setattr(export_volumes, "write_volume", fail_at_the_third)
    with pytest.raises(DiskFullError):
        export(tables, tmp_path / "out", workers=1)
    monkeypatch.undo()
    result = export(tables, tmp_path / "out")
    assert (result.num_files, result.num_kept) == (3, 2)


def test_a_scan_without_a_grid_fails_with_its_reason(tmp_path):
    place = Place(str(tmp_path / "tables"))
    prepare_tables(place)
    rows = []
    for name, spacing_mm in (("known", (5.0, 1.0, 1.0)), ("unknown", None)):
        encoded = encode_mask(name, np.ones((2, 3, 4), np.uint8), labels={"lesion": 1}, spacing_mm=spacing_mm)
        rows.append(ScanRows({"scan_id": name, "patient_id": name, "status": "ok", "num_slices": 2}, (), encoded))
    publish_part(place, "_staging/1", stage_part(place, "_staging/1", rows).name)
    result = export(tmp_path / "tables", tmp_path / "out")
    assert (result.num_files, result.exit_code) == (1, EXIT_SOME_SCANS_FAILED)
    assert [(each.scan_id, each.error_type) for each in result.failures] == [("unknown", "UnknownGridError")]
    assert (tmp_path / "out" / "sub-known" / "anat" / "sub-known_space-orig_desc-raysegment_dseg.json").is_file()
    assert not (tmp_path / "out" / "sub-unknown").exists()


def test_where_no_scan_has_a_grid_the_export_has_failed(tmp_path):
    place = Place(str(tmp_path / "tables"))
    prepare_tables(place)
    encoded = encode_mask("a", np.ones((2, 3, 4), np.uint8), labels={"lesion": 1})
    row = ScanRows({"scan_id": "a", "status": "ok", "num_slices": 2}, (), encoded)
    publish_part(place, "_staging/1", stage_part(place, "_staging/1", [row]).name)
    assert export(tmp_path / "tables", tmp_path / "out").exit_code == EXIT_FAILED


@pytest.mark.skipif(not shutil.which("bids-validator-deno"), reason="bids-validator-deno is not on the PATH")
@pytest.mark.parametrize("labels", [PARTS, NESTED], ids=["label map", "overlapping labels"])
def test_the_validator_of_the_standards_schema_finds_no_error(dataset, tmp_path, labels):
    write_decathlon(tmp_path / "cases", scans=2, seed=3)
    for archive in (dataset, tmp_path / "cases"):
        tables = segment(archive, tmp_path / f"{archive.name}-tables", labels)
        export(tables, archive / "derivatives" / "raysegment")
        command = ["bids-validator-deno", str(archive / "derivatives" / "raysegment"), "--json"]
        said = json.loads(subprocess.run(command, capture_output=True, text=True, check=False).stdout)
        issues = said["issues"]["issues"]
        assert [issue for issue in issues if issue["severity"] == "error"] == []
        assert said["summary"]["totalFiles"] >= 5


@pytest.mark.skipif(not shutil.which("bids-validator"), reason="bids-validator (npm) is not on the PATH")
def test_the_npm_validator_accepts_a_dataset_that_has_got_derivatives(dataset, tmp_path):
    tables = segment(dataset, tmp_path / "tables")
    export(tables, dataset / "derivatives" / "raysegment")
    said = validate_with_npm(dataset)
    assert said["issues"]["errors"] == []
    # By themselves it knows no names of derivatives (1, and so 67: no data of a subject); all else is as it should be.
    alone = validate_with_npm(dataset / "derivatives" / "raysegment")
    assert {issue["code"] for issue in alone["issues"]["errors"]} <= {1, 67}


def validate_with_npm(folder: Path) -> dict:
    command = ["bids-validator", str(folder), "--json"]
    return json.loads(
        subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ).stdout or "{}"
    )
