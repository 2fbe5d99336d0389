"""A cohort's folder: results night by night, which of them is current, and who its members are.

    current.json                            names one of the results; it moves in one step when a run has ended
    results/<model>-<options>/<run>/        tables as of `infer`; never written again once current.json named it
    changes/<run>/                          what changed from the result before
    members/members.parquet                 every scan that ever belonged, with when it was first and last seen
    runs/<run>.json                         what each run did

A run writes a folder of its own, begun from hard links to the parts of the one before: tables only ever replace parts
under their own names by new files, so what the links share with an older result never changes.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from raysegment.archive.filesystem import is_uri
from raysegment.errors import DamagedTablesError, OutputError, UsageError
from raysegment.runs.members import MEMBERS_SCHEMA
from raysegment.runs.record import as_json
from raysegment.store.parts import STAGING
from raysegment.store.place import Place, report_full_disk
from raysegment.store.publish import list_parts, read_rows
from raysegment.store.schema import SCHEMAS

CURRENT_FILE = "current.json"
BEGUN_FILE = "_begun.json"
"""In the folder of a run: what it was begun from and for."""

MEMBERS_FILE = "members/members.parquet"

SHORT = 12
"""Digits of model_id and options_id in names of folders."""

_RUN = re.compile(r"(\d{6})-\d{8}T\d{6}Z")


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


class CohortFolder:
    """The folder of one cohort, on a file system with hard links.

    Args:
        location: The folder.

    Raises:
        UsageError: It is in a bucket.
    """

    def __init__(self, location: str) -> None:
        if is_uri(location):
            raise UsageError(
                f"out: {location} is a bucket. A cohort's folder must lie on a file system: buckets know no links to "
                "begin a night from, and not all of them let only one of two runs move current.json."
            )
        self.place = Place(location)
        self.root = Path(self.place.root)

    def read_current(self) -> Current | None:
        """Which result is current; None before the first one.

        Raises:
            DamagedTablesError: current.json cannot be read, or what it names is gone.
        """
        if not self.place.exists(CURRENT_FILE):
            return None
        try:
            stored = json.loads(self.place.read_bytes(CURRENT_FILE))
            current = Current(*(str(stored[key]) for key in ("result", "run", "model_id", "options_id")))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DamagedTablesError(
                f"{self.place.path(CURRENT_FILE)} cannot be read ({error!r}); restore it, or delete it to segment the "
                "cohort anew."
            ) from None
        if not self._lies_below(current.result) or not (self.root / current.result / "scans").is_dir():
            raise DamagedTablesError(f"{self.place.path(CURRENT_FILE)} names {current.result}, which is not there.")
        return current

    def begin(self, model_id: str, options_id: str, current: Current | None) -> tuple[str, str]:
        """The folder of this run: one that was begun and never ended, or a new one.

        A run that was begun from another result, or for another model or other choices, is deleted: nothing names it.

        Args:
            model_id: Of the model.
            options_id: Of the choices.
            current: What is current now.

        Returns:
            The result's folder below the cohort's, and the run's name.
        """
        group = f"results/{model_id[:SHORT]}-{options_id[:SHORT]}"
        begun = {"model_id": model_id, "options_id": options_id, "from": None if current is None else current.result}
        unfinished = [name for name in self.list_results() if _number_of(name) > self._last_number(current)]
        for result in unfinished:
            if result.startswith(f"{group}/") and self._read_begun(result) == begun:
                return result, result.rpartition("/")[2]
        for result in unfinished:
            self._delete(result)
        run = f"{self._last_number(current) + 1:06d}-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}"
        result = f"{group}/{run}"
        if current is not None and (current.model_id, current.options_id) == (model_id, options_id):
            self._link(current.result, result)
        self.place.make_folder(result)
        self.place.write_bytes(f"{result}/{BEGUN_FILE}", json.dumps(begun).encode())
        return result, run

    def move_current(self, current: Current) -> None:
        """Name another result as the current one, in one step for readers."""
        content = {**vars(current), "moved": _now()}
        self.place.write_bytes(CURRENT_FILE, (json.dumps(content, indent=2) + "\n").encode())
        self.place.sync_folder("")

    def drop(self, result: str) -> None:
        """Delete a result that came to nothing; never the current one."""
        current = self.read_current()
        if current is None or current.result != result:
            self._delete(result)

    def keep_newest(self, count: int) -> list[str]:
        """Delete all but the newest results; what people wrote, such as reviews, lies elsewhere and stays.

        Returns:
            Those that were deleted.
        """
        current = self.read_current()
        results = sorted(self.list_results(), key=_number_of)
        old = [result for result in results[:-count] if current is None or result != current.result]
        for result in old:
            self._delete(result)
        return old

    def list_results(self) -> list[str]:
        """Folders of all results, below the cohort's; half-made ones included."""
        folders = self.root.glob("results/*/*")
        return [str(path.relative_to(self.root)) for path in folders if path.is_dir() and _RUN.fullmatch(path.name)]

    def write_run(self, run: str, summary: dict[str, Any]) -> None:
        """Keep what a run did."""
        self.place.make_folder("runs")
        self.place.write_bytes(f"runs/{run}.json", (json.dumps(as_json(summary), indent=2) + "\n").encode())

    def read_members(self) -> pa.Table:
        """Every scan that ever belonged to the cohort.

        Raises:
            DamagedTablesError: The table cannot be read.
        """
        if not self.place.exists(MEMBERS_FILE):
            return MEMBERS_SCHEMA.empty_table()
        try:
            return self.place.read_table(MEMBERS_FILE).cast(MEMBERS_SCHEMA)
        except (pa.ArrowException, OSError, ValueError) as error:
            raise DamagedTablesError(f"{self.place.path(MEMBERS_FILE)} cannot be read: {error}") from None

    def write_members(self, members: pa.Table) -> None:
        """Replace the table of members in one step."""
        staged = f"{STAGING}/{MEMBERS_FILE}"
        self.place.write_table(staged, members)
        self.place.make_folder("members")
        self.place.move(staged, MEMBERS_FILE)
        self.place.delete(STAGING)

    def _last_number(self, current: Current | None) -> int:
        return 0 if current is None else _number_of(current.result)

    def _read_begun(self, result: str) -> dict[str, Any] | None:
        try:
            return dict(json.loads(self.place.read_bytes(f"{result}/{BEGUN_FILE}")))
        except (OSError, ValueError):
            return None

    def _link(self, before: str, result: str) -> None:
        """Begin a result from the parts of another one; `scans` last, because it says what is done."""
        for table in SCHEMAS:
            folder = f"{result}/{table}"
            self.place.make_folder(folder)
            for part in list_parts(Place(self.place.path(before)), table):
                with report_full_disk(self.place.path(folder)):
                    try:
                        os.link(self.place.path(f"{before}/{table}/{part}"), self.place.path(f"{folder}/{part}"))
                    except OSError as error:
                        raise OutputError(
                            f"{self.place.path(folder)} takes no hard link to a part of the result before: "
                            f"{error.strerror}. A cohort's folder must lie on one file system that has them."
                        ) from None

    def _delete(self, result: str) -> None:
        if self._lies_below(result):
            shutil.rmtree(self.root / result, ignore_errors=True)
            with suppress(OSError):
                # Stays where other results of the same model and choices are in it.
                (self.root / result).parent.rmdir()

    def _lies_below(self, result: str) -> bool:
        """Whether a name that stands in a file is one of a result, and leads nowhere else."""
        parts = Path(result).parts
        return len(parts) == 3 and parts[0] == "results" and ".." not in parts and bool(_RUN.fullmatch(parts[2]))


@dataclass(frozen=True)
class CurrentTables:
    """The current result of a cohort, which stays as it is while newer ones are made.

    Attributes:
        folder: Where its tables lie.
    """

    folder: Path

    def glob(self, table: str) -> str:
        """Pattern over the parts of `scans`, `metrics` or `masks`, as DuckDB and others take it."""
        return str(self.folder / table / "*.parquet")

    def read(self, table: str) -> pa.Table:
        """All rows of `scans`, `metrics` or `masks`.

        Raises:
            DamagedTablesError: A part cannot be read.
        """
        return read_rows(Place(str(self.folder)), table)


def open_cohort(location: str) -> CurrentTables:
    """The current tables of a cohort.

    Args:
        location: The cohort's folder.

    Raises:
        UsageError: There is no result yet.
        DamagedTablesError: current.json is damaged, or what it names is gone.
    """
    folder = CohortFolder(location)
    current = folder.read_current()
    if current is None:
        raise UsageError(f"{location} has no current result; `raysegment resegment` makes the first one.")
    return CurrentTables(folder.root / current.result)


def _number_of(result: str) -> int:
    match = _RUN.fullmatch(result.rpartition("/")[2])
    return int(match[1]) if match else 0


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
