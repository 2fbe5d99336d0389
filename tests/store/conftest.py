"""Rows of made-up scans."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from raysegment.store.masks import encode_mask
from raysegment.store.parts import ScanRows

MakeRows = Callable[..., ScanRows]


@pytest.fixture
def make_rows() -> MakeRows:
    """Rows of one scan, ok or failed with a type of error."""

    def make(scan_id: str, *, error_type: str | None = None, fingerprint: str = "f") -> ScanRows:
        row = {"scan_id": scan_id, "patient_id": "p", "fingerprint": fingerprint, "status": "ok", "num_slices": 2}
        if error_type is not None:
            return ScanRows(row | {"status": "failed", "error_type": error_type, "error_message": "bad"})
        mask = np.full((2, 3, 4), len(scan_id) % 2, np.uint8)
        metric = {"scan_id": scan_id, "patient_id": "p", "label": "lesion", "voxels": int(mask.sum())}
        return ScanRows(row, (metric,), encode_mask(scan_id, mask, labels={"lesion": 1}))

    return make
