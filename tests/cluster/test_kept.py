"""Scans kept for training, with one on which the reading process dies."""

from __future__ import annotations

import shutil

import pyarrow as pa
import pytest

from raysegment import TrainOptions
from raysegment.archive.index import find_scans
from raysegment.scan import Labels

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("ray_here")]


def test_a_scan_on_which_the_reading_process_dies_is_left_out_alone(tmp_path, phantom_archive):
    from raysegment.cluster.training.kept import keep_scans

    for number in (1, 2):
        shutil.copytree(phantom_archive / f"PHANTOM_{number:04d}", tmp_path / f"PHANTOM_{number:04d}")
    (tmp_path / "killer").mkdir()
    (tmp_path / "killer" / "s.hostile").write_bytes(b"HOSTILE kill-parent")
    manifest = find_scans(str(tmp_path))
    split = pa.array(["train"] * manifest.num_rows, pa.string())
    manifest = manifest.set_column(manifest.schema.get_field_index("split"), "split", split)
    kept = keep_scans(manifest, TrainOptions(source="", out="", image_size=64), Labels(), None)
    chosen = kept.select(manifest, "train")
    assert chosen.scan_ids == ["PHANTOM_0001", "PHANTOM_0002"]
    assert [(scan_id, error[0]) for scan_id, error in kept.errors.items()] == [
        ("killer/s.hostile", "ReaderCrashedError")
    ]
    assert chosen.fetch(1).pixels.shape[1:] == (64, 64, 3)


def test_the_spacing_given_for_an_archive_decides_the_grid_of_physical_pixels(phantom_archive):
    from raysegment.cluster.training.kept import keep_scans

    manifest = find_scans(str(phantom_archive)).slice(0, 2)
    split = pa.array(["train"] * manifest.num_rows, pa.string())
    manifest = manifest.set_column(manifest.schema.get_field_index("split"), "split", split)
    chosen = {"source": "", "out": "", "image_size": 32, "pixel_mm": 1.0}
    kept = keep_scans(manifest, TrainOptions(**chosen, spacing_mm=(5.0, 1.0, 2.0)), Labels(), None)
    assert not kept.errors
    assert kept.select(manifest, "train").fetch(1).pixels.shape[1:] == (64, 128, 3)
    unknown = keep_scans(manifest, TrainOptions(**chosen), Labels(), None).errors
    assert [error_type for error_type, _ in unknown.values()] == ["UnknownSpacingError"] * 2
