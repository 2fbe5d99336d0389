"""One run at a time in a folder of a bucket: a lock object that only one machine can put."""

from __future__ import annotations

import json
import threading
import uuid
from contextlib import suppress
from types import TracebackType
from typing import Any

from raysegment.errors import LockedError, RaysegmentError
from raysegment.runs.lock import (
    HEARTBEAT_SECONDS,
    LOCK_FILE,
    describe_loss,
    describe_process,
    describe_use,
    is_stale,
)
from raysegment.store.conditional import ConditionalBucket, Version


class BucketLock:
    """Holds a folder of a bucket for one run; a context manager, as `RunLock` is for a folder.

    The lock is taken, renewed and given back by conditional puts alone. At the end the object stays and says that
    nobody has the folder: to delete it on a condition few stores allow.

    Args:
        bucket: The folder.
        heartbeat_seconds: How often the lock shows that its owner lives.

    Raises:
        LockedError: On entry: another live run owns the folder; the message names it.
    """

    def __init__(self, bucket: ConditionalBucket, *, heartbeat_seconds: float = HEARTBEAT_SECONDS) -> None:
        self.bucket = bucket
        self.heartbeat_seconds = heartbeat_seconds
        self.owner = describe_process() | {"token": uuid.uuid4().hex}
        self._etag: str | None = None
        self._beats = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="bucket lock heartbeat", daemon=True)

    def __enter__(self) -> BucketLock:
        found = self.bucket.read(LOCK_FILE)
        if found is not None and not _is_free(found):
            raise self._taken(found)
        self._etag = self._write(None if found is None else found.etag)
        if self._etag is None:
            raise self._taken(self.bucket.read(LOCK_FILE))
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        # A store that does not answer keeps a lock that is stale after a minute.
        with suppress(RaysegmentError):
            if self._etag is not None:
                self._write(self._etag, is_free=True)

    def check(self) -> None:
        """Make sure that this run still owns the folder, before it changes what readers see.

        Raises:
            LockedError: Another run took the lock while this process was stopped for long.
            OutputError: The store does not answer.
        """
        found = self.bucket.read(LOCK_FILE)
        if found is None or _owner_of(found).get("token") != self.owner["token"]:
            raise LockedError(describe_loss(self.bucket.place.location))

    def _write(self, replaces: str | None, *, is_free: bool = False) -> str | None:
        self._beats += 1
        content = self.owner | {"beats": self._beats, "is_free": is_free}
        return self.bucket.write(LOCK_FILE, json.dumps(content, indent=1).encode(), replaces)

    def _beat(self) -> None:
        while self._etag is not None and not self._stop.wait(self.heartbeat_seconds):
            with suppress(RaysegmentError):
                self._etag = self._write(self._etag)

    def _taken(self, found: Version | None) -> LockedError:
        return LockedError(describe_use(self.bucket.place.location, {} if found is None else _owner_of(found)))


def _is_free(found: Version) -> bool:
    owner = _owner_of(found)
    return bool(owner.get("is_free")) or is_stale(owner, found.age_seconds)


def _owner_of(found: Version) -> dict[str, Any]:
    try:
        return dict(json.loads(found.data))
    except (TypeError, ValueError):
        return {}
