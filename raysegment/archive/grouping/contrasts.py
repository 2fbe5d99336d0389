"""Volumes whose names tell their contrast: BraTS and BIDS.

BraTS, `X_flair X_t1 X_t1ce X_t2 X_seg` or `X-t2f X-t1n X-t1c X-t2w X-seg`, in any folders:

- It is recognised where some X has all four contrasts in one style; every X of that style is then a scan with the path
  of X as its scan_id and the channels flair, t1, t1ce, t2, whichever style names them.
- X is the patient, in the second style without the number of the visit at its end (`-000`).

BIDS, `sub-01/[ses-1/]anat/sub-01[_ses-1]_…_T1w.nii.gz`:

- A scan is a session. Its channels are the contrasts that every session has, called as the names are without sub and
  ses: `T1w`, `ce-gad_T1w`, `run-1_T1w`. Files of other contrasts are left alone. Where no contrast is everywhere, each
  file is a scan of its own; `--channel` names others.
- The reference is the one mask of the same sub and ses: a name that ends in mask, msk, dseg, seg or roi or has a
  `label-`, in the same folder or in `derivatives`; where files are scans, the one that begins as theirs. Masks of the
  brain (`desc-brain`), probabilities and what raysegment exported (`desc-raysegment`) are none, other derivatives are
  left alone.
- The patient is sub.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

from raysegment.archive.grouping.folders import Draft
from raysegment.archive.grouping.volumes import Taken, add_reference, draft_channels, place_of
from raysegment.archive.names import stem_of
from raysegment.archive.own_folders import OWN_DESCRIPTION
from raysegment.archive.walk import LocatedFile

BRATS = "BraTS"
BIDS = "BIDS"
CHANNELS = ("flair", "t1", "t1ce", "t2")
STYLES = {"_": (*CHANNELS, "seg"), "-": ("t2f", "t1n", "t1c", "t2w", "seg")}
DERIVATIVES = "derivatives"
MASK_ENDS = ("mask", "msk", "dseg", "seg", "roi")
NO_IMAGE_ENDS = ("mask", "msk", "seg", "roi")

_VISIT = re.compile(r"(.+)-\d{3}")

Case = dict[str, list[LocatedFile]]
"""Files of one scan by the end of their names."""


def take_brats(volumes: Sequence[LocatedFile]) -> Taken:
    """Find the cases of BraTS among all volumes of an archive."""
    drafts: list[Draft] = []
    paths: set[str] = set()
    for separator, words in STYLES.items():
        cases = _find_cases(volumes, separator, words)
        if not any(all(word in case for word in words[:-1]) for case in cases.values()):
            continue
        for scan_id, case in cases.items():
            if set(case) == {words[-1]}:
                continue
            paths |= {path for items in case.values() for path, _ in items}
            found = {name: case[word] for name, word in zip(CHANNELS, words, strict=False) if word in case}
            draft = draft_channels(scan_id, CHANNELS, found)
            add_reference(draft, case.get(words[-1], ()))
            name = scan_id.rpartition("/")[2]
            visit = _VISIT.fullmatch(name) if separator == "-" else None
            draft.patient, draft.is_own_patient, draft.layout = visit[1] if visit else name, visit is None, BRATS
            drafts.append(draft)
    return Taken(drafts, paths)


def take_bids(volumes: Sequence[LocatedFile]) -> Taken:
    """Find the sessions of BIDS among all volumes of an archive."""
    archives: dict[str, _Bids] = defaultdict(_Bids)
    paths: set[str] = set()
    for item in volumes:
        folders = item[0].split("/")[:-1]
        parts = item[1].stem.split("_")
        is_derived = DERIVATIVES in folders
        if not parts[0].startswith("sub-") or not (is_derived or "anat" in folders[-1:]):
            continue
        paths.add(item[0])
        num_owner = 2 if len(parts) > 1 and parts[1].startswith("ses-") else 1
        owner, contrast = "_".join(parts[:num_owner]), parts[num_owner:]
        start = next((i for i, part in enumerate(folders) if part == DERIVATIVES or part.startswith("sub-")), 0)
        archive = archives["/".join(folders[:start])]
        if any(part.startswith(f"desc-{OWN_DESCRIPTION}") for part in contrast):
            continue
        if _is_mask(contrast):
            archive.masks[owner].append(item)
        elif not is_derived and contrast and not contrast[-1].endswith(NO_IMAGE_ENDS):
            archive.sessions["/".join([*folders, owner])]["_".join(contrast)].append(item)
    if not any(archive.sessions for archive in archives.values()):
        return Taken()
    drafts, num_lone = [], 0
    for archive in archives.values():
        found = _draft_sessions(archive.sessions)
        used = {path for draft in found for path in _add_mask(draft, archive)}
        drafts += found
        num_lone += sum(path not in used for items in archive.masks.values() for path, _ in items)
    return Taken(drafts, paths, num_lone)


@dataclass
class _Bids:
    """Sessions by scan_id, their files by contrast, and masks by sub and ses."""

    sessions: dict[str, Case] = field(default_factory=lambda: defaultdict(lambda: defaultdict(list)))
    masks: Case = field(default_factory=lambda: defaultdict(list))


def _draft_sessions(sessions: dict[str, Case]) -> list[Draft]:
    """A scan for each session, or for each file where the sessions have no contrast in common."""
    common = set.intersection(*(set(case) for case in sessions.values())) if sessions else set()
    drafts = []
    for scan_id, case in sessions.items():
        found = [draft_channels(scan_id, sorted(common), case)] if common else _draft_files(case)
        for draft in found:
            draft.patient, draft.layout = stem_of(scan_id).split("_")[0], BIDS
        drafts += found
    return drafts


def _draft_files(case: Case) -> list[Draft]:
    return [
        Draft(path, place_of(path), [(path, file)], channel_names=(contrast,))
        for contrast, items in case.items()
        for path, file in items
    ]


def _add_mask(draft: Draft, archive: _Bids) -> list[str]:
    """Give a session its mask, and tell which masks are about it; of several those that begin as the scan's name."""
    folder_and_name = draft.scan_id if draft.scan_id in archive.sessions else ""
    stem = stem_of(draft.scan_id)
    owner = stem if folder_and_name else "_".join(part for part in stem.split("_")[:2] if part[:4] in ("sub-", "ses-"))
    masks = archive.masks.get(owner, [])
    begin = [item for item in masks if item[1].stem.startswith(f"{stem}_")]
    add_reference(draft, begin if not folder_and_name else masks)
    return [path for path, _ in masks]


def _is_mask(contrast: list[str]) -> bool:
    """Whether the parts of a name behind sub and ses say that it is a mask of something else than the brain."""
    if not contrast or any(part.startswith("desc-brain") for part in contrast) or contrast[-1] == "probseg":
        return False
    return contrast[-1] in MASK_ENDS or any(part.startswith("label-") for part in contrast)


def _find_cases(volumes: Sequence[LocatedFile], separator: str, words: tuple[str, ...]) -> dict[str, Case]:
    """Files by what comes before the contrast in their paths, then by the contrast."""
    cases: dict[str, Case] = defaultdict(lambda: defaultdict(list))
    for item in volumes:
        folder = item[0].rpartition("/")[0]
        case, _, word = item[1].stem.rpartition(separator)
        if case and word.lower() in words:
            cases[f"{folder}/{case}" if folder else case][word.lower()].append(item)
    return cases
