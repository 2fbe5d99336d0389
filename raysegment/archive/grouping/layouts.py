"""From the files of an archive to its scans: known datasets of volumes first, then folders and names."""

from __future__ import annotations

import re
from collections.abc import Sequence

from raysegment.archive.grouping.datasets import take_datasets
from raysegment.archive.grouping.folders import Draft, draft_scans, make_unique
from raysegment.archive.grouping.volumes import ChannelsOf, leave_out, list_volumes
from raysegment.archive.names import natural_key
from raysegment.archive.walk import Folder


def group_files(
    folders: Sequence[Folder], source_name: str, channels_of: ChannelsOf, scan_pattern: re.Pattern[str] | None = None
) -> tuple[list[Draft], int]:
    """Join files to scans; `datasets` and `folders` have the rules.

    Args:
        folders: What lies below the source, without what raysegment wrote.
        source_name: The source's last folder.
        channels_of: What `dataset.json` in a folder says of channels.
        scan_pattern: Names the scan of each image by its first group; layouts then tell nothing.

    Returns:
        The scans in natural order of their scan_ids, which are all different, and the number of masks without an image.

    Raises:
        UsageError: The pattern finds no scan in an image's path, or a dataset's own file names no channels.
    """
    volumes = list_volumes(folders) if scan_pattern is None else []
    taken = take_datasets(volumes, source_name, channels_of)
    drafts, lone_masks = draft_scans(leave_out(folders, taken.paths), source_name, scan_pattern)
    if taken.drafts:
        drafts = sorted(drafts + taken.drafts, key=lambda draft: natural_key(draft.scan_id))
        make_unique(drafts)
    return drafts, lone_masks + taken.lone_masks
