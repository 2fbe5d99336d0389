"""From a folder or bucket to a manifest: one header read per scan, none per slice."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from raysegment.archive.dataset_json import channels_of_dataset, read_dataset
from raysegment.archive.dates import count_days, match_dates
from raysegment.archive.dicom.find import KINDS as DICOM_KINDS
from raysegment.archive.dicom.find import FoundDicom, take_dicom
from raysegment.archive.filesystem import absolute_source, open_source
from raysegment.archive.fingerprint import fingerprint_files, pair_channels, renew_fingerprints
from raysegment.archive.formats import readers_by_extension
from raysegment.archive.grouping.folders import name_of_source, put_in_order
from raysegment.archive.grouping.layouts import group_files
from raysegment.archive.grouping.naming import Naming, parse_naming
from raysegment.archive.grouping.patients import assign_patients, match_patients
from raysegment.archive.grouping.ways import join_ways
from raysegment.archive.headers import count_spacings, examine_drafts
from raysegment.archive.manifest import (
    FINGERPRINT_MODE,
    KEY,
    MANIFEST_SCHEMA,
    PSEUDONYMISED,
    is_manifest,
    read_manifest,
)
from raysegment.archive.names import show_name
from raysegment.archive.neighbours import BY_EXTENSION, describe_unread, set_aside
from raysegment.archive.pseudonymise import hidden_names, pseudonymise_table, resolve_source
from raysegment.archive.pseudonyms import Pseudonyms, load_pseudonyms, warn_of_key
from raysegment.archive.sealed import use_key
from raysegment.archive.walk import walk_source
from raysegment.errors import UsageError
from raysegment.options import Finding

OWN_PATIENTS = b"raysegment.own_patients"
OF_FOLDERS = ("scan_pattern", "channel", "modality", "reference", "keep_patient_ids", "keep_dates")
"""Of these a manifest says itself what they would."""
OWN_FOLDERS = b"raysegment.own_folders"
LONE_MASKS = b"raysegment.masks_without_image"
FOLDERS_AND_NAMES = "folders and names"
LAYOUTS = b"raysegment.layouts"
SPACINGS = b"raysegment.spacings_mm"
REFERENCES_FIT_NOTHING = b"raysegment.references_fit_nothing"
LEFT_ALONE = b"raysegment.files_left_alone"
UNREAD = b"raysegment.files_unread"
DICOM_LEFT_ALONE = b"raysegment.dicom_left_alone"
OPEN_KEY = b"raysegment.open_key"
"""What is to be said of a key file that others may read."""

WITHOUT_DATE = b"raysegment.scans_without_date"
"""Where a pattern was to find dates: scan_ids in which it found none, the first of them and how many."""


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
        layouts: Scans by the layout that they were recognised in; empty in manifests of others.
        channel_names: Scans by the names of their channels, where they have any.
        spacings: Scans by `slices x rows x columns` in millimetres, the most frequent ones.
        files_left_alone: Files that belong to no scan.
        files_unread: Files in formats that are not read, by extension.
        dicom_left_alone: DICOM files that are neither scans nor references, by kind.
        with_date: Scans of which the day is known.
        with_day: Scans of which the days since the patient's first one are known.
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
    layouts: dict[str, int]
    channel_names: dict[str, int]
    spacings: dict[str, int]
    files_left_alone: int
    files_unread: dict[str, int]
    dicom_left_alone: dict[str, int]
    with_date: int = 0
    with_day: int = 0


def find_scans(source: str, how: Finding | None = None, *, again: bool = False) -> pa.Table:
    """Find the scans of a source; `grouping/layouts` has the rules.

    Args:
        source: Folder, manifest (Parquet or CSV, which is then only read), or `s3://` or `gs://` URI.
        how: What tells scans, channels, references and patients, and how changes are noticed; as the layout tells, and
            by size and time, if not given. A fingerprint that a manifest holds is kept, unless it was made of size and
            time and local files have changed since.
        again: `how` is that of a run's record, whose key may belong to other scans than a manifest's.

    Returns:
        A table with the columns of MANIFEST_SCHEMA, ordered by path.

    Raises:
        UsageError: The source is missing or holds no scan, a pattern or glob does not fit, or a key does not belong to
            a manifest.
    """
    how = how or Finding()
    source = resolve_source(source, how)
    with hidden_names(how):
        table = _find_all(source, how, again)
    return pseudonymise_table(table) if how.pseudonymise else table


def _find_all(source: str, how: Finding, again: bool) -> pa.Table:
    """As `find_scans`, with all names as they are."""
    naming = parse_naming(how)
    if not is_manifest(source):
        return _find_in_archive(source, naming, how.fingerprint)
    if option := next((f"--{name.replace('_', '-')}" for name in OF_FOLDERS if getattr(how, name)), None):
        raise UsageError(
            f"{show_name(source)} is a manifest, which says what a scan is; {option} belongs to folders. "
            "Give it to `raysegment index` when the manifest is made."
        )
    table = read_manifest(source)
    if how.key_file is not None and not how.pseudonymise and not again:
        _check_key(table, how.key_file, source)
    if PSEUDONYMISED in (table.schema.metadata or {}):
        use_key(how.key_file)
    table = renew_fingerprints(table, how.fingerprint)
    if naming.dates is not None:
        table = _set_dates(table, naming.dates)
    if naming.patients is None:
        return table
    column = pa.array(match_patients(table["scan_id"].to_pylist(), naming.patients), pa.string())
    metadata = {**(table.schema.metadata or {}), OWN_PATIENTS: b"0"}
    index = table.schema.get_field_index("patient_id")
    return table.set_column(index, MANIFEST_SCHEMA.field("patient_id"), column).replace_schema_metadata(metadata)


def _check_key(table: pa.Table, key_file: str, source: str) -> None:
    """Refuse a key that a manifest was not made with: its patients would stay as they are."""
    known, given = key_of(table), load_pseudonyms(key_file).fingerprint
    if known is None:
        raise UsageError(
            f"{show_name(source)} is a manifest that does not say that a key was used for it, and --key-file would "
            "change nothing in it. Leave it out, or give --pseudonymise too."
        )
    if known != given:
        raise UsageError(
            f"the manifest {show_name(source)} was made with the key {known}; --key-file holds {given}. Give the one "
            "that it was made with."
        )


def recorded_finding(chosen: Mapping[str, Any], source: str) -> Finding:
    """How a run found its scans, to find them again where they or their references lie now.

    Args:
        chosen: The options that the run's record holds.
        source: Where to look; a manifest says itself what a scan is.
    """
    # What stands in the tables already has its date, and other names may not hold it.
    left_out = ("date_pattern", *(OF_FOLDERS if is_manifest(source) else ()))
    names = [item.name for item in fields(Finding) if item.name not in left_out]
    known: dict[str, Any] = {name: chosen[name] for name in names if chosen.get(name) is not None}
    return Finding(**known)


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
        channel_names=dict(Counter(", ".join(names) for names in table["channel_names"].to_pylist() if names)),
        layouts=json.loads(metadata.get(LAYOUTS, b"{}")),
        spacings=json.loads(metadata.get(SPACINGS, b"{}")),
        files_left_alone=int(metadata.get(LEFT_ALONE, b"0")),
        files_unread=json.loads(metadata.get(UNREAD, b"{}")),
        dicom_left_alone=json.loads(metadata.get(DICOM_LEFT_ALONE, b"{}")),
        with_date=table.num_rows - table["scan_date"].null_count,
        with_day=table.num_rows - table["scan_day"].null_count,
    )


def warn_of_references(table: pa.Table) -> list[str]:
    """A line where the globs of `--reference` gave no scan of an archive a reference."""
    if REFERENCES_FIT_NOTHING not in (table.schema.metadata or {}):
        return []
    return ["warning: --reference fits no file of any scan, so that no scan has a reference"]


def warn_of_dates(table: pa.Table) -> list[str]:
    """A line where `--date-pattern` found no date in some scans."""
    found = (table.schema.metadata or {}).get(WITHOUT_DATE)
    if found is None:
        return []
    first, count = json.loads(found)
    more = f" and in {count - 1} more" if count > 1 else ""
    return [f"warning: --date-pattern finds no date in {show_name(first)}{more}; these scans have none"]


def warn_of_manifest(table: pa.Table) -> list[str]:
    """A line for each thing that was asked for, or lies there, otherwise than it should."""
    return warn_of_references(table) + warn_of_dates(table) + warn_of_open_key(table)


def key_of(table: pa.Table) -> str | None:
    """Fingerprint of the key that a manifest's pseudonyms were made with; None where it has none."""
    found = (table.schema.metadata or {}).get(KEY)
    return None if found is None else found.decode()


def warn_of_open_key(table: pa.Table) -> list[str]:
    """A line where others may read the key that a manifest's pseudonyms were made with."""
    found = (table.schema.metadata or {}).get(OPEN_KEY)
    return [] if found is None else [found.decode()]


def _describe_key(pseudonyms: Pseudonyms | None) -> dict[bytes, str]:
    """What a manifest's metadata say of the key that headers were hashed with."""
    if pseudonyms is None:
        return {}
    warnings = warn_of_key(pseudonyms)
    return {KEY: pseudonyms.fingerprint, **({OPEN_KEY: warnings[0]} if warnings else {})}


def _set_dates(table: pa.Table, pattern: re.Pattern[str]) -> pa.Table:
    """The table with the days that a pattern finds."""
    scan_ids = table["scan_id"].to_pylist()
    days = match_dates(scan_ids, pattern)
    without = [scan_id for scan_id, day in zip(scan_ids, days, strict=True) if day is None]
    field = MANIFEST_SCHEMA.field("scan_date")
    metadata = table.schema.metadata or {}
    if without:
        metadata = {**metadata, WITHOUT_DATE: json.dumps([without[0], len(without)])}
    index = table.schema.get_field_index(field.name)
    return table.set_column(index, field, pa.array(days, field.type)).replace_schema_metadata(metadata)


def _find_in_archive(source: str, naming: Naming, fingerprint: str) -> pa.Table:
    """Walk, draft, look into each, name the patients, hash: the manifest of a folder or bucket."""
    source = absolute_source(source)
    opened = open_source(source)
    known = frozenset(readers_by_extension())
    walked = walk_source(source, opened, known | BY_EXTENSION.keys() | DICOM_KINDS)
    folders, unread = set_aside(walked, known)
    folders, dicom = take_dicom(source, folders, naming)
    drafts, lone_masks = group_files(
        [folder for folder in folders if not folder.is_own],
        name_of_source(source),
        lambda folder: channels_of_dataset(read_dataset(source, folder)),
        naming,
    )
    num_used = sum(len(draft.located) for draft in drafts) + lone_masks
    drafts = join_ways(put_in_order(drafts + dicom.drafts + dicom.zips))
    lone_masks += dicom.lone_masks
    if not any(draft.files for draft in drafts):
        cause = _describe_nothing(known, lone_masks, unread, dicom)
        raise UsageError(f"no scans found in {show_name(source)}: {cause}")
    examined = examine_drafts(source, drafts)
    spacings = count_spacings(examined)
    patients, num_own = assign_patients([item.draft for item in examined], naming.patients)
    days = count_days(patients, [None if naming.keep_dates else item.draft.scan_date for item in examined])
    rows = [
        item.row
        | {
            "patient_id": patient,
            "source": source,
            "scan_date": item.draft.scan_date if naming.keep_dates else None,
            "scan_day": day,
            "fingerprint": fingerprint_files(
                source,
                item.draft.located,
                fingerprint,
                pair_channels(item.reader, item.draft.channel_names, item.draft.file_names),
            ),
        }
        for item, patient, day in zip(examined, patients, days, strict=True)
    ]
    metadata = {
        OWN_PATIENTS: str(num_own),
        LONE_MASKS: str(lone_masks),
        FINGERPRINT_MODE: fingerprint,
        OWN_FOLDERS: str(sum(folder.is_own for folder in folders)),
        LAYOUTS: json.dumps(Counter(item.draft.layout or FOLDERS_AND_NAMES for item in examined)),
        SPACINGS: json.dumps(spacings),
        **({REFERENCES_FIT_NOTHING: b"1"} if naming.references and not any(d.references for d in drafts) else {}),
        LEFT_ALONE: str(max(0, sum(len(folder.files) for folder in folders) - num_used)),
        UNREAD: json.dumps(unread),
        DICOM_LEFT_ALONE: json.dumps(dict(dicom.left_alone.most_common())),
        **_describe_key(dicom.pseudonyms),
    }
    columns = {name: [row[name] for row in rows] for name in MANIFEST_SCHEMA.names}
    table = pa.table(columns, schema=MANIFEST_SCHEMA).replace_schema_metadata(metadata)
    return table if naming.dates is None else _set_dates(table, naming.dates)


def _describe_nothing(known: frozenset[str], lone_masks: int, unread: Mapping[str, int], dicom: FoundDicom) -> str:
    looked_for = ", ".join(f"*{extension}" for extension in sorted(known | DICOM_KINDS) if extension)
    masks = ""
    if lone_masks:
        look = "1 file looks like a mask" if lone_masks == 1 else f"{lone_masks} files look like masks"
        masks = f" {look} of images that are not there; `measure --reference` compares them."
    others = f" {describe_unread(unread)}" if unread else ""
    if dicom.left_alone:
        others += f" Of DICOM there are: {describe_counts(dicom.left_alone)}."
    return f"looked for {looked_for} in it and all folders below.{masks}{others}"


def describe_counts(counts: Mapping[str, int]) -> str:
    """Kinds and how many there are of each, the most frequent first."""
    return ", ".join(f"{kind}: {count}" for kind, count in sorted(counts.items(), key=lambda item: -item[1]))


def _counts(column: pa.ChunkedArray) -> dict[str, int]:
    counted = pc.value_counts(column).to_pylist()
    return {item["values"]: item["counts"] for item in sorted(counted, key=lambda item: -item["counts"])}
