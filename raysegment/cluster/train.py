"""`raysegment train`: from an archive to a bundle, on Ray Train workers that may die."""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from raysegment.archive.index import find_scans, summarise
from raysegment.archive.split import SplitResult, assign_splits
from raysegment.cluster.hardware import wait_for_hardware
from raysegment.cluster.record import describe_choices, describe_machine, finish_record, open_record, write_record
from raysegment.cluster.session import ray_session, resolve_on_cluster, run_interruptibly
from raysegment.cluster.training_log import TrainingLog
from raysegment.errors import (
    EXIT_DONE,
    EXIT_SOME_SCANS_FAILED,
    RunError,
    TooManyFailuresError,
    UsageError,
)
from raysegment.options import TrainOptions, changed_result
from raysegment.pipeline.finish import count_inputs
from raysegment.pipeline.illustrate import draw_training_figures
from raysegment.pipeline.learn import Progress, find_checkpoints
from raysegment.store.lock import RunLock
from raysegment.store.place import Place, report_full_disk

MAX_BAD_SHARE = 0.1
"""Share of scans that may be unusable before the run gives up."""

Errors = dict[str, tuple[str, str]]
"""(type, message) of scans left out, by scan_id."""


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """What a training run came to.

    Attributes:
        folder: The run.
        bundle: Folder of the trained model.
        epochs: Epochs done.
        best_epoch: The epoch whose weights were kept, counted from 1.
        val_dice: Mean per-scan Dice of the bundle on the validation scans, at its threshold.
        threshold: The bundle's threshold.
        scans_total: Scans of the train and val splits.
        errors: Scans left out.
        already_done: There was nothing left to do.
    """

    folder: Path
    bundle: Path
    epochs: int
    best_epoch: int
    val_dice: float | None
    threshold: float
    scans_total: int
    errors: Errors = field(default_factory=dict)
    already_done: bool = False

    @property
    def exit_code(self) -> int:
        return EXIT_SOME_SCANS_FAILED if self.errors else EXIT_DONE


def train(options: TrainOptions) -> TrainResult:
    """Train a network and write its bundle; an unfinished run in the same folder goes on.

    Raises:
        UsageError: Wrong options, nothing to train on, or a folder that holds a different run.
        RunError: Too many bad scans, too many lost workers, a full disk, or a cluster that is too small.
    """
    folder = Path(options.out).absolute()
    found = find_scans(options.source, patient_pattern=options.patient_pattern)
    split = assign_splits(
        select_referenced(found, options.source),
        split_file=options.split_file,
        train_fraction=options.train_fraction,
        val_fraction=options.val_fraction,
        seed=options.seed,
    )
    check_splits(split.table)
    check_channels(options, most_common_channels(split.table))
    identity = {"options": changed_result(options), "data_id": hash_data(split.table)}
    record = open_record(folder, "train", identity)
    if record.get("status") == "done":
        return build_result(folder, record, already_done=True)
    check_precision(options, record)
    folder.mkdir(parents=True, exist_ok=True)
    log = TrainingLog(folder / "log.txt", as_json=options.json)
    with report_full_disk(str(folder)), RunLock(Place(str(folder))), finish_record(folder, record):
        log.say(describe_split(split, found), left_out=list(split.left_out))
        with ray_session(options.address, options.temp_dir):
            run_interruptibly(lambda: train_in_session(options, split.table, folder, record, log))
    return build_result(folder, record)


def train_in_session(
    options: TrainOptions, manifest: pa.Table, folder: Path, record: dict[str, Any], log: TrainingLog
) -> None:
    """Keep the scans, fit, write the bundle; what is learned on the way goes into the record."""
    from raysegment.cluster.samples import keep_scans
    from raysegment.cluster.workers import WorkerTask, finish_on_worker, fit_with_retries

    start = time.monotonic()
    options = replace(options, precision=record.get("precision") or resolve_on_cluster(options.precision))
    share = wait_for_hardware(options.workers, options)
    num_channels = most_common_channels(manifest)
    train_set, train_errors = keep_scans(select_split(manifest, "train"), options, num_channels)
    validation_set, validation_errors = keep_scans(select_split(manifest, "val"), options, num_channels)
    errors = train_errors | validation_errors
    write_run_manifest(manifest, errors, folder)
    if errors:
        log.say_errors(errors, folder / "manifest.parquet")
    check_errors(errors, manifest)
    num_channels = num_channels or int(validation_set.fetch(0).pixels.shape[-1])
    log.say(
        f"{len(train_set.has_lesion)} slices of {len(train_set.scan_ids)} scans to train on, "
        f"{len(validation_set.has_lesion)} of {len(validation_set.scan_ids)} to validate on, read in "
        f"{time.monotonic() - start:.1f} s; {share.num_workers} workers with {share.threads} threads each, "
        f"{options.precision}"
    )
    record |= {
        **describe_machine(),
        **describe_choices(options),
        "seed": options.seed,
        "precision": options.precision,
        "seconds_prepare": time.monotonic() - start,
        "scans_total": len(train_set.scan_ids) + len(validation_set.scan_ids) + len(errors),
        "scans_failed": len(errors),
        "errors": errors,
    }
    write_record(folder, record)
    task = WorkerTask(
        options=options,
        folder=str(folder),
        train=train_set,
        validation=validation_set,
        num_inputs=count_inputs(options, num_channels),
        threads=share.threads,
        mailbox=None,
    )
    done = find_checkpoints(folder / "checkpoints")
    if done:
        log.say(f"going on after {done[-1].name.replace('-', ' ')}")
    progress = fit_with_retries(task, share, log)
    scores = finish_on_worker(task, share, progress, describe_data(options, manifest, errors, num_channels, record))
    record |= {"scores": scores, "epochs": progress.epoch, "best_epoch": progress.best_epoch}
    log.say(describe_end(progress, scores, folder), **scores)
    draw_pictures(folder, log)


def select_referenced(found: pa.Table, source: str) -> pa.Table:
    """Scans that have a reference, to be divided among the splits.

    Raises:
        UsageError: There is none.
    """
    referenced = found.filter(pc.greater(pc.list_value_length(found["reference_files"]), 0))
    if not referenced.num_rows:
        raise UsageError(
            f"no scan in {source} has a reference; looked for `_mask` partners and masks/ beside images/ folders."
        )
    return referenced


def check_splits(manifest: pa.Table) -> None:
    """Refuse to train with nothing to train or to validate on.

    Raises:
        RunError: A split is empty.
    """
    for split in ("train", "val"):
        if not select_split(manifest, split).num_rows:
            raise RunError(f"the {split} split holds no scan with a reference; give a --split-file or more patients.")


def check_channels(options: TrainOptions, num_channels: int | None) -> None:
    """Refuse a choice of channels that most scans do not have.

    Raises:
        UsageError: Names the channels there are.
    """
    missing = [channel for channel in options.channels or () if not 0 <= channel < (num_channels or channel + 1)]
    if missing:
        raise UsageError(
            f"--channels {','.join(map(str, options.channels or ()))} asks for channel {missing[0]}; most scans in "
            f"{options.source} have {num_channels}, counted from 0."
        )


def check_precision(options: TrainOptions, record: dict[str, Any]) -> None:
    """Refuse to go on in another precision than the run began in; with `auto` it keeps its own.

    Raises:
        UsageError: Names both.
    """
    before = record.get("precision")
    if before is not None and options.precision not in ("auto", before):
        raise UsageError(
            f"--out {options.out} holds a run in {before}, --precision is {options.precision}. Give --precision auto "
            "or choose another --out."
        )


def select_split(manifest: pa.Table, split: str) -> pa.Table:
    """Scans of one split."""
    return manifest.filter(pc.equal(manifest["split"], split))


def check_errors(errors: Errors, manifest: pa.Table) -> None:
    """Give up where too many scans are bad, or a split has none left.

    Raises:
        RunError: Nothing left in a split.
        TooManyFailuresError: More than a tenth is bad.
    """
    splits = {split: select_split(manifest, split)["scan_id"].to_pylist() for split in ("train", "val")}
    for split, scan_ids in splits.items():
        if not set(scan_ids) - set(errors):
            raise RunError(f"the {split} split is empty: all of its {len(scan_ids)} scans are unusable.")
    total = sum(map(len, splits.values()))
    if len(errors) > MAX_BAD_SHARE * total:
        raise TooManyFailuresError(
            f"{len(errors)} of {total} scans are unusable, more than {MAX_BAD_SHARE:.0%}; see manifest.parquet."
        )


def most_common_channels(manifest: pa.Table) -> int | None:
    """Channels that most scans declare in their headers."""
    counts = pc.value_counts(pc.drop_null(manifest["channels"])).to_pylist()
    return int(max(counts, key=lambda item: item["counts"])["values"]) if counts else None


def write_run_manifest(manifest: pa.Table, errors: Errors, folder: Path) -> None:
    """The manifest with what became of each scan: `status` used, failed or unused, and its error."""
    scan_ids = manifest["scan_id"].to_pylist()
    status = [
        "failed" if scan_id in errors else "used" if split in ("train", "val") else "unused"
        for scan_id, split in zip(scan_ids, manifest["split"].to_pylist(), strict=True)
    ]
    nothing = (None, None)
    table = manifest.append_column("status", pa.array(status, pa.string()))
    for position, name in enumerate(("error_type", "error_message")):
        values = [errors.get(scan_id, nothing)[position] for scan_id in scan_ids]
        table = table.append_column(name, pa.array(values, pa.string()))
    partial = folder / ".manifest.parquet.partial"
    pq.write_table(table, partial)
    partial.replace(folder / "manifest.parquet")


def hash_data(manifest: pa.Table) -> str:
    """SHA-256 over scans, fingerprints and splits."""
    columns = (manifest[name].to_pylist() for name in ("scan_id", "fingerprint", "split"))
    lines = sorted("\0".join(map(str, row)) for row in zip(*columns, strict=True))
    return hashlib.sha256("\n".join(lines).encode("utf-8", "surrogateescape")).hexdigest()


def describe_data(
    options: TrainOptions, manifest: pa.Table, errors: Errors, num_channels: int, record: dict[str, Any]
) -> dict[str, Any]:
    """What the bundle says of the data it was trained on."""
    used = {split: select_split(manifest, split) for split in ("train", "val")}
    split = {
        name: {"patients": pc.count_distinct(table["patient_id"]).as_py(), "scans": table.num_rows}
        for name, table in used.items()
    }
    return {
        "num_channels": num_channels,
        "training_patients": sorted(set(used["train"]["patient_id"].to_pylist())),
        "data": {"scans_left_out": len(errors), "data_id": record["data_id"]},
        "split": split,
        "provenance": {"versions": record["versions"], "seed": options.seed},
    }


def describe_split(split: SplitResult, found: pa.Table) -> str:
    """What was found, and the split, in one line."""
    summary = summarise(found)
    parts = []
    for name in ("train", "val", "test"):
        chosen = select_split(split.table, name)
        parts.append(f"{name} {chosen.num_rows} scans of {pc.count_distinct(chosen['patient_id']).as_py()} patients")
    notes = [f"{summary.scans} scans found", f"{split.origin}: {', '.join(parts)}"]
    without = summary.scans - summary.with_reference - summary.with_partial_reference
    if without:
        notes.append(f"{without} scans without reference are not used")
    if summary.with_partial_reference:
        notes.append(f"{summary.with_partial_reference} scans lack the references of some slices, which count as clean")
    if summary.own_patients:
        notes.append(f"{summary.own_patients} scans count as their own patient; name patients with --patient-pattern")
    if split.left_out:
        notes.append(f"{len(split.left_out)} patients that the split does not name are left out")
    return "; ".join(notes)


def describe_end(progress: Progress, scores: dict[str, float], folder: Path) -> str:
    """The result in one line."""
    return (
        f"done: best epoch {progress.best_epoch} of {progress.epoch}, validation Dice {scores['val_dice']:.4f} at "
        f"threshold {scores['threshold']:.2f} ({scores['val_dice_at_half']:.4f} at 0.5); bundle in {folder / 'model'}"
    )


def draw_pictures(folder: Path, log: TrainingLog) -> None:
    """Draw the run's figures, in a Ray task: it loads the network, which the driver does not."""
    import ray

    try:
        drawn = ray.get(ray.remote(num_cpus=1, max_retries=3)(draw_training_figures).remote(folder))
    except ray.exceptions.RayError as error:
        log.say(f"the figures could not be drawn ({' '.join(str(error).split())[-200:]}); try `raysegment report`")
        return
    for path in drawn:
        log.say(f"drew {path}")


def build_result(folder: Path, record: dict[str, Any], already_done: bool = False) -> TrainResult:
    """The result as the record has it."""
    scores = record["scores"]
    return TrainResult(
        folder=folder,
        bundle=folder / "model",
        epochs=record["epochs"],
        best_epoch=record["best_epoch"],
        val_dice=scores["val_dice"],
        threshold=scores["threshold"],
        scans_total=record["scans_total"],
        errors={scan_id: tuple(error) for scan_id, error in record["errors"].items()},
        already_done=already_done,
    )
