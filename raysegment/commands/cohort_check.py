"""`raysegment cohort check`: what a run on a cohort would do, and roughly how long; nothing is written."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field

from raysegment.cluster.session import interruptible
from raysegment.commands.resegment import Night
from raysegment.errors import EXIT_DONE
from raysegment.options import CohortCheckOptions, ResegmentOptions
from raysegment.runs.cohort import CohortFolder
from raysegment.runs.cohort_file import read_cohort
from raysegment.runs.cohort_results import name_group
from raysegment.runs.console import Console
from raysegment.runs.pace import Pace, measure_pace, read_past_runs, show_duration

TODO = ("new", "changed", "failed_before")


@dataclass(frozen=True, kw_only=True)
class CohortCheckResult:
    """What a run would do.

    Attributes:
        cohort: Its name.
        result: Folder of the current result, below the cohort's; None where there is none.
        scans: How many are `new`, `changed`, `failed_before`, `unchanged` and `vanished`.
        is_new_model: Model or choices are others than those of the current result, so that all scans are done again.
        amended: Finished rows that would be brought up to date without segmenting, as in `ResegmentResult`.
        scans_to_segment: So many would be segmented.
        seconds: Roughly so long; None where no run before tells.
        seconds_per_scan: As in the runs before.
        seconds_startup: As in the runs before.
        runs_before: It is known from so many.
        exit_code: Always 0.
    """

    cohort: str
    result: str | None
    scans: dict[str, int] = field(default_factory=dict)
    is_new_model: bool = False
    amended: dict[str, int] = field(default_factory=dict)
    scans_to_segment: int = 0
    seconds: float | None = None
    seconds_per_scan: float | None = None
    seconds_startup: float | None = None
    runs_before: int = 0
    exit_code: int = EXIT_DONE


@interruptible()
def check_cohort(options: CohortCheckOptions) -> CohortCheckResult:
    """Look at a cohort as `resegment` does before it begins, and say what it would do.

    Raises:
        UsageError: The cohort file, the source or the model cannot be used, or too many scans are gone at once: where
            `resegment` would refuse to begin.
        DamagedTablesError: The cohort's folder is damaged.
    """
    cohort = read_cohort(options.cohort)
    folder = CohortFolder(cohort.chosen.out)
    run = ResegmentOptions(cohort=options.cohort, allow_mass_vanish=options.allow_mass_vanish, json=options.json)
    night = Night(cohort, run, folder)
    night.look()
    todo = sum(night.counts[name] for name in TODO)
    group = name_group(night.bundle.model_id, night.options_id)
    pace = measure_pace(read_past_runs(folder.place), group) if night.has_work else None
    console = Console(None, as_json=options.json)
    night.say_plan(console)
    if night.has_work:
        console.say(describe_pace(todo, pace))
    return CohortCheckResult(
        cohort=cohort.chosen.name,
        result=night.current.result if night.current else None,
        scans=night.counts,
        is_new_model=night.is_new_model,
        amended=asdict(night.outdated),
        scans_to_segment=todo,
        seconds=None if pace is None else pace.estimate_seconds(todo),
        seconds_per_scan=None if pace is None else pace.seconds_per_scan,
        seconds_startup=None if pace is None else pace.seconds_startup,
        runs_before=0 if pace is None else pace.runs,
    )


def describe_pace(scans: int, pace: Pace | None) -> str:
    """How long a run roughly takes, and how that is known."""
    if not scans:
        return "no scan to segment: a new result is made of what is there"
    count = "1 scan" if scans == 1 else f"{scans} scans"
    if pace is None:
        return f"{count} to segment; how long that takes is not known, because no run has ended yet"
    runs = "the run" if pace.runs == 1 else f"the {pace.runs} runs"
    model = "" if pace.is_same_model else ", which had another model or other choices"
    return (
        f"{count} to segment in about {show_duration(pace.estimate_seconds(scans))}: "
        f"{pace.seconds_per_scan:.2g} s a scan and {pace.seconds_startup:.0f} s to start, as in {runs} before{model}"
    )
