"""`raysegment train --folds`: a training for each fold, each patient segmented by the one that never saw it.

RUN/manifest.parquet   the splits that patients have without folds, and who is held out by which fold
RUN/folds/<k>/         an ordinary run, with a split of its own: train, val, and test for those held out
RUN/out_of_fold/       tables and summary over all patients (`out_of_fold`)
RUN/model/             with --ensemble: one bundle of all folds' networks
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from raysegment.archive.folds import Fold, describe_folds, make_folds
from raysegment.choices import changed_result
from raysegment.cluster.session import ray_session, run_interruptibly
from raysegment.cluster.training.folds import FoldRun, fit_folds
from raysegment.cluster.training.run import Training, resolve_precision
from raysegment.commands.out_of_fold import (
    OUT_OF_FOLD,
    HeldOut,
    find_held_out,
    publish_out_of_fold,
    segment_held_out,
)
from raysegment.commands.trained_run import TrainResult, build_result, check_precision, is_finished, without_credentials
from raysegment.commands.training_data import TrainingData
from raysegment.errors import EXIT_DONE, EXIT_SOME_SCANS_FAILED, UsageError
from raysegment.options import TrainOptions
from raysegment.pipeline.ensemble import join_bundles
from raysegment.pipeline.finish import without_nan
from raysegment.pipeline.training_set import Errors, hash_data
from raysegment.runs.closing import describe_summary
from raysegment.runs.console import Console
from raysegment.runs.identity import identify
from raysegment.runs.lock import RunLock
from raysegment.runs.record import keep_record, list_choices, read_record
from raysegment.runs.tracking import track_run
from raysegment.store.place import Place, report_full_disk
from raysegment.store.publish import read_rows

FOLDS = "folds"


@dataclass(frozen=True, kw_only=True)
class FoldsResult:
    """What a training with folds came to.

    Attributes:
        folder: The run.
        bundle: Folder of the ensemble; None without one.
        folds: The run of each fold.
        scores: Of the patients, each segmented by the fold that held it out: `dice_mean`, `dice_median`, `dice_ci95`
            (over patients), `scans`, `patients`, `scans_failed`. The rest is in out_of_fold/summary.json.
        scans_total: Scans of all folds.
        errors: Scans left out.
        already_done: There was nothing left to do.
        as_line: What there is, for a command that had nothing left to do.
    """

    folder: Path
    bundle: Path | None
    folds: tuple[TrainResult, ...]
    scores: Mapping[str, Any]
    scans_total: int
    errors: Errors = field(default_factory=dict)
    already_done: bool = False
    as_line: str = ""

    @property
    def exit_code(self) -> int:
        return EXIT_SOME_SCANS_FAILED if self.errors or self.scores["scans_failed"] else EXIT_DONE


def train_folds(options: TrainOptions, data: TrainingData, place: Place) -> FoldsResult:
    """Train each fold, and segment the patients that it held out.

    Each part goes on where it was stopped: a fold that is finished is not trained again, a scan that is segmented not
    segmented again.

    Args:
        options: The run's choices.
        data: What there is to learn from.
        place: The run.

    Raises:
        UsageError: Too few patients, or a folder that holds a different run.
        RunError: A fold failed, the others are kept; or what `train` raises.
    """
    folder, uri, choices = Path(place.root), options.mlflow_uri, list_choices(options)
    options = without_credentials(options)
    folds = make_folds(data.manifest, options.folds or 0, options.seed)
    check_base(data)
    record = identify("train", options, key="options", **data.facts).open(place)
    runs = [open_fold(fold, options, data, folder) for fold in folds]
    if is_all_finished(folder, record, runs, options):
        return build_folds_result(folder, record, runs, already_done=True)
    check_precision(options, record)
    place.make_writable()
    with (
        report_full_disk(place.root),
        RunLock(place),
        keep_record(place, record),
        Console(place, as_json=options.json) as console,
    ):
        data.tell(options, console)
        console.say(describe_folds(folds))
        with (
            track_run(uri, place, record, console, params=choices) as tracker,
            ray_session(options.address, options.temp_dir),
        ):
            training = Training(
                options=resolve_precision(options, record),
                labels=data.labels,
                manifest=data.manifest,
                place=place,
                record=record,
                console=console,
            )
            run_interruptibly(lambda: fit_folds(training, runs, tracker))
            measure_folds(training, runs, data)
    return build_folds_result(folder, record, runs)


def measure_folds(training: Training, runs: Sequence[FoldRun], data: TrainingData) -> None:
    """Segment what each fold held out, and join what the folds found, and their networks if asked for."""
    folder, record, console = training.folder, training.record, training.console
    held_out = [find_held_out(run) for run in runs]
    for fold in held_out:
        segment_held_out(fold, training.options, data)
    summary = publish_out_of_fold(folder, held_out)
    record |= {"scores": choose_scores(summary), "folds": summary["folds"]}
    # Once there is one, it follows the folds wherever more epochs bring them.
    if training.options.ensemble or record.get("ensemble"):
        record["ensemble"] = write_ensemble(training, held_out, summary)
    for line in describe_summary(summary, str(folder / OUT_OF_FOLD)):
        console.say(line)
    console.say(f"done: {len(runs)} folds, {describe_bundles(folder, record)}", **record["scores"])


def open_fold(fold: Fold, options: TrainOptions, data: TrainingData, folder: Path) -> FoldRun:
    """The run of a fold as its folder has it, or a new one.

    Raises:
        UsageError: The folder holds a different run.
    """
    place = Place(str(folder / FOLDS / str(fold.number)))
    # A seed of its own, so that networks of an ensemble differ in more than in their patients.
    own = replace(options, out=place.root, folds=None, ensemble=False, seed=options.seed + fold.number)
    facts = {**data.facts, "data_id": hash_data(fold.manifest, data.labels)}
    record = identify("train", own, key="options", **facts).open(place)
    finished = is_finished(Path(place.root), record, own)
    return FoldRun(fold=fold, options=own, place=place, record=record, is_finished=finished)


def check_base(data: TrainingData) -> None:
    """Refuse a base model that was trained on patients whom folds are to hold out.

    Raises:
        UsageError: Says how many they are.
    """
    used = data.manifest.filter(pc.is_in(data.manifest["split"], pa.array(["train", "val"])))
    patients = used["patient_id"].unique().to_pylist()
    if seen := sum(map(data.origin.has_seen, patients)):
        raise UsageError(
            f"--folds with --init-from: the base model was trained on {seen} of the {len(patients)} patients, so no "
            "fold would hold them out. Start from another base, or leave --folds out."
        )


def is_all_finished(folder: Path, record: Mapping[str, Any], runs: Sequence[FoldRun], options: TrainOptions) -> bool:
    """Whether all that is asked for is there."""
    if record.get("status") != "done" or not all(run.is_finished for run in runs):
        return False
    if options.ensemble and not (record.get("ensemble") and (folder / "model").is_dir()):
        return False
    return read_record(Place(str(folder / OUT_OF_FOLD))).get("status") == "done"


def write_ensemble(training: Training, folds: Sequence[HeldOut], summary: Mapping[str, Any]) -> str:
    """Write RUN/model, the networks of all folds; returns its model_id."""
    manifest = pa.concat_tables([fold.manifest for fold in folds])
    record, options = training.record, training.options
    patients = manifest["patient_id"].unique().to_pylist()
    facts = {
        "data": {"scans_left_out": len(record["errors"]), "data_id": record["data_id"]},
        "split": {"train": {"patients": len(patients), "scans": manifest.num_rows}},
        "scores": {"out_of_fold": without_nan(choose_scores(summary))},
        "provenance": {
            "versions": record["versions"],
            "seed": options.seed,
            "precision": options.precision,
            "options": changed_result(options),
        },
    }
    metrics, scans = (read_rows(Place(str(training.folder / OUT_OF_FOLD)), name) for name in ("metrics", "scans"))
    bundles = [fold.bundle for fold in folds]
    return join_bundles(training.folder / "model", bundles, patients, metrics, scans, facts).model_id


def choose_scores(summary: Mapping[str, Any]) -> dict[str, Any]:
    """What run.json says of the patients held out."""
    names = ("dice_mean", "dice_median", "dice_ci95", "lesion_slice_dice_mean", "scans", "patients", "scans_failed")
    return {name: summary[name] for name in names}


def describe_bundles(folder: Path, record: Mapping[str, Any]) -> str:
    """Which folder to give to `infer`."""
    if record.get("ensemble"):
        return f"the bundle of all of them in {folder / 'model'}"
    return f"a bundle in each of {folder / FOLDS}; `infer` takes one of them, --ensemble makes one of all"


def build_folds_result(
    folder: Path, record: Mapping[str, Any], runs: Sequence[FoldRun], already_done: bool = False
) -> FoldsResult:
    """The result as the records have it."""
    return FoldsResult(
        folder=folder,
        bundle=folder / "model" if record.get("ensemble") else None,
        folds=tuple(build_result(run.folder, run.record, already_done=run.is_finished) for run in runs),
        scores=record["scores"],
        scans_total=record["scans_total"],
        errors={scan_id: tuple(error) for scan_id, error in record["errors"].items()},
        already_done=already_done,
        as_line=f"{folder} is finished: {len(runs)} folds, {describe_bundles(folder, record)}",
    )
