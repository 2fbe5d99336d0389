from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raysegment.archive.manifest import to_table
from raysegment.archive.split import assign_splits, draw_splits
from raysegment.errors import UsageError
from raysegment.scan import ScanEntry

ENTRY = ScanEntry(scan_id="", patient_id="", source="/", reader="tiff", files=("x.tif",))


def table_of(*rows: tuple[str, str, str | None]):
    return to_table(replace(ENTRY, scan_id=scan, patient_id=patient, split=split) for scan, patient, split in rows)


def split_of(table, **changes):
    choices = {"split_file": None, "train_fraction": 0.9, "val_fraction": 0.05, "seed": 0} | changes
    return assign_splits(table, **choices)


@settings(deadline=None)
@given(
    num_patients=st.integers(3, 300),
    train=st.floats(0.05, 0.9),
    val=st.floats(0.01, 0.09),
    seed=st.integers(0, 1000),
)
def test_fractions_give_every_patient_one_side_and_every_side_a_patient(num_patients, train, val, seed):
    patients = [f"p{index}" for index in range(num_patients)]
    drawn = draw_splits(patients, train, val, seed)
    counts = Counter(drawn.values())
    assert set(drawn) == set(patients)
    assert set(counts) == {"train", "val", "test"}
    assert abs(counts["train"] - train * num_patients) <= 3
    assert drawn == draw_splits(patients, train, val, seed)


def test_ninety_five_five_of_a_hundred_patients():
    counts = Counter(draw_splits([str(index) for index in range(100)], 0.9, 0.05, 0).values())
    assert counts == {"train": 90, "val": 5, "test": 5}


def test_another_seed_draws_other_patients():
    patients = [str(index) for index in range(100)]
    assert draw_splits(patients, 0.5, 0.25, 0) != draw_splits(patients, 0.5, 0.25, 1)


def test_scans_of_one_patient_stay_together():
    rows = [(f"{patient}/{scan}", f"p{patient}", None) for patient in range(20) for scan in range(3)]
    result = split_of(table_of(*rows), train_fraction=0.5, val_fraction=0.25)
    by_patient = {}
    for row in result.table.to_pylist():
        by_patient.setdefault(row["patient_id"], set()).add(row["split"])
    assert all(len(splits) == 1 for splits in by_patient.values())
    assert result.table.num_rows == 60


def test_too_few_patients_are_refused():
    with pytest.raises(UsageError, match=r"1 patient.*train, val, test"):
        split_of(table_of(("a", "p", None)))


def test_no_test_split_is_drawn_where_the_fractions_leave_none():
    result = split_of(table_of(("a", "p", None), ("b", "q", None)), train_fraction=0.9, val_fraction=0.1)
    assert sorted(result.table["split"].to_pylist()) == ["train", "val"]


def test_a_split_file_comes_first_and_leaves_out_whom_it_does_not_name(tmp_path):
    file = tmp_path / "splits.json"
    file.write_text(json.dumps({"train": ["p"], "val": ["q", "not here"]}))
    table = table_of(("a", "p", "test"), ("b", "q", None), ("c", "r", "train"))
    result = split_of(table, split_file=str(file))
    assert dict(zip(result.table["scan_id"].to_pylist(), result.table["split"].to_pylist(), strict=True)) == {
        "a": "train",
        "b": "val",
    }
    assert result.left_out == ("r",)
    assert "split file" in result.origin


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[]",
        '{"train": ["p"]}',
        '{"train": ["p"], "val": "q"}',
        '{"train": [1], "val": []}',
        '{"train": [], "val": [], "x": []}',
    ],
)
def test_a_split_file_of_another_shape_is_refused(tmp_path, content):
    (tmp_path / "splits.json").write_text(content)
    with pytest.raises(UsageError, match=r"splits\.json.*expected \{"):
        split_of(table_of(("a", "p", None)), split_file=str(tmp_path / "splits.json"))


def test_a_patient_on_two_sides_is_refused(tmp_path):
    (tmp_path / "splits.json").write_text(json.dumps({"train": ["p"], "val": ["p"]}))
    with pytest.raises(UsageError, match="patient p is in train and in val"):
        split_of(table_of(("a", "p", None)), split_file=str(tmp_path / "splits.json"))
    with pytest.raises(UsageError, match="patient p is in"):
        split_of(table_of(("a", "p", "train"), ("b", "p", "val")))


def test_given_folders_come_before_fractions():
    result = split_of(table_of(("a", "p", "train"), ("b", "q", "val"), ("c", "r", None)))
    assert result.table["split"].to_pylist() == ["train", "val"]
    assert result.left_out == ("r",)


def test_an_unknown_split_in_the_manifest_is_refused():
    with pytest.raises(UsageError, match="'holdout' is unknown"):
        split_of(table_of(("a", "p", "holdout")))
