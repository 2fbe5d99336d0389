"""Folders that raysegment wrote are known by what it leaves in them."""

from __future__ import annotations

import json
import os

import pytest
import tifffile
from numpy import zeros

from raysegment.archive.filesystem import open_source
from raysegment.archive.own_folders import EXPORT_FILE, is_own_record
from raysegment.archive.walk import walk_source
from raysegment.errors import UsageError

TRAINING = json.dumps({"command": "train", "options": {"image_size": 256}, "data_id": "ab12"}, indent=2).encode()
INFERENCE = json.dumps({"command": "infer", "model_id": "ab12", "options_id": "cd34"}).encode()


@pytest.mark.parametrize("head", [TRAINING, INFERENCE, TRAINING[:-2]])
def test_records_of_runs_are_known_by_their_beginning(head):
    assert is_own_record(head)


@pytest.mark.parametrize(
    "head", [b"", b"[]", b"\xff\xfe", b'{"command": "train"}', b'{"seed": 1, "command": "infer", "options_id": "a"}']
)
def test_other_files_called_run_json_are_not(head):
    assert not is_own_record(head)


def folders_of(source: str) -> list[str]:
    walked = walk_source(source, open_source(source), frozenset({".tif"}))
    return [folder.path for folder in walked if not folder.is_own]


@pytest.mark.parametrize("form", ["{}", "file://{}"])
@pytest.mark.parametrize(("name", "content"), [(EXPORT_FILE, b""), ("run.json", INFERENCE)])
def test_own_folders_and_all_below_them_are_left_out_and_refused_as_a_source(name, content, form, tmp_path):
    for folder in ("p1", "out", "out/below", "outer"):
        (tmp_path / folder).mkdir()
        tifffile.imwrite(tmp_path / folder / "a.tif", zeros((4, 4), "uint8"))
    (tmp_path / "out" / name).write_bytes(content)
    assert folders_of(form.format(tmp_path)) == ["outer", "p1"]
    with pytest.raises(UsageError, match="raysegment wrote"):
        folders_of(form.format(tmp_path / "out"))


def test_a_pipe_called_run_json_is_not_opened(tmp_path):
    os.mkfifo(tmp_path / "run.json")
    tifffile.imwrite(tmp_path / "a.tif", zeros((4, 4), "uint8"))
    assert folders_of(str(tmp_path)) == [""]
