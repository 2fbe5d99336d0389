"""Which patient each scan is of.

A pattern names it, or the layout of a dataset does. Else it is the first folder, not counting those above all series,
split folders and `images`; else the common beginning of a series' names; else each file is its own patient, called as
the file's path. A volume that is its own patient is called as its name alone, without folders and extension, so that it
has one name in whatever layout; where folders hold volumes of one name these keep their folders. A scan that shares
slices with another one is of that one's patient.
"""

from __future__ import annotations

import re
from collections import Counter

from raysegment.archive.grouping.folders import VOLUME_EXTENSIONS, Draft, common_folders
from raysegment.archive.names import extension_of, show_name
from raysegment.errors import UsageError


def assign_patients(drafts: list[Draft], pattern: re.Pattern[str] | None = None) -> tuple[list[str], int]:
    """The patient of each scan, and how many scans count as their own patient because nothing names one.

    Args:
        drafts: All scans of a source.
        pattern: Names the patient by its first group, found in the scan_id; None where folders and names tell.

    Raises:
        UsageError: The pattern finds no patient in a scan_id.
    """
    positions = {id(draft): position for position, draft in enumerate(drafts)}
    owners = [positions.get(id(draft.shares_with), position) for position, draft in enumerate(drafts)]
    if pattern is not None:
        patients, num_own = match_patients([draft.scan_id for draft in drafts], pattern), 0
    else:
        patients, num_own = _read_places(drafts)
    return [patients[owner] for owner in owners], num_own


def match_patients(scan_ids: list[str], pattern: re.Pattern[str]) -> list[str]:
    """The patient that a pattern's first group finds in each scan_id.

    Raises:
        UsageError: It finds none.
    """
    patients = []
    for scan_id in scan_ids:
        match = pattern.search(scan_id)
        if match is None or not match[1]:
            raise UsageError(f"--patient-pattern {pattern.pattern!r} finds no patient in scan_id {show_name(scan_id)}.")
        patients.append(match[1])
    return patients


def _read_places(drafts: list[Draft]) -> tuple[list[str], int]:
    """The patients that folders and names tell, and how many scans are their own patient because nothing names one."""
    placed = [draft for draft in drafts if draft.patient is None]
    skip = common_folders([draft for draft in placed if draft.is_series and draft.files] or placed) if placed else 0
    patients: list[str] = []
    own = []
    for position, draft in enumerate(drafts):
        level = min(skip, len(draft.place) - 1)
        if draft.patient is None and not draft.is_series and level == len(draft.place) - 1:
            own.append(position)
        patients.append(draft.place[level] if draft.patient is None else draft.patient)
    own_positions = set(own)
    told = {name for position, name in enumerate(patients) if position not in own_positions}
    for position, name in zip(own, _name_own_patients([drafts[position] for position in own], told), strict=True):
        patients[position] = name
    return patients, len(own) + sum(draft.patient is not None and draft.is_own_patient for draft in drafts)


def _name_own_patients(drafts: list[Draft], told: set[str]) -> list[str]:
    """The scan_id of each scan that is its own patient; of volumes the last name in it if no other patient has it."""
    whole = [_drop_extension(draft.scan_id) if _is_volume(draft) else None for draft in drafts]
    count = Counter(name.rpartition("/")[2] for name in set(filter(None, whole)))
    names = []
    for draft, path in zip(drafts, whole, strict=True):
        name = (path or "").rpartition("/")[2]
        is_alone = count[name] == 1 and name not in told
        names.append(draft.scan_id if path is None else name if is_alone else path)
    return names


def _is_volume(draft: Draft) -> bool:
    return bool(draft.files) and draft.files[0][1].extension in VOLUME_EXTENSIONS


def _drop_extension(scan_id: str) -> str:
    """A volume's scan_id without its extension; a dot in the name of a case begins none."""
    extension = extension_of(scan_id)
    return scan_id[: len(scan_id) - len(extension)] if extension in VOLUME_EXTENSIONS else scan_id
