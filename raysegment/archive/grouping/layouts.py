"""From the files of an archive to its scans: the user's own globs, known datasets of volumes, folders and names."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from raysegment.archive.grouping.contrasts import take_bids, take_brats
from raysegment.archive.grouping.datasets import take_datasets
from raysegment.archive.grouping.folders import VOLUME_EXTENSIONS, Draft, draft_scans, put_in_order
from raysegment.archive.grouping.globs import draft_named, files_by_scan, replace_references
from raysegment.archive.grouping.naming import Naming
from raysegment.archive.grouping.volumes import ChannelsOf, Taken, give_references
from raysegment.archive.walk import Folder, LocatedFile


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
    files = sorted((item for folder in folders for item in folder.located), key=lambda item: item[0])
    masks = files_by_scan(files, naming.references, source_name)
    taken = Taken(paths={path for items in masks.values() for path, _ in items})
    files = [item for item in files if item[0] not in taken.paths]
    if naming.channels:
        drafts = draft_named(files, naming.channels, source_name)
        return drafts, give_references(drafts, masks)
    if naming.scan_pattern is None:
        taken = taken.with_others(_take_layouts(files, source_name, channels_of))
    drafts, lone_masks = draft_scans(folders, source_name, naming.scan_pattern, taken.paths)
    if taken.drafts:
        drafts = put_in_order(drafts + taken.drafts)
    if naming.references:
        return drafts, replace_references(drafts, masks)
    return drafts, lone_masks + taken.lone_masks


def _take_layouts(files: Sequence[LocatedFile], source_name: str, channels_of: ChannelsOf) -> Taken:
    """Each layout takes its volumes; the next one sees the others."""
    layouts: tuple[Callable[[Sequence[LocatedFile]], Taken], ...] = (
        partial(take_datasets, source_name=source_name, channels_of=channels_of),
        take_bids,
        take_brats,
    )
    taken = Taken()
    volumes = [item for item in files if item[1].extension in VOLUME_EXTENSIONS]
    for take in layouts:
        taken = taken.with_others(take([item for item in volumes if item[0] not in taken.paths]))
    return taken
