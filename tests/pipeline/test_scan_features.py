"""Which numbers a scan has, which scan of a patient counts, and what a bundle keeps of them."""

from __future__ import annotations

import json
import math

import numpy as np
import pyarrow as pa
import pytest
from scipy import stats

from raysegment.pipeline.scan_features import (
    Feature,
    choose_scans,
    measure_label,
    measure_scan,
    round_digits,
    sample_features,
    sort_samples,
)
from raysegment.pipeline.training_features import ScanTraits, choose_traits, keep_samples, read_samples
from raysegment.pipeline.two_samples import compare_samples
from raysegment.store.schema import METRICS_SCHEMA, SCANS_SCHEMA


def make_scan(scan_id: str, patient_id: str | None, **columns: object) -> dict[str, object]:
    row = {"scan_id": scan_id, "patient_id": patient_id, "status": "ok", "num_slices": 9, "height": 64, "width": 32}
    return row | columns


def test_a_scan_has_a_number_for_each_channel_and_quantile_and_0_where_spacing_is_unknown() -> None:
    row = make_scan("a", "p", spacing_mm=[5.0, 2.0, 0.5], intensity_quantiles=[1.0, 2.0, 3.0, 10.0, 20.0, 30.0])
    found = {feature.name: value for feature, value in measure_scan(row).items()}
    assert found == {
        "spacing_between_slices_mm": 5.0,
        "spacing_in_plane_mm": 1.0,
        "num_slices": 9.0,
        "height": 64.0,
        "width": 32.0,
        **{f"intensity_q{name}_channel_0": value for name, value in (("05", 1.0), ("50", 2.0), ("95", 3.0))},
        **{f"intensity_q{name}_channel_1": value for name, value in (("05", 10.0), ("50", 20.0), ("95", 30.0))},
    }
    older = measure_scan(make_scan("a", "p", spacing_mm=None, intensity_quantiles=None))
    assert [value for feature, value in older.items() if feature.kind == "spacing"] == [0, 0]
    assert {feature.kind for feature in older} == {"spacing", "shape"}


def test_a_label_has_a_volume_or_voxels_and_its_doubt() -> None:
    row = {"label": "tumour", "voxels": 7, "volume_ml": 0.5, "border_entropy": math.nan, "share_near_threshold": None}
    found = {feature.name: value for feature, value in measure_label(row).items()}
    assert found.pop("volume_ml_tumour") == 0.5
    assert all(math.isnan(value) for value in found.values())
    unknown = measure_label(row | {"volume_ml": math.nan, "border_entropy": 0.25})
    assert unknown[Feature("volume", "voxels_tumour")] == 7
    assert unknown[Feature("doubt", "border_entropy_tumour")] == 0.25


def test_each_patient_counts_once_whatever_the_order_and_failed_scans_do_not() -> None:
    ids, patients = ["a1", "a2", "a3", "b1", "c"], ["a", "a", "a", "b", None]
    chosen = {ids[position] for position in choose_scans(ids, patients)}
    again = {ids[::-1][position] for position in choose_scans(ids[::-1], patients[::-1])}
    assert chosen == again
    assert len(chosen) == 3
    assert {"b1", "c"} <= chosen
    scans = [make_scan(name, patient) for name, patient in zip(ids, patients, strict=True)]
    scans.append(make_scan("d", "d", status="failed"))
    metrics = [{"scan_id": name, "label": "x", "voxels": number} for number, name in enumerate([*ids, "other"])]
    found = sample_features(
        pa.Table.from_pylist(scans, schema=SCANS_SCHEMA), pa.Table.from_pylist(metrics, schema=METRICS_SCHEMA)
    )
    assert found[Feature("shape", "height")].tolist() == [64, 64, 64]
    assert found[Feature("volume", "voxels_x")].tolist() == sorted(ids.index(name) for name in chosen)
    assert found[Feature("doubt", "border_entropy_x")].size == 0


def test_the_scan_that_counts_is_no_rule_of_its_name() -> None:
    """Of two scans of each of 400 patients about half are the first by name."""
    ids = [f"p{patient:03d}/{day}" for patient in range(400) for day in ("2020", "2021")]
    chosen = choose_scans(ids, [name[:4] for name in ids])
    low, high = stats.binom.interval(0.999, 400, 0.5)
    assert low <= sum(position % 2 for position in chosen) <= high


def test_numbers_keep_four_digits() -> None:
    found = round_digits(np.array([0.0, 1.23456, -0.000123456, 98765.4, 512.0, 1e-300]))
    assert found.tolist() == pytest.approx([0, 1.235, -0.0001235, 98770, 512, 1e-300], rel=1e-12)
    assert sort_samples({Feature("shape", "x"): [3, math.nan, 1.00001, math.inf]})[Feature("shape", "x")].tolist() == [
        1,
        3,
    ]


def test_a_bundle_keeps_numbers_in_order_and_at_most_a_thousand_that_stand_for_all() -> None:
    rng = np.random.default_rng(2)
    few, many = Feature("volume", "volume_ml_x"), Feature("intensity", "intensity_q50_channel_0")
    samples = sort_samples({few: rng.normal(size=70), many: rng.normal(size=50_000)})
    kept = json.loads(json.dumps(keep_samples(samples)))
    assert list(kept) == ["volume", "intensity"]
    back = read_samples(kept | {"colour": {"hue": [1.0]}})
    assert np.array_equal(back[few], samples[few])
    assert set(back) == {few, many}
    assert len(back[many]) == 1000
    assert stats.kstest(back[many], samples[many]).statistic < 0.001
    new = rng.normal(size=(300, 60))
    # As a sample of a thousand they vary less than a sample would, so no more alarms are raised.
    alarms = np.count_nonzero(compare_samples(np.tile(back[many], (300, 1)), new).p_value <= 0.05)
    assert alarms <= stats.binom.ppf(0.995, 300, 0.05)


def test_of_each_patient_of_a_training_one_scan_is_kept() -> None:
    traits = {
        name: ScanTraits(
            num_slices=number,
            slice_shape=(8, 9),
            spacing_mm=None,
            voxel_mm3=math.nan,
            intensity_quantiles=(1.0, 2.0, 3.0),
        )
        for number, name in enumerate(["a", "b", "c", "d"])
    }
    patients = {"a": "p", "b": "p", "c": "q", "d": "r"}
    val = {"d": traits.pop("d")}
    chosen = choose_traits(traits, val, patients)
    assert len(chosen.train) == 2
    assert chosen.val == val
    assert chosen.train[-1].features[Feature("shape", "num_slices")] == 2


def test_of_very_many_patients_some_stand_for_all_however_many_scans_they_have() -> None:
    patients = [f"p{number % 300}" for number in range(1000)] + [f"q{number}" for number in range(300)]
    ids = [f"{name}/{number}" for number, name in enumerate(patients)]
    chosen = choose_scans(ids, patients, most=200)
    assert len(chosen) == len({patients[position] for position in chosen}) == 200
    low, high = stats.binom.interval(0.999, 200, 0.5)
    assert low <= sum(patients[position].startswith("q") for position in chosen) <= high
    assert set(chosen) <= set(choose_scans(ids, patients))
