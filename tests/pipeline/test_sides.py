"""What mirroring does to labels that are a side of the body."""

from __future__ import annotations

import pytest

from raysegment.errors import UsageError
from raysegment.pipeline.sides import check_mirror, find_swaps
from raysegment.scan import Labels


def labels_of(*names: str) -> Labels:
    return Labels(names, tuple((value,) for value in range(1, len(names) + 1)))


PAIRED = labels_of("Left-Hippocampus", "tumour", "kidney_L", "right-hippocampus", "kidney_R")


@pytest.mark.parametrize(
    ("mirror", "slice_axis", "expected"),
    [
        ("columns", "axial", (3, 1, 4, 0, 2)),
        ("rows,columns", "coronal", (3, 1, 4, 0, 2)),
        ("rows", "axial", ()),
        ("rows", "auto", ()),
        ("rows,columns", "sagittal", ()),
        ("none", "auto", ()),
    ],
)
def test_both_sides_change_places_where_columns_run_from_one_to_the_other(mirror, slice_axis, expected):
    assert find_swaps(PAIRED, mirror, slice_axis) == expected
    check_mirror(PAIRED, mirror, slice_axis, ["nifti"])


@pytest.mark.parametrize(
    ("names", "slice_axis", "said"),
    [
        (("left kidney", "right kidney"), "auto", "--slice-axis auto"),
        (("left kidney", "tumour"), "axial", "label left kidney cannot be exchanged"),
        (("left kidney", "Kidney-Left", "right kidney"), "axial", "left kidney, Kidney-Left, right kidney cannot"),
        (("lh", "rh", "left lung"), "axial", "left lung"),
    ],
)
def test_what_is_not_certain_is_refused(names, slice_axis, said):
    with pytest.raises(UsageError, match=said):
        find_swaps(labels_of(*names), "columns", slice_axis)
    assert find_swaps(labels_of(*names), "rows", slice_axis) == ()


def test_slices_that_do_not_say_how_they_lie_are_not_mirrored_where_labels_are_sides():
    with pytest.raises(UsageError, match=r"format tiff do not say .* Give --mirror none"):
        check_mirror(PAIRED, "rows", "axial", ["nifti", "tiff"])
    check_mirror(PAIRED, "none", "axial", ["tiff"])
    check_mirror(labels_of("bright", "cleft", "L1", "T12"), "rows,columns", "auto", ["tiff"])
    check_mirror(Labels(), "columns", "auto", ["raster"])
