"""A cohort's results: one folder of tables for each run that did something, begun from those of the one before."""

from __future__ import annotations

import json
import os
import re
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import PurePosixPath

from raysegment.archive.own_folders import RECORD_FILE
from raysegment.store.place import Place
from raysegment.store.publish import TAKING_OUT, list_parts
from raysegment.store.schema import SCHEMAS

BEGUN_FILE = "_begun.json"
"""In the folder of a run: what it was begun from and for; written when its beginning is whole."""

SHORT = 12
"""Digits of model_id and options_id in names of folders."""

COPIES_AT_ONCE = 16
BESIDE_RESULTS = ("changes", "drift")
"""Folders of the cohort with one of each run's name."""

_RUN = re.compile(r"(\d{6})-\d{8}T\d{6}Z(-[0-9a-f]{8})?")


@dataclass(frozen=True)
class Current:
    """What current.json says.

    Attributes:
        result: Folder of the result, below the cohort's.
        run: Its last component.
        model_id: Of the model that made it.
        options_id: Of the choices.
    """

    result: str
    run: str
    model_id: str
    options_id: str


def name_group(model_id: str, options_id: str) -> str:
    """Folder below `results` of all that one model made with the same choices."""
    return f"{model_id[:SHORT]}-{options_id[:SHORT]}"


class Results:
    """The results of one cohort. Their names are numbered; no clock decides their order.

    Args:
        place: The cohort's folder.
    """

    def __init__(self, place: Place) -> None:
        self.place = place

    def begin(self, model_id: str, options_id: str, current: Current | None) -> tuple[str, str]:
        """The folder of a run, with what a run of the same that never ended has done.

        On a file system the same folder goes on: its lock keeps a run that wakes up after a long sleep from writing. In
        a bucket a new one begins from copies, so that such a run writes where nobody reads.

        Args:
            model_id: Of the model.
            options_id: Of the choices.
            current: What is current now.

        Returns:
            The result's folder below the cohort's, and the run's name.
        """
        if current is not None:
            self._delete_overtaken(current)
        begun = {"model_id": model_id, "options_id": options_id, "from": current.result if current else None}
        unfinished = self._find_unfinished(current)
        same = {name: turn for name in unfinished if (turn := self._read_turn(name, begun)) is not None}
        latest = max(same, key=lambda name: (same[name], name), default=None)
        if self.place.is_local:
            if latest is not None:
                return latest, latest.rpartition("/")[2]
            for name in unfinished:
                self.delete(name)
        run = self._name_run(current)
        result = f"results/{name_group(model_id, options_id)}/{run}"
        if latest is not None:
            self._repeat_unfinished(latest, result)
        elif current is not None and (current.model_id, current.options_id) == (model_id, options_id):
            self._repeat_parts(current.result, result)
        self.place.make_folder(result)
        begun["turn"] = str(same.get(latest or "", 0) + 1)
        self.place.write_bytes(f"{result}/{BEGUN_FILE}", json.dumps(begun).encode())
        return result, run

    def exists(self, name: str) -> bool:
        """Whether a name that stands in a file is one of a result here, and leads nowhere else."""
        return _is_result(name) and self.place.exists(f"{name}/scans")

    def keep_newest(self, count: int, current: Current) -> list[str]:
        """Delete all but the newest results; what people wrote, such as reviews, lies elsewhere and stays.

        Half-made results that can be gone on with stay too; those that were overtaken go.

        Args:
            count: How many are kept, the current one among them.
            current: What is current now.

        Returns:
            Those that were deleted.
        """
        overtaken = self._delete_overtaken(current)
        names = sorted(
            (name for name in self.list_all() if _number_of(name) <= _number_of(current.result)), key=_number_of
        )
        for name in names[:-count]:
            self._delete_tables(name)
        return overtaken + names[:-count]

    def list_all(self) -> list[str]:
        """Folders of all results, below the cohort's; half-made ones included."""
        return [
            f"results/{group}/{run}"
            for group in self.place.list_names("results")
            for run in self.place.list_names(f"results/{group}")
            if _RUN.fullmatch(run)
        ]

    def delete(self, name: str) -> None:
        """Delete a result that never was current, and what was said of its changes."""
        self._delete_tables(name)
        for folder in BESIDE_RESULTS:
            self.place.delete(f"{folder}/{name.rpartition('/')[2]}")

    def _delete_overtaken(self, current: Current) -> list[str]:
        """Delete results that were begun from what the current one was begun from."""
        number = _number_of(current.result)
        names = [name for name in self.list_all() if _number_of(name) == number and name != current.result]
        for name in names:
            self.delete(name)
        return names

    def _delete_tables(self, name: str) -> None:
        self.place.delete(name)
        if self.place.is_local:
            with suppress(OSError):
                # Stays where other results of the same model and choices are in it.
                os.rmdir(self.place.path(name.rpartition("/")[0]))

    def _find_unfinished(self, current: Current | None) -> list[str]:
        last = 0 if current is None else _number_of(current.result)
        return [name for name in self.list_all() if _number_of(name) > last]

    def _name_run(self, current: Current | None) -> str:
        number = 1 if current is None else _number_of(current.result) + 1
        run = f"{number:06d}-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}"
        return run if self.place.is_local else f"{run}-{uuid.uuid4().hex[:8]}"

    def _read_turn(self, name: str, begun: dict[str, str | None]) -> int | None:
        """Which start of the same run made a result, counted from 1; None where it is of another or only half begun."""
        try:
            found = dict(json.loads(self.place.read_bytes(f"{name}/{BEGUN_FILE}")))
            return int(found.pop("turn", 1)) if found | begun == found else None
        except (OSError, ValueError, TypeError):
            return None

    def _repeat_parts(self, before: str, result: str) -> None:
        """Begin a result from the parts of another one; `scans` last, because it says what is done."""
        source = Place(self.place.locate(before))
        published = set(list_parts(source, "scans"))
        for table in SCHEMAS:
            self.place.make_folder(f"{result}/{table}")
            names = [f"{table}/{part}" for part in list_parts(source, table) if part in published]
            self._repeat(before, result, names)

    def _repeat_unfinished(self, before: str, result: str) -> None:
        """Begin a result in a bucket from what a run did that was stopped."""
        found = [name for name in (RECORD_FILE, TAKING_OUT) if self.place.exists(f"{before}/{name}")]
        self._repeat(before, result, found)
        self._repeat_parts(before, result)

    def _repeat(self, before: str, result: str, names: list[str]) -> None:
        with ThreadPoolExecutor(1 if self.place.is_local else COPIES_AT_ONCE) as threads:
            list(threads.map(lambda name: self.place.repeat(f"{before}/{name}", f"{result}/{name}"), names))


def _is_result(name: str) -> bool:
    parts = PurePosixPath(name).parts
    return len(parts) == 3 and parts[0] == "results" and ".." not in parts and bool(_RUN.fullmatch(parts[2]))


def _number_of(result: str) -> int:
    match = _RUN.fullmatch(result.rpartition("/")[2])
    return int(match[1]) if match else 0
