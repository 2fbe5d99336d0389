"""The line of an epoch."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from raysegment.runs.console import Console
from raysegment.runs.progress import EpochProgress
from raysegment.store.place import Place

ROW = {
    "epoch": 3,
    "loss": 0.5,
    "dice": 0.6,
    "val_loss": 0.7,
    "val_dice": 0.8,
    "slices_per_second": 10.0,
    "data_wait_share": 0.01,
    "seconds": 12.0,
}
WORST = [("a/1", 0.123), ("b\n2", 0.4567)]


def test_the_worst_scans_end_the_line_and_what_cannot_be_printed_is_escaped(tmp_path: Path) -> None:
    EpochProgress(Console(Place(str(tmp_path)), as_json=False)).epoch_done(ROW, 3, 9, WORST)
    line = (tmp_path / "log.txt").read_text(encoding="utf-8")
    assert "epoch 3/9" in line
    assert line.rstrip().endswith("12 s  worst: a/1 0.12, b\\n2 0.46")


def test_without_worst_scans_the_line_says_nothing_of_them(tmp_path: Path) -> None:
    EpochProgress(Console(Place(str(tmp_path)), as_json=False)).epoch_done(ROW, 3, 9)
    assert (tmp_path / "log.txt").read_text(encoding="utf-8").rstrip().endswith("12 s")


def test_programs_get_them_as_a_list(capsys: pytest.CaptureFixture[str]) -> None:
    EpochProgress(Console(None, as_json=True)).epoch_done(ROW, 3, 9, WORST)
    message = json.loads(capsys.readouterr().out)
    assert message["worst"] == [{"scan_id": "a/1", "dice": 0.123}, {"scan_id": "b\n2", "dice": 0.4567}]
    assert message["val_dice"] == 0.8
