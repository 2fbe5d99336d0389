"""`raysegment export`: masks from the tables as files that any viewer opens, under the names of the originals."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from raysegment.archive.filesystem import is_uri
from raysegment.archive.names import show_name
from raysegment.archive.pseudonymise import hide_source, recorded_identifiers, resolve_source
from raysegment.archive.sealed import is_sealed
from raysegment.commands.export_bids import OWN_FOLDER, write_bids
from raysegment.commands.export_segmentations import write_segmentations
from raysegment.commands.export_volumes import write_volumes
from raysegment.errors import EXIT_DONE, EXIT_FAILED, EXIT_SOME_SCANS_FAILED, UsageError
from raysegment.options import ExportOptions
from raysegment.runs.export_folder import ExportFolder
from raysegment.runs.export_names import MAX_PATH_BYTES, name_files
from raysegment.runs.record import read_record
from raysegment.store.damage import report_damage
from raysegment.store.masks import decode_mask, iterate_masks
from raysegment.store.parts import MAX_FAILURES_SHOWN, Failure
from raysegment.store.place import Place
from raysegment.store.publish import check_tables, list_parts, read_rows
from raysegment.store.schema import STATUS_OK
from raysegment.store.writers.tiff import write_mask

WRITERS = {"nifti": write_volumes, "bids": write_bids, "dicom-seg": write_segmentations}
"""Of masks that go back to the grid of their scan's files."""

COLUMNS = ["scan_id", "patient_id", "source", "status", "fingerprint", "model_id", "options_id", "slice_axis"]


@dataclass(frozen=True, kw_only=True)
class ExportResult:
    """What was exported.

    Attributes:
        out: Folder of the files.
        num_files: Files of the export that are there.
        num_kept: Those of them that an earlier start had finished.
        failures: Masks that were not written, with the reason.
        exit_code: 0; 3 where masks were not written; 1 where none was.
    """

    out: str
    num_files: int
    num_kept: int = 0
    failures: tuple[Failure, ...] = ()
    exit_code: int = EXIT_DONE


def export_masks(options: ExportOptions) -> ExportResult:
    """Write each mask as a file named after its scan; the scans' own files are not touched, and no model is needed.

    The folder gets a list of the files, so that a second export replaces only these, and `index` never takes them for
    scans.

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
    scans = read_rows(place, "scans", COLUMNS)
    done = scans.filter(pc.equal(scans["status"], STATUS_OK))
    if not done.num_rows:
        raise UsageError(f"{options.tables} has no masks: none of its {scans.num_rows} scans is ok.")
    folder = ExportFolder(options.out, place)
    how = recorded_identifiers(read_record(place).get("chosen") or {}, options.key_file)
    options = hide_source(options, how=how)
    sources = [*scans["source"].drop_null().unique().to_pylist(), read_chosen_source(place), options.source or ""]
    sources = [resolve_source(source, how) for source in sources]
    folder.check_apart(sources, allowed=OWN_FOLDER if options.to == "bids" else "")
    if options.to == "tiff":
        return ExportResult(out=options.out, num_files=_write_pages(place, folder, done))
    written = WRITERS[options.to](options, place, folder, done)
    failed = EXIT_SOME_SCANS_FAILED if written.num_written else EXIT_FAILED
    return ExportResult(
        out=options.out,
        num_files=written.num_files,
        num_kept=written.num_files - written.num_new,
        failures=written.failures,
        exit_code=failed if written.failures else EXIT_DONE,
    )


def describe_export(result: ExportResult) -> list[str]:
    """What was written, and what was not and why, a line each."""
    num_new = result.num_files - result.num_kept
    kept = f"; {result.num_kept} are there already" if result.num_kept else ""
    lines = [f"{num_new} masks written to {result.out}{kept}"]
    if not result.failures:
        return lines
    by_type = Counter(failure.error_type for failure in result.failures)
    counts = ", ".join(f"{count} {error_type}" for error_type, count in sorted(by_type.items()))
    lines.append(f"{len(result.failures)} scans have none: {counts}")
    shown = result.failures[:MAX_FAILURES_SHOWN]
    lines += [f"  {show_name(item.scan_id)}: {item.error_type}: {show_name(item.message)}" for item in shown]
    rest = len(result.failures) - len(shown)
    return [*lines, f"  … and {rest} more"] if rest else lines


def _write_pages(place: Place, folder: ExportFolder, scans: pa.Table) -> int:
    """Each mask as `<scan_id>_pred.tif`, one page a slice, deflate; returns how many.

    A single label is shown as 0 and 255; several labels keep their values, and overlapping ones come one after the
    other (`store/writers/tiff`).
    """
    names = name_files(scans["scan_id"].to_pylist(), max_bytes=MAX_PATH_BYTES - len(os.fsencode(folder.root)))
    with folder.writing(names.values()):
        for part, row in iterate_masks(place):
            with report_damage(place, part):
                mask = decode_mask(row)
            write_mask(folder.path(names[row["scan_id"]]), mask, num_labels=len(row["labels"]))
    return len(names)


def read_chosen_source(place: Place) -> str:
    """SOURCE as the run that wrote the tables was given it; empty where it is not known, or relative to an unknown."""
    source = str(dict(read_record(place).get("chosen") or {}).get("source") or "")
    return source if is_sealed(source) or os.path.isabs(source) or is_uri(source) else ""
