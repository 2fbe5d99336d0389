"""`index` on references and on files whose header could promise other channels than their pixels have."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image

from raysegment import cli

SIZE = 16
REGION = np.zeros((SIZE, SIZE), bool)
REGION[4:12, 4:9] = True


def run(monkeypatch, capsys, *words):
    monkeypatch.setattr(sys, "argv", ["raysegment", *map(str, words)])
    with pytest.raises(SystemExit) as end:
        cli.main()
    return end.value.code or 0, capsys.readouterr().out


def write_scan(archive: Path, name: str, mask: np.ndarray) -> None:
    (archive / name).mkdir(parents=True)
    tifffile.imwrite(archive / name / "image.tif", np.zeros((SIZE, SIZE), np.uint8))
    tifffile.imwrite(archive / name / "image_mask.tif", mask)


def test_index_lists_the_values_that_references_hold(tmp_path, monkeypatch, capsys):
    for name in ("a", "b"):
        write_scan(tmp_path, name, np.where(REGION, 255, 0).astype(np.uint8))
    write_scan(tmp_path, "c", (np.arange(SIZE * SIZE).reshape(SIZE, SIZE) % 5).astype(np.uint8))
    write_scan(tmp_path, "d", np.where(REGION, -1, 0).astype(np.int16))
    code, out = run(monkeypatch, capsys, "index", tmp_path, "--json")
    summary = json.loads(out)
    assert code == 0
    assert summary["reference_values"] == {"0 255": 2, "0 1 2 3 4": 1, "-1 0": 1}
    assert summary["references_read"] == 4
    code, out = run(monkeypatch, capsys, "index", tmp_path)
    assert "0 255" in out
    assert "4 of 4" in out


def test_index_refuses_the_jpegs_that_training_refuses(tmp_path, monkeypatch, capsys):
    for name, drawn in (("bright", 255), ("dim", 40)):
        write_scan(tmp_path, name, np.where(REGION, drawn, 0).astype(np.uint8))
        (tmp_path / name / "image_mask.tif").unlink()
        mask = imagecodecs.jpeg8_encode(np.where(REGION, drawn, 0).astype(np.uint8), level=90)
        (tmp_path / name / "image_mask.jpg").write_bytes(mask)
    _, out = run(monkeypatch, capsys, "index", tmp_path, "--json")
    summary = json.loads(out)
    assert (summary["references_read"], summary["references_refused"]) == (2, 1)
    assert summary["reference_values"]["ReferenceValuesError"] == 1


def test_index_reads_the_references_of_some_scans_only(tmp_path, monkeypatch, capsys):
    for number in range(60):
        write_scan(tmp_path, f"p{number}", np.where(REGION, 255, 0).astype(np.uint8))
    _, out = run(monkeypatch, capsys, "index", tmp_path, "--json")
    summary = json.loads(out)
    assert 5 <= summary["references_read"] <= 30
    assert summary["reference_values"] == {"0 255": summary["references_read"]}


def test_a_reference_that_cannot_be_decoded_is_counted_by_its_error(tmp_path, monkeypatch, capsys):
    write_scan(tmp_path, "a", np.where(REGION, 255, 0).astype(np.uint8))
    mask = tmp_path / "a" / "image_mask.tif"
    mask.write_bytes(mask.read_bytes()[:200])
    code, out = run(monkeypatch, capsys, "index", tmp_path, "--json")
    assert code == 0
    assert json.loads(out)["reference_values"] == {"UnreadableReferenceError": 1}


def palette_tiff(path: Path) -> None:
    image = Image.fromarray(np.arange(SIZE * SIZE, dtype=np.uint8).reshape(SIZE, SIZE)).convert("P")
    image.putpalette([level for index in range(256) for level in (index, 255 - index, index * 7 % 256)])
    image.save(path)


def test_index_tells_the_three_channels_of_a_palette_tiff(tmp_path, monkeypatch, capsys):
    palette_tiff(tmp_path / "image.tif")
    _, out = run(monkeypatch, capsys, "index", tmp_path, "--json")
    assert json.loads(out)["shapes"] == {"16 x 16 x 3": 1}
