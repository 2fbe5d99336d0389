"""Slices of a series in their order along the slice normal, and their grid in the world.

DICOM's axes run to the Left, to the back (Posterior) and up (LPS+); the affine's to the Right, to the front and up.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from raysegment.archive.names import show_name
from raysegment.archive.orientation import Affine
from raysegment.errors import AffineError, DuplicateSliceError, MissingSliceError, SliceMismatchError
from raysegment.scan import Spacing

Numbers = npt.NDArray[np.float64]

TO_RAS = np.array([-1.0, -1.0, 1.0])

RIGHT_ANGLE = 0.01
"""Directions may be that far from length 1 and from a right angle: headers hold rounded numbers."""

SAME_DIRECTION = 1e-3
SAME_PLACE_SHARE = 0.01
SAME_PLACE_MM = 1e-4
"""Slices nearer than this share of the largest gap, or this, lie at one place."""

MISSING_GAP = 1.5
"""Times the usual gap, from which a slice is missing."""

UNEVEN_SHARE, NOTED_SHARE = 0.1, 0.01
"""Shares of the gap by which a slice may lie off its place, and from which this is told."""

TILT_SHARE = 0.005
"""Sideways shift from slice to slice, as a share of their gap, from which the gantry was tilted."""


@dataclass(frozen=True, eq=False)
class SliceOrder:
    """How slices are stacked.

    Attributes:
        order: Indices of the slices, in the direction of their normal.
        affine: 4x4, (slice, row, column, 1) of the stack to RAS+ millimetres; None where nobody knows.
        spacing_mm: Distances of planes, rows and columns; None where nobody knows. Of a tilted gantry the distance of
            planes is less than that of voxels.
        note: What is odd, for people; None where nothing is.
    """

    order: tuple[int, ...]
    affine: Affine | None
    spacing_mm: Spacing | None
    note: str | None = None


def order_slices(
    positions: Numbers | None,
    orientations: Numbers | None,
    pixel_spacing: tuple[float, float] | None,
    thickness: float | None,
    name: str,
    num_slices: int = 1,
) -> SliceOrder:
    """Sort slices along their normal, and find their grid.

    Args:
        positions: (slices, 3), of first pixels, in DICOM's millimetres; None where they are not known.
        orientations: (slices, 6) or (6,), directions of rows, then of columns; None where they are not known.
        pixel_spacing: Distance of rows, distance of columns, in millimetres.
        thickness: Of a slice, in millimetres; the distance of planes where there is only one.
        name: Of the series, for messages.
        num_slices: How many there are, where no positions say so.

    Raises:
        AffineError: Directions are none.
        SliceMismatchError: Slices look in different directions, or lie unevenly.
        DuplicateSliceError: Several slices lie at one place.
        MissingSliceError: There is a gap.
    """
    if positions is None or orientations is None:
        return _without_place(num_slices if positions is None else len(positions), pixel_spacing, thickness)
    if pixel_spacing is None:
        found = order_slices(positions, orientations, (1.0, 1.0), thickness, name)
        return SliceOrder(found.order, None, None, found.note)
    rows, columns = _find_directions(np.atleast_2d(orientations), name)
    normal = np.cross(rows, columns)
    depths = positions @ normal
    order = np.argsort(depths, kind="stable")
    if len(order) == 1:
        if thickness is None or thickness <= 0:
            return SliceOrder((0,), None, None)
        step, note = normal * thickness, None
    else:
        _check_gaps(depths[order], name)
        step, note = _find_step(positions[order], normal, name)
    between_rows, between_columns = pixel_spacing
    affine = np.eye(4)
    affine[:3, :3] = np.column_stack([step, columns * between_rows, rows * between_columns]) * TO_RAS[:, None]
    affine[:3, 3] = positions[order[0]] * TO_RAS
    affine += 0.0
    spacing_mm = (float(abs(step @ normal)), float(between_rows), float(between_columns))
    return SliceOrder(tuple(int(index) for index in order), affine, spacing_mm, note)


def find_axes(orientation: Numbers, pixel_spacing: tuple[float, float], name: str) -> Affine:
    """The directions of a slice as an affine without place: (slice, row, column) to RAS+, slices 1 mm apart.

    Args:
        orientation: (6,), directions of rows, then of columns.
        pixel_spacing: Distance of rows, distance of columns, in millimetres.
        name: For messages.

    Raises:
        AffineError: They are none.
    """
    rows, columns = _find_directions(np.atleast_2d(orientation), name)
    axes = np.eye(4)
    steps = [np.cross(rows, columns), columns * pixel_spacing[0], rows * pixel_spacing[1]]
    axes[:3, :3] = np.column_stack(steps) * TO_RAS[:, None]
    return axes


def _without_place(num_slices: int, pixel_spacing: tuple[float, float] | None, thickness: float | None) -> SliceOrder:
    """Slices as they come, with the size of a voxel where a header has it."""
    known = num_slices == 1 and pixel_spacing is not None and thickness is not None and thickness > 0
    spacing_mm = (float(thickness), *map(float, pixel_spacing)) if known and thickness and pixel_spacing else None
    return SliceOrder(tuple(range(num_slices)), None, spacing_mm)  # type: ignore[arg-type]


def _find_directions(orientations: Numbers, name: str) -> tuple[Numbers, Numbers]:
    """Direction of rows and of columns, each of length 1, the same of all slices."""
    apart = np.abs(orientations - orientations[0]).max(axis=1)
    if apart.max() > SAME_DIRECTION:
        raise SliceMismatchError(
            f"{show_name(name)}: {int((apart > SAME_DIRECTION).sum())} of {len(apart)} slices look in another "
            "direction than the first one; the slices of a scan are parallel."
        )
    rows, columns = orientations[0, :3], orientations[0, 3:]
    lengths = np.linalg.norm(rows), np.linalg.norm(columns)
    if max(abs(length - 1) for length in lengths) > RIGHT_ANGLE or abs(rows @ columns) > RIGHT_ANGLE:
        raise AffineError(f"{show_name(name)}: the directions of its rows and columns are not at right angles.")
    return rows / lengths[0], columns / lengths[1]


def _check_gaps(depths: Numbers, name: str) -> None:
    """Refuse slices at one place, and gaps between them."""
    gaps = np.diff(depths)
    is_new = gaps > max(SAME_PLACE_MM, SAME_PLACE_SHARE * float(gaps.max()))
    if not is_new.all():
        counts = np.diff(np.flatnonzero(np.concatenate([[True], is_new, [True]])))
        raise DuplicateSliceError(f"{show_name(name)} {_describe_counts(counts)}; a scan has one slice at each.")
    usual = float(np.sort(gaps)[(len(gaps) - 1) // 2])
    wide = gaps[gaps >= MISSING_GAP * usual]
    if len(wide):
        missing = int(np.rint(wide / usual - 1).clip(1).sum())
        raise MissingSliceError(
            f"{show_name(name)}: {missing} of its slices {'is' if missing == 1 else 'are'} missing: {len(depths)} "
            f"slices lie {usual:.4g} mm apart, but for {len(wide)} gap{'s' * (len(wide) > 1)} of up to "
            f"{wide.max():.4g} mm. Fetch the whole series."
        )


def _describe_counts(counts: npt.NDArray[np.integer]) -> str:
    if len(set(counts.tolist())) == 1:
        kinds = "copies" if len(counts) == 1 else "phases, echoes or contrasts in one series?"
        return f"has {counts[0]} slices at each of {len(counts)} positions ({kinds})"
    return f"has up to {counts.max()} slices at one position, at {int((counts > 1).sum())} of {len(counts)} positions"


def _find_step(positions: Numbers, normal: Numbers, name: str) -> tuple[Numbers, str | None]:
    """The way from slice to slice, and what is odd about it."""
    step = (positions[-1] - positions[0]) / (len(positions) - 1)
    gap = float(step @ normal)
    off = np.linalg.norm(positions - positions[0] - np.arange(len(positions))[:, None] * step, axis=1).max()
    if off > UNEVEN_SHARE * gap:
        raise SliceMismatchError(
            f"{show_name(name)}: its slices lie unevenly, up to {off:.3g} mm off places that are {gap:.4g} mm apart."
        )
    sideways = float(np.linalg.norm(step - normal * gap))
    if sideways > TILT_SHARE * gap:
        angle = np.degrees(np.arctan2(sideways, gap))
        return step, f"its slices are shifted sideways, as by a gantry tilted by {angle:.3g} degrees"
    if off > NOTED_SHARE * gap:
        return step, f"its slices lie up to {off:.3g} mm off even places"
    return step, None
