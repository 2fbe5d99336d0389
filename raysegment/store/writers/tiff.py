"""A mask as a TIFF that any viewer opens."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import tifffile

from raysegment.scan import Mask
from raysegment.store.place import write_whole


def write_mask(path: Path, mask: Mask, *, num_labels: int = 1) -> None:
    """Write a mask as a TIFF in one step.

    One label is shown as 0 and 255, several keep their values. Labels that overlap come one after the other, in the
    order of the table's `labels`, each as 0 and 255: pages (labels, slices), which the file names `CZYX`.

    Args:
        path: The file.
        mask: (slices, rows, columns), or (labels, slices, rows, columns) where labels overlap.
        num_labels: How many there are.

    Raises:
        DiskFullError: No space left.
        OutputError: The system refuses the file.
    """
    overlap = mask.ndim == 4
    shown = (mask != 0) * np.uint8(255) if num_labels == 1 or overlap else mask
    pages, axes = (shown.squeeze(-3), "YX") if shown.shape[-3] == 1 else (shown, "ZYX")
    metadata = {"axes": "C" * overlap + axes}
    with write_whole(path) as temporary:
        tifffile.imwrite(temporary, pages, compression="zlib", photometric="minisblack", metadata=metadata)
