"""Columns of finished rows that follow from something else, brought up to date without segmenting anew.

The day and the patient of a scan follow from the manifest, `needs_review` from the other numbers of its row and the
rule. Parts in which something is out of date are replaced in one step under their own names, like all parts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from raysegment.store.damage import report_damage
from raysegment.store.parts import STAGING
from raysegment.store.place import Place
from raysegment.store.publish import list_parts, read_rows
from raysegment.store.review_rule import judge_rows, list_columns

DAYS = ("scan_date", "scan_day")
"""What says when a scan was made."""

Wanted = Callable[[pa.Table], pa.ChunkedArray | pa.Array]
"""What a column should hold, by the other columns of its rows."""


@dataclass(frozen=True, kw_only=True)
class Outdated:
    """What finished rows say otherwise than they should.

    Attributes:
        dates: Scans that have another day than the manifest says, or none.
        patients: Scans that have another patient than the manifest says.
        reviews: Rows of metrics of which the rule says otherwise than they do.
    """

    dates: int = 0
    patients: int = 0
    reviews: int = 0

    def __bool__(self) -> bool:
        return bool(self.dates or self.patients or self.reviews)


def find_outdated(place: Place, manifest: pa.Table, rule: Mapping[str, Any] | None = None) -> Outdated:
    """Look for what `amend_tables` would change.

    Args:
        place: The output folder.
        manifest: With scan_id, patient_id, scan_date and scan_day. One that says no day at all is not asked for any:
            the tables keep theirs.
        rule: Conditions as in `store/review_rule`; None where each row was judged by the one that holds.

    Raises:
        DamagedTablesError: A part cannot be read.
    """
    dates = reviews = 0
    scans = read_rows(place, "scans", ["scan_id", "patient_id", *DAYS])
    patients = _count(_differs(scans["patient_id"], _as_in(manifest, "patient_id", scans)))
    if any(manifest[name].null_count < manifest.num_rows for name in DAYS):
        date_differs, day_differs = (_differs(scans[name], _as_in(manifest, name, scans)) for name in DAYS)
        dates = _count(pc.or_(date_differs, day_differs))
    if rule is not None:
        metrics = read_rows(place, "metrics", list(dict.fromkeys([*list_columns(rule), "needs_review"])))
        reviews = _count(_differs(metrics["needs_review"], judge_rows(metrics, rule)))
    return Outdated(dates=dates, patients=patients, reviews=reviews)


def amend_tables(place: Place, manifest: pa.Table, rule: Mapping[str, Any] | None = None) -> Outdated:
    """Give finished rows the day and patient that the manifest says, and the judgement that the rule does.

    Args:
        place: The output folder; its parts are whole and have today's columns.
        manifest: As in `find_outdated`.
        rule: As there.

    Returns:
        What was out of date.
    """
    found = find_outdated(place, manifest, rule)
    for name in DAYS if found.dates else ():
        _amend(place, "scans", name, partial(_as_in, manifest, name))
    # `scans` last: what is out of date is found by it, should this start die in between.
    for table in ("metrics", "scans") if found.patients else ():
        _amend(place, table, "patient_id", partial(_as_in, manifest, "patient_id"))
    if found.reviews and rule is not None:
        _amend(place, "metrics", "needs_review", lambda metrics: judge_rows(metrics, rule))
    return found


def _amend(place: Place, table: str, column: str, wanted: Wanted) -> None:
    for part in list_parts(place, table):
        name = f"{table}/{part}"
        with report_damage(place, name):
            rows = place.read_table(name)
        values = wanted(rows)
        if not _count(_differs(rows[column], values)):
            continue
        index = rows.schema.get_field_index(column)
        staged = f"{STAGING}/amending/{name}"
        place.write_table(staged, rows.set_column(index, rows.schema.field(index), values))
        place.move(staged, name)
    place.sync_folder(table)


def _as_in(manifest: pa.Table, column: str, rows: pa.Table) -> pa.ChunkedArray:
    """What the manifest says of each row's scan; those that it does not have keep what they say."""
    position = pc.index_in(rows["scan_id"], value_set=manifest["scan_id"].combine_chunks())
    return pc.if_else(pc.is_valid(position), pc.take(manifest[column], position), rows[column])


def _differs(stored: pa.ChunkedArray, wanted: pa.ChunkedArray | pa.Array) -> pa.ChunkedArray:
    """Where two columns are not the same, null being a value of its own."""
    both = pc.fill_null(pc.not_equal(stored, wanted), False)
    return pc.or_(both, pc.xor(pc.is_null(stored), pc.is_null(wanted)))


def _count(condition: pa.ChunkedArray) -> int:
    return int(pc.sum(condition).as_py() or 0)
