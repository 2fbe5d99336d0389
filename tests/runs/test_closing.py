"""What an evaluation says at its end."""

from __future__ import annotations

from math import nan

from raysegment.runs.closing import choose_exit_code, describe_review, describe_summary

NUMBERS = {
    "dice_mean": 0.8,
    "dice_median": 0.81,
    "dice_ci95": [0.7, 0.9],
    "hd95_mm_mean": 4.25,
    "hd95_mm_median": 3.5,
    "hd95_undefined": 2,
    "mean_surface_distance_mm_mean": 1.5,
    "surface_dice_mean": 0.75,
    "surface_tolerance_mm": 1.0,
    "lesions_reference": 12,
    "lesions_found": 9,
    "lesions_false": 3,
    "iou_mean": 0.6,
    "lesion_slice_dice_mean": nan,
    "precision": 0.5,
    "recall": 0.25,
}
SUMMARY = NUMBERS | {"threshold": 0.5, "scans": 16, "patients": 12, "training_patients_included": 0}


def test_labels_stand_on_lines_of_their_own_and_undefined_distances_beside_every_mean():
    labels = {"WT": NUMBERS | {"dice_mean": 0.9}, "ET": NUMBERS | {"hd95_mm_mean": nan}}
    lines = describe_summary(SUMMARY | {"threshold": {"WT": 0.4, "ET": 0.55}, "labels": labels}, "out")
    assert "at threshold 0.40 for WT, 0.55 for ET; 16 scans" in lines[0]
    assert lines[0].startswith(
        "Dice: mean of the labels' means 0.8000 (95 % interval 0.7000 to 0.9000), of their medians 0.8100, at"
    )
    assert lines[2].startswith("HD95 mean 4.25 mm, median 3.50 mm, 2 undefined; ")
    assert "surface Dice at 1 mm 0.7500" in lines[2]
    assert lines[3] == "9 of 12 lesions found, 3 false"
    assert lines[4].startswith("  WT: Dice mean 0.9000 (95 % interval 0.7000 to 0.9000), median 0.8100; HD95 mean 4.25")
    assert lines[4].endswith("2 undefined")
    assert lines[5].endswith("median 0.8100; HD95 of no scan, 2 undefined")
    assert lines[6] == "summary in out/summary.json, each scan in out/metrics"


def test_one_label_without_spacing_is_told_as_ever():
    nothing = {"hd95_mm_mean": nan, "hd95_undefined": 0, "labels": {"lesion": NUMBERS}}
    lines = describe_summary(SUMMARY | nothing, "out")
    assert len(lines) == 4
    assert lines[2] == "9 of 12 lesions found, 3 false"
    assert "mean 0.8000 (95 % interval 0.7000 to 0.9000), median 0.8100, at threshold 0.50; 16 scans of 12" in lines[0]


def test_lesions_are_told_where_no_scan_has_a_distance_and_only_where_all_are_counted():
    nothing = {"hd95_mm_mean": nan, "hd95_scans": 0, "labels": {"lesion": NUMBERS}}
    lines = describe_summary(SUMMARY | nothing | {"hd95_undefined": 4}, "out")
    assert lines[2] == "HD95 of no scan, 4 undefined: only one of mask and reference is empty"
    assert lines[3] == "9 of 12 lesions found, 3 false"
    lines = describe_summary(SUMMARY | {"lesions_found": nan}, "out")
    assert [line for line in lines if "lesions found" in line] == []


def test_distances_say_of_how_many_scans_they_are_a_mean():
    lines = describe_summary(SUMMARY | {"hd95_scans": 14}, "out")
    assert lines[2].startswith("HD95 mean 4.25 mm, median 3.50 mm over 14 scans, 2 undefined; ")


def test_scans_to_review_are_told_with_the_place_of_their_list():
    counts = {"scans_ok": 30, "scans_to_review": 7, "scans_review_unknown": 0}
    assert describe_review(counts, "out") == ["review    7 of 30 scans need it: out/metrics, needs_review = true"]
    unknown = {**counts, "scans_to_review": 1, "scans_review_unknown": 2}
    assert describe_review(unknown, "out")[0].endswith("; of 2 more nothing is known that would tell")
    assert describe_review({**counts, "scans_to_review": 0}, "out") == ["review    0 of 30 scans need it"]
    assert describe_review({**counts, "scans_ok": 0}, "out") == []


def test_a_run_ends_well_with_failed_scans_or_failed():
    assert [choose_exit_code(*counts) for counts in ((2, 0), (1, 1), (0, 1))] == [0, 3, 1]
