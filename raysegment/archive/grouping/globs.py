"""Scans by the user's own globs: `--channel NAME=GLOB` and `--reference GLOB`.

- A glob is a path below SOURCE. `*` and `?` stand for characters of one name, `**` for any folders, `[…]` for one of
  some characters. Upper and lower case are the same.
- `{scan}` is what the files of one scan share, folders included; it takes as much as it can and becomes the scan_id,
  without `_`, `-`, `.` and `/` at its end. Where it stands twice in a glob, it is the same text.
- Several globs for one NAME, or for the reference, are several ways in which the files are called.
- What has a file for one channel is a scan. A channel without a file, with several, or with the file of another channel
  has none and is a problem. One file for all channels holds them in its fourth axis.
- A file that a reference's glob fits is no channel; files that no glob fits are left alone.
- Without `--channel` the layout tells the scans, and `{scan}` of `--reference` is a scan_id, with or without extension
  and folders. References that the layout would find do not count.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from raysegment.archive.grouping.folders import VOLUME_EXTENSIONS, Draft, naming_parts
from raysegment.archive.grouping.naming import PLACEHOLDER, Channels, Globs, example_glob
from raysegment.archive.grouping.volumes import add_reference, draft_channels
from raysegment.archive.names import extension_of, natural_key, show_name, stem_of
from raysegment.archive.walk import LocatedFile
from raysegment.errors import UsageError

GIVEN = "--channel"
MAX_EXAMPLES = 3


def files_by_scan(files: Iterable[LocatedFile], globs: Globs, source_name: str) -> dict[str, list[LocatedFile]]:
    """The files that fit one of some globs, by what `{scan}` stands for in them."""
    found: dict[str, list[LocatedFile]] = defaultdict(list)
    for item in files:
        match = next(filter(None, (glob.fullmatch(item[0]) for glob in globs)), None)
        if match is not None:
            found[match["scan"].rstrip("/_-. ") or source_name].append(item)
    return found


def draft_named(files: Sequence[LocatedFile], channels: Channels, source_name: str) -> list[Draft]:
    """The scans that globs of channels tell, without references.

    Raises:
        UsageError: A channel's globs fit no file at all, or files of which one holds a whole scan.
    """
    found: dict[str, dict[str, list[LocatedFile]]] = defaultdict(dict)
    for name, globs in channels.items():
        by_scan = files_by_scan(files, globs, source_name)
        _check_files(name, by_scan, len(channels))
        for scan_id, items in by_scan.items():
            found[scan_id][name] = items
    return [_draft_scan(scan_id, tuple(channels), found[scan_id]) for scan_id in sorted(found, key=natural_key)]


def replace_references(drafts: list[Draft], masks: Mapping[str, Sequence[LocatedFile]]) -> int:
    """Give scans of a layout the references that globs tell, and no others.

    Args:
        drafts: All scans; their references change.
        masks: References by what `{scan}` stands for.

    Returns:
        The number of references without a scan.

    Raises:
        UsageError: None fits a scan.
    """
    known: dict[str, list[Draft]] = defaultdict(list)
    for draft in drafts:
        draft.references = []
        name = draft.scan_id
        last = name.rpartition("/")[2]
        for key in {name, name[: len(name) - len(extension_of(name))], last, stem_of(name)}:
            known[key].append(draft)
    num_lone = 0
    for scan, items in masks.items():
        meant = known.get(scan, [])
        if len(meant) == 1:
            add_reference(meant[0], items)
        else:
            num_lone += len(items)
    if masks and not drafts:
        raise UsageError(
            f"--reference fits all files, such as {show_name(next(iter(masks.values()))[0][0])}, so that no image is "
            f"left; make it fit references alone, {example_glob('', 'seg')}."
        )
    if drafts and not any(draft.references or draft.note for draft in drafts):
        scans = ", ".join(show_name(draft.scan_id) for draft in drafts[:MAX_EXAMPLES])
        shown = ", ".join(map(show_name, list(masks)[:MAX_EXAMPLES])) or "no file"
        raise UsageError(
            f"--reference fits {shown}, of which none is a scan; {PLACEHOLDER} must be one, such as {scans}."
        )
    return num_lone


def _draft_scan(scan_id: str, names: tuple[str, ...], found: Mapping[str, list[LocatedFile]]) -> Draft:
    everywhere = [found.get(name) for name in names]
    first = next(iter(found.values()))
    if len(first) == 1 and len(names) > 1 and all(items == first for items in everywhere):
        draft = draft_channels(scan_id, names[:1], {names[0]: first})
        draft.channel_names = names
    else:
        shared = _shared_by_channels(found)
        draft = draft_channels(scan_id, names, {name: items for name, items in found.items() if name not in shared})
        draft.problem = "; ".join(filter(None, [*shared.values(), draft.problem if not shared else None])) or None
    if first[0][1].extension not in VOLUME_EXTENSIONS:
        draft.channel_names = draft.missing = ()
    draft.split = naming_parts(first[0][0].rpartition("/")[0])[1]
    draft.layout = GIVEN
    return draft


def _shared_by_channels(found: Mapping[str, list[LocatedFile]]) -> dict[str, str]:
    """Channels whose one file is that of another one too, with what to say of it."""
    holders: dict[str, list[str]] = defaultdict(list)
    for name, items in found.items():
        if len(items) == 1:
            holders[items[0][0]].append(name)
    return {
        name: f"{show_name(path)} fits the channels {' and '.join(names)}"
        for path, names in holders.items()
        if len(names) > 1
        for name in names
    }


def _check_files(name: str, by_scan: Mapping[str, list[LocatedFile]], num_channels: int) -> None:
    """Refuse globs that fit nothing, and several channels of files that are no volumes."""
    if not by_scan:
        raise UsageError(f"--channel {show_name(name)} fits no file; globs are paths below SOURCE, {example_glob('')}.")
    others = [path for items in by_scan.values() for path, file in items if file.extension not in VOLUME_EXTENSIONS]
    if others and num_channels > 1:
        raise UsageError(
            f"--channel {show_name(name)} fits {show_name(others[0])}; only volumes ({', '.join(VOLUME_EXTENSIONS)}) "
            "have a file for each channel."
        )
