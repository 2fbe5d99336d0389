"""`raysegment tune`: a search for the best options of a training, on Ray Tune."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from raysegment.archive.split import SPLITS
from raysegment.cluster.session import (
    check_temp_dir,
    interruptible,
    ray_session,
    run_interruptibly,
    set_environment,
)
from raysegment.commands.search_progress import RECIPE_FILE, SPLIT_FILE, Search, SearchProgress
from raysegment.commands.training_data import TrainingData, check_choices, find_training_data
from raysegment.errors import EXIT_DONE, EXIT_FAILED, EXIT_SOME_SCANS_FAILED, UsageError
from raysegment.model.init_from import adopt_origin
from raysegment.options import TuneOptions
from raysegment.pipeline.search_space import SearchPlan, read_search_plan, with_trials
from raysegment.pipeline.trials import (
    Trial,
    find_best,
    name_trial,
    read_trials,
)
from raysegment.runs.console import Console
from raysegment.runs.identity import Identity
from raysegment.runs.lock import RunLock
from raysegment.runs.mlflow_server import check_client
from raysegment.runs.record import describe_choices, describe_machine, keep_record, read_record
from raysegment.runs.tracking import track_run
from raysegment.store.place import Place, report_full_disk


@dataclass(frozen=True, kw_only=True)
class TuneResult:
    """What a search came to.

    Attributes:
        folder: The search.
        trials: How many there are by how they ended: done, stopped, failed.
        best_trial: The finished trial whose bundle has the highest validation Dice; None where none is finished.
        val_dice: That Dice.
        recipe: Job file with the options of the best trial.
        already_done: There was nothing left to do.
    """

    folder: Path
    trials: dict[str, int]
    best_trial: str | None
    val_dice: float | None
    recipe: Path | None
    already_done: bool = False

    @property
    def exit_code(self) -> int:
        if self.best_trial is None:
            return EXIT_FAILED
        return EXIT_SOME_SCANS_FAILED if self.trials.get("failed") else EXIT_DONE


@interruptible()
def tune(options: TuneOptions) -> TuneResult:
    """Train with different options, stop trials that fall behind, and write the best options as a job file.

    An unfinished search in the same folder goes on: trials that ended stay, others go on from their checkpoints.

    Raises:
        UsageError: SPACE.yaml or an option is wrong, or the folder holds something else.
        RunError: A full disk, or a cluster that is too small.
    """
    plan = with_trials(read_search_plan(options.space), options.trials, options.space)
    check_address(options)
    check_client(plan.mlflow_uri)
    folder = Path(options.out).absolute()
    place = Place(str(folder))
    search = Search(plan, folder, options.address)
    drawn = draw_anew(plan)
    data = find_data(search, drawn)
    record = identify_search(plan, data.data_id, read_record(place)).open(place)
    trials = choose_trials(drawn, read_trials(record.get("trials", [])), options)
    if record.get("status") == "done" and all(trial.has_ended for trial in trials):
        return replace(build_result(search, trials), already_done=True)
    place.make_writable()
    with (
        report_full_disk(str(folder)),
        RunLock(place),
        keep_record(place, record),
        Console(place, as_json=options.json) as console,
    ):
        record |= {**describe_machine(), **describe_choices(options), "space": [asdict(item) for item in plan.space]}
        place.write_bytes(SPLIT_FILE, json.dumps(name_patients(data.manifest), indent=1).encode())
        data.tell(search.make_options(trials[0]), console)
        progress = SearchProgress(search, trials, data, record, console)
        with track_run(plan.mlflow_uri, place, record, console, params=plan.identity) as progress.tracker:
            with ray_session(options.address, options.temp_dir):
                run_interruptibly(progress.run)
            progress.write_results()
    return build_result(search, progress.trials)


def check_address(options: TuneOptions) -> None:
    """Refuse what Ray Tune cannot do with a cluster.

    Raises:
        UsageError: The driver would not be a part of it.
    """
    check_temp_dir(options.address, options.temp_dir)
    if options.address is not None and options.address.startswith("ray://"):
        raise UsageError(
            f"--address {options.address} is a Ray client; `tune` runs on a machine of the cluster: give auto or "
            "host:port."
        )
    # Ray reads it when it is first imported, to draw the trials.
    set_environment(options.address)


def draw_anew(plan: SearchPlan) -> list[Trial]:
    """The trials of a new search."""
    from raysegment.cluster.tuning import draw_trials

    drawn = draw_trials(plan.space, plan.search.trials, plan.seed)
    return [Trial(trial=name_trial(position), drawn=values) for position, values in enumerate(drawn)]


def choose_trials(drawn: Sequence[Trial], known: Sequence[Trial], options: TuneOptions) -> list[Trial]:
    """The trials of the search: those that it has, and as many new ones as are asked for.

    Args:
        drawn: Those of a new search, as many as are asked for.
        known: Those that it has.
        options: What the user asks for.

    Raises:
        UsageError: Fewer are asked for than have ended.
    """
    asked = len(drawn)
    if any(trial.has_ended for trial in known[asked:]):
        raise UsageError(f"--out {options.out} holds a search of {len(known)} trials; {asked} are fewer. Give as many.")
    trials = [
        replace(trial, status="waiting", error=None) if options.retry_failed and trial.status == "failed" else trial
        for trial in known[:asked]
    ]
    have = {_key(trial) for trial in trials}
    new = [trial for trial in drawn if _key(trial) not in have]
    return trials + [
        replace(trial, trial=name_trial(len(trials) + position))
        for position, trial in enumerate(new[: asked - len(trials)])
    ]


def _key(trial: Trial) -> str:
    return json.dumps(trial.drawn, sort_keys=True)


def find_data(search: Search, drawn: Sequence[Trial]) -> TrainingData:
    """What there is to learn from; checked for every trial.

    Raises:
        UsageError: There is nothing to train on, or not with the options of a trial.
    """
    plan, adopted = search.plan, [adopt_origin(search.make_options(trial)) for trial in drawn]
    # The split is drawn by the search, by its own seed; trials get it as a file.
    first = replace(plan.make_options(drawn[0].drawn, out=str(search.folder)), seed=plan.seed)
    first, origin = adopt_origin(first)
    data = find_training_data(first, {}, origin)
    for options, _ in adopted:
        check_choices(options, data.labels, data.manifest)
    return data


def name_patients(table: pa.Table) -> dict[str, list[str]]:
    """The split as a split file has it, by patient."""
    pairs = zip(table["patient_id"].to_pylist(), table["split"].to_pylist(), strict=True)
    by_patient = dict(pairs)
    return {split: sorted(name for name, side in by_patient.items() if side == split) for split in SPLITS}


def identify_search(plan: SearchPlan, data_id: str, record: Mapping[str, Any]) -> Identity:
    """What must be the same for a search to go on; also what it had before and has no more."""
    before = dict.fromkeys(record.get("options") or {})
    return Identity(command="tune", facts={"data_id": data_id}, choices=plan.identity, defaults=before, key="options")


def build_result(search: Search, trials: Sequence[Trial]) -> TuneResult:
    """The result, from the folders of the trials."""
    best = find_best([search.make_row(trial) for trial in trials])
    return TuneResult(
        folder=search.folder,
        trials=dict(Counter(trial.status for trial in trials)),
        best_trial=best.trial if best else None,
        val_dice=best.val_dice if best else None,
        recipe=search.folder / RECIPE_FILE if best else None,
    )
