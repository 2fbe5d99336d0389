"""`raysegment infer`: from an archive to three tables, on workers and nodes that may die."""

from __future__ import annotations

import json
import time
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from raysegment.archive.index import find_scans
from raysegment.archive.manifest import read_manifest
from raysegment.choices import changed_result, hash_choices
from raysegment.cluster.closing import describe_nothing_to_do
from raysegment.cluster.inference_run import InferenceRun, InferResult
from raysegment.cluster.output import check_identity, read_record
from raysegment.cluster.plan import find_remaining
from raysegment.cluster.record import as_json
from raysegment.cluster.reporter import ScanReporter
from raysegment.cluster.session import interruptible, ray_session, resolve_on_cluster
from raysegment.model.bundle import Bundle, load_bundle
from raysegment.model.predictor import resolve_precision
from raysegment.options import EvaluateOptions, InferOptions
from raysegment.pipeline.evaluate import choose_scans, count_known_patients, summarise_metrics
from raysegment.pipeline.illustrate import draw_inference_figures
from raysegment.store.lock import RunLock
from raysegment.store.place import Place
from raysegment.store.publish import prepare_tables, read_finished, read_rows


@dataclass(frozen=True, kw_only=True)
class EvaluateResult(InferResult):
    """What an evaluation came to.

    Attributes:
        summary: What summary.json holds; NaN where it has null.
        figures: Pictures that were drawn.
    """

    summary: dict[str, Any] = field(default_factory=dict)
    figures: tuple[str, ...] = ()


@interruptible()
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
    started = time.time()
    bundle = load_bundle(options.model)
    manifest = find_scans(options.source, patient_pattern=options.patient_pattern, fingerprint=options.fingerprint)
    return run_inference(options, bundle, manifest, command="infer", started=started)


@interruptible()
def evaluate(options: EvaluateOptions) -> EvaluateResult:
    """Segment the scans that have a reference, and summarise how masks and references agree.

    Raises:
        UsageError: As `infer`; also where no scan has a reference, or the split is known from nowhere.
        RaysegmentError: As `infer`.
    """
    started = time.time()
    bundle = load_bundle(options.model)
    found = find_scans(options.source, patient_pattern=options.patient_pattern, fingerprint=options.fingerprint)
    manifest = choose_scans(
        found, split=options.split, split_file=options.split_file, run_manifest=_read_run_manifest(options.model)
    )
    inference = run_inference(options, bundle, manifest, command="evaluate", started=started)
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


def run_inference(
    options: InferOptions, bundle: Bundle, manifest: pa.Table, *, command: str, started: float
) -> InferResult:
    """Bring the tables of an output folder up to a manifest.

    Args:
        options: Choices of `infer` or `evaluate`.
        bundle: The model.
        manifest: Scans that are wanted.
        command: `infer`, or `evaluate`, which fails scans without a usable reference.
        started: When the command began, in seconds since 1970.
    """
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
        run = InferenceRun(options, bundle, place, lock, record, remaining, manifest, started)
        with run.recorded():
            if remaining.plan.num_rows:
                run.segment_all()
        return run.conclude()


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


def _read_run_manifest(model: str) -> pa.Table | None:
    """The manifest of the training run that holds the model, if it is one."""
    for folder in (Path(model), Path(model).parent):
        if (folder / "manifest.parquet").is_file() and (folder / "model").is_dir():
            return read_manifest(str(folder / "manifest.parquet"))
    return None
