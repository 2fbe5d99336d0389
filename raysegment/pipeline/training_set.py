"""What a training run is trained on: scans with references, their splits, and what became of them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from raysegment.archive.channels import most_common_names
from raysegment.archive.fingerprint import pair_channels
from raysegment.archive.index import key_of, summarise
from raysegment.archive.manifest import entries
from raysegment.archive.names import show_name
from raysegment.archive.split import SplitResult, require_split
from raysegment.errors import RunError, TooManyFailuresError, UsageError
from raysegment.options import TrainOptions
from raysegment.pipeline.sides import names_side, split_side
from raysegment.scan import Labels

MAX_BAD_SHARE = 0.1
"""Share of scans that may be unusable before the run gives up."""

FEW_PATIENTS = 5
"""Patients to validate on below which a warning says so."""

Errors = dict[str, tuple[str, str]]
"""(type, message) of scans left out, by scan_id."""


def select_referenced(found: pa.Table, source: str) -> pa.Table:
    """Scans that have a reference, to be divided among the splits.

    Raises:
        UsageError: There is none.
    """
    referenced = found.filter(pc.greater(pc.list_value_length(found["reference_files"]), 0))
    if not referenced.num_rows:
        raise UsageError(
            f"no scan in {source} has a reference; looked for `_mask` partners, masks/ beside images/ folders, and "
            "references of known datasets. --reference names others."
        )
    return referenced


def check_splits(split: SplitResult) -> None:
    """Refuse to train with nothing to train or to validate on.

    Raises:
        UsageError: A split is empty.
    """
    for name in ("train", "val"):
        require_split(split, name)


def warn_of_few_patients(split: SplitResult) -> list[str]:
    """A line where so few patients validate that the best epoch and the threshold are chosen by chance."""
    patients = pc.count_distinct(select_split(split.table, "val")["patient_id"]).as_py()
    if patients >= FEW_PATIENTS:
        return []
    return [
        f"warning: only {patients} patient{'s' * (patients != 1)} to validate on; the best epoch and the "
        "threshold may be so by chance. --val-fraction or --split-file gives more."
    ]


def warn_of_base_patients(manifest: pa.Table, has_seen: Callable[[str], bool]) -> list[str]:
    """Lines where patients to validate or to test on are among those that the base model was trained on.

    Args:
        manifest: Scans of the new run with their splits.
        has_seen: Whether the base was trained on a patient.
    """
    results = {
        "validate": "their Dice flatters the model, and chooses epoch and threshold",
        "test": "`evaluate --split test` will refuse them",
    }
    warnings = []
    for (purpose, result), name in zip(results.items(), ("val", "test"), strict=True):
        patients = pc.unique(select_split(manifest, name)["patient_id"]).to_pylist()
        if seen := sum(map(has_seen, patients)):
            warnings.append(
                f"warning: the base model was trained on {seen} of the {len(patients)} patients to {purpose} on; "
                f"{result}. --split-file gives others."
            )
    return warnings


def check_lesions(has_lesion: npt.NDArray[np.bool_]) -> None:
    """Refuse to train where there is nothing to find.

    Args:
        has_lesion: bool, (slices to train on,).

    Raises:
        UsageError: No slice has a lesion.
    """
    if not has_lesion.any():
        raise UsageError(
            f"none of the {len(has_lesion)} slices to train on has a lesion; a network would learn to find nothing. "
            "Look at the references with `raysegment index`, or give another split."
        )


def warn_of_lesions(
    options: TrainOptions, to_train: npt.NDArray[np.bool_], to_validate: npt.NDArray[np.bool_]
) -> list[str]:
    """Lines where nothing is to be found in the slices to validate on, or something in all slices to train on.

    Args:
        options: The run's choices.
        to_train: Which slices to train on have a lesion, bool.
        to_validate: Which slices to validate on have one, bool.
    """
    warnings = []
    if options.lesion_fraction is not None and to_train.all():
        warnings.append(
            f"warning: --lesion-fraction {options.lesion_fraction} has no effect: all slices to train on have a lesion."
        )
    if not to_validate.any():
        warnings.append(
            f"warning: none of the {len(to_validate)} slices to validate on has a lesion; val_loss alone chooses "
            "the best epoch. --val-fraction or --split-file gives others."
        )
    return warnings


def warn_of_absent_labels(labels: Labels, to_train: frozenset[int], to_validate: frozenset[int]) -> list[str]:
    """A line for each of several labels that no slice to train on, or none to validate on, has.

    Args:
        labels: What is segmented.
        to_train: Values that the references to train on hold.
        to_validate: Values that those to validate on hold.
    """
    if len(labels) == 1:
        return []
    return [
        f"warning: label {name} ({'+'.join(map(str, region))}) is in no slice to {purpose} on; {result}."
        for name, region in zip(labels.names, labels.regions, strict=True)
        for purpose, values, result in (
            ("train", to_train, "the network learns to find none"),
            ("validate", to_validate, "its Dice is not known, and its threshold is not chosen by it"),
        )
        if not values.intersection(region)
    ]


def check_channels(options: TrainOptions, num_channels: int | None) -> None:
    """Refuse a choice of channels that most scans do not have.

    Raises:
        UsageError: Names the channels there are.
    """
    missing = [channel for channel in options.channels or () if not 0 <= channel < (num_channels or channel + 1)]
    if missing:
        raise UsageError(
            f"--channels {','.join(map(str, options.channels or ()))} asks for channel {missing[0]}; most scans in "
            f"{show_name(options.source)} have {num_channels}, counted from 0."
        )


def check_label(options: TrainOptions, labels: Labels) -> None:
    """Refuse a name for the one region where labels are declared, and have names.

    Raises:
        UsageError: Names both.
    """
    default = TrainOptions.__dataclass_fields__["label"].default
    if labels.are_declared and options.label not in (default, *labels.names):
        declared = "--labels" if options.labels else f"labels.yaml or dataset.json in {show_name(options.source)}"
        raise UsageError(
            f"--label {options.label} does nothing beside the labels {', '.join(labels.names)} of {declared}; leave it "
            "out."
        )


def check_flip(options: TrainOptions, labels: Labels) -> None:
    """Refuse to mirror slices where two labels are the left and the right one of the same thing.

    Raises:
        UsageError: Names both labels.
    """
    if not (options.augment and options.flip):
        return
    seen: dict[tuple[str, ...], tuple[str, str]] = {}
    for name in labels.names:
        thing, side = split_side(name)
        if not side:
            continue
        other, other_side = seen.setdefault(thing, (name, side))
        if other_side != side:
            raise UsageError(
                f"labels {other} and {name} are two sides: a slice flipped left to right would show one where it says "
                "the other. Give --no-flip."
            )


def warn_of_lone_sides(options: TrainOptions, labels: Labels) -> list[str]:
    """A line for each label of one side whose other side is no label, where slices are flipped left to right."""
    if not (options.augment and options.flip):
        return []
    return [
        f"warning: label {name} is of one side, and slices are flipped left to right: the network cannot learn which. "
        "Give --no-flip if the side matters."
        for name in labels.names
        if names_side(name)
    ]


def select_used(manifest: pa.Table, left_out: Errors) -> pa.Table:
    """Scans to train and validate on, without those that were left out when the run began."""
    is_used = pc.is_in(manifest["split"], pa.array(["train", "val"]))
    is_out = pc.is_in(manifest["scan_id"], pa.array(sorted(left_out), pa.string()))
    return manifest.filter(pc.and_(is_used, pc.invert(is_out)))


def check_same_scans(errors: Errors) -> None:
    """Refuse to go on where scans that the run was trained on can no longer be read.

    Raises:
        RunError: Names the first of them.
    """
    if errors:
        scan_id, (error_type, message) = next(iter(errors.items()))
        raise RunError(
            f"{len(errors)} scans that this run has been trained on cannot be read now, first {scan_id!r}: "
            f"{error_type}: {message} Make them readable and run the same command, or choose another --out."
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


def hash_data(manifest: pa.Table, labels: Labels) -> str:
    """SHA-256 over scans, fingerprints and splits, over which file is which channel, and over declared labels."""
    columns = (manifest[name].to_pylist() for name in ("scan_id", "fingerprint", "split"))
    lines = sorted("\0".join(map(str, row)) for row in zip(*columns, strict=True))
    # A fingerprint that a manifest brings may be its writer's own, which knows nothing of channels.
    several = manifest.filter(pc.greater(pc.list_value_length(manifest["channel_names"]), 1))
    lines += sorted(
        "\0".join(
            [
                entry.scan_id,
                *(part for pair in pair_channels(entry.reader, entry.channel_names, entry.files) for part in pair),
            ]
        )
        for entry in entries(several)
    )
    lines += [f"{name}\0{region}" for name, region in zip(labels.names, labels.regions, strict=False)]
    return hashlib.sha256("\n".join(lines).encode("utf-8", "surrogateescape")).hexdigest()


def keep_labels(labels: Labels, options: TrainOptions, manifest: pa.Table, record: Mapping[str, Any]) -> Labels:
    """The labels, or the one undeclared label that a run began with: earlier versions read no file that declares any.

    Args:
        labels: As they would be in a new run.
        options: The run's choices.
        manifest: Scans with their splits.
        record: What run.json of the folder holds.
    """
    one = Labels((options.label,))
    if options.labels is None and record.get("data_id") == hash_data(manifest, one):
        return one
    return labels


def describe_data(
    options: TrainOptions, manifest: pa.Table, errors: Errors, num_channels: int, record: dict[str, Any]
) -> dict[str, Any]:
    """What the bundle says of the data it was trained on."""
    used = {split: select_split(manifest, split) for split in ("train", "val")}
    split = {
        name: {"patients": pc.count_distinct(table["patient_id"]).as_py(), "scans": table.num_rows}
        for name, table in used.items()
    }
    names, key = most_common_names(manifest), key_of(manifest)
    return {
        "num_channels": num_channels,
        "training_patients": sorted(set(used["train"]["patient_id"].to_pylist())),
        "data": {"scans_left_out": len(errors), "data_id": record["data_id"]}
        | ({"channel_names": list(names)} if names else {}),
        "split": split,
        "provenance": {"versions": record["versions"], "seed": options.seed} | ({"key": key} if key else {}),
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
        count = "1 scan counts as its" if summary.own_patients == 1 else f"{summary.own_patients} scans count as their"
        notes.append(f"{count} own patient; see --patient-pattern and --scan-pattern")
    if split.left_out:
        notes.append(f"{len(split.left_out)} patients that the split does not name are left out")
    if split.unknown:
        notes.append(f"{len(split.unknown)} names of the split fit no scan, first {show_name(split.unknown[0])}")
    return "; ".join(notes)
