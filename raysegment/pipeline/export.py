"""One stored mask back on the grid of the file that its scan came from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from raysegment.archive.names import show_name
from raysegment.archive.orientation import Affine
from raysegment.archive.stored_grid import read_stored_grid
from raysegment.errors import SourceChangedError, UnknownGridError
from raysegment.scan import Mask, ScanEntry, SliceAxis
from raysegment.store.writers.nifti import make_header

VOLUME_READERS = frozenset({"nifti", "dicom"})
UPRIGHT = [2, 1, 0, 3]
"""Of an affine of (slice, row, column, 1): that of (column, row, slice, 1)."""

SAME_PLACE = 1e-6
"""Tables hold affines in double precision, as they were read."""


@dataclass(frozen=True, eq=False)
class Volume:
    """A mask as a NIfTI file holds it.

    Attributes:
        planes: One for a label map; where labels overlap one for each of them. Each (i, j, k).
        header: Of the source, or one of its own where the source has none.
    """

    planes: tuple[Mask, ...]
    header: bytes


def restore_volume(row: Mapping[str, Any], mask: Mask, entry: ScanEntry | None, slice_axis: SliceAxis | None) -> Volume:
    """Turn a stored mask back to the axes of its source.

    Args:
        row: Of the table `masks`.
        mask: That row's mask, (slices, rows, columns) or (labels, slices, rows, columns).
        entry: The scan as it lies in its archive now; None where it is no longer there. Without use where the scan was
            made of slices.
        slice_axis: How the volume was cut into slices; None for a scan that was made of slices, whose mask becomes a
            volume of (columns, rows, slices), placed by the table's affine or else by spacing alone.

    Raises:
        SourceChangedError: The scan is not there any more, or on another grid.
        UnknownGridError: A scan of slices of which nobody knows the spacing.
        ScanError: The source's header cannot be read.
    """
    planes = mask if mask.ndim == 4 else mask[np.newaxis]
    if slice_axis is None:
        return _place_slices(tuple(planes), _affine_of_slices(row))
    name = show_name(str(row["scan_id"]))
    if entry is None or entry.reader not in VOLUME_READERS:
        raise SourceChangedError(f"{name} is no longer in the archive as a volume, so nobody knows its mask's grid.")
    stored = None if row["affine"] is None else np.asarray(row["affine"], np.float64).reshape(4, 4)
    slices, rows, columns = planes.shape[1:]
    grid = read_stored_grid(entry, slice_axis, stored, (slices, rows, columns))
    if grid.turn.shape(grid.shape) != planes.shape[1:] or not _is_same(grid.affine, stored):
        raise SourceChangedError(f"{name} lies on another grid than when it was segmented; segment it again.")
    restored = tuple(grid.turn.undo(plane) for plane in planes)
    if grid.head is not None:
        return Volume(restored, grid.head)
    affine = _affine_of_slices(row) if grid.stored_affine is None else grid.stored_affine[:, UPRIGHT]
    return _place_slices(restored, affine)


def check_unchanged(row: Mapping[str, Any], fingerprint: str, entry: ScanEntry | None) -> None:
    """Refuse a scan whose files are others than those that were segmented.

    Raises:
        SourceChangedError: Names the scan.
    """
    name = show_name(str(row["scan_id"]))
    if entry is None:
        raise SourceChangedError(f"{name} is no longer in the archive.")
    if entry.fingerprint != fingerprint:
        raise SourceChangedError(f"{name} has changed since it was segmented; segment it again.")


def _place_slices(planes: tuple[Mask, ...], affine: Affine) -> Volume:
    """Masks of (slices, rows, columns) as volumes of (columns, rows, slices), as programs stack slices."""
    upright = tuple(plane.transpose(2, 1, 0) for plane in planes)
    columns, rows, slices = upright[0].shape
    return Volume(upright, make_header((columns, rows, slices), affine))


def _affine_of_slices(row: Mapping[str, Any]) -> Affine:
    """For (column, row, slice): the table's own, or one that takes slices for axial, seen as radiologists do.

    Raises:
        UnknownGridError: There is neither.
    """
    if row["affine"] is not None:
        return np.asarray(row["affine"], np.float64).reshape(4, 4)[:, UPRIGHT]
    if row["spacing_mm"] is None:
        raise UnknownGridError(
            f"{show_name(str(row['scan_id']))} has no spacing, without which a NIfTI file has no place in the world. "
            "Segment it with --spacing-mm, or export --to tiff."
        )
    slices, rows, columns = row["spacing_mm"]
    return np.diag([-columns, -rows, slices, 1.0])


def _is_same(affine: Affine | None, stored: Affine | None) -> bool:
    if affine is None or stored is None:
        return affine is stored
    return bool(np.allclose(affine, stored, rtol=SAME_PLACE, atol=SAME_PLACE))
