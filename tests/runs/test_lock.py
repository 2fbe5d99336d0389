from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from raysegment.errors import LockedError
from raysegment.runs.lock import LOCK_FILE, RunLock, describe_process, is_stale
from raysegment.store.place import Place


def test_a_live_lock_names_its_owner(tmp_path):
    with RunLock(Place(str(tmp_path))), pytest.raises(LockedError, match=f"process {os.getpid()} on "):
        RunLock(Place(str(tmp_path))).__enter__()
    assert not (tmp_path / LOCK_FILE).exists()


def test_the_lock_of_a_killed_process_is_stale_at_once(tmp_path):
    code = (
        "import time; from raysegment.runs.lock import RunLock; from raysegment.store.place import Place\n"
        f"with RunLock(Place({str(tmp_path)!r})): time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", code])
    while not (tmp_path / LOCK_FILE).exists():
        time.sleep(0.05)
    with pytest.raises(LockedError):
        RunLock(Place(str(tmp_path))).__enter__()
    process.kill()
    process.wait()
    with RunLock(Place(str(tmp_path))):
        assert json.loads((tmp_path / LOCK_FILE).read_text())["pid"] == os.getpid()


def test_a_reused_process_id_is_stale():
    owner = describe_process()
    assert not is_stale(owner, 0)
    assert not is_stale(owner, 1e6)
    assert is_stale(owner | {"process_start": "1"}, 0)


@pytest.mark.parametrize("foreign", [{"host": "elsewhere"}, {"pid_namespace": "other"}, {"boot_id": "other"}])
def test_a_lock_from_elsewhere_is_stale_after_a_minute_without_heartbeat(foreign):
    owner = describe_process() | foreign
    assert not is_stale(owner, 59)
    assert is_stale(owner, 60)


def test_a_lock_that_cannot_be_read_counts_by_its_age(tmp_path):
    (tmp_path / LOCK_FILE).write_text("{")
    with pytest.raises(LockedError):
        RunLock(Place(str(tmp_path))).__enter__()
    long_ago = time.time() - 61
    os.utime(tmp_path / LOCK_FILE, (long_ago, long_ago))
    with RunLock(Place(str(tmp_path))):
        pass


def test_the_heartbeat_renews_the_file(tmp_path):
    with RunLock(Place(str(tmp_path)), heartbeat_seconds=0.05):
        os.utime(tmp_path / LOCK_FILE, (1, 1))
        deadline = time.monotonic() + 5
        while (tmp_path / LOCK_FILE).stat().st_mtime == 1 and time.monotonic() < deadline:
            time.sleep(0.02)
        assert (tmp_path / LOCK_FILE).stat().st_mtime > 1


def test_an_owner_that_slept_too_long_notices_and_leaves_the_new_lock(tmp_path):
    lock = RunLock(Place(str(tmp_path)), heartbeat_seconds=60)
    with lock:
        Path(tmp_path / LOCK_FILE).write_text(json.dumps({"token": "another"}))
        with pytest.raises(LockedError, match="took over"):
            lock.check()
    assert (tmp_path / LOCK_FILE).exists()
