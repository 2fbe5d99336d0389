"""Scans that an archive still holds, but under other names than the tables of an earlier run have for them."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

from raysegment.archive.grouping.folders import former_names, name_of_source
from raysegment.archive.manifest import is_manifest
from raysegment.archive.names import drop_seals


def find_renamed(source: str, wanted: pa.Table, found: pa.Table, finished: pa.Table) -> pa.Array:
    """Scans in the tables whose slices are those of wanted scans with other names.

    A folder's only series has the folder's name; when a second one joins it, both get names of their own, and what was
    segmented under the old name would stand in the tables twice. A finished scan goes if the source no longer has its
    name, and a wanted scan of the same source either has its fingerprint, so the very same files, or is made of files
    that the folder layout gave this name when others lay beside them. Scans that merely vanished stay, and so do those
    of other sources.

    Args:
        source: As the user gave it; the names in a manifest are its writer's, so there only the fingerprint tells.
        wanted: Rows of the manifest that this run is about.
        found: All rows that the source has.
        finished: `scan_id`, `source` and `fingerprint` of the scans in the tables.

    Returns:
        Their scan_ids.
    """
    # The tables have a sealed source without its seal.
    here = [drop_seals(text) for text in pc.unique(wanted["source"]).to_pylist()]
    is_here = pc.is_in(finished["source"], value_set=pa.array(here, pa.string()))
    is_named = pc.is_in(finished["scan_id"], value_set=found["scan_id"].combine_chunks())
    lost = finished.filter(pc.and_(is_here, pc.invert(is_named)))
    if not lost.num_rows:
        return pa.array([], pa.string())
    fingerprints, names, has_layout = set(), set(), not is_manifest(source)
    for row in _select_akin(wanted, lost).select(["source", "fingerprint", "files"]).to_pylist():
        fingerprints.add((row["source"], row["fingerprint"]))
        if has_layout:
            names |= {(row["source"], name) for name in former_names(row["files"], name_of_source(row["source"]))}
    renamed = [
        row["scan_id"]
        for row in lost.to_pylist()
        if (row["source"], row["fingerprint"]) in fingerprints or (row["source"], row["scan_id"]) in names
    ]
    return pa.array(renamed, pa.string())


def _select_akin(wanted: pa.Table, lost: pa.Table) -> pa.Table:
    """Wanted scans that may be lost ones: of one fingerprint, or in a folder that the lost name speaks of."""
    wanted = wanted.filter(pc.greater(pc.list_value_length(wanted["files"]), 0))
    folders = _folders_of(pc.list_element(wanted["files"], 0))
    spoken_of = pa.concat_arrays([*lost["scan_id"].chunks, *_folders_of(lost["scan_id"]).chunks, pa.array([""])])
    lies_there = pc.is_in(folders, value_set=spoken_of)
    has_fingerprint = pc.is_in(wanted["fingerprint"], value_set=lost["fingerprint"].combine_chunks())
    return wanted.filter(pc.or_(lies_there, has_fingerprint))


def _folders_of(paths: pa.ChunkedArray) -> pa.ChunkedArray:
    return pc.replace_substring_regex(paths, "/?[^/]*$", "")
