"""`raysegment infer`: from an archive to three tables, on workers and nodes that may die."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from raysegment.archive.index import find_scans
from raysegment.archive.manifest import read_manifest
from raysegment.cluster.closing import describe_failures, describe_nothing_to_do, describe_run
from raysegment.cluster.output import append_log, check_identity, read_record, write_record
from raysegment.cluster.plan import Remaining, find_remaining
from raysegment.cluster.record import as_json, describe_choices, describe_machine
from raysegment.cluster.reporter import ScanReporter
from raysegment.cluster.rounds import Rounds
from raysegment.cluster.segmenter import WorkerSettings
from raysegment.cluster.session import ray_session, resolve_on_cluster
from raysegment.errors import EXIT_DONE, EXIT_SOME_SCANS_FAILED, InterruptedRunError
from raysegment.model.bundle import Bundle, load_bundle
from raysegment.model.predictor import resolve_precision
from raysegment.options import EvaluateOptions, InferOptions, Postprocessing, changed_result, hash_choices
from raysegment.pipeline.evaluate import choose_scans, count_known_patients, summarise_metrics
from raysegment.pipeline.illustrate import draw_inference_figures
from raysegment.pipeline.segment import SegmentSettings
from raysegment.store.lock import RunLock
from raysegment.store.parts import STAGING, Failure
from raysegment.store.place import Place
from raysegment.store.publish import drop_orphans, prepare_tables, read_finished, read_rows, take_out
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
        seconds_startup: Until the first scans were finished.
        slices_per_second: In steady state; None where too little was done to say.
        seconds: Time by stage, summed over workers: read, prepare, predict, finish, stage, publish.
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


@dataclass(frozen=True, kw_only=True)
class EvaluateResult(InferResult):
    """What an evaluation came to.

    Attributes:
        summary: What summary.json holds; NaN where it has null.
        figures: Pictures that were drawn.
    """

    summary: dict[str, Any] = field(default_factory=dict)
    figures: tuple[str, ...] = ()


def infer(options: InferOptions) -> InferResult:
    """Segment the scans of an archive that the output folder does not have yet.

    Raises:
        UsageError: Before Ray starts: wrong option, path or model, or a folder of another run.
        LockedError: Another live run owns the folder.
        DiskFullError: No space left; what is published stays valid.
        TooManyFailuresError: The first 50 finished scans all failed.
        ClusterError: The cluster cannot meet the request, or was lost.
        InterruptedRunError: Ctrl-C or SIGTERM; the same command resumes.
    """
    bundle = load_bundle(options.model)
    manifest = find_scans(options.source, patient_pattern=options.patient_pattern, fingerprint=options.fingerprint)
    return run_inference(options, bundle, manifest, command="infer")


def evaluate(options: EvaluateOptions) -> EvaluateResult:
    """Segment the scans that have a reference, and summarise how masks and references agree.

    Raises:
        UsageError: As `infer`; also where no scan has a reference, or the split is known from nowhere.
        RaysegmentError: As `infer`.
    """
    bundle = load_bundle(options.model)
    found = find_scans(options.source, patient_pattern=options.patient_pattern, fingerprint=options.fingerprint)
    manifest = choose_scans(
        found, split=options.split, split_file=options.split_file, run_manifest=_read_run_manifest(options.model)
    )
    inference = run_inference(options, bundle, manifest, command="evaluate")
    manifest = manifest.slice(0, options.limit) if options.limit else manifest
    place = Place(options.out)
    patients = count_known_patients(manifest["patient_id"].to_pylist(), bundle.has_seen)
    metrics = read_rows(place, "metrics")
    metrics = metrics.filter(pc.is_in(metrics["scan_id"], value_set=manifest["scan_id"].combine_chunks()))
    summary = summarise_metrics(
        metrics,
        scans_failed=inference.scans_failed,
        threshold=bundle.threshold if options.threshold is None else options.threshold,
        training_patients=patients,
    )
    place.write_bytes("summary.json", (json.dumps(as_json(summary), indent=2) + "\n").encode())
    figures = draw_inference_figures(Path(options.out), manifest) if place.is_local else []
    return EvaluateResult(**vars(inference), summary=summary, figures=tuple(map(str, figures)))


def run_inference(options: InferOptions, bundle: Bundle, manifest: pa.Table, *, command: str) -> InferResult:
    """Bring the tables of an output folder up to a manifest.

    Args:
        options: Choices of `infer` or `evaluate`.
        bundle: The model.
        manifest: Scans that are wanted.
        command: `infer`, or `evaluate`, which fails scans without a usable reference.
    """
    started = time.monotonic()
    with ray_session(options.address, options.temp_dir) if options.address else nullcontext():
        return _run_in_folder(resolve_options(options, bundle), bundle, manifest, command, started)


def _run_in_folder(
    options: InferOptions, bundle: Bundle, manifest: pa.Table, command: str, started: float
) -> InferResult:
    manifest = manifest.slice(0, options.limit) if options.limit else manifest
    place = Place(options.out)
    identity = describe_identity(options, bundle, command)
    check_identity(place, read_record(place), identity)
    place.make_folder()
    with RunLock(place) as lock:
        record = {**read_record(place), **identity}
        prepare_tables(place)
        remaining = find_remaining(manifest, read_finished(place), retry_failed=options.retry_failed)
        if remaining.plan.num_rows == 0 and record.get("status") == "done":
            reporter = ScanReporter(0, as_json=options.json)
            reporter.say(describe_nothing_to_do(manifest.num_rows, remaining.num_failed, options.out))
            return InferResult(
                out=options.out,
                scans_total=manifest.num_rows,
                scans_ok=remaining.num_ok,
                scans_failed=remaining.num_failed,
            )
        record |= {"attempt": int(record.get("attempt") or 0) + 1}
        run = _Run(options, bundle, place, lock, record, remaining, manifest)
        with run.recorded(started):
            if remaining.plan.num_rows:
                run.segment_all()
        return run.conclude(started)


def resolve_options(options: InferOptions, bundle: Bundle) -> InferOptions:
    """Fill what was left to the bundle or the hardware, so that it is the same on all nodes and in every resumption.

    Raises:
        UsageError: The batch size is of no use to the model.
    """
    stored = bundle.postprocessing
    chosen = {
        "threshold": bundle.threshold,
        "min_component_voxels": stored.min_component_voxels or 0,
        "largest_component": bool(stored.largest_component),
        "fill_holes": bool(stored.fill_holes),
    }
    given = {name: getattr(options, name) for name in chosen}
    filled = {name: chosen[name] if value is None else value for name, value in given.items()}
    resolve = resolve_on_cluster if options.address else resolve_precision
    return replace(options, precision=resolve(options.precision), **filled)  # type: ignore[arg-type]


def describe_identity(options: InferOptions, bundle: Bundle, command: str) -> dict[str, Any]:
    """What makes two runs the same run."""
    choices = changed_result(options)
    return {
        "command": command,
        "model_id": bundle.model_id,
        "options_id": hash_choices(choices),
        "result_options": choices,
    }


class _Run:
    """One start of the command: from what is to be done to published tables."""

    def __init__(
        self,
        options: InferOptions,
        bundle: Bundle,
        place: Place,
        lock: RunLock,
        record: dict[str, Any],
        remaining: Remaining,
        manifest: pa.Table,
    ) -> None:
        self.options = options
        self.bundle = bundle
        self.place = place
        self.lock = lock
        self.record = record
        self.remaining = remaining
        self.manifest = manifest
        self.reporter = ScanReporter(
            remaining.plan.num_rows, as_json=options.json, on_line=lambda line: append_log(place, line)
        )
        self.rounds: Rounds | None = None

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
            location=options.out,
            staging=staging,
            part_bytes=options.part_mb * 2**20,
            part_seconds=options.part_seconds,
        )

    @contextmanager
    def recorded(self, started: float) -> Iterator[None]:
        """Keep run.json true from start to end, whatever happens, and leave no staged work behind."""
        self.record |= {"status": "running", "started": _now(), "ended": None, **describe_choices(self.options)}
        self.record |= describe_machine()
        self.record.pop("error", None)
        write_record(self.place, self.record)
        try:
            yield
            self.record["status"] = "done"
        except BaseException as error:
            is_interrupted = isinstance(error, InterruptedRunError | KeyboardInterrupt)
            self.record |= {"status": "interrupted" if is_interrupted else "failed"}
            self.record["error"] = f"{type(error).__name__}: {error}"
            raise
        finally:
            self.place.delete(STAGING)
            drop_orphans(self.place)
            self.record |= {"ended": _now(), **self._numbers(started)}
            write_record(self.place, self.record)

    def conclude(self, started: float) -> InferResult:
        """Show how it ended."""
        numbers = self._numbers(started)
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

    def _numbers(self, started: float) -> dict[str, Any]:
        num_ok, num_failed = count_finished(self.manifest, read_finished(self.place))
        first = self.reporter.first_at
        return {
            "scans_total": self.manifest.num_rows,
            "scans_ok": num_ok,
            "scans_failed": num_failed,
            "slices": self.reporter.num_slices,
            "seconds_total": time.monotonic() - started,
            "seconds_startup": None if first is None else first - started,
            "slices_per_second": self.reporter.slices_per_second,
            "seconds": dict(self.rounds.seconds) if self.rounds else {},
        }


def _read_run_manifest(model: str) -> pa.Table | None:
    """The manifest of the training run that holds the model, if it is one."""
    for folder in (Path(model), Path(model).parent):
        if (folder / "manifest.parquet").is_file() and (folder / "model").is_dir():
            return read_manifest(str(folder / "manifest.parquet"))
    return None


def count_finished(manifest: pa.Table, finished: pa.Table) -> tuple[int, int]:
    """How many scans of a manifest are in the tables: ok, and failed."""
    wanted = pc.is_in(finished["scan_id"], value_set=manifest["scan_id"].combine_chunks())
    status = finished["status"].filter(wanted)
    num_ok = int(pc.sum(pc.equal(status, STATUS_OK)).as_py() or 0)
    return num_ok, len(status) - num_ok


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
