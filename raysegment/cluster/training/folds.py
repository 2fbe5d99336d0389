"""Several trainings over one archive: its scans are kept once, and as many train side by side as there is room for."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from raysegment.archive.folds import Fold, add_fold_column, mark_validated
from raysegment.choices import as_plain
from raysegment.cluster.training.hardware import WorkerShare, wait_for_hardware
from raysegment.cluster.training.run import Training, fit_kept, keep_all
from raysegment.errors import DiskFullError, InterruptedRunError, RaysegmentError
from raysegment.options import TrainOptions
from raysegment.pipeline.learn import find_checkpoints
from raysegment.pipeline.training_set import check_errors, write_run_manifest
from raysegment.runs.closing import describe_left_out
from raysegment.runs.console import Console
from raysegment.runs.lock import RunLock
from raysegment.runs.record import describe_choices, describe_machine, keep_record, write_record
from raysegment.runs.tracking import Tracker, track_run
from raysegment.store.place import Place, report_full_disk

if TYPE_CHECKING:
    from raysegment.cluster.training.kept import KeptScans


@dataclass(frozen=True, kw_only=True)
class FoldRun:
    """The run of one fold, in a folder of its own.

    Attributes:
        fold: Who is held out.
        options: Its choices: those of all folds, with its own folder and seed.
        place: Its folder.
        record: What its run.json holds; it is changed.
        is_finished: Whether its bundle is written and no more is asked for.
    """

    fold: Fold
    options: TrainOptions
    place: Place
    record: dict[str, Any]
    is_finished: bool

    @property
    def number(self) -> int:
        return self.fold.number

    @property
    def folder(self) -> Path:
        return Path(self.place.root)

    @property
    def is_begun(self) -> bool:
        """Whether it was trained on scans."""
        return bool(find_checkpoints(self.folder / "checkpoints"))


def fit_folds(training: Training, runs: Sequence[FoldRun], tracker: Tracker | None = None) -> None:
    """Keep the scans once, and fit every fold that is not finished; one that fails does not keep the others from it.

    Args:
        training: All folds together; its manifest has the splits that patients have without folds.
        runs: The folds.
        tracker: Shows all of them on an MLflow server, each nested in it.

    Raises:
        RaysegmentError: A fold failed, with its error and its number; or what all of them need is not there.
    """
    waiting = [run for run in runs if not run.is_finished]
    if not waiting:
        return
    share = wait_for_hardware(training.options.workers, training.options, len(waiting))
    kept = keep_for_folds(training, runs)
    together = f"{share.side_by_side} side by side" if share.side_by_side > 1 else "one after the other"
    training.console.say(
        f"{len(kept.places) - len(kept.errors)} scans are kept once for all folds, read in {kept.seconds:.1f} s; "
        f"{len(waiting)} of {len(runs)} folds are to be trained, {together}"
    )
    failures = run_tasks(
        {run.number: partial(try_fold, run, training, kept, share, tracker) for run in waiting}, share.side_by_side
    )
    if failures:
        raise_failure(failures, runs)


def keep_for_folds(training: Training, runs: Sequence[FoldRun]) -> KeptScans:
    """Keep the scans of all folds, and say in manifest and record what became of them."""
    folds, record = [run.fold for run in runs], training.record
    marked = mark_validated(training.manifest, folds)
    is_begun = any(run.is_begun for run in runs)
    kept = keep_all(training.options, training.labels, marked, record.get("errors", {}) if is_begun else None)
    write_run_manifest(add_fold_column(training.manifest, folds), kept.errors, training.folder)
    if kept.errors:
        for line in describe_left_out(kept.errors, training.folder / "manifest.parquet"):
            training.console.say(line)
    check_errors(kept.errors, marked)
    record |= {
        **describe_machine(),
        **describe_choices(training.options),
        "seed": training.options.seed,
        "labels": training.labels.values_by_name,
        "precision": training.options.precision,
        "scans_total": marked.num_rows,
        "scans_failed": len(kept.errors),
        "errors": kept.errors,
        "seconds_prepare": kept.seconds,
    }
    write_record(training.place, record)
    return kept


def try_fold(run: FoldRun, together: Training, kept: KeptScans, share: WorkerShare, tracker: Tracker | None) -> None:
    """Fit one fold, and say at once where it fails, because others may go on for long."""
    try:
        fit_fold(run, together, kept, share, tracker)
    except RaysegmentError as error:
        if is_own(error):
            together.console.say(f"fold {run.number} failed: {type(error).__name__}: {error}", fold=run.number)
        raise


def fit_fold(run: FoldRun, together: Training, kept: KeptScans, share: WorkerShare, tracker: Tracker | None) -> None:
    """Fit one fold in its folder, as `train` does a run."""
    place, options = run.place, replace(run.options, precision=together.options.precision)
    about, is_alone = {"fold": run.number}, share.side_by_side == 1
    place.make_writable()
    with (
        report_full_disk(place.root),
        RunLock(place),
        keep_record(place, run.record),
        Console(place, as_json=options.json, about=about, may_show_bar=is_alone) as console,
        track_run(tracker, place, run.record, console, params=as_plain(options)),
    ):
        training = Training(
            options=options,
            labels=together.labels,
            manifest=run.fold.manifest,
            place=place,
            record=run.record,
            console=console,
        )
        fit_kept(training, kept, share)


def run_tasks(tasks: Mapping[int, Callable[[], None]], at_once: int) -> dict[int, BaseException]:
    """Run tasks in threads, so many at a time, in their order.

    A task that fails on its own leaves the others to go on. After anything else (an interruption, a full disk, a bug)
    no further one is begun.

    Returns:
        What the tasks raised that failed, by their number.
    """
    waiting, failures = deque(tasks.items()), dict[int, BaseException]()

    def work() -> None:
        while True:
            try:
                number, task = waiting.popleft()
            except IndexError:
                return
            try:
                task()
            except BaseException as error:
                failures[number] = error
                if not is_own(error):
                    waiting.clear()

    # Daemons: an interrupted run leaves its threads behind.
    threads = [threading.Thread(target=work, name=f"fold {index}", daemon=True) for index in range(at_once)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return failures


def is_own(error: BaseException) -> bool:
    """Whether an error is one fold's own, so that others may do better."""
    return isinstance(error, RaysegmentError) and not isinstance(error, InterruptedRunError | DiskFullError)


def raise_failure(failures: Mapping[int, BaseException], runs: Sequence[FoldRun]) -> NoReturn:
    """Raise what ended all folds, else the first fold's error with its number.

    Raises:
        RaysegmentError: Names the fold, and how many are finished.
    """
    number, error = next((item for item in sorted(failures.items()) if not is_own(item[1])), min(failures.items()))
    if not isinstance(error, RaysegmentError) or isinstance(error, InterruptedRunError):
        raise error
    others = sorted(set(failures) - {number})
    also = f" Fold {', '.join(map(str, others))} failed too." if others else ""
    done = sum(run.record.get("status") == "done" for run in runs)
    raise type(error)(
        f"fold {number}: {error}{also} {done} of {len(runs)} folds are finished and stay; the same command does the "
        "others."
    ) from error
