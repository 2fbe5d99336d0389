"""The test that tells drift, beside SciPy's and beside all dealings counted one by one."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from raysegment.pipeline import two_samples
from raysegment.pipeline.two_samples import compare_samples


@pytest.mark.parametrize("sizes", [(8, 8), (30, 41), (300, 30), (300, 300), (9, 2000)])
def test_without_ties_distance_and_p_value_are_those_of_scipy(sizes: tuple[int, int]) -> None:
    rng = np.random.default_rng(sizes[0])
    before, new = rng.normal(size=(6, sizes[0])), rng.normal(np.linspace(0, 2, 6)[:, None], 1.5, (6, sizes[1]))
    found = compare_samples(before, new)
    for position in range(6):
        expected = stats.ks_2samp(before[position], new[position], method="exact")
        assert found.distance[position] == pytest.approx(expected.statistic, rel=1e-12)
        assert found.p_value[position] == pytest.approx(expected.pvalue, rel=1e-9)


def measure_distance(before: np.ndarray, new: np.ndarray, axis: int = -1) -> np.ndarray:
    """The statistic by its definition, over numbers from 0 to 5."""
    shares = [(values[..., None, :] <= np.arange(6)[:, None]).mean(axis=-1) for values in (before, new)]
    return np.abs(shares[0] - shares[1]).max(axis=-1)


numbers = st.lists(st.integers(0, 4), min_size=1, max_size=6)


@settings(max_examples=25, deadline=None)
@given(numbers, numbers)
def test_with_ties_the_p_value_is_the_share_of_all_dealings_that_are_as_far_apart(before: list, new: list) -> None:
    samples = np.array(before, float), np.array(new, float)
    found = compare_samples(samples[0][None], samples[1][None])
    assert found.distance[0] == pytest.approx(measure_distance(*samples))
    if len(before) > 1 and len(new) > 1:
        expected = stats.permutation_test(
            samples, measure_distance, vectorized=True, n_resamples=np.inf, alternative="greater"
        )
        assert found.p_value[0] == pytest.approx(expected.pvalue, rel=1e-9)


def test_what_is_the_same_everywhere_has_p_1_and_what_has_nothing_in_common_the_smallest() -> None:
    found = compare_samples(np.ones((2, 10)), np.array([[1.0] * 8, [2.0] * 8]))
    assert found.distance.tolist() == [0, 1]
    # Of the 18 over 8 ways of dealing, one has all the larger numbers in the smaller set.
    assert found.p_value == pytest.approx([1, 1 / 43758])


def test_large_samples_are_judged_on_the_safe_side(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(1)
    before, new = np.round(rng.normal(size=(20, 900)), 1), np.round(rng.normal(size=(20, 400)), 1)
    exact = compare_samples(before, new).p_value
    monkeypatch.setattr(two_samples, "EXACT_CELLS", 1000)
    large = compare_samples(before, new).p_value
    assert (large >= 0.97 * exact).all()
    assert np.abs(large - exact).max() < 0.2


@pytest.mark.parametrize("num_new", [30, 300])
def test_samples_of_one_distribution_are_told_apart_as_rarely_as_said(num_new: int) -> None:
    rng = np.random.default_rng(num_new)
    continuous = compare_samples(rng.normal(size=(2000, 301)), rng.normal(size=(2000, num_new))).p_value
    low, high = stats.binom.interval(0.99, 2000, 0.05)
    assert low <= np.count_nonzero(continuous <= 0.05) <= high
    few = compare_samples(rng.integers(0, 3, (2000, 301)) * 1.0, rng.integers(0, 3, (2000, num_new)) * 1.0).p_value
    assert 0.2 * low <= np.count_nonzero(few <= 0.05) <= high
