"""What one death costs: of the process that reads, of a worker with much in hand, of a worker that hangs."""

from __future__ import annotations

import os
import shutil
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import psutil
import pytest
from tables import assert_whole, read_table

import raysegment
from raysegment import InferOptions

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("ray_here")]


def write_pictures(folder: Path, count: int) -> None:
    """Scans of one small slice each."""
    draw = np.random.default_rng(0)
    for index in range(count):
        (folder / f"p{index:04d}").mkdir(parents=True)
        pixels = draw.integers(0, 255, (16, 16, 3)).astype(np.uint8)
        cv2.imwrite(str(folder / f"p{index:04d}" / "s_1.png"), pixels)


def worker_processes() -> list[psutil.Process]:
    """Ray names an actor's process after its class; only our own children count."""
    return [child for child in psutil.Process().children(recursive=True) if is_worker(child)]


def is_worker(process: psutil.Process) -> bool:
    try:
        return " ".join(process.cmdline()).startswith("ray::Segmenter")
    except psutil.Error:
        return False


def signal_a_worker_at(condition: Callable[[], bool], number: signal.Signals) -> threading.Thread:
    """Send a signal to one inference worker as soon as a condition holds."""

    def send() -> None:
        deadline = time.monotonic() + 90
        while not (condition() and (workers := worker_processes())):
            assert time.monotonic() < deadline, "waited in vain"
            time.sleep(0.01)
        workers[0].send_signal(number)

    thread = threading.Thread(target=send)
    thread.start()
    return thread


def count_parts(out: Path) -> int:
    return len(list((out / "scans").glob("*.parquet")))


def test_a_scan_whose_reading_process_dies_fails_alone(tmp_path, tiny_bundle, phantom_archive, capfd):
    archive, out = tmp_path / "archive", tmp_path / "out"
    shutil.copytree(phantom_archive, archive)
    (archive / "PHANTOM_0005b").mkdir()
    (archive / "PHANTOM_0005b" / "s_1.hostile").write_bytes(b"HOSTILE kill-parent")
    options = InferOptions(model=str(tiny_bundle), source=str(archive), out=str(out), max_attempts=2)
    result = raysegment.infer(options)
    printed = "".join(capfd.readouterr())
    assert "(raylet)" not in printed
    assert "Traceback" not in printed
    assert (result.scans_ok, result.scans_failed, result.exit_code) == (24, 1, 3)
    scans = read_table(out, "scans").set_index("scan_id")
    assert scans.loc["PHANTOM_0005b/s_1.hostile", "error_type"] == "ReaderCrashedError"
    assert "the reading process died on it" in scans.loc["PHANTOM_0005b/s_1.hostile", "error_message"]
    assert assert_whole(out) == 25
    assert raysegment.infer(options).scans_now == 0


def test_the_death_of_a_worker_does_not_scatter_its_scans_over_many_parts(tmp_path, tiny_bundle):
    archive, out = tmp_path / "archive", tmp_path / "out"
    write_pictures(archive, 800)
    killer = signal_a_worker_at(lambda: count_parts(out) >= 1, signal.SIGKILL)
    options = InferOptions(model=str(tiny_bundle), source=str(archive), out=str(out), part_seconds=0.5)
    result = raysegment.infer(options)
    killer.join()
    assert (result.scans_ok, result.scans_failed) == (800, 0)
    assert "an inference worker died" in (out / "log.txt").read_text()
    assert assert_whole(out) == 800
    assert count_parts(out) < 60


def test_a_worker_that_hangs_is_ended_and_its_scans_are_done_by_another(tmp_path, tiny_bundle, phantom_archive):
    out = tmp_path / "out"
    options = InferOptions(
        model=str(tiny_bundle),
        source=str(phantom_archive),
        out=str(out),
        part_seconds=0.0,
        worker_timeout_seconds=15.0,
    )
    stopper = signal_a_worker_at(lambda: count_parts(out) >= 2, signal.SIGSTOP)
    result = raysegment.infer(options)
    stopper.join()
    assert (result.scans_ok, result.scans_failed) == (24, 0)
    assert "answered nothing for 15 seconds" in (out / "log.txt").read_text()
    assert [os.path.basename(path) for path in out.glob("_staging")] == []
