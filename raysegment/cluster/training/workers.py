"""Training workers: what each does, and what happens when one dies."""

from __future__ import annotations

import shutil
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
import ray.train
from ray.train import FailureConfig, RunConfig, ScalingConfig

from raysegment.cluster.ray_internals import make_trainer
from raysegment.cluster.session import raise_if_interrupted
from raysegment.cluster.training.backend import CollectiveConfig
from raysegment.cluster.training.hardware import WorkerShare, share_what_is_left
from raysegment.cluster.training.kept import KeptSet
from raysegment.cluster.training.stream import SharePlan, stream_batches
from raysegment.errors import RaysegmentError, RunError
from raysegment.options import TrainOptions
from raysegment.pipeline.epoch_plan import deal_scans
from raysegment.pipeline.learn import Progress, find_checkpoints, read_progress, run_epochs
from raysegment.pipeline.preview import Preview, draw_previews, make_previews
from raysegment.runs.console import Console
from raysegment.runs.progress import EpochProgress
from raysegment.scan import Labels
from raysegment.store.place import report_full_disk

if TYPE_CHECKING:
    from raysegment.model.fit import Fitter

THREADS_PER_MAKER = 4
"""TensorFlow threads for which one augmenting process is enough."""

SECONDS_BETWEEN_TRIES = 3.0
SECONDS_BETWEEN_LOOKS = 0.5


@dataclass(frozen=True, kw_only=True)
class WorkerTask:
    """What the training function of each worker gets.

    Attributes:
        options: The run's choices, precision resolved.
        labels: What is segmented.
        folder: The run, absolute.
        train: Scans to train on.
        validation: Scans to validate on.
        num_inputs: Channels of the network's input.
        threads: TensorFlow threads.
        mailbox: Actor that takes messages for the driver.
        start: Reference to the `Start` of the weights; None where they start at random.
    """

    options: TrainOptions
    labels: Labels
    folder: str
    train: KeptSet
    validation: KeptSet
    num_inputs: int
    threads: int
    mailbox: Any
    start: Any = None


class Mailbox:
    """Carries small messages from the first worker to the driver."""

    def __init__(self) -> None:
        self._messages: list[dict[str, Any]] = []

    def post(self, message: dict[str, Any]) -> None:
        self._messages.append(message)

    def take(self) -> list[dict[str, Any]]:
        messages, self._messages = self._messages, []
        return messages


def fit_with_retries(task: WorkerTask, share: WorkerShare, console: Console) -> Progress:
    """Run the workers until training is over, starting anew from the last checkpoint when some die.

    After a lost node as many workers go on as the cluster has room for and the global batch divides by.

    Raises:
        RaysegmentError: What a worker raised on purpose; trying again would only repeat it.
        RunError: More failures than `max_failures`; names the last cause.
        ClusterError: No worker fits any more.
    """
    failures = 0
    while True:
        try:
            return run_workers(task, share, console)
        except (ray.train.TrainingFailedError, ray.exceptions.RayError) as error:
            # An interrupted run ends Ray under this thread, which is no failure of training.
            raise_if_interrupted()
            cause = find_cause(error)
            failures += 1
            if failures > task.options.max_failures:
                raise RunError(
                    f"training failed {failures} times, --max-failures is {task.options.max_failures}; last: {cause}"
                ) from error
            console.say(
                f"training stopped ({cause}); going on from the last checkpoint, failure {failures} of "
                f"{task.options.max_failures}"
            )
            time.sleep(SECONDS_BETWEEN_TRIES)
            share = share_what_is_left(task.options, share)
            task = replace(task, threads=share.threads)
            console.say(f"starting {share}")


def run_workers(task: WorkerTask, share: WorkerShare, console: Console) -> Progress:
    """One Ray Train run: all workers from the newest checkpoint to the end.

    Raises:
        RaysegmentError: What a worker raised on purpose.
        ray.train.TrainingFailedError: A worker or node was lost, or something else failed.
    """
    mailbox = ray.remote(num_cpus=0)(Mailbox).remote()
    storage = Path(task.folder) / ".ray_train"
    shutil.rmtree(storage, ignore_errors=True)
    trainer = make_trainer(
        train_on_worker,
        train_loop_config={"task": replace(task, mailbox=mailbox)},
        backend_config=CollectiveConfig(),
        scaling_config=ScalingConfig(
            num_workers=share.num_workers,
            use_gpu=share.use_gpu,
            placement_strategy="SPREAD",
            resources_per_worker={"CPU": share.cpus, **({"GPU": 1} if share.use_gpu else {})},
        ),
        run_config=RunConfig(
            name="train",
            storage_path=str(storage),
            failure_config=FailureConfig(max_failures=0, max_preemption_failures=0, controller_failure_limit=0),
        ),
    )
    reader = MailReader(mailbox, console, task)
    try:
        with reader:
            trainer.fit()
    except (ray.train.TrainingFailedError, ray.exceptions.RayError) as error:
        if reader.failure is not None:
            raise reader.failure from error
        raise
    finally:
        shutil.rmtree(storage, ignore_errors=True)
        ray.kill(mailbox)
    return read_progress(Path(task.folder) / "checkpoints")


class MailReader:
    """Prints and draws what the first worker posts, while training runs.

    Attributes:
        failure: What a worker raised on purpose; Ray hands on the text of errors, not their type.
    """

    def __init__(self, mailbox: Any, console: Console, task: WorkerTask) -> None:
        self.failure: RaysegmentError | None = None
        self._mailbox, self._console, self._task = mailbox, console, task
        self._shown = EpochProgress(console)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._read, daemon=True)

    def __enter__(self) -> MailReader:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _read(self) -> None:
        while True:
            stopping = self._stop.is_set()
            try:
                messages = ray.get(self._mailbox.take.remote(), timeout=30)
            except ray.exceptions.RayError:
                messages = []
            except Exception:
                if ray.is_initialized():
                    raise
                return  # An interrupted run has ended Ray.
            for message in messages:
                with suppress(OSError):
                    self._show(message)
            if stopping:
                return
            self._stop.wait(SECONDS_BETWEEN_LOOKS)

    def _show(self, message: dict[str, Any]) -> None:
        if "failure" in message:
            self.failure = self.failure or message["failure"]
            return
        if "line" in message:
            self._console.say(message["line"])
            return
        if "steps" in message:
            self._shown.steps_done(message["epoch"], message["steps"], message["total"])
            return
        if "previews" in message:
            self._draw(message["previews"])
            return
        progress: Progress = message["progress"]
        epochs = progress.count_epochs(self._task.options)
        self._shown.epoch_done(progress.history[-1], progress.best_epoch, epochs, message["worst"])

    def _draw(self, previews: list[Preview]) -> None:
        """Replace the run's picture of predictions; one that fails costs no line of the log."""
        figure = Path(self._task.folder) / "figures" / "predictions.png"
        try:
            draw_previews(previews, figure, self._task.labels)
        except Exception as error:
            self._shown.say(f"{figure} could not be drawn: {type(error).__name__}: {error}")
        else:
            self._shown.say(f"drew {figure}")


def train_on_worker(config: dict[str, Any]) -> None:
    """What each Ray Train worker runs; what it raises on purpose also goes into the mailbox, as it is."""
    task: WorkerTask = config["task"]
    try:
        with report_full_disk(task.folder):
            train_one_rank(task)
    except RaysegmentError as error:
        ray.get(task.mailbox.post.remote({"failure": error}))
        raise


def train_one_rank(task: WorkerTask) -> None:
    """All epochs of this worker."""
    from raysegment.model.tensorboard import log_epoch

    context = ray.train.get_context()
    rank, num_workers = context.get_world_rank(), context.get_world_size()
    plan = SharePlan(kept=task.train, options=task.options, rank=rank, num_workers=num_workers)
    fitter = make_fitter(task, plan)
    if rank == 0 and fitter.origin:
        ray.get(task.mailbox.post.remote({"line": fitter.origin}))
    checkpoints = Path(task.folder) / "checkpoints"
    mine = deal_scans(task.validation.slices_per_scan, num_workers)[rank]
    posted = time.monotonic()

    def on_step(epoch: int, done: int) -> None:
        nonlocal posted
        if rank == 0 and time.monotonic() - posted > SECONDS_BETWEEN_LOOKS:
            posted = time.monotonic()
            task.mailbox.post.remote({"epoch": epoch, "steps": done, "total": plan.num_steps})

    def on_epoch(progress: Progress) -> None:
        if rank == 0:
            write_history(Path(task.folder), progress)
            log_epoch(Path(task.folder) / "tensorboard", progress.history[-1])
            worst = [(task.validation.scan_ids[scan], progress.scan_dice[scan]) for scan in progress.find_worst()]
            ray.get(task.mailbox.post.remote({"progress": progress, "worst": worst}))
        ray.train.report({"epoch": progress.epoch})

    def on_validated(progress: Progress) -> None:
        every = task.options.predictions_every
        if rank == 0 and every and progress.epoch % every == 0 and (previews := look_at_some(task, fitter, progress)):
            task.mailbox.post.remote({"previews": previews})

    progress = run_epochs(
        fitter,
        lambda first_epoch: stream_batches(plan, first_epoch, max(1, task.threads // THREADS_PER_MAKER)),
        {scan: task.validation.fetch(scan) for scan in mine},
        len(task.validation.scan_ids),
        checkpoints,
        on_epoch,
        on_step,
        on_validated,
    )
    if rank == 0:
        # Again: the run may have been killed between the last checkpoint and its row of the history.
        write_history(Path(task.folder), progress)


def look_at_some(task: WorkerTask, fitter: Fitter, progress: Progress) -> list[Preview]:
    """What the network finds in a slice each of some validation scans, of whichever rank."""
    return make_previews(
        progress.scan_dice,
        task.validation.fetch,
        fitter.predict,
        task.labels,
        context_slices=task.options.context_slices,
        epoch=progress.epoch,
    )


def make_fitter(task: WorkerTask, plan: SharePlan) -> Any:
    """This rank's network; imports TensorFlow in the worker only."""
    from raysegment.model.fit import FitTask, Fitter

    is_begun = bool(find_checkpoints(Path(task.folder) / "checkpoints"))
    return Fitter(
        FitTask(
            options=task.options,
            num_channels=task.num_inputs,
            steps_per_epoch=plan.num_steps,
            labels=task.labels,
            rank=plan.rank,
            num_workers=plan.num_workers,
            threads=task.threads,
            # A run that goes on takes its weights from the checkpoint.
            start=None if is_begun or task.start is None else ray.get(task.start),
        )
    )


def write_history(folder: Path, progress: Progress) -> None:
    """Replace `history.parquet`."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    partial = folder / ".history.parquet.partial"
    pq.write_table(pa.Table.from_pylist(progress.history), partial)
    partial.replace(folder / "history.parquet")


def find_cause(error: BaseException) -> str:
    """The innermost message of a Ray failure, on one line."""
    failures = getattr(error, "worker_failures", None) or {}
    messages = [str(item) for item in failures.values()] or [str(error.__cause__ or error)]
    lines = [line.strip() for line in messages[0].splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[-1] if lines else 'no message'}"[:500]


def finish_on_worker(task: WorkerTask, share: WorkerShare, progress: Progress, facts: dict[str, Any]) -> dict[str, Any]:
    """Write the bundle in a Ray task with as much hardware as a training worker had."""
    finish = ray.remote(num_cpus=share.cpus, num_gpus=1 if share.use_gpu else 0, max_retries=3)(write_bundle_of)
    try:
        return dict(ray.get(finish.remote(replace(task, mailbox=None), progress, facts)))
    except ray.exceptions.RayError as error:
        if isinstance(error, ray.exceptions.RayTaskError) and isinstance(error.cause, RaysegmentError):
            raise error.cause from error
        cause = find_cause(error)
        raise RunError(f"the bundle could not be written: {cause}. The same command tries again.") from error


def write_bundle_of(task: WorkerTask, progress: Progress, facts: dict[str, Any]) -> dict[str, Any]:
    """The last step of training: best weights, threshold, bundle."""
    from raysegment.model.engines.tensorflow import set_threads
    from raysegment.pipeline.finish import write_bundle

    set_threads(task.threads)
    validation = [task.validation.fetch(scan) for scan in range(len(task.validation.scan_ids))]
    with report_full_disk(task.folder):
        return write_bundle(Path(task.folder), task.options, task.labels, progress, validation, facts)
