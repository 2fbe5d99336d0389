"""A search while it runs: what is kept of its trials, and what an MLflow server is told."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow.parquet as pq
import pytest

from raysegment.commands.search_progress import Search, SearchProgress, describe_drawn
from raysegment.errors import UsageError
from raysegment.pipeline.search_space import read_search_plan
from raysegment.pipeline.trials import Trial
from raysegment.runs.console import Console
from raysegment.store.place import Place

SPACE = "source: archive\ntrials: 3\nimage_size: 32\nspace:\n  filters: {range: [2, 8]}\n  depth: {choice: [2, 6]}\n"


class Server:
    """Stands for the search on an MLflow server."""

    def __init__(self) -> None:
        self.told: list[tuple[Any, ...]] = []

    def nest(self, folder: Path, name: str, params: dict[str, Any]) -> SimpleNamespace:
        self.told.append((name, folder.name, params["filters"]))
        return SimpleNamespace(finish=lambda end: self.told.append((name, end.status)))


def make_search(folder: Path) -> Search:
    (folder / "SPACE.yaml").write_text(SPACE)
    return Search(read_search_plan(str(folder / "SPACE.yaml")), folder / "out", None)


def make_progress(folder: Path) -> SearchProgress:
    search = make_search(folder)
    (folder / "out" / "figures").mkdir(parents=True)
    trials = [Trial(trial=f"000{number}", drawn={"filters": number + 1, "depth": 2}) for number in (1, 2, 3)]
    return SearchProgress(search, trials, None, {"command": "tune"}, Console(Place(str(folder / "out")), as_json=False))


def test_how_a_trial_ended_is_kept_at_once(tmp_path):
    progress = make_progress(tmp_path)
    progress.begin("0002")
    progress.end("0002", "failed", "DivergedError: the loss is not a number")
    progress.end("0003", "failed", "InterruptedRunError: interrupted by SIGTERM")
    kept = json.loads((tmp_path / "out" / "run.json").read_text())["trials"]
    assert [trial["status"] for trial in kept] == ["waiting", "failed", "waiting"]
    table = pq.read_table(tmp_path / "out" / "trials.parquet").to_pydict()
    assert table["status"] == ["waiting", "failed", "waiting"]
    assert table["error"] == [None, "DivergedError: the loss is not a number", None]
    assert "trial 0002 begins: --filters 3, --depth 2" in (tmp_path / "out" / "log.txt").read_text()


def test_a_search_without_a_finished_trial_ends_with_a_table_and_no_recipe(tmp_path):
    progress = make_progress(tmp_path)
    progress.end("0001", "failed", "RunError: no")
    progress.write_results()
    assert (tmp_path / "out" / "figures" / "trials.png").is_file()
    assert not (tmp_path / "out" / "best.yaml").exists()


def test_trials_are_nested_in_the_search_on_a_server(tmp_path):
    progress = make_progress(tmp_path)
    progress.tracker = Server()
    progress.begin("0001")
    progress.end("0001", "stopped", None)
    progress.begin("0003")
    progress.end("0003", "failed", "RunError: no")
    told = [("trial 0001", "0001", 2), ("trial 0001", "KILLED"), ("trial 0003", "0003", 4), ("trial 0003", "FAILED")]
    assert progress.tracker.told == told


def test_the_record_of_a_stopped_trial_says_so_and_its_lock_is_gone(tmp_path):
    progress = make_progress(tmp_path)
    folder = tmp_path / "out" / "trials" / "0001"
    folder.mkdir(parents=True)
    (folder / "run.json").write_text('{"command": "train", "status": "running"}')
    (folder / "_lock.json").write_text("{}")
    progress.end("0001", "stopped", None)
    assert json.loads((folder / "run.json").read_text())["status"] == "stopped"
    assert not (folder / "_lock.json").exists()


def test_options_that_do_not_go_together_name_the_trial_and_what_it_drew(tmp_path):
    search = make_search(tmp_path)
    with pytest.raises(UsageError, match=r"trial 0007 would have --filters 3, --depth 6: --image-size 32 must divide"):
        search.make_options(Trial(trial="0007", drawn={"filters": 3, "depth": 6}))


def test_what_was_drawn_is_shown_as_it_is_typed():
    assert describe_drawn({"learning_rate": 0.00123, "flip": False}) == "--learning-rate 0.00123, --no-flip"
