"""What changed between two masks of one scan: by hand, by NumPy and SciPy, and on grids that differ."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from raysegment.pipeline.changes import NO_LABEL, NO_OVERLAP, NO_PLACE, ChangeRule, Side, compare_sides
from raysegment.store.masks import encode_mask

RULE = ChangeRule(percent=10, dice=0.8)
GRID = (3, 8, 8)


def side(mask: np.ndarray | None, *, spacing=None, affine=None, labels=None, volume=True, status="ok") -> Side:
    """A scan as a run has it; volumes are voxels times spacing."""
    labels = labels or {"lesion": 1}
    scan = {"scan_id": "s", "patient_id": "p", "status": status, "model_id": "m"}
    if mask is None:
        return Side(scan=scan, metrics={}, mask=None)
    row = encode_mask("s", mask, labels=labels, spacing_mm=spacing, affine=affine)
    metrics = {}
    for position, (name, value) in enumerate(labels.items()):
        voxels = int((mask[position] if mask.ndim == 4 else mask == value).sum())
        ml = voxels * math.prod(spacing) / 1000 if spacing else math.nan
        metrics[name] = {"label": name, "voxels": voxels, "volume_ml": ml}
    return Side(scan=scan, metrics=metrics, mask=row)


def box(rows: slice, columns: slice = slice(2, 6), grid=GRID) -> np.ndarray:
    mask = np.zeros(grid, np.uint8)
    mask[1, rows, columns] = 1
    return mask


def compare_one(before: Side, after: Side) -> dict:
    (row,) = compare_sides(before, after, RULE)
    return row


def test_volumes_dice_and_distance_of_two_boxes():
    row = compare_one(side(box(slice(2, 6)), spacing=(5.0, 1.0, 1.0)), side(box(slice(2, 7)), spacing=(5.0, 1.0, 1.0)))
    assert (row["voxels_before"], row["voxels_after"]) == (16, 20)
    assert row["difference_ml"] == pytest.approx(4 * 5 / 1000, abs=1e-12)
    assert row["difference_percent"] == pytest.approx(25)
    assert row["dice"] == pytest.approx(2 * 16 / 36, abs=1e-12)
    assert row["hd95_mm"] == pytest.approx(1.0)
    assert row["is_change"] is True
    assert (row["appeared"], row["vanished"], row["newly_failed"], row["state"]) == (False, False, False, "compared")


def test_a_change_within_the_tolerance_is_none():
    mask = np.zeros((1, 20, 20), np.uint8)
    mask[0, :10, :10] = 1
    grown = mask.copy()
    grown[0, 10, :5] = 1
    assert compare_one(side(mask), side(grown))["is_change"] is False
    assert compare_one(side(mask), side(mask)) | {"dice": 1.0} == compare_one(side(mask), side(mask))


def test_a_mask_that_moved_is_a_change_though_its_volume_is_the_same():
    row = compare_one(side(box(slice(0, 4))), side(box(slice(4, 8))))
    assert row["dice"] == 0
    assert row["is_change"] is True
    assert math.isnan(row["hd95_mm"]), "no spacing, no millimetres"


def test_a_lesion_appears_and_vanishes():
    empty = np.zeros(GRID, np.uint8)
    row = compare_one(side(empty), side(box(slice(2, 4))))
    assert (row["appeared"], row["vanished"], row["is_change"], row["dice"]) == (True, False, True, 0)
    assert row["difference_percent"] is None
    assert compare_one(side(box(slice(2, 4))), side(empty))["vanished"] is True
    row = compare_one(side(empty), side(empty))
    assert math.isnan(row["dice"])
    assert row["is_change"] is False


def test_failed_and_missing_scans_have_a_state_and_no_numbers_that_are_not_there():
    mask = side(box(slice(2, 6)))
    failed, absent = side(None, status="failed"), Side(scan=None, metrics={}, mask=None)
    states = [
        compare_one(*pair)["state"]
        for pair in ((mask, failed), (failed, mask), (failed, failed), (absent, mask), (mask, absent))
    ]
    assert states == ["newly_failed", "recovered", "failed", "only_after", "only_before"]
    row = compare_one(mask, failed)
    assert (row["newly_failed"], row["is_change"], row["voxels_before"], row["voxels_after"]) == (True, None, 16, None)
    assert compare_one(failed, failed)["label"] is None


def test_each_label_has_a_row_also_where_labels_overlap():
    masks = np.zeros((2, *GRID), np.uint8)
    masks[0, 1, 2:6, 2:6] = 1
    masks[1, 1, 3:4, 3:4] = 1
    later = masks.copy()
    later[1] = 0
    labels = {"WT": 1, "ET": 2}
    rows = compare_sides(side(masks, labels=labels), side(later, labels=labels), RULE)
    assert [(row["label"], row["is_change"], row["vanished"]) for row in rows] == [
        ("WT", False, False),
        ("ET", True, True),
    ]


def test_a_label_of_one_run_only_is_not_compared():
    before = side(box(slice(2, 6)), labels={"lesion": 1})
    after = side(box(slice(2, 6)), labels={"tumour": 1})
    rows = {row["label"]: row for row in compare_sides(before, after, RULE)}
    assert rows["lesion"]["why_not"] == rows["tumour"]["why_not"] == NO_LABEL
    assert rows["lesion"]["is_change"] is None


def affine_of(spacing: tuple[float, float, float], origin=(0.0, 0.0, 0.0)) -> np.ndarray:
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = origin
    return affine


def test_masks_on_other_grids_are_compared_where_both_lie():
    fine = np.kron(box(slice(2, 6)), np.ones((1, 2, 2), np.uint8))
    before = side(box(slice(2, 6)), spacing=(5.0, 2.0, 2.0), affine=affine_of((5.0, 2.0, 2.0)))
    # Voxel centres of the fine grid lie half a fine voxel off those of the coarse one.
    after = side(fine, spacing=(5.0, 1.0, 1.0), affine=affine_of((5.0, 1.0, 1.0), (0.0, -0.5, -0.5)))
    row = compare_one(before, after)
    assert row["dice"] == 1
    assert row["difference_ml"] == pytest.approx(0, abs=1e-12)
    assert row["is_change"] is False
    cropped = side(box(slice(2, 6))[:, :4], spacing=(5.0, 2.0, 2.0), affine=affine_of((5.0, 2.0, 2.0)))
    row = compare_one(before, cropped)
    assert row["dice"] == 1, "the rows that only the earlier scan has are left out"
    assert row["difference_percent"] == pytest.approx(-50)


def test_grids_that_nothing_joins_give_a_reason_and_no_dice():
    before = side(box(slice(2, 6)))
    assert compare_one(before, side(box(slice(2, 6), grid=(3, 9, 9))))["why_not"] == NO_PLACE
    far = affine_of((1.0, 1.0, 1.0), (500.0, 0.0, 0.0))
    here = side(box(slice(2, 6)), spacing=(1.0, 1.0, 1.0), affine=affine_of((1.0, 1.0, 1.0)))
    row = compare_one(here, side(box(slice(2, 6)), spacing=(1.0, 1.0, 1.0), affine=far))
    assert (row["why_not"], row["dice"], row["is_change"]) == (NO_OVERLAP, None, False)


@settings(max_examples=40, deadline=None)
@given(arrays(np.uint8, GRID, elements=st.integers(0, 2)), arrays(np.uint8, GRID, elements=st.integers(0, 2)))
def test_numbers_are_those_of_numpy_and_turn_with_the_sides(first, second):
    labels, spacing = {"a": 1, "b": 2}, (3.0, 1.0, 1.0)
    there = compare_sides(
        side(first, labels=labels, spacing=spacing), side(second, labels=labels, spacing=spacing), RULE
    )
    back = compare_sides(
        side(second, labels=labels, spacing=spacing), side(first, labels=labels, spacing=spacing), RULE
    )
    for row, turned, value in zip(there, back, (1, 2), strict=True):
        total = (first == value).sum() + (second == value).sum()
        dice = 2 * ((first == value) & (second == value)).sum() / total if total else math.nan
        assert row["dice"] == pytest.approx(dice, abs=1e-12, nan_ok=True)
        assert row["dice"] == pytest.approx(turned["dice"], abs=1e-12, nan_ok=True)
        assert row["hd95_mm"] == pytest.approx(turned["hd95_mm"], abs=1e-6, nan_ok=True)
        assert row["is_change"] == turned["is_change"]
        assert row["appeared"] == turned["vanished"]
