"""What deaths cost an inference run, with workers and readers that die on purpose and without Ray's processes."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
from tables import read_table

from raysegment.archive.manifest import entries, to_table
from raysegment.cluster.inference import dispatch, rounds
from raysegment.cluster.inference import pool as pool_module
from raysegment.cluster.inference.rounds import Rounds
from raysegment.cluster.inference.suspects import Suspects
from raysegment.cluster.inference.worker import Receipt, WorkerSettings
from raysegment.errors import ClusterError, ReaderCrashedError, UnreadableFileError, WorkerCrashedError
from raysegment.options import InferOptions, Postprocessing, Preprocessing
from raysegment.pipeline.blocks import ReadScan
from raysegment.pipeline.segment import fail_scan
from raysegment.pipeline.settings import SegmentSettings
from raysegment.scan import Labels, ScanEntry
from raysegment.store.parts import OpenPart
from raysegment.store.place import Place
from raysegment.store.publish import prepare_tables

NODES = [{"NodeID": "a", "NodeManagerAddress": "here", "Resources": {"CPU": 2.0}}]
SETTINGS = SegmentSettings(
    preprocessing=Preprocessing(),
    postprocessing=Postprocessing(),
    labels=Labels(),
    num_channels=1,
    grid_factor=16,
)


class Call:
    """What a call of a worker gives: nothing yet, a value, or an error."""

    def __init__(self, work: Any) -> None:
        self.work, self.is_done, self.value = work, False, None


class FakeWorker:
    """A worker that does one call each time that it is waited for; rows instead of masks."""

    def __init__(self, world: World, settings: WorkerSettings) -> None:
        self.world = world
        self.calls: deque[Call] = deque()
        self.is_dead = False
        self.part = OpenPart(Place(settings.location), settings.staging, settings.part_bytes, settings.part_seconds)

    def __getattr__(self, name: str) -> Any:
        method = getattr(type(self), f"do_{name}")

        def remote(**arguments: Any) -> Call:
            call = Call(lambda: method(self, **arguments))
            self.calls.append(call)
            return call

        return SimpleNamespace(options=lambda **_: SimpleNamespace(remote=remote))

    def do_identify(self) -> str:
        return "here"

    def do_describe(self, block: pa.Table) -> list[str]:
        return block["scan_id"].to_pylist()

    def do_segment(self, block: pa.Table) -> Receipt:
        receipt = Receipt()
        for entry in entries(block):
            if entry.scan_id in self.world.worker_killers:
                self.is_dead = True
                raise ray.exceptions.RayActorError(error_msg="killed")
            read = ReadScan(entry.scan_id, entry.patient_id, entry.source, entry.fingerprint, scan=None)
            rows = fail_scan(read, UnreadableFileError("as good as done"), SETTINGS)
            receipt.add(rows)
            self.part.add(rows)
        return receipt

    def do_close_part(self) -> Receipt:
        part = self.part.close()
        return Receipt(parts=[] if part is None else [part])

    def step(self) -> None:
        """Do the next call; all calls of a dead worker fail."""
        while self.calls:
            call = self.calls.popleft()
            try:
                call.value = call.work() if not self.is_dead else ray.exceptions.RayActorError(error_msg="killed")
            except ray.exceptions.RayError as error:
                call.value = error
            call.is_done = True
            if not self.is_dead:
                return


@dataclass
class World:
    """Stands in for Ray and Ray Data: what kills, and what was counted."""

    worker_killers: set[str] = field(default_factory=set)
    reader_killers: set[str] = field(default_factory=set)
    lose_node: int = 0
    workers: list[FakeWorker] = field(default_factory=list)
    num_rounds: int = 0
    said: list[str] = field(default_factory=list)

    def start_segmenter(self, bundle: Any, settings: WorkerSettings, **_: Any) -> FakeWorker:
        self.workers.append(FakeWorker(self, settings))
        return self.workers[-1]

    def start_reading(self, planned: list[Any], settings: Any, *, store_bytes: int) -> FakeReading:
        self.num_rounds += 1
        return FakeReading(self, planned, Place(settings.location))

    def wait(self, calls: list[Call], *, num_returns: int, **_: Any) -> tuple[list[Call], list[Call]]:
        if num_returns == 1:
            for worker in self.workers:
                worker.step()
        return [call for call in calls if call.is_done], [call for call in calls if not call.is_done]

    def get(self, call: Call, **_: Any) -> Any:
        if isinstance(call.value, BaseException):
            raise call.value
        return call.value


class FakeReading:
    """The blocks of a plan, without those that hold a scan on which reading dies."""

    def __init__(self, world: World, planned: list[Any], place: Place) -> None:
        self.world, self.planned, self.place = world, planned, place
        self.lost = SimpleNamespace(death=None, error=None)

    def __iter__(self) -> Iterator[pa.Table]:
        for block in self.planned:
            table = pq.ParquetFile(self.place.path(block.file)).read_row_group(block.row_group)
            if self.world.lose_node > 0:
                self.world.lose_node -= 1
                self.lost.death = "node lost"
            elif self.world.reader_killers & {*table["scan_id"].to_pylist()}:
                self.lost.death = "killed for memory"
            else:
                yield table

    def close(self) -> None:
        pass


@pytest.fixture
def world(monkeypatch) -> World:
    made = World()
    monkeypatch.setattr(ray, "wait", made.wait)
    monkeypatch.setattr(ray, "get", made.get)
    monkeypatch.setattr(ray, "put", lambda value: value)
    monkeypatch.setattr(ray, "kill", lambda *_, **__: None)
    monkeypatch.setattr(dispatch, "WAIT_SECONDS", 0.0)
    monkeypatch.setattr(rounds, "start_reading", made.start_reading)
    monkeypatch.setattr(rounds, "check_nodes", lambda versions: None)
    monkeypatch.setattr(pool_module, "start_segmenter", made.start_segmenter)
    for module in (rounds, pool_module):
        monkeypatch.setattr(module, "live_nodes", lambda: NODES)
    return made


def run_rounds(world: World, out: Path, num_scans: int, **choices: Any) -> Rounds:
    manifest = to_table(
        ScanEntry(scan_id=f"s{index:05d}", patient_id="p", source="/a", reader="tiff", files=("x.tif",), num_files=1)
        for index in range(num_scans)
    )
    place = Place(str(out))
    prepare_tables(place)
    settings = WorkerSettings(
        segment=SETTINGS,
        precision="float32",
        threads=None,
        location=place.location,
        staging="_staging/1",
        part_bytes=64 * 2**20,
        part_seconds=10.0,
    )
    made = Rounds(
        options=InferOptions(model="m", source="s", out=str(out), **choices),
        bundle=None,
        worker=settings,
        place=place,
        lock=SimpleNamespace(check=lambda: None),
        console=SimpleNamespace(say=world.said.append),
        progress=SimpleNamespace(
            advance=lambda *_: None, step_back=lambda *_: None, tick=lambda: None, num_slices=0, slices_per_second=None
        ),
        num_ok_before=1,
    )
    made.run(manifest)
    return made


def failures_in(out: Path) -> dict[str, str]:
    """Scans that were given up, and why; the fake workers' own rows say UnreadableFileError."""
    scans = read_table(out, "scans")
    given_up = scans[scans["error_type"] != "UnreadableFileError"]
    return dict(zip(given_up["scan_id"], given_up["error_type"], strict=True))


def count_parts(out: Path) -> int:
    return len(list((out / "scans").glob("*.parquet")))


@pytest.mark.parametrize("position", [0, 2900, 5999])
def test_one_killer_among_6000_scans_costs_a_search_by_halves(world, tmp_path, position):
    world.worker_killers = {f"s{position:05d}"}
    run_rounds(world, tmp_path, 6000)
    assert failures_in(tmp_path) == {f"s{position:05d}": "WorkerCrashedError"}
    assert len(read_table(tmp_path, "scans")) == 6000
    halvings = math.ceil(math.log2(256))
    assert world.num_rounds <= 3 + halvings
    assert len(world.workers) <= 3 + halvings
    assert count_parts(tmp_path) <= 6 + 2 * halvings


def test_scans_that_are_done_again_because_their_part_was_lost_count_once(world, tmp_path):
    world.worker_killers = {"s00015"}
    done = run_rounds(world, tmp_path, 16)
    assert done.failed == {"UnreadableFileError": 15, "WorkerCrashedError": 1}
    assert len({failure.scan_id for failure in done.failures}) == len(done.failures) == 16
    assert done.num_published == len(read_table(tmp_path, "scans")) == 16


def test_one_scan_that_kills_its_reading_process_is_found_by_halves(world, tmp_path):
    world.reader_killers = {"s03000"}
    run_rounds(world, tmp_path, 6000)
    assert failures_in(tmp_path) == {"s03000": "ReaderCrashedError"}
    message = read_table(tmp_path, "scans").set_index("scan_id").loc["s03000", "error_message"]
    assert "the reading process died on it" in message
    assert "killed for memory" in message
    assert len(read_table(tmp_path, "scans")) == 6000
    assert world.num_rounds <= 2 + math.ceil(math.log2(256))
    assert len(world.workers) == 1


def test_many_killers_of_both_kinds_fail_and_no_other_scan(world, tmp_path):
    world.worker_killers = {f"s{index:05d}" for index in (7, 8, 9, 300, 1999)}
    world.reader_killers = {f"s{index:05d}" for index in (8, 500, 1000, 1001)}
    run_rounds(world, tmp_path, 2000, max_attempts=2)
    expected = dict.fromkeys(world.worker_killers, "WorkerCrashedError")
    assert failures_in(tmp_path) == expected | dict.fromkeys(world.reader_killers, "ReaderCrashedError")
    assert len(read_table(tmp_path, "scans")) == 2000
    assert count_parts(tmp_path) < 120


def test_blocks_lost_with_nodes_are_done_again_as_long_as_anything_is_done(world, tmp_path):
    world.lose_node = 40
    run_rounds(world, tmp_path, 64)
    assert failures_in(tmp_path) == {}
    assert len(read_table(tmp_path, "scans")) == 64


def test_reading_that_stops_again_and_again_ends_the_run_only_where_nothing_is_done(world, tmp_path, monkeypatch):
    stops = iter(range(1, 100))

    def stop_early(reading: FakeReading) -> Iterator[pa.Table]:
        allowed = 4 if next(stops) <= 6 else 0
        for block in reading.planned[:allowed]:
            yield pq.ParquetFile(reading.place.path(block.file)).read_row_group(block.row_group)
        raise OSError("the folder is gone")

    monkeypatch.setattr(FakeReading, "__iter__", stop_early)
    with pytest.raises(ClusterError, match="reading failed 3 times: the folder is gone"):
        run_rounds(world, tmp_path, 2000)
    assert world.num_rounds == 6 + 2
    assert len(read_table(tmp_path, "scans")) > 0


def test_an_idle_pool_does_not_wait_for_reading_for_ever(world, tmp_path, monkeypatch):
    monkeypatch.setattr(rounds, "TRIES_TO_READ", 0)
    monkeypatch.setattr(FakeReading, "__iter__", lambda reading: iter(lambda: time.sleep(0.5), "never"))
    monkeypatch.setattr(dispatch.BlockFeed, "take", lambda feed: None)
    with pytest.raises(ClusterError, match="reading gave nothing to idle workers for 1 seconds"):
        run_rounds(world, tmp_path, 2, worker_timeout_seconds=1.0)


def test_a_worker_that_answers_nothing_is_ended_and_its_scans_are_suspects(world, tmp_path, monkeypatch):
    answer = FakeWorker.step

    def step(worker: FakeWorker) -> None:
        if worker is not world.workers[0] or not worker.part.rows:
            answer(worker)

    monkeypatch.setattr(FakeWorker, "step", step)
    run_rounds(world, tmp_path, 640, worker_timeout_seconds=1.0)
    assert failures_in(tmp_path) == {}
    assert len(world.workers) == 2
    assert any("it answered nothing for 1 seconds" in line for line in world.said)
    assert len(read_table(tmp_path, "scans")) == 640


def test_workers_that_never_finish_loading_end_the_run(world, tmp_path, monkeypatch):
    monkeypatch.setattr(FakeWorker, "step", lambda worker: None)
    with pytest.raises(ClusterError, match="while loading the network"):
        run_rounds(world, tmp_path, 8, worker_timeout_seconds=1.0)


def test_a_suspect_is_given_up_only_alone_and_after_as_many_deaths_as_allowed():
    suspects = Suspects(max_attempts=3)
    suspects.accuse([["a", "b", "c"], ["d"]], WorkerCrashedError, "one")
    assert suspects.groups == [["a", "b", "c"], ["d"]]
    suspects.accuse([["a", "b", "c"]], WorkerCrashedError, "two")
    assert suspects.groups == [["d"], ["a", "b"], ["c"]]
    suspects.accuse([["c"]], ReaderCrashedError, "three")
    assert suspects.scan_ids == ["d", "a", "b"]
    hopeless = suspects.take_hopeless()
    assert list(hopeless) == ["c"]
    assert isinstance(hopeless["c"], ReaderCrashedError)
    suspects.keep_only({"d"})
    suspects.accuse([["d"]], WorkerCrashedError, "four")
    assert (suspects.groups, suspects.take_hopeless()) == ([["d"]], {})
