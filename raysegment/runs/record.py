"""`run.json`: what was chosen, where it ran, how it ended."""

from __future__ import annotations

import json
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from raysegment import __version__
from raysegment.archive.names import drop_seals
from raysegment.archive.own_folders import RECORD_FILE
from raysegment.archive.pseudonymise import hide_given
from raysegment.choices import as_plain, hide_credentials
from raysegment.errors import DiskFullError, InterruptedRunError, LockedError, UsageError
from raysegment.store.place import Place

NOTIFY = "--notify"

REPORTED_PACKAGES = (
    "ray",
    "keras",
    "tensorflow",
    "numpy",
    "opencv-python-headless",
    "pyarrow",
    "tifffile",
)


def read_record(place: Place) -> dict[str, Any]:
    """run.json of an output folder; empty where there is none yet.

    Raises:
        UsageError: It cannot be read, or is of another tool.
    """
    if not place.exists(RECORD_FILE):
        return {}
    try:
        record = json.loads(place.read_bytes(RECORD_FILE))
    except (OSError, ValueError, RecursionError) as error:
        cause = " ".join(str(error).split())[:200]
        raise UsageError(f"{place.location}/{RECORD_FILE} cannot be read: {cause}. Choose another folder.") from None
    if not isinstance(record, dict) or not isinstance(record.get("chosen", {}), dict):
        raise UsageError(f"{place.location}/{RECORD_FILE} is not of a raysegment run. Choose another folder.")
    return record


@contextmanager
def keep_record(
    place: Place, record: dict[str, Any], *, measure: Callable[[], Mapping[str, Any]] = dict
) -> Iterator[None]:
    """Keep run.json true from start to end of the block, whatever happens.

    Args:
        place: The output folder.
        record: What run.json holds; it is changed.
        measure: Called at the end: what the run came to.
    """
    start, before = time.monotonic(), record.get("seconds_total") or 0.0
    record |= {"status": "running", "attempt": int(record.get("attempt") or 0) + 1, "started": _now(), "ended": None}
    record.pop("error", None)
    write_record(place, record)
    try:
        yield
        record["status"] = "done"
    except LockedError:
        # The folder is another run's now: its record is not ours to touch.
        raise
    except BaseException as error:
        record["status"] = "interrupted" if isinstance(error, InterruptedRunError | KeyboardInterrupt) else "failed"
        record["error"] = f"{type(error).__name__}: {error}"
        _end_record(place, record, before + time.monotonic() - start, measure)
        raise
    _end_record(place, record, before + time.monotonic() - start, measure)


def write_record(place: Place, record: Mapping[str, Any]) -> None:
    """Replace run.json in one step.

    Raises:
        DiskFullError: No space left; the old one stays.
    """
    place.write_bytes(RECORD_FILE, (json.dumps(as_json(dict(record)), indent=2) + "\n").encode())


def describe_machine() -> dict[str, Any]:
    """Versions and hardware of this machine, without its name."""
    versions: dict[str, str | None] = {}
    for package in REPORTED_PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = None
    hardware = {"cpus": os.cpu_count(), "machine": platform.machine(), "system": platform.system()}
    return {
        "versions": {"python": platform.python_version(), "raysegment": __version__, **versions},
        "hardware": hardware,
    }


def describe_choices(options: Any) -> dict[str, Any]:
    """All options as chosen, and the command line, without passwords in addresses of servers."""
    words = show_command_line(sys.argv)
    is_hidden = getattr(options, "pseudonymise", False)
    return {"chosen": list_choices(options), "command_line": [*map(hide_given, words)] if is_hidden else words}


def list_choices(options: Any) -> dict[str, Any]:
    """All options as chosen, without passwords in addresses of servers and what is sealed in paths."""
    chosen = as_plain(options)
    if chosen.get("mlflow_uri"):
        chosen["mlflow_uri"] = hide_credentials(chosen["mlflow_uri"])
    return {name: drop_seals(value) if isinstance(value, str) else value for name, value in chosen.items()}


def show_command_line(words: Sequence[str]) -> list[str]:
    """A command line as it may be written down: without passwords in addresses, and without a program to be told, whose
    arguments are often an address with a secret in it."""
    shown = [hide_credentials(word) for word in words]
    for place, word in enumerate(shown):
        if word == NOTIFY and place + 1 < len(shown):
            shown[place + 1] = "***"
        elif word.startswith(f"{NOTIFY}="):
            shown[place] = f"{NOTIFY}=***"
    return shown


def as_json(value: Any) -> Any:
    """Plain JSON values; tuples become lists, NaN becomes null."""
    if isinstance(value, dict):
        return {str(key): as_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [as_json(item) for item in value]
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return None
    return value if isinstance(value, str | int | float | bool | None) else str(value)


def _end_record(
    place: Place, record: dict[str, Any], seconds_total: float, measure: Callable[[], Mapping[str, Any]]
) -> None:
    """A full disk leaves the old record."""
    record |= {"ended": _now(), "seconds_total": seconds_total, **measure()}
    try:
        write_record(place, record)
    except DiskFullError:
        return


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
