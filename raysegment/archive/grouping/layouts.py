"""From the files of an archive to its scans: the user's own globs, known datasets of volumes, folders and names."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

from raysegment.archive.grouping.contrasts import take_bids, take_brats
from raysegment.archive.grouping.datasets import take_datasets
from raysegment.archive.grouping.folders import Draft, LocatedFile, draft_scans, make_unique
from raysegment.archive.grouping.globs import Channels, Globs, draft_named, files_by_scan, replace_references
from raysegment.archive.grouping.volumes import ChannelsOf, Taken, leave_out, list_files, list_volumes
from raysegment.archive.names import natural_key
from raysegment.archive.walk import Folder
from raysegment.errors import UsageError


@dataclass(frozen=True)
class Naming:
    """What the user says of which files make a scan.

    Attributes:
        scan_pattern: Names the scan of each image by its first group; layouts then tell nothing.
        channels: Globs of channels; layouts then tell nothing.
        references: Globs of references; those of a layout then do not count.

    Raises:
        UsageError: Both a pattern and globs say what a scan is.
    """

    scan_pattern: re.Pattern[str] | None = None
    channels: Channels = field(default_factory=dict)
    references: Globs = ()

    def __post_init__(self) -> None:
        if self.scan_pattern is not None and self.channels:
            raise UsageError("--scan-pattern and --channel both say what a scan is; leave one of them out.")


def group_files(
    folders: Sequence[Folder], source_name: str, channels_of: ChannelsOf, naming: Naming
) -> tuple[list[Draft], int]:
    """Join files to scans; `globs`, `datasets`, `contrasts` and `folders` have the rules.

    Args:
        folders: What lies below the source, without what raysegment wrote.
        source_name: The source's last folder.
        channels_of: What `dataset.json` in a folder says of channels.
        naming: What the user says.

    Returns:
        The scans in natural order of their scan_ids, which are all different, and the number of masks without an image.

    Raises:
        UsageError: A pattern or glob fits nothing, or a dataset's own file names no channels.
    """
    files = list_files(folders)
    if naming.channels:
        return draft_named(files, naming.channels, naming.references, source_name)
    masks = files_by_scan(files, naming.references, source_name)
    folders = leave_out(folders, {path for items in masks.values() for path, _ in items})
    if naming.scan_pattern is not None:
        drafts, lone_masks = draft_scans(folders, source_name, naming.scan_pattern)
    else:
        drafts, lone_masks = _draft_layouts(folders, source_name, channels_of)
    if naming.references:
        lone_masks = replace_references(drafts, masks)
    return drafts, lone_masks


def _draft_layouts(folders: Sequence[Folder], source_name: str, channels_of: ChannelsOf) -> tuple[list[Draft], int]:
    """Each layout takes its files out; folders and names tell the rest."""
    layouts: tuple[Callable[[Sequence[LocatedFile]], Taken], ...] = (
        partial(take_datasets, source_name=source_name, channels_of=channels_of),
        take_bids,
        take_brats,
    )
    found: list[Draft] = []
    lone_masks = 0
    for take in layouts:
        taken = take(list_volumes(folders))
        folders = leave_out(folders, taken.paths)
        found += taken.drafts
        lone_masks += taken.lone_masks
    drafts, num_lone = draft_scans(folders, source_name)
    if found:
        drafts = sorted(drafts + found, key=lambda draft: natural_key(draft.scan_id))
        make_unique(drafts)
    return drafts, lone_masks + num_lone
