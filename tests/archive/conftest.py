"""Small archives made with tifffile and Pillow, and where the real scans are."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile

WriteSeries = Callable[..., np.ndarray]


@pytest.fixture
def write_series() -> WriteSeries:
    """Writes numbered slices into a folder, with or without masks, and returns the pixels."""

    def write(folder: Path, prefix: str, *, slices: int = 3, masks: bool = True, size: int = 16) -> np.ndarray:
        folder.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(slices).integers(0, 255, (slices, size, size, 3), np.uint8)
        for index in range(slices):
            tifffile.imwrite(folder / f"{prefix}{index + 1}.tif", pixels[index], photometric="rgb")
            if masks:
                mask = np.where(pixels[index, ..., 0] > 128, 255, 0).astype(np.uint8)
                tifffile.imwrite(folder / f"{prefix}{index + 1}_mask.tif", mask)
        return pixels

    return write


@pytest.fixture
def real_lgg() -> Path:
    """The LGG scans below the folder that RAYSEGMENT_DATA names."""
    folder = os.environ.get("RAYSEGMENT_DATA")
    if not folder or not (Path(folder) / "lgg").is_dir():
        pytest.skip("RAYSEGMENT_DATA names no folder that holds lgg/")
    return Path(folder) / "lgg"
