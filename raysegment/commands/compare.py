"""`raysegment compare`: what changed between two outputs of the same scans, mask by mask."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow as pa

from raysegment.commands.report import find_manifest
from raysegment.commands.stored_tables import check_apart
from raysegment.errors import EXIT_DONE, UsageError
from raysegment.options import CompareOptions
from raysegment.pipeline.changes import ChangeRule, Side, compare_sides
from raysegment.pipeline.changes_gallery import ChangedScan, draw_distributions, draw_largest
from raysegment.pipeline.changes_summary import choose_largest, describe_changes, summarise_changes
from raysegment.pipeline.side_by_side import run_side_by_side
from raysegment.runs.console import Console
from raysegment.runs.identity import identify
from raysegment.runs.lock import RunLock
from raysegment.runs.progress import ScanProgress
from raysegment.runs.record import as_json, describe_choices, describe_machine, keep_record, read_record
from raysegment.scan import SliceAxis
from raysegment.store.pairs import iterate_pairs
from raysegment.store.parts import STAGING
from raysegment.store.place import Place
from raysegment.store.publish import check_tables, read_rows
from raysegment.store.schema import CHANGES_SCHEMA
from raysegment.store.upgrade import read_version

MADE_BY = ("infer", "evaluate")
ROWS_AT_ONCE = 10_000
SCAN_COLUMNS = ["scan_id", "patient_id", "status", "model_id", "options_id", "fingerprint", "attempt"]
METRIC_COLUMNS = ["scan_id", "label", "voxels", "volume_ml"]


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


def compare(options: CompareOptions) -> CompareResult:
    """Compare the masks of two output folders, scan by scan and label by label; both are only read.

    Raises:
        UsageError: A folder is no output of `infer` or `evaluate`, they have no scan in common, or --out is another
            run's or lies in one of them.
        DamagedTablesError: Parts of a table are lost or damaged.
        RunError: Another run owns --out, or the disk is full.
    """
    before, after = Tables(options.before), Tables(options.after)
    place = Place(options.out)
    for tables in (before, after):
        check_apart(options.out, tables.place)
    if not before.places.keys() & after.places.keys():
        raise UsageError(f"{options.before} and {options.after} have no scan in common; nothing can be compared.")
    identity = identify(
        "compare", options, key="result_options", tables_before=before.digest, tables_after=after.digest
    )
    record = identity.open(place)
    if record.get("status") == "done":
        Console(None, as_json=options.json).say(f"nothing to do: {options.out} holds this comparison.")
        summary = json.loads(place.read_bytes("summary.json"))
        return CompareResult(out=options.out, summary=summary, already_done=True)
    place.make_writable()
    record |= {"options_id": identity.options_id, **describe_choices(options), **describe_machine()}
    with RunLock(place), keep_record(place, record), Console(place, as_json=options.json) as console:
        progress = ScanProgress(console, len(before.places.keys() | after.places.keys()))
        table = compare_tables(before, after, options, progress)
        publish_changes(place, table)
        summary = summarise_changes(table)
        place.write_bytes("summary.json", (json.dumps(as_json(summary), indent=2) + "\n").encode())
        figures = draw_figures(options, place, before, after, table)
        for line in describe_changes(summary, options.out):
            console.say(line)
    return CompareResult(out=options.out, summary=summary, figures=tuple(figures))


class Tables:
    """The tables of one side, with what is known of each scan but its mask.

    Args:
        folder: What `infer` or `evaluate` wrote.

    Attributes:
        place: The folder.
        record: What its run.json holds.
        scans: Rows of `scans`, some of its columns.
        metrics: Rows of `metrics`, some of its columns.
        places: For each scan its row in `scans`.

    Raises:
        UsageError: The folder is no such output, or of a version that is not known.
        DamagedTablesError: Parts are lost or damaged.
    """

    def __init__(self, folder: str) -> None:
        self.place = Place(folder)
        self.record = read_record(self.place)
        if self.record.get("command") not in MADE_BY:
            raise UsageError(f"{folder} is no folder that `raysegment infer` or `evaluate` wrote.")
        read_version(self.place, self.record)
        check_tables(self.place, "metrics", "masks")
        self.scans = read_rows(self.place, "scans", SCAN_COLUMNS)
        self.metrics = read_rows(self.place, "metrics", METRIC_COLUMNS).sort_by("scan_id")
        self.places = {scan_id: index for index, scan_id in enumerate(self.scans["scan_id"].to_pylist())}
        ids = self.metrics["scan_id"].combine_chunks()
        starts = pa.array(range(len(ids)), pa.int64())
        self._first = dict(zip(reversed(ids.to_pylist()), reversed(starts.to_pylist()), strict=True))

    @property
    def digest(self) -> str:
        """SHA-256 over what the rows were made of, so that a folder to which scans came is known as another one."""
        order = self.scans.sort_by("scan_id")
        digest = hashlib.sha256()
        for name in SCAN_COLUMNS:
            digest.update("\0".join(map(str, order[name].to_pylist())).encode("utf-8", "surrogateescape"))
        return digest.hexdigest()

    def side(self, scan_id: str, mask: Mapping[str, Any] | None) -> Side:
        """A scan as this side has it."""
        index = self.places.get(scan_id)
        scan = None if index is None else self.scans.slice(index, 1).to_pylist()[0]
        return Side(scan=scan, metrics=self._metrics_of(scan_id), mask=mask)

    def _metrics_of(self, scan_id: str) -> dict[str, dict[str, Any]]:
        start = self._first.get(scan_id)
        if start is None:
            return {}
        rows: dict[str, dict[str, Any]] = {}
        for index in range(start, self.metrics.num_rows):
            row = self.metrics.slice(index, 1).to_pylist()[0]
            if row["scan_id"] != scan_id:
                break
            rows[row["label"]] = row
        return rows


def compare_tables(before: Tables, after: Tables, options: CompareOptions, progress: ScanProgress) -> pa.Table:
    """The table `changes`, ordered by scan and label.

    Args:
        before: The earlier side.
        after: The later one.
        options: The rule and the number of threads.
        progress: Told of each scan.
    """
    rule = ChangeRule(percent=options.change_percent, dice=options.change_dice)
    rows: list[dict[str, Any]] = []
    tables = [CHANGES_SCHEMA.empty_table()]
    workers = options.workers or os.cpu_count() or 1
    for found in run_side_by_side(lambda pair: compare_sides(*pair, rule), iterate_sides(before, after), workers):
        rows += found
        progress.advance(1, int(bool(found[0]["newly_failed"])), 0)
        if len(rows) >= ROWS_AT_ONCE:
            tables.append(pa.Table.from_pylist(rows, schema=CHANGES_SCHEMA))
            rows = []
    tables.append(pa.Table.from_pylist(rows, schema=CHANGES_SCHEMA))
    return pa.concat_tables(tables).sort_by([("scan_id", "ascending"), ("label", "ascending")])


def iterate_sides(before: Tables, after: Tables) -> Iterator[tuple[Side, Side]]:
    """Both sides of each scan, those with a mask first, a few masks in memory at a time."""
    seen = set()
    for earlier, later in iterate_pairs(before.place, after.place):
        scan_id = str((later or earlier or {})["scan_id"])
        seen.add(scan_id)
        yield before.side(scan_id, earlier), after.side(scan_id, later)
    for scan_id in dict.fromkeys([*before.places, *after.places]):
        if scan_id not in seen:
            yield before.side(scan_id, None), after.side(scan_id, None)


def publish_changes(place: Place, table: pa.Table) -> None:
    """Put the table where an earlier one may lie, in one step for readers."""
    name = "changes/changes.parquet"
    place.make_folder("changes")
    place.delete(STAGING)
    place.write_table(f"{STAGING}/{name}", table)
    place.move(f"{STAGING}/{name}", name)
    place.sync_folder("changes")
    place.delete(STAGING)


def draw_figures(options: CompareOptions, place: Place, before: Tables, after: Tables, table: pa.Table) -> list[str]:
    """The distributions, and the scans that changed most as far as they can be read."""
    chosen = dict(after.record.get("chosen") or {})
    manifest, _ = find_manifest(chosen | ({"source": options.source} if options.source else {}))
    shown = [ChangedScan(*item) for item in choose_largest(table)]
    axes = read_axes(after.place)
    with nullcontext(place.root) if place.is_local else TemporaryDirectory() as made:
        folder = Path(made)
        drawn = draw_distributions(folder, table)
        drawn += draw_largest(folder, shown, before.place, after.place, manifest, axes)
        names = [str(path.relative_to(folder)) for path in drawn]
        if not place.is_local:
            for name in names:
                place.write_bytes(name, (folder / name).read_bytes())
    return [place.locate(name) for name in names]


def read_axes(place: Place) -> dict[str, SliceAxis | None]:
    """How each scan was cut into slices."""
    rows = read_rows(place, "scans", ["scan_id", "slice_axis"])
    return dict(zip(rows["scan_id"].to_pylist(), rows["slice_axis"].to_pylist(), strict=True))
