"""`raysegment train`: from an archive to a bundle, on Ray Train workers that may die."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from raysegment.archive.index import find_scans
from raysegment.archive.split import assign_splits
from raysegment.choices import changed_result
from raysegment.cluster.hardware import share_what_is_left, wait_for_hardware
from raysegment.cluster.record import describe_choices, describe_machine, finish_record, open_record, write_record
from raysegment.cluster.session import interruptible, ray_session, resolve_on_cluster, run_interruptibly
from raysegment.cluster.training_log import TrainingLog
from raysegment.errors import (
    EXIT_DONE,
    EXIT_SOME_SCANS_FAILED,
    UsageError,
)
from raysegment.options import TrainOptions
from raysegment.pipeline.finish import count_inputs
from raysegment.pipeline.illustrate import draw_training_figures
from raysegment.pipeline.learn import Progress, find_checkpoints
from raysegment.pipeline.training_set import (
    Errors,
    check_channels,
    check_errors,
    check_same_scans,
    check_splits,
    describe_data,
    describe_split,
    hash_data,
    most_common_channels,
    select_referenced,
    select_used,
    write_run_manifest,
)
from raysegment.store.lock import RunLock
from raysegment.store.place import Place, report_full_disk


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """What a training run came to.

    Attributes:
        folder: The run.
        bundle: Folder of the trained model.
        epochs: Epochs done.
        best_epoch: The epoch whose weights were kept, counted from 1.
        val_dice: Mean per-scan Dice of the bundle on the validation scans, at its threshold.
        threshold: The bundle's threshold.
        scans_total: Scans of the train and val splits.
        errors: Scans left out.
        already_done: There was nothing left to do.
    """

    folder: Path
    bundle: Path
    epochs: int
    best_epoch: int
    val_dice: float | None
    threshold: float
    scans_total: int
    errors: Errors = field(default_factory=dict)
    already_done: bool = False

    @property
    def exit_code(self) -> int:
        return EXIT_SOME_SCANS_FAILED if self.errors else EXIT_DONE


@interruptible()
def train(options: TrainOptions) -> TrainResult:
    """Train a network and write its bundle; an unfinished run in the same folder goes on.

    Raises:
        UsageError: Wrong options, nothing to train on, or a folder that holds a different run.
        RunError: Too many bad scans, too many lost workers, a full disk, or a cluster that is too small.
    """
    folder = Path(options.out).absolute()
    found = find_scans(options.source, patient_pattern=options.patient_pattern)
    split = assign_splits(
        select_referenced(found, options.source),
        split_file=options.split_file,
        train_fraction=options.train_fraction,
        val_fraction=options.val_fraction,
        seed=options.seed,
    )
    check_splits(split.table)
    check_channels(options, most_common_channels(split.table))
    identity = {"options": changed_result(options), "data_id": hash_data(split.table)}
    record = open_record(folder, "train", identity)
    if record.get("status") == "done":
        return build_result(folder, record, already_done=True)
    check_precision(options, record)
    folder.mkdir(parents=True, exist_ok=True)
    log = TrainingLog(folder / "log.txt", as_json=options.json)
    with report_full_disk(str(folder)), RunLock(Place(str(folder))), finish_record(folder, record):
        log.say(describe_split(split, found), left_out=list(split.left_out))
        with ray_session(options.address, options.temp_dir):
            run_interruptibly(lambda: train_in_session(options, split.table, folder, record, log))
    return build_result(folder, record)


def train_in_session(
    options: TrainOptions, manifest: pa.Table, folder: Path, record: dict[str, Any], log: TrainingLog
) -> None:
    """Keep the scans, fit, write the bundle; what is learned on the way goes into the record."""
    from raysegment.cluster.keep import keep_scans
    from raysegment.cluster.workers import WorkerTask, finish_on_worker, fit_with_retries

    start = time.monotonic()
    options = replace(options, precision=record.get("precision") or resolve_on_cluster(options.precision))
    share = wait_for_hardware(options.workers, options)
    num_channels = most_common_channels(manifest)
    done = find_checkpoints(folder / "checkpoints")
    left_out = record.get("errors", {}) if done else {}
    kept, errors = keep_scans(select_used(manifest, left_out), options, num_channels)
    if done:
        check_same_scans(errors)
    errors |= left_out
    train_set, validation_set = kept["train"], kept["val"]
    write_run_manifest(manifest, errors, folder)
    if errors:
        log.say_errors(errors, folder / "manifest.parquet")
    check_errors(errors, manifest)
    num_channels = num_channels or validation_set.num_channels
    log.say(
        f"{len(train_set.has_lesion)} slices of {len(train_set.scan_ids)} scans to train on, "
        f"{len(validation_set.has_lesion)} of {len(validation_set.scan_ids)} to validate on, read in "
        f"{time.monotonic() - start:.1f} s; {share}, {options.precision}"
    )
    record |= {
        **describe_machine(),
        **describe_choices(options),
        "seed": options.seed,
        "precision": options.precision,
        "seconds_prepare": time.monotonic() - start,
        "scans_total": len(train_set.scan_ids) + len(validation_set.scan_ids) + len(errors),
        "scans_failed": len(errors),
        "errors": errors,
    }
    write_record(folder, record)
    task = WorkerTask(
        options=options,
        folder=str(folder),
        train=train_set,
        validation=validation_set,
        num_inputs=count_inputs(options, num_channels),
        threads=share.threads,
        mailbox=None,
    )
    if done:
        log.say(f"going on after {done[-1].name.replace('-', ' ')}")
    progress = fit_with_retries(task, share, log)
    share = share_what_is_left(options, needs_gpu=share.use_gpu)
    task = replace(task, threads=share.threads)
    scores = finish_on_worker(task, share, progress, describe_data(options, manifest, errors, num_channels, record))
    record |= {"scores": scores, "epochs": progress.epoch, "best_epoch": progress.best_epoch}
    log.say(describe_end(progress, scores, folder), **scores)
    draw_pictures(folder, log)


def check_precision(options: TrainOptions, record: dict[str, Any]) -> None:
    """Refuse to go on in another precision than the run began in; with `auto` it keeps its own.

    Raises:
        UsageError: Names both.
    """
    before = record.get("precision")
    if before is not None and options.precision not in ("auto", before):
        raise UsageError(
            f"--out {options.out} holds a run in {before}, --precision is {options.precision}. Give --precision auto "
            "or choose another --out."
        )


def describe_end(progress: Progress, scores: dict[str, float], folder: Path) -> str:
    """The result in one line."""
    return (
        f"done: best epoch {progress.best_epoch} of {progress.epoch}, validation Dice {scores['val_dice']:.4f} at "
        f"threshold {scores['threshold']:.2f} ({scores['val_dice_at_half']:.4f} at 0.5); bundle in {folder / 'model'}"
    )


def draw_pictures(folder: Path, log: TrainingLog) -> None:
    """Draw the run's figures, in a Ray task: it loads the network, which the driver does not."""
    import ray

    try:
        # Without GPUs, and the process ends: TensorFlow would hold all their memory as long as it lives.
        hidden = {"env_vars": {"CUDA_VISIBLE_DEVICES": "-1"}}
        task = ray.remote(num_cpus=0.5, max_retries=3, max_calls=1, runtime_env=hidden)(draw_training_figures)
        drawn = ray.get(task.remote(folder))
    except ray.exceptions.RayError as error:
        log.say(f"the figures could not be drawn ({' '.join(str(error).split())[-200:]}); try `raysegment report`")
        return
    for path in drawn:
        log.say(f"drew {path}")


def build_result(folder: Path, record: dict[str, Any], already_done: bool = False) -> TrainResult:
    """The result as the record has it."""
    scores = record["scores"]
    return TrainResult(
        folder=folder,
        bundle=folder / "model",
        epochs=record["epochs"],
        best_epoch=record["best_epoch"],
        val_dice=scores["val_dice"],
        threshold=scores["threshold"],
        scans_total=record["scans_total"],
        errors={scan_id: tuple(error) for scan_id, error in record["errors"].items()},
        already_done=already_done,
    )
