"""Which part of a large slice is trained on."""

from __future__ import annotations

import numpy as np
import pytest

from raysegment.imaging.geometry import Box
from raysegment.pipeline.views.patches import LESION_SHARE, draw_patch

SEEDS = {"seed": 3, "epoch": 1, "scan_index": 4, "slice_index": 2}


def lesion_at(row: int, column: int, rows: int = 300, columns: int = 200) -> np.ndarray:
    reference = np.zeros((rows, columns), np.uint8)
    reference[row : row + 4, column : column + 4] = 2
    return reference


def test_a_slice_that_is_seen_at_once_is_seen_whole():
    assert draw_patch(np.zeros((64, 64), np.uint8), 64, **SEEDS, occurrence=0) == Box(0, 64, 0, 64)


def test_the_same_numbers_give_the_same_patch_and_others_another():
    reference = lesion_at(100, 100)
    found = [draw_patch(reference, 64, **SEEDS, occurrence=number) for number in (0, 0, 1)]
    assert found[0] == found[1] != found[2]
    assert draw_patch(reference, 64, **SEEDS | {"epoch": 2}, occurrence=0) != found[0]


@pytest.mark.parametrize("place", [(0, 0), (296, 196), (100, 100), (296, 0)])
def test_patches_lie_in_the_slice_and_most_hold_lesion(place):
    reference = lesion_at(*place)
    patches = [draw_patch(reference, 64, **SEEDS, occurrence=number) for number in range(400)]
    for patch in patches:
        assert (patch.rows, patch.columns) == (64, 64)
        assert 0 <= patch.row_start <= 300 - 64
        assert 0 <= patch.column_start <= 200 - 64
    share = np.mean([reference[patch.window].any() for patch in patches])
    assert LESION_SHARE - 0.1 < share < 1


def test_patches_of_a_slice_without_lesion_lie_anywhere():
    patches = [draw_patch(np.zeros((70, 64), np.uint8), 64, **SEEDS, occurrence=number) for number in range(100)]
    assert {patch.row_start for patch in patches} == set(range(7))
    assert {patch.column_start for patch in patches} == {0}
