"""The life of a run on an MLflow server, told from a thread of its own: a server that is away costs nothing."""

from __future__ import annotations

import json
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from raysegment import __version__
from raysegment.choices import hide_credentials
from raysegment.errors import InterruptedRunError
from raysegment.runs.console import Console
from raysegment.runs.mlflow_server import (
    RunFacts,
    ServerRun,
    check_client,
    connect,
    describe_failure,
    is_number,
    show_param,
)
from raysegment.runs.record import write_record
from raysegment.store.place import Place

RECORD_KEY = "mlflow"
"""Where run.json has a run's key and MLflow's id of it."""

UNNAMED_FOLDER = ".mlflow"
"""Folder in a run's with the pictures that are sent instead of those with scan_ids."""

FILES = (
    "figures/curves.png",
    f"{UNNAMED_FOLDER}/predictions.png",
    "figures/trials.png",
    "best.yaml",
    "model/MODEL_CARD.md",
    "model/model.json",
)
"""What of a finished run is sent; no manifest, no scan_ids, no weights."""

LEFT_OUT = ("address", "temp_dir", "json", "mlflow_uri")
"""Choices that say nothing of a run."""

SECONDS_BETWEEN_LOOKS = 2.0
MAX_SECONDS_BETWEEN_TRIES = 60.0

SECONDS_TO_END = 10.0
"""How long the end of a run waits for a server that answered so far."""

SECONDS_FOR_A_LAST_TRY = 1.0
"""How long it waits for one that did not."""


@dataclass(frozen=True, kw_only=True)
class End:
    """What a run came to.

    Attributes:
        status: As MLflow calls it: FINISHED, FAILED, KILLED.
        metrics: Scores of the bundle.
        tags: `model_id`.
        files: To send.
    """

    status: str
    metrics: Mapping[str, float] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    files: Sequence[Path] = ()


class Tracker:
    """Follows a run's folder and tells the server what is new there, as far as it answers.

    What a server that is away has missed is sent when it answers again; nothing is kept for it but the folder. Runs may
    be nested in a run; they share its one warning, and its end waits for them.

    Args:
        uri: The server.
        facts: The run.
        folder: The run's folder, whose `history.parquet` is followed.
        say: Tells the user.
        on_run: Gets MLflow's id of the run.
        parent: The run that this one is nested in.

    Attributes:
        uri: The server, with its credentials.
    """

    def __init__(
        self,
        uri: str,
        facts: RunFacts,
        folder: Path,
        say: Callable[[str], None],
        *,
        on_run: Callable[[str], None] | None = None,
        parent: Tracker | None = None,
    ) -> None:
        self.uri = uri
        self._facts, self._folder, self._say, self._on_run, self._parent = facts, folder, say, on_run, parent
        self._nested: list[Tracker] = []
        self._run: ServerRun | None = None
        self._seen: tuple[int, int] | None = None
        self._end: End | None = None
        self._awake, self._left = threading.Event(), threading.Event()
        self._is_away = self._is_done = self._has_warned = False
        self._thread = threading.Thread(target=self._follow, name="mlflow", daemon=True)
        self._thread.start()

    def nest(
        self, folder: Path, name: str, params: Mapping[str, Any], on_run: Callable[[str], None] | None = None
    ) -> Tracker:
        """Follow a run that is nested in this one; its name tells it from the others."""
        facts = describe_run(f"{self._facts.key}-{name}", name, params)
        tracker = Tracker(self.uri, facts, folder, self._say, on_run=on_run, parent=self)
        self._nested.append(tracker)
        # The run may have come between the two.
        tracker._awake.set()
        return tracker

    def finish(self, end: End) -> None:
        """Send what the run came to; does not wait for it."""
        self._end = end
        self._awake.set()

    def wait(self) -> bool:
        """Wait for what is still to be sent, of nested runs too; not for long, whatever the server does.

        Returns:
            Whether the server has all of it.
        """
        trackers, begun = [self, *self._nested], time.monotonic()
        status = self._end.status if self._end is not None else "KILLED"
        for tracker in trackers:
            # One that an interrupted run left behind ends as the run does.
            tracker.finish(tracker._end or End(status=status))
        while late := [tracker for tracker in trackers if tracker._thread.is_alive()]:
            is_away = any(tracker._is_away for tracker in late)
            if time.monotonic() - begun >= (SECONDS_FOR_A_LAST_TRY if is_away else SECONDS_TO_END):
                break
            late[0]._thread.join(0.05)
        is_done = all(tracker._is_done for tracker in trackers)
        if not is_done:
            self._warn("it does not answer")
        for tracker in trackers:
            tracker._left.set()
            tracker._awake.set()
        return is_done

    def _follow(self) -> None:
        """The thread: look, send, rest; a failure is tried again after a longer rest."""
        pause = 0.0
        while not self._left.is_set():
            self._awake.wait(pause)
            self._awake.clear()
            if self._parent is not None and self._parent._run is None:
                # It is not there yet, and wakes this one when it is.
                pause = MAX_SECONDS_BETWEEN_TRIES
                continue
            end = self._end
            try:
                self._send_news(end)
            except Exception as error:
                self._is_away = True
                self._warn(describe_failure(error, self.uri))
                pause = min(MAX_SECONDS_BETWEEN_TRIES, 2 * max(pause, SECONDS_BETWEEN_LOOKS))
            else:
                self._is_away, pause = False, SECONDS_BETWEEN_LOOKS
                if end is not None:
                    self._is_done = True
                    return

    def _send_news(self, end: End | None) -> None:
        if self._run is None:
            parent = self._parent._run if self._parent is not None else None
            self._run = ServerRun(connect(self.uri), self._facts, parent.run_id if parent is not None else None)
            self._is_away = False
            self._tell_run(self._run)
        self._send_history(self._run)
        if end is not None:
            self._run.send_end(end.status, end.metrics, end.tags)
            # It answers again, so the files may take their time.
            self._is_away = False
            for path in end.files:
                self._run.send_file(path)

    def _tell_run(self, run: ServerRun) -> None:
        for tracker in self._nested:
            tracker._awake.set()
        if self._on_run is not None:
            self._on_run(run.run_id)
        if self._parent is None and not self._left.is_set():
            self._say(f"MLflow shows this run at {hide_credentials(self.uri).rstrip('/')}/{run.page}")

    def _send_history(self, run: ServerRun) -> None:
        """Read the history where it was replaced since it was last sent."""
        path = self._folder / "history.parquet"
        if not path.is_file():
            return
        stat = path.stat()
        seen = stat.st_mtime_ns, stat.st_ino
        if seen != self._seen:
            run.send_history(pq.read_table(path).to_pylist())
            self._seen = seen

    def _warn(self, cause: str) -> None:
        if self._parent is not None:
            self._parent._warn(cause)
        elif not self._has_warned and not self._left.is_set():
            self._has_warned = True
            self._say(
                f"warning: MLflow at {hide_credentials(self.uri)} does not take this run ({cause}). Nothing waits for "
                "it; what it misses is sent if it answers before the end."
            )


@contextmanager
def track_run(
    server: str | Tracker | None,
    place: Place,
    record: dict[str, Any],
    console: Console,
    *,
    params: Mapping[str, Any],
) -> Iterator[Tracker | None]:
    """Show a run on an MLflow server for as long as the block runs.

    Args:
        server: Its URI, or the run that this one is nested in; None where nothing is to be shown.
        place: The run's folder.
        record: What run.json holds; it keeps the run's key, under which a resumed run goes on.
        console: Gets one warning where the server is away.
        params: The run's choices.

    Yields:
        What other runs can be nested in.

    Raises:
        MissingExtraError: MLflow's client is not installed.
    """
    if server is None:
        yield None
        return
    check_client(server.uri if isinstance(server, Tracker) else server)
    folder, before = Path(place.root), record.get(RECORD_KEY) or {}
    # All keys from the start: the thread changes a value while others may be writing run.json.
    about = record[RECORD_KEY] = {"run_id": None, "key": uuid.uuid4().hex, **before}
    write_record(place, record)

    def on_run(run_id: str) -> None:
        about["run_id"] = run_id

    if isinstance(server, Tracker):
        tracker = server.nest(folder, folder.name, params, on_run)
    else:
        tracker = Tracker(server, describe_run(about["key"], folder.name, params), folder, console.say, on_run=on_run)
    try:
        yield tracker
    except BaseException as error:
        is_stopped = isinstance(error, InterruptedRunError | KeyboardInterrupt)
        tracker.finish(End(status="KILLED" if is_stopped else "FAILED"))
        raise
    else:
        tracker.finish(describe_end(folder, record))
    finally:
        if not isinstance(server, Tracker):
            tracker.wait()


def describe_run(key: str, name: str, params: Mapping[str, Any]) -> RunFacts:
    """What a run is on the server."""
    shown = {name: show_param(value) for name, value in params.items() if name not in LEFT_OUT}
    return RunFacts(key=key, name=name, params=shown, tags={"version": __version__})


def describe_end(folder: Path, record: Mapping[str, Any]) -> End:
    """What a finished run came to: scores as metrics, `model_id`, and the files that are sent."""
    scores = {f"final_{name}": value for name, value in _flatten(record.get("scores") or {}).items()}
    if record.get("best_epoch"):
        scores["best_epoch"] = record["best_epoch"]
    files = [folder / name for name in FILES if (folder / name).is_file()]
    description = folder / "model" / "model.json"
    model_id = json.loads(description.read_text(encoding="utf-8"))["model_id"] if description in files else None
    return End(
        status="FINISHED",
        metrics={name: value for name, value in scores.items() if is_number(value)},
        tags={"model_id": model_id} if model_id else {},
        files=files,
    )


def _flatten(scores: Mapping[str, Any]) -> dict[str, Any]:
    """Scores of labels under names of their own."""
    flat: dict[str, Any] = {}
    for name, value in scores.items():
        inner = {f"{name}_{label}": score for label, score in value.items()} if isinstance(value, Mapping) else {}
        flat |= inner or {name: value}
    return flat
