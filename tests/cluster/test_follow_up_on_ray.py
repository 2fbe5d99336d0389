"""Dates and limits of reviews through real inference: new rows and linked ones agree, nothing is done twice."""

from __future__ import annotations

import shutil
from datetime import date
from pathlib import Path

import pyarrow.parquet as pq
import pytest

import raysegment
from raysegment.commands.infer import infer
from raysegment.commands.resegment import resegment
from raysegment.options import InferOptions, ResegmentOptions
from raysegment.store.place import Place
from raysegment.store.publish import read_rows

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("ray_here")]

NAMES = ("A_20200101", "A_20210101", "A_20220701", "B_20200101", "B_undated")
PATTERN = r"_(?P<date>\d{8})$"


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory, phantom_archive: Path) -> Path:
    folder = tmp_path_factory.mktemp("dated") / "archive"
    for number, name in enumerate(NAMES, start=1):
        shutil.copytree(phantom_archive / f"PHANTOM_{number:04d}", folder / name)
    return folder


def run_night(folder: Path, archive: Path, model: Path, *lines: str) -> dict[str, dict]:
    """One night, and its rows of metrics by scan."""
    text = f"name: dated\nsource: {archive}\nmodel: {model}\nout: cohort\n" + "".join(f"{line}\n" for line in lines)
    text += f"infer:\n  date_pattern: '{PATTERN}'\n  patient_pattern: '^(.)'\n  spacing_mm: [5, 1, 1]\n"
    folder.mkdir(exist_ok=True)
    (folder / "cohort.yaml").write_text(text)
    resegment(ResegmentOptions(cohort=str(folder / "cohort.yaml")))
    rows = raysegment.open_cohort(str(folder / "cohort")).read("metrics").to_pylist()
    return {row["scan_id"]: row for row in rows}


def test_rows_that_were_linked_are_judged_as_those_that_are_new(tmp_path: Path, archive: Path, tiny_bundle: Path):
    first = run_night(tmp_path / "linked", archive, tiny_bundle, "scans: ['A_*', B_2*]")
    growth = pq.read_table(tmp_path / "linked" / "cohort" / "trajectories" / "growth.parquet").to_pylist()
    assert [(row["patient_id"], row["num_scans"], row["days"]) for row in growth] == [("A", 3, 912)]
    shares = sorted(row["share_near_threshold"] for row in first.values())
    limits = ("review:", f"  share_near_threshold_above: {(shares[1] + shares[2]) / 2}", "  mirror_dice_below: null")
    linked = run_night(tmp_path / "linked", archive, tiny_bundle, *limits)
    fresh = run_night(tmp_path / "fresh", archive, tiny_bundle, *limits)
    judged = {scan_id: row["needs_review"] for scan_id, row in linked.items()}
    assert judged == {scan_id: row["needs_review"] for scan_id, row in fresh.items()}
    assert set(judged) == set(NAMES)
    assert set(judged.values()) == {True, False}
    scans = raysegment.open_cohort(str(tmp_path / "linked" / "cohort")).read("scans").to_pylist()
    assert {row["scan_id"]: row["attempt"] for row in scans}["A_20200101"] == 1
    assert {row["scan_date"] for row in scans if row["scan_id"] == "A_20220701"} == {date(2022, 7, 1)}
    assert {row["scan_date"] for row in scans if row["scan_id"] == "B_undated"} == {None}


def test_a_finished_folder_gets_its_dates_without_segmenting(tmp_path: Path, archive: Path, tiny_bundle: Path, capsys):
    choices = {"model": str(tiny_bundle), "source": str(archive), "out": str(tmp_path / "out")}
    assert infer(InferOptions(**choices)).scans_now == 5
    assert read_rows(Place(str(tmp_path / "out")), "scans")["scan_date"].null_count == 5
    capsys.readouterr()
    assert infer(InferOptions(**choices, date_pattern=PATTERN)).scans_now == 0
    said = capsys.readouterr().out
    assert "warning: --date-pattern finds no date in B_undated; these scans have none" in said
    assert "brought up to date, not segmented again: 4 scans with another date" in said
    assert infer(InferOptions(**choices)).scans_now == 0
    scans = read_rows(Place(str(tmp_path / "out")), "scans").to_pylist()
    assert {row["scan_id"]: row["scan_date"] for row in scans}["A_20210101"] == date(2021, 1, 1)
