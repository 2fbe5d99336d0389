"""`run.json`: what was chosen, where it ran, how it ended."""

from __future__ import annotations

import json
import os
import platform
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from raysegment.choices import as_plain
from raysegment.errors import InterruptedRunError, UsageError

RECORD_FILE = "run.json"
REPORTED_PACKAGES = (
    "raysegment",
    "ray",
    "keras",
    "tensorflow",
    "numpy",
    "opencv-python-headless",
    "pyarrow",
    "tifffile",
)


def open_record(folder: Path, command: str, identity: dict[str, Any]) -> dict[str, Any]:
    """The record of a run in a folder, or a new one.

    Args:
        folder: The run.
        command: Which command writes there.
        identity: What makes two runs the same run: plain values by name, one level of nesting.

    Raises:
        UsageError: The folder holds a run with another identity; the message names the differences.
    """
    path = folder / RECORD_FILE
    if not path.exists():
        return {"command": command, **identity}
    try:
        record = dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} cannot be read: {error}. Choose another --out.") from None
    if record.get("command") != command:
        raise UsageError(f"--out {folder} holds a run of `{record.get('command')}`. Choose another --out.")
    before, now = _flatten(record, identity), _flatten(as_json(identity), identity)
    changed = [
        "the scans, their files or their split changed"
        if name == "data_id"
        else f"{name.removeprefix('options.')} was {before.get(name)}, is {now[name]}"
        for name in now
        if before.get(name) != now[name]
    ]
    if changed:
        raise UsageError(f"--out {folder} holds a run with other choices: {'; '.join(changed)}. Choose another --out.")
    return record


@contextmanager
def finish_record(folder: Path, record: dict[str, Any]) -> Iterator[None]:
    """Write the record at the start and at the end of the block, with status and time."""
    start = time.monotonic()
    before = record.get("seconds_total") or 0.0
    record |= {"status": "running", "attempt": record.get("attempt", 0) + 1, "started": _now()}
    write_record(folder, record)
    try:
        yield
        record["status"] = "done"
    except BaseException as error:
        record["status"] = "interrupted" if isinstance(error, InterruptedRunError | KeyboardInterrupt) else "failed"
        record["error"] = f"{type(error).__name__}: {error}"
        raise
    else:
        record.pop("error", None)
    finally:
        record |= {"ended": _now(), "seconds_total": before + time.monotonic() - start}
        write_record(folder, record)


def write_record(folder: Path, record: dict[str, Any]) -> None:
    """Replace run.json in one step."""
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / f".{RECORD_FILE}.partial"
    partial.write_text(json.dumps(as_json(record), indent=2) + "\n", encoding="utf-8")
    partial.replace(folder / RECORD_FILE)


def describe_machine() -> dict[str, Any]:
    """Versions and hardware of this machine, without its name."""
    versions: dict[str, str | None] = {}
    for package in REPORTED_PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = None
    hardware = {"cpus": os.cpu_count(), "machine": platform.machine(), "system": platform.system()}
    return {"versions": {"python": platform.python_version(), **versions}, "hardware": hardware}


def describe_choices(options: Any) -> dict[str, Any]:
    """All options as chosen, and the command line."""
    return {"chosen": as_plain(options), "command_line": sys.argv}


def as_json(value: Any) -> Any:
    """Plain JSON values; tuples become lists, NaN becomes null."""
    if isinstance(value, dict):
        return {str(key): as_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [as_json(item) for item in value]
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return None
    return value if isinstance(value, str | int | float | bool | None) else str(value)


def _flatten(values: dict[str, Any], names: dict[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name in names:
        value = values.get(name)
        flat |= {f"{name}.{key}": item for key, item in value.items()} if isinstance(value, dict) else {name: value}
    return flat


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
