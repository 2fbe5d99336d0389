"""`raysegment export`: masks from the tables as files that any viewer opens, under the names of the originals."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass

import pyarrow.compute as pc
import pyarrow.parquet as pq

from raysegment.archive.filesystem import is_uri
from raysegment.errors import EXIT_DONE, UsageError
from raysegment.options import ExportOptions
from raysegment.runs.export_folder import ExportFolder
from raysegment.runs.export_names import MAX_PATH_BYTES, name_files
from raysegment.runs.record import read_record
from raysegment.scan import Mask
from raysegment.store.damage import report_damage
from raysegment.store.masks import decode_mask
from raysegment.store.place import Place
from raysegment.store.publish import check_tables, list_parts, read_rows
from raysegment.store.schema import STATUS_OK
from raysegment.store.writers.tiff import write_mask

ROWS_AT_ONCE = 16


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
    """Write each mask as a TIFF named after its scan: `<scan_id>_pred.tif`, one page a slice, deflate.

    A single label is shown as 0 and 255; several labels keep their values. The folder gets a list of the files, so that
    a second export replaces only these, and `index` never takes them for scans.

    Raises:
        UsageError: There are no tables; or the folder is, holds or lies in one that the scans come from, or holds
            anything that `export` did not write. Nothing is written then.
        DamagedTablesError: Parts of the tables are lost.
        DiskFullError: No space left.
        OutputError: The system refuses a file.
    """
    place = Place(options.tables)
    if not list_parts(place, "scans"):
        raise UsageError(f"{options.tables} has no masks: no scans/*.parquet. Give the folder that `infer` wrote.")
    check_tables(place, "masks")
    scans = read_rows(place, "scans", ["scan_id", "source", "status"])
    folder = ExportFolder(options.out, place)
    names = name_files(
        scans["scan_id"].filter(pc.equal(scans["status"], STATUS_OK)).to_pylist(),
        max_bytes=MAX_PATH_BYTES - len(os.fsencode(folder.root)),
    )
    if not names:
        raise UsageError(f"{options.tables} has no masks: none of its {scans.num_rows} scans is ok.")
    folder.check_apart([*scans["source"].drop_null().unique().to_pylist(), read_chosen_source(place)])
    with folder.writing(names.values()):
        for scan_id, mask, num_labels in iterate_masks(place):
            write_mask(folder.path(names[scan_id]), mask, num_labels=num_labels)
    return ExportResult(out=options.out, num_files=len(names))


def read_chosen_source(place: Place) -> str:
    """SOURCE as the run that wrote the tables was given it; empty where it is not known, or relative to an unknown."""
    source = str(dict(read_record(place).get("chosen") or {}).get("source") or "")
    return source if os.path.isabs(source) or is_uri(source) else ""


def iterate_masks(place: Place) -> Iterator[tuple[str, Mask, int]]:
    """Scan, mask and number of labels of each row of the masks table, a few rows in memory at a time.

    Raises:
        DamagedTablesError: A part cannot be read.
    """
    published = set(list_parts(place, "scans"))
    for part in list_parts(place, "masks"):
        if part not in published:
            continue
        name = f"masks/{part}"
        with report_damage(place, name), pq.ParquetFile(place.path(name), filesystem=place.filesystem) as file:
            for batch in file.iter_batches(batch_size=ROWS_AT_ONCE):
                for row in batch.to_pylist():
                    yield row["scan_id"], decode_mask(row), len(row["labels"])
