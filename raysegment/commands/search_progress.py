"""A search while it runs: its trials' options and rows, what is printed of them, and what is kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raysegment.choices import show_choice
from raysegment.cluster.session import raise_if_interrupted
from raysegment.cluster.training.hardware import wait_for_hardware
from raysegment.commands.trained_run import without_credentials
from raysegment.commands.training_data import TrainingData
from raysegment.errors import InterruptedRunError, UsageError
from raysegment.model.init_from import adopt_origin
from raysegment.options import TrainOptions
from raysegment.pipeline.search_space import SearchPlan
from raysegment.pipeline.training_set import check_errors
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
    write_recipe,
    write_trials,
)
from raysegment.runs.closing import describe_left_out
from raysegment.runs.console import Console
from raysegment.runs.lock import LOCK_FILE
from raysegment.runs.record import list_choices, read_record, write_record
from raysegment.runs.tracking import End, Tracker, describe_end
from raysegment.store.place import Place

if TYPE_CHECKING:
    from raysegment.cluster.tuning import SharedData

SPLIT_FILE, RECIPE_FILE, BEST_RUN = "split.json", "best.yaml", "best"


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


class SearchProgress:
    """A search while it runs: its trials, what is printed, and what is kept of them.

    Attributes:
        tracker: The search on an MLflow server, in which trials are nested; None where it is on none.
    """

    def __init__(
        self, search: Search, trials: Sequence[Trial], data: TrainingData, record: dict[str, Any], console: Console
    ) -> None:
        self._search, self._data, self._record, self._console = search, data, record, console
        self._place = Place(str(search.folder))
        self._trials = {trial.trial: trial for trial in trials}
        self.tracker: Tracker | None = None
        self._shown: dict[str, Tracker] = {}
        self._keep()

    @property
    def trials(self) -> list[Trial]:
        """As they are now."""
        return list(self._trials.values())

    def run(self) -> None:
        """Run what has not ended; inside a Ray session."""
        from raysegment.cluster.tuning import TrialTask, run_trials

        tasks: list[TrialTask] = []
        for trial in sorted(self.trials, key=lambda trial: not trial.has_ended):
            options, origin = adopt_origin(without_credentials(self._search.make_options(trial)))
            facts = {"data_id": self._data.data_id, **origin.facts}
            tasks.append(TrialTask(trial=trial.trial, options=options, facts=facts, has_ended=trial.has_ended))
        waiting = [task.options for task in tasks if not task.has_ended]
        num_ended = len(tasks) - len(waiting)
        ended = f", {num_ended} of them have ended" if num_ended else ""
        self._console.say(f"{len(tasks)} trials{ended}; {describe_scheduler(self._search.plan)}")
        if waiting:
            run_trials(tasks, self._search.plan.search, self._share_data(waiting), self._search.folder, self)

    def _share_data(self, waiting: Sequence[TrainOptions]) -> SharedData:
        """What the trials have in common: scans that are read once, and the hardware."""
        from raysegment.cluster.tuning import SharedData, keep_for_all

        data, record, console = self._data, self._record, self._console
        share = wait_for_hardware(waiting[0].workers, waiting[0], len(waiting))
        together = f"{share.side_by_side} trials side by side" if share.side_by_side > 1 else "one after the other"
        kept = keep_for_all(waiting, data.labels, data.manifest, record.get("errors"))
        if kept is None:
            console.say(f"trials differ in how scans are read: each reads them for itself; {together}")
        else:
            check_errors(kept.errors, data.manifest)
            if kept.errors:
                for line in describe_left_out(kept.errors, self._search.folder / FOLDER):
                    console.say(line)
            record["errors"] = kept.errors
            num_kept = len(kept.places) - len(kept.errors)
            console.say(f"{num_kept} scans are kept once for all trials, read in {kept.seconds:.1f} s; {together}")
        return SharedData(labels=data.labels, manifest=data.manifest, kept=kept, share=share)

    def begin(self, trial: str) -> None:
        """A trial begins, or goes on."""
        self._console.say(f"trial {trial} begins: {describe_drawn(self._trials[trial].drawn)}", trial=trial)
        if self.tracker is not None:
            options = self._search.make_options(self._trials[trial])
            self._shown[trial] = self.tracker.nest(Path(options.out), f"trial {trial}", list_choices(options))

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
        self._end_shown(trial, status)
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
            options, _ = adopt_origin(self._search.make_options(self._trials[best.trial], out=BEST_RUN))
            write_recipe(best, options, folder / RECIPE_FILE)
            self._console.say(f"best: trial {best.trial}, validation Dice {best.val_dice:.4f}; {folder / RECIPE_FILE}")
        self._console.say(f"table in {folder / TABLE_FILE}, picture in {folder / FIGURE}")

    def _end_shown(self, trial: str, status: Status) -> None:
        """How a trial ended, for the MLflow server."""
        if trial not in self._shown:
            return
        folder = Path(self._search.make_options(self._trials[trial]).out)
        kinds = {"failed": "FAILED", "stopped": "KILLED"}
        end = End(status=kinds[status]) if status in kinds else describe_end(folder, read_record(Place(str(folder))))
        self._shown[trial].finish(end)

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
    return ", ".join(show_choice(name, value) for name, value in drawn.items())


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
