"""Train, val and test, always by patient."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raysegment.archive.manifest import read_manifest
from raysegment.archive.names import show_name, stem_of
from raysegment.archive.pseudonymise import hide_word, is_pseudonymised, real_names
from raysegment.errors import UsageError

SPLITS = ("train", "val", "test")
MAX_EXAMPLES = 3


@dataclass(frozen=True)
class Drawing:
    """How splits are drawn where nothing gives them.

    Attributes:
        train_fraction: Share of patients to train on.
        val_fraction: Share of patients to validate on; what is left over is the test split.
        seed: Seed of the drawing.
    """

    train_fraction: float
    val_fraction: float
    seed: int


@dataclass(frozen=True)
class SplitResult:
    """A manifest with its split column filled.

    Attributes:
        table: The scans that have a split.
        found: All scans, as they were given.
        named: The names that the origin puts into each split.
        unknown: Those of them that fit no scan, in the origin's order.
        left_out: Patients of the manifest that the split does not name, sorted; their scans are not in the table.
        origin: Where the split comes from, in words.
    """

    table: pa.Table
    found: pa.Table
    named: dict[str, tuple[str, ...]]
    unknown: tuple[str, ...]
    left_out: tuple[str, ...]
    origin: str


def assign_splits(
    table: pa.Table, *, split_file: str | None, run_manifest: str | None = None, drawing: Drawing | None = None
) -> SplitResult:
    """Give each scan its split; training and evaluation look for it in one order.

    First the split file, then the manifest of the model's own run, joined by patient, then the column `split` of the
    archive's manifest or its train, val and test folders, and at last the drawing. The first of these that there is
    decides alone.

    Args:
        table: A manifest.
        split_file: JSON `{"train": [name, …], "val": […], "test": […]}`; `test` may be missing. A name is a patient_id,
            a scan_id, or the file name of a scan_id without extension, and stands for the whole patient.
        run_manifest: Path of the manifest of the training run that made the model; None in training.
        drawing: Shares and seed; None where nothing may be drawn.

    Raises:
        UsageError: A patient is on two sides, a split is unknown, no name fits a scan, there are too few patients, or
            the splits are known from nowhere.
    """
    if split_file is not None:
        named, patients = read_split_file(split_file), _patients_by_name(table)
        if is_pseudonymised(table):
            known = real_names(table)
            named = {name if name in patients else known.get(name) or hide_word(name): named[name] for name in named}
        return _apply(table, named, patients, f"split file {split_file}")
    patients = {patient: {patient} for patient in pc.unique(table["patient_id"]).to_pylist()}
    if run_manifest is not None:
        origin = f"the model's own {run_manifest}"
        return _apply(table, _given_splits(read_manifest(run_manifest), origin), patients, origin)
    if table["split"].null_count < table.num_rows:
        origin = "train, val and test folders or the manifest's column"
        return _apply(table, _given_splits(table, "the archive"), patients, origin)
    if drawing is None:
        raise UsageError(
            "which scans are train, val and test is known from nowhere: there is no --split-file, MODEL is no training "
            "run with a manifest.parquet, and the scans have no split column or folders. Give one of them."
        )
    drawn = draw_splits(sorted(patients), drawing.train_fraction, drawing.val_fraction, drawing.seed)
    shares = f"{drawing.train_fraction:g} train, {drawing.val_fraction:g} val"
    return _apply(table, drawn, patients, f"drawn with seed {drawing.seed}: {shares}")


def require_split(result: SplitResult, split: str) -> pa.Table:
    """The scans of one split.

    Raises:
        UsageError: There is none; the message shows examples of what the split names and of what was found.
    """
    chosen = result.table.filter(pc.equal(result.table["split"], split))
    if not chosen.num_rows:
        raise UsageError(
            f"the {split} split holds no scan with a reference. {_describe_sides(result.found, result.named, split)} "
            f"The split comes from {result.origin}; mend it there, or give a --split-file."
        )
    return chosen


def choose_scans(
    manifest: pa.Table, *, split: str | None, split_file: str | None, run_manifest: str | None
) -> tuple[pa.Table, str | None]:
    """The scans to evaluate: those with a reference, of one split if asked for.

    Returns:
        The scans, and in words where the split comes from; None where none was asked for.

    Raises:
        UsageError: No scan has a reference, the split is known from nowhere, or it is empty.
    """
    has_reference = pa.array([any(files) for files in manifest["reference_files"].to_pylist()], pa.bool_())
    chosen = manifest.filter(has_reference)
    if chosen.num_rows == 0:
        raise UsageError(f"none of the {manifest.num_rows} scans has a reference; `raysegment infer` needs none.")
    if split is None:
        return chosen, None
    result = assign_splits(chosen, split_file=split_file, run_manifest=run_manifest)
    unknown = result.unknown if split_file is not None else ()
    told = f", of which {len(unknown)} names fit no scan ({_list(list(unknown))})" if unknown else ""
    return require_split(result, split), f"{result.origin}{told}"


def find_run_manifest(model: str) -> str | None:
    """The manifest of the training run that holds a model, if it is one.

    Args:
        model: Bundle, or the folder of a training run that holds one.
    """
    for folder in (Path(model), Path(model).parent):
        if (folder / "manifest.parquet").is_file() and (folder / "model").is_dir():
            return str(folder / "manifest.parquet")
    return None


def refuse_training_patients(scans: pa.Table, split: str, has_seen: Callable[[str], bool]) -> None:
    """Refuse to measure a model on patients that it was trained on as if it had never seen them.

    Args:
        scans: Those of the split.
        split: `val` or `test`.
        has_seen: Whether the model was trained on a patient.

    Raises:
        UsageError: Names how many they are and the first of them.
    """
    patients = sorted(pc.unique(scans["patient_id"]).to_pylist())
    seen = [patient for patient in patients if has_seen(patient)]
    if seen:
        raise UsageError(
            f"--split {split}: the model was trained on {len(seen)} of its {len(patients)} patients: {_list(seen)}. "
            "Give the split that it was trained with, or --allow-training-patients to measure them all the same."
        )


def read_split_file(path: str) -> dict[str, str]:
    """Split by name, as the file has it.

    Raises:
        UsageError: Not readable, another shape than expected, or a name in two lists.
    """
    expected = 'expected {"train": [name, …], "val": […], "test": […]}, where "test" may be missing'
    try:
        lists = json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsageError(f"--split-file {show_name(path)} does not exist.") from None
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(
            f"--split-file {show_name(path)} cannot be read ({type(error).__name__}); {expected}."
        ) from error
    if not isinstance(lists, dict) or not {"train", "val"} <= lists.keys() <= set(SPLITS):
        raise UsageError(f"--split-file {show_name(path)} has other keys; {expected}.")
    by_name: dict[str, str] = {}
    for split, names in lists.items():
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise UsageError(f"--split-file {show_name(path)}: {split!r} is no list of names; {expected}.")
        for name in names:
            _place(by_name, name, split, f"--split-file {show_name(path)}")
    return by_name


def draw_splits(patients: list[str], train_fraction: float, val_fraction: float, seed: int) -> dict[str, str]:
    """Draw the split of each patient; every split with a share above 0 gets at least one.

    Raises:
        UsageError: Fewer patients than splits.
    """
    shares = {"train": train_fraction, "val": val_fraction, "test": max(0.0, 1.0 - train_fraction - val_fraction)}
    wanted = [split for split, share in shares.items() if share > 1e-9]
    if len(patients) < len(wanted):
        raise UsageError(
            f"{len(patients)} patient(s) cannot be split into {', '.join(wanted)}: each needs at least one. "
            "Give --split-file, other fractions, or --patient-pattern if several patients share a folder."
        )
    counts = {split: max(1, round(shares[split] * len(patients))) for split in wanted}
    while (over := sum(counts.values()) - len(patients)) != 0:
        largest = max(counts, key=lambda split: counts[split])
        counts[largest] -= over if counts[largest] > over else counts[largest] - 1
    shuffled = np.random.default_rng(seed).permutation(len(patients))
    labels = [split for split in wanted for _ in range(counts[split])]
    return {patients[index]: split for index, split in zip(shuffled, labels, strict=True)}


def _given_splits(table: pa.Table, where: str) -> dict[str, str]:
    """Split by patient, as a manifest's column has it."""
    pairs = table.select(["patient_id", "split"]).group_by(["patient_id", "split"]).aggregate([])
    by_patient: dict[str, str] = {}
    for patient, split in zip(pairs["patient_id"].to_pylist(), pairs["split"].to_pylist(), strict=True):
        if split is None:
            continue
        if split not in SPLITS:
            raise UsageError(f"{where} has the unknown split {split!r}; expected one of {', '.join(SPLITS)}.")
        _place(by_patient, patient, split, where)
    return by_patient


def _patients_by_name(table: pa.Table) -> dict[str, set[str]]:
    """Whom a name may mean: a patient_id before a scan_id before a scan_id's file name without extension."""
    scan_ids, patients = table["scan_id"].to_pylist(), table["patient_id"].to_pylist()
    by_stem: dict[str, set[str]] = defaultdict(set)
    for scan_id, patient in zip(scan_ids, patients, strict=True):
        by_stem[stem_of(scan_id)].add(patient)
    by_scan = {scan_id: {patient} for scan_id, patient in zip(scan_ids, patients, strict=True)}
    return by_stem | by_scan | {patient: {patient} for patient in patients}


def _place(splits: dict[str, str], name: str, split: str, where: str) -> None:
    before = splits.setdefault(name, split)
    if before != split:
        raise UsageError(
            f"{where}: patient {show_name(name)} is in {before} and in {split}; a patient belongs to one side only."
        )


def _apply(table: pa.Table, by_name: dict[str, str], patients_by_name: dict[str, set[str]], origin: str) -> SplitResult:
    by_patient: dict[str, str] = {}
    unknown = []
    for name, split in by_name.items():
        meant = patients_by_name.get(name, set())
        if len(meant) > 1:
            raise UsageError(
                f"{origin}: {show_name(name)} fits scans of {len(meant)} patients, such as {_list(sorted(meant))}; "
                "name the patient or the whole scan_id."
            )
        unknown += [] if meant else [name]
        for patient in meant:
            _place(by_patient, patient, split, origin)
    named = {side: tuple(name for name, split in by_name.items() if split == side) for side in SPLITS}
    if by_name and not by_patient:
        raise UsageError(f"{origin}: none of its {len(by_name)} names fits a scan. {_describe_sides(table, named)}")
    patients = pc.unique(table["patient_id"])
    splits = pa.array([by_patient.get(patient) for patient in patients.to_pylist()], pa.string())
    column = pc.take(splits, pc.index_in(table["patient_id"], patients))
    filled = table.set_column(table.schema.get_field_index("split"), "split", column)
    left_out = sorted(patient for patient in patients.to_pylist() if patient not in by_patient)
    return SplitResult(
        filled.filter(pc.is_valid(filled["split"])), table, named, tuple(unknown), tuple(left_out), origin
    )


def _describe_sides(found: pa.Table, named: dict[str, tuple[str, ...]], split: str | None = None) -> str:
    """Examples of what the splits name and of what was found, so that a person sees how they differ."""
    names = [name for side, listed in named.items() if split in (None, side) for name in listed]
    first = found.slice(0, MAX_EXAMPLES).select(["patient_id", "scan_id"]).to_pylist()
    scans = ", ".join(f"{show_name(row['scan_id'])} of patient {show_name(row['patient_id'])}" for row in first)
    side = "It names" if split is None else f"For {split} it names"
    return f"{side} {_list(names) or 'nobody'}; there are {found.num_rows} scans with a reference, such as {scans}."


def _list(names: list[str]) -> str:
    shown = ", ".join(show_name(name) for name in names[:MAX_EXAMPLES])
    return f"{shown} and {len(names) - MAX_EXAMPLES} more" if len(names) > MAX_EXAMPLES else shown
