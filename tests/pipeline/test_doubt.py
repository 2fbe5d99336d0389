"""Doubt without a reference: what a scan's rows say, and the rule by which a person looks at them."""

from __future__ import annotations

import json
import math
import re

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raysegment.errors import UsageError
from raysegment.imaging.doubt import compute_entropy, find_border
from raysegment.imaging.geometry import fit_geometry, restore_grid
from raysegment.model.doubt_card import show_doubt
from raysegment.options import Postprocessing, Preprocessing
from raysegment.pipeline.blocks import ReadScan
from raysegment.pipeline.doubt import (
    DEFAULT_RULE,
    MIN_LIMIT_SCANS,
    MIN_RANGE_SCANS,
    ReferenceSize,
    check_rule,
    count_review,
    describe_doubt,
    join_doubt,
    judge_doubt,
    measure_border_entropy,
    needs_review,
    take_limits,
)
from raysegment.pipeline.segment import ScanSegmenter
from raysegment.pipeline.settings import SegmentSettings
from raysegment.pipeline.slabs import Slabs, threshold_slabs
from raysegment.scan import Labels, Scan

LABELS = {
    "one": Labels(),
    "disjoint": Labels(("a", "b"), ((1,), (4,))),
    "nested": Labels(("a", "b"), ((1, 4), (4,))),
}
KNOWN = {
    "label": "lesion",
    "voxels": 100,
    "volume_ml": 2.0,
    "mask_is_empty": False,
    "mean_probability": 0.9,
    "border_entropy": 0.5,
    "share_near_threshold": 0.1,
    "mirror_dice": 0.95,
    "member_dice": 0.95,
}
REGRESSION = {
    "lesion": {
        "features": {"border_entropy": {"mean": 0.5, "sd": 0.1, "weight": -0.1}},
        "mean_dice": 0.8,
        "scans": 30,
        "patients": 30,
        "rank_correlation": 0.61,
        "mean_absolute_error": 0.05,
        "mean_absolute_error_of_the_mean": 0.1,
        "worst": 5,
        "opened": 10,
        "worst_met": 4,
        "review_below": 0.7,
    }
}


def size_of(voxels: int, voxel_mm3: float = 10.0, slice_shape: tuple[int, int] = (256, 256)) -> ReferenceSize:
    return ReferenceSize(voxels=(voxels,), voxel_mm3=voxel_mm3, slice_shape=slice_shape)


SIZES = [size_of(100 * (number + 1)) for number in range(MIN_RANGE_SCANS)]


def judged(doubt: dict | None = None, slice_shape: tuple[int, int] = (256, 256), **changes) -> dict:
    return judge_doubt({**KNOWN, **changes}, doubt, slice_shape)


@given(
    kind=st.sampled_from(sorted(LABELS)),
    slices=st.integers(1, 7),
    shape=st.tuples(st.integers(5, 30), st.integers(5, 30)),
    slab_bytes=st.sampled_from([1, 3000, 10**9]),
    seed=st.integers(0, 99),
)
@settings(max_examples=40, deadline=None)
def test_slabs_of_any_size_give_the_same_doubt(kind, slices, shape, slab_bytes, seed):
    labels, random = LABELS[kind], np.random.default_rng(seed)
    probability = random.random((len(labels), slices, 16, 16), np.float32) / len(labels)
    probability[:, random.random(slices) < 0.4] = 0
    geometry, thresholds = fit_geometry(*shape, 16), (0.45,) * len(labels)
    slabs = Slabs(probability, geometry, slab_bytes)
    raw = threshold_slabs(slabs, labels, thresholds)
    whole = Slabs(probability, geometry)
    assert raw.share_near_threshold == pytest.approx(
        threshold_slabs(whole, labels, thresholds).share_near_threshold, nan_ok=True
    )
    restored = np.stack([restore_grid(label, geometry) for label in probability])
    for position, found in enumerate(measure_border_entropy(slabs, labels, raw.mask)):
        border = find_border(labels.plane_of_mask(raw.mask, position))
        seen = restored if labels.exclude_each_other else restored[position : position + 1]
        expected = compute_entropy(seen[:, border]).mean() if border.any() else math.nan
        assert found == pytest.approx(expected, nan_ok=True)


def test_each_row_of_a_segmented_scan_tells_its_doubt():
    labels = Labels(("all", "core"), ((1, 4), (4,)))
    pixels = np.zeros((6, 32, 32, 2), np.float32)
    pixels[1:3, 8:16, 8:16, 0] = 1.0
    pixels[1, 8:16, 8:16, 0] = 0.55
    chosen = SegmentSettings(
        preprocessing=Preprocessing(image_size=32, normalization="scale"),
        postprocessing=Postprocessing(threshold=0.5),
        labels=labels,
        num_channels=2,
        grid_factor=4,
        foreground_box=False,
    )
    segmenter = ScanSegmenter(lambda batch: [batch[..., :2].astype(np.float32)], chosen)
    work = segmenter.prepare(ReadScan("a", "p", "/archive", "f", Scan(pixels)))
    segmenter.predict_alone(work)
    # Of the first label 60 voxels in both of two passes, of 100 and of 60; of the second none at all.
    work.agreement.mirror_counts = np.array([[60, 100, 60], [0, 0, 0]])
    first, second = segmenter.finish(work).metrics
    # One of two squares of 64 voxels is near the threshold: its 28 border voxels carry H(0.55), their 32 neighbours 0.
    binary = -(0.55 * math.log2(0.55) + 0.45 * math.log2(0.45))
    assert first["share_near_threshold"] == pytest.approx(0.5)
    assert first["border_entropy"] == pytest.approx(28 * binary / 120, rel=1e-5)
    assert (first["mirror_dice"], first["member_dice"], first["needs_review"]) == (0.75, None, True)
    assert (first["volume_in_training_range"], first["predicted_dice"]) == (None, None)
    # Of a label of which nothing was found, by a bundle that tells no range, nobody knows.
    assert math.isnan(second["border_entropy"])
    assert math.isnan(second["share_near_threshold"])
    assert math.isnan(second["mirror_dice"])
    assert second["needs_review"] is None


def test_ranges_are_those_of_the_training_references_in_millilitres():
    doubt = describe_doubt(Labels(), SIZES)
    assert doubt["volume_range_ml"] == {"lesion": [1.0, 10.0]}
    assert (doubt["volume_range_voxels"], doubt["volume_scans"]) == (None, MIN_RANGE_SCANS)
    found = [judged(doubt, volume_ml=volume)["volume_in_training_range"] for volume in (0.99, 1.0, 10.0, 10.01, 0.0)]
    assert found == [False, True, True, False, False]
    assert judged(doubt, volume_ml=math.nan)["volume_in_training_range"] is None


def test_without_spacing_voxels_are_compared_on_slices_of_one_size():
    doubt = describe_doubt(Labels(), [size_of(10 * number, math.nan) for number in range(MIN_RANGE_SCANS)])
    assert doubt["volume_range_voxels"] == {"lesion": [0, 10 * (MIN_RANGE_SCANS - 1)]}
    unknown = {"volume_ml": math.nan}
    assert judged(doubt, voxels=0, **unknown)["volume_in_training_range"] is True
    assert judged(doubt, voxels=91, **unknown)["volume_in_training_range"] is False
    assert judged(doubt, (512, 512), voxels=50, **unknown)["volume_in_training_range"] is None
    assert judged(doubt, voxels=50)["volume_in_training_range"] is None
    several = [size_of(10, math.nan), *[size_of(10, math.nan, (64, 64))] * MIN_RANGE_SCANS]
    assert describe_doubt(Labels(), several)["volume_range_voxels"] is None


def test_few_references_tell_no_range():
    doubt = describe_doubt(Labels(), SIZES[1:])
    assert (doubt["volume_range_ml"], doubt["volume_range_voxels"]) == (None, None)
    assert judged(doubt)["volume_in_training_range"] is None
    assert judged(doubt)["needs_review"] is False


def test_a_bundle_without_doubt_is_judged_by_what_is_known():
    assert judged()["needs_review"] is False
    assert judged(mirror_dice=None, member_dice=None)["needs_review"] is False
    assert judged(share_near_threshold=0.13)["needs_review"] is True
    nothing = dict.fromkeys(("mirror_dice", "member_dice"))
    assert judged(share_near_threshold=math.nan, **nothing)["needs_review"] is None
    assert judged(share_near_threshold=math.nan, mirror_dice=math.nan, member_dice=0.79)["needs_review"] is True


def test_a_rule_of_a_newer_version_is_refused():
    check_rule(None)
    check_rule(describe_doubt(Labels(), []))
    for condition in ("voxels_divides", "sorrow_above"):
        with pytest.raises(UsageError, match=condition):
            check_rule({"rule": {condition: 3}})


def test_the_rule_is_the_one_that_the_card_tells():
    doubt = join_doubt([describe_doubt(Labels(), SIZES)], REGRESSION)
    fine = judged(doubt, share_near_threshold=0.1)
    assert (fine["predicted_dice"], fine["needs_review"]) == (pytest.approx(0.8), False)
    told = re.findall(r"\(`(\w+)`\): (below|above|is) (\S+)", show_doubt(doubt))
    assert {f"{column}_{relation}" for column, relation, _ in told} == set(doubt["rule"])
    for column, relation, limit in told:
        if relation == "is":
            beyond, short = limit == "yes", limit != "yes"
        else:
            step = -1e-6 if relation == "below" else 1e-6
            beyond, short = float(limit) + step, float(limit) - step
        assert needs_review({**fine, column: beyond}, doubt["rule"]) is True
        assert needs_review({**fine, column: short}, doubt["rule"]) is False


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_one_condition_is_enough_and_what_is_unknown_counts_for_nothing(data):
    values = {
        "volume_in_training_range": st.sampled_from([True, False, None]),
        "share_near_threshold": st.sampled_from([0.0, 0.125, 0.13, 1.0, math.nan, None]),
        "mirror_dice": st.sampled_from([0.0, 0.89, 0.9, 1.0, math.nan, None]),
        "member_dice": st.sampled_from([0.0, 0.79, 0.8, 1.0, math.nan, None]),
    }
    row = {name: data.draw(strategy) for name, strategy in values.items()}
    known = {name: value for name, value in row.items() if value is not None and value == value}
    expected = (
        known.get("volume_in_training_range") is False
        or known.get("share_near_threshold", 0) > 0.125
        or known.get("mirror_dice", 1) < 0.9
        or known.get("member_dice", 1) < 0.8
    )
    assert needs_review({"label": "lesion", **row}, DEFAULT_RULE) is (expected if known else None)


def test_the_limit_of_voxels_near_the_threshold_comes_from_the_scans_validated_on():
    labels = Labels(names=("core", "rim"), regions=((1,), (2,)))
    doubt = describe_doubt(labels, [])
    assert take_limits(doubt, labels, None)["rule"] == DEFAULT_RULE
    shares = [number / 100 for number in range(20)]
    found = take_limits(doubt, labels, {"doubt": {"share_near_threshold_core": shares, "share_near_threshold_rim": []}})
    assert found["rule"] == {**DEFAULT_RULE, "share_near_threshold_above": {"core": 0.17, "rim": 0.125}}
    asked = [needs_review({"label": "core", "share_near_threshold": share}, found["rule"]) for share in shares]
    assert asked == [False] * 18 + [True] * 2
    assert needs_review({"label": "rim", "share_near_threshold": 0.13}, found["rule"]) is True
    few = take_limits(doubt, labels, {"doubt": {"share_near_threshold_core": shares[: MIN_LIMIT_SCANS - 1]}})
    assert few["rule"] == DEFAULT_RULE
    assert "0.17 for core, 0.125 for rim" in show_doubt(found)


def test_an_ensemble_takes_the_mean_of_the_limits_of_its_members():
    doubt = describe_doubt(Labels(), SIZES)
    members = [{**doubt, "rule": {**DEFAULT_RULE, "share_near_threshold_above": {"lesion": x}}} for x in (0.2, 0.4)]
    assert join_doubt(members, {})["rule"]["share_near_threshold_above"] == {"lesion": pytest.approx(0.3)}
    assert join_doubt([members[0], doubt], {})["rule"]["share_near_threshold_above"] == 0.125


def test_an_ensemble_has_the_ranges_of_all_its_trainings_and_a_limit_for_each_label():
    first = describe_doubt(Labels(), SIZES)
    second = describe_doubt(Labels(), [size_of(50), *SIZES[1:], size_of(700)])
    joined = join_doubt([first, second], REGRESSION)
    assert joined["volume_range_ml"] == {"lesion": [0.5, 10.0]}
    assert joined["volume_scans"] == MIN_RANGE_SCANS + 1
    assert joined["rule"]["predicted_dice_below"] == {"lesion": 0.7}
    assert judged(joined, border_entropy=0.8)["predicted_dice"] == pytest.approx(0.5)
    assert judged(joined, border_entropy=0.8)["needs_review"] is True
    assert json.loads(json.dumps(joined, allow_nan=False)) == joined
    useless = {"lesion": {**REGRESSION["lesion"], "review_below": None}}
    assert "predicted_dice_below" not in join_doubt([first], useless)["rule"]
    without = join_doubt([first, describe_doubt(Labels(), SIZES[1:])], {})
    assert (without["volume_range_ml"], without["regression"]) == (None, None)
    assert "predicted_dice_below" not in without["rule"]


def test_a_card_tells_what_it_cannot_tell():
    text = show_doubt(describe_doubt(Labels(), []))
    assert "tell no range" in text
    assert "volume_in_training_range" not in text
    assert "`predicted_dice` is null" in text
    text = show_doubt(join_doubt([describe_doubt(Labels(), SIZES)], REGRESSION))
    assert "lesion 1 to 10 ml" in text
    assert "of the worst 5 scans 4 are among the 10" in text


def test_scans_to_review_are_counted_once_however_many_labels_ask():
    rows = [("a", True), ("a", True), ("b", None), ("b", True), ("c", None), ("c", False), ("d", False), ("d", False)]
    table = pa.table(
        {
            "scan_id": pa.chunked_array([[row[0] for row in rows[:3]], [row[0] for row in rows[3:]]]),
            "needs_review": pa.chunked_array([[row[1] for row in rows[:3]], [row[1] for row in rows[3:]]]),
        }
    )
    assert count_review(table) == {"scans_to_review": 2, "scans_review_unknown": 1}
    assert count_review(table.slice(0, 0)) == {"scans_to_review": 0, "scans_review_unknown": 0}
