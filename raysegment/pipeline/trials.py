"""The trials of a search: what each is, how far it came, which is the best, and what is written of them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from raysegment.choices import as_plain
from raysegment.errors import CheckpointError
from raysegment.options import CommandOptions, TrainOptions
from raysegment.pictures.trials import Axis, TrialDot, draw_trials
from raysegment.pipeline.learn import Progress, read_progress
from raysegment.pipeline.search_space import Varied

Status = Literal["waiting", "done", "stopped", "failed"]
"""Stopped: it fell behind the others. What was interrupted is waiting."""

FOLDER, TABLE_FILE, FIGURE = "trials", "trials.parquet", "figures/trials.png"


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One trial as run.json keeps it.

    Attributes:
        trial: Its name, that of its folder below `trials/`.
        drawn: A value for each option that varies.
        status: How it ended.
        error: Type and message of what made it fail.
    """

    trial: str
    drawn: Mapping[str, Any]
    status: Status = "waiting"
    error: str | None = None

    @property
    def has_ended(self) -> bool:
        """Whether nothing more is to be done."""
        return self.status != "waiting"

    def as_plain(self) -> dict[str, Any]:
        """As JSON has it."""
        return {**asdict(self), "drawn": dict(self.drawn)}


@dataclass(frozen=True, kw_only=True)
class TrialRow:
    """What a trial came to.

    Attributes:
        trial: Its name.
        status: How it ended.
        drawn: The varied options as it had them; None for those that did nothing.
        epochs: Epochs done.
        best_epoch: The epoch with the best weights; None before the first.
        val_dice: Mean per-scan validation Dice of its bundle, at the bundle's threshold; None without a bundle.
        val_dice_at_half: That of the best epoch's weights at threshold 0.5; None before the first epoch.
        minutes: Time spent in epochs.
        error: What made it fail.
    """

    trial: str
    status: Status
    drawn: Mapping[str, Any]
    epochs: int
    best_epoch: int | None
    val_dice: float | None
    val_dice_at_half: float | None
    minutes: float
    error: str | None


def name_trial(position: int) -> str:
    """The name of a trial, counted from 0."""
    return f"{position + 1:04d}"


def read_trials(listed: Sequence[Mapping[str, Any]]) -> list[Trial]:
    """The trials that run.json lists."""
    return [
        Trial(trial=item["trial"], drawn=item["drawn"], status=item["status"], error=item["error"]) for item in listed
    ]


def find_progress(folder: Path) -> Progress:
    """How far a trial has come; not at all where it has no checkpoint that can be read now."""
    try:
        return read_progress(folder / "checkpoints")
    except (OSError, ValueError, TypeError, CheckpointError):
        # The newest checkpoint may just have made way for a newer one.
        return Progress()


def make_row(trial: Trial, options: TrainOptions, scores: Mapping[str, Any] | None) -> TrialRow:
    """What a trial came to, from its folder.

    Args:
        trial: The trial.
        options: All its options.
        scores: What its run.json has of its bundle.
    """
    progress = find_progress(Path(options.out))
    best = progress.history[progress.best_epoch - 1]["val_dice"] if progress.best_epoch else math.nan
    dice = (scores or {}).get("val_dice") if trial.status == "done" else None
    return TrialRow(
        trial=trial.trial,
        status=trial.status,
        drawn=keep_effective(trial.drawn, options),
        epochs=progress.epoch,
        best_epoch=progress.best_epoch or None,
        val_dice=dice,
        val_dice_at_half=None if math.isnan(best) else best,
        minutes=progress.minutes,
        error=trial.error,
    )


def keep_effective(drawn: Mapping[str, Any], options: TrainOptions) -> dict[str, Any]:
    """What was drawn, with None for what did nothing beside the other options and so was left out."""
    plain = as_plain(options)
    return {name: value if plain[name] == _plain(value) else None for name, value in drawn.items()}


def find_best(rows: Sequence[TrialRow]) -> TrialRow | None:
    """The finished trial whose bundle has the highest validation Dice; of equals the first."""
    scored = [row for row in rows if row.val_dice is not None]
    return max(scored, key=lambda row: row.val_dice or 0.0, default=None)


NUMBERS: Mapping[str, pa.DataType] = {
    "epochs": pa.int64(),
    "best_epoch": pa.int64(),
    "val_dice": pa.float64(),
    "val_dice_at_half": pa.float64(),
    "minutes": pa.float64(),
    "error": pa.string(),
}
"""Columns of the table that tell what a trial came to; those of the varied options stand before them."""


def write_trials(rows: Sequence[TrialRow], varied: Sequence[Varied], path: Path) -> None:
    """Replace `trials.parquet`: one row per trial, one column for each option that varies."""
    columns: dict[str, pa.Array] = {
        "trial": pa.array([row.trial for row in rows], pa.string()),
        "status": pa.array([row.status for row in rows], pa.string()),
    }
    for item in varied:
        columns[item.name] = _make_column([row.drawn[item.name] for row in rows])
    for name, kind in NUMBERS.items():
        columns[name] = pa.array([getattr(row, name) for row in rows], kind)
    partial = path.with_name(f".{path.name}.partial")
    pq.write_table(pa.table(columns), partial)
    partial.replace(path)


def read_rows(path: Path, varied: Sequence[Varied]) -> list[TrialRow]:
    """The rows that `write_trials` wrote."""
    known = ("trial", "status", *NUMBERS)
    return [
        TrialRow(**{name: row[name] for name in known}, drawn={item.name: row[item.name] for item in varied})
        for row in pq.read_table(path).to_pylist()
    ]


def draw_rows(rows: Sequence[TrialRow], varied: Sequence[Varied], path: Path) -> None:
    """The picture of the trials: finished ones by their bundle's Dice, stopped ones by their best epoch's."""
    dots, best = [], find_best(rows)
    for row in rows:
        dice = row.val_dice if row.status == "done" else row.val_dice_at_half
        if dice is not None and row.status != "failed":
            dots.append(TrialDot(trial=row.trial, is_done=row.status == "done", dice=dice, drawn=row.drawn))
    axes = [Axis(name=item.name, kind=item.kind, values=item.values) for item in varied]
    num_failed = sum(row.status == "failed" for row in rows)
    draw_trials(dots, axes, path, best=best.trial if best else None, num_failed=num_failed)


def write_recipe(row: TrialRow, options: TrainOptions, path: Path) -> None:
    """Write the best trial's options as a job file for `raysegment train`, which runs as it is.

    Args:
        row: What the trial came to.
        options: All its options, with `out` for the run of the file.
        path: File to write.
    """
    general = {"mlflow_uri", *CommandOptions.__dataclass_fields__}
    defaults = {name: item.default for name, item in TrainOptions.__dataclass_fields__.items()}
    chosen = {
        name: value
        for name, value in as_plain(options).items()
        if name not in general and _plain(defaults[name]) != value
    }
    head = (
        f"# The best of the trials beside this file: {row.trial}, validation Dice {row.val_dice:.4f} of its bundle.\n"
        f"# raysegment train --job {path.name}; SOURCE and --out on the command line win over those here.\n"
    )
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(head + yaml.safe_dump(chosen, sort_keys=False, allow_unicode=True), encoding="utf-8")
    partial.replace(path)


def describe_trials(rows: Sequence[TrialRow], varied: Sequence[Varied]) -> list[str]:
    """The closing table, the best trial first."""
    head = ["trial", "status", "Dice", "at 0.5", "epochs", "best", "minutes", *(item.name for item in varied)]
    lines = [head]
    for row in sorted(rows, key=_rank):
        numbers = [_show(row.val_dice), _show(row.val_dice_at_half), str(row.epochs), str(row.best_epoch or "–")]
        drawn = [_show_value(row.drawn[item.name]) for item in varied]
        lines.append([row.trial, row.status, *numbers, f"{row.minutes:.1f}", *drawn])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]


def _rank(row: TrialRow) -> tuple[int, float]:
    """Finished trials by their bundle's Dice, then the others by what they came to."""
    if row.val_dice is not None:
        return 0, -row.val_dice
    return 1, -(row.val_dice_at_half if row.val_dice_at_half is not None else -1.0)


def _make_column(values: Sequence[Any]) -> pa.Array:
    """Numbers, words and yes or no as they are, lists as text."""
    return pa.array([",".join(map(str, value)) if isinstance(value, list | tuple) else value for value in values])


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _show(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"


def _show_value(value: Any) -> str:
    return "–" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
