"""Publishing, by the driver only: staged parts into the tables, and out of them again."""

from __future__ import annotations

import io
from collections.abc import Collection

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pds
import pyarrow.parquet as pq

from raysegment.store.damage import Damage, damaged, find_damage, report_damage
from raysegment.store.parts import STAGING
from raysegment.store.place import Place
from raysegment.store.schema import SCANS_SCHEMA, SCHEMAS

TAKING_OUT = "_taking_out.parquet"
"""Scans that are being taken out of the tables; start-up finishes what a dead driver began."""

FINISHED_COLUMNS = ["scan_id", "fingerprint", "status", "error_type"]


ALL_TABLES = tuple(SCHEMAS)


def publish_part(place: Place, folder: str, name: str, tables: tuple[str, ...] = ALL_TABLES) -> None:
    """Rename a staged part into the tables: masks, metrics, and `scans` last, which makes its scans done."""
    for table in tables:
        place.move(f"{folder}/{table}/{name}", f"{table}/{name}")
        place.sync_folder(table)


def list_parts(place: Place, table: str) -> list[str]:
    """Names of a table's parts, sorted."""
    return [name for name in place.list_names(table) if name.endswith(".parquet") and not name.startswith((".", "_"))]


def prepare_tables(place: Place, tables: tuple[str, ...] = ALL_TABLES) -> list[Damage]:
    """Make the tables' folders, and bring the tables in order after a driver that died or a disk that failed.

    Staging leftovers go, and so do parts of `masks` or `metrics` without one in `scans`; scans that were being taken
    out are taken out. A part that is damaged in one table goes from all, so that its scans are done again.

    Args:
        place: The output folder.
        tables: Those that it has, `scans` among them.

    Returns:
        The damaged parts that were removed.

    Raises:
        OutputError: The storage refuses a file.
    """
    for table in tables:
        place.make_folder(table)
    place.delete(STAGING)
    drop_orphans(place)
    removed: list[Damage] = []
    if place.exists(TAKING_OUT):
        # Half taken out, a part's tables differ: only what cannot be read is damaged.
        removed += _drop_damaged(place, [item for item in _find_damage(place, tables) if item.is_unreadable])
        take_out(place, place.read_table(TAKING_OUT)["scan_id"])
    return removed + _drop_damaged(place, _find_damage(place, tables))


def check_tables(place: Place, *tables: str) -> None:
    """Make sure that `scans` and the tables named with it are whole, for commands that only read them.

    Raises:
        DamagedTablesError: Parts are missing or damaged; the message names the first.
        OutputError: The storage refuses a file.
    """
    found = find_damage(place, list_parts(place, "scans"), tables)
    if found:
        more = f", and {len(found) - 1} more parts are lost or damaged" if len(found) > 1 else ""
        raise damaged(place, f"{found[0]}{more}")


def _find_damage(place: Place, tables: tuple[str, ...]) -> list[Damage]:
    return find_damage(place, list_parts(place, "scans"), [table for table in tables if table != "scans"])


def _drop_damaged(place: Place, found: list[Damage]) -> list[Damage]:
    """Delete damaged parts, `scans` first: the other tables' files are orphans from then on."""
    for item in found:
        place.delete(f"scans/{item.part}")
    if found:
        drop_orphans(place)
    return found


def drop_orphans(place: Place) -> None:
    """Delete parts of `masks` and `metrics` that never got their part of `scans`."""
    published = set(list_parts(place, "scans"))
    for table in ("masks", "metrics"):
        for name in set(list_parts(place, table)) - published:
            place.delete(f"{table}/{name}")


def read_finished(place: Place) -> pa.Table:
    """What the tables know of each scan: scan_id, fingerprint, status, error_type."""
    return read_rows(place, "scans", FINISHED_COLUMNS)


def read_rows(
    place: Place, table: str, columns: list[str] | None = None, among: Collection[str] | None = None
) -> pa.Table:
    """Columns of all parts of a table, or of those parts among the given ones.

    Raises:
        DamagedTablesError: A part cannot be read; the message names it.
    """
    schema = SCHEMAS[table]
    names = [f"{table}/{part}" for part in list_parts(place, table) if among is None or part in among]
    parts = [place.path(name) for name in names]
    if not parts:
        empty = schema.empty_table()
        return empty.select(columns) if columns else empty
    try:
        dataset = pds.dataset(parts, schema=schema, format="parquet", filesystem=place.filesystem)
        return dataset.to_table(columns=columns)
    except (pa.ArrowException, OSError, ValueError) as error:
        for name in names:
            with report_damage(place, name):
                place.read_table(name)
        raise damaged(place, f"{table} cannot be read: {' '.join(str(error).split())[:200]}") from error


def take_out(place: Place, scan_ids: pa.Array | pa.ChunkedArray) -> None:
    """Remove scans from the tables, so that they are done again.

    A part is replaced under its own name by one with fewer rows, `scans` first; an empty one is deleted. What is to go
    is written down first, so that a driver that dies in between leaves nothing half.
    """
    scan_ids = pc.unique(scan_ids)
    if len(scan_ids) == 0:
        place.delete(TAKING_OUT)
        return
    sink = io.BytesIO()
    pq.write_table(pa.table({"scan_id": scan_ids.cast(SCANS_SCHEMA.field("scan_id").type)}), sink)
    place.write_bytes(TAKING_OUT, sink.getvalue())
    for table in reversed(SCHEMAS):
        for name in list_parts(place, table):
            _take_out_of_part(place, table, name, scan_ids)
    drop_orphans(place)
    place.delete(TAKING_OUT)


def _take_out_of_part(place: Place, table: str, name: str, scan_ids: pa.Array) -> None:
    path = place.path(f"{table}/{name}")
    ids = pq.read_table(path, columns=["scan_id"], filesystem=place.filesystem, partitioning=None)["scan_id"]
    goes = pc.is_in(ids, value_set=scan_ids)
    if not pc.any(goes).as_py():
        return
    kept = place.read_table(f"{table}/{name}").filter(pc.invert(goes))
    if kept.num_rows == 0 and table == "scans":
        place.delete(f"{table}/{name}")
        return
    staged = f"{STAGING}/taking-out/{table}/{name}"
    place.write_table(staged, kept, compression="none" if table == "masks" else "zstd")
    place.move(staged, f"{table}/{name}")
    place.sync_folder(table)
