"""What an ensemble takes over from its members."""

from __future__ import annotations

import pytest

from raysegment.options import Postprocessing
from raysegment.pipeline.ensemble import join_postprocessing, join_thresholds


def test_the_threshold_of_each_label_is_the_mean_of_the_members() -> None:
    assert join_thresholds([(0.35, 0.5), (0.5, 0.5), (0.45, 0.2)]) == pytest.approx((0.433, 0.4))


@pytest.mark.parametrize(("sizes", "expected"), [((0, 50, 200), 50), ((None, None, 100), 0), ((10, 21), 16)])
def test_the_smallest_component_is_the_median_of_the_members(sizes, expected) -> None:
    found = [Postprocessing(threshold=0.4, min_component_voxels=size, fill_holes=True) for size in sizes]
    assert join_postprocessing(found) == Postprocessing(min_component_voxels=expected, fill_holes=True)
