"""What a user sees of a run over many scans: one bar on a terminal, plain lines elsewhere, JSON lines for programs."""

from __future__ import annotations

import json
import sys
import time
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

SECONDS_BETWEEN_LINES = 10.0


class ScanReporter:
    """Shows scans done of total, slices per second, failed, time left. Use it as a context manager.

    Args:
        total: Scans to do in this start of the command.
        as_json: Print one JSON object a line.
        on_line: Called with each plain line, for the log.
    """

    def __init__(self, total: int, *, as_json: bool, on_line: Any = None) -> None:
        self.total = total
        self.done = 0
        self.failed = 0
        self.num_slices = 0
        self._as_json = as_json
        self._on_line = on_line
        self._started = time.monotonic()
        self._last_line = time.monotonic()
        self._first: tuple[float, int] | None = None
        self._last = 0.0
        self._bar: Progress | None = None
        self._task = TaskID(0)

    def __enter__(self) -> ScanReporter:
        if not self._as_json and sys.stderr.isatty():
            columns = (
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[rate]}"),
                TextColumn("{task.fields[failed]} failed"),
                TimeRemainingColumn(),
            )
            self._bar = Progress(*columns, console=Console(stderr=True))
            self._bar.start()
            self._task = self._bar.add_task("scans", total=self.total, rate="starting", failed=0)
        return self

    def __exit__(self, *unused: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    @property
    def slices_per_second(self) -> float | None:
        """Steady state: from the first receipt to the last; None before there are two."""
        if self._first is None or self._last <= self._first[0]:
            return None
        return (self.num_slices - self._first[1]) / (self._last - self._first[0])

    def advance(self, num_scans: int, num_failed: int, num_slices: int) -> None:
        """Count finished scans."""
        self.done += num_scans
        self.failed += num_failed
        self.num_slices += num_slices
        if num_slices:
            self._last = time.monotonic()
            self._first = self._first or (self._last, self.num_slices)
        self.tick()

    def step_back(self, num_scans: int) -> None:
        """Scans whose part died with its worker are to be done again."""
        self.done -= num_scans

    def tick(self) -> None:
        """Show where the run stands, if it is time."""
        if self._bar is not None:
            rate = self.slices_per_second
            text = f"{rate:.1f} slices/s" if rate else "starting"
            self._bar.update(self._task, completed=self.done, rate=text, failed=self.failed)
        elif time.monotonic() - self._last_line >= SECONDS_BETWEEN_LINES:
            self._last_line = time.monotonic()
            self._print_state()

    def say(self, text: str, **values: Any) -> None:
        """Tell one thing that happened."""
        if self._on_line is not None:
            self._on_line(text)
        if self._as_json:
            print(json.dumps({"event": "message", "text": text, **values}), flush=True)
        elif self._bar is not None:
            self._bar.console.print(text, markup=False, highlight=False)
        else:
            print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)

    def _print_state(self) -> None:
        rate = self.slices_per_second
        if self._as_json:
            state = {"event": "progress", "done": self.done, "total": self.total, "failed": self.failed}
            print(json.dumps({**state, "slices_per_second": rate}), flush=True)
            return
        speed = f"{rate:.1f} slices/s" if rate else "no rate yet"
        left = (self.total - self.done) * (time.monotonic() - self._started) / self.done if self.done else None
        remaining = f", about {_show_seconds(left)} left" if left is not None else ""
        self.say(f"{self.done} of {self.total} scans, {speed}, {self.failed} failed{remaining}")


def _show_seconds(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
