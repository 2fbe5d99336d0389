"""Whether two samples of numbers come from one distribution: the two-sample Kolmogorov-Smirnov test, exact with ties.

The statistic is the largest distance between the two empirical distribution functions, so shifts and changes of spread
are found alike. Given the pooled numbers, each way of dealing them to the two samples is equally likely where both come
from one distribution. A way is a path over a grid of counts, and the p-value is the share of paths that stray as far as
the one seen, where only the ends of runs of equal numbers count (Schröer and Trenkler, 1995,
doi:10.1016/0167-9473(94)00048-J). It is summed up here from the left, so that small p-values keep their digits.

Large samples, and then only, are judged by the distribution of one sample as large as both are worth together, which
with ties is on the safe side.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

EXACT_CELLS = 4_000_000
"""Product of the two sizes up to which p-values are exact."""

Values = npt.NDArray[np.float64]


class TwoSamples(NamedTuple):
    """What the test found, (tests,) each.

    Attributes:
        distance: Of the distribution functions, 0 to 1.
        p_value: Chance of such a distance where nothing differs.
    """

    distance: Values
    p_value: Values


def compare_samples(before: Values, new: Values) -> TwoSamples:
    """Compare samples of the same two sizes, several features at a time.

    Args:
        before: (tests, numbers), without NaN.
        new: (tests, numbers), without NaN.
    """
    if before.shape[1] < new.shape[1]:
        before, new = new, before
    num_before, num_new = before.shape[1], new.shape[1]
    steps, is_end = _walk(before, new)
    furthest = np.where(is_end, np.abs(steps), 0).max(axis=1)
    distance = furthest / (num_before * num_new)
    if num_before * num_new <= EXACT_CELLS:
        return TwoSamples(distance, _count_paths(furthest, is_end, num_before, num_new))
    # SciPy's distributions take most of a second to import.
    from scipy.stats import kstwo

    worth = max(1, round(num_before * num_new / (num_before + num_new)))
    return TwoSamples(distance, np.clip(kstwo.sf(distance, worth), 0, 1))


def _walk(before: Values, new: Values) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """Over the pooled numbers: how far the counts are apart, times both sizes, and where runs of equal numbers end."""
    num_before, num_new = before.shape[1], new.shape[1]
    pooled = np.concatenate([before, new], axis=1)
    order = np.argsort(pooled, axis=1, kind="stable")
    ordered = np.take_along_axis(pooled, order, axis=1)
    is_end = np.ones(ordered.shape, bool)
    is_end[:, :-1] = ordered[:, 1:] != ordered[:, :-1]
    return np.where(order >= num_before, num_before, -num_new).cumsum(axis=1), is_end


def _count_paths(
    furthest: npt.NDArray[np.int64], is_end: npt.NDArray[np.bool_], num_before: int, num_new: int
) -> Values:
    """Share of all paths that are somewhere, at the end of a run, as far from the diagonal as `furthest`."""
    taken = np.arange(num_new + 1)
    share = np.zeros((len(furthest), num_new + 1))
    for step in range(1, num_before + num_new + 1):
        first, stop = max(0, step - num_before), min(num_new, step) + 1
        some = taken[first:stop]
        reached = share[:, first:stop] * ((step - some) / step)
        reached[:, max(0, 1 - first) :] += share[:, max(first - 1, 0) : stop - 1] * (some[max(0, 1 - first) :] / step)
        far = np.abs(some * (num_before + num_new) - step * num_new) >= furthest[:, None]
        reached[far & is_end[:, step - 1, None]] = 1.0
        share[:, first:stop] = reached
    return np.where(furthest == 0, 1.0, np.minimum(share[:, num_new], 1.0))
