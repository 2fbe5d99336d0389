from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raysegment.archive.manifest import to_table, write_manifest
from raysegment.archive.split import (
    Drawing,
    assign_splits,
    choose_scans,
    draw_splits,
    refuse_training_patients,
    require_split,
)
from raysegment.errors import UsageError
from raysegment.scan import ScanEntry

ENTRY = ScanEntry(scan_id="", patient_id="", source="/", reader="tiff", files=("x.tif",))


def table_of(*rows: tuple[str, str, str | None]):
    return to_table(replace(ENTRY, scan_id=scan, patient_id=patient, split=split) for scan, patient, split in rows)


def split_of(table, *, train_fraction=0.9, val_fraction=0.05, **origin):
    drawing = Drawing(train_fraction, val_fraction, seed=0)
    return assign_splits(table, **{"split_file": None, "drawing": drawing} | origin)


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
    assert (result.left_out, result.unknown) == (("r",), ("not here",))
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
    with pytest.raises(UsageError, match="unknown split 'holdout'"):
        split_of(table_of(("a", "p", "holdout")))


def write_lists(path, **lists):
    path.write_text(json.dumps({"train": [], "val": []} | lists))
    return str(path)


def test_the_order_is_file_then_own_run_then_column_then_drawing(tmp_path):
    run = str(tmp_path / "manifest.parquet")
    write_manifest(table_of(("x", "p", "val"), ("y", "q", "train")), run)
    split_file = write_lists(tmp_path / "splits.json", train=["p", "q"], val=["r"])
    given = table_of(("a", "p", "test"), ("b", "q", "test"), ("c", "r", "val"))
    bare = table_of(("a", "p", None), ("b", "q", None), ("c", "r", None))

    def splits(table, **origin):
        rows = split_of(table, **origin).table.to_pylist()
        return {row["patient_id"]: row["split"] for row in rows}

    assert splits(given, split_file=split_file, run_manifest=run) == {"p": "train", "q": "train", "r": "val"}
    assert splits(given, run_manifest=run) == {"p": "val", "q": "train"}
    assert splits(given) == {"p": "test", "q": "test", "r": "val"}
    assert sorted(splits(bare).values()) == ["test", "train", "val"]
    with pytest.raises(UsageError, match="known from nowhere"):
        split_of(bare, drawing=None)


def test_a_name_is_a_patient_before_a_scan_before_a_stem(tmp_path):
    table = table_of(("images/b.png", "a", None), ("c/a.png", "d", None), ("b", "e", None))
    split_file = write_lists(tmp_path / "splits.json", train=["a"], val=["b"])
    result = split_of(table, split_file=split_file)
    assert {row["patient_id"]: row["split"] for row in result.table.to_pylist()} == {"a": "train", "e": "val"}


def test_a_scans_name_stands_for_its_patient(tmp_path):
    table = table_of(("p/1", "p", None), ("p/2", "p", None), ("q/3", "q", None))
    result = split_of(table, split_file=write_lists(tmp_path / "splits.json", train=["2"], val=["q/3"]))
    assert result.table["split"].to_pylist() == ["train", "train", "val"]
    with pytest.raises(UsageError, match="patient p is in train and in val"):
        split_of(table, split_file=write_lists(tmp_path / "splits.json", train=["1"], val=["p/2"]))


def test_a_stem_that_several_patients_have_is_refused(tmp_path):
    table = table_of(("p/before", "p", None), ("q/before", "q", None))
    with pytest.raises(UsageError, match=r"before fits scans of 2 patients, such as p, q"):
        split_of(table, split_file=write_lists(tmp_path / "splits.json", train=["before"]))


def test_a_run_that_knows_none_of_the_patients_is_no_split(tmp_path):
    run = str(tmp_path / "manifest.parquet")
    write_manifest(table_of(("x", "other", "val")), run)
    with pytest.raises(UsageError, match=r"none of its 1 names fits a scan. It names other; .* a of patient p"):
        split_of(table_of(("a", "p", "test")), run_manifest=run)


def test_an_empty_split_shows_both_sides(tmp_path):
    names = [f"case{number}" for number in range(5)]
    result = split_of(table_of(("a", "p", None)), split_file=write_lists(tmp_path / "s.json", train=["p"], val=names))
    assert require_split(result, "train")["scan_id"].to_pylist() == ["a"]
    with pytest.raises(UsageError, match=r"For val it names case0, case1, case2 and 2 more; .* a of patient p"):
        require_split(result, "val")


def test_evaluation_chooses_a_split_of_the_scans_with_a_reference(tmp_path):
    entries = [replace(ENTRY, scan_id=name, patient_id=name, split="val") for name in "ab"]
    table = to_table([replace(entries[0], reference_files=("m.tif",)), entries[1]])
    for split, expected in ((None, None), ("val", "train, val and test folders or the manifest's column")):
        chosen, origin = choose_scans(table, split=split, split_file=None, run_manifest=None)
        assert (chosen["scan_id"].to_pylist(), origin) == (["a"], expected)


def test_training_patients_are_refused_with_their_number_and_the_first_of_them():
    table = table_of(*((f"s{number}", f"p{number}", "test") for number in range(6)))
    with pytest.raises(UsageError, match=r"--split test: .* trained on 4 of its 6 patients: p0, p1, p2 and 1 more"):
        refuse_training_patients(table, "test", lambda patient: patient < "p4")
    refuse_training_patients(table, "test", lambda patient: False)


PATIENTS = st.sampled_from("pqrstu")
SIDES = st.sampled_from(["train", "val", "test"])
ROWS = st.lists(
    st.tuples(st.sampled_from(["x", "y", "p", "q/x"]), PATIENTS, st.none() | SIDES), min_size=1, max_size=12
)
NAMES = st.sampled_from(["p", "q", "r", "x", "q/x", "p/x0", "x0", "x1", "nobody"])


@settings(deadline=None, max_examples=300)
@given(rows=ROWS, lists=st.none() | st.dictionaries(NAMES, SIDES), run=st.none() | st.dictionaries(PATIENTS, SIDES))
def test_no_patient_is_ever_on_two_sides_whatever_gives_the_split(tmp_path_factory, rows, lists, run):
    folder = tmp_path_factory.mktemp("split")
    table = table_of(*((f"{patient}/{name}{index}", patient, side) for index, (name, patient, side) in enumerate(rows)))
    origins = {"split_file": None}
    if lists is not None:
        by_side = {
            side: [name for name, listed in lists.items() if listed == side] for side in ("train", "val", "test")
        }
        origins["split_file"] = write_lists(folder / "splits.json", **by_side)
    if run is not None:
        write_manifest(
            table_of(*((patient, patient, side) for patient, side in run.items())), str(folder / "m.parquet")
        )
    try:
        trained = split_of(table, **origins)
        evaluated = split_of(table, **origins, run_manifest=str(folder / "m.parquet") if run is not None else None)
    except UsageError:
        return
    for result in (trained, evaluated):
        sides = result.table.group_by(["patient_id"]).aggregate([("split", "count_distinct")])
        assert set(sides["split_count_distinct"].to_pylist()) <= {1}
        assert set(result.table["patient_id"].to_pylist()).isdisjoint(result.left_out)
        assert set(result.table["patient_id"].to_pylist()) | set(result.left_out) == {row[1] for row in rows}
    if lists is not None:
        assert trained.table.equals(evaluated.table)
    elif run is not None:
        assert all(run[row["patient_id"]] == row["split"] for row in evaluated.table.to_pylist())
