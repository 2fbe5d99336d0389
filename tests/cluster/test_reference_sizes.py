"""How much each label takes up in the scans that are trained on."""

from __future__ import annotations

import math

import numpy as np
import pyarrow as pa
import tifffile

from raysegment.archive.index import find_scans
from raysegment.options import Preprocessing
from raysegment.scan import ReadSettings


def test_sizes_are_those_of_the_references_on_the_scans_own_grid(phantom_archive):
    from raysegment.cluster.training.kept import keep_rows, read_size

    manifest = find_scans(str(phantom_archive)).slice(0, 2)
    drawn = [
        sum(int(np.count_nonzero(tifffile.imread(path))) for path in (phantom_archive / name).glob("*_mask.tif"))
        for name in manifest["scan_id"].to_pylist()
    ]
    assert min(drawn) > 0
    for spacing_mm, voxel_mm3 in ((None, math.nan), ((5.0, 1.0, 2.0), 10.0)):
        kept = keep_rows(manifest, ReadSettings(), Preprocessing(image_size=32), 3, spacing_mm)
        sizes = [read_size(row) for row in kept.to_pylist()]
        assert [size.voxels for size in sizes] == [(count,) for count in drawn]
        assert {size.slice_shape for size in sizes} == {(64, 64)}
        np.testing.assert_equal([size.voxel_mm3 for size in sizes], [voxel_mm3] * 2)


def test_a_scan_that_cannot_be_used_has_no_size(phantom_archive):
    from raysegment.cluster.training.kept import keep_rows

    manifest = find_scans(str(phantom_archive)).slice(0, 1)
    kept = keep_rows(manifest, ReadSettings(), Preprocessing(image_size=32), 4)
    assert kept["error_type"].to_pylist() == ["ChannelMismatchError"]
    assert isinstance(kept, pa.Table)
    assert kept["label_voxels"].null_count == 1
