"""Scans among DICOM files, from what their headers say; names of files and folders tell nothing.

- Each series is a scan, its files in order along the normal of its slices. Images without a position are scans of
  their own: several views of one series are no volume.
- With `--channel NAME=GLOB`, series whose SeriesDescription fits are channels: those of one study, frame of reference
  and grid are one scan. A series that fits no channel is left alone. Of two that fit one channel none is taken, and a
  channel whose series has a gap has none.
- A scan_id is the deepest folder that holds all files of the scan, then 12 digits of a keyed hash of the series; of a
  scan with channels, of study and frame of reference, and of its place too where one frame holds several grids; of a
  single image without position, of the image. So other scans never change it, but for such another grid.
- A patient is a keyed hash of PatientID, or of the study where there is none.
- A segmentation (SEG) is the reference of the scan whose series it names, wherever it lies. Of several for one scan
  none is taken. Those that raysegment wrote are left alone.
- Of files that are copies of each other (one SOPInstanceUID, the same header and size) one is taken.
- Localizers, secondary captures, presentation states, reports, structure sets and DICOMDIR are counted, no scans.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from datetime import date

import numpy as np

from raysegment.archive.dicom.survey import DIRECTORY, SharedHeader, Surveyed
from raysegment.archive.formats import Header
from raysegment.archive.grouping.dicom_names import name_scans
from raysegment.archive.grouping.dicom_stack import (
    Series,
    group_images,
    leave_out_copies,
    shared_header,
    stack_series,
)
from raysegment.archive.grouping.folders import Draft, naming_parts
from raysegment.archive.grouping.naming import Naming
from raysegment.archive.grouping.volumes import add_reference
from raysegment.archive.names import natural_key, show_name
from raysegment.archive.orientation import corner_distance, spacing_of
from raysegment.archive.pseudonyms import Pseudonyms
from raysegment.archive.walk import FoundFile, LocatedFile
from raysegment.errors import MissingChannelError

LAYOUT = "DICOM series"
READER = "dicom"
STRUCTURE_SET = "rtstruct"
OWN_SEGMENTATION = "segmentation by raysegment"
OTHER_MODALITY = "image of another modality"
COPY = "copy of another file"
UNNAMED = "image of a series that no channel names"
UNNAMED_SEGMENTATION = "segmentation that --reference does not name"
SAME_PLACE_MM = 1e-3
SAME_PLACE_SHARE = 0.01


@dataclass
class FoundSeries:
    """What a survey of an archive's DICOM files gives.

    Attributes:
        drafts: Scans, and files that cannot be read, in no order.
        left_alone: Files that are no scans, by kind.
        lone_masks: Segmentations of series that are not there.
    """

    drafts: list[Draft] = field(default_factory=list)
    left_alone: Counter[str] = field(default_factory=Counter)
    lone_masks: int = 0


_Channels = dict[str, list[Series]]
"""The series of a scan by the name of their channel, which is empty where nobody named any."""


def find_series(
    surveyed: Iterable[Surveyed], files: Mapping[str, FoundFile], naming: Naming, pseudonyms: Pseudonyms
) -> FoundSeries:
    """Join DICOM files to scans.

    Args:
        surveyed: What their headers say.
        files: Size and time of each by its path.
        naming: What the user says of channels and references.
        pseudonyms: The key that the headers were hashed with.
    """
    found = FoundSeries()
    images, segmentations = (
        _count_copies(of_kind, files, found) for of_kind in _sort_by_kind(surveyed, files, naming, found)
    )
    series = [stack_series(group) for group in group_images(images)]
    scans = _join_channels(series) if naming.series else [{"": [each]} for each in series]
    by_series: dict[str, list[Draft]] = defaultdict(list)
    by_instance: dict[str, Draft] = {}
    of_study: dict[str, set[str]] = defaultdict(set)
    for each in series:
        of_study[each.shared.study].update(each.shared.channels)
    for scan, scan_id in zip(scans, _name_all(scans, naming, pseudonyms), strict=True):
        draft = _draft_scan(scan, scan_id, tuple(naming.series), of_study, files)
        found.drafts.append(draft)
        for each in {id(one): one for ones in scan.values() for one in ones}.values():
            by_series[each.shared.series].append(draft)
            by_instance.update((file.instance, draft) for file in each.files if segmentations)
    found.lone_masks = _give_segmentations(segmentations, by_series, by_instance, files)
    return found


def _sort_by_kind(
    surveyed: Iterable[Surveyed], files: Mapping[str, FoundFile], naming: Naming, found: FoundSeries
) -> tuple[list[Surveyed], list[Surveyed]]:
    """Images and segmentations; all others are counted, and what cannot be read is a row of its own."""
    images, segmentations = [], []
    for file in surveyed:
        if file.header is None:
            found.drafts.append(_draft_unread(file, files))
        elif (reason := _leave_alone(file, naming)) is not None:
            found.left_alone[reason] += 1
        elif file.header.kind == "segmentation":
            segmentations.append(file)
        else:
            images.append(file)
    return images, segmentations


def _count_copies(surveyed: Iterable[Surveyed], files: Mapping[str, FoundFile], found: FoundSeries) -> list[Surveyed]:
    """Files without the copies of others, which are counted."""
    kept, copies = leave_out_copies(surveyed, files)
    if copies:
        found.left_alone[COPY] += len(copies)
    return kept


def _leave_alone(file: Surveyed, naming: Naming) -> str | None:
    """What a file is that is neither a scan nor a reference; None where it is one of them."""
    shared = shared_header(file)
    if file.path.rpartition("/")[2].upper() == DIRECTORY:
        return DIRECTORY
    if shared.kind == "segmentation":
        is_named = not naming.references or any(glob.fullmatch(file.path) for glob in naming.references)
        return OWN_SEGMENTATION if shared.is_own else None if is_named else UNNAMED_SEGMENTATION
    if shared.kind != "image":
        return shared.kind
    if not shared.is_wanted:
        return OTHER_MODALITY
    return UNNAMED if naming.series and not shared.channels else None


def _draft_unread(file: Surveyed, files: Mapping[str, FoundFile]) -> Draft:
    names, split = naming_parts(file.path.rpartition("/")[0])
    draft = Draft(file.path, (*names, file.path), [(file.path, files[file.path])], split=split, problem=file.problem)
    draft.reader, draft.layout = READER, LAYOUT
    return draft


def _join_channels(series: Iterable[Series]) -> list[_Channels]:
    """Series of one study, frame of reference and grid as one scan."""
    scans: list[_Channels] = []
    places: dict[tuple[str, str, str], list[_Channels]] = defaultdict(list)
    # What cannot be stacked has no grid: it comes last, to the one scan that it can be a channel of.
    for each in sorted(series, key=lambda each: each.header is None):
        shared = each.shared
        near = places[shared.patient, shared.study, shared.frame]
        meant = near if each.header is None else [scan for scan in near if _lies_on(each.header, scan)]
        if len(meant) != 1:
            meant = [{}]
            near += meant
            scans += meant
        for name in shared.channels:
            meant[0].setdefault(name, []).append(each)
    return scans


def _lies_on(header: Header, scan: _Channels) -> bool:
    """Whether a series has the grid of a scan's first one."""
    first = next(each.header for ones in scan.values() for each in ones)
    if first is None:
        return False
    grid = (header.slices, header.rows, header.columns)
    if grid != (first.slices, first.rows, first.columns) or (header.affine is None) != (first.affine is None):
        return False
    if header.affine is None or first.affine is None:
        return True
    tolerance_mm = max(SAME_PLACE_MM, SAME_PLACE_SHARE * min(spacing_of(first.affine)))
    with np.errstate(all="ignore"):
        return bool(corner_distance(header.affine, first.affine, grid) <= tolerance_mm)


def _name_all(scans: Sequence[_Channels], naming: Naming, pseudonyms: Pseudonyms) -> list[str]:
    """The scan_ids of all scans, each once."""
    all_series = [[each for ones in scan.values() for each in ones] for scan in scans]
    names = name_scans(all_series, pseudonyms) if naming.series else [series[0].name for series in all_series]
    taken: set[str] = set()
    for index, name in enumerate(names):
        while name in taken:
            name += "+"
        names[index] = name
        taken.add(name)
    return names


def _draft_scan(
    scan: _Channels,
    scan_id: str,
    names: tuple[str, ...],
    of_study: Mapping[str, Set[str]],
    files: Mapping[str, FoundFile],
) -> Draft:
    """The draft of a scan; one of channels has the files of the first, then those of the second."""
    all_series = [each for ones in scan.values() for each in ones]
    chosen, problems = _choose_channels(scan, names or ("",), of_study[all_series[0].shared.study])
    first = next(iter(chosen.values()), all_series[0])
    folders, split = naming_parts(scan_id.rpartition("/")[0])
    draft = Draft(scan_id, (*folders, scan_id.rpartition("/")[2]), split=split, is_series=True)
    draft.files = [(file.path, files[file.path]) for each in chosen.values() for file in each.files]
    draft.channel_names = names
    draft.missing = tuple(index for index, name in enumerate(names) if name not in chosen)
    draft.problem = f"{MissingChannelError.__name__}: {'; '.join(problems)}" if problems else None
    if not names:
        draft.problem = first.problem
    draft.note = "; ".join(each.note for each in chosen.values() if each.note) or None
    draft.patient = first.shared.patient
    days = [each.day for each in all_series if each.day is not None]
    draft.scan_date = date.fromordinal(min(days)) if days else None
    draft.reader, draft.layout, draft.header = READER, LAYOUT, first.header
    return draft


def _choose_channels(
    scan: _Channels, names: tuple[str, ...], of_study: Set[str]
) -> tuple[dict[str, Series], list[str]]:
    """The one series of each channel, in order, and why channels have none; its study may have more channels."""
    if names == ("",):
        return {"": scan[""][0]}, []
    owners = Counter(id(each) for ones in scan.values() for each in ones)
    chosen: dict[str, Series] = {}
    problems = []
    for name in names:
        found = scan.get(name, [])
        problem = _find_fault(name, found, next(iter(chosen.values()), None))
        if not found and name in of_study:
            problem = f"{problem} (one of its study lies on another grid or in another frame of reference)"
        if problem is None and owners[id(found[0])] > 1:
            fitting = " and ".join(show_name(other) for other, ones in scan.items() if found[0] in ones)
            problem = f"{show_name(found[0].name)} fits the channels {fitting}"
        if problem is None:
            chosen[name] = found[0]
        else:
            problems.append(problem)
    return chosen, problems


def _find_fault(name: str, found: Sequence[Series], first: Series | None) -> str | None:
    """Why series are not the one of a channel; None where there is one that is."""
    if not found:
        return f"there is no series for channel {show_name(name)}"
    if len(found) > 1:
        shown = " and ".join(show_name(each.name) for each in found[:2])
        return f"{len(found)} series fit channel {show_name(name)}, {shown}"
    if found[0].problem is not None:
        return f"the series of channel {show_name(name)} cannot be used ({found[0].problem.rstrip('.')})"
    if first is not None and len(found[0].files) != len(first.files):
        return (
            f"channel {show_name(name)} has {len(found[0].files)} files, another one {len(first.files)}; expected as "
            "many of each"
        )
    return None


def _give_segmentations(
    segmentations: Iterable[Surveyed],
    by_series: Mapping[str, list[Draft]],
    by_instance: Mapping[str, Draft],
    files: Mapping[str, FoundFile],
) -> int:
    """Give scans the segmentations that were drawn on them; returns how many have no scan."""
    num_lone = 0
    given: dict[int, tuple[Draft, list[LocatedFile]]] = {}
    for file in sorted(segmentations, key=lambda file: natural_key(file.path)):
        drafts = _find_drawn_on(shared_header(file), by_series, by_instance)
        num_lone += not drafts
        for draft in drafts:
            given.setdefault(id(draft), (draft, []))[1].append((file.path, files[file.path]))
    for draft, matches in given.values():
        add_reference(draft, matches)
    return num_lone


def _find_drawn_on(
    segmentation: SharedHeader, by_series: Mapping[str, list[Draft]], by_instance: Mapping[str, Draft]
) -> list[Draft]:
    """The scans whose series a segmentation names; those of single images by these."""
    series = [by_series[name] for name in segmentation.referenced if name in by_series]
    images = [by_instance[name] for name in segmentation.referenced_instances if name in by_instance]
    is_told = all(len(drafts) == 1 for drafts in series)
    drafts = [draft for drafts in series for draft in drafts] if series and is_told else images
    return list({id(draft): draft for draft in drafts}.values())
