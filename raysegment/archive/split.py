"""Train, val and test, always by patient."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raysegment.archive.names import show_name
from raysegment.errors import UsageError

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class SplitResult:
    """A manifest with its split column filled.

    Attributes:
        table: The scans that have a split.
        left_out: Patients of the manifest that the split does not name, sorted; their scans are not in the table.
        origin: Where the split comes from, in words.
    """

    table: pa.Table
    left_out: tuple[str, ...]
    origin: str


def assign_splits(
    table: pa.Table, *, split_file: str | None, train_fraction: float, val_fraction: float, seed: int
) -> SplitResult:
    """Give each scan its split: by the split file, else by the manifest's column or folders, else by seeded fractions.

    Args:
        table: A manifest.
        split_file: JSON `{"train": [patient, …], "val": […], "test": […]}`; `test` may be missing.
        train_fraction: Share of patients to train on.
        val_fraction: Share of patients to validate on; what is left over is the test split.
        seed: Seed of the drawing.

    Raises:
        UsageError: A patient is on two sides, a split is unknown, or there are too few patients.
    """
    if split_file is not None:
        return _apply(table, read_split_file(split_file), f"split file {split_file}")
    if table["split"].null_count < table.num_rows:
        return _apply(table, _given_splits(table), "train, val and test folders or the manifest's column")
    patients = sorted(pc.unique(table["patient_id"]).to_pylist())
    drawn = draw_splits(patients, train_fraction, val_fraction, seed)
    origin = f"drawn with seed {seed}: {train_fraction:g} train, {val_fraction:g} val"
    return _apply(table, drawn, origin)


def choose_scans(
    manifest: pa.Table, *, split: str | None, split_file: str | None, run_manifest: pa.Table | None
) -> pa.Table:
    """The scans to evaluate: those with a reference, of one split if asked for.

    The split comes from the manifest's column, else from the split file, else from the training run's manifest.

    Raises:
        UsageError: No scan has a reference, the split is known from nowhere, or it is empty.
    """
    has_reference = pa.array([any(files) for files in manifest["reference_files"].to_pylist()], pa.bool_())
    chosen = manifest.filter(has_reference)
    if chosen.num_rows == 0:
        raise UsageError(f"none of the {manifest.num_rows} scans has a reference; `raysegment infer` needs none.")
    if split is None:
        return chosen
    chosen = chosen.filter(pc.equal(_find_splits(chosen, split_file, run_manifest), split))
    if chosen.num_rows == 0:
        raise UsageError(f"--split {split}: no scan with a reference is in it.")
    return chosen


def _find_splits(
    manifest: pa.Table, split_file: str | None, run_manifest: pa.Table | None
) -> pa.Array | pa.ChunkedArray:
    if manifest["split"].null_count < manifest.num_rows:
        return pc.fill_null(manifest["split"], "")
    if split_file is not None:
        by_patient = read_split_file(split_file)
    elif run_manifest is not None:
        pairs = zip(run_manifest["patient_id"].to_pylist(), run_manifest["split"].to_pylist(), strict=True)
        by_patient = {patient: split for patient, split in pairs if split}
    else:
        raise UsageError(
            "--split: the scans have no split column, there is no --split-file, and MODEL is no training run with a "
            "manifest.parquet. Give one of them."
        )
    return pa.array([by_patient.get(patient, "") for patient in manifest["patient_id"].to_pylist()], pa.string())


def read_split_file(path: str) -> dict[str, str]:
    """Split by patient.

    Raises:
        UsageError: Not readable, another shape than expected, or a patient in two lists.
    """
    expected = 'expected {"train": [patient, …], "val": […], "test": […]}, where "test" may be missing'
    try:
        lists = json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsageError(f"--split-file {show_name(path)} does not exist.") from None
    except (OSError, ValueError) as error:
        raise UsageError(
            f"--split-file {show_name(path)} cannot be read ({type(error).__name__}); {expected}."
        ) from error
    if not isinstance(lists, dict) or not {"train", "val"} <= lists.keys() <= set(SPLITS):
        raise UsageError(f"--split-file {show_name(path)} has other keys; {expected}.")
    by_patient: dict[str, str] = {}
    for split, patients in lists.items():
        if not isinstance(patients, list) or not all(isinstance(patient, str) for patient in patients):
            raise UsageError(f"--split-file {show_name(path)}: {split!r} is no list of names; {expected}.")
        for patient in patients:
            _place(by_patient, patient, split, f"--split-file {show_name(path)}")
    return by_patient


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


def _given_splits(table: pa.Table) -> dict[str, str]:
    pairs = table.select(["patient_id", "split"]).group_by(["patient_id", "split"]).aggregate([])
    by_patient: dict[str, str] = {}
    for patient, split in zip(pairs["patient_id"].to_pylist(), pairs["split"].to_pylist(), strict=True):
        if split is None:
            continue
        if split not in SPLITS:
            raise UsageError(f"the manifest's split {split!r} is unknown; expected one of {', '.join(SPLITS)}.")
        _place(by_patient, patient, split, "the archive")
    return by_patient


def _place(by_patient: dict[str, str], patient: str, split: str, where: str) -> None:
    before = by_patient.setdefault(patient, split)
    if before != split:
        raise UsageError(
            f"{where}: patient {show_name(patient)} is in {before} and in {split}; a patient belongs to one side only."
        )


def _apply(table: pa.Table, by_patient: dict[str, str], origin: str) -> SplitResult:
    patients = pc.unique(table["patient_id"])
    splits = pa.array([by_patient.get(patient) for patient in patients.to_pylist()], pa.string())
    column = pc.take(splits, pc.index_in(table["patient_id"], patients))
    table = table.set_column(table.schema.get_field_index("split"), "split", column)
    left_out = sorted(patient for patient in patients.to_pylist() if patient not in by_patient)
    return SplitResult(table.filter(pc.is_valid(table["split"])), tuple(left_out), origin)
