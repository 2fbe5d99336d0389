"""`raysegment export`: masks from the tables as files that any viewer opens, under the names of the originals."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import pyarrow.compute as pc
import pyarrow.parquet as pq

from raysegment.archive.filesystem import is_uri
from raysegment.archive.names import decode_name
from raysegment.errors import EXIT_DONE, UsageError
from raysegment.options import ExportOptions
from raysegment.runs.export_folder import ExportFolder
from raysegment.runs.record import read_record
from raysegment.scan import Mask
from raysegment.store.damage import report_damage
from raysegment.store.masks import decode_mask
from raysegment.store.place import Place
from raysegment.store.publish import check_tables, list_parts, read_rows
from raysegment.store.schema import STATUS_OK
from raysegment.store.writers.tiff import write_mask

ROWS_AT_ONCE = 16
SUFFIX = "_pred.tif"
"""Not `_mask.tif`, which is what a person's reference is called."""

MAX_NAME_BYTES = 255
MAX_PATH_BYTES = 4000
"""What file systems and Linux take, the latter with some room."""

HASH_DIGITS = 12
IMAGE_EXTENSIONS = (".tif", ".tiff", ".png", ".jpg", ".jpeg")
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


def name_files(scan_ids: Iterable[str], *, max_bytes: int) -> dict[str, str]:
    """A file for each scan, as a path below the export's folder, whatever the scan is called; the same in every export.

    Args:
        scan_ids: The scans.
        max_bytes: Length that a path may have.
    """
    names: dict[str, str] = {}
    taken: set[str] = set()
    for scan_id in sorted(scan_ids):
        pieces = [_NOT_IN_NAMES.sub("_", piece) for piece in scan_id.split("/") if piece not in ("", ".", "..")]
        stem, extension = os.path.splitext("/".join(pieces) or "scan")
        stem = stem if extension.lower() in IMAGE_EXTENSIONS else stem + extension
        name, number = _fit(stem, max_bytes), 2
        while name in taken:
            name, number = _fit(f"{stem}-{number}", max_bytes), number + 1
        taken.add(name)
        names[scan_id] = name
    return names


def _fit(stem: str, max_bytes: int) -> str:
    """The stem with its suffix, each piece short enough for a file system, and all of it in one piece if it must be."""
    *folders, last = stem.split("/")
    short = [_shorten(folder, MAX_NAME_BYTES) for folder in folders]
    name = "/".join([*short, _shorten(last, MAX_NAME_BYTES - len(SUFFIX)) + SUFFIX])
    if _num_bytes(name) <= max_bytes:
        return name
    return _shorten(stem.replace("/", "_"), MAX_NAME_BYTES - len(SUFFIX)) + SUFFIX


def _shorten(piece: str, max_bytes: int) -> str:
    """A piece that is too long is cut, and ends in a hash of the whole."""
    if _num_bytes(piece) <= max_bytes:
        return piece
    room, kept = max_bytes - HASH_DIGITS - 1, ""
    for character in piece:
        if _num_bytes(kept + character) > room:
            break
        kept += character
    return f"{kept}-{hashlib.sha256(piece.encode('utf-8', 'surrogatepass')).hexdigest()[:HASH_DIGITS]}"


def _num_bytes(name: str) -> int:
    return len(os.fsencode(decode_name(name)))
