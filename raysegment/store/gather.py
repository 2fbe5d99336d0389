"""The parts of several folders of tables in one, under names of their own; for folders on one machine's disks."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping

from raysegment.store.parts import STAGING
from raysegment.store.place import Place, report_full_disk
from raysegment.store.publish import ALL_TABLES, check_tables, drop_orphans, list_parts, prepare_tables, publish_part


def gather_parts(place: Place, sources: Mapping[str, Place]) -> None:
    """Bring a folder's tables up to those of others: what they have is there once, and nothing else.

    Parts are linked and not copied where the file system can, which is safe because a part is never changed in place.
    They are published as inference publishes, so that each table holds whole scans at every moment.

    Args:
        place: Where to gather them.
        sources: Folders of tables; their keys begin the names of their parts.

    Raises:
        DamagedTablesError: A source's parts are lost or damaged.
        DiskFullError: No space left; what is published stays valid.
    """
    wanted: dict[str, tuple[Place, str]] = {}
    for prefix, source in sources.items():
        check_tables(source, *(table for table in ALL_TABLES if table != "scans"))
        wanted |= {f"{prefix}-{part}": (source, part) for part in list_parts(source, "scans")}
    prepare_tables(place)
    for name in set(list_parts(place, "scans")) - set(wanted):
        place.delete(f"scans/{name}")
    drop_orphans(place)
    staging = f"{STAGING}/gathering"
    for name, (source, part) in wanted.items():
        if all(_is_same(source.path(f"{table}/{part}"), place.path(f"{table}/{name}")) for table in ALL_TABLES):
            continue
        for table in ALL_TABLES:
            place.make_folder(f"{staging}/{table}")
            _link(source.path(f"{table}/{part}"), place.path(f"{staging}/{table}/{name}"))
        publish_part(place, staging, name)
    place.delete(STAGING)


def _is_same(source: str, target: str) -> bool:
    try:
        return os.path.samefile(source, target)
    except FileNotFoundError:
        return False


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        with report_full_disk(target):
            shutil.copyfile(source, target)
