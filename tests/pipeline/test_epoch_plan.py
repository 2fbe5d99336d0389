import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raysegment.pipeline.epoch_plan import Sampling, count_occurrences, count_steps, deal_scans, plan_epoch, take_share


def lesions(num_slices: int, num_lesion: int) -> np.ndarray:
    return np.arange(num_slices) < num_lesion


def test_an_epoch_uses_every_slice_and_fills_the_last_batch_from_its_start() -> None:
    plan = plan_epoch(lesions(13, 4), Sampling(seed=1, batch_size=4), epoch=0)
    assert plan.shape == (4, 4)
    flat = plan.ravel()
    assert sorted(flat[:13]) == list(range(13))
    assert list(flat[13:]) == list(flat[:3])


def test_the_same_seed_and_epoch_give_the_same_plan_and_others_do_not() -> None:
    sampling = Sampling(seed=5, batch_size=8)
    first = plan_epoch(lesions(40, 10), sampling, 3)
    assert np.array_equal(first, plan_epoch(lesions(40, 10), sampling, 3))
    assert not np.array_equal(first, plan_epoch(lesions(40, 10), sampling, 4))
    assert not np.array_equal(first, plan_epoch(lesions(40, 10), Sampling(seed=6, batch_size=8), 3))


@pytest.mark.parametrize("num_workers", [1, 2, 4, 8])
def test_the_shares_of_all_ranks_are_the_steps_whatever_the_number_of_workers(num_workers: int) -> None:
    plan = plan_epoch(lesions(29, 9), Sampling(seed=0, batch_size=8), 0)
    shares = [take_share(plan, rank, num_workers) for rank in range(num_workers)]
    assert np.array_equal(np.concatenate(shares, axis=1), plan)


def test_the_lesion_share_is_what_was_asked_for() -> None:
    has_lesion = lesions(100, 10)
    sampling = Sampling(seed=0, batch_size=10, lesion_fraction=0.6, slices_per_epoch=50)
    plan = plan_epoch(has_lesion, sampling, 0)
    assert plan.size == 50
    assert has_lesion[plan.ravel()].sum() == 30


def test_lesion_slices_are_repeated_evenly_when_there_are_too_few() -> None:
    sampling = Sampling(seed=0, batch_size=10, lesion_fraction=0.5)
    counts = np.bincount(plan_epoch(lesions(100, 20), sampling, 0).ravel(), minlength=100)
    assert set(counts[:20]) == {2, 3}
    assert set(counts[20:]) <= {0, 1}


@pytest.mark.parametrize(("fraction", "share"), [(0.0, 0.0), (1.0, 1.0)])
def test_an_epoch_may_hold_only_lesion_or_only_clean_slices(fraction: float, share: float) -> None:
    has_lesion = lesions(7, 3)
    plan = plan_epoch(has_lesion, Sampling(seed=0, batch_size=2, lesion_fraction=fraction), 0)
    assert has_lesion[plan.ravel()].mean() == share


def test_a_lesion_fraction_without_lesions_takes_slices_as_they_come() -> None:
    plan = plan_epoch(lesions(6, 0), Sampling(seed=0, batch_size=3, lesion_fraction=0.5), 0)
    assert sorted(plan.ravel()) == list(range(6))


@given(num_slices=st.integers(1, 200), batch_size=st.integers(1, 33))
def test_steps_are_the_slices_over_the_batch_rounded_up(num_slices: int, batch_size: int) -> None:
    sampling = Sampling(seed=0, batch_size=batch_size)
    plan = plan_epoch(lesions(num_slices, num_slices // 3), sampling, 0)
    assert len(plan) == count_steps(num_slices, sampling) == int(np.ceil(num_slices / batch_size))
    assert set(plan.ravel()) == set(range(num_slices))


def test_every_entry_of_a_plan_knows_how_often_its_slice_came_before() -> None:
    plan = np.array([[3, 5], [3, 3], [5, 1]])
    assert count_occurrences(plan).tolist() == [[0, 0], [1, 2], [1, 0]]


@given(num_lesion=st.integers(1, 9), batch_size=st.integers(1, 13))
def test_no_slice_occurs_twice_alike_in_an_epoch(num_lesion: int, batch_size: int) -> None:
    sampling = Sampling(seed=0, batch_size=batch_size, lesion_fraction=0.8)
    plan = plan_epoch(lesions(20, num_lesion), sampling, 1)
    pairs = set(zip(plan.ravel().tolist(), count_occurrences(plan).ravel().tolist(), strict=True))
    assert len(pairs) == plan.size


@given(st.lists(st.integers(1, 50), max_size=30), st.integers(1, 5))
def test_each_validation_scan_is_dealt_to_exactly_one_rank(num_slices: list[int], num_workers: int) -> None:
    hands = deal_scans(num_slices, num_workers)
    assert sorted(scan for hand in hands for scan in hand) == list(range(len(num_slices)))
    if num_slices:
        loads = [sum(num_slices[scan] for scan in hand) for hand in hands]
        assert max(loads) - min(loads) <= max(num_slices)
