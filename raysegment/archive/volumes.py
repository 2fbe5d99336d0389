"""Volumes on one grid: axes as stored to slices, and channels and references to the grid of the first channel."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np

from raysegment.archive.formats import Header
from raysegment.archive.names import show_name
from raysegment.archive.orientation import (
    CORNERS,
    Affine,
    Orientation,
    corner_distance,
    find_orientation,
    find_turn,
    spacing_of,
)
from raysegment.errors import ChannelMismatchError, GridMismatchError
from raysegment.scan import Pixels, ReadSettings, Scan, SliceAxis, Spacing

SAME_PLACE_MM = 1e-3
SAME_PLACE_SHARE = 0.01
"""Corners may lie apart by a thousandth of a millimetre or a hundredth of the smallest spacing: headers hold rounded
numbers, and a quaternion others than a matrix."""

BORDER_STEP = 5


@dataclass(frozen=True, eq=False)
class Grid:
    """Where the voxels of a scan lie.

    Attributes:
        shape: (slices, rows, columns).
        affine: 4x4, (slice, row, column, 1) to RAS+ millimetres; None where nobody knows.
        is_volume: Whether its axes were turned, so that only a volume can be a reference of it; None: not known.
    """

    shape: tuple[int, int, int]
    affine: Affine | None
    is_volume: bool | None = None


def turn_header(header: Header, slice_axis: SliceAxis) -> Header:
    """A volume's header with slices, rows and columns in canonical order."""
    stored = (header.slices, header.rows, header.columns)
    spacing_mm = header.spacing_mm or (1.0, 1.0, 1.0)
    turn = find_orientation(assume_affine(header.affine, spacing_mm), stored, slice_axis)
    slices, rows, columns = turn.shape(stored)
    affine = None if header.affine is None else turn.affine(header.affine, stored)
    return replace(
        header, slices=slices, rows=rows, columns=columns, spacing_mm=turn_spacing(spacing_mm, turn), affine=affine
    )


def turn_scan(part: Scan, slice_axis: SliceAxis) -> Scan:
    """A volume as stored, in canonical order; a view."""
    assert part.spacing_mm is not None
    assumed = assume_affine(part.affine, part.spacing_mm)
    return _turned(part, find_orientation(assumed, part.grid, slice_axis))


def lay_on_grid(part: Scan, grid: Grid, settings: ReadSettings, name: str, *, is_reference: bool) -> Scan:
    """A volume as stored, on the grid of a scan that was read before.

    Axes in another order are no other grid. What lies elsewhere is resampled where the settings say so: channels
    linearly, references by the nearest voxel; outside of it is what its border shows, or background of a reference.
    What would be outside altogether, but has the same shape, spacing and directions, has lost its origin (as the
    reference of a BraTS 2020 case in circulation has): it is taken voxel by voxel.

    Args:
        part: Axes as stored.
        grid: Of the scan.
        settings: Whether to resample, and how volumes without affine are cut.
        name: For messages.
        is_reference: Whether values are labels.

    Raises:
        GridMismatchError: It lies on another grid, or outside of the scan's.
    """
    if part.affine is None or grid.affine is None:
        return _lay_without_affine(part, grid, settings, name)
    turned = _turned(part, find_turn(part.affine, grid.affine))
    is_same = _is_same_grid(turned, grid)
    if not is_same and not settings.resample_channels:
        raise GridMismatchError(
            f"{show_name(name)} lies on another grid: {_describe_difference(turned, grid)}. --resample-channels brings "
            "it to the scan's."
        )
    if not is_same and not _lies_outside(turned, grid):
        return Scan(_resample(turned, grid, is_reference), spacing_of(grid.affine), grid.affine)
    if not is_same and not _is_same_grid(_move(turned, grid), grid):
        raise GridMismatchError(f"{show_name(name)} lies outside of the scan; there is nothing to resample.")
    return replace(turned, affine=grid.affine, spacing_mm=spacing_of(grid.affine))


def join_channels(parts: Iterable[tuple[Scan, str]], num_channels: int, settings: ReadSettings) -> Scan:
    """Volumes of one channel each as one scan, on the grid of the first, in a type that holds all of them.

    Args:
        parts: Each with its name, axes as stored, in the order of channels.
        num_channels: How many there are.
        settings: How they are cut into slices, and whether they are resampled.

    Raises:
        ChannelMismatchError: One of them has a fourth axis.
        GridMismatchError: They lie on different grids.
    """
    joined: Scan | None = None
    for index, (part, name) in enumerate(parts):
        if part.pixels.shape[3] != 1:
            raise ChannelMismatchError(
                f"{show_name(name)} has {part.pixels.shape[3]} volumes; a channel of a scan is one volume."
            )
        if joined is None:
            laid = turn_scan(part, settings.slice_axis)
            joined = replace(laid, pixels=np.empty((*laid.grid, num_channels), laid.pixels.dtype))
        else:
            laid = lay_on_grid(part, Grid(joined.grid, joined.affine), settings, name, is_reference=False)
            joined = replace(joined, pixels=_promote(joined.pixels, laid.pixels.dtype))
        joined.pixels[..., index] = laid.pixels[..., 0]
    assert joined is not None
    return joined


def turn_spacing(spacing_mm: Spacing, turn: Orientation) -> Spacing:
    """Spacing of the stored axes as that of (slices, rows, columns)."""
    slices, rows, columns = (spacing_mm[axis] for axis in turn.axes)
    return slices, rows, columns


def assume_affine(affine: Affine | None, spacing_mm: Spacing) -> Affine:
    """Without an affine the stored axes are taken as right, front, up."""
    return np.diag([*spacing_mm, 1.0]) if affine is None else affine


def _turned(part: Scan, turn: Orientation) -> Scan:
    assert part.spacing_mm is not None
    affine = None if part.affine is None else turn.affine(part.affine, part.grid)
    return Scan(turn.apply(part.pixels), turn_spacing(part.spacing_mm, turn), affine)


def _lay_without_affine(part: Scan, grid: Grid, settings: ReadSettings, name: str) -> Scan:
    """Where neither knows its place the shapes decide."""
    if (part.affine is None) != (grid.affine is None):
        which = "it" if part.affine is None else "the scan"
        raise GridMismatchError(
            f"{show_name(name)} cannot be laid on the scan's grid: {which} does not say where it lies in the world "
            "(no sform, no qform)."
        )
    turned = turn_scan(part, settings.slice_axis)
    if turned.grid != grid.shape:
        raise GridMismatchError(f"{show_name(name)} is {turned.grid}, the scan is {grid.shape}; both must be alike.")
    return turned


def _promote(pixels: Pixels, dtype: np.dtype[np.generic]) -> Pixels:
    """The smallest type for both; single precision is enough beside whole numbers."""
    both = np.result_type(pixels.dtype, dtype)
    if both == np.float64 and np.float64 not in (pixels.dtype, dtype):
        both = np.dtype(np.float32)
    return pixels.astype(both, copy=False)


def _is_same_grid(part: Scan, grid: Grid) -> bool:
    if part.grid != grid.shape or part.affine is None or grid.affine is None:
        return False
    tolerance_mm = max(SAME_PLACE_MM, SAME_PLACE_SHARE * min(spacing_of(grid.affine)))
    return corner_distance(part.affine, grid.affine, grid.shape) <= tolerance_mm


def _describe_difference(part: Scan, grid: Grid) -> str:
    assert part.affine is not None
    assert grid.affine is not None
    if part.grid != grid.shape:
        return f"it is {part.grid}, the scan is {grid.shape}"
    apart_mm = corner_distance(part.affine, grid.affine, grid.shape)
    if _lies_outside(part, grid) and _is_same_grid(_move(part, grid), grid):
        return f"it has the scan's shape, but lies {apart_mm:.3g} mm away, outside of the scan (a lost origin?)"
    return f"its voxels lie up to {apart_mm:.3g} mm from those of the scan"


def _lies_outside(part: Scan, grid: Grid) -> bool:
    """Whether a volume shares no more than an outermost plane of voxels with the grid."""
    assert part.affine is not None
    assert grid.affine is not None
    corners = np.column_stack([CORNERS * (np.array(part.grid) - 1), np.ones(len(CORNERS))])
    places = (np.linalg.inv(grid.affine) @ part.affine @ corners.T)[:3]
    return bool(((places.max(axis=1) < 0.5) | (places.min(axis=1) > np.array(grid.shape) - 1.5)).any())


def _move(part: Scan, grid: Grid) -> Scan:
    """A volume with its first voxel where that of the grid is."""
    assert part.affine is not None
    assert grid.affine is not None
    affine = part.affine.copy()
    affine[:3, 3] = grid.affine[:3, 3]
    return replace(part, affine=affine)


def _resample(part: Scan, grid: Grid, is_reference: bool) -> Pixels:
    from scipy.ndimage import affine_transform

    assert part.affine is not None
    assert grid.affine is not None
    to_part = np.linalg.inv(part.affine) @ grid.affine
    values = np.ascontiguousarray(part.pixels[..., 0])
    is_exact = is_reference or values.dtype.kind == "f"
    resampled = affine_transform(
        values,
        to_part[:3, :3],
        to_part[:3, 3],
        output_shape=grid.shape,
        output=values.dtype if is_exact else np.float32,
        order=0 if is_reference else 1,
        mode="grid-constant",
        cval=0 if is_reference else _border_level(values),
    )
    if not is_exact:
        resampled = np.rint(resampled).astype(values.dtype)
    return np.asarray(resampled)[..., None]


def _border_level(values: Pixels) -> float:
    """The median of a volume's outermost voxels: what lies around what was scanned."""
    faces = [face for axis in range(3) for face in (values.take(0, axis), values.take(-1, axis))]
    return float(np.median(np.concatenate([face.ravel()[::BORDER_STEP] for face in faces])))
