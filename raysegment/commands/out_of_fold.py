"""Each patient segmented by the fold that never saw it, as one folder of ordinary tables.

    RUN/folds/<k>/held_out/   tables of the patients that fold k holds out, written by inference as any others: they
                              resume, hold each scan once, and belong to one model_id
    RUN/out_of_fold/          the same parts, linked under names that begin with their fold, and summary.json

The folds' models differ, so no one model made `out_of_fold`: its rows keep the model_id and the options_id that they
have, and its run.json names those of each fold under `folds` and has as its own the hashes of these lists. So a reader
(`report`, `export`, `measure`, DuckDB) finds ordinary tables, `measure` says that the model is not at hand, and no
`infer` or `evaluate` can take the folder for its own. Masks come from thresholds that differ between folds; the common
`threshold` is therefore missing where they do.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raysegment.choices import hash_choices
from raysegment.cluster.inference.run import run_inference
from raysegment.cluster.training.folds import FoldRun
from raysegment.commands.training_data import TrainingData
from raysegment.errors import RunError
from raysegment.imaging.threshold import describe_thresholds
from raysegment.model.bundle import Bundle, load_bundle
from raysegment.options import EvaluateOptions, TrainOptions
from raysegment.pipeline.gallery import draw_inference_figures
from raysegment.pipeline.score import mean_of, summarise_metrics
from raysegment.runs.closing import count_finished
from raysegment.runs.lock import RunLock
from raysegment.runs.record import as_json, read_record, write_record
from raysegment.store.gather import gather_parts
from raysegment.store.place import Place
from raysegment.store.publish import read_finished, read_rows

HELD_OUT, OUT_OF_FOLD = "held_out", "out_of_fold"
"""Folders of a fold's tables, and of those of all folds."""

SAME_CHOICES = (
    *("scan_pattern", "patient_pattern", "channel", "reference", "spacing_mm", "resample_channels"),
    *("precision", "threads", "address", "temp_dir", "json"),
)
"""Choices in which inference follows the training."""


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """What a fold found in the patients that it never saw.

    Attributes:
        number: The fold.
        manifest: Their scans.
        bundle: Its model.
        place: The tables.
    """

    number: int
    manifest: pa.Table
    bundle: Bundle
    place: Place

    @property
    def is_whole(self) -> bool:
        """Whether this model segmented all of them."""
        record = read_record(self.place)
        if record.get("status") != "done" or record.get("model_id") != self.bundle.model_id:
            return False
        return sum(count_finished(self.manifest, read_finished(self.place))) == self.manifest.num_rows


def find_held_out(run: FoldRun) -> HeldOut:
    """What a trained fold has to segment, or has segmented.

    Raises:
        RunError: It was trained on a patient that it is to hold out.
    """
    bundle, manifest = load_bundle(run.folder), run.fold.held_out
    seen = [patient for patient in manifest["patient_id"].unique().to_pylist() if bundle.has_seen(patient)]
    if seen:
        raise RunError(
            f"fold {run.number}: {run.folder} was trained on {len(seen)} patients that it is to hold out, first "
            f"{seen[0]!r}. Delete that folder and run the same command."
        )
    return HeldOut(number=run.number, manifest=manifest, bundle=bundle, place=Place(str(run.folder / HELD_OUT)))


def segment_held_out(held_out: HeldOut, options: TrainOptions, data: TrainingData) -> None:
    """Segment what a fold held out; tables of an earlier model of it, trained for fewer epochs, are done anew.

    Args:
        held_out: What is to be segmented, and by which model.
        options: Choices of the training, precision resolved.
        data: What it found.

    Raises:
        RunError: Names the fold; what is segmented stays.
    """
    if held_out.is_whole:
        return
    if read_record(held_out.place).get("model_id") not in (None, held_out.bundle.model_id):
        held_out.place.delete("")
    chosen = {name: getattr(options, name) for name in SAME_CHOICES}
    infer_options = EvaluateOptions(
        model=str(held_out.bundle.path.parent),
        source=options.source,
        out=held_out.place.location,
        **chosen,
    )
    try:
        run_inference(
            infer_options,
            held_out.bundle,
            held_out.bundle.labels,
            held_out.manifest,
            data.found,
            command="evaluate",
            started=time.time(),
            about={"fold": held_out.number},
        )
    except RunError as error:
        raise type(error)(f"fold {held_out.number}: {error}") from error


def publish_out_of_fold(folder: Path, folds: Sequence[HeldOut]) -> dict[str, Any]:
    """Bring the tables of all folds together, and summarise them.

    Args:
        folder: The run.
        folds: What each fold found.

    Returns:
        What summary.json holds; NaN where it has null.
    """
    place = Place(str(folder / OUT_OF_FOLD))
    place.make_writable()
    with RunLock(place):
        records = [read_record(fold.place) for fold in folds]
        record = describe_together(place, folds, records)
        write_record(place, record | {"status": "running"})
        gather_parts(place, {f"fold-{fold.number}": fold.place for fold in folds})
        summary = summarise_folds(place, folds)
        place.write_bytes("summary.json", (json.dumps(as_json(summary), indent=2) + "\n").encode())
        labels = folds[0].bundle.labels
        draw_inference_figures(Path(place.root), pa.concat_tables(fold.manifest for fold in folds), labels, labels)
        write_record(place, record | {"status": "done"})
    return summary


def describe_together(place: Place, folds: Sequence[HeldOut], records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """run.json of the folds' tables: what is the same in all, their sums, and the identity of each."""
    each = [
        {"fold": fold.number, "model_id": record["model_id"], "options_id": record["options_id"]}
        for fold, record in zip(folds, records, strict=True)
    ]
    first = dict(records[0])
    choices = dict(first["result_options"])
    same = {name: value for name, value in choices.items() if all(_choice(record, name) == value for record in records)}
    sums = {
        name: sum(record.get(name) or 0 for record in records)
        for name in ("scans_total", "scans_ok", "scans_failed", "slices", "seconds_total")
    }
    return {
        **first,
        "model_id": hash_choices({"models": [item["model_id"] for item in each]}),
        "options_id": hash_choices({"options": [item["options_id"] for item in each]}),
        "result_options": same,
        "chosen": {**first["chosen"], "model": str(Path(place.root).parent), "out": place.root},
        "folds": each,
        **sums,
    }


def _choice(record: Mapping[str, Any], name: str) -> Any:
    return dict(record["result_options"]).get(name)


def summarise_folds(place: Place, folds: Sequence[HeldOut]) -> dict[str, Any]:
    """The summary of all scans together; under `folds` what each fold found, and at which threshold."""
    metrics = read_rows(place, "metrics")
    thresholds = [describe_thresholds(fold.bundle.threshold, fold.bundle.labels) for fold in folds]
    failed = sum(count_finished(fold.manifest, read_finished(fold.place))[1] for fold in folds)
    summary = summarise_metrics(
        metrics,
        scans_failed=failed,
        threshold=thresholds[0] if all(threshold == thresholds[0] for threshold in thresholds) else None,
        # `find_held_out` refuses a fold that saw one of them.
        training_patients=0,
    )
    each = [
        {
            "fold": fold.number,
            "patients": pc.count_distinct(fold.manifest["patient_id"]).as_py(),
            "scans": fold.manifest.num_rows,
            "dice_mean": mean_dice(metrics, fold.manifest["scan_id"]),
            "threshold": threshold,
            "model_id": fold.bundle.model_id,
        }
        for fold, threshold in zip(folds, thresholds, strict=True)
    ]
    return summary | {"folds": each}


def mean_dice(metrics: pa.Table, scan_ids: pa.ChunkedArray) -> float:
    """Mean Dice over scans; of several labels the mean of theirs. NaN where no scan has one."""
    chosen = metrics.filter(pc.is_in(metrics["scan_id"], value_set=scan_ids.combine_chunks()))
    of_labels = [chosen.filter(pc.equal(chosen["label"], name))["dice"] for name in chosen["label"].unique()]
    return mean_of(np.array([mean_of(dice.cast(pa.float64()).to_numpy()) for dice in of_labels]))
