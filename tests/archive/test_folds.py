"""Who is held out by which fold, and who is validated on."""

from __future__ import annotations

import random
from collections import Counter

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raysegment.archive.folds import add_fold_column, describe_folds, draw_folds, make_folds, mark_validated
from raysegment.errors import UsageError


def make_table(patients: list[str], splits: list[str], scans_each: list[int]) -> pa.Table:
    rows = [
        {"scan_id": f"{patient}/{number}", "patient_id": patient, "split": split}
        for patient, split, count in zip(patients, splits, scans_each, strict=True)
        for number in range(count)
    ]
    return pa.Table.from_pylist(rows)


@st.composite
def cases(draw: st.DrawFn) -> tuple[pa.Table, int, int]:
    """A manifest with its splits, a number of folds that it has patients for, a seed."""
    num_folds = draw(st.integers(2, 7))
    count = draw(st.integers(max(num_folds, 4 if num_folds == 2 else 3), 30))
    patients = draw(st.lists(st.text(min_size=1, max_size=4), min_size=count + 2, max_size=count + 2, unique=True))
    splits = ["test", "test", *draw(st.lists(st.sampled_from(["train", "val"]), min_size=count, max_size=count))]
    scans = draw(st.lists(st.integers(1, 3), min_size=count + 2, max_size=count + 2))
    return make_table(patients, splits, scans), num_folds, draw(st.integers(0, 2**32))


def patients_of(table: pa.Table, split: str) -> set[str]:
    return {row["patient_id"] for row in table.to_pylist() if row["split"] == split}


@given(cases())
def test_each_patient_is_held_out_once_and_never_seen_by_that_fold(case: tuple[pa.Table, int, int]) -> None:
    table, num_folds, seed = case
    folds = make_folds(table, num_folds, seed)
    taking_part = patients_of(table, "train") | patients_of(table, "val")
    assert Counter(name for fold in folds for name in patients_of(fold.manifest, "test")) == Counter(taking_part)
    for fold in folds:
        sides = [patients_of(fold.manifest, split) for split in ("train", "val", "test")]
        assert all(sides)
        assert sum(map(len, sides)) == len(set().union(*sides)) == len(taking_part)
        assert set(fold.manifest["scan_id"].to_pylist()) == {
            row["scan_id"] for row in table.to_pylist() if row["split"] != "test"
        }
        assert len(sides[1]) == max(1, round(0.1 * (len(sides[0]) + len(sides[1]))))
    sizes = [len(patients_of(fold.manifest, "test")) for fold in folds]
    assert max(sizes) - min(sizes) <= 1


@given(cases(), st.randoms(use_true_random=False))
def test_folds_depend_on_seed_and_patients_alone(case: tuple[pa.Table, int, int], chance: random.Random) -> None:
    table, num_folds, seed = case
    rows = table.to_pylist()
    chance.shuffle(rows)
    # Another order, one scan each, and the other side of the split between train and val.
    first = {row["patient_id"]: row for row in rows}
    swapped = {"train": "val", "val": "train", "test": "test"}
    again = pa.Table.from_pylist([row | {"split": swapped[row["split"]]} for row in first.values()])
    for one, other in zip(make_folds(table, num_folds, seed), make_folds(again, num_folds, seed), strict=True):
        for split in ("train", "val", "test"):
            assert patients_of(one.manifest, split) == patients_of(other.manifest, split)


def test_another_seed_divides_otherwise() -> None:
    names = [f"p{number}" for number in range(20)]
    assert draw_folds(names, 4, 0) == draw_folds(names[::-1], 4, 0)
    assert draw_folds(names, 4, 0) != draw_folds(names, 4, 1)


@pytest.mark.parametrize(("patients", "folds"), [(4, 5), (1, 2), (2, 2), (3, 2)])
def test_more_folds_than_there_are_patients_for_are_refused(patients: int, folds: int) -> None:
    with pytest.raises(UsageError, match=rf"--folds {folds} cannot divide {patients} patient"):
        draw_folds([f"p{number}" for number in range(patients)], folds, 0)


@pytest.mark.parametrize(("patients", "folds"), [(3, 3), (4, 2), (5, 5)])
def test_the_fewest_patients_do(patients: int, folds: int) -> None:
    assert len(draw_folds([f"p{number}" for number in range(patients)], folds, 0)) == folds


def test_the_manifest_of_all_folds_says_who_holds_out_whom_and_touches_no_test_patient() -> None:
    table = make_table([f"p{number}" for number in range(8)], ["train"] * 5 + ["val", "test", "test"], [2] * 8)
    folds = make_folds(table, 3, 0)
    told = add_fold_column(table, folds).to_pylist()
    for row in told:
        holders = [fold.number for fold in folds if row["scan_id"] in fold.held_out["scan_id"].to_pylist()]
        assert holders == ([] if row["split"] == "test" else [row["fold"]])
    assert [row["fold"] for row in told if row["split"] == "test"] == [None] * 4
    assert describe_folds(folds) == (
        "3 folds: each holds 2 patients out, trains on 3 others, and chooses epoch and threshold on 1"
    )


def test_a_scan_that_any_fold_validates_on_is_marked() -> None:
    table = make_table([f"p{number}" for number in range(8)], ["train"] * 6 + ["test"] * 2, [1] * 8)
    folds = make_folds(table, 2, 3)
    marked = mark_validated(table, folds)
    assert patients_of(marked, "val") == set().union(*(patients_of(fold.manifest, "val") for fold in folds))
    assert marked.num_rows == 6
