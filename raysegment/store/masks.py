"""How a mask becomes one cell of a Parquet table, and back."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

from raysegment.scan import Mask, Spacing
from raysegment.store.damage import report_damage
from raysegment.store.place import Place
from raysegment.store.publish import list_parts
from raysegment.store.schema import MASK_ENCODING

COMPRESSION_LEVEL = 1
"""Masks are mostly zeros: higher levels cost several times the time for a few per cent."""

ROWS_AT_ONCE = 4


def encode_mask(
    scan_id: str,
    mask: Mask,
    *,
    labels: Mapping[str, int],
    spacing_mm: Spacing | None = None,
    affine: npt.NDArray[np.float64] | None = None,
) -> dict[str, Any]:
    """A row of the masks table.

    Args:
        scan_id: The scan.
        mask: (slices, rows, columns), the label's value in each voxel; (labels, slices, rows, columns) where labels
            overlap.
        labels: Value of each label in the mask.
        spacing_mm: Voxel spacing, (slices, rows, columns), or None where it is unknown.
        affine: 4x4 voxel-to-world matrix, or None.
    """
    values = np.ascontiguousarray(mask)
    return {
        "scan_id": scan_id,
        "shape": list(values.shape),
        "dtype": str(values.dtype),
        "encoding": MASK_ENCODING,
        "mask": zlib.compress(values.reshape(-1).view(np.uint8).data, COMPRESSION_LEVEL),
        "spacing_mm": None if spacing_mm is None else list(spacing_mm),
        "affine": None if affine is None else np.asarray(affine, np.float64).ravel().tolist(),
        "labels": list(labels.items()),
    }


def decode_mask(row: Mapping[str, Any]) -> Mask:
    """The mask of a row of the masks table, read-only, in the row's type and shape."""
    return np.frombuffer(zlib.decompress(row["mask"]), row["dtype"]).reshape(row["shape"])


def iterate_masks(place: Place, columns: list[str] | None = None) -> Iterator[tuple[str, dict[str, Any]]]:
    """Rows of the table `masks` whose scans are published, each with the file that it is in; a few in memory at a time.

    Args:
        place: The output folder.
        columns: All if not given.

    Raises:
        DamagedTablesError: A part cannot be read.
    """
    published = set(list_parts(place, "scans"))
    for part in list_parts(place, "masks"):
        if part not in published:
            continue
        name = f"masks/{part}"
        with report_damage(place, name), pq.ParquetFile(place.path(name), filesystem=place.filesystem) as file:
            for batch in file.iter_batches(batch_size=ROWS_AT_ONCE, columns=columns):
                yield from ((name, row) for row in batch.to_pylist())
