"""A search on Ray Tune: what its trials draw, and how they run and are stopped.

Ray Tune draws the values and stops trials that fall behind. What it knows lives in the trials' own folders: in each
start of the command it is told again, from there, how far each trial had come. Its own snapshots would know no more
than the last ten seconds before a kill left to them, and are pickled.
"""

from __future__ import annotations

import logging
import math
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import ray
from ray import tune
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler

from raysegment.choices import pick
from raysegment.cluster.session import tame_ray_data
from raysegment.cluster.training.hardware import WorkerShare
from raysegment.cluster.training.kept import KeptScans
from raysegment.cluster.training.run import Training, fit_kept, keep_all, resolve_precision
from raysegment.errors import ClusterError, LockedError
from raysegment.options import Preprocessing, SearchOptions, TrainOptions
from raysegment.pipeline.learn import Progress, find_checkpoints
from raysegment.pipeline.search_space import Varied
from raysegment.pipeline.training_set import Errors
from raysegment.pipeline.trials import Status, find_progress
from raysegment.runs.console import Console
from raysegment.runs.identity import identify
from raysegment.runs.lock import RunLock
from raysegment.runs.record import keep_record
from raysegment.scan import Labels
from raysegment.store.place import Place, report_full_disk

SECONDS_BETWEEN_LOOKS = 0.5
SECONDS_FOR_LOCK = 60.0
"""How long a trial waits for a process of an earlier start, which may live on for moments after a kill."""

DIGITS = 4
"""Significant digits of drawn numbers: what a table shows is what was run."""

TRIES_PER_TRIAL = 1000
MAX_RETRIES = 3
TRIAL_BYTES = 64 * 1024**2
"""Logical memory that a trial's function reserves. Tune wants it to reserve something, and CPUs are for training."""

METRIC = "val_dice"
"""The best validation Dice of a trial so far."""

NO_DICE = -1.0
"""Told where no validation scan has a Dice: less than any."""


@dataclass(frozen=True, kw_only=True)
class TrialTask:
    """One trial of a search.

    Attributes:
        trial: Its name.
        options: Its options.
        facts: What else its run is, as its run.json has it: scans, first weights.
        has_ended: In an earlier start of the command: its epochs are told again, and nothing is trained.
    """

    trial: str
    options: TrainOptions
    facts: Mapping[str, str | None]
    has_ended: bool


@dataclass(frozen=True, kw_only=True)
class SharedData:
    """What all trials have in common.

    Attributes:
        labels: What is segmented.
        manifest: Scans with their splits.
        kept: The scans, read; None where trials differ in how they read them, and each reads for itself.
        share: The hardware of each worker, and how many trials run side by side.
    """

    labels: Labels
    manifest: pa.Table
    kept: KeptScans | None
    share: WorkerShare


class Watch(Protocol):
    """What is told of trials while they run."""

    def begin(self, trial: str) -> None: ...

    def epoch_done(self, trial: str, epoch: int, best_dice: float) -> None: ...

    def end(self, trial: str, status: Status, error: str | None) -> None: ...


def draw_trials(space: Sequence[Varied], num_trials: int, seed: int) -> list[dict[str, Any]]:
    """Values for trials, all different; a larger number begins with the same ones.

    Raises:
        ClusterError: Ray Tune draws no new ones any more.
    """
    generator = np.random.default_rng(seed)
    domains = {item.name: make_domain(item) for item in space}
    drawn: dict[str, dict[str, Any]] = {}
    for _ in range(TRIES_PER_TRIAL * num_trials):
        values = {item.name: clean(item, domains[item.name].sample(random_state=generator)) for item in space}
        drawn.setdefault(repr(values), values)
        if len(drawn) == num_trials:
            return list(drawn.values())
    raise ClusterError(f"only {len(drawn)} different trials were drawn of {num_trials}; give fewer, or a larger space.")


def make_domain(varied: Varied) -> Any:
    """What Ray Tune draws an option from; both ends of a range may be drawn."""
    if varied.kind == "choice":
        return tune.choice(list(varied.values))
    low, high = varied.values
    if varied.is_integer:
        return (tune.lograndint if varied.kind == "log_range" else tune.randint)(low, high + 1)
    return (tune.loguniform if varied.kind == "log_range" else tune.uniform)(low, high)


def clean(varied: Varied, value: Any) -> Any:
    """A drawn value as a plain number of few digits, within its range."""
    if varied.kind == "choice":
        return value
    if varied.is_integer:
        return int(value)
    low, high = varied.values
    return float(min(max(float(f"{value:.{DIGITS}g}"), low), high))


def keep_for_all(
    options: Sequence[TrainOptions], labels: Labels, manifest: pa.Table, left_out: Errors | None
) -> KeptScans | None:
    """Keep the scans once for all trials; None where these differ in how scans are read or resized.

    Args:
        options: Those of each trial.
        labels: What is segmented.
        manifest: Scans with their splits.
        left_out: Errors of scans that were left out when the first trial began; None where it begins now.
    """
    ways = {(pick(Preprocessing, each), each.spacing_mm, each.resample_channels) for each in options}
    return keep_all(options[0], labels, manifest, left_out) if len(ways) == 1 else None


def run_trials(
    tasks: Sequence[TrialTask], search: SearchOptions, shared: SharedData, folder: Path, watch: Watch
) -> None:
    """Run all trials that have not ended until each is done, stopped or failed.

    Args:
        tasks: All trials; those that have ended come first.
        search: Choices of the search.
        shared: What all trials have in common.
        folder: Of the search.
        watch: Told on the way.
    """
    os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"
    os.environ["RAY_CHDIR_TO_TRIAL_DIR"] = "0"
    for name in ("ray.tune", "ray.air"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    storage = folder / ".ray_tune"
    shutil.rmtree(storage, ignore_errors=True)
    by_name = {task.trial: task for task in tasks}
    run_trial = tune.with_parameters(make_trial_function(by_name), shared=shared)
    tuner = tune.Tuner(
        tune.with_resources(run_trial, tune.PlacementGroupFactory([{"memory": TRIAL_BYTES}])),
        # The values were drawn before, and the search keeps them: killed and gone on with, it has the same trials.
        param_space={"trial": tune.grid_search(list(by_name))},
        tune_config=tune.TuneConfig(
            metric=METRIC,
            mode="max",
            scheduler=make_scheduler(search, tasks),
            max_concurrent_trials=shared.share.side_by_side,
        ),
        run_config=tune.RunConfig(
            name="search", storage_path=str(storage), verbose=0, callbacks=[Announcer(by_name, watch)]
        ),
    )
    try:
        tuner.fit()
    finally:
        shutil.rmtree(storage, ignore_errors=True)


def make_scheduler(search: SearchOptions, tasks: Sequence[TrialTask]) -> Any:
    """What stops trials that fall behind."""
    if search.scheduler == "none":
        return FIFOScheduler()
    return ASHAScheduler(
        time_attr="epoch",
        max_t=max(task.options.epochs for task in tasks),
        grace_period=search.grace_epochs,
        reduction_factor=search.reduction,
        # The last epoch is told when the bundle is written; nothing is stopped then.
        stop_last_trials=False,
    )


def make_trial_function(tasks: Mapping[str, TrialTask]) -> Callable[..., None]:
    """What Ray Tune runs for each trial: it looks at a training in another process, and tells its epochs."""

    def run_trial(config: dict[str, Any], shared: SharedData) -> None:
        task = tasks[config["trial"]]
        # Of an earlier start: perhaps it is stopped before it begins.
        progress = find_progress(Path(task.options.out))
        told = 0 if progress.is_over(task.options) and not task.has_ended else tell_epochs(progress, 0)
        if task.has_ended:
            return
        # Not in this trial's placement group, which would hold all that the training starts.
        remote = ray.remote(num_cpus=0, max_retries=MAX_RETRIES, max_calls=1, scheduling_strategy="DEFAULT")
        training = remote(fit_trial).remote(task, shared)
        try:
            watch_training(task, training, told)
        finally:
            # Tune ends this function by an exception in `report` where it stops the trial.
            ray.cancel(training, force=True)

    return run_trial


def watch_training(task: TrialTask, training: Any, told: int) -> None:
    """Tell Ray Tune a trial's epochs after the first `told` ones as they come, and at last how it ended."""
    folder = Path(task.options.out)
    while not ray.wait([training], timeout=SECONDS_BETWEEN_LOOKS)[0]:
        progress = find_progress(folder)
        # After the last epoch the bundle is written, and nothing is gained by stopping.
        if not progress.is_over(task.options):
            told = tell_epochs(progress, told)
    if (error := describe_failure(training)) is not None:
        tune.report({"epoch": 0, METRIC: NO_DICE, "error": error})
        return
    progress = find_progress(folder)
    tune.report({**describe_epoch(progress, progress.epoch), "is_done": True})


def tell_epochs(progress: Progress, told: int) -> int:
    """Tell Ray Tune the epochs after the first `told` ones; returns how many are told now."""
    for epoch in range(told + 1, progress.epoch + 1):
        tune.report(describe_epoch(progress, epoch))
    return max(told, progress.epoch)


def describe_epoch(progress: Progress, epoch: int) -> dict[str, Any]:
    """What Ray Tune is told of a trial after an epoch: its best validation Dice so far."""
    found = [row["val_dice"] for row in progress.history[:epoch] if not math.isnan(row["val_dice"])]
    return {"epoch": epoch, METRIC: max(found, default=NO_DICE)}


def describe_failure(training: Any) -> str | None:
    """Type and message of what a training raised, on one line; None where it ended well."""
    try:
        ray.get(training)
    except Exception as error:
        cause = getattr(error, "cause", None) or error
        return f"{type(cause).__name__}: {' '.join(str(cause).split())[:500]}"
    return None


def fit_trial(task: TrialTask, shared: SharedData) -> None:
    """One trial's training, in a process of its own and a folder of its own, as `train` does a run."""
    tame_ray_data()
    options, place = task.options, Place(task.options.out)
    record = identify("train", options, key="options", **task.facts).open(place)
    folder = Path(place.root)
    if record.get("status") == "done" and find_progress(folder).is_over(options):
        return
    place.make_writable()
    with (
        report_full_disk(place.root),
        wait_for_lock(place),
        keep_record(place, record),
        Console(place, as_json=False) as console,
    ):
        options = resolve_precision(options, record)
        left_out = record.get("errors", {}) if find_checkpoints(folder / "checkpoints") else None
        training = Training(
            options=options,
            labels=shared.labels,
            manifest=shared.manifest,
            place=place,
            record=record,
            console=console,
        )
        kept = shared.kept or keep_all(options, shared.labels, shared.manifest, left_out)
        fit_kept(training, kept, shared.share)


@contextmanager
def wait_for_lock(place: Place) -> Iterator[None]:
    """Hold the folder, after waiting for a process of an earlier start that still ends.

    Raises:
        LockedError: It does not end.
    """
    deadline = time.monotonic() + SECONDS_FOR_LOCK
    with ExitStack() as held:
        while True:
            try:
                held.enter_context(RunLock(place))
                break
            except LockedError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(SECONDS_BETWEEN_LOOKS)
        yield


class Announcer(tune.Callback):
    """Hands what Ray Tune learns of trials to a watch; what ended in an earlier start is not told again."""

    def __init__(self, tasks: Mapping[str, TrialTask], watch: Watch) -> None:
        self._live = {name for name, task in tasks.items() if not task.has_ended}
        self._watch = watch

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Ray Tune writes what it was given into a file, for a way to go on that is not used here."""
        return {}

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        if (name := trial.config["trial"]) in self._live:
            self._watch.begin(name)

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        name = trial.config["trial"]
        if name in self._live and not result.get("is_done") and not result.get("error"):
            self._watch.epoch_done(name, result["epoch"], result[METRIC])

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        name, last = trial.config["trial"], trial.last_result or {}
        if name in self._live:
            error = last.get("error")
            status: Status = "failed" if error else "done" if last.get("is_done") else "stopped"
            self._watch.end(name, status, error)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        name = trial.config["trial"]
        if name in self._live:
            self._watch.end(name, "failed", "ClusterError: the process of the trial was lost")
