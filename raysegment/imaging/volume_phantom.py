"""Made-up volumes with several labels, and the layouts that data sets of them come in: no download, no patient."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import nibabel
import numpy as np
import numpy.typing as npt
from scipy.ndimage import gaussian_filter

Volume = npt.NDArray[np.float32]
Affine = npt.NDArray[np.float64]

TWO_LABELS = {"Head": 1, "Tail": 2}
TWO_LABELS_MM = (44.0, 56.0, 34.0)
"""Extent of a volume with two labels, right, anterior and superior."""

BRATS_CHANNELS = ("flair", "t1", "t1ce", "t2")
NECROSIS, OEDEMA, ENHANCING = 1, 2, 4
"""Values of a BraTS reference up to 2020; 3 is not used."""

STORED_ORDERS = ("RAS", "LPS", "PIR", "LAS", "SAR", "AIL")
"""Where the axes of stored voxels lead to: one after the other for the scans of an archive."""

_DIRECTIONS = {"R": (0, 1), "L": (0, -1), "A": (1, 1), "P": (1, -1), "S": (2, 1), "I": (2, -1)}

# Brightness in FLAIR, T1, T1 with contrast, T2.
_BRAIN = (100.0, 110.0, 112.0, 90.0)
_FLUID = (40.0, 45.0, 46.0, 190.0)
_OEDEMA = (165.0, 88.0, 92.0, 158.0)
_NECROSIS = (112.0, 58.0, 60.0, 172.0)
_ENHANCING = (146.0, 92.0, 196.0, 128.0)
_OUTSIDE = (-3.2, -4.1, -4.8, -3.6)


@dataclass(frozen=True)
class VolumePhantom:
    """A made-up volume as a file stores it.

    Attributes:
        channels: Name and voxels of each contrast, all of one shape (i, j, k).
        reference: Values of labels, uint8, of the same shape, 0 for background.
        affine: 4x4, from (i, j, k, 1) to right, anterior, superior in millimetres.
    """

    channels: Mapping[str, npt.NDArray[np.generic]]
    reference: npt.NDArray[np.uint8]
    affine: Affine


def make_two_label_volume(seed: int, *, order: str = "RAS", turn_degrees: float = 0.0) -> VolumePhantom:
    """Draw a bent body of two adjacent labels, a thick head in front and a thin tail behind, as a hippocampus has.

    Slices are about twice as thick as pixels are wide. The tissue around has texture, pockets of fluid, and a ball as
    bright as the head that has no label.

    Args:
        seed: The same seed gives the same volume.
        order: Where the stored axes lead to, such as `LPS` or `PIR`.
        turn_degrees: By how much the grid is turned against the patient, around an axis of no plane.
    """
    random = np.random.default_rng((seed, 2024))
    pixel = random.uniform(0.95, 1.1)
    affine, shape = _make_grid(TWO_LABELS_MM, (pixel, pixel, random.uniform(1.8, 2.3)), order, turn_degrees)
    x, y, z = _positions_mm(affine, shape)
    side, size = random.choice((-1, 1)), random.uniform(0.88, 1.12)
    x, y, z = ((axis - random.uniform(-4, 4)) / size for axis in (side * x, y, z))
    bend = random.uniform(0.012, 0.022)
    head = _ball(x, y, z, centre=(2.0, 11.0, 0.0), radii=(8.0, 9.0, 7.0)) < 1
    middle = 2.0 - bend * (y - 6.0) ** 2
    across = ((x - middle) / 5.0) ** 2 + ((z - 0.01 * (y - 6.0) ** 2) / 4.6) ** 2
    tail = (across < 1 - 0.25 * (y / 20.0) ** 2) & (y < 8.0) & (y > -19.0) & ~head
    values = np.full(shape, 92.0, np.float32) + 10.0 * _noise(random, shape, 3.0)
    values[_noise(random, shape, 3.0) > 1.7] = 38.0
    values[_ball(x, y, z, centre=(13.0, -6.0, 3.0), radii=(4.0, 4.0, 4.0)) < 1] = 148.0
    values[head], values[tail] = 148.0, 138.0
    values = gaussian_filter(values, 0.5) * (1 + 0.06 * _noise(random, shape, 12.0)) * random.uniform(0.85, 1.15)
    values = np.clip(values + random.normal(0.0, 6.0, shape), 0, 255).astype(np.float32)
    reference = (head * TWO_LABELS["Head"] + tail * TWO_LABELS["Tail"]).astype(np.uint8)
    stored = np.rint(values).astype(np.uint8) if seed % 2 else values
    return VolumePhantom({"MRI": stored}, reference, affine)


def make_tumour_volume(seed: int, *, extent_mm: float = 96.0, spacing_mm: float = 2.0) -> VolumePhantom:
    """Draw a head with a tumour of three nested regions in four contrasts, in the order and values of BraTS.

    Contrasts are normalised inside the brain, so that what lies outside is below 0 and differs from one to the other.
    The rim takes up contrast, but in one scan of five there is none.

    Args:
        seed: The same seed gives the same volume.
        extent_mm: Side of the cube.
        spacing_mm: Of voxels, in all directions.
    """
    random = np.random.default_rng((seed, 2020))
    affine, shape = _make_grid((extent_mm,) * 3, (spacing_mm,) * 3, "LPS", 0.0)
    x, y, z = (axis / (extent_mm / 2) for axis in _positions_mm(affine, shape))
    brain = _ball(x, y, z, centre=(0.0, 0.0, 0.0), radii=(0.72, 0.88, 0.76)) + 0.03 * _noise(random, shape, 6.0) < 1
    fluid = brain & (_ball(np.abs(x), y, z, centre=(0.1, 0.0, 0.05), radii=(0.07, 0.34, 0.2)) < 1)
    centre = random.choice((-1, 1)) * random.uniform(0.25, 0.4), random.uniform(-0.4, 0.4), random.uniform(-0.2, 0.3)
    radius = random.uniform(0.26, 0.36)
    distance = _ball(x, y, z, centre=centre, radii=(radius,) * 3) + 0.15 * _noise(random, shape, 5.0)
    oedema, core, inner = (brain & (distance < limit) for limit in (1.0, 0.42, 0.2))
    rim = core & ~inner if seed % 5 != 4 else np.zeros_like(core)
    reference = np.zeros(shape, np.uint8)
    for region, value in ((oedema, OEDEMA), (core, NECROSIS), (rim, ENHANCING)):
        reference[region] = value
    tissues = (fluid, _FLUID), (oedema, _OEDEMA), (core, _NECROSIS), (rim, _ENHANCING)
    channels = {}
    for position, name in enumerate(BRATS_CHANNELS):
        values = np.full(shape, _BRAIN[position], np.float32) + 6.0 * _noise(random, shape, 2.5)
        for region, brightness in tissues:
            values[region] = brightness[position]
        values = gaussian_filter(values, 0.5) + random.normal(0.0, 6.0, shape)
        normal = (values - values[brain].mean()) / values[brain].std()
        channels[name] = np.where(brain, normal, _OUTSIDE[position]).astype(np.float32)
    return VolumePhantom(channels, reference, affine)


def write_decathlon(folder: str | Path, *, scans: int, seed: int) -> None:
    """Write volumes of two labels as the Medical Segmentation Decathlon does: `imagesTr`, `labelsTr`, `dataset.json`.

    Stored axes differ from scan to scan (STORED_ORDERS), and each third scan is oblique.

    Args:
        folder: Made where it does not exist.
        scans: Number of volumes, one a patient.
        seed: The same seed writes the same bytes.
    """
    root = Path(folder)
    names = [f"phantom_{number:03d}" for number in range(1, scans + 1)]
    for number, name in enumerate(names):
        order, turn = STORED_ORDERS[number % len(STORED_ORDERS)], 14.0 if number % 3 == 2 else 0.0
        phantom = make_two_label_volume(seed * 1_000_003 + number, order=order, turn_degrees=turn)
        _write_volume(root / "imagesTr" / f"{name}.nii.gz", phantom.channels["MRI"], phantom.affine)
        _write_volume(root / "labelsTr" / f"{name}.nii.gz", phantom.reference, phantom.affine)
    described = {
        "name": "Phantom",
        "description": "Made-up bodies of two labels",
        "modality": {"0": "MRI"},
        "labels": {"0": "background", **{str(value): name for name, value in TWO_LABELS.items()}},
        "numTraining": scans,
        "training": [{"image": f"./imagesTr/{name}.nii.gz", "label": f"./labelsTr/{name}.nii.gz"} for name in names],
    }
    (root / "dataset.json").write_text(json.dumps(described, indent=1) + "\n", encoding="utf-8")


def write_brats(folder: str | Path, *, scans: int, seed: int, extent_mm: float = 96.0, spacing_mm: float = 2.0) -> None:
    """Write tumours as BraTS 2020 does: `BraTS20_Training_001/BraTS20_Training_001_flair.nii.gz` beside `…_seg.nii.gz`.

    Args:
        folder: Made where it does not exist.
        scans: Number of cases.
        seed: The same seed writes the same bytes.
        extent_mm: Side of the cube.
        spacing_mm: Of voxels, in all directions.
    """
    for number in range(1, scans + 1):
        phantom = make_tumour_volume(seed * 1_000_003 + number, extent_mm=extent_mm, spacing_mm=spacing_mm)
        name = f"BraTS20_Training_{number:03d}"
        for channel, voxels in {**phantom.channels, "seg": phantom.reference}.items():
            _write_volume(Path(folder) / name / f"{name}_{channel}.nii.gz", voxels, phantom.affine)


def _write_volume(path: Path, voxels: npt.NDArray[np.generic], affine: Affine) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nibabel.Nifti1Image(voxels, affine)
    image.header.set_xyzt_units("mm")
    image.set_sform(affine, code="scanner")
    image.set_qform(affine, code="scanner")
    image.to_filename(path)


def _make_grid(
    extent_mm: tuple[float, float, float], spacing_mm: tuple[float, float, float], order: str, turn_degrees: float
) -> tuple[Affine, tuple[int, int, int]]:
    """Affine and shape of a grid around 0 with its stored axes in an order; extent is right, anterior, superior."""
    lengths = [round(extent / spacing) for extent, spacing in zip(extent_mm, spacing_mm, strict=True)]
    axes = [_DIRECTIONS[letter] for letter in order]
    linear = np.zeros((3, 3))
    for column, (axis, sign) in enumerate(axes):
        linear[axis, column] = sign * spacing_mm[axis]
    linear = _turn(turn_degrees) @ linear
    first, second, third = (lengths[axis] for axis, _ in axes)
    affine = np.eye(4)
    affine[:3, :3] = linear
    affine[:3, 3] = -linear @ ((np.array([first, second, third]) - 1) / 2)
    return affine, (first, second, third)


def _turn(degrees: float) -> Affine:
    """Rotation around an axis between all planes, after Rodrigues."""
    x, y, z = np.array([0.5, 0.3, 0.81]) / np.linalg.norm([0.5, 0.3, 0.81])
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    angle = np.deg2rad(degrees)
    return np.asarray(np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross, np.float64)


def _positions_mm(affine: Affine, shape: tuple[int, int, int]) -> list[Volume]:
    """Where each voxel is, right, anterior and superior of the centre."""
    voxels = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1)
    world = voxels @ affine[:3, :3].T + affine[:3, 3]
    return [world[..., axis].astype(np.float32) for axis in range(3)]


def _ball(
    x: Volume, y: Volume, z: Volume, *, centre: tuple[float, float, float], radii: tuple[float, float, float]
) -> Volume:
    """Squared distance from a centre, 1 on the ellipsoid with these radii."""
    terms = (((axis - middle) / radius) ** 2 for axis, middle, radius in zip((x, y, z), centre, radii, strict=True))
    return np.asarray(sum(terms), np.float32)


def _noise(random: np.random.Generator, shape: tuple[int, int, int], cell: float) -> Volume:
    """A random field with mean 0 and standard deviation 1 that changes over `cell` voxels."""
    field = gaussian_filter(random.standard_normal(shape, dtype=np.float32), cell)
    return np.asarray((field - field.mean()) / field.std(), np.float32)
