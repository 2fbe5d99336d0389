"""A cohort's folder: results night by night, which of them is current, and who its members are.

    current.json                            names one of the results; it moves in one step when a run has ended
    results/<model>-<options>/<run>/        tables as of `infer`; never written again once current.json named it
    changes/<run>/                          what changed from the result before
    drift/<run>/                            how new scans differ from those before and those trained on
    members/members.parquet                 every scan that ever belonged, with when it was first and last seen
    runs/<run>.json                         what each run did

A run writes a folder of its own, begun from hard links to the parts of the one before: tables only ever replace parts
under their own names by new files, so what the links share with an older result never changes. In a bucket the parts
are copied by the store itself, and current.json is put on the condition that it is still what the run began from.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs

from raysegment.errors import DamagedTablesError, LockedError, OutputError, UsageError
from raysegment.runs.bucket_lock import BucketLock
from raysegment.runs.cohort_results import Current, Results
from raysegment.runs.lock import RunLock
from raysegment.runs.members import MEMBERS_SCHEMA
from raysegment.runs.record import as_json
from raysegment.store.conditional import ConditionalBucket
from raysegment.store.parts import STAGING
from raysegment.store.place import Place
from raysegment.store.publish import read_rows

CURRENT_FILE = "current.json"
MEMBERS_FILE = "members/members.parquet"


class CohortFolder:
    """The folder of one cohort, on a file system with hard links or in a bucket.

    Args:
        location: The folder, or a URI such as `s3://bucket/folder`.

    Attributes:
        place: The folder.
        results: Its results; current.json names one of them.

    Raises:
        UsageError: It cannot be opened.
    """

    def __init__(self, location: str) -> None:
        self.place = Place(location)
        self.results = Results(self.place)
        self._lock: RunLock | BucketLock | None = None

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Keep the cohort for this run alone, on all machines.

        Raises:
            LockedError: Another live run has it; the message names it.
            UsageError: Nothing can be written there, or the store lets two machines move current.json.
        """
        self.place.make_writable()
        lock: RunLock | BucketLock
        if self.place.is_local:
            lock = RunLock(self.place)
        else:
            bucket = ConditionalBucket(self.place)
            bucket.check()
            lock = BucketLock(bucket)
        with lock:
            self._lock = lock
            try:
                yield
            finally:
                self._lock = None

    def locate(self, name: str) -> str:
        """Where something below lies, as options such as `out` take it."""
        return self.place.locate(name)

    def read_current(self) -> Current | None:
        """Which result is current; None before the first one.

        Raises:
            DamagedTablesError: current.json is damaged, or what it names is gone.
            OutputError: The storage refuses it.
        """
        try:
            data = self.place.read_bytes(CURRENT_FILE)
        except FileNotFoundError:
            return None
        except OSError as error:
            cause = error.strerror or " ".join(str(error).split())[:200]
            raise OutputError(f"{self.place.path(CURRENT_FILE)} cannot be read: {cause}.") from None
        current = self._parse(data)
        if not self.results.exists(current.result):
            raise DamagedTablesError(f"{self.place.path(CURRENT_FILE)} names {current.result}, which is not there.")
        return current

    def move_current(self, current: Current, before: Current | None) -> None:
        """Name another result as the current one, in one step for readers.

        Args:
            current: What is current from now on.
            before: What was current when the run began.

        Raises:
            LockedError: Another run has the cohort now, or moved current.json.
        """
        data = (json.dumps({**vars(current), "moved": _now()}, indent=2) + "\n").encode()
        self._check_lock()
        if self.place.is_local:
            if self.read_current() != before:
                raise self._moved_by_another()
            self.place.write_bytes(CURRENT_FILE, data)
            self.place.sync_folder("")
            return
        bucket = ConditionalBucket(self.place)
        found = bucket.read(CURRENT_FILE)
        if (None if found is None else self._parse(found.data)) != before:
            raise self._moved_by_another()
        if bucket.write(CURRENT_FILE, data, None if found is None else found.etag) is None:
            raise self._moved_by_another()

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
        """Replace the table of members in one step.

        Raises:
            LockedError: Another run has the cohort now.
        """
        self._check_lock()
        staged = f"{STAGING}/{MEMBERS_FILE}"
        self.place.write_table(staged, members)
        self.place.make_folder("members")
        self.place.move(staged, MEMBERS_FILE)
        self.place.delete(STAGING)

    def _check_lock(self) -> None:
        if self._lock is not None:
            self._lock.check()

    def _moved_by_another(self) -> LockedError:
        return LockedError(
            f"{self.place.path(CURRENT_FILE)} was moved by another run while this one went on; what this one made is "
            "not current. Run the same command again."
        )

    def _parse(self, data: bytes) -> Current:
        try:
            stored = json.loads(data)
            return Current(*(str(stored[key]) for key in ("result", "run", "model_id", "options_id")))
        except (ValueError, KeyError, TypeError) as error:
            raise self._damaged(error) from None

    def _damaged(self, error: Exception) -> DamagedTablesError:
        return DamagedTablesError(
            f"{self.place.path(CURRENT_FILE)} cannot be read ({error!r}); restore it, or delete it to segment the "
            "cohort anew."
        )


@dataclass(frozen=True)
class CurrentTables:
    """The current result of a cohort, which stays as it is while newer ones are made.

    Attributes:
        place: Where its tables lie.
    """

    place: Place

    @property
    def filesystem(self) -> pafs.FileSystem:
        """Where the tables lie; DuckDB and others read buckets through it."""
        return self.place.filesystem

    def glob(self, table: str) -> str:
        """Pattern over the parts of `scans`, `metrics` or `masks`, as DuckDB and others take it."""
        pattern = self.place.path(f"{table}/*.parquet")
        return pattern if self.place.is_local else f"{self.place.location.partition('://')[0]}://{pattern}"

    def read(self, table: str) -> pa.Table:
        """All rows of `scans`, `metrics` or `masks`.

        Raises:
            DamagedTablesError: A part cannot be read.
        """
        return read_rows(self.place, table)


def open_cohort(location: str) -> CurrentTables:
    """The current tables of a cohort.

    Args:
        location: The cohort's folder, or its URI such as `s3://bucket/folder`.

    Raises:
        UsageError: There is no result yet.
        DamagedTablesError: current.json is damaged, or what it names is gone.
    """
    folder = CohortFolder(location)
    current = folder.read_current()
    if current is None:
        raise UsageError(f"{location} has no current result; `raysegment resegment` makes the first one.")
    return CurrentTables(Place(folder.locate(current.result)))


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
