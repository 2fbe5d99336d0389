"""Training after the driver, a worker and a node were killed without grace; all with real processes.

One run loses them in turn, because each start of workers costs more than the epochs between. That a run ends as one
that nobody disturbed is shown where folds are killed, in `test_train_folds`.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pyarrow.parquet as pq
import pytest

from raysegment.cluster.session import set_environment
from raysegment.imaging.phantom import write_archive

if TYPE_CHECKING:
    from ray.cluster_utils import Cluster

pytestmark = pytest.mark.cluster

PATIENCE_SECONDS = 180
EPOCHS = 7
SMALL = {
    "epochs": EPOCHS,
    "workers": 2,
    "image_size": 32,
    "filters": 4,
    "depth": 1,
    "batch_size": 4,
    "train_fraction": 0.7,
    "val_fraction": 0.3,
    "precision": "float32",
    "threads": 1,
}


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """A head, which notices within seconds that a node is gone, and no more CPUs than the head has."""
    set_environment("auto")
    from ray.cluster_utils import Cluster

    head = {"num_cpus": 1, "include_dashboard": False, "_system_config": {"health_check_period_ms": 500}}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    yield cluster
    cluster.shutdown()


def history_of(run: Path) -> dict[str, list[float]]:
    return pq.read_table(run / "history.parquet").to_pydict()


def count_epochs(run: Path) -> int:
    return len(history_of(run)["epoch"]) if (run / "history.parquet").exists() else 0


class Command:
    """`raysegment train` in a process of its own, whose output goes to a file."""

    def __init__(self, scans: Path, run: Path, address: str) -> None:
        self.output = run.with_name("output.txt")
        words = [sys.executable, "-m", "raysegment", "train", str(scans), "--out", str(run), "--address", address]
        for name, value in SMALL.items():
            words += [f"--{name.replace('_', '-')}", str(value)]
        self.process = subprocess.Popen(words, stdout=self.output.open("ab"), stderr=subprocess.STDOUT)

    def wait_for(self, condition: Callable[[], object], what: str) -> None:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not condition():
            assert self.process.poll() is None, f"ended before {what}: {self.output.read_text()}"
            assert time.monotonic() < deadline, f"waited too long for {what}: {self.output.read_text()}"
            time.sleep(0.05)

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()


def find_workers() -> list[psutil.Process]:
    """Those of the cluster's training workers that live, the youngest last."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if process.cmdline()[:1] == ["ray::RayTrainWorker"]:
                found.append(process)
        except psutil.Error:
            continue
    return sorted(found, key=psutil.Process.create_time)


def test_training_goes_on_after_its_driver_a_worker_and_a_node_are_lost(cluster: Cluster, tmp_path: Path) -> None:
    write_archive(tmp_path / "scans", patients=10, seed=2, image_size=64, slices=7)
    lost, run = cluster.add_node(num_cpus=1), tmp_path / "run"

    driver = Command(tmp_path / "scans", run, cluster.address)
    driver.wait_for(lambda: count_epochs(run) >= 1, "the first epoch")
    driver.kill()
    before = history_of(run)
    assert len(before["epoch"]) < EPOCHS

    driver = Command(tmp_path / "scans", run, cluster.address)
    driver.wait_for(lambda: count_epochs(run) > len(before["epoch"]), "an epoch of the second driver")
    find_workers()[-1].send_signal(signal.SIGKILL)
    stops = "going on from the last checkpoint, failure {} of"
    driver.wait_for(lambda: stops.format(1) in (run / "log.txt").read_text(), "the loss of a worker to be noticed")
    known = count_epochs(run)
    driver.wait_for(lambda: count_epochs(run) > known, "an epoch after the loss of a worker")
    cluster.remove_node(lost, allow_graceful=False)
    assert driver.process.wait(PATIENCE_SECONDS) == 0, driver.output.read_text()
    assert stops.format(2) in (run / "log.txt").read_text()

    after = history_of(run)
    assert after["epoch"] == list(range(1, EPOCHS + 1))
    assert after["loss"][: len(before["loss"])] == before["loss"]
    assert json.loads((run / "run.json").read_text())["attempt"] == 2
    assert (run / "model" / "model.keras").exists()
