"""`raysegment train`: from an archive to a bundle, on Ray Train workers that may die."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from raysegment.archive.channels import most_common_names, order_channels
from raysegment.archive.index import find_scans
from raysegment.archive.labels import find_labels
from raysegment.archive.split import Drawing, assign_splits
from raysegment.choices import as_plain, hide_credentials
from raysegment.cluster.session import check_temp_dir, interruptible, ray_session, run_interruptibly
from raysegment.cluster.training.run import train_in_session
from raysegment.errors import EXIT_DONE, EXIT_SOME_SCANS_FAILED, CheckpointError, UsageError
from raysegment.options import TrainOptions
from raysegment.pipeline.learn import find_checkpoints, read_progress
from raysegment.pipeline.sides import check_mirror
from raysegment.pipeline.training_set import (
    Errors,
    check_channels,
    check_flip,
    check_label,
    check_splits,
    describe_split,
    hash_data,
    keep_labels,
    most_common_channels,
    select_referenced,
    warn_of_few_patients,
    warn_of_lone_sides,
)
from raysegment.runs.console import Console
from raysegment.runs.identity import identify
from raysegment.runs.lock import RunLock
from raysegment.runs.mlflow_server import check_client
from raysegment.runs.record import keep_record, read_record
from raysegment.runs.tracking import track_run
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
        threshold: The bundle's threshold; by label where each has one of its own.
        scans_total: Scans of the train and val splits.
        errors: Scans left out.
        already_done: There was nothing left to do.
    """

    folder: Path
    bundle: Path
    epochs: int
    best_epoch: int
    val_dice: float | None
    threshold: float | dict[str, float]
    scans_total: int
    errors: Errors = field(default_factory=dict)
    already_done: bool = False

    @property
    def exit_code(self) -> int:
        return EXIT_SOME_SCANS_FAILED if self.errors else EXIT_DONE


@interruptible()
def train(options: TrainOptions) -> TrainResult:
    """Train a network and write its bundle.

    An unfinished run in the same folder goes on; a finished one does where more epochs, minutes or patience are given.

    Raises:
        UsageError: Wrong options, nothing to train on, or a folder that holds a different run.
        RunError: Too many bad scans, too many lost workers, a full disk, or a cluster that is too small.
    """
    folder = Path(options.out).absolute()
    place = Place(str(folder))
    options = keep_rules(options, place)
    check_temp_dir(options.address, options.temp_dir)
    if options.mlflow_uri is not None:
        check_client()
    found = find_scans(
        options.source,
        patient_pattern=options.patient_pattern,
        scan_pattern=options.scan_pattern,
        channels=options.channel,
        references=options.reference,
    )
    labels = find_labels(options.source, options.labels, options.label, found)
    found = order_channels(found, most_common_names(found))
    split = assign_splits(
        select_referenced(found, options.source),
        split_file=options.split_file,
        drawing=Drawing(options.train_fraction, options.val_fraction, options.seed),
    )
    labels = keep_labels(labels, options, split.table, read_record(place))
    check_label(options, labels)
    check_flip(options, labels)
    check_splits(split)
    check_channels(options, most_common_channels(split.table))
    check_mirror(labels, options.mirror, options.slice_axis, split.table["reader"].unique().to_pylist())
    data_id = hash_data(split.table, labels)
    about_data = describe_split(split, found)
    record = identify("train", options, key="options", data_id=data_id).open(place)
    if is_finished(folder, record, options):
        return build_result(folder, record, already_done=True)
    check_precision(options, record)
    place.make_writable()
    with (
        report_full_disk(str(folder)),
        RunLock(place),
        keep_record(place, record),
        Console(place, as_json=options.json) as console,
    ):
        console.say(about_data, left_out=list(split.left_out))
        for warning in warn_of_few_patients(split) + warn_of_lone_sides(options, labels):
            console.say(warning)
        uri, choices = options.mlflow_uri, as_plain(options)
        options = without_credentials(options)
        with (
            track_run(uri, place, record, console, params=choices),
            ray_session(options.address, options.temp_dir),
        ):
            run_interruptibly(lambda: train_in_session(options, labels, split.table, place, record, console))
    return build_result(folder, record)


def is_finished(folder: Path, record: dict[str, Any], options: TrainOptions) -> bool:
    """Whether the bundle is written and no more is asked for; more epochs or minutes, or more patience, are.

    Raises:
        CheckpointError: More epochs are asked for, but there is no checkpoint to go on from.
    """
    if record.get("status") != "done":
        return False
    checkpoints = folder / "checkpoints"
    if find_checkpoints(checkpoints):
        return read_progress(checkpoints).is_over(options)
    if options.epochs > record["chosen"]["epochs"]:
        raise CheckpointError(
            f"--out {options.out} holds a finished run of {record['epochs']} epochs without its checkpoints, so it "
            f"cannot go on to --epochs {options.epochs}. Choose another --out."
        )
    return True


def keep_rules(options: TrainOptions, place: Place) -> TrainOptions:
    """A run of version 0.1 goes on by its own rules."""
    chosen = read_record(place).get("options")
    return replace(options, rules="0.1") if isinstance(chosen, dict) and "rules" not in chosen else options


def without_credentials(options: TrainOptions) -> TrainOptions:
    """The choices as they may go to other processes and into run.json."""
    return replace(options, mlflow_uri=hide_credentials(options.mlflow_uri)) if options.mlflow_uri else options


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
