"""The nouns: a scan, what is known of it before it is read, and what is predicted for it."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

Spacing = tuple[float, float, float]
"""Distance of voxel centres in millimetres, (slices, rows, columns)."""

Pixels = npt.NDArray[np.generic]
"""(slices, rows, columns, channels), as stored in the file."""

Mask = npt.NDArray[np.uint8]
"""(slices, rows, columns), the label's value in each voxel, 0 for background."""


@dataclass(frozen=True, kw_only=True)
class ScanEntry:
    """One row of the manifest: what there is to read for one scan.

    Paths in `files` and `reference_files` are relative to `source`, with forward slashes.
    """

    scan_id: str
    patient_id: str
    source: str
    """Folder or bucket that the files are below; absolute or a URI."""
    reader: str
    """Format module that reads the files: `tiff` or `raster`."""
    files: tuple[str, ...]
    """Slice files in natural order, or the one file that holds all slices."""
    reference_files: tuple[str, ...] = ()
    """As `files`, slice by slice; empty where no reference exists. An empty name is a slice without a reference."""
    num_files: int = 0
    bytes: int = 0
    """Size of all files, references included."""
    height: int | None = None
    width: int | None = None
    channels: int | None = None
    fingerprint: str = ""
    split: str | None = None
    problem: str | None = None
    """What already looks wrong in the header or the folder; None where nothing does."""


@dataclass(frozen=True)
class Scan:
    """The pixels of one examination.

    Attributes:
        pixels: (slices, rows, columns, channels), as stored in the file.
        spacing_mm: Distance of voxel centres, or None where the format has none.
        affine: 4x4 voxel-to-world matrix in millimetres, or None.
    """

    pixels: Pixels
    spacing_mm: Spacing | None = None
    affine: npt.NDArray[np.float64] | None = None

    @property
    def num_slices(self) -> int:
        return int(self.pixels.shape[0])

    @property
    def grid(self) -> tuple[int, int, int]:
        """(slices, rows, columns)."""
        slices, rows, columns = self.pixels.shape[:3]
        return int(slices), int(rows), int(columns)


@dataclass(frozen=True)
class Labels:
    """Names of the regions a model segments; `names[i]` has the value i + 1 in a mask."""

    names: tuple[str, ...] = field(default=("lesion",))

    @property
    def values(self) -> dict[str, int]:
        return {name: value for value, name in enumerate(self.names, start=1)}
