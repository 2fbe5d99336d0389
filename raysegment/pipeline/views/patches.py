"""Which part of a training slice is seen, where it is larger than what the network sees at once."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from raysegment.imaging.geometry import Box

LESION_SHARE = 2 / 3
"""Patches of a slice with lesion that are laid around a part of it; the others lie anywhere."""

STREAM = 1
"""Keeps the drawing of patches apart from that of the augmentation, which has the same seeds."""


def draw_patch(
    reference: npt.NDArray[np.generic],
    image_size: int,
    *,
    seed: int,
    epoch: int,
    scan_index: int,
    slice_index: int,
    occurrence: int,
) -> Box:
    """A square of `image_size` from one slice; the same numbers always give the same one.

    In slices with lesion most patches hold a drawn pixel of it in the middle half of their sides, so that the shares of
    slices with and without lesion in an epoch are about those of patches.

    Args:
        reference: (rows, columns), not 0 is lesion; both sides at least `image_size`.
        image_size: Side of the patch, pixels.
        seed: Of the training.
        epoch: Counted from 0.
        scan_index: Position of the scan among those that are trained on.
        slice_index: Position of the slice in the scan.
        occurrence: How often this slice came before in the epoch.
    """
    rows, columns = reference.shape
    if rows == columns == image_size:
        return Box(0, rows, 0, columns)
    random = np.random.default_rng((seed, epoch, scan_index, slice_index, occurrence, STREAM))
    lesion = np.flatnonzero(reference)
    if len(lesion) and random.random() < LESION_SHARE:
        row, column = divmod(int(random.choice(lesion)), columns)
        row_start, column_start = (
            min(max(0, place - int(random.integers(image_size // 4, 3 * image_size // 4))), side - image_size)
            for place, side in ((row, rows), (column, columns))
        )
    else:
        row_start, column_start = (int(random.integers(0, side - image_size + 1)) for side in (rows, columns))
    return Box(row_start, row_start + image_size, column_start, column_start + image_size)
