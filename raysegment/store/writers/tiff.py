"""A mask as a TIFF that any viewer opens."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import tifffile

from raysegment.errors import OutputError
from raysegment.scan import Mask
from raysegment.store.place import FULL, report_full_disk


def write_mask(path: Path, mask: Mask, *, num_labels: int = 1) -> None:
    """Write a mask (slices, rows, columns) as a TIFF in one step.

    Raises:
        DiskFullError: No space left.
        OutputError: The system refuses the file.
    """
    shown = mask * np.uint8(255) if num_labels == 1 else mask
    with report_full_disk(str(path)):
        temporary = path.with_name(f".{os.getpid()}.partial")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            pages, axes = (shown[0], "YX") if len(shown) == 1 else (shown, "ZYX")
            tifffile.imwrite(temporary, pages, compression="zlib", photometric="minisblack", metadata={"axes": axes})
            temporary.replace(path)
        except OSError as error:
            if error.errno in FULL:
                raise
            raise OutputError(f"{path} cannot be written: {error.strerror}.") from error
        finally:
            temporary.unlink(missing_ok=True)
