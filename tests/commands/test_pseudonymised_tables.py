"""Tables with pseudonyms are measured, drawn and exported with the key, and without it no scan is found."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import nibabel
import numpy as np
import pytest
from test_measure_command import segment

from raysegment.archive.pseudonymise import hide_source
from raysegment.archive.sealed import KEY_FILE_VARIABLE
from raysegment.commands.export import export_masks
from raysegment.commands.measure import measure
from raysegment.commands.report import report
from raysegment.errors import UsageError
from raysegment.options import ExportOptions, Finding, IndexOptions, MeasureOptions, ReportOptions
from raysegment.runs.record import read_record, write_record
from raysegment.store.place import Place
from raysegment.store.publish import read_rows


@pytest.fixture
def tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Of two volumes in an archive of telling names; the process forgets the key afterwards."""
    key = tmp_path / "own" / "key"
    key.parent.mkdir()
    key.write_bytes(bytes(32))
    monkeypatch.setenv(KEY_FILE_VARIABLE, "")
    archive = tmp_path / "Waldklinik"
    for name in ("Doctorow", "Meier"):
        (archive / name).mkdir(parents=True)
        pixels = np.random.default_rng(len(name)).integers(0, 200, (12, 10, 4)).astype(np.uint8)
        affine = np.diag([1.0, 1.0, 3.0, 1.0])
        nibabel.save(nibabel.Nifti1Image(pixels, affine), archive / name / f"{name}.nii.gz")
        nibabel.save(
            nibabel.Nifti1Image((pixels > 100).astype(np.uint8), affine), archive / name / f"{name}_seg.nii.gz"
        )
    how = Finding(pseudonymise=True, key_file=str(key))
    hidden = hide_source(IndexOptions(source=str(archive), **asdict(how)))
    out = tmp_path / "tables"
    segment(Path(hidden.source), out, how=how, num_channels=1, needs_reference=True)
    place = Place(str(out))
    record = read_record(place)
    record["chosen"] |= {"source": str(read_rows(place, "scans")["source"][0])}
    write_record(place, record)
    monkeypatch.delenv(KEY_FILE_VARIABLE)
    return out


def words_in(folder: Path) -> list[str]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    telling = [str(path) for path in files if b"Doctorow" in path.read_bytes() or b"Waldklinik" in path.read_bytes()]
    return telling + [str(path) for path in files if "Doctorow" in path.name]


def test_references_are_found_under_the_same_pseudonyms(tables: Path, tmp_path: Path) -> None:
    references = tmp_path / "Waldklinik"
    result = measure(MeasureOptions(tables=str(tables), references=str(references), out=str(tmp_path / "eval")))
    assert (result.scans_ok, result.scans_failed) == (2, 0)
    assert words_in(tmp_path / "eval") == words_in(tables) == []
    summary = json.loads((tmp_path / "eval" / "summary.json").read_text())
    assert summary["scans"] == 2
    with pytest.raises(UsageError, match="--reference names scans by their own names"):
        measure(
            MeasureOptions(
                tables=str(tables),
                references=str(references),
                out=str(tmp_path / "e"),
                reference=("{scan}_seg.nii.gz",),
            )
        )


def test_masks_go_back_to_the_scans_grids_and_pictures_are_drawn(tables: Path, tmp_path: Path) -> None:
    exported = export_masks(ExportOptions(tables=str(tables), out=str(tmp_path / "masks"), to="nifti"))
    assert (exported.num_files, exported.failures) == (2, ())
    assert nibabel.load(next((tmp_path / "masks").glob("*.nii.gz"))).shape == (12, 10, 4)
    drawn = report(ReportOptions(folder=str(tables)))
    assert "predictions.png" in str(drawn.figures)
    assert words_in(tmp_path / "masks") == words_in(tables) == []


def test_a_key_that_was_moved_is_named_and_without_it_nothing_is_exported(tables: Path, tmp_path: Path) -> None:
    key, moved = tmp_path / "own" / "key", tmp_path / "moved"
    moved.mkdir()
    for path in list(key.parent.iterdir()):
        path.rename(moved / path.name)
    with pytest.raises(UsageError, match="does not exist"):
        export_masks(ExportOptions(tables=str(tables), out=str(tmp_path / "masks"), to="nifti"))
    options = ExportOptions(tables=str(tables), out=str(tmp_path / "masks"), to="nifti", key_file=str(moved / "key"))
    assert export_masks(options).num_files == 2
    notes = report(ReportOptions(folder=str(tables))).notes
    assert len(notes) == 1
    assert "Waldklinik" not in notes[0]
