"""Made-up brains with lesions, for the demo and the tests: no download, no patient."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import tifffile

Plane = npt.NDArray[np.float32]

# Brightness in pre-contrast, FLAIR, post-contrast; 0 to 255.
SCALP = (150.0, 138.0, 160.0)
SKULL = (14.0, 14.0, 16.0)
GREY_MATTER = (84.0, 98.0, 90.0)
WHITE_MATTER = (104.0, 80.0, 110.0)
VENTRICLE = (34.0, 26.0, 36.0)
FURROW = (52.0, 50.0, 54.0)
LESION = (74.0, 156.0, 104.0)
VESSEL = (120.0, 176.0, 190.0)


def make_phantom(
    seed: int, *, image_size: int = 256, slices: int = 16
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.bool_]]:
    """Draw one brain-like scan.

    Head, skull, grey and white matter, ventricles; one to three irregular lesions, bright in channel 1 as in FLAIR,
    over neighbouring slices; small bright spots that are no lesions; texture, a bias field and noise.

    Args:
        seed: The same seed gives the same scan.
        image_size: Rows and columns.
        slices: From the skull's base to its top.

    Returns:
        Pixels, uint8, (slices, image_size, image_size, 3), and the reference, bool, (slices, image_size, image_size).
    """
    random = np.random.default_rng((seed, 2019))
    grid = _Grid(random, image_size, slices)
    pixels = np.zeros((slices, image_size, image_size, 3), np.float32)
    reference = np.zeros((slices, image_size, image_size), np.bool_)
    brain = _paint_head(grid, pixels)
    _paint_spots(grid, pixels, brain)
    _paint_lesions(grid, pixels, reference, brain)
    return _add_artefacts(grid, pixels), reference


def write_archive(folder: str | Path, *, patients: int, seed: int, image_size: int = 256, slices: int = 16) -> None:
    """Write phantoms in the layout of the LGG set: `PHANTOM_0001/PHANTOM_0001_1.tif` beside `…_1_mask.tif`.

    Args:
        folder: Made where it does not exist.
        patients: Number of patients, one scan each.
        seed: The same seed writes the same pixels.
        image_size: Rows and columns.
        slices: About this many a scan: up to three more.
    """
    for patient in range(1, patients + 1):
        name = f"PHANTOM_{patient:04d}"
        scan_seed = seed * 1_000_003 + patient
        pixels, reference = make_phantom(scan_seed, image_size=image_size, slices=slices + scan_seed % 4)
        write_scan(Path(folder) / name, name, pixels, reference)


def write_scan(
    folder: Path, name: str, pixels: npt.NDArray[np.uint8], reference: npt.NDArray[np.bool_] | None = None
) -> None:
    """Write one phantom, a TIFF file for each slice, with its reference or without.

    Args:
        folder: Made where it does not exist.
        name: Begin of its files' names.
        pixels: Uint8, (slices, rows, columns, 3).
        reference: Bool, (slices, rows, columns).
    """
    folder.mkdir(parents=True, exist_ok=True)
    for number, plane in enumerate(pixels, start=1):
        tifffile.imwrite(folder / f"{name}_{number}.tif", plane, photometric="rgb")
    for number, mask in enumerate(() if reference is None else reference, start=1):
        tifffile.imwrite(folder / f"{name}_{number}_mask.tif", mask.astype(np.uint8) * 255)


class _Grid:
    """Coordinates of one phantom: x and y from -1 to 1 over a slice, turned and moved a little, z over the slices."""

    def __init__(self, random: np.random.Generator, image_size: int, slices: int) -> None:
        self.random = random
        self.image_size = image_size
        self.slices = slices
        axis = np.linspace(-1, 1, image_size, dtype=np.float32)
        y, x = np.meshgrid(axis, axis, indexing="ij")
        turn = np.deg2rad(random.uniform(-8, 8))
        x, y = x - random.uniform(-0.05, 0.05), y - random.uniform(-0.05, 0.05)
        self.x = ((np.cos(turn) * x + np.sin(turn) * y) / random.uniform(0.92, 1.05)).astype(np.float32)
        self.y = ((np.cos(turn) * y - np.sin(turn) * x) / random.uniform(0.92, 1.05)).astype(np.float32)
        self.z = np.linspace(-0.85, 0.9, slices)
        self.pixel = 2.0 / image_size

    def radius(self, z: float) -> float:
        """How large the head is at a height: 1 in the middle."""
        return float(np.sqrt(max(0.0, 1.0 - z * z)))

    def smooth_noise(self, cell: float) -> Plane:
        """A random field with mean 0 and standard deviation 1 that changes over `cell` (1 is half a side)."""
        coarse = max(2, round(2.0 / cell))
        field = self.random.standard_normal((coarse, coarse), dtype=np.float32)
        wide = cv2.resize(field, (self.image_size, self.image_size), interpolation=cv2.INTER_CUBIC)
        return np.asarray((wide - wide.mean()) / (wide.std() + 1e-6), np.float32)


def _paint_head(grid: _Grid, pixels: npt.NDArray[np.float32]) -> npt.NDArray[np.bool_]:
    """Paint all tissues; return where the brain is."""
    brain = np.zeros(pixels.shape[:3], np.bool_)
    folds, outline = grid.smooth_noise(0.16), 0.015 * grid.smooth_noise(0.5)
    for index, z in enumerate(grid.z):
        size = grid.radius(z)
        distance = np.sqrt((grid.x / 0.74) ** 2 + (grid.y / 0.9) ** 2) + outline
        texture = folds + 0.5 * grid.smooth_noise(0.1)
        plane = pixels[index]
        plane[distance < size] = SCALP
        plane[distance < size - 0.06] = SKULL
        brain[index] = distance < size - 0.13
        plane[brain[index]] = GREY_MATTER
        plane[distance + 0.06 * texture < size - 0.25] = WHITE_MATTER
        furrows = (np.abs(folds) < 0.15) & (distance > size - 0.24)
        plane[furrows & brain[index]] = FURROW
        side = np.abs(grid.x) - 0.09
        ventricle = (side / 0.055) ** 2 + ((grid.y + 0.03) / (0.3 * size + 0.01)) ** 2 + 0.2 * texture < 1 - 3 * z * z
        plane[ventricle & brain[index]] = VENTRICLE
        plane[(np.abs(grid.x) < 0.012) & brain[index] & ~ventricle] = VENTRICLE
    return brain


def _paint_lesions(
    grid: _Grid, pixels: npt.NDArray[np.float32], reference: npt.NDArray[np.bool_], brain: npt.NDArray[np.bool_]
) -> None:
    """Paint one to three lumpy lesions over neighbouring slices; most scans have one."""
    random = grid.random
    for _ in range(random.choice([1, 1, 1, 2, 3])):
        angle, reach, height = random.uniform(0, 2 * np.pi), random.uniform(0.15, 0.45), random.uniform(-0.4, 0.5)
        x, y = reach * np.cos(angle), 1.2 * reach * np.sin(angle)
        wide, long, tall = random.uniform(0.15, 0.3), random.uniform(0.15, 0.3), random.uniform(0.25, 0.4)
        lumps, strength = grid.smooth_noise(0.17), random.uniform(0.75, 1.1)
        for index, z in enumerate(grid.z):
            depth = ((z - height) / tall) ** 2
            distance = ((grid.x - x) / wide) ** 2 + ((grid.y - y) / long) ** 2 + depth + 0.3 * lumps
            inside = (distance < 1) & brain[index]
            edge = np.clip((1.25 - distance) / 0.5, 0, 1)[..., None] * strength * brain[index][..., None]
            pixels[index] += edge * (np.asarray(LESION, np.float32) - pixels[index])
            reference[index] |= inside


def _paint_spots(grid: _Grid, pixels: npt.NDArray[np.float32], brain: npt.NDArray[np.bool_]) -> None:
    """Paint vessels and artefacts: small, bright in every channel, in one slice, not part of the reference."""
    random = grid.random
    for index in range(grid.slices):
        for _ in range(random.poisson(2.0)):
            x, y = random.uniform(-0.5, 0.5), random.uniform(-0.6, 0.6)
            radius = random.uniform(0.02, 0.045)
            inside = ((grid.x - x) ** 2 + (grid.y - y) ** 2 < radius**2) & brain[index]
            pixels[index][inside] = VESSEL


def _add_artefacts(grid: _Grid, pixels: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
    """Blur a little, add texture, bias field, gain and noise, and round to uint8."""
    random = grid.random
    bias = (1 + 0.1 * grid.smooth_noise(1.0))[..., None]
    gain = random.uniform(0.85, 1.15, 3).astype(np.float32)
    deviation = random.uniform(4.0, 8.0)
    for index, plane in enumerate(pixels):
        blurred = cv2.GaussianBlur(plane, (3, 3), 0)
        texture = (1 + 0.05 * grid.smooth_noise(0.06))[..., None]
        noise = random.standard_normal((2, *plane.shape), dtype=np.float32) * deviation
        # Magnitude images: noise is Rician, so the background is dark but not 0.
        pixels[index] = np.hypot(blurred * bias * gain * texture + noise[0], 0.6 * noise[1])
    return np.clip(np.rint(pixels), 0, 255).astype(np.uint8)
