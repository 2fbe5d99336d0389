"""`raysegment export`: masks from the tables as files that any viewer opens, under the names of the originals."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from raysegment.errors import EXIT_DONE, UsageError
from raysegment.options import ExportOptions
from raysegment.store.masks import decode_mask
from raysegment.store.place import Place
from raysegment.store.publish import list_parts
from raysegment.store.writers.tiff import write_mask

ROWS_AT_ONCE = 16
SUFFIX = "_mask.tif"
_NOT_IN_NAMES = re.compile(r"[\x00-\x1f\x7f]")


@dataclass(frozen=True, kw_only=True)
class ExportResult:
    """What was exported.

    Attributes:
        out: Folder of the files.
        num_files: Files written.
        exit_code: Always 0.
    """

    out: str
    num_files: int
    exit_code: int = EXIT_DONE


def export_masks(options: ExportOptions) -> ExportResult:
    """Write each mask as a TIFF named after its scan: `<scan_id>_mask.tif`, one page a slice, deflate.

    A single label is shown as 0 and 255; several labels keep their values.

    Raises:
        UsageError: There are no tables, or the target is the tables' own folder.
        DiskFullError: No space left.
    """
    place = Place(options.tables)
    if not list_parts(place, "masks"):
        raise UsageError(f"{options.tables} has no masks: no masks/*.parquet. Give the folder that `infer` wrote.")
    out = Path(options.out)
    if place.is_local and out.resolve() == Path(place.root).resolve():
        raise UsageError(f"--out {options.out} is the tables' own folder; choose another one.")
    taken: set[Path] = set()
    for row in iterate_masks(place):
        target = _free_target(out, row["scan_id"], taken)
        write_mask(target, decode_mask(row), num_labels=len(row["labels"]))
    return ExportResult(out=options.out, num_files=len(taken))


def iterate_masks(place: Place) -> Iterator[dict[str, Any]]:
    """Rows of the masks table, a few at a time."""
    for name in list_parts(place, "masks"):
        with pq.ParquetFile(place.path(f"masks/{name}"), filesystem=place.filesystem) as file:
            for batch in file.iter_batches(batch_size=ROWS_AT_ONCE):
                yield from batch.to_pylist()


def _free_target(out: Path, scan_id: str, taken: set[Path]) -> Path:
    """Where a scan's file goes: below `out` whatever the scan is called, and a name for each scan."""
    pieces = [piece for piece in scan_id.split("/") if piece not in ("", ".", "..")] or ["scan"]
    stem = "/".join(_NOT_IN_NAMES.sub("_", piece) for piece in pieces)
    for known in (".tif", ".tiff", ".png", ".jpg", ".jpeg"):
        stem = stem[: -len(known)] if stem.lower().endswith(known) else stem
    target, number = out / f"{stem}{SUFFIX}", 2
    while target in taken:
        target, number = out / f"{stem}-{number}{SUFFIX}", number + 1
    taken.add(target)
    return target
