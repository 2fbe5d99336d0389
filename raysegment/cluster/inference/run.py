"""One start of `raysegment infer` or `evaluate`: the plan done, run.json kept true, the end told."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from raysegment.archive.index import key_of, warn_of_manifest
from raysegment.archive.pseudonyms import check_same_key
from raysegment.archive.renamed import find_renamed
from raysegment.choices import pick
from raysegment.cluster.inference.remaining import Remaining, find_remaining
from raysegment.cluster.inference.rounds import Rounds
from raysegment.cluster.inference.worker import WorkerSettings
from raysegment.cluster.session import find_precision, ray_session
from raysegment.errors import EXIT_DONE, LockedError
from raysegment.imaging.threshold import resolve_thresholds, show_thresholds
from raysegment.model.bundle import Bundle
from raysegment.options import InferOptions, Postprocessing
from raysegment.pipeline.doubt import check_rule, count_review
from raysegment.pipeline.settings import SegmentSettings, warn_of_averaging
from raysegment.pipeline.sides import check_mirror
from raysegment.runs.closing import (
    choose_exit_code,
    count_finished,
    describe_amended,
    describe_damage,
    describe_failures,
    describe_nothing_to_do,
    describe_renamed,
    describe_review,
    describe_run,
)
from raysegment.runs.console import Console
from raysegment.runs.identity import Identity, identify
from raysegment.runs.lock import RunLock
from raysegment.runs.progress import ScanProgress
from raysegment.runs.record import describe_choices, describe_machine, keep_record, read_record, write_record
from raysegment.scan import Labels, as_spacing
from raysegment.store.amend import amend_tables
from raysegment.store.parts import STAGING, Failure
from raysegment.store.place import Place
from raysegment.store.publish import drop_orphans, prepare_tables, read_finished, read_rows, take_out
from raysegment.store.schema import SCHEMA_VERSION
from raysegment.store.upgrade import bring_up_tables, read_version

REVIEW_COLUMNS = ["scan_id", "needs_review"]
RENAMED_COLUMNS = ["scan_id", "source", "fingerprint"]


@dataclass(frozen=True, kw_only=True)
class InferResult:
    """What an inference run came to.

    Attributes:
        out: The output folder.
        scans_total: Scans that were asked for.
        scans_ok: Of these, segmented, now or before.
        scans_failed: Of these, failed, now or before.
        scans_to_review: Of these, scans that a person should look at, by the bundle's rule.
        scans_review_unknown: Of these, other ones of which this is not known.
        scans_now: Scans done by this start of the command; 0 where there was nothing left to do.
        slices: Slices segmented by this start.
        seconds_total: Wall-clock time of this start.
        seconds_startup: Until a network gave its first probabilities.
        slices_per_second: In steady state; None where too little was done to say.
        seconds: Time by stage, summed over workers and over what they do side by side: read, prepare, predict, finish,
            stage, publish.
        failed_by_type: Scans that failed now, by type of error.
        failures: The first of them.
        exit_code: 0; 3 where scans failed, now or before; 1 where no scan is ok.
    """

    out: str
    scans_total: int
    scans_ok: int
    scans_failed: int
    scans_to_review: int = 0
    scans_review_unknown: int = 0
    scans_now: int = 0
    slices: int = 0
    seconds_total: float = 0.0
    seconds_startup: float | None = None
    slices_per_second: float | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    failed_by_type: dict[str, int] = field(default_factory=dict)
    failures: tuple[Failure, ...] = ()
    exit_code: int = EXIT_DONE


def run_inference(
    options: InferOptions,
    bundle: Bundle,
    drawn: Labels,
    manifest: pa.Table,
    found: pa.Table,
    *,
    command: str,
    started: float,
    about: Mapping[str, Any] | None = None,
) -> InferResult:
    """Bring the tables of an output folder up to a manifest.

    Args:
        options: Choices of `infer` or `evaluate`.
        bundle: The model.
        drawn: What the values of references mean, the model's labels first.
        manifest: Scans that are wanted.
        found: All scans that the source has.
        command: `infer`, or `evaluate`, which fails scans without a usable reference.
        started: When the command began, in seconds since 1970.
        about: Which of several runs of one command it is, such as {"fold": 2}.

    Raises:
        UsageError: Sides of the body would be mistaken for each other in mirrored slices; or the folder is another
            run's; or the bundle's rule for reviews is of a newer version, or it has fewer networks than asked for.
    """
    check_mirror(
        bundle.labels,
        options.mirror or bundle.postprocessing.mirror or "none",
        bundle.preprocessing.slice_axis,
        manifest["reader"].unique().to_pylist(),
    )
    check_rule(bundle.doubt)
    place = Place(options.out)
    record = read_record(place)
    with ray_session(options.address, options.temp_dir) if options.address else nullcontext():
        options = resolve_options(options, bundle, drawn, record)
        bundle = bundle.keep_members(options.members)
        return _run_in_folder(options, bundle, drawn, place, manifest, found, command, started, about)


def _run_in_folder(
    options: InferOptions,
    bundle: Bundle,
    drawn: Labels,
    place: Place,
    manifest: pa.Table,
    found: pa.Table,
    command: str,
    started: float,
    about: Mapping[str, Any] | None,
) -> InferResult:
    identity = identify_inference(options, bundle, command)
    identity.open(place)
    place.make_writable()
    with RunLock(place) as lock:
        record = identity.open(place) | {"options_id": identity.options_id}
        record["key"] = check_same_key(record.get("key"), key_of(found), f"--out {place.location}")
        version = read_version(place, record)
        console = Console(place, as_json=options.json, about=about)
        own = replace(bundle.postprocessing, threshold=show_thresholds(bundle.threshold, bundle.labels))
        for warning in warn_of_manifest(found) + warn_of_averaging(pick(Postprocessing, options), own):
            console.say(warning)
        if removed := prepare_tables(place):
            console.say(describe_damage(removed))
        if version < SCHEMA_VERSION:
            bring_up_tables(place)
            record["schema_version"] = SCHEMA_VERSION
            if record.get("status"):
                write_record(place, read_record(place) | {"schema_version": SCHEMA_VERSION})
        if not record.get("status"):
            identity.check_rows(place)
        if amended := amend_tables(place, manifest):
            console.say(describe_amended(**vars(amended)))
        renamed = find_renamed(options.source, manifest, found, read_rows(place, "scans", RENAMED_COLUMNS))
        if len(renamed):
            console.say(describe_renamed(renamed.to_pylist()))
            take_out(place, renamed)
        remaining = find_remaining(manifest, read_finished(place), retry_failed=options.retry_failed)
        run = InferenceRun(options, bundle, drawn, place, lock, record, remaining, manifest, started, about)
        if not run.is_idle:
            with run.recorded():
                run.segment_all()
        return run.conclude()


def identify_inference(options: InferOptions, bundle: Bundle, command: str) -> Identity:
    """What must be the same for a run to go on in a folder.

    Args:
        options: Every choice resolved.
        bundle: The model.
        command: `infer` or `evaluate`.
    """
    return identify(
        command,
        options,
        key="result_options",
        model_id=bundle.model_id,
        scan_pattern=options.scan_pattern,
        patient_pattern=options.patient_pattern,
        pseudonymise="on" if options.pseudonymise else None,
        channel=" ".join(options.channel or ()) or None,
        reference=" ".join(options.reference or ()) or None,
    )


def resolve_options(options: InferOptions, bundle: Bundle, drawn: Labels, record: Mapping[str, Any]) -> InferOptions:
    """Fill what was left to the bundle or the hardware, so that it is the same on all nodes and in every resumption.

    With `auto`, a folder goes on in the precision that it was begun in, on whatever hardware.

    Args:
        options: As chosen.
        bundle: The model.
        drawn: What the values of references mean.
        record: What run.json of the folder holds.

    Raises:
        UsageError: A label that is named is none of the model's; it has fewer networks than asked for.
    """
    stored = bundle.postprocessing
    chosen = {
        "min_component_voxels": stored.min_component_voxels or 0,
        "largest_component": bool(stored.largest_component),
        "fill_holes": bool(stored.fill_holes),
        "mirror": stored.mirror or "none",
        "smooth_slices": bool(stored.smooth_slices),
    }
    given = {name: getattr(options, name) for name in chosen}
    begun = dict(record.get("result_options") or {}).get("precision")
    precision = begun if options.precision == "auto" and begun else options.precision
    resolved: dict[str, Any] = {
        **{name: chosen[name] if value is None else value for name, value in given.items()},
        "precision": find_precision(precision, options.address, options.temp_dir),
        "threshold": show_thresholds(
            resolve_thresholds(options.threshold, bundle.labels, bundle.threshold), bundle.labels
        ),
        "labels": None if drawn == bundle.labels else drawn.as_typed,
        "members": bundle.count_members(options.members),
    }
    return replace(options, **resolved)


class InferenceRun:
    """One start of the command: from what is to be done to published tables.

    Args:
        options: Every choice resolved.
        bundle: The model.
        drawn: What the values of references mean.
        place: The output folder.
        lock: Held on it.
        record: What run.json holds so far.
        remaining: What is to be done.
        manifest: Scans that are wanted.
        started: When the command began, in seconds since 1970.
        about: Which of several runs of one command it is.
    """

    def __init__(
        self,
        options: InferOptions,
        bundle: Bundle,
        drawn: Labels,
        place: Place,
        lock: RunLock,
        record: dict[str, Any],
        remaining: Remaining,
        manifest: pa.Table,
        started: float,
        about: Mapping[str, Any] | None = None,
    ) -> None:
        self.options = options
        self.bundle = bundle
        self.drawn = drawn
        self.place = place
        self.lock = lock
        self.record = record
        self.remaining = remaining
        self.manifest = manifest
        self.started = started
        self.about = about
        self.console = Console(place, as_json=options.json, about=about)
        self.rounds: Rounds | None = None
        # Done, and nothing has come since: record and log are left as they are.
        self.is_idle = remaining.plan.num_rows == 0 and record.get("status") == "done"

    def segment_all(self) -> None:
        """Do the plan, with Ray; nothing where it is empty."""
        if not self.remaining.plan.num_rows:
            return
        take_out(self.place, self.remaining.take_out)
        attempt = int(self.record["attempt"])
        staging = f"{STAGING}/{attempt:04d}-{uuid.uuid4().hex[:8]}"
        worker = self._worker_settings(staging, attempt)
        with self.console, ray_session(self.options.address, self.options.temp_dir):
            self.rounds = Rounds(
                options=self.options,
                bundle=self.bundle,
                worker=worker,
                place=self.place,
                lock=self.lock,
                console=self.console,
                progress=ScanProgress(self.console, self.remaining.plan.num_rows),
                num_ok_before=self.remaining.num_ok,
            )
            self.rounds.run(self.remaining.plan)

    def _worker_settings(self, staging: str, attempt: int) -> WorkerSettings:
        options, bundle = self.options, self.bundle
        segment = SegmentSettings(
            preprocessing=bundle.preprocessing,
            postprocessing=pick(Postprocessing, options),
            labels=bundle.labels,
            reference_labels=self.drawn,
            num_channels=bundle.num_channels,
            grid_factor=bundle.grid_factor,
            spacing_mm=as_spacing(options.spacing_mm),
            surface_tolerance_mm=options.surface_tolerance_mm,
            foreground_box=options.foreground_box,
            sees_whole_slices=bundle.sees_whole_slices,
            batch_size=options.batch_size,
            doubt=bundle.doubt,
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
        self.record |= {**describe_choices(self.options), **describe_machine(), "labels": self.bundle.labels.as_plain}
        self.record["channel_names"] = list(self.bundle.channel_names)
        try:
            with keep_record(self.place, self.record, measure=self._measure):
                yield
        except LockedError:
            # The folder is another run's now: its staged work is not ours to touch.
            raise
        except BaseException:
            self._clean()
            raise
        self._clean()

    def conclude(self) -> InferResult:
        """Show how it ended."""
        numbers = self._measure()
        rounds = self.rounds
        scans_now = rounds.num_published if rounds else 0
        failed, failures = (dict(rounds.failed), tuple(rounds.failures)) if rounds else ({}, ())
        if self.is_idle:
            console = Console(None, as_json=self.options.json, about=self.about)
            lines = [describe_nothing_to_do(numbers["scans_total"], numbers["scans_failed"], self.options.out)]
        else:
            console = self.console
            lines = describe_run(numbers, scans_now) + describe_review(numbers, self.options.out)
            lines += describe_failures(failed, failures, self.options.out)
        for line in lines:
            console.say(line)
        return InferResult(
            out=self.options.out,
            scans_now=scans_now,
            failed_by_type=failed,
            failures=failures,
            exit_code=choose_exit_code(numbers["scans_ok"], numbers["scans_failed"]),
            **numbers,
        )

    def _clean(self) -> None:
        self.place.delete(STAGING)
        drop_orphans(self.place)

    def _read_review(self) -> pa.Table:
        """What the tables say of reviews of the scans that are wanted."""
        metrics = read_rows(self.place, "metrics", REVIEW_COLUMNS)
        return metrics.filter(pc.is_in(metrics["scan_id"], value_set=self.manifest["scan_id"].combine_chunks()))

    def _measure(self) -> dict[str, Any]:
        num_ok, num_failed = count_finished(self.manifest, read_finished(self.place))
        first = self.rounds.first_prediction if self.rounds else None
        return {
            "scans_total": self.manifest.num_rows,
            "scans_ok": num_ok,
            "scans_failed": num_failed,
            **count_review(self._read_review()),
            "slices": self.rounds.num_slices if self.rounds else 0,
            "seconds_total": time.time() - self.started,
            "seconds_startup": None if first is None else first - self.started,
            "slices_per_second": self.rounds.progress.slices_per_second if self.rounds else None,
            "seconds": dict(self.rounds.seconds) if self.rounds else {},
        }
