"""From the axes of a volume as stored to (slices, rows, columns) in one canonical order, and back exactly.

World coordinates are millimetres with axes that run to the Right, to the front (Anterior) and up (Superior): RAS+.
Slices of every volume are shown to the network as a radiologist sees them:

| slice axis | slices run | rows run | columns run |
|---|---|---|---|
| axial | up | to the back | from right to left |
| coronal | to the back | down | from right to left |
| sagittal | from right to left | down | to the back |

Voxels are only reordered, so an oblique volume keeps its oblique slices, and each voxel its place in the world.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import permutations, product
from typing import Any, Literal, TypeVar, cast

import numpy as np
import numpy.typing as npt

from raysegment.scan import SliceAxis, Spacing

Affine = npt.NDArray[np.float64]
"""4x4: (index, index, index, 1) of a voxel to RAS+ millimetres."""

Plane = Literal["axial", "coronal", "sagittal"]

Value = TypeVar("Value", bound=np.generic)

DIRECTIONS: dict[Plane, tuple[tuple[int, int], ...]] = {
    "axial": ((2, 1), (1, -1), (0, -1)),
    "coronal": ((1, -1), (2, -1), (0, -1)),
    "sagittal": ((0, -1), (2, -1), (1, -1)),
}
"""For slices, rows and columns: the axis of the world (0 right, 1 front, 2 up) and which way along it."""

PLANE_OF_WORLD_AXIS: dict[int, Plane] = {0: "sagittal", 1: "coronal", 2: "axial"}

CORNERS = np.array(list(product((0, 1), repeat=3)))
"""Of a cube of side 1."""

THICKER = 1.1
"""A spacing this many times the other two is the distance of slices."""


@dataclass(frozen=True)
class Orientation:
    """How the stored axes of a volume become slices, rows and columns.

    Attributes:
        slice_axis: What slices are: axial, coronal or sagittal.
        axes: The stored axis that becomes slices, rows, columns.
        flips: Which of slices, rows, columns run against the stored axis.
    """

    slice_axis: Plane
    axes: tuple[int, int, int]
    flips: tuple[bool, bool, bool]

    def apply(self, array: npt.NDArray[Value]) -> npt.NDArray[Value]:
        """Stored axes to (slices, rows, columns); further axes behind them stay. A view."""
        turned = array.transpose(*self.axes, *range(3, array.ndim))
        return turned[self._steps]

    def undo(self, array: npt.NDArray[Value]) -> npt.NDArray[Value]:
        """(slices, rows, columns) to the stored axes; further axes behind them stay. A view."""
        places = np.argsort(self.axes)
        return array[self._steps].transpose(*(int(place) for place in places), *range(3, array.ndim))

    def shape(self, stored: tuple[int, ...]) -> tuple[int, int, int]:
        """(slices, rows, columns) of a volume whose stored axes have these sizes."""
        slices, rows, columns = (stored[axis] for axis in self.axes)
        return slices, rows, columns

    def affine(self, affine: Affine, stored: tuple[int, ...]) -> Affine:
        """The affine of (slice, row, column), from that of the stored axes and their sizes."""
        turn = np.zeros((4, 4))
        turn[3, 3] = 1
        for place, (axis, flip) in enumerate(zip(self.axes, self.flips, strict=True)):
            turn[axis, place] = -1 if flip else 1
            turn[axis, 3] = stored[axis] - 1 if flip else 0
        return np.asarray(affine, np.float64) @ turn

    def undo_affine(self, affine: Affine, stored: tuple[int, ...]) -> Affine:
        """The affine of the stored axes, from that of (slice, row, column) and the sizes of the stored axes."""
        return np.asarray(affine, np.float64) @ np.linalg.inv(self.affine(np.eye(4), stored))

    @property
    def _steps(self) -> tuple[slice, ...]:
        return tuple(slice(None, None, -1 if flip else 1) for flip in self.flips)


def find_orientation(affine: Affine, shape: tuple[int, ...], slice_axis: SliceAxis) -> Orientation:
    """How a volume is cut into slices, and which way these run.

    With `auto` slices lie along an axis of one voxel, else along the thickest spacing if it is a tenth thicker than
    both others, else they are axial.

    Args:
        affine: 4x4, of the stored axes; must not be singular.
        shape: Sizes of the stored axes; further ones are left out.
        slice_axis: `auto` or a word.
    """
    world = _match_axes(affine)
    plane = _choose_plane(affine, shape[:3], world) if slice_axis == "auto" else slice_axis
    directions = DIRECTIONS[plane]
    axes = tuple(world[axis] for axis, _ in directions)
    flips = tuple(bool(affine[axis, world[axis]] * way < 0) for axis, way in directions)
    return Orientation(plane, cast(Any, axes), cast(Any, flips))


def find_turn(affine: Affine, target: Affine) -> Orientation:
    """How a volume's axes must be turned to run like those of another one, as nearly as turning by right angles can.

    Args:
        affine: 4x4, of the stored axes.
        target: 4x4, of (slices, rows, columns) of the other one.
    """
    between = np.eye(4)
    between[:3, :3] = np.linalg.inv(target[:3, :3]) @ affine[:3, :3]
    stored = _match_axes(between)
    flips = tuple(bool(between[place, axis] < 0) for place, axis in enumerate(stored))
    return Orientation(plane_of(target), cast(Any, stored), cast(Any, flips))


def plane_of(affine: Affine) -> Plane:
    """What the slices of a volume in canonical order are."""
    return PLANE_OF_WORLD_AXIS[_match_axes(affine).index(0)]


def spacing_of(affine: Affine) -> Spacing:
    """Distance of voxel centres along each index, in millimetres."""
    first, second, third = np.sqrt((np.asarray(affine, np.float64)[:3, :3] ** 2).sum(axis=0))
    return float(first), float(second), float(third)


def corner_distance(first: Affine, second: Affine, shape: tuple[int, ...]) -> float:
    """The largest distance in millimetres of a grid's corners under two affines."""
    apart = first - second
    corners = CORNERS * (np.array(shape[:3]) - 1)
    return float(np.linalg.norm(corners @ apart[:3, :3].T + apart[:3, 3], axis=1).max())


def _match_axes(affine: Affine) -> tuple[int, ...]:
    """For each axis of the world the stored axis nearest to it, all three together."""
    cosines = np.abs(affine[:3, :3]) / np.array(spacing_of(affine))
    orders = list(permutations(range(3)))
    sums = [round(float(cosines[range(3), order].sum()), 6) for order in orders]
    return orders[int(np.argmax(sums))]


def _choose_plane(affine: Affine, shape: tuple[int, ...], world: tuple[int, ...]) -> Plane:
    single = [axis for axis, size in enumerate(shape) if size == 1]
    if len(single) == 1:
        return PLANE_OF_WORLD_AXIS[world.index(single[0])]
    spacing = np.array(spacing_of(affine))
    thickest = int(np.argmax(spacing))
    if spacing[thickest] > THICKER * np.delete(spacing, thickest).max():
        return PLANE_OF_WORLD_AXIS[world.index(thickest)]
    return "axial"
