"""How bright a scan is, without what lies around the body."""

from __future__ import annotations

import numpy as np
import pytest

from raysegment.imaging.quantiles import measure_quantiles


def make_disc(slices: int, side: int, channels: int = 1) -> np.ndarray:
    """Numbers from 100 to 200 in a disc, dark noise around it."""
    rng = np.random.default_rng(3)
    rows, columns = np.ogrid[:side, :side]
    inside = (rows - side / 2) ** 2 + (columns - side / 2) ** 2 < (side / 3) ** 2
    body = rng.uniform(100, 200, (slices, side, side, channels)) * np.arange(1, channels + 1)
    return np.where(inside[..., None], body, rng.uniform(0, 2, body.shape)).astype(np.float32)


@pytest.mark.parametrize(("slices", "side"), [(1, 128), (3, 700), (40, 96)])
def test_quantiles_are_those_of_the_body_in_each_channel(slices: int, side: int) -> None:
    found = measure_quantiles(make_disc(slices, side, 2))
    assert found == pytest.approx([105, 150, 195, 210, 300, 390], rel=0.04)


def test_brighter_pixels_have_quantiles_that_are_as_much_brighter() -> None:
    pixels = make_disc(4, 128)
    assert measure_quantiles(1.3 * pixels) == pytest.approx([1.3 * value for value in measure_quantiles(pixels)])
    whole = np.rint(pixels).astype(np.uint16)
    assert measure_quantiles(whole) == pytest.approx(measure_quantiles(pixels), abs=4)


def test_where_nothing_is_in_front_all_pixels_count() -> None:
    assert measure_quantiles(np.full((2, 32, 32, 1), 7, np.uint8)) == [7, 7, 7]
    assert measure_quantiles(np.zeros((1, 1, 1, 2), np.uint8)) == [0] * 6
