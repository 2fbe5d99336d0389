"""Drift: whether new scans are like those that a model was trained on, and like those that a cohort had before.

**What is compared.** The features of `pipeline/scan_features` (intensity, spacing, shape, volume, doubt), each a number
per scan, of each patient one scan. New scans are compared with two sets, as far as there are any:

    training   what the bundle keeps as `training_features`. New is every scan that this run segmented, all of them
               where the model is new; those of patients whom the model was trained on are left out.
    past       the scans of the result before. New is what this run segmented for the first time, or again because its
               files changed. Volume and doubt only where model and choices are those of the result before, because
               other masks are no drift; and with the training set only where the choices are the bundle's own.

**Statistic.** The two-sample Kolmogorov-Smirnov distance: the largest difference between the shares of both sets that
lie at or below a number. A shift shows, a wider or narrower spread does, and so does a second scanner.

**Null.** The patients of both sets are drawn from one population, so each way of dealing the pooled numbers to the two
sets is as likely as any other. The p-value is the share of these ways whose distance is as large, counted exactly and
with ties (`pipeline/two_samples`): nothing is assumed of the distribution, and a feature of few values (spacing, rows)
is tested like any other. Its false alarms are at most as many as said; fewer of features with few values, and where
the two sizes are multiples of each other, because distances then come in few steps. Only where
the product of the two sizes is above four million the distribution for large sizes takes over, which with ties errs on
the safe side too.

**Correction.** Holm (1979) over all features and both sets of a run: `p_holm` is the smallest rate at which a feature
would count. A run in which nothing drifts raises an alarm, of however many features, with a chance of at most `rate`
(key `drift_rate` of the cohort file). Features that are one and the same number in all sets, the new one included,
cannot differ whatever the dealing; they have p = 1 and do not enter the count of the correction. The pooled numbers
alone decide which these are, so the rate holds. Features that go together, such as quantiles of one channel, and new
scans that are seen beside two sets make for fewer alarms than the rate allows: 3 to 4 % instead of 5 % in made-up
cohorts of such scans, where independent features come to 5 %.

**How much it finds.** Fewer than `MIN_PATIENTS` patients on either side are not tested, and the table says so. With 30
new patients and 300 before, among 18 features, a shift by one standard deviation is found nine times of ten, one by 0.8
seven times; with 300 new ones, a shift by 0.4 nine times of ten (`benchmarks/drift_rate.py`).

**The stability index** stands beside it as a description: the sum of (b - a) ln(b / a) over tenths of the set before,
a and b being the shares of both sets in them; half a patient is added to each tenth, so that none is empty. Above 0.25
is commonly called a large change, but with few patients chance alone comes to that, so nothing is decided by it.

**Limits.** The rate is that of one run: at 0.05 a cohort that gets scans every night has an alarm a month by chance,
`drift_rate: 0.01` one in a hundred nights. Patients whose scans are in both sets make the test find less, not more.
Scans that come together are taken for independent draws: a night from one scanner of several is flagged, and rightly,
as it is not drawn as the past was. Against the training set a difference that has always been there is found every
night: it tells how far the model is from home, not that something changed. Patients who were validated on cannot be
told from others and are not left out. A drift of what none of the features measures is not found, and one that is
found does not tell that masks are worse.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raysegment.archive.names import show_name
from raysegment.pipeline.scan_features import OF_MASKS, OF_SCANS, Feature, Samples, Values
from raysegment.pipeline.two_samples import TwoSamples, compare_samples
from raysegment.store.schema import DRIFT_SCHEMA

MIN_PATIENTS = 8
"""On either side; with as many the smallest p-value is 0.00016."""

BINS = 10
MOST_SHOWN = 3
NAMES = {"training": "the training set", "past": "the cohort's past"}
Against = Literal["training", "past"]


@dataclass(frozen=True)
class Comparison:
    """New scans beside a set to compare them with.

    Attributes:
        against: Which set it is.
        before: Its numbers, ascending.
        new: Those of the new scans, ascending.
        num_new: New patients, with a number or without.
    """

    against: Against
    before: Samples
    new: Samples
    num_new: int


@dataclass(frozen=True)
class Sides:
    """One feature of new scans beside that of a set.

    Attributes:
        against: Which set it is.
        feature: What is compared.
        before: Numbers of the set, ascending.
        new: Those of the new scans, ascending.
    """

    against: Against
    feature: Feature
    before: Values
    new: Values

    @property
    def why_not(self) -> str | None:
        """Why it is not tested; None where it is."""
        for count, whose in ((len(self.new), "new patients"), (len(self.before), "patients before")):
            if count < MIN_PATIENTS:
                return f"needs {MIN_PATIENTS} {whose} who have it, has {count}"
        return None


def find_drift(comparisons: Sequence[Comparison], rate: float) -> pa.Table:
    """Test every feature against every set.

    Args:
        comparisons: What is compared.
        rate: Largest chance of any false alarm.

    Returns:
        Of `DRIFT_SCHEMA`, ordered by set and feature.
    """
    sides = list_sides(comparisons)
    rows = [_describe_side(side) for side in sides]
    tested = [position for position, side in enumerate(sides) if side.why_not is None]
    found = compare_pairs([(sides[position].before, sides[position].new) for position in tested])
    corrected = correct_sides([sides[position] for position in tested], found.p_value, comparisons)
    for position, distance, p, p_holm in zip(tested, *found, corrected, strict=True):
        rows[position] |= {"statistic": float(distance), "p": float(p), "p_holm": float(p_holm)}
        rows[position]["is_drift"] = bool(p_holm <= rate)
    return pa.Table.from_pylist(rows, schema=DRIFT_SCHEMA)


def list_sides(comparisons: Sequence[Comparison]) -> list[Sides]:
    """What is to be compared with what, ordered by set and feature."""
    return [
        Sides(comparison.against, feature, _get(comparison.before, feature), _get(comparison.new, feature))
        for comparison in comparisons
        for feature in sorted({*comparison.before, *comparison.new}, key=_order)
    ]


def correct_sides(tested: Sequence[Sides], p_values: Values, comparisons: Sequence[Comparison]) -> Values:
    """Holm over what can differ; 1 for features that are the same everywhere.

    Args:
        tested: Of the sides those that were tested.
        p_values: Of each.
        comparisons: All that was compared.
    """
    constant = _find_constant(comparisons)
    is_counted = np.array([side.feature not in constant for side in tested], bool)
    corrected = np.ones(len(tested))
    corrected[is_counted] = correct_holm(p_values[is_counted])
    return corrected


def compare_pairs(pairs: Sequence[tuple[Values, Values]]) -> TwoSamples:
    """Test pairs of samples, those of the same sizes together."""
    by_size: dict[tuple[int, int], list[int]] = {}
    for position, (before, new) in enumerate(pairs):
        by_size.setdefault((len(before), len(new)), []).append(position)
    distance, p_value = np.zeros(len(pairs)), np.ones(len(pairs))
    for positions in by_size.values():
        before, new = (np.stack([pairs[position][side] for position in positions]) for side in (0, 1))
        distance[positions], p_value[positions] = compare_samples(before, new)
    return TwoSamples(distance, p_value)


def correct_holm(p_values: Values) -> Values:
    """P-values by which a feature may be judged as if it were the only one.

    After Holm (1979), https://www.jstor.org/stable/4615733.
    """
    order = np.argsort(p_values, kind="stable")
    factors = np.arange(len(p_values), 0, -1)
    corrected = np.empty(len(p_values))
    corrected[order] = np.minimum(np.maximum.accumulate(p_values[order] * factors), 1)
    return corrected


def measure_stability_index(before: Values, new: Values) -> float:
    """Population stability index over tenths of the set before; NaN where a set is empty."""
    if not len(before) or not len(new):
        return math.nan
    edges = np.unique(np.quantile(before, np.arange(1, BINS) / BINS, method="inverted_cdf"))
    # A bin ends with its edge, so that a number that half of the set has is a bin of its own.
    counts = [np.bincount(np.searchsorted(edges, values), minlength=len(edges) + 1) for values in (before, new)]
    shares = [(count + 0.5) / (count.sum() + 0.5 * len(count)) for count in counts]
    return float(np.sum((shares[1] - shares[0]) * np.log(shares[1] / shares[0])))


def keep_kinds(samples: Samples, kinds: Sequence[str]) -> dict[Feature, Values]:
    """Some kinds of features only."""
    return {feature: values for feature, values in samples.items() if feature.kind in kinds}


def summarise_drift(table: pa.Table, comparisons: Sequence[Comparison], rate: float) -> dict[str, Any]:
    """What summary.json, run files and `--json` have of drift.

    Args:
        table: From `find_drift`.
        comparisons: What was compared.
        rate: As it was given.

    Returns:
        `rate`, `is_drift`, `tested`; and of each set `new_patients`, `tested` and `drifted`, the features that drifted
        with what a person needs to judge them, those furthest apart first.
    """
    against = {}
    shown = ("feature", "kind", "n_before", "n_new", "median_before", "median_new", "statistic", "p_holm")
    for comparison in comparisons:
        rows = table.filter(pc.equal(table["against"], comparison.against))
        drifted = rows.filter(pc.fill_null(rows["is_drift"], False)).sort_by([("p", "ascending")])
        against[comparison.against] = {
            "new_patients": comparison.num_new,
            "tested": len(rows["p"].drop_null()),
            "drifted": drifted.select([*shown, "stability_index"]).to_pylist(),
        }
    return {
        "rate": rate,
        "is_drift": any(item["drifted"] for item in against.values()),
        "tested": sum(item["tested"] for item in against.values()),
        "against": against,
    }


def describe_drift(summary: Mapping[str, Any], notes: Sequence[str], where: str) -> list[str]:
    """A line for each set: a warning where something drifted, and why it was not tested where that is so.

    Args:
        summary: From `summarise_drift`.
        notes: What could not be compared.
        where: Of the table.
    """
    lines = []
    for against, found in summary["against"].items():
        drifted = found["drifted"]
        if drifted:
            shown = "; ".join(map(_show, drifted[:MOST_SHOWN]))
            more = f"; and {len(drifted) - MOST_SHOWN} more" if len(drifted) > MOST_SHOWN else ""
            lines.append(
                f"warning: drift: the new scans differ from {NAMES[against]} in {len(drifted)} of {found['tested']} "
                f"features: {shown}{more}; table in {where}"
            )
        elif found["tested"]:
            lines.append(f"no drift against {NAMES[against]} in {found['tested']} features")
        elif found["new_patients"] < MIN_PATIENTS:
            lines.append(
                f"drift against {NAMES[against]} was not tested: it needs {MIN_PATIENTS} new patients and has "
                f"{found['new_patients']}"
            )
        else:
            lines.append(f"drift against {NAMES[against]} was not tested: too few patients in it; see {where}")
    return lines + [f"drift: {note}" for note in notes]


def _describe_side(side: Sides) -> dict[str, Any]:
    before, new = side.before, side.new
    return {
        "feature": side.feature.name,
        "kind": side.feature.kind,
        "against": side.against,
        "n_before": len(before),
        "n_new": len(new),
        "median_before": float(np.median(before)) if len(before) else None,
        "median_new": float(np.median(new)) if len(new) else None,
        "stability_index": measure_stability_index(before, new) if len(before) and len(new) else None,
        "why_not": side.why_not,
    }


def _show(row: Mapping[str, Any]) -> str:
    index = row["stability_index"]
    return (
        f"{show_name(row['feature'])} (median {row['median_before']:.4g} before, {row['median_new']:.4g} now, "
        f"p {row['p_holm']:.1g}, stability index {index:.2f})"
    )


def _find_constant(comparisons: Sequence[Comparison]) -> set[Feature]:
    """Features that are one and the same number in all sets."""
    seen: dict[Feature, set[float]] = {}
    for comparison in comparisons:
        for samples in (comparison.before, comparison.new):
            for feature, values in samples.items():
                seen.setdefault(feature, set()).update(values[[0, -1]].tolist() if len(values) else ())
    return {feature for feature, extremes in seen.items() if len(extremes) <= 1}


def _get(samples: Samples, feature: Feature) -> Values:
    return samples.get(feature, np.zeros(0))


def _order(feature: Feature) -> tuple[int, str]:
    return (*OF_SCANS, *OF_MASKS).index(feature.kind), feature.name
