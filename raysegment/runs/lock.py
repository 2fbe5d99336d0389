"""One run per output folder: a lock file that names its owner and shows its heartbeat."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from raysegment.errors import DiskFullError, LockedError
from raysegment.store.place import Place

LOCK_FILE = "_lock.json"
HEARTBEAT_SECONDS = 10.0
STALE_SECONDS = 60.0


class RunLock:
    """Holds a folder for one run; a context manager. Buckets give no lock: there it does nothing.

    Args:
        place: The output folder; it must exist.
        heartbeat_seconds: How often the lock shows that its owner lives.

    Raises:
        LockedError: On entry: another live run owns the folder; the message names it.
    """

    def __init__(self, place: Place, *, heartbeat_seconds: float = HEARTBEAT_SECONDS) -> None:
        self.place = place
        self.heartbeat_seconds = heartbeat_seconds
        self.owner = describe_process() | {"token": uuid.uuid4().hex}
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> RunLock:
        if not self.place.is_local:
            return self
        with _guard(self.place.root):
            found = self._read()
            if found is not None and not is_stale(found, self._age_seconds()):
                raise LockedError(describe_use(self.place.location, found))
            self._write()
        self._thread = threading.Thread(target=self._beat, name="lock heartbeat", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        if self._thread is None:
            return
        self._thread.join()
        with _guard(self.place.root):
            if self._is_ours():
                self.place.delete(LOCK_FILE)

    def check(self) -> None:
        """Make sure that this run still owns the folder, before it changes the tables.

        Raises:
            LockedError: Another run took the lock while this process was stopped for long.
        """
        if self.place.is_local and not self._is_ours():
            raise LockedError(describe_loss(self.place.location))

    def _is_ours(self) -> bool:
        found = self._read()
        return found is not None and found.get("token") == self.owner["token"]

    def _read(self) -> dict[str, Any] | None:
        try:
            return dict(json.loads(self.place.read_bytes(LOCK_FILE)))
        except FileNotFoundError:
            return None
        except (OSError, ValueError):
            return {}

    def _write(self) -> None:
        content = self.owner | {"heartbeat": time.time()}
        self.place.write_bytes(LOCK_FILE, json.dumps(content, indent=1).encode())

    def _age_seconds(self) -> float:
        """Time since the last heartbeat by the file system's own clock, which all hosts share."""
        probe = Path(self.place.path(f".{LOCK_FILE}.{self.owner['token'][:8]}"))
        try:
            probe.touch()
            return probe.stat().st_mtime - Path(self.place.path(LOCK_FILE)).stat().st_mtime
        except FileNotFoundError:
            return STALE_SECONDS
        finally:
            probe.unlink(missing_ok=True)

    def _beat(self) -> None:
        while not self._stop.wait(self.heartbeat_seconds):
            with suppress(OSError, DiskFullError), _guard(self.place.root):
                if self._is_ours():
                    os.utime(self.place.path(LOCK_FILE))


def describe_process() -> dict[str, Any]:
    """What tells this process from every other one on every host."""
    return {
        "host": socket.gethostname(),
        "boot_id": _read_text("/proc/sys/kernel/random/boot_id"),
        "pid_namespace": _read_link("/proc/self/ns/pid"),
        "pid": os.getpid(),
        "process_start": process_start(os.getpid()),
        "started": time.strftime("%Y-%m-%d %H:%M:%S%z"),
    }


def describe_use(location: str, owner: Mapping[str, Any]) -> str:
    """Whose a folder is that another run wants; the owner's facts are those of `describe_process`."""
    return (
        f"{location} is in use by process {owner.get('pid')} on {owner.get('host')}, started {owner.get('started')}. "
        "Wait for it, or give another --out."
    )


def describe_loss(location: str) -> str:
    """What a run learns whose lock was taken for stale."""
    return f"another run took over {location} while this one did not answer."


def is_stale(owner: dict[str, Any], age_seconds: float) -> bool:
    """Whether a lock's owner is gone: on this host if its process is, elsewhere after a minute without heartbeat."""
    here = describe_process()
    known = all(owner.get(key) for key in ("host", "boot_id", "pid", "process_start"))
    if known and owner["host"] == here["host"]:
        if owner["boot_id"] != here["boot_id"]:
            return age_seconds >= STALE_SECONDS
        if owner.get("pid_namespace") == here["pid_namespace"]:
            return process_start(int(owner["pid"])) != owner["process_start"]
    return age_seconds >= STALE_SECONDS


def process_start(pid: int) -> str | None:
    """Start time of a process in clock ticks since boot; None where it does not run."""
    stat = _read_text(f"/proc/{pid}/stat")
    if not stat:
        return None
    fields = stat.rpartition(")")[2].split()
    return None if fields[0] in "ZX" else fields[19]


@contextmanager
def _guard(folder: str) -> Iterator[None]:
    """Let one process at a time judge and write the lock file."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _read_text(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8").strip()
    except OSError:
        return ""


def _read_link(path: str) -> str:
    try:
        return os.readlink(path)
    except OSError:
        return ""
