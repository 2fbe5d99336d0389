"""What the layouts of volumes share: which files are volumes, and a scan of one volume for each channel."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from raysegment.archive.grouping.folders import Draft, naming_parts
from raysegment.archive.names import show_name
from raysegment.archive.walk import LocatedFile

ChannelsOf = Callable[[str], tuple[str, ...]]
"""Names of the channels that `dataset.json` in a folder below the source tells; empty where none does."""


@dataclass(frozen=True)
class Taken:
    """What a layout recognises in an archive.

    Attributes:
        drafts: Its scans.
        paths: All files that it accounts for, those that are left alone too; no other layout sees them.
        lone_masks: Masks beside which no image lies.
    """

    drafts: list[Draft] = field(default_factory=list)
    paths: set[str] = field(default_factory=set)
    lone_masks: int = 0

    def with_others(self, others: Taken) -> Taken:
        """What two layouts recognise in one archive."""
        return Taken(self.drafts + others.drafts, self.paths | others.paths, self.lone_masks + others.lone_masks)


def draft_channels(scan_id: str, names: Sequence[str], found: Mapping[str, Sequence[LocatedFile]]) -> Draft:
    """A scan with a volume for each channel. A channel with no file, or with several, has none and is a problem.

    Args:
        scan_id: What the files share.
        names: All channels in order.
        found: Files by channel.
    """
    draft = Draft(scan_id, place_of(scan_id), split=naming_parts(scan_id.rpartition("/")[0])[1])
    draft.channel_names = tuple(names)
    missing, problems = [], []
    for position, name in enumerate(names):
        matches = found.get(name, ())
        if len(matches) == 1:
            draft.files.append(matches[0])
            continue
        missing.append(position)
        problems.append(_describe_missing(name, matches))
    draft.missing = tuple(missing)
    draft.problem = "; ".join(problems) or None
    return draft


def add_reference(draft: Draft, matches: Sequence[LocatedFile]) -> None:
    """Give a scan the one mask that fits it; several are noted and none is taken."""
    if len(matches) == 1:
        draft.references = [matches[0]]
    elif matches:
        shown = " and ".join(show_name(path) for path, _ in matches[:2])
        draft.note = f"{len(matches)} masks fit it, {shown}; name the right one with --reference"


def give_references(drafts: list[Draft], masks: dict[str, list[LocatedFile]]) -> int:
    """Give each scan the masks of its scan_id; returns how many of these have no scan."""
    for draft in drafts:
        add_reference(draft, masks.pop(draft.scan_id, ()))
    return sum(map(len, masks.values()))


def place_of(scan_id: str) -> tuple[str, ...]:
    """The folders of a scan that name something, then its own name."""
    folder, _, name = scan_id.rpartition("/")
    return (*naming_parts(folder)[0], name)


def _describe_missing(name: str, matches: Sequence[LocatedFile]) -> str:
    if not matches:
        return f"there is no file for channel {show_name(name)}"
    shown = " and ".join(show_name(path) for path, _ in matches[:2])
    return f"{len(matches)} files fit channel {show_name(name)}, {shown}"
