"""What goes wrong at night: full disks, unmounted sources, clocks, edited files, killed runs; without Ray."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from test_resegment import NUM_SCANS, Cohort, add_scans, cohort, models, remove_scan  # noqa: F401

import raysegment
from raysegment.errors import EXIT_FAILED, EXIT_USAGE, DamagedTablesError, DiskFullError, OutputError, UsageError
from raysegment.model.bundle import load_bundle
from raysegment.runs.lock import LOCK_FILE, describe_process
from raysegment.store.place import Place
from raysegment.store.publish import read_rows

LONG_AGO = 1_000_000
"""Seconds since 1970, in a year in which there were no cohorts."""


@pytest.fixture
def small_disk(tmp_path: Path, cohort: Cohort) -> Iterator[Path]:  # noqa: F811
    """The cohort's folder on a file system of its own."""
    cohort.out.mkdir()
    words = ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(cohort.out)]
    done = subprocess.run(words, capture_output=True)
    if done.returncode:
        pytest.skip(f"a tmpfs cannot be mounted here: {done.stderr.decode().strip()}")
    yield cohort.out
    subprocess.run(["umount", "-l", str(cohort.out)], check=False)


def fill(disk: Path) -> None:
    """Leave no room."""
    with (disk / "filler").open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            return


@pytest.mark.parametrize("scans_before", [0, 4, NUM_SCANS])
def test_a_disk_that_fills_up_leaves_the_night_before_and_the_same_command_goes_on(
    cohort: Cohort,  # noqa: F811
    models: tuple[Path, Path],  # noqa: F811
    small_disk: Path,
    scans_before: int,
) -> None:
    first = cohort.run()
    before = cohort.current()
    cohort.write_file(models[1])
    stub = cohort.infer

    def fill_afterwards(*words: object, **choices: object):
        try:
            return stub(*words, **choices)
        finally:
            fill(small_disk)

    if scans_before == NUM_SCANS:
        cohort.infer = fill_afterwards
    else:
        cohort.during = lambda count: fill(small_disk) if count == scans_before else None
    with pytest.raises(DiskFullError, match=r"no space left while writing .* make room and run the same") as caught:
        cohort.run()
    assert caught.value.exit_code == EXIT_FAILED
    assert (len(cohort.segmented), cohort.current()) == (min(scans_before + 1, NUM_SCANS), before)
    assert json.loads((cohort.out / "current.json").read_text())["result"] == first.result
    (small_disk / "filler").unlink()
    cohort.infer, cohort.during = stub, lambda count: None
    again = cohort.run()
    assert (again.has_moved, len(cohort.segmented)) == (True, NUM_SCANS - scans_before)
    assert pq.read_table(cohort.out / "members").num_rows == NUM_SCANS


def empty(folder: Path) -> None:
    for scan in folder.iterdir():
        shutil.rmtree(scan)


@pytest.mark.parametrize(
    ("unmount", "said"), [(shutil.rmtree, "archive"), (empty, "archive .*no scan|no scan.*archive")]
)
def test_a_source_that_is_not_mounted_costs_nothing(
    cohort: Cohort,  # noqa: F811
    unmount: Callable[[Path], None],
    said: str,
) -> None:
    first = cohort.run()
    files = sorted(path for path in cohort.out.rglob("*") if path.name not in ("log.txt", LOCK_FILE))
    members = pq.read_table(cohort.out / "members")
    shutil.copytree(cohort.archive, cohort.folder / "kept")
    unmount(cohort.archive)
    for allow in (False, True):
        with pytest.raises(UsageError, match=said) as caught:
            cohort.run(allow_mass_vanish=allow)
        assert (caught.value.exit_code, "\n" in str(caught.value)) == (EXIT_USAGE, False)
    assert sorted(path for path in cohort.out.rglob("*") if path.name not in ("log.txt", LOCK_FILE)) == files
    assert pq.read_table(cohort.out / "members").equals(members)
    shutil.rmtree(cohort.archive, ignore_errors=True)
    shutil.copytree(cohort.folder / "kept", cohort.archive, copy_function=shutil.copy2)
    assert (cohort.run().result, cohort.segmented) == (first.result, [])


def test_a_clock_that_is_set_back_changes_no_order(
    cohort: Cohort,  # noqa: F811
    models: tuple[Path, Path],  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    runs = [cohort.run()]
    long_ago, gmtime = float(LONG_AGO), time.gmtime
    monkeypatch.setattr(time, "time", lambda: long_ago)
    monkeypatch.setattr(time, "gmtime", lambda seconds=long_ago: gmtime(seconds))
    add_scans(cohort, 1)
    remove_scan(cohort, 3)
    runs.append(cohort.run())
    cohort.write_file(models[1])
    runs.append(cohort.run())
    monkeypatch.undo()
    cohort.write_file(models[0])
    runs.append(cohort.run())
    names = [run.result.rpartition("/")[2] for run in runs]
    assert [name[:7] for name in names] == ["000001-", "000002-", "000003-", "000004-"]
    assert names[1].startswith("000002-1970")
    assert sorted(path.name for path in cohort.out.glob("results/*/*")) == names[2:], "by number, not by time"
    assert json.loads((cohort.out / "current.json").read_text())["result"] == runs[3].result
    members = pq.read_table(cohort.out / "members").to_pylist()
    assert len(members) == NUM_SCANS + 1
    assert all(row["first_seen"] <= row["last_seen"] for row in members)
    assert all(row["vanished_at"] is None or row["last_seen"] <= row["vanished_at"] for row in members)


def test_a_cohort_file_edited_while_a_run_goes_on_counts_from_the_next_one(
    cohort: Cohort,  # noqa: F811
    models: tuple[Path, Path],  # noqa: F811
) -> None:
    def edit(count: int) -> None:
        cohort.write_file(models[1], "scans: ['*_000[1-4]']", "keep: 5")

    cohort.during = edit
    first = cohort.run()
    assert len(cohort.segmented) == NUM_SCANS
    assert set(read_rows(Place(str(cohort.out / first.result)), "scans")["model_id"].to_pylist()) == {
        load_bundle(models[0]).model_id
    }
    cohort.during = lambda count: None
    second = cohort.run(allow_mass_vanish=True)
    assert second.is_new_model
    assert sorted(cohort.current()) == [f"PHANTOM_000{number}" for number in (1, 2, 3, 4)]
    cohort.during = lambda count: (cohort.folder / "cohort.yaml").write_text("name: [broken\n")
    cohort.change(1)
    assert cohort.run().has_moved
    with pytest.raises(UsageError, match=r"cohort\.yaml"):
        cohort.run()


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"null", b'{"result": 3}', b"\xff\xfe", b"\0" * 4096, b'{"result": "results/a/b"}'],
)
def test_a_damaged_current_stops_runs_and_readers_and_loses_nothing(cohort: Cohort, content: bytes) -> None:  # noqa: F811
    cohort.run()
    whole = (cohort.out / "current.json").read_bytes()
    before = cohort.current()
    cohort.change(1)
    (cohort.out / "current.json").write_bytes(content)
    for read in (cohort.run, cohort.current):
        with pytest.raises(DamagedTablesError, match=r"current\.json cannot be read .*restore it, or delete it"):
            read()
    assert cohort.segmented == []
    (cohort.out / "current.json").write_bytes(whole)
    assert cohort.current() == before
    assert cohort.run().has_moved


def test_a_current_that_was_deleted_segments_anew_beside_what_is_there(cohort: Cohort) -> None:  # noqa: F811
    first = cohort.run()
    (cohort.out / "current.json").unlink()
    with pytest.raises(UsageError, match="has no current result"):
        cohort.current()
    again = cohort.run()
    assert again.has_moved
    assert (again.result, cohort.segmented) == (first.result, []), "the same model's night goes on, with all of it done"


def test_a_current_that_may_not_be_read_is_not_taken_for_damage(cohort: Cohort) -> None:  # noqa: F811
    cohort.run()
    (cohort.out / "current.json").unlink()
    (cohort.out / "current.json").mkdir()
    with pytest.raises(OutputError, match=r"current\.json cannot be read: .* is a directory"):
        cohort.run()


def test_the_lock_of_a_killed_run_is_nobodys(cohort: Cohort) -> None:  # noqa: F811
    cohort.run()
    cohort.change(1)
    process = subprocess.Popen([sys.executable, "-c", "pass"])
    process.wait()
    owner = describe_process() | {"pid": process.pid, "token": "killed", "process_start": "1"}
    (cohort.out / LOCK_FILE).write_text(json.dumps(owner))
    assert cohort.run().has_moved
    assert not (cohort.out / LOCK_FILE).exists()


def test_a_result_that_a_killed_run_did_not_clear_away_never_stands_for_a_night(
    cohort: Cohort,  # noqa: F811
    models: tuple[Path, Path],  # noqa: F811
) -> None:
    runs = [cohort.run()]
    cohort.change(1)
    runs.append(cohort.run())
    number = runs[1].result.rpartition("/")[2]
    overtaken = cohort.out / "results" / "another-model" / f"{number[:6]}-20200101T000000Z"
    shutil.copytree(cohort.out / runs[1].result, overtaken)
    cohort.change(2)
    runs.append(cohort.run())
    assert not overtaken.exists()
    kept = sorted(str(path.relative_to(cohort.out)) for path in cohort.out.glob("results/*/*"))
    assert kept == sorted(run.result for run in runs[1:])
    assert raysegment.open_cohort(str(cohort.out)).read("scans").num_rows == NUM_SCANS
    assert os.path.isdir(cohort.out / "changes" / number)
