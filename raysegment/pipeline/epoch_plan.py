"""The epoch plan: which slice is seen in which step, by which rank; a pure function of its arguments."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Indices = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """What an epoch plan depends on, besides the epoch.

    Attributes:
        seed: Seed of the run.
        batch_size: Global batch, slices per optimisation step.
        lesion_fraction: Share of slices drawn from those with lesion; None takes them as they come.
        slices_per_epoch: Slices in an epoch; None takes each once.
    """

    seed: int
    batch_size: int
    lesion_fraction: float | None = None
    slices_per_epoch: int | None = None


def count_steps(num_slices: int, sampling: Sampling) -> int:
    """Optimisation steps in one epoch: ceil(slices / batch)."""
    return -(-(sampling.slices_per_epoch or num_slices) // sampling.batch_size)


def plan_epoch(has_lesion: npt.NDArray[np.bool_], sampling: Sampling, epoch: int) -> Indices:
    """Order the slices of one epoch.

    The last batch is filled from the plan's start, so that every slice of the plan is used and all steps are equal.

    Args:
        has_lesion: bool, (all training slices,).
        sampling: Seed, batch and weights.
        epoch: Counted from 0.

    Returns:
        Indices into the training slices, (steps, batch_size).
    """
    random = np.random.default_rng((sampling.seed, epoch))
    num_slices = sampling.slices_per_epoch or len(has_lesion)
    everything = np.arange(len(has_lesion))
    lesion = everything[has_lesion]
    clean = everything[~has_lesion]
    if sampling.lesion_fraction is None or not len(lesion) or not len(clean):
        order = _draw(everything, num_slices, random)
    else:
        num_lesion = round(sampling.lesion_fraction * num_slices)
        order = np.concatenate([_draw(lesion, num_lesion, random), _draw(clean, num_slices - num_lesion, random)])
        random.shuffle(order)
    steps = count_steps(len(has_lesion), sampling)
    return np.resize(order, steps * sampling.batch_size).reshape(steps, sampling.batch_size)


def count_occurrences(plan: Indices) -> Indices:
    """How often each entry's slice has come before it in the epoch, (steps, batch_size)."""
    flat = plan.ravel()
    order = np.argsort(flat, kind="stable")
    is_first = np.diff(flat[order], prepend=-1) != 0
    starts = np.maximum.accumulate(np.where(is_first, np.arange(len(flat)), 0))
    occurrences = np.empty_like(flat)
    occurrences[order] = np.arange(len(flat)) - starts
    return occurrences.reshape(plan.shape)


def take_share(plan: Indices, rank: int, num_workers: int) -> Indices:
    """The part of each step that one rank sees: position i goes to rank i·N div B.

    Args:
        plan: (steps, batch_size); batch_size divides by the number of workers.

    Returns:
        (steps, batch_size / num_workers).
    """
    share = plan.shape[1] // num_workers
    return plan[:, rank * share : (rank + 1) * share]


def deal_scans(num_slices: list[int], num_workers: int) -> list[list[int]]:
    """Deal whole validation scans to ranks, the largest first to whoever has least.

    Returns:
        For each rank the indices of its scans; each scan goes to exactly one.
    """
    hands: list[list[int]] = [[] for _ in range(num_workers)]
    loads = [0] * num_workers
    for scan in sorted(range(len(num_slices)), key=lambda scan: (-num_slices[scan], scan)):
        rank = loads.index(min(loads))
        hands[rank].append(scan)
        loads[rank] += num_slices[scan]
    return [sorted(hand) for hand in hands]


def _draw(pool: Indices, count: int, random: np.random.Generator) -> Indices:
    """Draw without repetition for as long as the pool lasts, then once more through it."""
    rounds = -(-count // len(pool))
    return np.concatenate([pool[:0], *(random.permutation(pool) for _ in range(rounds))])[:count]
