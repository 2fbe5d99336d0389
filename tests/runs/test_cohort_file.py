"""Cohort files: what is wrong in one is said with its line and key, whatever its text."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from raysegment.errors import UsageError
from raysegment.runs.cohort_file import Cohort, read_cohort

GOOD = "name: lungs\nsource: scans.parquet\nmodel: model\nout: cohort\n"
KEYS = ["name", "source", "model", "out", "scans", "patients", "keep", "mass_vanish_percent", "change_dice", "where"]
CHOICES = ["threshold", "mirror", "labels", "spacing_mm", "batch_size", "precision", "channel", "patient-pattern"]

plain = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=8),
    st.dates(),
    st.sampled_from(["=", "in", "~nobody/x", "columns", "lesion=0.4", 10**400]),
)
nested = st.recursive(
    plain, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(plain, inner, max_size=3), max_leaves=6
)
files = st.dictionaries(
    st.sampled_from([*KEYS, "infer"]) | st.text(max_size=5),
    nested | st.dictionaries(st.sampled_from(CHOICES), nested, max_size=2),
    max_size=5,
)


def read(folder: Path, text: str | bytes) -> Cohort:
    path = folder / "cohort.yaml"
    path.write_bytes(text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text)
    return read_cohort(str(path))


def check_text(folder: Path, text: str | bytes) -> None:
    """A cohort whose choices fit each other, or one line that names the file."""
    said = ""
    try:
        cohort = read(folder, text)
    except UsageError as error:
        said = str(error)
    else:
        assert cohort.make_options(cohort.chosen.out).source == cohort.chosen.source
    assert not said or ("cohort.yaml" in said and "\n" not in said)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(max_size=60) | st.binary(max_size=60))
def test_any_text_gives_a_cohort_or_one_line_that_says_why_not(tmp_path: Path, text: str | bytes) -> None:
    check_text(tmp_path, text)
    check_text(tmp_path, GOOD.encode() + (text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass")))


@settings(max_examples=70, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(files)
def test_any_values_give_a_cohort_or_one_line_that_says_why_not(tmp_path: Path, content: dict) -> None:
    base = {"name": "n", "source": "s", "model": "m", "out": "o"}
    check_text(tmp_path, yaml.safe_dump(base | content, allow_unicode=True, sort_keys=False))
    check_text(tmp_path, yaml.safe_dump(base | {"infer": content}, sort_keys=False))


def mutate(text: str, places: list[tuple[int, str]]) -> str:
    for place, piece in places:
        at = place % (len(text) + 1)
        text = text[:at] + piece + text[at + 1 :]
    return text


PIECES = [
    "!!int ",
    "!!bool ",
    "!!timestamp ",
    "!!set ",
    "&a ",
    "*a ",
    "[",
    "]",
    "{",
    "}",
    ": ",
    "\n",
    "- ",
    '"\\0"',
    "<<: ",
]


@settings(max_examples=70, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.integers(0, 400), st.sampled_from(PIECES)), min_size=1, max_size=4))
def test_a_good_file_with_some_characters_changed_is_read_or_refused(tmp_path: Path, places) -> None:
    text = (
        GOOD
        + "where:\n  - [scanner, in, [Avanto, 3]]\n  - [day, '>=', 2026-01-03]\ninfer:\n  mirror: columns\nkeep: 3\n"
    )
    check_text(tmp_path, mutate(text, places))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("keep: !!bool abc", "line 5: 'abc' is no bool"),
        ("keep: !!int ''", "line 5: '' is no int"),
        ("where: [[day, '>', 2026-13-03]]", "line 5: '2026-13-03' is no timestamp"),
        ("mass_vanish_percent: " + 400 * "9", "line 5: mass_vanish_percent is a number of more than 18 digits"),
        ("infer: {spacing_mm: [1, 1, " + 400 * "9" + "]}", "line 5: infer: spacing_mm is a number of more than 18"),
        ("infer:\n  mirror: columns\n  mirrror: x", "line 7: unknown key 'mirrror' of infer; did you mean mirror"),
        ("infer:\n  mirror: columns\n  mirror: none", "line 7: mirror stands there twice"),
        ("infer: {part-mb: 3, part_mb: 4}", "line 5: part_mb of infer stands there twice"),
        ("where:\n  - [a, =, 1]\n  - [a, is, 1]", "line 7: where: 'is' is no operator"),
        ("where: [[dose, =, .nan]]", "line 5: where: nan is no value; expected text, a number, a date"),
        ("patients: []", r"line 5: patients is empty; give it a value \(patient_ids that are meant"),
        ("scans:", "line 5: scans has no value"),
        ("patients: [007]", r"line 5: patients is \(7,\); .* goes into quotes"),
        ('patients: ["a\\0b"]', "line 5: 'a.x00b' holds a character that no name can have"),
        ('patients: ["\\ud800"]', "line 5: .* holds a character that no name can have"),
        ("infer: {threshold: lesion=9}", "cohort.yaml: --threshold 'lesion=9' is no threshold"),
    ],
)
def test_what_is_wrong_is_named_with_its_line(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        read(tmp_path, GOOD + text + "\n")


def test_paths_and_names_that_can_be_none_are_refused(tmp_path: Path) -> None:
    for key, value, said in (
        ("source", "~nobody-of-this-name/scans", "no such user's folder"),
        ("source", "''", "line 2: source is empty"),
        ("name", '"\\e[31mred"', "name is .* expected text that can be printed"),
    ):
        with pytest.raises(UsageError, match=said):
            read(tmp_path, re.sub(rf"^{key}: .*$", lambda _, line=f"{key}: {value}": line, GOOD, flags=re.MULTILINE))
    with pytest.raises(UsageError, match="is no regular file"):
        read_cohort("/dev/zero")
    with pytest.raises(UsageError, match="No such file"):
        read_cohort(str(tmp_path / "none.yaml"))


def test_dates_may_stand_without_quotes(tmp_path: Path) -> None:
    cohort = read(tmp_path, GOOD + "where: [[day, '>=', 2026-01-03], [at, <, 2026-01-03T10:00:00Z]]\n")
    assert [condition.value for condition in cohort.where] == ["2026-01-03", "2026-01-03T10:00:00+00:00"]
