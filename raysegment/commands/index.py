"""`raysegment index`: find the scans of an archive, say what looks wrong, and write the manifest."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from raysegment.archive.filesystem import is_uri
from raysegment.archive.grouping.dicom_series import STRUCTURE_SET
from raysegment.archive.index import (
    IndexSummary,
    find_scans,
    key_of,
    summarise,
    warn_of_manifest,
)
from raysegment.archive.labels import locate_labels
from raysegment.archive.manifest import write_manifest
from raysegment.archive.neighbours import describe_unread
from raysegment.archive.pseudonymise import hide_source
from raysegment.archive.reference import describe_labels, describe_values
from raysegment.archive.reference_sample import ReferenceSample, sample_references
from raysegment.errors import UsageError
from raysegment.options import IndexOptions
from raysegment.scan import Labels
from raysegment.store.place import Place

MAX_LISTED_PROBLEMS = 20


@dataclass(frozen=True)
class IndexResult:
    """What `index` found.

    Attributes:
        table: The manifest.
        summary: Its counts and problems.
        references: What some of its references hold.
        labels: What their values mean.
        labels_from: Where that is declared; empty where nothing declares it.
    """

    table: pa.Table
    summary: IndexSummary
    references: ReferenceSample
    labels: Labels
    labels_from: str

    def as_plain(self) -> dict[str, Any]:
        """All but the manifest, as JSON can hold it; of labels the values by name."""
        regions = dict(zip(self.labels.names, map(list, self.labels.regions), strict=False))
        found = {**asdict(self.summary), **asdict(self.references)}
        return {**found, "labels": regions, "labels_from": self.labels_from or None}


def index(options: IndexOptions) -> IndexResult:
    """Find the scans of an archive and, if asked to, write the manifest.

    Raises:
        UsageError: The source is missing or holds no scan, labels are declared in a way that cannot be understood, or
            the manifest cannot be written where it is to go.
    """
    options = hide_source(options)
    if options.out is not None:
        check_target(options.out)
    table = find_scans(options.source, options)
    labels, labels_from = locate_labels(options.source, options.labels, Labels().names[0], table)
    if options.out is not None:
        write_manifest(table, options.out)
    return IndexResult(table, summarise(table), sample_references(table, labels), labels, labels_from)


def check_target(out: str) -> None:
    """Make sure that a manifest can be written, before an archive is looked through for it.

    Raises:
        UsageError: A folder is in its place, or its own folder cannot be written.
    """
    if is_uri(out):
        return
    if os.path.isdir(out):
        raise UsageError(f"--out {out} is a folder; give a file name in it, such as {out.rstrip('/')}/m.parquet.")
    Place(os.path.dirname(os.path.abspath(out))).make_writable()


def describe_index(found: IndexResult) -> list[str]:
    """What was found and what looks wrong, a line each."""
    summary = found.summary
    lines = [f"{name:<28}{value}" for name, value in _count_rows(found).items()]
    if summary.files_unread:
        lines.append(describe_unread(summary.files_unread))
    if STRUCTURE_SET in summary.dicom_left_alone:
        lines.append(
            f"{summary.dicom_left_alone[STRUCTURE_SET]} RTSTRUCT: raysegment does not read structure sets; convert "
            "them to DICOM SEG."
        )
    lines += warn_of_manifest(found.table)
    if summary.own_folders:
        lines.append(f"{summary.own_folders} folders are left out, because raysegment wrote them (a run or an export).")
    if summary.own_patients:
        count = "1 scan counts as its" if summary.own_patients == 1 else f"{summary.own_patients} scans count as their"
        lines.append(
            f"{count} own patient; name patients with --patient-pattern, and scans "
            "of several images with --scan-pattern."
        )
    lines += [f"  {scan_id!r}: {problem}" for scan_id, problem in summary.problems[:MAX_LISTED_PROBLEMS]]
    if len(summary.problems) > MAX_LISTED_PROBLEMS:
        rest = len(summary.problems) - MAX_LISTED_PROBLEMS
        lines.append(f"  … and {rest} more, in the manifest's column `problem`")
    return lines


def _count_rows(found: IndexResult) -> dict[str, object]:
    """What `index` counts, by its words for it."""
    summary, references = found.summary, found.references
    unnamed = describe_values(np.asarray(references.unnamed_values))
    return {
        "scans": summary.scans,
        "patients": summary.patients,
        "files": f"{summary.files} ({summary.bytes / 2**20:.1f} MB)",
        "scans with reference": summary.with_reference,
        "scans with some references": summary.with_partial_reference,
        **({"scans with date": summary.with_date} if summary.with_date else {}),
        **({"scans with day": summary.with_day} if summary.with_day else {}),
        "labels": _describe_labels(found),
        "values in references": _describe_references(summary, references),
        **({"values that no label names": unnamed} if unnamed else {}),
        "layout": _list_counts(summary.layouts) or "as the manifest says",
        **({"channels": _list_counts(summary.channel_names)} if summary.channel_names else {}),
        "readers": _list_counts(summary.readers),
        "height x width x channels": _list_counts(summary.shapes),
        **({"key of pseudonyms": key} if (key := key_of(found.table)) else {}),
        **({"spacing in mm": _list_counts(summary.spacings)} if summary.spacings else {}),
        "splits": _list_counts(summary.splits) or "none given",
        "masks without image": summary.masks_without_image,
        **({"files left alone": summary.files_left_alone} if summary.files_left_alone else {}),
        **({"DICOM left alone": _list_counts(summary.dicom_left_alone)} if summary.dicom_left_alone else {}),
        "scans with problems": len(summary.problems),
    }


def _describe_labels(found: IndexResult) -> str:
    if not found.labels_from:
        return "none declared: one region, whatever its value"
    kind = "regions that overlap" if found.labels.overlap else "one value a voxel"
    return f"{describe_labels(found.labels)} ({found.labels_from}; {kind})"


def _describe_references(summary: IndexSummary, references: ReferenceSample) -> str:
    """The values found, how many scans were looked at for them, and how many of these no rule understands."""
    if not references.references_read:
        return "none looked at"
    num_referenced = summary.with_reference + summary.with_partial_reference
    text = f"{_list_counts(references.reference_values)} (looked at {references.references_read} of {num_referenced})"
    return f"{text}; {references.references_refused} cannot be used" if references.references_refused else text


def _list_counts(counts: dict[str, int]) -> str:
    parts = [f"{name}: {count}" for name, count in list(counts.items())[:MAX_LISTED_PROBLEMS]]
    return ", ".join(parts) + (" …" if len(counts) > MAX_LISTED_PROBLEMS else "")
