"""The output folder of an inference run: whose it is, its record, and what is in it."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import Any

from raysegment.cluster.record import RECORD_FILE, as_json
from raysegment.errors import DiskFullError, UsageError
from raysegment.store.lock import LOCK_FILE
from raysegment.store.place import Place
from raysegment.store.publish import list_parts, read_rows
from raysegment.store.schema import SCHEMAS

OWN_NAMES = frozenset({*SCHEMAS, RECORD_FILE, "summary.json", "figures", "log.txt", LOCK_FILE})


def read_record(place: Place) -> dict[str, Any]:
    """run.json of an output folder; empty where there is none yet.

    Raises:
        UsageError: The folder holds something else.
    """
    if place.exists(RECORD_FILE):
        try:
            return dict(json.loads(place.read_bytes(RECORD_FILE)))
        except ValueError as error:
            raise UsageError(f"{place.location}/{RECORD_FILE} cannot be read: {error}. Choose another --out.") from None
    foreign = [name for name in place.list_names() if name not in OWN_NAMES and not name.startswith(("_", "."))]
    if foreign:
        raise UsageError(
            f"--out {place.location} is not empty and no raysegment output: it holds {foreign[0]!r}. "
            "Choose another --out."
        )
    return {}


def check_identity(place: Place, record: Mapping[str, Any], identity: Mapping[str, Any]) -> None:
    """Refuse a folder that another command, model or result-changing option wrote.

    Args:
        place: The output folder.
        record: Its run.json, or nothing.
        identity: `command`, `model_id` and `result_options` of this run.

    Raises:
        UsageError: Names the differences.
    """
    if not record:
        _check_rows(place, identity)
        return
    if record.get("command") != identity["command"]:
        raise UsageError(
            f"--out {place.location} holds a run of `{record.get('command')}`, not of `{identity['command']}`. "
            "Choose another --out."
        )
    before, now = dict(record.get("result_options") or {}), dict(as_json(identity["result_options"]))
    before["model_id"], now["model_id"] = record.get("model_id"), identity["model_id"]
    changed = [f"{name} was {before.get(name)}, is {now[name]}" for name in now if before.get(name) != now[name]]
    if changed:
        raise UsageError(
            f"--out {place.location} was written with another model or other choices: {'; '.join(changed)}. "
            "Choose another --out."
        )


def write_record(place: Place, record: Mapping[str, Any]) -> None:
    """Replace run.json in one step; a full disk leaves the old one."""
    try:
        place.write_bytes(RECORD_FILE, (json.dumps(as_json(dict(record)), indent=2) + "\n").encode())
    except DiskFullError:
        if not record.get("ended"):
            raise


def append_log(place: Place, line: str) -> None:
    """Add a line to log.txt; buckets have none."""
    if not place.is_local:
        return
    try:
        with open(place.path("log.txt"), "a", encoding="utf-8", errors="backslashreplace") as file:
            file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {line}\n")
    except OSError:
        return


def _check_rows(place: Place, identity: Mapping[str, Any]) -> None:
    """Without a record the rows tell whose the tables are."""
    if not list_parts(place, "scans"):
        return
    models = set(read_rows(place, "scans", ["model_id"])["model_id"].unique().to_pylist())
    if models != {identity["model_id"]}:
        raise UsageError(
            f"--out {place.location} has tables of model {', '.join(sorted(map(str, models)))}; this one is "
            f"{identity['model_id']}. Choose another --out."
        )
