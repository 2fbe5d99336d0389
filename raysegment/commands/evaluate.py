"""`raysegment evaluate`: segment scans that have a reference, then summarise how masks and references agree."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from raysegment.archive.channels import check_channels, order_channels
from raysegment.archive.index import find_scans, key_of
from raysegment.archive.labels import match_labels
from raysegment.archive.pseudonymise import hide_source
from raysegment.archive.pseudonyms import check_same_key
from raysegment.archive.split import choose_scans, find_run_manifest, refuse_training_patients
from raysegment.cluster.inference.run import InferResult, run_inference
from raysegment.cluster.session import check_temp_dir, interruptible
from raysegment.imaging.threshold import describe_thresholds, resolve_thresholds
from raysegment.model.bundle import load_bundle
from raysegment.model.patients import count_seen
from raysegment.options import EvaluateOptions
from raysegment.pipeline.gallery import draw_inference_figures
from raysegment.pipeline.score import summarise_metrics
from raysegment.runs.record import as_json
from raysegment.store.place import Place
from raysegment.store.publish import read_rows


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
def evaluate(options: EvaluateOptions) -> EvaluateResult:
    """Segment the scans that have a reference, and summarise how masks and references agree.

    Raises:
        UsageError: As `infer`; also where no scan has a reference, or the split is known from nowhere.
        RaysegmentError: As `infer`.
    """
    started = time.time()
    options = hide_source(options)
    bundle = load_bundle(options.model)
    options = replace(options, members=bundle.count_members(options.members))
    found = find_scans(options.source, options)
    drawn = match_labels(options.source, options.labels, bundle.labels, found)
    found = order_channels(found, bundle.channel_names)
    if options.split is not None:
        check_same_key(bundle.key, key_of(found), f"MODEL {options.model}")
    manifest, split_origin = choose_scans(
        found, split=options.split, split_file=options.split_file, run_manifest=find_run_manifest(options.model)
    )
    if options.split in ("val", "test") and not options.allow_training_patients:
        refuse_training_patients(manifest, options.split, bundle.has_seen)
    manifest = manifest.slice(0, options.limit) if options.limit else manifest
    check_temp_dir(options.address, options.temp_dir)
    check_channels(manifest, bundle.num_channels)
    inference = run_inference(options, bundle, drawn, manifest, found, command="evaluate", started=started)
    place = Place(options.out)
    thresholds = resolve_thresholds(options.threshold, bundle.labels, bundle.threshold)
    summary = summarise_metrics(
        read_metrics(place, manifest),
        scans_failed=inference.scans_failed,
        threshold=describe_thresholds(thresholds, bundle.labels),
        training_patients=count_seen(bundle, manifest["patient_id"].to_pylist(), key_of(found)),
    )
    summary |= {"split": options.split, "split_origin": split_origin}
    place.write_bytes("summary.json", (json.dumps(as_json(summary), indent=2) + "\n").encode())
    figures = draw_inference_figures(Path(options.out), manifest, bundle.labels, drawn) if place.is_local else []
    return EvaluateResult(**vars(inference), summary=summary, figures=tuple(map(str, figures)))


def read_metrics(place: Place, manifest: pa.Table) -> pa.Table:
    """The metrics of the manifest's scans."""
    metrics = read_rows(place, "metrics")
    return metrics.filter(pc.is_in(metrics["scan_id"], value_set=manifest["scan_id"].combine_chunks()))
