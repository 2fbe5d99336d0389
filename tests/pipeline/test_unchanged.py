"""Rows of scans that two runs share are those that a comparison of their masks would give."""

from __future__ import annotations

import math

import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from raysegment.pipeline.changes import ChangeRule, Side, compare_sides
from raysegment.pipeline.unchanged import unchanged_rows
from raysegment.store.masks import encode_mask
from raysegment.store.schema import CHANGES_SCHEMA, MASKS_SCHEMA, METRICS_SCHEMA, SCANS_SCHEMA

LABELS = {"core": 1, "edge": 2}
RULE = ChangeRule(percent=0, dice=1)

scans = st.lists(
    st.tuples(st.sampled_from(["ok", "failed"]), st.sampled_from([None, (5.0, 1.0, 1.0)]), st.integers(0, 3)),
    max_size=5,
)


@settings(max_examples=40, deadline=None)
@given(scans)
def test_the_rows_are_those_of_a_comparison_of_each_mask_with_itself(drawn) -> None:
    rows, metrics, masks, expected = [], [], [], []
    for number, (status, spacing, values) in enumerate(drawn):
        name = f"s{number}"
        rows.append({"scan_id": name, "patient_id": f"p{number}", "status": status, "model_id": "m"})
        own = {}
        mask = None
        if status == "ok":
            plane = np.zeros((2, 4, 4), np.uint8)
            plane[0, 1:3, 1:3] = [[values & 1, values & 2]] * 2
            mask = encode_mask(name, plane, labels=LABELS, spacing_mm=spacing)
            for label, value in LABELS.items():
                voxels = int((plane == value).sum())
                volume = voxels * math.prod(spacing) / 1000 if spacing else math.nan
                own[label] = {"scan_id": name, "label": label, "voxels": voxels, "volume_ml": volume}
            masks.append(mask)
            metrics += own.values()
        side = Side(scan=rows[-1], metrics=own, mask=mask)
        expected += compare_sides(side, side, RULE)
    found = unchanged_rows(
        pa.Table.from_pylist(rows, schema=SCANS_SCHEMA),
        pa.Table.from_pylist(metrics, schema=METRICS_SCHEMA),
        pa.Table.from_pylist(masks, schema=MASKS_SCHEMA),
    )
    order = [("scan_id", "ascending"), ("label", "ascending")]
    wanted = pa.Table.from_pylist(expected, schema=CHANGES_SCHEMA)
    assert found.schema == CHANGES_SCHEMA
    # As text, because NaN is no NaN's equal.
    assert repr(found.sort_by(order).to_pylist()) == repr(wanted.sort_by(order).to_pylist())
