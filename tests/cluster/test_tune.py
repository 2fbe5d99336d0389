"""A search on Ray Tune: what is drawn, what is refused, and a search that is killed."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raysegment.choices import load_options
from raysegment.cluster import tuning
from raysegment.cluster.tuning import TrialTask, describe_epoch, draw_trials, keep_for_all, make_scheduler
from raysegment.commands.report import report
from raysegment.commands.tune import choose_trials, tune
from raysegment.errors import UsageError
from raysegment.imaging.phantom import write_archive
from raysegment.options import ReportOptions, SearchOptions, TrainOptions, TuneOptions
from raysegment.pipeline.learn import Progress
from raysegment.pipeline.search_space import Varied
from raysegment.pipeline.trials import Trial, find_progress

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("ray_here")]

SPACE = """source: {source}
image_size: 32
depth: 2
batch_size: 4
epochs: 3
grace_epochs: 2
reduction: 2
precision: float32
train_fraction: 0.6
val_fraction: 0.4
seed: 4
trials: 3
space:
  learning_rate: {{log_range: [0.001, 0.02]}}
  filters: {{choice: [2, 4]}}
"""
DRIVER = """
import sys
from raysegment.commands.tune import tune
from raysegment.options import TuneOptions
sys.exit(tune(TuneOptions(space=sys.argv[1], out=sys.argv[2], address=sys.argv[3])).exit_code)
"""


@pytest.fixture(scope="module")
def space(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("search")
    write_archive(folder / "phantoms", patients=6, seed=2, image_size=64, slices=4)
    path = folder / "SPACE.yaml"
    path.write_text(SPACE.format(source=folder / "phantoms"))
    return str(path)


@pytest.fixture
def start_driver(ray_here: str) -> Iterator[Callable[[str, Path], subprocess.Popen[bytes]]]:
    """Starts a search in a process of its own, which joins the tests' Ray and ends with the test."""
    drivers = []

    def start(space: str, out: Path) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-c", DRIVER, space, str(out), ray_here]
        drivers.append(subprocess.Popen(command, stdout=subprocess.DEVNULL))
        return drivers[-1]

    yield start
    for driver in drivers:
        driver.kill()
        driver.wait()


def wait_for(condition: Callable[[], bool], driver: subprocess.Popen[bytes], seconds: float = 300) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert driver.poll() is None, "the search ended before"
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


@given(st.integers(0, 10**6), st.integers(1, 12))
@settings(max_examples=20, deadline=None)
def test_trials_differ_lie_in_their_ranges_and_begin_alike_for_any_number(seed, num_trials):
    space = (
        Varied(name="learning_rate", kind="log_range", values=(1e-4, 1e-2)),
        Varied(name="dropout", kind="range", values=(0.0, 0.5)),
        Varied(name="filters", kind="range", values=(4, 6), is_integer=True),
        Varied(name="depth", kind="log_range", values=(2, 5), is_integer=True),
        Varied(name="loss", kind="choice", values=("dice", "bce")),
    )
    drawn = draw_trials(space, num_trials, seed)
    assert drawn == draw_trials(space, num_trials + 3, seed)[:num_trials]
    assert len({repr(values) for values in drawn}) == num_trials
    for values in drawn:
        assert 1e-4 <= values["learning_rate"] <= 1e-2
        assert 0 <= values["dropout"] <= 0.5
        assert values["filters"] in (4, 5, 6)
        assert values["depth"] in (2, 3, 4, 5)
        assert values["loss"] in ("dice", "bce")
        assert [type(value) for value in values.values()] == [float, float, int, int, str]


def test_both_ends_of_a_whole_range_are_drawn_and_a_small_space_wholly():
    space = (Varied(name="filters", kind="range", values=(4, 7), is_integer=True),)
    assert sorted(values["filters"] for values in draw_trials(space, 4, seed=0)) == [4, 5, 6, 7]


def test_options_that_do_not_go_together_are_refused_before_anything_starts(space, tmp_path):
    path = tmp_path / "SPACE.yaml"
    text = Path(space).read_text().replace("image_size: 32\n", "").replace("trials: 3", "trials: 8")
    path.write_text(text + "  image_size: {choice: [32, 34]}\n")
    with pytest.raises(UsageError, match=r"trial 000\d would have .*--image-size 34.* must divide by 4"):
        tune(TuneOptions(space=str(path), out=str(tmp_path / "out")))
    assert not (tmp_path / "out").exists()


def test_a_search_keeps_its_trials_and_is_given_new_ones():
    asked = TuneOptions(space="SPACE.yaml", out="out")
    drawn = [Trial(trial=f"000{number}", drawn={"filters": number}) for number in (1, 2, 3)]
    kept = Trial(trial="0001", drawn={"filters": 3}, status="failed", error="RunError: no")
    chosen = choose_trials(drawn, [kept], asked)
    assert [(trial.trial, trial.drawn["filters"]) for trial in chosen] == [("0001", 3), ("0002", 1), ("0003", 2)]
    assert [trial.status for trial in chosen] == ["failed", "waiting", "waiting"]
    again = choose_trials(drawn, [kept], TuneOptions(space="SPACE.yaml", out="out", retry_failed=True))
    assert (again[0].status, again[0].error) == ("waiting", None)
    assert choose_trials(drawn[:1], [drawn[0], drawn[1]], asked) == [drawn[0]]
    with pytest.raises(UsageError, match="holds a search of 2 trials; 1 are fewer"):
        choose_trials(drawn[:1], [drawn[0], kept], asked)


def test_asha_stops_a_trial_that_falls_behind_after_the_epochs_that_each_has():
    options = TrainOptions(source="archive", out="out", epochs=9)
    task = TrialTask(trial="0001", options=options, facts={}, has_ended=False)
    scheduler = make_scheduler(SearchOptions(grace_epochs=2, reduction=2), [task])
    scheduler.set_search_properties("val_dice", "max")
    trials = {dice: SimpleNamespace(trial_id=str(dice)) for dice in (0.5, 0.7, 0.3, 0.6)}
    decided = {dice: [] for dice in trials}
    for dice, trial in trials.items():
        scheduler.on_trial_add(None, trial)
        for epoch in (1, 2, 3):
            decided[dice].append(scheduler.on_trial_result(None, trial, {"epoch": epoch, "val_dice": dice}))
    # Of those that had come so far a trial must be among the better half: 0.6 is, of 0.5, 0.7 and 0.3.
    assert decided[0.5] == decided[0.7] == decided[0.6] == ["CONTINUE"] * 3
    assert decided[0.3] == ["CONTINUE", "STOP", "CONTINUE"]
    never = make_scheduler(SearchOptions(scheduler="none"), [task])
    assert never.on_trial_result(None, trials[0.3], {"epoch": 9, "val_dice": 0.0}) == "CONTINUE"


def test_a_trial_is_judged_by_its_best_epoch_so_far():
    history = [{"val_dice": dice} for dice in (float("nan"), 0.4, 0.2, 0.6)]
    progress = Progress(epoch=4, history=history)
    told = [describe_epoch(progress, epoch) for epoch in (1, 2, 3, 4)]
    assert [facts["val_dice"] for facts in told] == [-1.0, 0.4, 0.4, 0.6]
    assert [facts["epoch"] for facts in told] == [1, 2, 3, 4]


def test_scans_are_kept_once_unless_trials_differ_in_how_they_are_read(monkeypatch):
    monkeypatch.setattr(tuning, "keep_all", lambda options, *_: options.image_size)
    one, other = (TrainOptions(source="archive", out="out", image_size=size) for size in (64, 128))
    same = replace(one, filters=8, learning_rate=0.1)
    assert keep_for_all([one, same], None, None, None) == 64
    assert keep_for_all([one, other], None, None, None) is None


def test_a_ray_client_is_refused(space, tmp_path):
    with pytest.raises(UsageError, match="give auto or host:port"):
        tune(TuneOptions(space=space, out=str(tmp_path / "out"), address="ray://head:10001"))


def test_a_search_that_is_killed_goes_on_and_ends_with_the_trials_it_was_asked_for(space, tmp_path, start_driver):
    out = tmp_path / "out"
    (out / "trials" / "0003").mkdir(parents=True)
    (out / "trials" / "0003" / "notes.txt").write_text("of somebody else")
    driver = start_driver(space, out)
    wait_for(lambda: find_progress(out / "trials" / "0002").epoch > 0, driver)
    driver.kill()
    driver.wait()
    first = (out / "trials" / "0001" / "history.parquet").stat().st_mtime_ns
    begun = find_progress(out / "trials" / "0002").history[0]
    before = json.loads((out / "run.json").read_text())["trials"]
    assert before[0]["status"] == "done"
    assert [trial["status"] for trial in before[1:]] == ["waiting"] * 2
    # As if it had been killed after the first trial's end, and before it was noted.
    record = json.loads((out / "run.json").read_text())
    record["trials"][0]["status"] = "waiting"
    (out / "run.json").write_text(json.dumps(record))

    driver = start_driver(space, out)
    assert driver.wait(timeout=400) == 3
    assert (out / "trials" / "0001" / "history.parquet").stat().st_mtime_ns == first
    assert find_progress(out / "trials" / "0002").history[0] == begun
    table = pq.read_table(out / "trials.parquet").to_pylist()
    assert [row["trial"] for row in table] == ["0001", "0002", "0003"]
    assert [row["learning_rate"] for row in table] == [trial["drawn"]["learning_rate"] for trial in before]
    assert table[0]["status"] == "done"
    assert table[2]["status"] == "failed"
    assert table[2]["error"].startswith("UsageError: ")
    for row in table:
        assert row["status"] in ("done", "stopped", "failed")
        assert row["status"] != "done" or (row["epochs"] == 3 and row["val_dice"] is not None)
        assert row["status"] != "stopped" or row["epochs"] >= 2
    records = [json.loads((out / "trials" / name / "run.json").read_text()) for name in ("0001", "0002")]
    assert len({record["data_id"] for record in records}) == 1
    for name in (".", "trials/0001", "trials/0002"):
        assert report(ReportOptions(folder=str(out / name))).figures

    best = load_options(TrainOptions, {}, job=str(out / "best.yaml"))
    done = [row for row in table if row["status"] == "done"]
    assert best.learning_rate == max(done, key=lambda row: row["val_dice"])["learning_rate"]
    assert (best.split_file, best.epochs) == (str(out / "split.json"), 3)
    assert tune(TuneOptions(space=space, out=str(out))).already_done
    other = tmp_path / "OTHER.yaml"
    other.write_text(Path(space).read_text().replace("epochs: 3", "epochs: 4"))
    with pytest.raises(UsageError, match=r"epochs was 3, is 4"):
        tune(TuneOptions(space=str(other), out=str(out)))
