"""Folds for cross-validation, always by patient: each patient is held out once, by one of as many trainings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raysegment.errors import UsageError

VALIDATION_SHARE = 0.1
"""Share of a fold's own patients on which it chooses its epoch and its threshold; at least one patient."""

FOLD_COLUMN = "fold"
"""Of the manifest of a run with folds: the fold that holds the scan's patient out; null for those never touched."""


@dataclass(frozen=True)
class Fold:
    """One of the trainings.

    Attributes:
        number: Counted from 0.
        manifest: Scans of all patients that take part. The split of those held out is test.
    """

    number: int
    manifest: pa.Table

    @property
    def held_out(self) -> pa.Table:
        """Scans of the patients that this fold never sees."""
        return self.manifest.filter(pc.equal(self.manifest["split"], "test"))


def make_folds(table: pa.Table, num_folds: int, seed: int) -> list[Fold]:
    """Divide the patients of the train and val splits among folds; those of the test split are in none.

    Args:
        table: A manifest with its splits.
        num_folds: How many.
        seed: Who is held out by whom, and who is validated on, is a function of it and of the patient_ids alone.

    Raises:
        UsageError: Too few patients.
    """
    used = table.filter(pc.is_in(table["split"], pa.array(["train", "val"])))
    held_out = draw_folds(used["patient_id"].unique().to_pylist(), num_folds, seed)
    folds = []
    for number, names in enumerate(held_out):
        others = [patient for group in held_out if group is not names for patient in group]
        chosen = draw_validation(others, seed, number)
        splits = dict.fromkeys(others, "train") | dict.fromkeys(chosen, "val") | dict.fromkeys(names, "test")
        column = pa.array([splits[patient] for patient in used["patient_id"].to_pylist()], pa.string())
        folds.append(Fold(number, used.set_column(used.schema.get_field_index("split"), "split", column)))
    return folds


def draw_folds(patients: Sequence[str], num_folds: int, seed: int) -> list[list[str]]:
    """Deal patients to folds, so that their numbers differ by one at most.

    Returns:
        The patients that each fold holds out, sorted.

    Raises:
        UsageError: A fold would hold out nobody, or leave fewer than two patients: one to train on, one to validate on.
    """
    if num_folds > len(patients) or len(patients) - -(-len(patients) // num_folds) < 2:
        raise UsageError(
            f"--folds {num_folds} cannot divide {len(patients)} patient(s): each fold holds at least one out and needs "
            "two others, one to train and one to validate on. Give fewer folds, or more patients in the train and val "
            "splits."
        )
    names = sorted(patients)
    dealt = [names[position] for position in np.random.default_rng(seed).permutation(len(names))]
    return [sorted(dealt[number::num_folds]) for number in range(num_folds)]


def draw_validation(patients: Sequence[str], seed: int, fold: int) -> list[str]:
    """Those of a fold's own patients that it is not trained on: a tenth of them, at least one."""
    names = sorted(patients)
    count = max(1, round(VALIDATION_SHARE * len(names)))
    drawn = np.random.default_rng([seed, fold]).permutation(len(names))[:count]
    return sorted(names[position] for position in drawn)


def describe_folds(folds: Sequence[Fold]) -> str:
    """In one line, how many patients are held out, and how many a fold chooses its epoch and threshold on."""
    shown = {
        split: _show_range([len(select_patients(fold.manifest, split)) for fold in folds])
        for split in ("train", "val", "test")
    }
    return (
        f"{len(folds)} folds: each holds {shown['test']} patients out, trains on {shown['train']} others, and chooses "
        f"epoch and threshold on {shown['val']}"
    )


def select_patients(manifest: pa.Table, split: str) -> set[str]:
    """Patients of one split."""
    return set(manifest["patient_id"].filter(pc.equal(manifest["split"], split)).to_pylist())


def _show_range(counts: Sequence[int]) -> str:
    return str(counts[0]) if min(counts) == max(counts) else f"{min(counts)} to {max(counts)}"


def add_fold_column(table: pa.Table, folds: Sequence[Fold]) -> pa.Table:
    """A manifest that also says which fold holds each scan out."""
    number_of = {patient: fold.number for fold in folds for patient in fold.held_out["patient_id"].unique().to_pylist()}
    column = pa.array([number_of.get(patient) for patient in table["patient_id"].to_pylist()], pa.int32())
    return table.append_column(FOLD_COLUMN, column)


def mark_validated(table: pa.Table, folds: Sequence[Fold]) -> pa.Table:
    """The scans of all folds, with the split val where any fold validates on them, else train."""
    used = table.filter(pc.is_in(table["split"], pa.array(["train", "val"])))
    validated = set().union(*(select_patients(fold.manifest, "val") for fold in folds))
    column = ["val" if patient in validated else "train" for patient in used["patient_id"].to_pylist()]
    return used.set_column(used.schema.get_field_index("split"), "split", pa.array(column, pa.string()))
