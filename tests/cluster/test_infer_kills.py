"""Drivers, workers and nodes that die: the tables end as those of an undisturbed run."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from poison import FailingSegmenter, PoisonedSegmenter
from tables import assert_equal_tables, assert_whole, read_table
from untrained import save_untrained

from raysegment.cluster.inference import pool
from raysegment.cluster.inference.worker import start_segmenter
from raysegment.cluster.session import set_environment
from raysegment.commands.infer import infer
from raysegment.imaging.volume_phantom import write_decathlon
from raysegment.options import InferOptions
from raysegment.scan import Labels

NUM_VOLUMES = 24
pytestmark = pytest.mark.cluster

DRIVER = """
import sys
from raysegment.commands.infer import infer
from raysegment.options import InferOptions
model, source, out, *address = sys.argv[1:]
print(infer(InferOptions(model=model, source=source, out=out, part_seconds=0.0, address=(*address, None)[0])).scans_now)
"""


def start_driver(bundle: Path, archive: Path, out: Path, *address: str) -> subprocess.Popen[str]:
    """A run in a process of its own, which starts a Ray or joins that of an address."""
    command = [sys.executable, "-c", DRIVER, str(bundle), str(archive), str(out), *address]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)


def count_parts(out: Path) -> int:
    return len(list((out / "scans").glob("*.parquet")))


def wait_for(condition: Callable[[], bool], seconds: float = 90) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.005)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, tiny_bundle, phantom_archive, ray_here) -> Path:
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    driver = start_driver(tiny_bundle, phantom_archive, out, ray_here)
    assert driver.communicate()[0].split()[-1] == "24"
    return out


def test_a_driver_killed_three_times_ends_with_the_tables_of_an_undisturbed_run(
    tmp_path, tiny_bundle, phantom_archive, undisturbed, ray_here
):
    draw = random.Random(os.environ.get("PYTEST_RANDOM_SEED", "kills"))
    out = tmp_path / "out"
    # The first one while it starts a Ray, or has just begun.
    for first, last, *address in ((0, 0), (1, 7, ray_here), (10, 16, ray_here)):
        driver = start_driver(tiny_bundle, phantom_archive, out, *address)
        wanted = draw.randint(first, last)
        wait_for(lambda wanted=wanted: count_parts(out) >= wanted)
        time.sleep(draw.uniform(0, 3.0 if wanted == 0 else 0.05))
        driver.send_signal(signal.SIGKILL)
        driver.communicate()
        assert_whole(out)
    done = assert_whole(out)
    driver = start_driver(tiny_bundle, phantom_archive, out, ray_here)
    output = driver.communicate()[0]
    assert driver.returncode == 0
    assert int(output.split()[-1]) == 24 - done
    assert_equal_tables(out, undisturbed)


def test_a_terminated_run_leaves_whole_tables_and_resumes(
    tmp_path, tiny_bundle, phantom_archive, undisturbed, ray_here
):
    out = tmp_path / "out"
    driver = start_driver(tiny_bundle, phantom_archive, out)
    wait_for(lambda: count_parts(out) >= 3)
    driver.send_signal(signal.SIGTERM)
    driver.communicate(timeout=60)
    done = assert_whole(out)
    assert not (out / "_staging").exists()
    assert '"status": "interrupted"' in (out / "run.json").read_text()
    resumed = start_driver(tiny_bundle, phantom_archive, out, ray_here)
    assert int(resumed.communicate()[0].split()[-1]) == 24 - done
    assert_equal_tables(out, undisturbed)


def test_a_driver_killed_on_volumes_with_two_labels_ends_with_the_tables_of_an_undisturbed_run(tmp_path, ray_here):
    write_decathlon(tmp_path / "volumes", scans=NUM_VOLUMES, seed=3)
    bundle = save_untrained(tmp_path / "model", Labels(("Head", "Tail"), ((1,), (2,))), num_channels=1)
    expected, out = tmp_path / "undisturbed", tmp_path / "out"
    undisturbed = start_driver(bundle, tmp_path / "volumes", expected, ray_here)
    assert undisturbed.communicate()[0].split()[-1] == str(NUM_VOLUMES)
    assert assert_whole(expected, num_labels=2) == NUM_VOLUMES
    assert set(read_table(expected, "scans")["status"]) == {"ok"}
    metrics = read_table(expected, "metrics")
    assert metrics["label"].tolist() == ["Head", "Tail"] * NUM_VOLUMES
    assert metrics.groupby("label")[["voxels", "true_positives"]].sum().min(axis=None) > 0, "nothing to compare"
    driver = start_driver(bundle, tmp_path / "volumes", out, ray_here)
    wanted = random.Random(os.environ.get("PYTEST_RANDOM_SEED", "volumes")).randint(2, NUM_VOLUMES // 2)
    wait_for(lambda: count_parts(out) >= wanted)
    driver.send_signal(signal.SIGKILL)
    driver.communicate()
    done = assert_whole(out, num_labels=2)
    assert 0 < done < NUM_VOLUMES
    resumed = start_driver(bundle, tmp_path / "volumes", out, ray_here)
    assert int(resumed.communicate()[0].split()[-1]) == NUM_VOLUMES - done
    assert resumed.returncode == 0
    assert assert_whole(out, num_labels=2) == NUM_VOLUMES
    assert_equal_tables(out, expected)


def kill_a_worker(out: Path) -> None:
    wait_for(lambda: count_parts(out) >= 2)
    workers = [process for process in psutil.process_iter(["cmdline"]) if is_worker(process)]
    workers[0].send_signal(signal.SIGKILL)


def is_worker(process: psutil.Process) -> bool:
    """Ray names an actor's process after its class; only our own children count."""
    try:
        ours = any(parent.pid == os.getpid() for parent in process.parents())
        return ours and " ".join(process.info["cmdline"] or ()).startswith("ray::Segmenter")
    except psutil.Error:
        return False


def test_a_killed_worker_costs_nothing_but_time(tmp_path, ray_here, tiny_bundle, phantom_archive, undisturbed):
    out = tmp_path / "out"
    killer = threading.Thread(target=kill_a_worker, args=(out,))
    killer.start()
    options = InferOptions(model=str(tiny_bundle), source=str(phantom_archive), out=str(out), part_seconds=0.0)
    result = infer(options)
    killer.join()
    assert (result.scans_ok, result.scans_failed) == (24, 0)
    assert "an inference worker died" in (out / "log.txt").read_text()
    assert_equal_tables(out, undisturbed)


@pytest.mark.parametrize(("kind", "cause"), [(PoisonedSegmenter, "died"), (FailingSegmenter, "no memory left")])
def test_a_scan_that_kills_its_worker_fails_alone(
    kind, cause, tmp_path, ray_here, tiny_bundle, phantom_archive, undisturbed, monkeypatch
):
    def start_poisoned(bundle, settings, **place):
        return start_segmenter(bundle, settings, kind=kind, **place)

    monkeypatch.setattr(pool, "start_segmenter", start_poisoned)
    out = tmp_path / "out"
    result = infer(
        InferOptions(
            model=str(tiny_bundle), source=str(phantom_archive), out=str(out), part_seconds=5.0, max_attempts=2
        )
    )
    assert (result.scans_ok, result.scans_failed, result.exit_code) == (23, 1, 3)
    assert (result.failures[0].scan_id, result.failures[0].error_type) == ("PHANTOM_0011", "WorkerCrashedError")
    assert cause in result.failures[0].message
    assert assert_whole(out) == 24


def test_the_loss_of_a_node_costs_only_its_unfinished_scans(tmp_path, tiny_bundle, phantom_archive, undisturbed):
    set_environment("auto")
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
    lost = cluster.add_node(num_cpus=2)
    out = tmp_path / "out"
    driver = start_driver(tiny_bundle, phantom_archive, out, cluster.address)
    try:
        wait_for(lambda: count_parts(out) >= 2)
        cluster.remove_node(lost, allow_graceful=False)
        assert driver.communicate()[0].split()[-1] == "24"
    finally:
        driver.kill()
        cluster.shutdown()
    assert (driver.returncode, assert_whole(out)) == (0, 24)
    assert_equal_tables(out, undisturbed)
