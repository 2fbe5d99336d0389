"""Scans to which several ways lead: links to their folders or files, and hard links.

A patient behind two names would be trained on and tested with. So a scan whose files, references included, are those of
another one is indexed once, under the name with the fewest links in it, and a scan that shares only some slices with
another one is of its patient. Both are said in the manifest's column `problem`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from raysegment.archive.grouping.folders import Draft
from raysegment.archive.names import show_name
from raysegment.archive.walk import FoundFile

MAX_SHOWN = 3

FileKey = tuple[int, int, int]
"""Identity, size and time of change: some network file systems give an identity to two files."""


def join_ways(drafts: list[Draft]) -> list[Draft]:
    """Each scan once, in the same order; what it shares with others is noted in it."""
    linked = {_key(file) for draft in drafts for _, file in draft.files if file.num_links or file.num_names > 1}
    if not linked:
        return drafts
    known: dict[tuple[FileKey | None, ...], Draft] = {}
    other_names: dict[str, list[str]] = {}
    owners: dict[FileKey, Draft] = {}
    for draft in sorted(drafts, key=_num_links):
        keys = [_key(file) for _, file in draft.files]
        if linked.isdisjoint(keys):
            continue
        references = [_key(item[1]) if item else None for item in draft.references]
        first = known.setdefault((*keys, *references), draft)
        if first is draft:
            _share(draft, keys, owners)
        else:
            other_names.setdefault(first.scan_id, []).append(draft.scan_id)
    left_out = {name for names in other_names.values() for name in names}
    kept = [draft for draft in drafts if draft.scan_id not in left_out]
    for draft in kept:
        if names := other_names.get(draft.scan_id):
            draft.note = f"also reached as {_list_names(names)}, which is indexed once"
    return kept


def _share(draft: Draft, keys: list[FileKey], owners: dict[FileKey, Draft]) -> None:
    """Note whose slices a scan holds; those that nobody holds yet are its own."""
    found = [owners.setdefault(key, draft) for key in keys if key[0]]
    shared = Counter(owner.scan_id for owner in found if owner is not draft)
    if not shared:
        return
    owner = next(owner for owner in found if owner is not draft)
    draft.shares_with = owner.shares_with or owner
    draft.note = f"shares {shared.total()} of its {len(keys)} files with {_list_names(shared)}"


def _num_links(draft: Draft) -> int:
    return max((file.num_links for _, file in draft.files), default=0)


def _key(file: FoundFile) -> FileKey:
    return (file.identity, file.size, file.changed_ns)


def _list_names(names: Iterable[str]) -> str:
    shown = [show_name(name) for name in names]
    rest = f" and {len(shown) - MAX_SHOWN} more" if len(shown) > MAX_SHOWN else ""
    return ", ".join(shown[:MAX_SHOWN]) + rest
