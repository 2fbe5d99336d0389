"""Tables of an older version, brought up to today's columns in place.

A reader of a folder of Parquet files refuses parts whose columns differ, so a folder that goes on under a newer version
gets its old parts anew: each is replaced in one step under its own name by one with the added columns, null where
nothing tells what they would have been. A start that dies half-way leaves whole parts, and the next one does the rest.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from raysegment.errors import UsageError
from raysegment.store.damage import report_damage
from raysegment.store.parts import STAGING
from raysegment.store.place import Place
from raysegment.store.publish import list_parts
from raysegment.store.schema import ADDED_COLUMNS, SCHEMA_VERSION, SCHEMAS


def read_version(place: Place, record: Mapping[str, Any]) -> int:
    """The version of a folder's tables.

    Args:
        place: The output folder.
        record: Its run.json.

    Raises:
        UsageError: It is a newer one, whose columns this version would drop.
    """
    stored = record.get("schema_version") or 1
    if not isinstance(stored, int) or stored > SCHEMA_VERSION:
        raise UsageError(
            f"{place.location} has tables of schema_version {stored}; this raysegment writes {SCHEMA_VERSION}. Use the "
            "newer raysegment that began them, or choose another --out."
        )
    return stored


def bring_up_tables(place: Place) -> int:
    """Give all parts of an older version today's columns.

    Args:
        place: The output folder; its parts are whole.

    Returns:
        Files that were replaced.

    Raises:
        DamagedTablesError: A part cannot be read.
        DiskFullError: No space left; what is published stays valid.
    """
    added: dict[str, set[str]] = {}
    for tables in ADDED_COLUMNS.values():
        for table, columns in tables.items():
            added.setdefault(table, set()).update(columns)
    parts = list_parts(place, "scans")
    return sum(_bring_up(place, table, part, columns) for part in parts for table, columns in added.items())


def _bring_up(place: Place, table: str, part: str, added: set[str]) -> bool:
    """Replace a part that lacks one of the added columns."""
    name = f"{table}/{part}"
    with report_damage(place, name):
        if added <= set(place.read_schema(name).names):
            return False
        rows = place.read_table(name)
    if table == "metrics" and "patient_id" not in rows.column_names:
        with report_damage(place, f"scans/{part}"):
            scans = place.read_table(f"scans/{part}")
        position = pc.index_in(rows["scan_id"], value_set=scans["scan_id"].combine_chunks())
        rows = rows.append_column("patient_id", pc.take(scans["patient_id"], position))
    staged = f"{STAGING}/bringing-up/{name}"
    place.write_table(staged, _with_columns(rows, SCHEMAS[table]))
    place.move(staged, name)
    place.sync_folder(table)
    return True


def _with_columns(rows: pa.Table, schema: pa.Schema) -> pa.Table:
    known = set(rows.column_names)
    columns = [
        rows[field.name].cast(field.type) if field.name in known else pa.nulls(rows.num_rows, field.type)
        for field in schema
    ]
    return pa.table(columns, schema=schema)
