"""NIfTI files made with nibabel, turned, flipped and oblique, for the tests of volumes."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path
from typing import Any

import nibabel
import numpy as np

from raysegment.scan import ScanEntry


def write_nifti(
    path: Path, array: np.ndarray, affine: Any = None, *, version: int = 1, slope: float = 1, intercept: float = 0
) -> Path:
    """Write (first, second, third stored axis, …) as it is, with sform and qform, or with neither."""
    kind = nibabel.Nifti1Image if version == 1 else nibabel.Nifti2Image
    image = kind(array, affine)
    if affine is not None:
        image.set_sform(affine, 1)
        image.set_qform(affine, 1)
    path.parent.mkdir(parents=True, exist_ok=True)
    data = bytearray(image.to_bytes())
    struct.pack_into("<2f" if version == 1 else "<2d", data, 112 if version == 1 else 176, slope, intercept)
    path.write_bytes(gzip.compress(data, 1) if path.name.endswith(".gz") else data)
    return path


def entry_of_files(folder: Path, *files: str, reference: str = "", channels: tuple[str, ...] = ()) -> ScanEntry:
    """A scan of these files."""
    return ScanEntry(
        scan_id="scan",
        patient_id="scan",
        source=str(folder),
        reader="nifti",
        files=files,
        reference_files=(reference,) if reference else (),
        channel_names=channels,
    )


def make_affine(spacing: Any = (1, 1, 1), angles: Any = (0, 0, 0), origin: Any = (-20, 5, 30)) -> np.ndarray:
    """RAS+ affine of a grid that is turned by angles in degrees around the three axes of the world."""
    rotation = np.eye(3)
    for axis, angle in enumerate(angles):
        first, second = [other for other in range(3) if other != axis]
        turn = np.eye(3)
        cosine, sine = np.cos(np.deg2rad(angle)), np.sin(np.deg2rad(angle))
        turn[first, first] = turn[second, second] = cosine
        turn[first, second], turn[second, first] = -sine, sine
        rotation = turn @ rotation
    affine = np.eye(4)
    affine[:3, :3] = rotation * np.asarray(spacing, float)
    affine[:3, 3] = origin
    return affine


def restack(array: np.ndarray, affine: np.ndarray, order: tuple[int, int, int], flips: tuple[bool, ...]) -> Any:
    """The same volume in the same place, its axes stored in another order and direction."""
    turn = np.zeros((4, 4))
    turn[3, 3] = 1
    for place, (axis, flip) in enumerate(zip(order, flips, strict=True)):
        turn[axis, place] = -1 if flip else 1
        turn[axis, 3] = array.shape[axis] - 1 if flip else 0
    steps = tuple(slice(None, None, -1 if flip else 1) for flip in flips)
    return array.transpose(order)[steps], affine @ turn
