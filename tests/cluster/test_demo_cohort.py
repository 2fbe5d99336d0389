"""Three nights of a made-up cohort, through the command line; a thinner training than the demo has."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest

import raysegment
from raysegment import cli
from raysegment.commands import demo_cohort
from raysegment.errors import UsageError
from raysegment.options import DemoOptions

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.usefixtures("ray_here")]


def run(monkeypatch, capsys, *words: str) -> str:
    """Run the command line in this process; returns standard output."""
    monkeypatch.setattr(sys, "argv", ["raysegment", *words])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert not end.value.code
    return str(capsys.readouterr().out)


def test_three_nights_end_with_pictures_and_go_on_by_hand(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(demo_cohort, "EPOCHS", (1, 2))
    out = tmp_path / "demo"
    command = ("demo", "--cohort", "--patients", "8", "--out", str(out))
    shown = run(monkeypatch, capsys, *command)
    nights = [json.loads(path.read_text()) for path in sorted((out / "cohort" / "runs").glob("*.json"))]
    assert [night["scans_now"] for night in nights] == [4, 6, 8]
    assert [night["is_new_model"] for night in nights] == [False, False, True]
    assert nights[1]["scans"] == {"new": 4, "changed": 2, "failed_before": 0, "unchanged": 2, "vanished": 0}
    for night in nights[1:]:
        changes = out / "cohort" / "changes" / night["result"].rpartition("/")[2]
        picture = changes / "figures" / "largest_changes.png"
        assert picture.is_file()
        assert str(picture) in shown
    compared = pq.read_table(changes / "changes").to_pylist()
    assert {row["state"] for row in compared} == {"compared"}
    assert sorted(row["scan_id"] for row in compared) == [f"PATIENT_{number:04d}" for number in range(1, 9)]
    assert raysegment.open_cohort(str(out / "cohort")).read("scans").num_rows == 8

    started = time.monotonic()
    assert str(picture) in run(monkeypatch, capsys, *command)
    checked = run(monkeypatch, capsys, "cohort", "check", str(out / "cohort.yaml"))
    assert "8 unchanged, 0 vanished; nothing to do" in checked
    assert time.monotonic() - started < 20
    with pytest.raises(UsageError, match="--patients 40 needs 20"):
        demo_cohort.demo_cohort(DemoOptions(out=str(out), cohort=True, patients=40))


def test_a_demo_is_of_volumes_or_of_a_cohort() -> None:
    with pytest.raises(UsageError, match="--cohort does nothing beside --volumes"):
        DemoOptions(cohort=True, volumes=True)
