"""One training on the cluster: scans kept, workers fitted, the bundle written, pictures drawn."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from raysegment.archive.channels import most_common_names
from raysegment.cluster.session import resolve_on_cluster
from raysegment.cluster.training.hardware import WorkerShare, share_what_is_left, wait_for_hardware
from raysegment.model.init_from import describe_origin, find_start
from raysegment.options import TrainOptions
from raysegment.pipeline.finish import count_inputs
from raysegment.pipeline.gallery import draw_training_figures
from raysegment.pipeline.learn import Progress, find_checkpoints
from raysegment.pipeline.training_features import choose_traits
from raysegment.pipeline.training_set import (
    Errors,
    check_errors,
    check_lesions,
    check_same_scans,
    describe_data,
    most_common_channels,
    select_used,
    warn_of_absent_labels,
    warn_of_lesions,
    write_run_manifest,
)
from raysegment.runs.closing import describe_left_out
from raysegment.runs.console import Console
from raysegment.runs.record import describe_choices, describe_machine, write_record
from raysegment.runs.tracking import UNNAMED_FOLDER
from raysegment.scan import Labels, as_spacing
from raysegment.store.place import Place

if TYPE_CHECKING:
    from raysegment.cluster.training.kept import KeptScans, KeptSet

LOW_DICE = 0.1
"""Validation Dice below which a warning says so."""


@dataclass(frozen=True, kw_only=True)
class Training:
    """One training whose scans are kept, or are to be.

    Attributes:
        options: Its choices, precision resolved.
        labels: What is segmented.
        manifest: Scans with their splits.
        place: The run.
        record: What its run.json holds; it is changed.
        console: Tells what happens.
    """

    options: TrainOptions
    labels: Labels
    manifest: pa.Table
    place: Place
    record: dict[str, Any]
    console: Console

    @property
    def folder(self) -> Path:
        return Path(self.place.root)


def train_in_session(
    options: TrainOptions, labels: Labels, manifest: pa.Table, place: Place, record: dict[str, Any], console: Console
) -> None:
    """Keep the scans, fit, write the bundle; what is learned on the way goes into the record."""
    options = resolve_precision(options, record)
    share = wait_for_hardware(options.workers, options)
    is_begun = bool(find_checkpoints(Path(place.root) / "checkpoints"))
    kept = keep_all(options, labels, manifest, record.get("errors", {}) if is_begun else None)
    training = Training(options=options, labels=labels, manifest=manifest, place=place, record=record, console=console)
    fit_kept(training, kept, share)


def resolve_precision(options: TrainOptions, record: Mapping[str, Any]) -> TrainOptions:
    """The choices with the precision that the run began in, or that the cluster is fast in."""
    return replace(options, precision=record.get("precision") or resolve_on_cluster(options.precision))


def keep_all(options: TrainOptions, labels: Labels, manifest: pa.Table, left_out: Errors | None) -> KeptScans:
    """Keep the scans to train and to validate on.

    Args:
        options: The run's choices.
        labels: What is segmented.
        manifest: Scans with their splits.
        left_out: Errors of scans that were left out when training began; None where it begins now.

    Raises:
        RunError: A scan that was trained on can no longer be read.
    """
    from raysegment.cluster.training.kept import keep_scans

    kept = keep_scans(select_used(manifest, left_out or {}), options, labels, most_common_channels(manifest))
    if left_out is None:
        return kept
    check_same_scans(kept.errors)
    return replace(kept, errors=left_out)


def fit_kept(training: Training, kept: KeptScans, share: WorkerShare) -> None:
    """Fit on scans that are kept, and write the bundle; what is learned on the way goes into the record.

    Args:
        training: What is trained.
        kept: Scans, perhaps those of other trainings too.
        share: The hardware of each worker.
    """
    import ray

    from raysegment.cluster.training.workers import WorkerTask, finish_on_worker, fit_with_retries

    options, labels, manifest, folder = training.options, training.labels, training.manifest, training.folder
    record, console = training.record, training.console
    sets = {split: kept.select(manifest, split) for split in ("train", "val")}
    used = set(select_used(manifest, {})["scan_id"].to_pylist())
    errors = {scan_id: error for scan_id, error in kept.errors.items() if scan_id in used}
    write_run_manifest(manifest, errors, folder)
    if errors:
        for line in describe_left_out(errors, folder / "manifest.parquet"):
            console.say(line)
    check_errors(errors, manifest)
    check_lesions(sets["train"].has_lesion)
    say_what_is_kept(options, labels, sets, f"read in {kept.seconds:.1f} s; {share}, {options.precision}", console)
    record |= describe_start(options, labels, sets, errors) | {"seconds_prepare": kept.seconds}
    write_record(training.place, record)
    num_channels = kept.num_channels or sets["val"].num_channels
    start = find_start(options, most_common_names(manifest))
    facts = describe_data(options, manifest, errors, num_channels, record) | describe_origin(start)
    facts["reference_sizes"] = sets["train"].reference_sizes
    patients = dict(zip(manifest["scan_id"].to_pylist(), manifest["patient_id"].to_pylist(), strict=True))
    facts["traits"] = choose_traits(sets["train"].traits, sets["val"].traits, patients)
    task = WorkerTask(
        options=options,
        labels=labels,
        folder=str(folder),
        train=sets["train"],
        validation=sets["val"],
        num_inputs=count_inputs(options, num_channels),
        threads=share.threads,
        mailbox=None,
        start=None if start is None else ray.put(start),
    )
    if done := find_checkpoints(folder / "checkpoints"):
        console.say(f"going on after epoch {int(done[-1].name.removeprefix('epoch-'))}")
    progress = fit_with_retries(task, share, console)
    share = share_what_is_left(options, share)
    scores = finish_on_worker(replace(task, threads=share.threads), share, progress, facts)
    record |= {"scores": scores, "epochs": progress.epoch, "best_epoch": progress.best_epoch}
    console.say(describe_end(progress, scores, folder), **scores)
    for warning in warn_of_low_dice(scores):
        console.say(warning)
    draw_pictures(training, progress.best_epoch, share)


def say_what_is_kept(
    options: TrainOptions, labels: Labels, kept: Mapping[str, KeptSet], how: str, console: Console
) -> None:
    """Say what there is to learn from, and warn of what it lacks."""
    train_set, validation_set = kept["train"], kept["val"]
    console.say(f"{describe_set(train_set, 'train')}, {describe_set(validation_set, 'validate')}, {how}")
    warnings = warn_of_lesions(options, train_set.has_lesion, validation_set.has_lesion)
    for warning in warnings + warn_of_absent_labels(labels, train_set.values, validation_set.values):
        console.say(warning)


def describe_start(
    options: TrainOptions, labels: Labels, kept: Mapping[str, KeptSet], errors: Mapping[str, tuple[str, str]]
) -> dict[str, Any]:
    """What the record says before the first epoch."""
    return {
        **describe_machine(),
        **describe_choices(options),
        "seed": options.seed,
        "labels": labels.values_by_name,
        "precision": options.precision,
        "scans_total": len(kept["train"].scan_ids) + len(kept["val"].scan_ids) + len(errors),
        "scans_failed": len(errors),
        "errors": errors,
    }


def describe_set(kept: KeptSet, purpose: str) -> str:
    """How many slices of how many scans there are, and in how many of them there is something to find."""
    return (
        f"{len(kept.has_lesion)} slices of {len(kept.scan_ids)} scans to {purpose} on "
        f"({np.count_nonzero(kept.has_lesion)} with lesion)"
    )


def describe_end(progress: Progress, scores: Mapping[str, Any], folder: Path) -> str:
    """The result in one line."""
    apart = ", ".join(f"{name} {dice:.4f}" for name, dice in scores.get("val_dice_of_labels", {}).items())
    of_labels = f" ({apart})" if apart else ""
    size = scores["min_component_voxels"]
    cleaning = f", components under {size} voxels removed" if size > 1 else ""
    return (
        f"done: best epoch {progress.best_epoch} of {progress.epoch}, validation Dice {scores['val_dice']:.4f}"
        f"{of_labels} at threshold {show_threshold(scores['threshold'])}{cleaning} "
        f"({scores['val_dice_at_half']:.4f} at 0.5), "
        f"precision {scores['val_precision']:.4f} over all voxels; bundle in {folder / 'model'}"
    )


def show_threshold(threshold: float | Mapping[str, float]) -> str:
    """One threshold, or that of each label."""
    if not isinstance(threshold, Mapping):
        return f"{threshold:.2f}"
    return ", ".join(f"{name} {value:.2f}" for name, value in threshold.items())


def warn_of_low_dice(scores: Mapping[str, Any]) -> list[str]:
    """A line where the network finds next to nothing of what is drawn, or next to all that it finds is not drawn."""
    if not scores["val_dice"] < LOW_DICE:
        return []
    return [
        f"warning: the validation Dice is near 0 ({scores['val_dice']:.4f}, precision {scores['val_precision']:.4f}): "
        "this model is of no use yet. Look at figures/predictions.png whether the references fit, and train longer."
    ]


def draw_pictures(training: Training, best_epoch: int, share: WorkerShare) -> None:
    """Draw the run's figures, in a Ray task: it loads the network, which the driver does not."""
    import ray

    folder, options, console = training.folder, training.options, training.console
    how: dict[str, Any] = {"num_cpus": 0.5, "max_retries": 3}
    if share.use_gpu:
        # Without GPUs, and the process ends: TensorFlow would hold all their memory as long as it lives.
        how |= {"max_calls": 1, "runtime_env": {"env_vars": {"CUDA_VISIBLE_DEVICES": "-1"}}}
    about = {
        "best_epoch": best_epoch,
        "best_by": options.best_by,
        "spacing_mm": as_spacing(options.spacing_mm),
        "unnamed": folder / UNNAMED_FOLDER if options.mlflow_uri else None,
    }
    try:
        drawn = ray.get(ray.remote(**how)(draw_training_figures).remote(folder, **about))
    except ray.exceptions.RayError as error:
        console.say(f"the figures could not be drawn ({' '.join(str(error).split())[-200:]}); try `raysegment report`")
        return
    for path in drawn:
        console.say(f"drew {path}")
