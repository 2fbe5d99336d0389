"""Members of a cohort: every scan that ever belonged to it, when it was first and last seen, and when it vanished.

Both tables, members and manifest, may have a million rows, so they are joined as Arrow columns.
"""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

SEEN = pa.timestamp("s", "UTC")

MEMBERS_SCHEMA = pa.schema(
    [
        ("scan_id", pa.string()),
        ("first_seen", SEEN),
        ("last_seen", SEEN),
        ("vanished_at", SEEN),
        ("fingerprint", pa.string()),
    ]
)
"""`vanished_at` is null as long as the source has the scan."""


def update_members(members: pa.Table, manifest: pa.Table, now: int) -> pa.Table:
    """The table of members after a look at the source; those that are new follow the others.

    Where a clock was set back, the look counts as of the latest time that the table knows.

    Args:
        members: As it was.
        manifest: The cohort's scans that the source has now.
        now: Seconds since 1970.
    """
    latest = [pc.max(members[name]).value or 0 for name in ("last_seen", "vanished_at")]
    seen = pa.scalar(max(now, *latest), SEEN)
    position = pc.index_in(members["scan_id"], value_set=manifest["scan_id"].combine_chunks())
    is_here = pc.is_valid(position)
    known = pa.table(
        {
            "scan_id": members["scan_id"],
            "first_seen": members["first_seen"],
            "last_seen": pc.if_else(is_here, seen, members["last_seen"]),
            "vanished_at": pc.if_else(is_here, pa.scalar(None, SEEN), pc.coalesce(members["vanished_at"], seen)),
            "fingerprint": pc.coalesce(pc.take(manifest["fingerprint"], position), members["fingerprint"]),
        }
    ).cast(MEMBERS_SCHEMA)
    is_known = pc.is_in(manifest["scan_id"], value_set=members["scan_id"].combine_chunks())
    added = manifest.select(["scan_id", "fingerprint"]).filter(pc.invert(is_known))
    times = pa.repeat(seen, added.num_rows)
    new = pa.table(
        {
            "scan_id": added["scan_id"],
            "first_seen": times,
            "last_seen": times,
            "vanished_at": pa.nulls(added.num_rows, SEEN),
            "fingerprint": added["fingerprint"],
        }
    ).cast(MEMBERS_SCHEMA)
    return pa.concat_tables([known, new]).combine_chunks()


def find_vanished(members: pa.Table, manifest: pa.Table) -> pa.ChunkedArray:
    """scan_ids of members that were there the last time and are not now."""
    there = members.filter(pc.is_null(members["vanished_at"]))["scan_id"]
    return there.filter(pc.invert(pc.is_in(there, value_set=manifest["scan_id"].combine_chunks())))
