"""One threshold for each label."""

from __future__ import annotations

import pytest

from raysegment.choices import changed_result, load_options
from raysegment.errors import UsageError
from raysegment.imaging.threshold import describe_thresholds, resolve_thresholds, show_thresholds
from raysegment.options import InferOptions
from raysegment.scan import Labels

ONE = Labels()
DISJOINT = Labels(("front", "back"), ((1,), (2,)))
NESTED = Labels(("WT", "TC", "ET"), ((1, 2, 4), (1, 4), (4,)))


def options_with(threshold: str | float | None) -> InferOptions:
    return load_options(InferOptions, {"model": "m", "source": "s", "out": "o", "threshold": threshold})


@pytest.mark.parametrize(
    ("given", "labels", "stored", "resolved"),
    [
        (None, ONE, 0.35, (0.35,)),
        (None, NESTED, (0.3, 0.4, 0.5), (0.3, 0.4, 0.5)),
        ("0.4", ONE, 0.5, (0.4,)),
        ("lesion=0.4", ONE, 0.5, (0.4,)),
        ("0.4", DISJOINT, (0.5, 0.5), (0.4, 0.4)),
        ("0.4", NESTED, (0.3, 0.4, 0.5), (0.4, 0.4, 0.4)),
        ("ET=0.6, WT=0", NESTED, (0.3, 0.4, 0.5), (0.0, 0.4, 0.6)),
    ],
)
def test_what_is_not_given_is_the_models_own(given, labels, stored, resolved):
    assert resolve_thresholds(options_with(given).threshold, labels, stored) == resolved


@pytest.mark.parametrize("text", ["0.4x", "WT=", "=0.4", "WT=2", "WT=0.4,WT=0.5", "WT=nan", "", "-0.1", "1.5"])
def test_nonsense_is_refused_before_a_model_is_read(text):
    with pytest.raises(UsageError, match="--threshold"):
        options_with(text)


def test_an_unknown_name_is_refused_with_the_known_ones():
    with pytest.raises(UsageError, match="names 'XX'; the model's labels are WT, TC, ET"):
        resolve_thresholds("WT=0.4,XX=0.5", NESTED, 0.5)


def test_labels_that_exclude_each_other_have_one_threshold():
    with pytest.raises(UsageError, match="front, back exclude each other"):
        resolve_thresholds("front=0.4", DISJOINT, 0.5)


def test_thresholds_are_shown_as_they_are_typed_and_described_as_json():
    assert show_thresholds((0.4,), ONE) == describe_thresholds((0.4,), ONE) == 0.4
    assert show_thresholds((0.4, 0.4), DISJOINT) == describe_thresholds((0.4, 0.4), DISJOINT) == 0.4
    shown = show_thresholds((0.35, 0.4, 1 / 3), NESTED)
    assert resolve_thresholds(shown, NESTED, 0.5) == (0.35, 0.4, 1 / 3)
    assert describe_thresholds((0.35, 0.4, 1), NESTED) == {"WT": 0.35, "TC": 0.4, "ET": 1.0}


def test_a_number_stands_in_the_choices_as_it_always_did():
    assert changed_result(options_with("0.4"))["threshold"] == 0.4
    assert changed_result(options_with(None))["threshold"] is None


def test_names_may_hold_blanks():
    labels = Labels(("whole tumor", "2 core"), ((1, 2), (2,)))
    assert resolve_thresholds(options_with("whole tumor=0.4").threshold, labels, 0.5) == (0.4, 0.5)
    assert resolve_thresholds(show_thresholds((0.4, 0.6), labels), labels, 0.5) == (0.4, 0.6)
