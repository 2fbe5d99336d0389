"""What a user sees of a run: plain lines, a bar on a terminal, JSON lines for programs; lines also go to `log.txt`."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from typing import Any

from rich.console import Console as Terminal
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from raysegment.runs.record import as_json
from raysegment.store.place import Place

LOG_FILE = "log.txt"


class Console:
    """Tells what a run does, on standard output. Use it as a context manager where a bar is shown.

    Args:
        place: The output folder, whose `log.txt` gets each line; None for no log. Buckets have none.
        as_json: Print one JSON object a line.
        about: Of which of several runs that share the terminal it tells, such as {"fold": 2}: each line begins with it,
            JSON objects hold it; its own `log.txt` does without.
        may_show_bar: Whether nobody else shows one.
    """

    def __init__(
        self,
        place: Place | None,
        *,
        as_json: bool,
        about: Mapping[str, Any] | None = None,
        may_show_bar: bool = True,
    ) -> None:
        self.as_json = as_json
        self._about = dict(about or {})
        self._begin = "".join(f"{name} {value}: " for name, value in self._about.items())
        self._may_show_bar = may_show_bar
        self._place = place if place is not None and place.is_local else None
        self._terminal = Terminal(highlight=False, soft_wrap=True)
        self._bar: Progress | None = None
        self._task = TaskID(0)

    def __enter__(self) -> Console:
        return self

    def __exit__(self, *unused: object) -> None:
        self.hide_bar()

    @property
    def has_bar(self) -> bool:
        """Whether a bar can be shown."""
        return self._may_show_bar and not self.as_json and sys.stdout.isatty()

    def say(self, text: str, **facts: Any) -> None:
        """Tell one thing that happened; `facts` are what a program gets besides."""
        self._log(text)
        if self.as_json:
            self.tell_program("message", text=text, **facts)
        elif self._terminal.is_terminal:
            self._terminal.print(f"{self._begin}{text}", markup=False)
        else:
            print(f"{time.strftime('%H:%M:%S')} {self._begin}{text}", flush=True)

    def tell_program(self, event: str, **facts: Any) -> None:
        """One JSON line."""
        print(json.dumps(as_json({"event": event, **self._about, **facts})), flush=True)

    def show_bar(self, title: str, done: int, total: int, note: str = "") -> None:
        """Move the bar, which appears with the first call; nothing happens where none can be shown."""
        if not self.has_bar:
            return
        if self._bar is None:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[note]}"),
                TimeRemainingColumn(),
            )
            self._bar = Progress(*columns, console=self._terminal, transient=True)
            self._bar.start()
            self._task = self._bar.add_task(title, total=total, note=note)
        self._bar.update(self._task, description=f"{self._begin}{title}", completed=done, total=total, note=note)

    def hide_bar(self) -> None:
        """Take the bar off the terminal."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _log(self, line: str) -> None:
        if self._place is None:
            return
        try:
            with open(self._place.path(LOG_FILE), "a", encoding="utf-8", errors="backslashreplace") as file:
                file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {line}\n")
        except OSError:
            return
