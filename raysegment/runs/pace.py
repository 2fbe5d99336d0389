"""How long a run on a cohort roughly takes, from the runs before."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from raysegment.store.place import Place

RUNS = "runs"
MOST_RUNS = 10
"""Only the newest runs count: hardware and archives change."""


@dataclass(frozen=True)
class PastRun:
    """A run that ended.

    Attributes:
        group: Folder of the results of the same model and choices.
        scans: It did so many.
        seconds: It took so long in all.
        seconds_startup: Until its first probabilities; 0 where that is not known.
    """

    group: str
    scans: int
    seconds: float
    seconds_startup: float


@dataclass(frozen=True)
class Pace:
    """How fast the runs before were.

    Attributes:
        seconds_startup: Before the first scan, however many there are.
        seconds_per_scan: Afterwards.
        runs: Seen in so many runs.
        is_same_model: They had the model and the choices of the next one.
    """

    seconds_startup: float
    seconds_per_scan: float
    runs: int
    is_same_model: bool

    def estimate_seconds(self, scans: int) -> float:
        """How long a run over some scans roughly takes."""
        return self.seconds_startup + scans * self.seconds_per_scan if scans else 0.0


def read_past_runs(place: Place) -> list[PastRun]:
    """The newest runs that a cohort's folder tells of and that segmented something, oldest first.

    Files that are damaged, or that somebody else put there, are left out: nothing but an estimate rests on them.
    """
    found: list[PastRun] = []
    for name in sorted(place.list_names(RUNS), reverse=True):
        if len(found) == MOST_RUNS:
            break
        if name.endswith(".json") and (run := _read_run(place, name)) is not None:
            found.append(run)
    return found[::-1]


def measure_pace(runs: Sequence[PastRun], group: str) -> Pace | None:
    """How fast runs were, those of the same model and choices if there are any; None where nothing is known.

    Args:
        runs: Those before.
        group: Folder of the results of the next run's model and choices.
    """
    same = [run for run in runs if run.group == group]
    chosen = same or list(runs)
    if not chosen:
        return None
    startup = statistics.median(run.seconds_startup for run in chosen)
    busy = sum(max(0.0, run.seconds - run.seconds_startup) for run in chosen)
    return Pace(startup, busy / sum(run.scans for run in chosen), len(chosen), bool(same))


def show_duration(seconds: float) -> str:
    """A time as people say it: seconds, minutes or hours."""
    if seconds < 90:
        return "a second" if seconds < 1.5 else f"{round(seconds)} seconds"
    if seconds < 90 * 60:
        return f"{round(seconds / 60)} minutes"
    return f"{seconds / 3600:.1f} hours"


def _read_run(place: Place, name: str) -> PastRun | None:
    try:
        stored = json.loads(place.read_bytes(f"{RUNS}/{name}"))
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(stored, dict):
        return None
    scans = _number(stored, "scans_now") or _count_todo(stored.get("scans"))
    seconds = _number(stored, "seconds_total")
    parts = str(stored.get("result")).split("/")
    if not scans or not seconds or len(parts) != 3 or parts[0] != "results":
        return None
    return PastRun(parts[1], int(scans), seconds, _number(stored, "seconds_startup"))


def _count_todo(counts: object) -> float:
    """What a run had to do, as versions say it that do not count what it did."""
    if not isinstance(counts, Mapping):
        return 0.0
    return sum(_number(counts, name) for name in ("new", "changed", "failed_before"))


def _number(stored: Mapping[str, Any], key: str) -> float:
    """A number above 0; 0 for anything else."""
    value = stored.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return 0.0
    return float(value) if math.isfinite(value) and value > 0 else 0.0
