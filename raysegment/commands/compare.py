"""`raysegment compare`: what changed between two outputs of the same scans, mask by mask."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from raysegment.commands.compared_tables import Both, read_both
from raysegment.commands.report import find_manifest
from raysegment.commands.stored_tables import check_apart
from raysegment.errors import EXIT_DONE, UsageError
from raysegment.options import CompareOptions
from raysegment.pipeline.changes import ChangeRule, compare_sides
from raysegment.pipeline.changes_gallery import ChangedScan, draw_distributions, draw_largest
from raysegment.pipeline.changes_summary import choose_largest, describe_changes, summarise_changes
from raysegment.pipeline.side_by_side import run_side_by_side
from raysegment.runs.console import Console
from raysegment.runs.identity import identify
from raysegment.runs.lock import RunLock
from raysegment.runs.progress import ScanProgress
from raysegment.runs.record import as_json, describe_choices, describe_machine, keep_record
from raysegment.scan import SliceAxis
from raysegment.store.parts import STAGING
from raysegment.store.place import Place
from raysegment.store.publish import read_rows
from raysegment.store.schema import CHANGES_SCHEMA

ROWS_AT_ONCE = 10_000


@dataclass(frozen=True, kw_only=True)
class CompareResult:
    """What a comparison came to.

    Attributes:
        out: The output folder.
        summary: What summary.json holds; NaN where it has null.
        figures: Pictures that were drawn.
        already_done: The same was compared before, and nothing has changed since.
        exit_code: Always 0: that scans changed is a result.
    """

    out: str
    summary: dict[str, Any] = field(default_factory=dict)
    figures: tuple[str, ...] = ()
    already_done: bool = False
    exit_code: int = EXIT_DONE


def compare(options: CompareOptions, manifest: pa.Table | None = None) -> CompareResult:
    """Compare the masks of two output folders, scan by scan and label by label; both are only read.

    Args:
        options: Choices of `compare`.
        manifest: The scans of the source, where they were looked for already.

    Raises:
        UsageError: A folder is no output of `infer` or `evaluate`, they have no scan in common, or --out is another
            run's or lies in one of them.
        DamagedTablesError: Parts of a table are lost or damaged.
        RunError: Another run owns --out, or the disk is full.
    """
    both = read_both(options.before, options.after)
    place = Place(options.out)
    for tables in (both.before, both.after):
        check_apart(options.out, tables.place)
    if not both.have_a_scan_in_common:
        raise UsageError(f"{options.before} and {options.after} have no scan in common; nothing can be compared.")
    identity = identify(
        "compare", options, key="result_options", tables_before=both.before.digest, tables_after=both.after.digest
    )
    record = identity.open(place)
    if record.get("status") == "done":
        Console(None, as_json=options.json).say(f"nothing to do: {options.out} holds this comparison.")
        summary = json.loads(place.read_bytes("summary.json"))
        return CompareResult(out=options.out, summary=summary, already_done=True)
    place.make_writable()
    record |= {"options_id": identity.options_id, **describe_choices(options), **describe_machine()}
    with RunLock(place), keep_record(place, record), Console(place, as_json=options.json) as console:
        progress = ScanProgress(console, both.count_scans())
        table = compare_tables(both, options, progress)
        publish_changes(place, table)
        summary = summarise_changes(table)
        place.write_bytes("summary.json", (json.dumps(as_json(summary), indent=2) + "\n").encode())
        figures = draw_figures(options, place, both, table, manifest)
        for line in describe_changes(summary, options.out):
            console.say(line)
    return CompareResult(out=options.out, summary=summary, figures=tuple(figures))


def compare_tables(both: Both, options: CompareOptions, progress: ScanProgress) -> pa.Table:
    """The table `changes`, ordered by scan and label.

    Args:
        both: What is compared.
        options: The rule and the number of threads.
        progress: Told of each scan.
    """
    rule = ChangeRule(percent=options.change_percent, dice=options.change_dice)
    rows: list[dict[str, Any]] = []
    tables = [CHANGES_SCHEMA.empty_table()]
    for table in both.iterate_shared():
        tables.append(table)
        progress.advance(pc.count_distinct(table["scan_id"]).as_py(), 0, 0)
    workers = options.workers or os.cpu_count() or 1
    for found in run_side_by_side(
        lambda sides: [compare_sides(*pair, rule) for pair in sides], both.iterate_sides(), workers
    ):
        rows += chain.from_iterable(found)
        progress.advance(len(found), sum(scan[0]["newly_failed"] for scan in found), 0)
        if len(rows) >= ROWS_AT_ONCE:
            tables.append(pa.Table.from_pylist(rows, schema=CHANGES_SCHEMA))
            rows = []
    tables.append(pa.Table.from_pylist(rows, schema=CHANGES_SCHEMA))
    return pa.concat_tables(tables).sort_by([("scan_id", "ascending"), ("label", "ascending")])


def publish_changes(place: Place, table: pa.Table) -> None:
    """Put the table where an earlier one may lie, in one step for readers."""
    name = "changes/changes.parquet"
    place.make_folder("changes")
    place.delete(STAGING)
    place.write_table(f"{STAGING}/{name}", table)
    place.move(f"{STAGING}/{name}", name)
    place.sync_folder("changes")
    place.delete(STAGING)


def draw_figures(
    options: CompareOptions, place: Place, both: Both, table: pa.Table, manifest: pa.Table | None
) -> list[str]:
    """The distributions, and the scans that changed most as far as they can be read."""
    shown = [ChangedScan(*item) for item in choose_largest(table)]
    if shown and manifest is None:
        chosen = dict(both.after.record.get("chosen") or {})
        manifest, _ = find_manifest(chosen | ({"source": options.source} if options.source else {}))
    axes = read_axes(both.after.place, [item.scan_id for item in shown])
    with nullcontext(place.root) if place.is_local else TemporaryDirectory() as made:
        folder = Path(made)
        drawn = draw_distributions(folder, table)
        drawn += draw_largest(folder, shown, both.before.place, both.after.place, manifest, axes)
        names = [str(path.relative_to(folder)) for path in drawn]
        if not place.is_local:
            for name in names:
                place.write_bytes(name, (folder / name).read_bytes())
    return [place.locate(name) for name in names]


def read_axes(place: Place, scan_ids: Sequence[str]) -> dict[str, SliceAxis | None]:
    """How some scans were cut into slices."""
    rows = read_rows(place, "scans", ["scan_id", "slice_axis"])
    rows = rows.filter(pc.is_in(rows["scan_id"], value_set=pa.array(scan_ids, pa.string())))
    return dict(zip(rows["scan_id"].to_pylist(), rows["slice_axis"].to_pylist(), strict=True))
