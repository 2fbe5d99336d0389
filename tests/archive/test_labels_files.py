"""Where labels come from: --labels, labels.yaml, dataset.json."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raysegment.archive.labels import (
    find_labels,
    locate_labels,
    match_labels,
    match_labels_if_known,
    parse_labels,
)
from raysegment.archive.manifest import read_manifest, write_manifest
from raysegment.errors import UsageError
from raysegment.scan import Labels

BRATS = Labels(("WT", "TC", "ET"), ((1, 2, 4), (1, 4), (4,)))
HIPPOCAMPUS = Labels(("Anterior", "Posterior"), ((1,), (2,)))


def labels_of(folder: Path, dataset: object) -> Labels:
    (folder / "dataset.json").write_text(json.dumps(dataset))
    return find_labels(str(folder), None, "lesion")


def labels_in(folder: Path, text: str) -> Labels:
    (folder / "labels.yaml").write_text(text)
    return find_labels(str(folder), None, "lesion")


def test_nothing_declared_is_one_label_of_the_name_that_was_given(tmp_path):
    assert locate_labels(str(tmp_path), None, "tumour") == (Labels(("tumour",)), "")


@pytest.mark.parametrize(
    "given_labels",
    [
        ("WT=1+2+4", "TC=1+4", "ET=4"),
        ("WT=1+2+4 TC=1+4 ET=4",),
        ("WT=1+2+4,TC=1+4, ET=4",),
        ("WT=1+2+4", "TC=1+4,ET=4"),
    ],
)
def test_labels_of_the_command_line_may_come_one_by_one_or_together(given_labels):
    assert parse_labels(given_labels) == BRATS


def test_a_label_given_alone_may_have_spaces_in_its_name():
    assert parse_labels(("whole tumour = 1 + 2", "core=1")).names == ("whole tumour", "core")


@pytest.mark.parametrize(
    "given_labels", [("whole tumour=1 + 2 enhancing core=1, 2nd=3",), ("2nd=3", "enhancing core=1")]
)
def test_names_with_blanks_may_stand_together(given_labels):
    labels = parse_labels(given_labels)
    assert set(labels.names) <= {"whole tumour", "enhancing core", "2nd"}
    assert len(labels) >= 2
    assert parse_labels(labels.as_typed) == parse_labels((" ".join(labels.as_typed),)) == labels


@pytest.mark.parametrize("text", ["WT", "WT=", "=1", "WT=1+", "WT=1-3", "WT=one", "WT=1.5", "1+2", "WT=-1", ","])
def test_nonsense_among_labels_is_named_with_what_was_expected(text):
    with pytest.raises(UsageError, match="expected NAME=VALUE" if text != "," else "needs a name"):
        parse_labels((text,))


def test_a_label_given_twice_is_refused():
    with pytest.raises(UsageError, match="names WT twice"):
        parse_labels(("WT=1", "WT=2"))


@given(st.lists(st.lists(st.integers(1, 65535), min_size=1, max_size=5), min_size=1, max_size=6))
def test_labels_come_back_as_they_were_typed(regions):
    labels = Labels(tuple(f"L{index}" for index in range(len(regions))), tuple(map(tuple, regions)))
    typed = [f"{name}={'+'.join(map(str, region))}" for name, region in zip(labels.names, labels.regions, strict=True)]
    assert parse_labels(tuple(typed)) == parse_labels((" ".join(typed),)) == labels


def test_labels_yaml_has_numbers_sums_lists_and_mappings(tmp_path):
    labels = labels_in(
        tmp_path,
        'background: 0\nWT: 1+2+4\nTC: [1, 4]\nET:\n  values: 4\n  colour: "#d62728"\n  code: "SCT:91772007"\n'
        "NO: {values: 7, colour: [0, 255, 1]}\n",
    )
    assert labels == Labels(
        ("WT", "TC", "ET", "NO"),
        ((1, 2, 4), (1, 4), (4,), (7,)),
        (None, None, (214, 39, 40), (0, 255, 1)),
        (None, None, "SCT:91772007", None),
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("WT: 1\nWT: 2\n", "line 2: label WT stands there twice"),
        ("WT: one\n", "line 1: label WT has the values 'one'"),
        ("WT: 1\nET: -4\n", "line 2: label ET has the values -4"),
        ("WT: true\n", "label WT has the values True"),
        ("WT: [0, 1]\n", r"label WT has the values \[0, 1\]"),
        ("WT: 70000\n", r"label WT has the values \[70000\]; expected 1 to 65535"),
        ("WT: {value: 1}\n", "label WT has the unknown key 'value'; known are values, colour, code"),
        ("WT: {colour: [1, 2, 3]}\n", "label WT has no values"),
        ("WT: {values: 1, colour: red}\n", "colour is 'red'"),
        ("WT:\n  values: 1\n  colour: #ff0000\n", "Put it into quotes"),
        ("WT: {values: 1, code: 7}\n", "code is 7; expected SCHEME:VALUE"),
        ("ignore: 3\n", "label ignore marks voxels that are to be ignored"),
        ("- WT\n", "holds no labels"),
        ("", "holds no labels"),
        ("background: 0\n", "names no label"),
        ("WT: [1\n", "cannot be read as YAML"),
        ("WT: &a [1]\nET: *a\n", "line 2: aliases such as .* are not read"),
        (f"WT: {'7' * 3000}\n", "label WT has the values"),
        (f"WT: 0x{'7' * 9000}\n", "a number of more than 20 digits"),
        (f"WT: '{'7' * 9000}'\n", "label WT has the values '777"),
        (f"WT: [{'7' * 3000}.5, [[0x{'7' * 9000}]]]\n", "label WT has the values"),
        (f"WT: {{values: 1, code: '{'7' * 9000}'}}\n", "code is '777"),
        (f"{'W' * 900}: x\n", "label WWW"),
        ("[1]: 2\n", "line 1: a name must be text"),
        ("WT: !!python/object/apply:os.getcwd []\n", "cannot be read as YAML"),
    ],
)
def test_what_is_wrong_in_labels_yaml_is_named_with_its_line(tmp_path, text, said):
    with pytest.raises(UsageError, match=said) as caught:
        labels_in(tmp_path, text)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    "declared",
    [
        {"0": "background", "1": "Anterior", "2": "Posterior"},
        {"background": 0, "Anterior": 1, "Posterior": 2},
        {"background": "0", "Posterior": "2", "Anterior": "1"},
        {"2": "Posterior", "1": "Anterior", "0": "background"},
        {"background": 0, "1": "Anterior", "Posterior": [2]},
    ],
)
def test_the_direction_of_labels_is_told_from_their_keys(tmp_path, declared):
    assert labels_of(tmp_path, {"labels": declared}) == HIPPOCAMPUS


def test_lists_of_values_are_regions_in_the_order_of_the_file(tmp_path):
    declared = {"background": 0, "WT": [1, 2, 4], "TC": [1, 4], "ET": 4}
    assert labels_of(tmp_path, {"labels": declared, "regions_class_order": [2, 1, 4]}) == BRATS
    with pytest.raises(UsageError, match="regions_class_order"):
        labels_of(tmp_path, {"labels": declared, "regions_class_order": [2, 1]})


def test_a_label_to_be_ignored_is_refused_by_name(tmp_path):
    with pytest.raises(UsageError, match="label ignore marks voxels"):
        labels_of(tmp_path, {"labels": {"background": 0, "tumour": 1, "ignore": 2}})


@pytest.mark.parametrize(
    ("declared", "said"),
    [
        (["a", "b"], "labels is list"),
        ({"1": 2}, "labels has '1': 2"),
        ({"a": 1.5}, "labels has 'a': 1.5"),
        ({"a": None}, "labels has 'a': None"),
        ({"a": []}, r"labels has 'a': \[\]"),
        ({"a": True}, "labels has 'a': True"),
        ({"a": -1}, "expected whole numbers"),
        ({"1": "a", "2": "a"}, "label a stands there twice"),
        ({"0": "background"}, "nothing but the background"),
        ({"7" * 5000: "a"}, "labels has '777"),
        ({"7" * 5000: 1}, "labels has '777"),
        ({"a": "7" * 5000}, "labels has 'a': '777"),
        ({"a": [int("7" * 4000)]}, "labels has 'a': "),
        ({"a": [[1] * 9000]}, "labels has 'a': "),
        ({"a": [70000]}, "labels has 'a': "),
        ({"core, enhancing": 1}, "no comma"),
    ],
)
def test_what_is_wrong_in_dataset_json_is_named(tmp_path, declared, said):
    with pytest.raises(UsageError, match=said) as caught:
        labels_of(tmp_path, {"labels": declared})
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("other", [{}, {"name": "x"}, [1, 2], "text", None])
def test_a_dataset_json_without_labels_declares_none(tmp_path, other):
    assert labels_of(tmp_path, other) == Labels(("lesion",))


def test_a_dataset_json_that_is_no_json_is_refused(tmp_path):
    (tmp_path / "dataset.json").write_text("{")
    with pytest.raises(UsageError, match="cannot be read as JSON"):
        find_labels(str(tmp_path), None, "lesion")


def test_the_command_line_wins_over_labels_yaml_and_this_over_dataset_json(tmp_path):
    labels_of(tmp_path, {"labels": {"a": 1}})
    assert locate_labels(str(tmp_path), None, "x")[1] == "dataset.json"
    labels_in(tmp_path, "b: 1")
    assert locate_labels(str(tmp_path), None, "x") == (Labels(("b",), ((1,),)), "labels.yaml")
    assert locate_labels(str(tmp_path), ("c=1",), "x") == (Labels(("c",), ((1,),)), "--labels")


def test_beside_a_manifest_labels_are_looked_for_in_its_folder_and_in_its_source(tmp_path):
    archive = tmp_path / "archive"
    archive.mkdir()
    labels_in(archive, "a: 1")
    rows = {"scan_id": ["s"], "files": [["s.tif"]], "source": [str(archive)]}
    manifest = str(tmp_path / "m.parquet")
    write_manifest(pa.table(rows | {"reference_files": [[]], "channel_names": [[]]}), manifest)
    assert find_labels(manifest, None, "x", read_manifest(manifest)).names == ("a",)
    labels_in(tmp_path, "b: 1")
    assert find_labels(manifest, None, "x", read_manifest(manifest)).names == ("b",)


def test_a_bucket_has_labels_too(tmp_path):
    labels_in(tmp_path, "a: 1")
    assert find_labels(f"file://{tmp_path}", None, "x").names == ("a",)


MODEL = Labels(("WT", "ET"), ((1, 2, 4), (4,)))


def test_a_models_labels_have_the_values_of_the_archive_they_are_compared_with(tmp_path):
    assert match_labels(str(tmp_path), None, MODEL) == MODEL
    (tmp_path / "labels.yaml").write_text("ET: 3\nWT: 1+2+3\nTC: 1+3\n")
    found = match_labels(str(tmp_path), None, MODEL)
    assert (found.names, found.regions) == (("WT", "ET", "TC"), ((1, 2, 3), (3,), (1, 3)))
    assert found.as_typed == ("WT=1+2+3", "ET=3", "TC=1+3")
    assert parse_labels(found.as_typed) == found
    same = match_labels(str(tmp_path), ("ET=4", "WT=4+2+1"), MODEL)
    assert same is MODEL


def test_names_that_are_not_the_models_are_refused_with_both(tmp_path):
    with pytest.raises(UsageError, match="--labels has the labels WT, TC; the model has WT, ET"):
        match_labels(str(tmp_path), ("WT=1", "TC=2"), MODEL)
    (tmp_path / "labels.yaml").write_text("tumour: 1\n")
    with pytest.raises(UsageError, match=r"labels.yaml has the labels tumour; .* such as --labels WT=1\+2\+4"):
        match_labels(str(tmp_path), None, MODEL)


def test_an_undeclared_label_goes_on_beside_a_file_that_does_not_know_it(tmp_path):
    (tmp_path / "labels.yaml").write_text("tumour: 1\noedema: 2\n")
    assert match_labels(str(tmp_path), None, Labels()) == Labels()
    assert match_labels(str(tmp_path), None, Labels(("oedema",))).regions[0] == (2,)
    with pytest.raises(UsageError, match="the model has lesion"):
        match_labels(str(tmp_path), ("tumour=1",), Labels())


def test_inference_goes_on_beside_a_file_with_other_labels(tmp_path):
    (tmp_path / "labels.yaml").write_text("tumour: 1\n")
    assert match_labels_if_known(str(tmp_path), None, MODEL) == MODEL
    with pytest.raises(UsageError, match="--labels has the labels tumour"):
        match_labels_if_known(str(tmp_path), ("tumour=1",), MODEL)
    (tmp_path / "labels.yaml").write_text("ET: 3\nWT: 1+2+3\n")
    assert match_labels_if_known(str(tmp_path), None, MODEL).regions == ((1, 2, 3), (3,))
