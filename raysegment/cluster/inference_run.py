"""One start of `raysegment infer` or `evaluate`: the plan done, run.json kept true, the end told."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from raysegment.cluster.closing import describe_failures, describe_run
from raysegment.cluster.output import append_log, write_record
from raysegment.cluster.plan import Remaining
from raysegment.cluster.record import describe_choices, describe_machine
from raysegment.cluster.reporter import ScanReporter
from raysegment.cluster.rounds import Rounds
from raysegment.cluster.segmenter import WorkerSettings
from raysegment.cluster.session import ray_session
from raysegment.errors import EXIT_DONE, EXIT_SOME_SCANS_FAILED, InterruptedRunError, LockedError
from raysegment.model.bundle import Bundle
from raysegment.options import InferOptions, Postprocessing
from raysegment.pipeline.segment import SegmentSettings
from raysegment.store.lock import RunLock
from raysegment.store.parts import STAGING, Failure
from raysegment.store.place import Place
from raysegment.store.publish import drop_orphans, read_finished, take_out
from raysegment.store.schema import STATUS_OK


@dataclass(frozen=True, kw_only=True)
class InferResult:
    """What an inference run came to.

    Attributes:
        out: The output folder.
        scans_total: Scans that were asked for.
        scans_ok: Of these, segmented, now or before.
        scans_failed: Of these, failed, now or before.
        scans_now: Scans done by this start of the command; 0 where there was nothing left to do.
        slices: Slices segmented by this start.
        seconds_total: Wall-clock time of this start.
        seconds_startup: Until a network gave its first probabilities.
        slices_per_second: In steady state; None where too little was done to say.
        seconds: Time by stage, summed over workers and over what they do side by side: read, prepare, predict, finish,
            stage, publish.
        failed_by_type: Scans that failed now, by type of error.
        failures: The first of them.
        exit_code: 0, or 3 where scans failed.
    """

    out: str
    scans_total: int
    scans_ok: int
    scans_failed: int
    scans_now: int = 0
    slices: int = 0
    seconds_total: float = 0.0
    seconds_startup: float | None = None
    slices_per_second: float | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    failed_by_type: dict[str, int] = field(default_factory=dict)
    failures: tuple[Failure, ...] = ()
    exit_code: int = EXIT_DONE


class InferenceRun:
    """One start of the command: from what is to be done to published tables.

    Args:
        options: Every choice resolved.
        bundle: The model.
        place: The output folder.
        lock: Held on it.
        record: What run.json holds so far.
        remaining: What is to be done.
        manifest: Scans that are wanted.
        started: When the command began, in seconds since 1970.
    """

    def __init__(
        self,
        options: InferOptions,
        bundle: Bundle,
        place: Place,
        lock: RunLock,
        record: dict[str, Any],
        remaining: Remaining,
        manifest: pa.Table,
        started: float,
    ) -> None:
        self.options = options
        self.bundle = bundle
        self.place = place
        self.lock = lock
        self.record = record
        self.remaining = remaining
        self.manifest = manifest
        self.started = started
        self.reporter = ScanReporter(
            remaining.plan.num_rows, as_json=options.json, on_line=lambda line: append_log(place, line)
        )
        self.rounds: Rounds | None = None
        self._owns_folder = True

    def segment_all(self) -> None:
        """Do the plan, with Ray."""
        take_out(self.place, self.remaining.take_out)
        attempt = int(self.record["attempt"])
        staging = f"{STAGING}/{attempt:04d}-{uuid.uuid4().hex[:8]}"
        with self.reporter, ray_session(self.options.address, self.options.temp_dir):
            self.rounds = Rounds(
                options=self.options,
                bundle=self.bundle,
                worker=self._worker_settings(staging, attempt),
                place=self.place,
                lock=self.lock,
                reporter=self.reporter,
                num_ok_before=self.remaining.num_ok,
            )
            self.rounds.run(self.remaining.plan)

    def _worker_settings(self, staging: str, attempt: int) -> WorkerSettings:
        options, bundle = self.options, self.bundle
        spacing_mm = options.spacing_mm
        segment = SegmentSettings(
            preprocessing=bundle.preprocessing,
            postprocessing=Postprocessing(
                threshold=options.threshold,
                min_component_voxels=options.min_component_voxels,
                largest_component=options.largest_component,
                fill_holes=options.fill_holes,
            ),
            labels=bundle.labels,
            num_channels=bundle.num_channels,
            grid_factor=bundle.grid_factor,
            spacing_mm=None if spacing_mm is None else (spacing_mm[0], spacing_mm[1], spacing_mm[2]),
            foreground_box=options.foreground_box,
            sees_whole_slices=bundle.network.get("norm") == "group",
            batch_size=options.batch_size,
            needs_reference=self.record["command"] == "evaluate",
            model_id=bundle.model_id,
            options_id=str(self.record["options_id"]),
            attempt=attempt,
        )
        return WorkerSettings(
            segment=segment,
            precision=options.precision,
            threads=options.threads,
            location=self.place.location,
            staging=staging,
            part_bytes=options.part_mb * 2**20,
            part_seconds=options.part_seconds,
        )

    @contextmanager
    def recorded(self) -> Iterator[None]:
        """Keep run.json true from start to end, whatever happens, and leave no staged work behind."""
        self.record |= {"status": "running", "started": _now(), "ended": None, **describe_choices(self.options)}
        self.record |= describe_machine()
        self.record.pop("error", None)
        write_record(self.place, self.record)
        try:
            yield
            self.record["status"] = "done"
        except LockedError:
            # The folder is another run's now: its staged work and its record are not ours to touch.
            self._owns_folder = False
            raise
        except BaseException as error:
            is_interrupted = isinstance(error, InterruptedRunError | KeyboardInterrupt)
            self.record |= {"status": "interrupted" if is_interrupted else "failed"}
            self.record["error"] = f"{type(error).__name__}: {error}"
            raise
        finally:
            if self._owns_folder:
                self.place.delete(STAGING)
                drop_orphans(self.place)
                self.record |= {"ended": _now(), **self._numbers()}
                write_record(self.place, self.record)

    def conclude(self) -> InferResult:
        """Show how it ended."""
        numbers = self._numbers()
        rounds = self.rounds
        scans_now = rounds.num_published if rounds else 0
        failed, failures = (dict(rounds.failed), tuple(rounds.failures)) if rounds else ({}, ())
        for line in describe_run(numbers, scans_now) + describe_failures(failed, failures, self.options.out):
            self.reporter.say(line)
        return InferResult(
            out=self.options.out,
            scans_now=scans_now,
            failed_by_type=failed,
            failures=failures,
            exit_code=EXIT_SOME_SCANS_FAILED if numbers["scans_failed"] else EXIT_DONE,
            **numbers,
        )

    def _numbers(self) -> dict[str, Any]:
        num_ok, num_failed = count_finished(self.manifest, read_finished(self.place))
        first = self.rounds.first_prediction if self.rounds else None
        return {
            "scans_total": self.manifest.num_rows,
            "scans_ok": num_ok,
            "scans_failed": num_failed,
            "slices": self.reporter.num_slices,
            "seconds_total": time.time() - self.started,
            "seconds_startup": None if first is None else first - self.started,
            "slices_per_second": self.reporter.slices_per_second,
            "seconds": dict(self.rounds.seconds) if self.rounds else {},
        }


def count_finished(manifest: pa.Table, finished: pa.Table) -> tuple[int, int]:
    """How many scans of a manifest are in the tables: ok, and failed."""
    wanted = pc.is_in(finished["scan_id"], value_set=manifest["scan_id"].combine_chunks())
    status = finished["status"].filter(wanted)
    num_ok = int(pc.sum(pc.equal(status, STATUS_OK)).as_py() or 0)
    return num_ok, len(status) - num_ok


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
