"""Lines of several runs that share one terminal."""

from __future__ import annotations

import json

import pytest

from raysegment.runs.console import Console
from raysegment.store.place import Place


def test_json_lines_name_the_run_that_they_are_of(capsys: pytest.CaptureFixture[str]) -> None:
    console = Console(None, as_json=True, about={"fold": 2})
    console.say("epoch 1/2", loss=0.5)
    console.tell_program("progress", done=3)
    first, second = map(json.loads, capsys.readouterr().out.splitlines())
    assert first == {"event": "message", "fold": 2, "text": "epoch 1/2", "loss": 0.5}
    assert second == {"event": "progress", "fold": 2, "done": 3}


def test_lines_begin_with_the_run_and_its_own_log_does_without(tmp_path, capsys: pytest.CaptureFixture[str]) -> None:
    Console(Place(str(tmp_path)), as_json=False, about={"fold": 0}).say("epoch 1/2")
    assert capsys.readouterr().out.split(" ", 1)[1] == "fold 0: epoch 1/2\n"
    assert (tmp_path / "log.txt").read_text().endswith(" epoch 1/2\n")
    assert "fold" not in (tmp_path / "log.txt").read_text()
