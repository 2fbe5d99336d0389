"""Which references belong to scans that were segmented before."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from raysegment.archive.filesystem import absolute_source, open_source
from raysegment.archive.fingerprint import fingerprint_files
from raysegment.archive.formats import readers_by_extension
from raysegment.archive.grouping.folders import VOLUME_EXTENSIONS, name_of_source
from raysegment.archive.grouping.globs import files_by_scan
from raysegment.archive.grouping.naming import parse_references
from raysegment.archive.manifest import to_table
from raysegment.archive.names import extension_of, natural_key, show_name, stem_of
from raysegment.archive.walk import LocatedFile, walk_source
from raysegment.errors import UsageError
from raysegment.scan import ScanEntry

MAX_EXAMPLES = 3


@dataclass(frozen=True)
class Joined:
    """Scans with their references.

    Attributes:
        table: Rows of the manifest, with the patients that the scans had when they were segmented.
        num_without_reference: Scans without one.
        num_without_scan: References of scans that were not segmented.
    """

    table: pa.Table
    num_without_reference: int
    num_without_scan: int


def join_references(found: pa.Table, scans: pa.Table) -> Joined:
    """Join references to scans of the same name.

    Args:
        found: A manifest of the references.
        scans: `scan_id` and `patient_id` of the segmented scans.

    Raises:
        UsageError: No scan has a reference; the message shows names of both.
    """
    has_reference = pa.array([any(files) for files in found["reference_files"].to_pylist()], pa.bool_())
    references = found.filter(has_reference)
    position = pc.index_in(references["scan_id"], value_set=scans["scan_id"].combine_chunks())
    is_known = pc.is_valid(position)
    table = references.filter(is_known)
    if not table.num_rows:
        raise UsageError(_describe_strangers(found, references, scans))
    patients = pc.take(scans["patient_id"], position.filter(is_known))
    index = table.schema.get_field_index("patient_id")
    table = table.set_column(index, table.schema.field(index), pc.coalesce(patients, table["patient_id"]))
    return Joined(table, scans.num_rows - table.num_rows, references.num_rows - table.num_rows)


def find_references(source: str, globs: Sequence[str], scans: pa.Table, fingerprint: str) -> Joined:
    """Find references by what they are called, where no scans need lie beside them.

    Args:
        source: Folder or bucket.
        globs: Paths below it in which `{scan}` is a scan_id, with or without extension, or its last name alone; several
            are alternatives. Files of slices that fit one scan are taken in natural order.
        scans: `scan_id` and `patient_id` of the segmented scans.
        fingerprint: `stat` hashes name, size and time of the files, `content` their bytes.

    Raises:
        UsageError: No reference is of a scan, several volumes fit one, or a glob is none.
    """
    source = absolute_source(source)
    walked = walk_source(source, open_source(source), frozenset(readers_by_extension()))
    folders = [folder for folder in walked if not folder.is_own]
    files = sorted((item for folder in folders for item in folder.located), key=lambda item: item[0])
    found = files_by_scan(files, parse_references(globs), name_of_source(source))
    meant = _scans_by_name(scans["scan_id"].to_pylist())
    patients = dict(zip(scans["scan_id"].to_pylist(), scans["patient_id"].to_pylist(), strict=True))
    entries = {}
    for name, files in found.items():
        scan_id = meant.get(name)
        if scan_id is not None:
            entries[scan_id] = _entry(scan_id, patients[scan_id] or scan_id, source, files, fingerprint)
    if not entries:
        shown = ", ".join(show_name(name) for name in list(found)[:MAX_EXAMPLES]) or "no file"
        raise UsageError(
            f"--reference fits {shown}, of which none is a scan in the tables; {{scan}} must be one, such as "
            f"{_list(scans)}."
        )
    return Joined(to_table(entries.values()), scans.num_rows - len(entries), len(found) - len(entries))


def _scans_by_name(scan_ids: list[str]) -> dict[str, str]:
    """The scan that a name means: its scan_id, with or without extension, or the last name in it if no other has it."""
    named: dict[str, set[str]] = {}
    for scan_id in scan_ids:
        for name in {scan_id[: len(scan_id) - len(extension_of(scan_id))], stem_of(scan_id)} - {scan_id}:
            named.setdefault(name, set()).add(scan_id)
    return {name: next(iter(meant)) for name, meant in named.items() if len(meant) == 1} | {
        scan_id: scan_id for scan_id in scan_ids
    }


def _entry(scan_id: str, patient_id: str, source: str, files: list[LocatedFile], fingerprint: str) -> ScanEntry:
    names = sorted((path for path, _ in files), key=natural_key)
    if len(names) > 1 and extension_of(names[0]) in VOLUME_EXTENSIONS:
        raise UsageError(
            f"--reference fits {len(names)} volumes for the scan {show_name(scan_id)}: {show_name(names[0])} and "
            f"{show_name(names[1])}; expected one."
        )
    return ScanEntry(
        scan_id=scan_id,
        patient_id=patient_id,
        source=source,
        reader="",
        files=(),
        reference_files=tuple(names),
        num_files=len(names),
        bytes=sum(file.size for _, file in files),
        fingerprint=fingerprint_files(source, files, fingerprint),
    )


def _describe_strangers(found: pa.Table, references: pa.Table, scans: pa.Table) -> str:
    if not references.num_rows:
        return (
            f"none of the {found.num_rows} scans that were found has a reference, such as {_list(found)}. If these "
            "are the references themselves, say how they are called, such as "
            f"--reference '{{scan}}{_ending(found, 'files')}'."
        )
    return (
        f"none of the {references.num_rows} references is of a scan in the tables: there is {_list(references)}, and "
        f"the tables have {_list(scans)}. Give the folder that the scans were segmented from, or say what the "
        f"references are called, such as --reference '{{scan}}_mask{_ending(references, 'reference_files')}'."
    )


def _ending(table: pa.Table, column: str) -> str:
    """The extension of a table's first file."""
    return next((extension_of(name) for name in pc.list_flatten(table[column]).to_pylist() if name), ".nii.gz")


def _list(table: pa.Table) -> str:
    return ", ".join(show_name(scan_id) for scan_id in table["scan_id"].slice(0, MAX_EXAMPLES).to_pylist())
