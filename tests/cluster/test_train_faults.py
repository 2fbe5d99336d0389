"""Training after a worker, a node or the driver was killed without grace; all with real processes."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest

from raysegment.commands.train import train
from raysegment.imaging.phantom import write_archive
from raysegment.options import TrainOptions

pytestmark = pytest.mark.cluster

PATIENCE_SECONDS = 240
SMALL = {
    "image_size": 64,
    "filters": 8,
    "depth": 2,
    "batch_size": 8,
    "train_fraction": 0.7,
    "val_fraction": 0.3,
    "precision": "float32",
}


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("archive") / "phantoms"
    write_archive(folder, patients=10, seed=2, image_size=64, slices=7)
    return folder


def history_of(run: Path) -> dict[str, list[float]]:
    return pq.read_table(run / "history.parquet").to_pydict()


def wait_for(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"waited too long for {what}"
        time.sleep(0.1)


def has_epochs(run: Path, count: int) -> Callable[[], bool]:
    def check() -> bool:
        try:
            return len(history_of(run)["epoch"]) >= count
        except FileNotFoundError:
            return False

    return check


def start_command(scans: Path, out: Path, log: Path, **choices: object) -> subprocess.Popen[bytes]:
    words = [sys.executable, "-m", "raysegment", "train", str(scans), "--out", str(out)]
    for name, value in {**SMALL, **choices}.items():
        words += [f"--{name.replace('_', '-')}", str(value)]
    return subprocess.Popen(words, stdout=log.open("ab"), stderr=subprocess.STDOUT, start_new_session=True)


def workers_of(driver: int) -> list[psutil.Process]:
    found = psutil.Process(driver).children(recursive=True)
    return [process for process in found if process.cmdline()[:1] == ["ray::RayTrainWorker"]]


def kill_tree(driver: int) -> None:
    """What a power cut leaves: nothing. Ray's own processes would otherwise need seconds to notice."""
    family = psutil.Process(driver).children(recursive=True)
    os.kill(driver, signal.SIGKILL)
    psutil.wait_procs(family, timeout=30)


def test_training_goes_on_after_a_worker_is_killed(scans: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    driver = start_command(scans, run, tmp_path / "log", epochs=4, workers=2)
    wait_for(has_epochs(run, 1), "the first epoch")
    workers_of(driver.pid)[-1].send_signal(signal.SIGKILL)
    assert driver.wait(PATIENCE_SECONDS) == 0, (tmp_path / "log").read_text()
    assert history_of(run)["epoch"] == [1, 2, 3, 4]
    assert "going on from the last checkpoint" in (run / "log.txt").read_text()
    assert (run / "model" / "model.keras").exists()


def test_training_goes_on_by_the_same_command_after_its_driver_is_killed(scans: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    driver = start_command(scans, run, tmp_path / "log", epochs=4)
    wait_for(has_epochs(run, 2), "two epochs")
    kill_tree(driver.pid)
    driver.wait()
    before = history_of(run)
    assert len(before["epoch"]) < 4
    again = start_command(scans, run, tmp_path / "log", epochs=4)
    assert again.wait(PATIENCE_SECONDS) == 0, (tmp_path / "log").read_text()
    after = history_of(run)
    assert after["epoch"] == [1, 2, 3, 4]
    assert after["loss"][: len(before["loss"])] == before["loss"]
    assert json.loads((run / "run.json").read_text())["attempt"] == 2


def test_training_goes_on_after_a_node_is_lost(scans: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    lost = cluster.add_node(num_cpus=1)
    run = tmp_path / "run"

    def lose_node() -> None:
        wait_for(has_epochs(run, 1), "the first epoch")
        cluster.remove_node(lost, allow_graceful=False)

    killer = threading.Thread(target=lose_node, daemon=True)
    killer.start()
    try:
        train(TrainOptions(source=str(scans), out=str(run), epochs=4, workers=2, address=cluster.address, **SMALL))
    finally:
        killer.join()
        cluster.shutdown()
    assert history_of(run)["epoch"] == [1, 2, 3, 4]
    assert (run / "model" / "model.keras").exists()
