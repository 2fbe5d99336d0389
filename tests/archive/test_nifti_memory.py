"""What the decoder's child takes for one large volume: its voxels once, as they are stored."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from volumes_made import entry_of_files, make_affine, write_nifti

from raysegment.archive.decoder import Decoder
from raysegment.scan import ReadSettings


def peak_bytes(decoder: Decoder) -> int:
    assert decoder._child is not None
    lines = Path(f"/proc/{decoder._child.pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


@pytest.mark.parametrize("name", ["large.nii", "large.nii.gz"])
@pytest.mark.parametrize("slice_axis", ["axial", "sagittal"])
def test_a_large_volume_is_held_once(tmp_path, name, slice_axis):
    volume = np.zeros((256, 256, 1024), np.int16)
    volume[64:192, 64:192] = np.random.default_rng(0).integers(0, 4000, (128, 128, 1024))
    write_nifti(tmp_path / name, volume, make_affine())
    write_nifti(tmp_path / "small.nii.gz", volume[:8, :8, :8], make_affine())
    with Decoder(1024, 120, ReadSettings(slice_axis=slice_axis)) as decoder:
        decoder.read(entry_of_files(tmp_path, "small.nii.gz"))
        before = peak_bytes(decoder)
        scan = decoder.read(entry_of_files(tmp_path, name)).scan
        packed = (tmp_path / name).stat().st_size if name.endswith(".gz") else 0
        assert (peak_bytes(decoder) - before - packed) / volume.nbytes < 1.35
    assert scan.pixels.nbytes == volume.nbytes
