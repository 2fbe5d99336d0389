"""The training run of one rank, epoch by epoch: train, validate, remember the best, checkpoint, go on or stop."""

from __future__ import annotations

import json
import math
import shutil
import statistics
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from raysegment.errors import CheckpointError, DivergedError, SharedFolderError
from raysegment.options import TrainOptions
from raysegment.pipeline.samples import KeptScan, score_scan
from raysegment.pipeline.score import dice_per_scan, summarise_scores
from raysegment.store.place import sync

if TYPE_CHECKING:
    from raysegment.model.fit import Batch, Fitter


NUM_WORST = 3
"""Validation scans that each epoch's line names."""


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far a training run has come; stored with each checkpoint.

    Attributes:
        epoch: Epochs done.
        best_epoch: The epoch, counted from 1, whose weights are the best; 0 before the first.
        best_score: Its score; larger is better.
        minutes: Wall-clock time spent in epochs.
        history: One row per epoch done.
        scan_dice: Dice of each validation scan after the last epoch, in their order; NaN where there is none.
    """

    epoch: int = 0
    best_epoch: int = 0
    best_score: float = -math.inf
    minutes: float = 0.0
    history: list[dict[str, float]] = field(default_factory=list)
    scan_dice: list[float] = field(default_factory=list)

    @property
    def improved_epoch(self) -> int:
        """The last epoch that was better than all before it, by its score or by its validation loss."""
        losses = [row.get("val_loss", math.nan) for row in self.history]
        lowest = min((loss for loss in losses if not math.isnan(loss)), default=math.nan)
        return max(self.best_epoch, losses.index(lowest) + 1 if lowest in losses else 0)

    def is_over(self, options: TrainOptions) -> bool:
        """Whether the run has reached its epochs, its patience or its time."""
        if options.early_stopping and self.epoch and self.epoch - self.improved_epoch >= options.early_stopping:
            return True
        return self.epoch >= self.count_epochs(options)

    def count_epochs(self, options: TrainOptions) -> int:
        """Epochs that the run will have had at its end, as far as can be told now, patience aside.

        With a budget of minutes these are as many as fit into it: the last one begins while there is time for the
        longest so far. The first epoch also waits for the data to come, so those after it say how long one takes.
        """
        if options.max_minutes is None or not self.epoch:
            return options.epochs
        minutes = [row["minutes"] for row in self.history]
        spare = options.max_minutes - self.minutes - max(minutes)
        if spare < 0:
            return min(options.epochs, self.epoch)
        typical = statistics.median(minutes[1:] or minutes)
        further = 1 + int(spare / typical) if typical > 0 else options.epochs
        return min(options.epochs, self.epoch + further)

    def after(self, row: dict[str, float], best_by: str, scan_dice: Sequence[float] = ()) -> Progress:
        """The progress after one more epoch; among epochs of equal score the one with the lowest loss is the best."""
        score = score_of(row, best_by)
        is_best = not self.best_epoch or score > self.best_score
        if score == self.best_score and self.best_epoch:
            is_best = row["val_loss"] < self.history[self.best_epoch - 1]["val_loss"]
        return replace(
            self,
            epoch=self.epoch + 1,
            best_epoch=self.epoch + 1 if is_best else self.best_epoch,
            best_score=score if is_best else self.best_score,
            minutes=self.minutes + row["minutes"],
            history=[*self.history, row],
            scan_dice=list(scan_dice),
        )

    def find_worst(self) -> list[int]:
        """Positions of the validation scans with the lowest Dice after the last epoch, the worst first."""
        known = [position for position, dice in enumerate(self.scan_dice) if not math.isnan(dice)]
        return sorted(known, key=lambda position: self.scan_dice[position])[:NUM_WORST]


def run_epochs(
    fitter: Fitter,
    batches_from: Callable[[int], Iterator[Batch]],
    validation: Mapping[int, KeptScan],
    num_validation_scans: int,
    folder: Path,
    on_epoch: Callable[[Progress], None],
    on_step: Callable[[int, int], None] | None = None,
    on_validated: Callable[[Progress], None] | None = None,
) -> Progress:
    """Train from the newest checkpoint on until the run is over.

    Args:
        fitter: This rank's network.
        batches_from: Gives this rank's steps in order, from an epoch on, counted from 0.
        validation: This rank's validation scans by index; all ranks together hold each index once.
        num_validation_scans: Over all ranks.
        folder: The run's checkpoints.
        on_epoch: Called after each epoch with its checkpoint written.
        on_step: Called with epoch and steps done.
        on_validated: Called in each epoch while the network has the weights that were validated.

    Raises:
        DivergedError: The loss is not a number.
        CheckpointError: No checkpoint can be read.
        SharedFolderError: The ranks found different checkpoints.
    """
    options = fitter.task.options
    progress = restore_newest(fitter, folder)
    check_ranks(fitter, progress, folder)
    batches = batches_from(progress.epoch)
    while not progress.is_over(options):
        watch = partial(on_step, progress.epoch) if on_step else None
        fitter.anneal_over(progress.count_epochs(options))
        progress = run_epoch(fitter, batches, validation, num_validation_scans, folder, progress, watch, on_validated)
        if fitter.task.rank == 0:
            save_checkpoint(fitter, folder, progress)
        on_epoch(progress)
    return progress


def run_epoch(
    fitter: Fitter,
    batches: Iterator[Batch],
    validation: Mapping[int, KeptScan],
    num_validation_scans: int,
    folder: Path,
    progress: Progress,
    on_step: Callable[[int], None] | None,
    on_validated: Callable[[Progress], None] | None = None,
) -> Progress:
    """Train and validate once, and keep the weights if they are the best.

    Raises:
        DivergedError: The loss is not a number.
    """
    options, start, rate = fitter.task.options, time.monotonic(), fitter.learning_rate
    trained = fitter.train_epoch(batches, on_step)
    if math.isnan(trained.loss):
        raise DivergedError(f"the loss is not a number in epoch {progress.epoch + 1}; lower --learning-rate.")
    with fitter.averaged_weights():
        scores = validate(fitter, validation, num_validation_scans, options.context_slices)
        seconds = time.monotonic() - start
        # All ranks take the first one's time, so that they stop after the same epoch.
        minutes = fitter.sum_over_ranks(np.array([seconds / 60 if fitter.task.rank == 0 else 0.0]))
        row = {
            "epoch": progress.epoch + 1,
            "loss": trained.loss,
            "dice": trained.dice,
            **summarise_scores(scores, fitter.task.labels),
            "learning_rate": rate,
            "seconds": seconds,
            "slices_per_second": trained.num_slices / trained.seconds,
            "data_wait_share": trained.wait_seconds / trained.seconds,
            "num_slices": trained.num_slices,
            "num_validation_slices": int(scores[:, -1].sum()),
            "minutes": float(minutes[0]),
        }
        # Without any lesion to validate on Dice says nothing in any epoch.
        has_lesion = scores[:, 2:-2:3].any()
        scan_dice = dice_per_scan(scores, fitter.task.labels)
        progress = progress.after(row, options.best_by if has_lesion else "val_loss", scan_dice)
        if progress.best_epoch == progress.epoch and fitter.task.rank == 0:
            save_best(folder, progress.epoch, fitter.model.get_weights())
        if on_validated:
            on_validated(progress)
    return progress


def validate(
    fitter: Fitter, validation: Mapping[int, KeptScan], num_scans: int, context_slices: int
) -> npt.NDArray[np.float64]:
    """Score every validation scan once: each rank its own, added up at the end.

    Returns:
        (scans, 3 · labels + 2): of each label true positives, mask voxels, reference voxels; then the sum of losses,
        and slices.
    """
    labels = fitter.task.labels
    scores = np.zeros((num_scans, 3 * len(labels) + 2), np.float64)
    batch_size = max(1, fitter.task.options.batch_size // fitter.task.num_workers)
    for index, kept in validation.items():
        scored = score_scan(
            kept, fitter.predict, fitter.slice_losses, labels, context_slices=context_slices, batch_size=batch_size
        )
        scores[index] = scored.as_vector()
    return fitter.sum_over_ranks(scores.ravel()).reshape(scores.shape)


def score_of(row: Mapping[str, float], best_by: str) -> float:
    """What is compared between epochs; larger is better, NaN counts as worst."""
    score = row["val_dice"] if best_by == "val_dice" else -row["val_loss"]
    return -math.inf if math.isnan(score) else score


def save_checkpoint(fitter: Fitter, folder: Path, progress: Progress) -> None:
    """Write a checkpoint under its final name at once, then remove what is older than those kept."""
    final = folder / f"epoch-{progress.epoch:05d}"
    unfinished = folder / f"{final.name}.partial"
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    fitter.save(unfinished, asdict(progress))
    for path in unfinished.iterdir():
        sync(str(path))
    shutil.rmtree(final, ignore_errors=True)
    unfinished.rename(final)
    sync(str(folder))
    prune(folder, fitter.task.options.keep_checkpoints)


def prune(folder: Path, keep_checkpoints: int) -> None:
    """Remove old checkpoints, and best weights that none of those kept goes back to."""
    found = find_checkpoints(folder)
    for old in found[:-keep_checkpoints]:
        shutil.rmtree(old, ignore_errors=True)
    kept = [json.loads((path / "state.json").read_text(encoding="utf-8")) for path in found[-keep_checkpoints:]]
    needed = {best_path(folder, state["best_epoch"]) for state in kept}
    for path in set(folder.glob("best-*.npz")) - needed:
        path.unlink()


def find_checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints, the newest last."""
    return sorted(path for path in folder.glob("epoch-*") if path.suffix != ".partial")


def read_progress(folder: Path) -> Progress:
    """What the newest checkpoint knows of the run.

    Raises:
        CheckpointError: There is none.
    """
    found = find_checkpoints(folder)
    if not found:
        raise CheckpointError(f"training ended without a checkpoint in {folder}.")
    return Progress(**json.loads((found[-1] / "state.json").read_text(encoding="utf-8")))


def restore_newest(fitter: Fitter, folder: Path) -> Progress:
    """Go on from the newest checkpoint that can be read; from the start where there is none.

    Raises:
        CheckpointError: There are checkpoints, but none can be read.
    """
    found = find_checkpoints(folder)
    for checkpoint in reversed(found):
        try:
            return Progress(**fitter.restore(checkpoint))
        except (OSError, EOFError, ValueError, KeyError, TypeError, zipfile.BadZipFile):
            continue
    if found:
        raise CheckpointError(
            f"none of the {len(found)} checkpoints in {folder} can be read. Delete that folder to train from the start."
        )
    return Progress()


def check_ranks(fitter: Fitter, progress: Progress, folder: Path) -> None:
    """Refuse to train where the ranks start from different epochs; they would wait for each other for ever.

    Raises:
        SharedFolderError: The run's folder is not the same on all nodes.
    """
    num_workers = fitter.task.num_workers
    total = fitter.sum_over_ranks(np.array([float(progress.epoch)]))[0]
    if total != progress.epoch * num_workers:
        raise SharedFolderError(
            f"rank {fitter.task.rank} finds {progress.epoch} epochs in {folder}, the {num_workers} ranks together "
            f"{total:.0f}; --out must be a folder that all nodes share."
        )


def save_best(folder: Path, epoch: int, weights: list[npt.NDArray[Any]]) -> None:
    """Keep the weights of the best epoch so far; the file is whole at every moment."""
    folder.mkdir(parents=True, exist_ok=True)
    unfinished = folder / "best.partial.npz"
    arrays: dict[str, Any] = {f"weight_{i:05d}": value for i, value in enumerate(weights)}
    np.savez(unfinished, **arrays)
    sync(str(unfinished))
    unfinished.rename(best_path(folder, epoch))


def load_best(folder: Path, epoch: int) -> list[npt.NDArray[Any]]:
    """The weights that `save_best` kept of an epoch."""
    with np.load(best_path(folder, epoch)) as arrays:
        return [arrays[name] for name in sorted(arrays.files)]


def best_path(folder: Path, epoch: int) -> Path:
    return folder / f"best-{epoch:05d}.npz"
