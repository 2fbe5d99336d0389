"""How long a run roughly takes, from what a cohort's folder tells of the runs before."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from raysegment.runs.pace import MOST_RUNS, PastRun, measure_pace, read_past_runs, show_duration
from raysegment.store.place import Place

OLD, NEW = "aaaaaaaaaaaa-111111111111", "bbbbbbbbbbbb-111111111111"


def write_run(folder: Path, number: int, **stored: object) -> None:
    (folder / "runs").mkdir(exist_ok=True)
    name = f"{number:06d}-20260101T020000Z"
    content = {"result": f"results/{OLD}/{name}", "seconds_startup": 20.0} | stored
    (folder / "runs" / f"{name}.json").write_text(json.dumps(content))


def test_seconds_per_scan_are_those_after_the_start_over_all_runs(tmp_path: Path) -> None:
    write_run(tmp_path, 1, scans_now=100, seconds_total=220.0)
    write_run(tmp_path, 2, scans_now=20, seconds_total=60.0)
    write_run(tmp_path, 3, scans_now=40, seconds_total=110.0, seconds_startup=30.0)
    pace = measure_pace(read_past_runs(Place(str(tmp_path))), OLD)
    assert pace is not None
    assert (pace.seconds_startup, pace.runs, pace.is_same_model) == (20.0, 3, True)
    assert pace.seconds_per_scan == pytest.approx((200 + 40 + 80) / 160)
    assert pace.estimate_seconds(50) == pytest.approx(20 + 50 * 2.0)
    assert pace.estimate_seconds(0) == 0


def test_runs_of_the_same_model_count_alone_if_there_are_any() -> None:
    runs = [PastRun(OLD, 10, 100.0, 0.0), PastRun(NEW, 10, 30.0, 0.0)]
    pace = measure_pace(runs, NEW)
    assert pace is not None
    assert (pace.seconds_per_scan, pace.is_same_model) == (3.0, True)
    other = measure_pace(runs, "cccccccccccc-111111111111")
    assert other is not None
    assert (other.seconds_per_scan, other.runs, other.is_same_model) == (6.5, 2, False)
    assert measure_pace([], NEW) is None


def test_the_newest_runs_count_and_older_records_tell_what_was_to_do(tmp_path: Path) -> None:
    for number in range(1, MOST_RUNS + 6):
        write_run(
            tmp_path, number, scans={"new": 1, "changed": 2, "failed_before": 1, "unchanged": 9}, seconds_total=40.0
        )
    runs = read_past_runs(Place(str(tmp_path)))
    assert runs == [PastRun(OLD, 4, 40.0, 20.0)] * MOST_RUNS


@pytest.mark.parametrize(
    "stored",
    [
        {"scans_now": 0, "seconds_total": 5.0},
        {"scans_now": 3},
        {"scans_now": "3", "seconds_total": 5.0},
        {"scans_now": 3, "seconds_total": -5.0},
        {"scans_now": 3, "seconds_total": 5.0, "result": "../../etc"},
        {"scans_now": True, "scans": [1], "seconds_total": 5.0},
        {"scans_now": 3, "seconds_total": float("nan")},
    ],
)
def test_records_that_tell_nothing_are_left_out(tmp_path: Path, stored: dict) -> None:
    write_run(tmp_path, 1, scans_now=10, seconds_total=70.0)
    write_run(tmp_path, 2, **stored)
    (tmp_path / "runs" / "000003-20260101T020000Z.json").write_text("{half")
    (tmp_path / "runs" / "000004-20260101T020000Z.json").write_text("[" * 100_000)
    (tmp_path / "runs" / "notes.txt").write_text("of a person")
    assert read_past_runs(Place(str(tmp_path))) == [PastRun(OLD, 10, 70.0, 20.0)]


def test_no_runs_are_none(tmp_path: Path) -> None:
    assert read_past_runs(Place(str(tmp_path / "nowhere"))) == []


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0.2, "a second"), (89, "89 seconds"), (91, "2 minutes"), (3600, "60 minutes"), (9000, "2.5 hours")],
)
def test_times_are_said_as_people_say_them(seconds: float, shown: str) -> None:
    assert show_duration(seconds) == shown
