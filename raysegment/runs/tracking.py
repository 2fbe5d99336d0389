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

FILES = ("figures/curves.png", f"{UNNAMED_FOLDER}/predictions.png", "model/MODEL_CARD.md", "model/model.json")
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

    What a server that is away has missed is sent when it answers again; nothing is kept for it but the folder.

    Args:
        uri: The server.
        facts: The run.
        folder: The run's folder, whose `history.parquet` is followed.
        say: Tells the user.
        on_run: Gets MLflow's id of the run.
    """

    def __init__(
        self,
        uri: str,
        facts: RunFacts,
        folder: Path,
        say: Callable[[str], None],
        on_run: Callable[[str], None],
    ) -> None:
        self._uri, self._facts, self._folder, self._say, self._on_run = uri, facts, folder, say, on_run
        self._run: ServerRun | None = None
        self._seen: tuple[int, int] | None = None
        self._end: End | None = None
        self._closing, self._left = threading.Event(), threading.Event()
        self._is_away = self._has_warned = False
        self._thread = threading.Thread(target=self._follow, name="mlflow", daemon=True)

    def start(self) -> None:
        """Begin to follow."""
        self._thread.start()

    def close(self, end: End) -> bool:
        """Send what the run came to, and stop; the wait is bounded, whatever the server does.

        Returns:
            Whether the server has all of it.
        """
        self._end = end
        self._closing.set()
        begun = time.monotonic()
        while self._thread.is_alive():
            patience = SECONDS_FOR_A_LAST_TRY if self._is_away else SECONDS_TO_END
            if time.monotonic() - begun >= patience:
                break
            self._thread.join(0.05)
        if not self._closed_well:
            self._warn("it does not answer")
        self._left.set()
        return self._closed_well

    @property
    def _closed_well(self) -> bool:
        return not self._thread.is_alive() and not self._is_away

    def _follow(self) -> None:
        """The thread: look, send, rest; a failure is tried again after a longer rest, and once at the end."""
        pause = 0.0
        while True:
            closing = self._closing.wait(pause)
            try:
                self._send_news(self._end if closing else None)
            except Exception as error:
                self._is_away = True
                self._warn(describe_failure(error, self._uri))
                pause = min(MAX_SECONDS_BETWEEN_TRIES, 2 * max(pause, SECONDS_BETWEEN_LOOKS))
            else:
                self._is_away = False
                pause = SECONDS_BETWEEN_LOOKS
            if closing or self._left.is_set():
                return

    def _send_news(self, end: End | None) -> None:
        if self._run is None:
            self._run = ServerRun(connect(self._uri), self._facts)
            self._is_away = False
            self._on_run(self._run.run_id)
            if not self._left.is_set():
                self._say(f"MLflow shows this run at {hide_credentials(self._uri).rstrip('/')}/{self._run.page}")
        self._send_history(self._run)
        if end is not None:
            self._run.send_end(end.status, end.metrics, end.tags)
            # It answers again, so the files may take their time.
            self._is_away = False
            for path in end.files:
                self._run.send_file(path)

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
        if self._has_warned or self._left.is_set():
            return
        self._has_warned = True
        self._say(
            f"warning: MLflow at {hide_credentials(self._uri)} does not take this run ({cause}). Nothing waits for it; "
            "what it misses is sent if it answers before the end."
        )


@contextmanager
def track_run(
    uri: str | None,
    place: Place,
    record: dict[str, Any],
    console: Console,
    *,
    params: Mapping[str, Any],
    name: str | None = None,
    parent: str | None = None,
) -> Iterator[str | None]:
    """Show a run on an MLflow server for as long as the block runs; nothing happens without a URI.

    Args:
        uri: The server.
        place: The run's folder.
        record: What run.json holds; it keeps the run's key, under which a resumed run goes on.
        console: Gets one warning where the server is away.
        params: The run's choices.
        name: What a person sees; the folder's name if not given.
        parent: What this function gave for the run that this one is nested in, in this or another process.

    Yields:
        The key, to be `parent` of others.

    Raises:
        MissingExtraError: MLflow's client is not installed.
    """
    if uri is None:
        yield None
        return
    check_client()
    key = str((record.get(RECORD_KEY) or {}).get("key") or uuid.uuid4().hex)
    # Both keys from the start: the thread changes a value while others may be writing run.json.
    about = record[RECORD_KEY] = {"run_id": None, **(record.get(RECORD_KEY) or {}), "key": key}
    write_record(place, record)
    facts = RunFacts(
        key=key,
        name=name or Path(place.root).name,
        params={name: show_param(value) for name, value in params.items() if name not in LEFT_OUT},
        tags={"version": __version__},
        parent=parent,
    )
    tracker = Tracker(uri, facts, Path(place.root), console.say, lambda run_id: about.update(run_id=run_id))
    tracker.start()
    try:
        yield key
    except BaseException as error:
        is_stopped = isinstance(error, InterruptedRunError | KeyboardInterrupt)
        tracker.close(End(status="KILLED" if is_stopped else "FAILED"))
        raise
    else:
        tracker.close(describe_end(Path(place.root), record))


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
