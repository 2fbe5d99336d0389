"""Cohorts whose folder, and whose scans, lie in a bucket; without Ray."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import pytest
from fsspec.implementations.arrow import ArrowFSWrapper
from local_bucket import LocalBucket, serve_bucket
from test_resegment import Cohort, models  # noqa: F401

import raysegment
from raysegment.errors import LockedError, MissingExtraError, OutputError, UsageError
from raysegment.model.bundle import load_bundle
from raysegment.runs.bucket_lock import BucketLock
from raysegment.runs.cohort import CohortFolder
from raysegment.runs.lock import LOCK_FILE
from raysegment.store.conditional import ConditionalBucket
from raysegment.store.place import Place

NUM_SCANS = 3


@pytest.fixture(scope="module")
def server() -> Iterator[LocalBucket]:
    with serve_bucket() as bucket:
        yield bucket


@pytest.fixture
def bucket(server: LocalBucket) -> Iterator[LocalBucket]:
    yield server
    server.remove("")


class BucketCohort(Cohort):
    """The same with scans and results in a bucket."""

    def __init__(self, folder: Path, model: Path, bucket: LocalBucket) -> None:
        self.bucket = bucket
        super().__init__(folder, model)
        for path in sorted(self.archive.iterdir())[NUM_SCANS:]:
            shutil.rmtree(path)
        self.out = bucket.uri("cohort")
        bucket.upload(self.archive, "archive")

    def write_file(self, model: Path, *lines: str) -> None:
        source, out = self.bucket.uri("archive"), self.bucket.uri("cohort")
        keys = [f"name: test\nsource: {source}\nmodel: {model}\nout: {out}\nmass_vanish_percent: 50", *lines]
        (self.folder / "cohort.yaml").write_text("\n".join(keys) + "\n")

    def stored_current(self) -> dict[str, str]:
        return json.loads(self.bucket.read("cohort/current.json"))

    def change(self, number: int) -> None:
        super().change(number)
        name = f"PHANTOM_{number:04d}"
        self.bucket.upload(self.archive / name, f"archive/{name}")


@pytest.fixture
def cohort(tmp_path: Path, models: tuple[Path, Path], bucket: LocalBucket) -> BucketCohort:  # noqa: F811
    made = BucketCohort(tmp_path, models[0], bucket)
    made.first_model = load_bundle(models[0]).model_id
    return made


def ids_of(tables: Any) -> set[str]:
    return set(tables.read("scans")["scan_id"].to_pylist())


def test_nights_in_a_bucket_begin_from_copies_and_move_at_their_end(
    cohort: BucketCohort,
    models: tuple[Path, Path],  # noqa: F811
    bucket: LocalBucket,
) -> None:
    first = cohort.run()
    assert (first.has_moved, len(cohort.segmented), first.scans["new"]) == (True, NUM_SCANS, NUM_SCANS)
    before = {key: bucket.read(key) for key in bucket.keys(f"cohort/{first.result}")}

    cohort.change(2)
    bucket.remove("archive/PHANTOM_0003/")
    tables = raysegment.open_cohort(cohort.out)
    cohort.during = lambda count: ids_of(raysegment.open_cohort(cohort.out)) == ids_of(tables) or pytest.fail("moved")
    second = cohort.run()
    assert cohort.segmented == ["PHANTOM_0002"]
    assert (second.scans["changed"], second.scans["vanished"], second.changed_scans) == (1, 1, 1)
    assert {key: bucket.read(key) for key in before} == before, "the night before is as it was"
    assert cohort.stored_current()["result"] == second.result
    tables = raysegment.open_cohort(cohort.out)
    assert ids_of(tables) == {f"PHANTOM_{number:04d}" for number in (1, 2)}
    assert tables.read("masks").num_rows == tables.read("metrics").num_rows == 2

    cohort.during = lambda count: None
    third = cohort.run()
    assert (third.has_moved, cohort.segmented, third.result) == (False, [], second.result)

    cohort.write_file(models[1])
    fourth = cohort.run()
    assert len(cohort.segmented) == 2
    run = fourth.result.rpartition("/")[2]
    changes = read_rows_of_changes(cohort, run)
    assert {row["state"] for row in changes} == {"compared"}
    assert f"cohort/changes/{run}/figures/changes.png" in bucket.keys("cohort/changes")
    assert not bucket.keys(f"cohort/{first.result}"), "two results are kept"
    assert bucket.keys(f"cohort/{second.result}")
    members = {row["scan_id"]: row for row in CohortFolder(cohort.out).read_members().to_pylist()}
    assert [name for name, row in members.items() if row["vanished_at"]] == ["PHANTOM_0003"]
    assert f"cohort/runs/{run}.json" in bucket.keys("cohort/runs")


def read_rows_of_changes(cohort: BucketCohort, run: str) -> list[dict[str, Any]]:
    place = Place(CohortFolder(cohort.out).locate(f"changes/{run}"))
    return place.read_table("changes/changes.parquet").to_pylist()


def test_duckdb_reads_the_current_tables_of_a_bucket(cohort: BucketCohort) -> None:
    cohort.run()
    tables = raysegment.open_cohort(cohort.out)
    assert tables.glob("metrics").startswith("s3://lake/cohort/results/")
    connection = duckdb.connect()
    connection.register_filesystem(ArrowFSWrapper(tables.filesystem))
    query = f"select count(distinct scan_id), sum(voxels) from '{tables.glob('metrics')}'"
    voxels = sum(tables.read("metrics")["voxels"].to_pylist())
    assert connection.sql(query).fetchall() == [(NUM_SCANS, voxels)]
    with pytest.raises(UsageError, match="has no current result"):
        raysegment.open_cohort(cohort.bucket.uri("nobody"))


def test_a_night_that_was_stopped_goes_on_from_copies_of_what_it_did(
    cohort: BucketCohort,
    models: tuple[Path, Path],  # noqa: F811
    bucket: LocalBucket,
) -> None:
    first = cohort.run()
    cohort.write_file(models[1])

    def stop(count: int) -> None:
        if count == 1:
            raise OutputError("the store does not answer")

    for done in (1, 1):
        cohort.during = stop
        with pytest.raises(OutputError):
            cohort.run()
        assert len(cohort.segmented) == done
        assert cohort.stored_current()["result"] == first.result
    stopped = {key.split("/")[3] for key in bucket.keys("cohort/results")} - {first.result.split("/")[2]}
    assert len(stopped) == 2, "a run that wakes up writes where nobody reads"
    cohort.during = lambda count: None
    again = cohort.run()
    assert len(cohort.segmented) == NUM_SCANS - 2
    assert again.has_moved
    assert len(ids_of(raysegment.open_cohort(cohort.out))) == NUM_SCANS
    assert {key.split("/")[3] for key in bucket.keys("cohort/results")} == {
        first.result.split("/")[2],
        again.result.split("/")[2],
    }


def test_of_two_runs_one_moves_current(cohort: BucketCohort, models: tuple[Path, Path]) -> None:  # noqa: F811
    theirs = {"result": "results/a-b/000001-20260101T000000Z", "run": "", "model_id": "another", "options_id": ""}

    def move(count: int) -> None:
        cohort.bucket.client.put_object(Bucket="lake", Key="cohort/current.json", Body=json.dumps(theirs).encode())

    cohort.during = move
    for nights_before in range(2):
        with pytest.raises(LockedError, match="was moved by another run"):
            cohort.run()
        assert cohort.stored_current() == theirs, nights_before
        cohort.bucket.remove("cohort/current.json")
        cohort.during = lambda count: None
        cohort.run()
        cohort.change(1)
        cohort.during = move


def test_a_run_whose_lock_was_taken_moves_nothing(cohort: BucketCohort) -> None:
    first = cohort.run()
    cohort.change(1)
    other = json.dumps({"token": "another", "host": "elsewhere", "pid": 7}).encode()
    cohort.during = lambda count: cohort.bucket.client.put_object(Bucket="lake", Key=f"cohort/{LOCK_FILE}", Body=other)
    with pytest.raises(LockedError, match="another run took over"):
        cohort.run()
    assert cohort.stored_current()["result"] == first.result
    assert cohort.bucket.read(f"cohort/{LOCK_FILE}") == other


def test_one_run_at_a_time_has_a_bucket(cohort: BucketCohort) -> None:
    cohort.run()
    cohort.change(1)
    lock = BucketLock(ConditionalBucket(Place(cohort.out)), heartbeat_seconds=0.05)
    with lock, pytest.raises(LockedError, match=rf"process {os.getpid()} on .*, started 20"):
        cohort.run()
    assert cohort.segmented == []
    assert cohort.run().has_moved, "the lock was given back"


def test_the_lock_of_a_bucket_is_renewed_and_goes_stale(bucket: LocalBucket) -> None:
    folder = ConditionalBucket(Place(bucket.uri("locked")))

    def stored() -> dict[str, Any]:
        return json.loads(bucket.read(f"locked/{LOCK_FILE}"))

    with BucketLock(folder, heartbeat_seconds=0.02) as lock:
        deadline = time.monotonic() + 10
        while stored()["beats"] < 3:
            assert time.monotonic() < deadline
        lock.check()
    assert stored()["is_free"]
    for owner, may_have_it in (
        ({"host": "elsewhere", "token": "x"}, False),
        (lock.owner, False),
        (lock.owner | {"process_start": "1"}, True),
    ):
        bucket.client.put_object(Bucket="lake", Key=f"locked/{LOCK_FILE}", Body=json.dumps(owner).encode())
        if may_have_it:
            with BucketLock(folder):
                assert stored()["token"] != owner["token"]
        else:
            with pytest.raises(LockedError):
                BucketLock(folder).__enter__()
    version = folder.read(LOCK_FILE)
    assert version is not None
    assert version.age_seconds < 30, "by the store's clock"


class DeafStore:
    """A client of a store that takes no notice of conditions, or says that it knows none."""

    def __init__(self, client: Any, ignores: tuple[str, ...]) -> None:
        self._client, self._ignores = client, ignores

    def put_object(self, **options: Any) -> Any:
        return self._client.put_object(**{name: value for name, value in options.items() if name not in self._ignores})

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)


class PlainStore(DeafStore):
    def put_object(self, **options: Any) -> Any:
        from botocore.exceptions import ClientError

        answer = {"Error": {"Code": "NotImplemented"}, "ResponseMetadata": {"HTTPStatusCode": 501}}
        raise ClientError(answer, "PutObject")


@pytest.mark.parametrize("ignores", [("IfNoneMatch",), ("IfMatch",), ("IfMatch", "IfNoneMatch"), None])
def test_a_store_that_ignores_conditions_is_refused_before_work(
    cohort: BucketCohort, monkeypatch: pytest.MonkeyPatch, ignores: tuple[str, ...] | None
) -> None:
    store = PlainStore(cohort.bucket.client, ()) if ignores is None else DeafStore(cohort.bucket.client, ignores)
    monkeypatch.setattr(ConditionalBucket, "_client", store)
    with pytest.raises(UsageError, match="does not keep to the conditions"):
        cohort.run()
    assert cohort.segmented == []
    assert not cohort.bucket.keys("cohort")


def test_what_cannot_be_a_bucket_of_a_cohort_is_refused(cohort: BucketCohort, monkeypatch: pytest.MonkeyPatch) -> None:
    for out, said in (
        (cohort.bucket.uri("x").replace("lake", "gone"), "there is no bucket gone"),
        (cohort.bucket.uri("x").replace("s3://", "s3://key:secret@"), "holds credentials"),
        (f"file://{cohort.folder}/out", "only over S3's protocol"),
    ):
        text = (cohort.folder / "cohort.yaml").read_text()
        (cohort.folder / "other.yaml").write_text(text.replace(cohort.out, out))
        with pytest.raises(UsageError, match=said) as caught:
            raysegment.resegment(raysegment.ResegmentOptions(cohort=str(cohort.folder / "other.yaml")))
        assert "secret" not in str(caught.value)
    monkeypatch.setitem(__import__("sys").modules, "boto3", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'raysegment\[bucket\]'"):
        cohort.run()


def test_an_answer_that_was_lost_is_no_other_run(bucket: LocalBucket, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = ConditionalBucket(Place(bucket.uri("once")))
    bucket.client.put_object(Bucket="lake", Key="once/name", Body=b"mine")
    assert folder.write("name", b"mine", None) == folder.read("name").etag
    assert folder.write("name", b"other", None) is None
    assert folder.write("gone", b"other", '"0"') is None
