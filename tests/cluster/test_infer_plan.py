"""Planning and reporting of an inference run, without Ray."""

from __future__ import annotations

import json
import signal
import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray

from raysegment.archive.manifest import MANIFEST_SCHEMA, entries, to_table
from raysegment.cluster.inference import pool as pool_module
from raysegment.cluster.inference.dispatch import Dispatcher, RoundSettings
from raysegment.cluster.inference.nodes import compare_versions
from raysegment.cluster.inference.pool import MAX_FAILED_STARTS, BlockInHand, Worker, WorkerPool, share_node
from raysegment.cluster.inference.remaining import (
    arrange_plan,
    cut_plan,
    estimate_bytes,
    find_remaining,
    group_scans,
    write_plan,
)
from raysegment.cluster.inference.worker import WorkerSettings
from raysegment.cluster.session import interruptible, raise_if_interrupted
from raysegment.errors import ClusterError, InterruptedRunError, UsageError
from raysegment.runs.closing import describe_failures, describe_run, describe_summary
from raysegment.runs.console import Console
from raysegment.runs.progress import ScanProgress
from raysegment.scan import ScanEntry
from raysegment.store.parts import Failure
from raysegment.store.place import Place
from raysegment.store.publish import FINISHED_COLUMNS
from raysegment.store.schema import SCANS_SCHEMA


def manifest_of(**fingerprints: str) -> pa.Table:
    return to_table(
        ScanEntry(scan_id=name, patient_id="p", source="/a", reader="tiff", files=("x.tif",), fingerprint=fingerprint)
        for name, fingerprint in fingerprints.items()
    )


def finished_of(*rows: tuple[str, str, str, str | None]) -> pa.Table:
    schema = pa.schema([SCANS_SCHEMA.field(name) for name in FINISHED_COLUMNS])
    return pa.Table.from_pylist([dict(zip(FINISHED_COLUMNS, row, strict=True)) for row in rows], schema=schema)


FINISHED = finished_of(
    ("same", "1", "ok", None),
    ("changed", "1", "ok", None),
    ("bad", "1", "failed", "TruncatedFileError"),
    ("refused", "1", "failed", "AccessError"),
    ("gone", "1", "ok", None),
)


@pytest.mark.parametrize(
    ("retry_failed", "planned", "counts"),
    [(False, ["changed", "refused", "new"], (1, 1)), (True, ["changed", "bad", "refused", "new"], (1, 0))],
)
def test_what_is_to_do_is_the_manifest_minus_what_is_done(retry_failed, planned, counts):
    manifest = manifest_of(same="1", changed="2", bad="1", refused="1", new="1")
    remaining = find_remaining(manifest, FINISHED, retry_failed=retry_failed)
    assert remaining.plan["scan_id"].to_pylist() == planned
    assert remaining.take_out.to_pylist() == planned[:-1]
    assert (remaining.num_ok, remaining.num_failed) == counts


def test_blocks_hold_whole_scans_within_their_bounds_and_a_large_scan_is_alone():
    sizes = np.array([5, 5, 5, 100, 1, 1, 1, 1], np.int64)
    assert group_scans(sizes, max_bytes=10, max_scans=3) == [(0, 2), (2, 3), (3, 4), (4, 7), (7, 8)]
    assert group_scans(sizes[:0], max_bytes=10, max_scans=3) == []


def test_the_plan_on_disk_has_every_scan_once_in_its_blocks(tmp_path):
    manifest = manifest_of(**{f"s{index}": "1" for index in range(700)})
    place = Place(str(tmp_path))
    blocks = write_plan(place, "_staging/plan", manifest, cut_plan(manifest, num_cpus=2, max_scans=2))
    found = []
    for block in blocks:
        rows = pq.ParquetFile(place.path(block.file)).read_row_group(block.row_group)
        assert rows.num_rows == block.num_scans == 2
        found += [entry.scan_id for entry in entries(rows)]
    assert found == manifest["scan_id"].to_pylist()
    assert len({block.file for block in blocks}) == 2


def test_groups_of_suspects_are_the_blocks_of_their_plan(tmp_path):
    manifest = manifest_of(**{f"s{index}": "1" for index in range(6)})
    rows, groups = arrange_plan(manifest, [["s5", "s1"], ["s3"]])
    assert (rows["scan_id"].to_pylist(), groups) == (["s5", "s1", "s3"], [(0, 2), (2, 3)])
    blocks = write_plan(Place(str(tmp_path)), "_staging/plan", rows, groups)
    assert [block.num_scans for block in blocks] == [2, 1]


@pytest.mark.slow
def test_a_million_scans_are_planned_within_a_minute(tmp_path):
    count = 1_000_000
    ids = [f"site/patient{index:07d}" for index in range(count)]
    columns = {
        "scan_id": ids,
        "patient_id": ids,
        "source": ["/archive"] * count,
        "reader": ["tiff"] * count,
        "files": [[f"{name}.tif"] for name in ids],
        "reference_files": [[]] * count,
        "num_files": np.ones(count, np.int32),
        "bytes": np.full(count, 65_536),
        "fingerprint": ids,
    }
    filled = {
        name: columns.get(name, pa.nulls(count, MANIFEST_SCHEMA.field(name).type)) for name in MANIFEST_SCHEMA.names
    }
    manifest = pa.table(filled, schema=MANIFEST_SCHEMA)
    done = pa.table(
        {
            "scan_id": pa.array(ids[::2]),
            "fingerprint": pa.array(ids[::2]),
            "status": pa.array(["ok"] * (count // 2)),
            "error_type": pa.nulls(count // 2, pa.string()),
        }
    )
    started = time.monotonic()
    remaining = find_remaining(manifest, done, retry_failed=False)
    blocks = write_plan(Place(str(tmp_path)), "_staging/plan", remaining.plan, cut_plan(remaining.plan, num_cpus=2))
    assert remaining.plan.num_rows == sum(block.num_scans for block in blocks) == count // 2
    assert time.monotonic() - started < 60


@pytest.mark.parametrize(
    ("resources", "wanted", "expected"),
    [
        ({"CPU": 2.0}, None, (1, 2, 1.0, 0.0)),
        ({"CPU": 32.0}, None, (4, 8, 4.0, 0.0)),
        ({"CPU": 16.0, "GPU": 2.0}, None, (2, 8, 4.0, 1.0)),
        ({"CPU": 2.0}, 2, (2, 1, 0.5, 0.0)),
    ],
)
def test_workers_share_a_node(resources, wanted, expected):
    assert share_node({"Resources": resources}, wanted) == expected


def test_a_node_with_other_versions_is_named():
    driver = {"raysegment": "0.1.0", "ray": "2.60.0"}
    compare_versions(driver, dict(driver), "10.0.0.1")
    with pytest.raises(UsageError, match=r"node 10\.0\.0\.2 has ray 2\.59\.0 instead of 2\.60\.0"):
        compare_versions(driver, driver | {"ray": "2.59.0"}, "10.0.0.2")


def test_workers_start_only_on_nodes_that_are_admitted(monkeypatch):
    nodes = [{"NodeID": name, "Resources": {"CPU": 2.0}} for name in "ab"]
    started, asked = [], []
    monkeypatch.setattr(pool_module, "live_nodes", lambda: nodes)
    monkeypatch.setattr(pool_module, "start_segmenter", lambda *_, node_id, **__: started.append(node_id))
    settings = WorkerSettings(
        segment=None, precision="float32", threads=None, location="", staging="", part_bytes=1, part_seconds=1
    )
    pool = WorkerPool(
        None, settings, workers_per_node=None, admit=lambda node: asked.append(node["NodeID"]) or node["NodeID"] != "b"
    )
    for _ in range(2):
        pool.adjust()
        pool._next_look = 0.0
    nodes.append({"NodeID": "c", "Resources": {"CPU": 2.0}})
    pool.adjust()
    assert started == ["a", "c"]
    assert asked == ["a", "b", "c"]


def test_a_node_where_workers_do_not_start_is_given_up_and_the_others_go_on(monkeypatch):
    nodes = [{"NodeID": name, "Resources": {"CPU": 2.0}} for name in "ab"]
    said = []
    monkeypatch.setattr(pool_module, "live_nodes", lambda: nodes)
    monkeypatch.setattr(pool_module, "start_segmenter", lambda *_, **__: None)
    monkeypatch.setattr(ray, "kill", lambda *_, **__: None)
    settings = WorkerSettings(
        segment=None, precision="float32", threads=None, location="", staging="", part_bytes=1, part_seconds=1
    )
    pool = WorkerPool(None, settings, workers_per_node=None, say=said.append)
    for _ in range(MAX_FAILED_STARTS + 1):
        pool.adjust()
        pool.remove(next(worker for worker in pool.workers if worker.node_id == "a"), "no memory")
    pool.adjust()
    assert [worker.node_id for worker in pool.workers] == ["b"]
    assert "no memory No more are started there." in said[0]
    for _ in range(MAX_FAILED_STARTS):
        pool.remove(pool.workers[0], "no memory")
        pool.adjust()
    with pytest.raises(ClusterError, match="in a row died on node b"):
        pool.remove(pool.workers[0], "no memory")


class FakePool:
    """Remembers which workers were removed."""

    def __init__(self, worker: Worker) -> None:
        self.workers, self.removed = [worker], []

    def remove(self, worker: Worker, cause: str) -> None:
        self.removed.append(cause)


@pytest.mark.parametrize(
    "error", [ray.exceptions.OutOfMemoryError("killed for memory"), ray.exceptions.ActorUnschedulableError("gone")]
)
def test_however_a_worker_dies_its_scans_are_known(monkeypatch, error):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(ray, "get", fail)
    worker = Worker(handle=None, node_id="a", is_ready=True, waiting={"one": None}, is_closing=True)
    worker.calls["block"] = BlockInHand("block", ["two", "three"])
    worker.staged_early.add("three")
    pool = FakePool(worker)
    dispatcher = Dispatcher(pool, None, lambda receipt: None, RoundSettings(part_seconds=1.0))
    dispatcher._pending["answer"] = ("close", worker, None)
    dispatcher._take_answer("answer")
    assert len(pool.removed) == 1
    assert dispatcher.outcome.hands[0].blocks == [["two"]]
    assert dispatcher.outcome.lost == ["one"]


def test_a_signal_that_was_lost_on_its_way_is_raised_again():
    with interruptible():
        with pytest.raises(InterruptedRunError):
            signal.raise_signal(signal.SIGTERM)
        with pytest.raises(InterruptedRunError, match="SIGTERM"):
            raise_if_interrupted()
    raise_if_interrupted()


@interruptible()
def lose_a_signal():
    try:
        signal.raise_signal(signal.SIGTERM)
    except InterruptedRunError as error:
        raise SystemError("wait returned a result with an exception set") from error


def test_an_error_that_compiled_calls_make_of_a_signal_ends_as_interrupted():
    with pytest.raises(InterruptedRunError, match="SIGTERM"):
        lose_a_signal()


@pytest.mark.parametrize(("workers", "gpus", "share"), [(4, 2, 0.5), (2, 2, 1.0), (1, 4, 1.0)])
def test_workers_share_gpus(workers, gpus, share):
    assert share_node({"Resources": {"CPU": 8.0, "GPU": gpus}}, workers)[3] == share


def test_workers_that_cannot_share_the_gpus_are_refused():
    with pytest.raises(UsageError, match="cannot be shared by 2 GPUs"):
        share_node({"Resources": {"CPU": 8.0, "GPU": 2.0}}, 3)


def test_an_evaluation_is_told_in_three_lines():
    summary = {"dice_mean": 0.79251, "dice_median": 0.8, "dice_ci95": [0.7, 0.9], "iou_mean": 0.6, "scans": 16}
    summary |= {"lesion_slice_dice_mean": float("nan"), "precision": 0.5, "recall": 0.25, "threshold": 0.5}
    summary |= {"training_patients_included": 0, "patients": 12}
    lines = describe_summary(summary, "out")
    assert (
        "mean 0.7925 (95 % interval 0.7000 to 0.9000), median 0.8000, at threshold 0.50; 16 scans of 12 patients"
        in lines[0]
    )
    assert "lesion-slice Dice –" in lines[1]
    assert "out/summary.json" in lines[2]
    assert describe_summary(summary | {"split": "test", "split_origin": "split file s.json"}, "out")[0] == (
        "test split, by split file s.json"
    )
    assert "3 of these patients" in describe_summary(summary | {"training_patients_included": 3}, "out")[0]


def test_the_closing_lines_name_failures_by_type_and_the_first_of_them():
    lines = describe_failures({"EmptyFileError": 30}, [Failure("new\nline", "EmptyFileError", "no bytes")], "out")
    assert lines[0].split() == ["failed", "EmptyFileError", "30"]
    assert lines[1] == "  new\\nline: EmptyFileError: no bytes"
    assert lines[2] == "  and 29 more in out/scans, status = 'failed'"
    numbers = {"scans_total": 3, "scans_ok": 2, "scans_failed": 1, "slices": 20, "seconds_total": 10.0}
    numbers |= {"seconds_startup": None, "slices_per_second": 4.0, "seconds": {"read": 1.0}}
    text = "\n".join(describe_run(numbers, 3))
    assert "2 ok, 1 failed of 3" in text
    assert "2.0 slices/s and 0.30 scans/s in all, 4.0 slices/s in steady state" in text


def test_programs_get_one_json_object_a_line(capsys):
    with Console(None, as_json=True) as console:
        progress = ScanProgress(console, 10)
        progress.advance(2, 1, 30)
        console.say("hello")
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert lines == [{"event": "message", "text": "hello"}]
    assert (progress.done, progress.failed, progress.num_slices) == (2, 1, 30)


def test_absurd_sizes_of_a_manifest_by_hand_are_estimated_as_large_and_not_below_zero():
    largest = 2**31 - 1
    sizes = {"height": largest, "width": largest, "channels": largest, "num_files": largest, "bytes": 2**63 - 1}
    absurd = ScanEntry(scan_id="a", patient_id="p", source="/a", reader="tiff", files=("x.tif",), **sizes)
    below = ScanEntry(scan_id="b", patient_id="p", source="/a", reader="tiff", files=("x.tif",), height=-5, bytes=-7)
    assert estimate_bytes(to_table([absurd, below])).tolist() == [2**50, 0]
