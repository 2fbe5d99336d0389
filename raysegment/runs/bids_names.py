"""What the files of a BIDS dataset of masks are called.

A scan of a BIDS dataset keeps the subject, session and entities of its own files. Any other has its patient_id as
subject, and its scan_id as session unless it is its patient's own one scan; both are brought to the letters and digits
that BIDS takes, with a hash where this loses something, so that a name depends on the scan alone and two never fall
together. After https://bids-specification.readthedocs.io, version 1.10.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from raysegment.archive.names import stem_of
from raysegment.archive.own_folders import OWN_DESCRIPTION

NIFTI = ".nii.gz"
LABEL_MAP, SINGLE_LABEL = "dseg", "mask"
MAX_LABEL_LETTERS = 40
MAX_PLAIN_LETTERS = 64
HASH_DIGITS = 8

BEFORE_SPACE = ("task", "acq", "ce", "rec", "run", "echo", "part")
AFTER_SPACE = ("chunk",)
"""Entities that a label map may have, in the order of the standard. Others of a source are told in `acq`."""

NOT_KEPT = ("ses", "desc", "label")
"""Entities of a source that are said otherwise."""

_LABEL = re.compile(r"[A-Za-z0-9]+")
_NOT_IN_LABELS = re.compile(r"[^A-Za-z0-9]+")
_HASHED = re.compile(r"[0-9a-f]{12}|[0-9a-f]{16}")
"""Of a series or a pseudonymised scan: no other scan has it."""
_IN_FOLDERS = re.compile(
    r"(?P<root>(?:[^/]+/)*?)sub-(?P<sub>[A-Za-z0-9]+)/(?:ses-(?P<ses>[A-Za-z0-9]+)/)?anat/"
    r"sub-(?P=sub)(?P<rest>(?:_[a-z]+-[A-Za-z0-9]+)*)_(?P<contrast>[A-Za-z0-9]+)\.nii(?:\.gz)?"
)


@dataclass(frozen=True, slots=True)
class BidsSource:
    """The files of a scan that lies in a BIDS dataset.

    Attributes:
        root: Path of the dataset below the source; empty or with a slash at its end.
        subject: Without `sub-`.
        session: Without `ses-`; empty where there is none.
        entities: Those that all files share, in the order of the names.
        contrast: End of the name where there is one file.
        files: Below the dataset.
    """

    root: str
    subject: str
    session: str
    entities: tuple[tuple[str, str], ...]
    contrast: str
    files: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class BidsName:
    """Where the masks of one scan go.

    Attributes:
        subject: Without `sub-`.
        session: Without `ses-`; empty where there is none.
        entities: Others of the source.
        contrast: Added to the description where a file of several contrasts is a scan of its own.
    """

    subject: str
    session: str = ""
    entities: tuple[tuple[str, str], ...] = ()
    contrast: str = ""

    def path(self, label: str = "") -> str:
        """Of the label map, or of the mask of one label, below the dataset; without extension."""
        given = dict(self.entities)
        others = [
            f"{name}{value}" for name, value in self.entities if name not in (*BEFORE_SPACE, *AFTER_SPACE, "space")
        ]
        if others:
            given["acq"] = "".join((given.get("acq", ""), *others))
        owner = f"sub-{self.subject}" + (f"_ses-{self.session}" if self.session else "")
        parts = [f"{name}-{given[name]}" for name in BEFORE_SPACE if name in given]
        parts.append(f"space-{given.get('space', 'orig')}")
        parts += [f"{name}-{given[name]}" for name in AFTER_SPACE if name in given]
        parts += [f"label-{label}"] if label else []
        parts += [f"desc-{OWN_DESCRIPTION}{self.contrast}", SINGLE_LABEL if label else LABEL_MAP]
        return "/".join((*owner.split("_"), "anat", "_".join((owner, *parts))))


def read_bids_source(files: Sequence[str]) -> BidsSource | None:
    """What the names of a scan's files say; None where they are no files of one session of a BIDS dataset.

    Args:
        files: Paths below the source; an empty one is a channel without a file.
    """
    matches = [_IN_FOLDERS.fullmatch(path) for path in files if path]
    if not matches or not all(matches):
        return None
    found = [match for match in matches if match is not None]
    entities = [[tuple(part.split("-", 1)) for part in match["rest"].split("_")[1:]] for match in found]
    sessions = {(match["ses"] or "", dict(each).get("ses", "")) for match, each in zip(found, entities, strict=True)}
    owners = {(match["root"], match["sub"]) for match in found}
    (root, subject), (in_folder, in_name) = min(owners), min(sessions)
    if len(owners) > 1 or len(sessions) > 1 or in_folder != in_name:
        return None
    shared = set.intersection(*map(set, entities))
    kept = tuple((name, value) for name, value in entities[0] if (name, value) in shared and name not in NOT_KEPT)
    contrast = found[0]["contrast"] if len(found) == 1 else ""
    return BidsSource(root, subject, in_folder, kept, contrast, tuple(match[0][len(root) :] for match in found))


def name_scans(patients: Mapping[str, str], sources: Mapping[str, BidsSource]) -> dict[str, BidsName]:
    """A name for each scan, all different, also where letters of both cases count as one.

    Args:
        patients: Patient_id by scan_id.
        sources: Of the scans that lie in a BIDS dataset. Where there are several datasets none counts.
    """
    if len({source.root for source in sources.values()}) > 1:
        sources = {}
    subjects = _name_subjects({patients[scan_id] for scan_id in patients if scan_id not in sources}, sources)
    names: dict[str, BidsName] = {}
    taken: set[str] = set()
    for scan_id in sorted(patients, key=lambda scan_id: (scan_id not in sources, scan_id)):
        patient = patients[scan_id]
        if scan_id in sources:
            name = _name_as_source(scan_id, sources[scan_id])
        else:
            name = BidsName(subjects[patient], _name_session(scan_id, patient))
        number = HASH_DIGITS
        while name.path().casefold() in taken:
            name, number = _tell_apart(name, scan_id, number), number + HASH_DIGITS
        taken.add(name.path().casefold())
        names[scan_id] = name
    return names


def safe_labels(texts: Iterable[str]) -> dict[str, str]:
    """Texts as BIDS takes them, all different, also where letters of both cases count as one."""
    return _choose(sorted(set(texts)), lambda text: text, set())


def _name_subjects(patients: set[str], sources: Mapping[str, BidsSource]) -> dict[str, str]:
    taken = {source.subject.casefold() for source in sources.values()}
    return _choose(sorted(patients), lambda patient: patient.removeprefix("sub-"), taken)


def _choose(texts: Sequence[str], plain: Callable[[str], str], taken: set[str]) -> dict[str, str]:
    chosen: dict[str, str] = {}
    for text in texts:
        label, digits = _make_safe(plain(text)), HASH_DIGITS
        while label.casefold() in taken:
            label, digits = _with_hash(plain(text), text, digits), digits + HASH_DIGITS
        taken.add(label.casefold())
        chosen[text] = label
    return chosen


def _name_as_source(scan_id: str, source: BidsSource) -> BidsName:
    is_file = scan_id == source.root + source.files[0]
    return BidsName(source.subject, source.session, source.entities, source.contrast if is_file else "")


def _name_session(scan_id: str, patient: str) -> str:
    """Empty for the one scan that gave its patient the name."""
    tail = stem_of(scan_id)
    if patient in (scan_id, tail):
        return ""
    return tail if _HASHED.fullmatch(tail) else _with_hash(tail, scan_id, HASH_DIGITS)


def _tell_apart(name: BidsName, scan_id: str, digits: int) -> BidsName:
    """Another name for a scan whose name is taken."""
    entities = dict(name.entities)
    entities["acq"] = entities.get("acq", "") + "x" + _hash(scan_id, digits)
    return replace(name, entities=tuple(entities.items()))


def _make_safe(text: str) -> str:
    if _LABEL.fullmatch(text) and len(text) <= MAX_PLAIN_LETTERS:
        return text
    return _with_hash(text, text, HASH_DIGITS)


def _with_hash(text: str, whole: str, digits: int) -> str:
    return f"{_NOT_IN_LABELS.sub('', text)[:MAX_LABEL_LETTERS]}x{_hash(whole, digits)}"


def _hash(text: str, digits: int) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:digits]
