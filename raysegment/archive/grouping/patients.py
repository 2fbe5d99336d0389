"""Which patient each scan is of.

A pattern names it, or the layout of a dataset does. Else it is the first folder, not counting those above all series,
split folders and `images`; else the common beginning of a series' names; else each file is its own patient. A scan that
shares slices with another one is of that one's patient.
"""

from __future__ import annotations

import re

from raysegment.archive.grouping.folders import Draft, common_folders
from raysegment.archive.names import show_name
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
    patients = []
    num_own = 0
    for draft in drafts:
        if draft.patient is not None:
            patients.append(draft.patient)
            num_own += draft.is_own_patient
            continue
        level = min(skip, len(draft.place) - 1)
        is_own = not draft.is_series and level == len(draft.place) - 1
        num_own += is_own
        patients.append(draft.scan_id if is_own else draft.place[level])
    return patients, num_own
