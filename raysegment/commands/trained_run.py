"""What the training run in a folder has come to: whether it is finished, how it goes on, its result."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from raysegment.choices import hide_credentials
from raysegment.errors import EXIT_DONE, EXIT_SOME_SCANS_FAILED, CheckpointError, UsageError
from raysegment.options import TrainOptions
from raysegment.pipeline.learn import find_checkpoints, read_progress
from raysegment.pipeline.training_set import Errors
from raysegment.runs.record import read_record
from raysegment.store.place import Place


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

    @property
    def as_line(self) -> str:
        """What there is, for a command that had nothing left to do."""
        return f"{self.folder} is finished: {self.epochs} epochs, bundle in {self.bundle}"


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
