"""`raysegment tune`: a search for the best options of a training, on Ray Tune."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from raysegment.archive.channels import most_common_names, order_channels
from raysegment.archive.index import find_scans
from raysegment.archive.labels import find_labels
from raysegment.archive.split import SPLITS, Drawing, SplitResult, assign_splits
from raysegment.choices import option_name
from raysegment.cluster.session import (
    check_temp_dir,
    interruptible,
    raise_if_interrupted,
    ray_session,
    run_interruptibly,
    set_environment,
)
from raysegment.commands.train import train
from raysegment.errors import EXIT_DONE, EXIT_FAILED, EXIT_SOME_SCANS_FAILED, InterruptedRunError, UsageError
from raysegment.options import TrainOptions, TuneOptions
from raysegment.pipeline.search_space import SearchPlan, read_search_plan, with_trials
from raysegment.pipeline.training_set import (
    check_channels,
    check_flip,
    check_label,
    check_splits,
    describe_split,
    hash_data,
    most_common_channels,
    select_referenced,
    warn_of_few_patients,
)
from raysegment.pipeline.trials import (
    FIGURE,
    FOLDER,
    TABLE_FILE,
    Status,
    Trial,
    TrialRow,
    describe_trials,
    draw_rows,
    find_best,
    make_row,
    name_trial,
    read_trials,
    write_recipe,
    write_trials,
)
from raysegment.runs.console import Console
from raysegment.runs.identity import Identity
from raysegment.runs.lock import LOCK_FILE, RunLock
from raysegment.runs.record import describe_choices, describe_machine, keep_record, read_record, write_record
from raysegment.scan import Labels
from raysegment.store.place import Place, report_full_disk

SPLIT_FILE = "split.json"
RECIPE_FILE = "best.yaml"
BEST_RUN = "best"


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
    folder = Path(options.out).absolute()
    place = Place(str(folder))
    search = Search(plan, folder, options.address)
    drawn = draw_anew(plan)
    split, found, labels = find_data(plan, [search.make_options(trial) for trial in drawn])
    record = identify_search(plan, hash_data(split.table, labels), read_record(place)).open(place)
    trials = choose_trials(drawn, read_trials(record.get("trials", [])), options)
    if record.get("status") == "done" and all(trial.has_ended for trial in trials):
        return replace(search.build_result(trials), already_done=True)
    place.make_writable()
    with (
        report_full_disk(str(folder)),
        RunLock(place),
        keep_record(place, record),
        Console(place, as_json=options.json) as console,
    ):
        record |= {**describe_machine(), **describe_choices(options), "space": [asdict(item) for item in plan.space]}
        place.write_bytes(SPLIT_FILE, json.dumps(name_patients(split.table), indent=1).encode())
        console.say(describe_split(split, found), left_out=list(split.left_out))
        for warning in warn_of_few_patients(split):
            console.say(warning)
        progress = SearchProgress(search, trials, record, console)
        with ray_session(options.address, options.temp_dir):
            run_interruptibly(progress.run)
        progress.write_results()
    return search.build_result(progress.trials)


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


def find_data(plan: SearchPlan, options: Sequence[TrainOptions]) -> tuple[SplitResult, pa.Table, Labels]:
    """The scans with their splits, all scans found, and what is segmented; checked for every trial.

    Raises:
        UsageError: There is nothing to train on, or not with the options of a trial.
    """
    first = options[0]
    found = find_scans(
        first.source,
        patient_pattern=first.patient_pattern,
        scan_pattern=first.scan_pattern,
        channels=first.channel,
        references=first.reference,
    )
    labels = find_labels(first.source, first.labels, first.label, found)
    found = order_channels(found, most_common_names(found))
    of_data = plan.make_options({}, out=first.out)
    split = assign_splits(
        select_referenced(found, first.source),
        split_file=of_data.split_file,
        drawing=Drawing(of_data.train_fraction, of_data.val_fraction, plan.seed),
    )
    check_splits(split)
    for each in options:
        check_label(each, labels)
        check_flip(each, labels)
        check_channels(each, most_common_channels(split.table))
    return split, found, labels


def name_patients(table: pa.Table) -> dict[str, list[str]]:
    """The split as a split file has it, by patient."""
    pairs = zip(table["patient_id"].to_pylist(), table["split"].to_pylist(), strict=True)
    by_patient = dict(pairs)
    return {split: sorted(name for name, side in by_patient.items() if side == split) for split in SPLITS}


def identify_search(plan: SearchPlan, data_id: str, record: Mapping[str, Any]) -> Identity:
    """What must be the same for a search to go on; also what it had before and has no more."""
    before = dict.fromkeys(record.get("options") or {})
    return Identity(command="tune", facts={"data_id": data_id}, choices=plan.identity, defaults=before, key="options")


@dataclass(frozen=True)
class Search:
    """A search in its folder.

    Attributes:
        plan: What SPACE.yaml says.
        folder: Absolute.
        address: Of the cluster.
    """

    plan: SearchPlan
    folder: Path
    address: str | None

    def make_options(self, trial: Trial, out: str | None = None) -> TrainOptions:
        """All options of a trial.

        Raises:
            UsageError: They do not go together; names what was drawn.
        """
        try:
            return self.plan.make_options(
                trial.drawn,
                out=str(self.folder / (out or f"{FOLDER}/{trial.trial}")),
                split_file=str(self.folder / SPLIT_FILE),
                address=self.address,
            )
        except UsageError as error:
            raise UsageError(f"trial {trial.trial} would have {describe_drawn(trial.drawn)}: {error}") from None

    def make_row(self, trial: Trial) -> TrialRow:
        """What a trial came to."""
        options = self.make_options(trial)
        return make_row(trial, options, read_record(Place(options.out)).get("scores"))

    def build_result(self, trials: Sequence[Trial]) -> TuneResult:
        """The result, from the folders of the trials."""
        best = find_best([self.make_row(trial) for trial in trials])
        return TuneResult(
            folder=self.folder,
            trials=dict(Counter(trial.status for trial in trials)),
            best_trial=best.trial if best else None,
            val_dice=best.val_dice if best else None,
            recipe=self.folder / RECIPE_FILE if best else None,
        )


class SearchProgress:
    """A search while it runs: its trials, what is printed, and what is kept of them."""

    def __init__(self, search: Search, trials: Sequence[Trial], record: dict[str, Any], console: Console) -> None:
        self._search, self._record, self._console = search, record, console
        self._place = Place(str(search.folder))
        self._trials = {trial.trial: trial for trial in trials}
        self._keep()

    @property
    def trials(self) -> list[Trial]:
        """As they are now."""
        return list(self._trials.values())

    def run(self) -> None:
        """Run what has not ended; inside a Ray session."""
        from raysegment.cluster.tuning import TrialTask, run_trials

        tasks = [
            TrialTask(trial=trial.trial, options=self._search.make_options(trial), has_ended=trial.has_ended)
            for trial in sorted(self.trials, key=lambda trial: not trial.has_ended)
        ]
        num_ended = sum(task.has_ended for task in tasks)
        ended = f", {num_ended} of them have ended" if num_ended else ""
        self._console.say(f"{len(tasks)} trials{ended}; {describe_scheduler(self._search.plan)}")
        if num_ended < len(tasks):
            run_trials(tasks, self._search.plan.search, train, self._search.folder, self)

    def begin(self, trial: str) -> None:
        """A trial begins, or goes on."""
        self._console.say(f"trial {trial} begins: {describe_drawn(self._trials[trial].drawn)}", trial=trial)

    def epoch_done(self, trial: str, epoch: int, best_dice: float) -> None:
        """A trial has one more epoch."""
        shown = f"{best_dice:.4f}" if best_dice >= 0 else "–"
        self._console.say(
            f"trial {trial}: epoch {epoch}/{self._search.plan.epochs}, best validation Dice {shown}",
            trial=trial,
            epoch=epoch,
            best_dice=best_dice,
        )

    def end(self, trial: str, status: Status, error: str | None) -> None:
        """A trial has ended; one that was interrupted with the search is still to be done."""
        raise_if_interrupted()
        if error is not None and error.startswith(InterruptedRunError.__name__):
            return
        self._trials[trial] = replace(self._trials[trial], status=status, error=error)
        if status == "stopped":
            close_stopped(Path(self._search.make_options(self._trials[trial]).out))
        self._keep()
        row = self._search.make_row(self._trials[trial])
        self._console.say(f"trial {trial} {describe_row(row)}", trial=trial, status=status)
        self.write_table()

    def write_table(self) -> list[TrialRow]:
        """Replace the table of the trials."""
        rows = [self._search.make_row(trial) for trial in self.trials]
        write_trials(rows, self._search.plan.space, self._search.folder / TABLE_FILE)
        return rows

    def write_results(self) -> None:
        """The table, the picture, the best options, and the closing words."""
        rows, plan, folder = self.write_table(), self._search.plan, self._search.folder
        best = find_best(rows)
        draw_rows(rows, plan.space, folder / FIGURE)
        for line in describe_trials(rows, plan.space):
            self._console.say(line)
        if best is not None:
            options = self._search.make_options(self._trials[best.trial], out=BEST_RUN)
            write_recipe(best, options, folder / RECIPE_FILE)
            self._console.say(f"best: trial {best.trial}, validation Dice {best.val_dice:.4f}; {folder / RECIPE_FILE}")
        self._console.say(f"table in {folder / TABLE_FILE}, picture in {folder / FIGURE}")

    def _keep(self) -> None:
        self._record["trials"] = [trial.as_plain() for trial in self.trials]
        write_record(self._place, self._record)


def close_stopped(folder: Path) -> None:
    """Say in a stopped trial's own record how it ended; its process was ended without a word."""
    place = Place(str(folder))
    record = read_record(place)
    if record:
        write_record(place, {**record, "status": "stopped"})
    place.delete(LOCK_FILE)


def describe_drawn(drawn: Mapping[str, Any]) -> str:
    """What a trial drew, as the user would type it."""
    return ", ".join(
        f"{option_name(name)} {value:g}" if isinstance(value, float) else f"{option_name(name)} {value}"
        for name, value in drawn.items()
    )


def describe_scheduler(plan: SearchPlan) -> str:
    """What stops trials, in words."""
    search = plan.search
    if search.scheduler == "none":
        return f"each has {plan.epochs} epochs"
    return (
        f"each has {search.grace_epochs} of {plan.epochs} epochs, then ASHA stops those that are not among the best "
        f"1 of {search.reduction}"
    )


def describe_row(row: TrialRow) -> str:
    """How a trial ended, in a few words."""
    if row.status == "failed":
        return f"failed after {row.epochs} epochs: {row.error}"
    if row.val_dice is not None:
        return f"is done: validation Dice {row.val_dice:.4f}, best epoch {row.best_epoch} of {row.epochs}"
    shown = "–" if row.val_dice_at_half is None else f"{row.val_dice_at_half:.4f}"
    return f"is stopped after {row.epochs} epochs: best validation Dice {shown}"
