"""What training prints: a line per epoch, a bar within it; the same lines in `log.txt`."""

from __future__ import annotations

import json
import math
import sys
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

from raysegment.cluster.record import as_json

MAX_WAIT_SHARE = 0.1
"""Share of an epoch's time spent waiting for data above which a warning says what to change."""

MAX_LISTED_ERRORS = 20


class TrainingLog:
    """Prints to the terminal, or plain lines elsewhere, or JSON lines; and appends to a file."""

    def __init__(self, path: Path, *, as_json: bool) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        self._as_json = as_json
        self._console = Console(stderr=False, highlight=False, soft_wrap=True)
        self._bar: RichProgress | None = None
        self._task: Any = None
        self._epochs_seen = 0

    def say(self, text: str, **facts: Any) -> None:
        """One line; `facts` are what a program gets with `--json`."""
        line = f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}"
        with self._path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
        if self._as_json:
            print(json.dumps(as_json({"message": text, **facts})), flush=True)
        elif self._console.is_terminal:
            self._console.print(text, markup=False)
        else:
            print(line, flush=True)

    def say_errors(self, errors: dict[str, tuple[str, str]], where: Path) -> None:
        """Failures by type, the first ones in full, then where the rest stands."""
        by_type: dict[str, int] = {}
        for error_type, _ in errors.values():
            by_type[error_type] = by_type.get(error_type, 0) + 1
        counts = ", ".join(f"{count} {name}" for name, count in sorted(by_type.items()))
        self.say(f"{len(errors)} scans left out: {counts}", errors=by_type)
        for scan_id, (error_type, message) in list(errors.items())[:MAX_LISTED_ERRORS]:
            self.say(f"  {scan_id!r}: {error_type}: {message}")
        if len(errors) > MAX_LISTED_ERRORS:
            self.say(f"  … and {len(errors) - MAX_LISTED_ERRORS} more in {where}")

    def steps_done(self, epoch: int, done: int, total: int) -> None:
        """Move the bar within an epoch; only on a terminal."""
        if self._as_json or not sys.stdout.isatty():
            return
        if self._bar is None:
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
            self._bar = RichProgress(*columns, console=self._console, transient=True)
            self._bar.start()
            self._task = self._bar.add_task("", total=total)
        self._bar.update(self._task, description=f"epoch {epoch + 1}", completed=done, total=total)

    def epoch_done(self, row: dict[str, float], epochs: int, best_epoch: int) -> None:
        """The line of one epoch."""
        self.close()
        mark = " *" if best_epoch == row["epoch"] else ""
        self.say(
            f"epoch {row['epoch']:.0f}/{epochs}  loss {row['loss']:.4f}  dice {_show(row['dice'])}  "
            f"val_loss {row['val_loss']:.4f}  val_dice {_show(row['val_dice'])}{mark}  "
            f"{row['slices_per_second']:.1f} slices/s  waiting for data {row['data_wait_share']:.0%}  "
            f"{row['seconds']:.0f} s",
            **row,
        )
        self._epochs_seen += 1
        # The first epoch also waits for Ray Data to start.
        if row["data_wait_share"] > MAX_WAIT_SHARE and self._epochs_seen > 1:
            self.say(
                f"warning: {row['data_wait_share']:.0%} of the time went into waiting for data; give Ray more CPUs, "
                "lower --threads, or switch off costly augmentation (--noise 0)."
            )

    def close(self) -> None:
        """Take the bar off the terminal."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def _show(value: float) -> str:
    return "  –   " if math.isnan(value) else f"{value:.4f}"
