"""What `index` says of archives of volumes: labels, layout, channels, spacing, files that are not read."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest

from raysegment import cli
from raysegment.commands.index import describe_index, index
from raysegment.errors import UsageError
from raysegment.options import IndexOptions


def write_volume(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(values, np.diag((1.0, 2.0, 3.0, 1.0))), path)


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """Two cases of two channels, with references of 0, 1, 2 and once 7."""
    folder = tmp_path / "archive"
    for case in ("a", "b"):
        for number in range(2):
            write_volume(folder / "imagesTr" / f"{case}_{number:04d}.nii.gz", np.full((4, 5, 6), number, np.uint8))
        reference = np.zeros((4, 5, 6), np.uint8)
        reference[0, 0, :3] = [1, 2, 7 if case == "b" else 0]
        write_volume(folder / "labelsTr" / f"{case}.nii.gz", reference)
    dataset = {"channel_names": {"0": "T1", "1": "T2"}, "labels": {"background": 0, "tumour": 1, "oedema": 2}}
    (folder / "dataset.json").write_text(json.dumps(dataset))
    return folder


def lines_of(options: IndexOptions) -> dict[str, str]:
    """The rows that `index` prints, by their words."""
    return {line[:28].strip(): line[28:] for line in describe_index(index(options))}


def test_index_names_labels_layout_channels_spacing_and_strange_values(archive):
    rows = lines_of(IndexOptions(source=str(archive)))
    assert rows["labels"] == "tumour=1 oedema=2 (dataset.json; one value a voxel)"
    assert rows["layout"] == "nnU-Net: 2"
    assert rows["channels"] == "T1, T2: 2"
    assert rows["spacing in mm"] == "3 x 2 x 1: 2"
    assert rows["values that no label names"] == "7"
    assert rows["values in references"] == "0 1 2: 1, 0 1 2 7: 1 (looked at 2 of 2); 1 cannot be used"


def test_labels_of_the_command_line_say_what_values_are(archive):
    rows = lines_of(IndexOptions(source=str(archive), labels=("all=1+2+7", "core=7")))
    assert rows["labels"] == "all=1+2+7 core=7 (--labels; regions that overlap)"
    assert "values that no label names" not in rows


def test_a_manifest_says_the_same_as_its_archive(archive, tmp_path):
    before = lines_of(IndexOptions(source=str(archive), out=str(tmp_path / "m.parquet")))
    assert lines_of(IndexOptions(source=str(tmp_path / "m.parquet"))) == before


def test_json_holds_labels_and_layouts(archive, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["raysegment", "index", str(archive), "--json"])
    with pytest.raises(SystemExit):
        cli.main()
    said = json.loads(capsys.readouterr().out)
    assert said["labels"] == {"tumour": [1], "oedema": [2]}
    assert said["labels_from"] == "dataset.json"
    assert said["layouts"] == {"nnU-Net": 2}
    assert said["unnamed_values"] == [7.0]


def test_files_that_are_not_read_get_one_line(archive):
    for name in ("x.mgz", "y.nrrd", "z.nrrd", "._a.nii.gz"):
        (archive / name).write_bytes(b"x")
    lines = describe_index(index(IndexOptions(source=str(archive))))
    assert "2 *.nrrd, 1 *.mgz: raysegment does not read these; convert them to NIfTI (.nii.gz)." in lines
    assert lines[0].split() == ["scans", "2"]


def test_an_archive_of_unread_files_alone_says_so(tmp_path):
    (tmp_path / "x.mha").write_bytes(b"x")
    with pytest.raises(UsageError, match=r"no scans found .* 1 \*\.mha: raysegment does not read these"):
        index(IndexOptions(source=str(tmp_path)))


def test_files_that_no_glob_fits_are_counted(archive):
    rows = lines_of(IndexOptions(source=str(archive), channel=("T2=imagesTr/{scan}_0001.nii.gz",)))
    assert rows["files left alone"] == "4"
    assert rows["layout"] == "--channel: 2"
