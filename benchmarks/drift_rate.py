"""How often drift is seen where there is none, and where there is: `python benchmarks/drift_rate.py --cohorts 2000`.

Cohorts are made up, as numbers per scan, in three ways; the features are tested as `resegment` does, corrected over
all. Of each way it says in how many cohorts anything was flagged, and within which bounds that number lies with a
chance of 95 % if the rate is as stated. It is a rate at most: features that go together, and two sets beside which the
same new scans are seen, make for fewer alarms, as do sizes that are multiples of each other, because distances then
come in few steps. So the first way has none of these, and there the rate should be met; it must be kept in all.

    independent   continuous features that know nothing of each other, against the past alone
    scans         against a training set too, features as scans have them: quantiles that go together, spacings of two
                  values, whole numbers, volumes that are often 0 and doubt that is then missing, sides that are always
                  the same
    patients      the same with up to four scans of a patient, which are alike, in the past, and new scans of which a
                  third are of known patients

`planted` then says how often shifts of some standard deviations of one feature among those of `scans` are found.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial

import numpy as np
from scipy import stats

from raysegment.pipeline.drift import Comparison, compare_pairs, correct_sides, find_drift, list_sides
from raysegment.pipeline.scan_features import Feature, Samples, choose_scans, sort_samples

NUM_PAST, NUM_TRAINING = 301, 80
COHORTS_AT_ONCE = 200
Draw = Callable[[np.random.Generator, int], dict[Feature, np.ndarray]]
SHIFTED = Feature("intensity", "intensity_q50_channel_2")


def draw_independent(rng: np.random.Generator, count: int) -> dict[Feature, np.ndarray]:
    """Twelve continuous features."""
    return {Feature("intensity", f"feature-{number:02d}"): rng.normal(size=count) for number in range(12)}


def draw_scans(rng: np.random.Generator, count: int, patient: np.ndarray | None = None) -> dict[Feature, np.ndarray]:
    """Features as scans have them, of one scan a patient, or of several that are alike where `patient` says how."""
    own = rng.normal(size=count)
    shared = own if patient is None else 0.9 * patient + np.sqrt(1 - 0.81) * own
    found = {}
    for channel in range(3):
        for weight, name in ((0.9, "q05"), (0.6, "q50"), (0.8, "q95")):
            values = weight * shared + np.sqrt(1 - weight**2) * rng.normal(size=count)
            found[Feature("intensity", f"intensity_{name}_channel_{channel}")] = np.round(100 + 10 * values)
    found[SHIFTED] = 100 + 10 * (0.6 * shared + 0.8 * rng.normal(size=count))
    volume = np.where(shared + rng.normal(size=count) < -1.8, 0.0, np.exp(1 + shared))
    return found | {
        Feature("spacing", "spacing_between_slices_mm"): np.where(shared > 0.8, 3.0, 5.0),
        Feature("spacing", "spacing_in_plane_mm"): np.ones(count),
        Feature("shape", "num_slices"): np.round(25 + 4 * rng.normal(size=count)),
        Feature("shape", "height"): np.full(count, 256.0),
        Feature("shape", "width"): np.full(count, 256.0),
        Feature("volume", "volume_ml_lesion"): volume,
        Feature("doubt", "border_entropy_lesion"): np.where(volume > 0, rng.beta(5, 3, count), np.nan),
        Feature("doubt", "share_near_threshold_lesion"): np.where(volume > 0, rng.beta(2, 9, count), np.nan),
    }


def sample(draw: Draw, rng: np.random.Generator, count: int) -> Samples:
    """One scan of each of so many patients."""
    return sort_samples(draw(rng, count))


def sample_patients(rng: np.random.Generator, num_new: int) -> tuple[Samples, Samples]:
    """The past and the new scans of patients who have several, and some of whom are in both."""
    level = rng.normal(size=NUM_PAST + num_new)
    past = np.repeat(np.arange(NUM_PAST), rng.integers(1, 5, NUM_PAST))
    new = np.concatenate([rng.integers(0, NUM_PAST, num_new // 3), NUM_PAST + np.arange(num_new - num_new // 3)])
    samples = []
    for night, patients in enumerate((past, new)):
        names = [f"{patient}" for patient in patients]
        chosen = choose_scans([f"{name}/{night}/{number}" for number, name in enumerate(names)], names)
        scans = draw_scans(rng, len(patients), level[patients])
        samples.append(sort_samples({feature: values[chosen] for feature, values in scans.items()}))
    return samples[0], samples[1]


Cohort = list[Comparison]


def make_unchanged(way: str, num_new: int, seed: int) -> Cohort:
    """One cohort in which nothing has changed."""
    rng = np.random.default_rng([seed, num_new])
    draw: Draw = draw_independent if way == "independent" else draw_scans
    training = sample(draw, rng, NUM_TRAINING)
    if way == "patients":
        past, new = sample_patients(rng, num_new)
    else:
        past, new = sample(draw, rng, NUM_PAST), sample(draw, rng, num_new)
    against_past = Comparison("past", past, new, num_new)
    if way == "independent":
        return [against_past]
    return [Comparison("training", training, new, num_new), against_past]


def make_shifted(shift: float, num_new: int, seed: int) -> Cohort:
    """One cohort in which one feature has moved by so many standard deviations."""
    rng = np.random.default_rng([seed, num_new])
    past, training = sample(draw_scans, rng, NUM_PAST), sample(draw_scans, rng, NUM_TRAINING)
    drawn = draw_scans(rng, num_new)
    new = sort_samples(drawn | {SHIFTED: drawn[SHIFTED] + 10 * shift})
    return [Comparison("training", training, new, num_new), Comparison("past", past, new, num_new)]


def find_flagged(make: Callable[[int], Cohort], count: int, rate: float) -> list[set[str]]:
    """What is flagged in each of so many cohorts; they are tested side by side, which is a hundred times as fast."""
    flagged = []
    for start in range(0, count, COHORTS_AT_ONCE):
        cohorts = [make(seed) for seed in range(start, min(count, start + COHORTS_AT_ONCE))]
        sides = [[side for side in list_sides(cohort) if side.why_not is None] for cohort in cohorts]
        p_values = compare_pairs([(side.before, side.new) for of_cohort in sides for side in of_cohort]).p_value
        for cohort, of_cohort in zip(cohorts, sides, strict=True):
            own, p_values = p_values[: len(of_cohort)], p_values[len(of_cohort) :]
            corrected = correct_sides(of_cohort, own, cohort)
            flagged.append({side.feature.name for side, p in zip(of_cohort, corrected, strict=True) if p <= rate})
    check_side_by_side(make, flagged, rate)
    return flagged


def check_side_by_side(make: Callable[[int], Cohort], flagged: list[set[str]], rate: float) -> None:
    """Some of the cohorts as `resegment` tests them, one at a time."""
    for seed in range(0, len(flagged), max(1, len(flagged) // 10)):
        rows = find_drift(make(seed), rate).to_pylist()
        assert {row["feature"] for row in rows if row["is_drift"]} == flagged[seed]


def main() -> None:
    """Run all and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--cohorts", type=int, default=2000)
    parser.add_argument("--rate", type=float, default=0.05)
    parser.add_argument("--shifted", type=int, default=200, help="cohorts for each planted shift")
    chosen = parser.parse_args()
    for way in ("independent", "scans", "patients"):
        for num_new in (30, 300):
            started = time.monotonic()
            make = partial(make_unchanged, way, num_new)
            alarms = sum(map(bool, find_flagged(make, chosen.cohorts, chosen.rate)))
            low, high = stats.binom.interval(0.95, chosen.cohorts, chosen.rate)
            print(
                f"{way}, {num_new} new: {alarms} of {chosen.cohorts} cohorts flagged ({alarms / chosen.cohorts:.2%}); "
                f"at {chosen.rate:.0%} between {low:.0f} and {high:.0f}; {time.monotonic() - started:.0f} s",
                flush=True,
            )
    for num_new, shifts in ((30, (0.5, 0.8, 1.0)), (300, (0.2, 0.3, 0.4))):
        for shift in shifts:
            flagged = find_flagged(partial(make_shifted, shift, num_new), chosen.shifted, chosen.rate)
            hits = sum(SHIFTED.name in names for names in flagged)
            print(f"planted {shift} deviations, {num_new} new: found in {hits / chosen.shifted:.0%}", flush=True)


if __name__ == "__main__":
    main()
