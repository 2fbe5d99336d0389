"""How far a run has come: scans of an archive, or steps and epochs of a training."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence

from raysegment.archive.names import show_name
from raysegment.runs.console import Console

SECONDS_BETWEEN_LINES = 10.0

STEADY_SECONDS = 5.0
STEADY_RECEIPTS = 8
"""A rate is told when receipts have come for so long and in such number: a few that come together say nothing."""

MAX_WAIT_SHARE = 0.1
"""Share of an epoch's time spent waiting for data above which a warning says what to change."""


class ScanProgress:
    """Counts the scans of an inference run, and shows scans done of total, slices per second, failed, time left.

    Args:
        console: Where it is shown.
        total: Scans to do in this start of the command.
    """

    def __init__(self, console: Console, total: int) -> None:
        self.total = total
        self.done = 0
        self.failed = 0
        self.num_slices = 0
        self._console = console
        self._started = time.monotonic()
        self._last_line = time.monotonic()
        self._first: tuple[float, int] | None = None
        self._last = 0.0
        self._num_receipts = 0

    @property
    def slices_per_second(self) -> float | None:
        """Steady state: from the first receipt to the last; None where too few came, or within moments."""
        if self._first is None or self._num_receipts < STEADY_RECEIPTS or self._last < self._first[0] + STEADY_SECONDS:
            return None
        return (self.num_slices - self._first[1]) / (self._last - self._first[0])

    def advance(self, num_scans: int, num_failed: int, num_slices: int) -> None:
        """Count finished scans."""
        self.done += num_scans
        self.failed += num_failed
        self.num_slices += num_slices
        if num_slices:
            self._last = time.monotonic()
            self._num_receipts += 1
            self._first = self._first or (self._last, self.num_slices)
        self.tick()

    def step_back(self, num_scans: int) -> None:
        """Scans whose part died with its worker are to be done again."""
        self.done -= num_scans

    def tick(self) -> None:
        """Show where the run stands, if it is time."""
        if self._console.has_bar:
            rate = self.slices_per_second
            speed = f"{rate:.1f} slices/s" if rate else "starting"
            self._console.show_bar("scans", self.done, self.total, f"{speed}  {self.failed} failed")
        elif time.monotonic() - self._last_line >= SECONDS_BETWEEN_LINES:
            self._last_line = time.monotonic()
            self._print_state()

    def _print_state(self) -> None:
        rate = self.slices_per_second
        if self._console.as_json:
            state = {"done": self.done, "total": self.total, "failed": self.failed, "slices_per_second": rate}
            self._console.tell_program("progress", **state)
            return
        speed = f"{rate:.1f} slices/s" if rate else "no rate yet"
        left = (self.total - self.done) * (time.monotonic() - self._started) / self.done if self.done else None
        remaining = f", about {_show_seconds(left)} left" if left is not None else ""
        self._console.say(f"{self.done} of {self.total} scans, {speed}, {self.failed} failed{remaining}")


OF_LABEL = "val_dice_"
"""Begins the names of columns with the validation Dice of one label."""


class EpochProgress:
    """Shows a training run: a bar within an epoch, a line for each.

    Args:
        console: Where it is shown.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._epochs_seen = 0

    def say(self, text: str) -> None:
        """Tell something else."""
        self._console.say(text)

    def steps_done(self, epoch: int, done: int, total: int) -> None:
        """Move the bar within an epoch, counted from 0."""
        self._console.show_bar(f"epoch {epoch + 1}", done, total)

    def epoch_done(
        self, row: dict[str, float], best_epoch: int, epochs: int, worst: Sequence[tuple[str, float]] = ()
    ) -> None:
        """The line of one epoch.

        Args:
            row: Of the history.
            best_epoch: The best one so far.
            epochs: Of the whole run.
            worst: scan_id and Dice of the validation scans with the lowest Dice, the worst first.
        """
        self._console.hide_bar()
        mark = " *" if best_epoch == row["epoch"] else ""
        apart = {key.removeprefix(OF_LABEL): value for key, value in row.items() if key.startswith(OF_LABEL)}
        of_labels = f" ({', '.join(f'{name} {_show(value)}' for name, value in apart.items())})" if apart else ""
        of_worst = ", ".join(f"{show_name(scan_id)} {dice:.2f}" for scan_id, dice in worst)
        self._console.say(
            f"epoch {row['epoch']:.0f}/{epochs}  loss {row['loss']:.4f}  dice {_show(row['dice'])}  "
            f"val_loss {row['val_loss']:.4f}  val_dice {_show(row['val_dice'])}{of_labels}{mark}  "
            f"{row['slices_per_second']:.1f} slices/s  waiting for data {row['data_wait_share']:.0%}  "
            f"{row['seconds']:.0f} s{f'  worst: {of_worst}' if of_worst else ''}",
            **row,
            worst=[{"scan_id": scan_id, "dice": dice} for scan_id, dice in worst],
        )
        self._epochs_seen += 1
        # The first epoch also waits for Ray Data to start.
        if row["data_wait_share"] > MAX_WAIT_SHARE and self._epochs_seen > 1:
            self._console.say(
                f"warning: {row['data_wait_share']:.0%} of the time went into waiting for data; give Ray more CPUs, "
                "lower --threads, or switch off costly augmentation (--noise 0)."
            )


def _show(value: float) -> str:
    return "  –   " if math.isnan(value) else f"{value:.4f}"


def _show_seconds(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
