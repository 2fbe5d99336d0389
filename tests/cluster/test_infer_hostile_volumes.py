"""An archive of volumes that misbehave: each bad one is a typed row, the others are segmented."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tables import assert_whole, read_table

from raysegment.commands.infer import infer
from raysegment.options import InferOptions

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("ray_here")]

CHANNELS = ("flair", "t1", "t2")
GOOD = ("good", "also good", "other order")


def write_archive(archive: Path) -> dict[str, str]:
    """Three channels for each scan; returns the error type of each bad one."""
    from volumes_hostile import HOSTILE
    from volumes_made import make_affine, restack, write_nifti

    affine = make_affine((1, 1, 2))
    volume = (np.random.default_rng(0).random((16, 16, 16)) * 200).astype(np.int16)
    expected = {name.replace(" ", "_"): error.__name__ for name, (_, error, _) in HOSTILE.items()}
    for name in (*GOOD, *expected, "missing", "elsewhere"):
        for channel in CHANNELS:
            write_nifti(archive / name / f"{channel}.nii.gz", volume, affine)
    for name, (make, _, _) in HOSTILE.items():
        (archive / name.replace(" ", "_") / "t1.nii.gz").write_bytes(make())
    write_nifti(archive / "other order" / "t2.nii.gz", *restack(volume, affine, (2, 0, 1), (True, False, True)))
    (archive / "missing" / "t2.nii.gz").unlink()
    write_nifti(archive / "elsewhere" / "t2.nii.gz", volume, make_affine((1, 1, 2), origin=(0, 0, 0)))
    return expected | {"missing": "MissingChannelError", "elsewhere": "GridMismatchError"}


def test_every_hostile_volume_is_a_typed_row_and_no_text_of_a_header_is_told(tmp_path, tiny_bundle, capfd):
    expected = write_archive(tmp_path / "archive")
    result = infer(
        InferOptions(
            model=str(tiny_bundle),
            source=str(tmp_path / "archive"),
            out=str(tmp_path / "out"),
            channel=tuple(f"{name}={{scan}}/{name}.nii.gz" for name in CHANNELS),
            read_memory_mb=512,
        )
    )
    scans = read_table(tmp_path / "out", "scans").set_index("scan_id")
    assert result.exit_code == 3
    assert set(scans.index[scans["status"] == "ok"]) == set(GOOD)
    assert scans["error_type"].dropna().to_dict() == expected
    assert assert_whole(tmp_path / "out") == len(GOOD) + len(expected)
    printed = "".join(capfd.readouterr())
    told = b"".join(path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file())
    assert "MUSTERMANN" not in printed
    assert b"MUSTERMANN" not in told
