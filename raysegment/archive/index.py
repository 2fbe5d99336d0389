"""From a folder or bucket to a manifest: one header read per scan, none per slice."""

from __future__ import annotations

import os
import re
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from raysegment.archive.filesystem import describe, is_uri, open_file
from raysegment.archive.fingerprint import fingerprint_files, renew_fingerprints
from raysegment.archive.formats import HEAD_BYTES, Header, get_reader, readers_by_extension, recognise
from raysegment.archive.grouping.folders import (
    Draft,
    assign_patients,
    draft_scans,
    name_of_source,
    share_patients,
    single_drafts,
)
from raysegment.archive.grouping.ways import join_ways
from raysegment.archive.manifest import FINGERPRINT_MODE, MANIFEST_SCHEMA, is_manifest, read_manifest
from raysegment.archive.names import encode_name, extension_of, show_name
from raysegment.archive.read import MAX_SCAN_BYTES
from raysegment.archive.walk import walk_source
from raysegment.errors import ScanError, UnknownFormatError, UsageError

CONCURRENT_HEADERS = 16
BUFFER_BYTES = 16 * 1024
LARGEST_IN_COLUMN = 2**31 - 1
OWN_PATIENTS = b"raysegment.own_patients"
OWN_FOLDERS = b"raysegment.own_folders"
LONE_MASKS = b"raysegment.masks_without_image"


@dataclass(frozen=True)
class IndexSummary:
    """What a manifest holds, for people to look at before they run.

    Attributes:
        scans: Number of scans.
        patients: Number of different patients.
        files: Number of files, references included.
        bytes: Their size.
        with_reference: Scans of which every slice has a reference.
        with_partial_reference: Scans of which only some slices have one.
        readers: Scans by reader.
        shapes: Scans by `height x width x channels`, the most frequent first; `unknown` where no header could be read.
        splits: Scans by split; empty where nothing names a split.
        problems: (scan_id, what looks wrong), all of them.
        own_patients: Scans that count as their own patient because no folder and no pattern names one.
        masks_without_image: Mask files beside which no image lies.
        own_folders: Folders that were left out because raysegment wrote them.
    """

    scans: int
    patients: int
    files: int
    bytes: int
    with_reference: int
    with_partial_reference: int
    readers: dict[str, int]
    shapes: dict[str, int]
    splits: dict[str, int]
    problems: list[tuple[str, str]]
    own_patients: int
    masks_without_image: int
    own_folders: int


def find_scans(
    source: str,
    *,
    patient_pattern: str | None = None,
    scan_pattern: str | None = None,
    fingerprint: str = "stat",
) -> pa.Table:
    """Find the scans of a source; `layout` has the rules.

    Args:
        source: Folder, manifest (Parquet or CSV, which is then only read), or `s3://` or `gs://` URI.
        patient_pattern: Regular expression whose first group, found in the scan_id, is the patient.
        scan_pattern: Regular expression whose first group, found in an image's path below the source, is the scan.
        fingerprint: `stat` hashes name, size and time of a scan's files, `content` their bytes. What a manifest says is
            kept, unless it was made of size and time and local files have changed since.

    Returns:
        A table with the columns of MANIFEST_SCHEMA, ordered by path.

    Raises:
        UsageError: The source is missing or holds no scan, or the pattern does not fit.
    """
    compiled = None if scan_pattern is None else _compile_pattern("--scan-pattern", scan_pattern, "scan")
    if is_manifest(source):
        if compiled is not None:
            raise UsageError(
                f"{show_name(source)} is a manifest, which says what a scan is; --scan-pattern belongs to folders. "
                "Give it to `raysegment index` when the manifest is made."
            )
        table = renew_fingerprints(read_manifest(source), fingerprint)
        return table if patient_pattern is None else _with_pattern(table, patient_pattern)
    if not is_uri(source):
        source = encode_name(os.path.abspath(source))
    extensions = readers_by_extension()
    folders = list(walk_source(source, frozenset(extensions)))
    drafts, lone_masks = draft_scans(
        (folder for folder in folders if not folder.is_own), name_of_source(source), compiled
    )
    drafts = join_ways(drafts)
    if not any(draft.files for draft in drafts):
        looked_for = ", ".join(f"*{extension}" for extension in sorted(extensions))
        raise UsageError(f"no scans found in {show_name(source)}: looked for {looked_for} in it and all folders below.")
    table = _build_table(source, drafts, fingerprint, lone_masks, patient_pattern)
    return table.replace_schema_metadata(
        {**table.schema.metadata, OWN_FOLDERS: str(sum(folder.is_own for folder in folders))}
    )


def summarise(table: pa.Table) -> IndexSummary:
    """Count what a manifest holds."""
    metadata = table.schema.metadata or {}
    num_references = pc.sum(pc.not_equal(pc.list_flatten(table["reference_files"]), "")).as_py() or 0
    holds = pc.list_value_length(table["reference_files"])
    with_any = int(pc.sum(pc.greater(holds, 0)).as_py() or 0)
    parents = pc.list_parent_indices(table["reference_files"].combine_chunks())
    empty = pc.equal(pc.list_flatten(table["reference_files"].combine_chunks()), "")
    partial = pc.count_distinct(parents.filter(empty)).as_py() if num_references else 0
    shapes = Counter(zip(*(table[name].to_pylist() for name in ("height", "width", "channels")), strict=True))
    wrong = table.filter(pc.is_valid(table["problem"]))
    return IndexSummary(
        scans=table.num_rows,
        patients=pc.count_distinct(table["patient_id"]).as_py(),
        files=pc.sum(table["num_files"]).as_py() or 0,
        bytes=pc.sum(table["bytes"]).as_py() or 0,
        with_reference=with_any - partial,
        with_partial_reference=partial,
        readers=_counts(table["reader"]),
        shapes={
            "unknown" if None in shape else " x ".join(map(str, shape)): count for shape, count in shapes.most_common()
        },
        splits=_counts(table["split"].drop_null()),
        problems=list(zip(wrong["scan_id"].to_pylist(), wrong["problem"].to_pylist(), strict=True)),
        own_patients=int(metadata.get(OWN_PATIENTS, b"0")),
        masks_without_image=int(metadata.get(LONE_MASKS, b"0")),
        own_folders=int(metadata.get(OWN_FOLDERS, b"0")),
    )


def _build_table(
    source: str, drafts: list[Draft], fingerprint: str, lone_masks: int, patient_pattern: str | None
) -> pa.Table:
    examined = _examine_all(source, drafts)
    drafts = [draft for draft, _, _, _ in examined]
    patients, num_own = assign_patients(drafts)
    if patient_pattern is not None:
        patients, num_own = _match_patients([draft.scan_id for draft in drafts], patient_pattern), 0
    patients = share_patients(drafts, patients)
    columns: dict[str, list[Any]] = {name: [] for name in MANIFEST_SCHEMA.names}
    for (draft, reader, header, problem), patient in zip(examined, patients, strict=True):
        located = draft.files + [reference for reference in draft.references if reference]
        row = (
            draft.scan_id,
            patient,
            source,
            reader,
            [path for path, _ in draft.files],
            [reference[0] if reference else "" for reference in draft.references],
            len(located),
            sum(file.size for _, file in located),
            *((header.rows, header.columns, header.channels) if header else (None, None, None)),
            fingerprint_files(source, located, fingerprint),
            draft.split,
            [],
            problem,
        )
        for column, value in zip(columns.values(), row, strict=True):
            column.append(value)
    table = pa.table(columns, schema=MANIFEST_SCHEMA)
    return table.replace_schema_metadata(
        {OWN_PATIENTS: str(num_own), LONE_MASKS: str(lone_masks), FINGERPRINT_MODE: fingerprint}
    )


Examined = tuple[Draft, str, Header | None, str | None]
"""A scan, its reader, its header, and what looks wrong."""


def _examine_all(source: str, drafts: list[Draft]) -> list[Examined]:
    """Open one file of each scan; a bucket's answers are waited for side by side."""
    if not is_uri(source):
        groups = [_examine(source, draft) for draft in drafts]
    else:
        with ThreadPoolExecutor(CONCURRENT_HEADERS) as pool:
            groups = list(pool.map(lambda draft: _examine(source, draft), drafts))
    return [item for group in groups for item in group]


def _examine(source: str, draft: Draft) -> list[Examined]:
    problem = draft.problem or _file_problem(draft)
    good = next((path for path, file in draft.files if file.size and not file.problem), None)
    if good is None:
        extension = extension_of(draft.files[0][0]) if draft.files else ""
        return [(draft, readers_by_extension().get(extension, ""), None, problem)]
    reader, header, cause = _read_header(source, good)
    if header is not None and header.slices > 1 and len(draft.files) > 1 and not draft.is_named:
        return [item for single in single_drafts(draft) for item in _examine(source, single)]
    if header is not None and not _is_believable(header, len(draft.files)):
        size_mb = header.num_bytes * len(draft.files) / 2**20
        cause = f"{show_name(good)} declares a scan of {size_mb:.0f} MB"
        header = None
    if header is not None and header.slices > 1 and len(draft.files) > 1:
        cause = f"{show_name(good)} holds {header.slices} slices; a scan of several files has one in each"
    return [(draft, reader, header, problem or cause or draft.note)]


def _is_believable(header: Header, num_files: int) -> bool:
    largest = max(header.rows, header.columns, header.channels)
    return header.num_bytes * num_files <= MAX_SCAN_BYTES and largest <= LARGEST_IN_COLUMN


def _file_problem(draft: Draft) -> str | None:
    """What size and links tell of the files, references included."""
    for path, file in draft.files + [reference for reference in draft.references if reference]:
        if file.problem:
            return file.problem
        if not file.size:
            return f"{show_name(path)} has no bytes"
    return None


def _read_header(source: str, path: str) -> tuple[str, Header | None, str | None]:
    """Reader and header of a file, or what is wrong with it; first bytes count more than the extension."""
    reader = readers_by_extension().get(extension_of(path), "")
    try:
        with open_file(source, path, BUFFER_BYTES) as stream:
            head = stream.read(HEAD_BYTES)
            reader = recognise(head) or reader
            if not get_reader(reader).recognises(head):
                raise UnknownFormatError(
                    f"{show_name(path)}: the first bytes belong to no format that raysegment reads."
                )
            stream.seek(0)
            return reader, get_reader(reader).read_header(stream, path), None
    except ScanError as error:
        return reader, None, str(error).rstrip(".")
    except OSError as error:
        return reader, None, f"{show_name(path)} cannot be read: {describe(error)}"
    except Exception as error:
        return reader, None, f"{show_name(path)}: the {reader} reader fails on its header ({type(error).__name__})"


def _with_pattern(table: pa.Table, pattern: str) -> pa.Table:
    """A manifest with patients read from the scan_ids."""
    column = pa.array(_match_patients(table["scan_id"].to_pylist(), pattern), pa.string())
    metadata = {**(table.schema.metadata or {}), OWN_PATIENTS: b"0"}
    index = table.schema.get_field_index("patient_id")
    return table.set_column(index, MANIFEST_SCHEMA.field("patient_id"), column).replace_schema_metadata(metadata)


def _match_patients(scan_ids: list[str], pattern: str) -> list[str]:
    compiled = _compile_pattern("--patient-pattern", pattern, "patient")
    patients = []
    for scan_id in scan_ids:
        match = compiled.search(scan_id)
        if match is None or not match[1]:
            raise UsageError(f"--patient-pattern {pattern!r} finds no patient in scan_id {show_name(scan_id)}.")
        patients.append(match[1])
    return patients


def _compile_pattern(option: str, pattern: str, what: str) -> re.Pattern[str]:
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise UsageError(f"{option} {pattern!r} is no regular expression: {error}.") from error
    if not compiled.groups:
        raise UsageError(f"{option} {pattern!r} has no group; put brackets around the {what}'s part.")
    return compiled


def _counts(column: pa.ChunkedArray) -> dict[str, int]:
    counted = pc.value_counts(column).to_pylist()
    return {item["values"]: item["counts"] for item in sorted(counted, key=lambda item: -item["counts"])}
