"""The random warp of a training slice: rotation, shift, zoom, shear, flip and elastic displacement in one."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from raysegment.imaging.geometry import Box, map_channels
from raysegment.imaging.smooth_field import Field, draw_smooth_field
from raysegment.scan import LabelMap, Pixels

Matrix = npt.NDArray[np.float64]

IDENTITY = np.eye(2, 3)
LINEAR = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
NEAREST = cv2.INTER_NEAREST | cv2.WARP_INVERSE_MAP


@dataclass(frozen=True, kw_only=True)
class WarpChoices:
    """The largest random changes of shape; 0 and False leave a slice as it is."""

    rotation: float = 15.0
    """Degrees, to either side."""
    shift: float = 0.05
    """Share of the side."""
    zoom: float = 0.1
    """Share, larger or smaller."""
    shear: float = 0.1
    """Share of the side."""
    flip: bool = True
    """Flip half of the slices left to right."""
    elastic: float = 0.0
    """Displacement by a smooth field, share of the side."""


@dataclass(frozen=True, eq=False)
class Warp:
    """Where each pixel of a patch comes from in the slice; pixels and label map are each interpolated once.

    Attributes:
        patch: What is seen of the slice.
        matrix: 2x3, from (column, row) of the patch to those of the slice.
        places: Column and row in the slice, each (rows, columns) of the patch, where the matrix does not say it all.
    """

    patch: Box
    matrix: Matrix
    places: tuple[Field, Field] | None = None

    @property
    def is_identity(self) -> bool:
        return self.places is None and np.array_equal(self.matrix, IDENTITY)

    def warp_pixels(self, pixels: Pixels, background: npt.NDArray[np.float32]) -> Pixels:
        """Interpolate linearly, (rows, columns, channels); what comes from outside the slice is background.

        Args:
            pixels: The whole slice; channels may be those of stacked context slices.
            background: Level of each channel of one slice.
        """
        if self.is_identity:
            return pixels[: self.patch.rows, : self.patch.columns]
        outside = np.tile(background.astype(np.float64), pixels.shape[2] // len(background))
        size = (self.patch.columns, self.patch.rows)
        # In OpenCV's own steps of 1/32 pixel, so that not every group of channels rounds them anew.
        steps = None if self.places is None else cv2.convertMaps(*self.places, cv2.CV_16SC2)

        def warp_group(group: Pixels, channels: slice) -> Pixels:
            border = tuple(outside[channels])
            if steps is not None:
                return cv2.remap(group, *steps, cv2.INTER_LINEAR, borderValue=border)
            return cv2.warpAffine(group, self.matrix, size, flags=LINEAR, borderValue=border)

        return map_channels(pixels, warp_group)

    def warp_reference(self, reference: LabelMap) -> LabelMap:
        """Take the nearest value, (rows, columns); 0 from outside the slice. A bool map becomes uint8."""
        plain = reference.view(np.uint8) if reference.dtype == np.bool_ else reference
        if self.is_identity:
            return plain[: self.patch.rows, : self.patch.columns]
        if self.places is not None:
            return np.asarray(cv2.remap(plain, *self.places, cv2.INTER_NEAREST), plain.dtype)
        size = (self.patch.columns, self.patch.rows)
        return np.asarray(cv2.warpAffine(plain, self.matrix, size, flags=NEAREST), plain.dtype)


def draw_warp(random: np.random.Generator, choices: WarpChoices, patch: Box) -> Warp:
    """A random warp about the patch's centre.

    With `elastic` up to 0.08 the elastic part never folds a slice: over a side a smooth field changes by `STEEPEST`
    times its largest value, so that along both axes together a displacement changes by less than what it displaces.
    """
    matrix = _draw_matrix(random, choices, patch)
    if not choices.elastic:
        return Warp(patch, matrix)
    moved_columns, moved_rows = (
        draw_smooth_field(random, patch.rows, patch.columns) * np.float32(choices.elastic * side)
        for side in (patch.columns, patch.rows)
    )
    columns = np.arange(patch.columns, dtype=np.float32) + moved_columns
    rows = np.arange(patch.rows, dtype=np.float32)[:, None] + moved_rows
    of_columns, of_rows = matrix.astype(np.float32)
    return Warp(patch, matrix, (_follow(of_columns, columns, rows), _follow(of_rows, columns, rows)))


def _follow(of_axis: npt.NDArray[np.float32], columns: Field, rows: Field) -> Field:
    return np.asarray(of_axis[0] * columns + of_axis[1] * rows + of_axis[2], np.float32)


def _draw_matrix(random: np.random.Generator, choices: WarpChoices, patch: Box) -> Matrix:
    """A 2x3 matrix from the patch's coordinates to those of the slice, about the patch's centre."""
    angle, shift_x, shift_y, zoom, shear = random.uniform(-1, 1, 5)
    flip = choices.flip and random.random() < 0.5
    turn = np.deg2rad(choices.rotation) * angle
    cosine, sine = np.cos(turn), np.sin(turn)
    linear = np.array([[cosine, -sine], [sine, cosine]])
    linear = linear @ np.array([[1.0, choices.shear * shear], [0.0, 1.0]]) / (1 + choices.zoom * zoom)
    if flip:
        linear[:, 0] *= -1
    rows, columns = patch.rows, patch.columns
    centre = np.array([(columns - 1) / 2, (rows - 1) / 2])
    moved = np.array([shift_x * columns, shift_y * rows]) * choices.shift
    start = np.array([patch.column_start, patch.row_start], np.float64)
    return np.column_stack([linear, centre + moved - linear @ centre + start])
