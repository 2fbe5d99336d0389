"""The DICOM series of an archive: which files may be DICOM, in zips too, what their headers say, and the scans."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from raysegment.archive.dicom.elements import is_dicom
from raysegment.archive.dicom.survey import CANDIDATES, SurveySettings, list_zips, survey_files
from raysegment.archive.filesystem import is_uri, open_file
from raysegment.archive.grouping.dicom_series import LAYOUT, READER, FoundSeries, find_series
from raysegment.archive.grouping.folders import Draft, naming_parts
from raysegment.archive.grouping.naming import PLACEHOLDER, Naming, example_glob
from raysegment.archive.names import show_name
from raysegment.archive.pseudonyms import Pseudonyms, load_pseudonyms
from raysegment.archive.walk import UNTOLD, Folder, FoundFile, LocatedFile
from raysegment.archive.zipped import EXTENSION as ZIP
from raysegment.errors import ScanError, UsageError

KINDS = CANDIDATES | {ZIP}
"""Of the names of files that are looked into for DICOM."""

ANOTHER_WAY = "file that is reached over another link too"
OTHER_ZIP = "zip of which some cannot be read, and nothing is or is called DICOM"
HEAD_BYTES = 132
CONCURRENT_PEEKS = 16
PEEKS_AT_ONCE = 64


@dataclass
class FoundDicom(FoundSeries):
    """The DICOM series of an archive.

    Attributes:
        pseudonyms: The key of its hashes; None where there is no DICOM.
        zips: Drafts of zips that cannot be read, or only in part.
    """

    pseudonyms: Pseudonyms | None = None
    zips: list[Draft] = field(default_factory=list)


def take_dicom(source: str, folders: Iterable[Folder], naming: Naming) -> tuple[list[Folder], FoundDicom]:
    """Part DICOM files from the others, and join them to scans.

    Args:
        source: Folder or bucket.
        folders: What lies below it, with files whose kinds are in `KINDS`.
        naming: What the user says of channels, modalities, references and identifiers.

    Returns:
        The folders without files of these kinds, and what was made of these.

    Raises:
        UsageError: A channel fits no series, or the key cannot be read.
    """
    others, candidates, zips = [], list[LocatedFile](), list[LocatedFile]()
    for folder in folders:
        if any(_is_candidate(file) for file in folder.files):
            located = folder.located
            candidates += [item for item in located if _is_candidate(item[1]) and _may_be_dicom(item[1])]
            zips += [item for item in located if item[1].kind == ZIP]
            folder.files = [file for file in folder.files if not _is_candidate(file)]
        if folder.files or folder.problem or folder.is_own:
            others.append(folder)
    members, broken, num_others = _look_into_zips(source, sorted(zips, key=lambda item: item[0]))
    found = FoundDicom()
    if members or _any_dicom(source, candidates):
        found = _find_series(source, candidates + members, naming)
    elif naming.series:
        raise _refuse_series(naming, "SOURCE holds no DICOM")
    found.zips = broken
    if num_others:
        found.left_alone[OTHER_ZIP] += num_others
    return others, found


def _find_series(source: str, located: list[LocatedFile], naming: Naming) -> FoundDicom:
    """The scans among files that may be DICOM."""
    pseudonyms = load_pseudonyms(naming.key_file)
    once, num_again = _leave_out_links(located)
    settings = SurveySettings(
        channels=naming.series,
        modalities=naming.modalities,
        keep_patient_ids=naming.keep_patient_ids,
        keep_dates=naming.keep_dates,
    )
    surveyed = survey_files(source, sorted(once), settings, pseudonyms)
    fitting = {name for file in surveyed if file.header is not None for name in file.header.channels}
    if strange := [name for name in naming.series if name not in fitting]:
        raise _refuse_series(naming, f"no series of SOURCE fits {show_name(strange[0])}")
    series = find_series(surveyed, once, naming, pseudonyms)
    if num_again:
        series.left_alone[ANOTHER_WAY] += num_again
    return FoundDicom(series.drafts, series.left_alone, series.lone_masks, pseudonyms)


def _is_candidate(file: FoundFile) -> bool:
    """Whether a file is looked into; links to nowhere whose names tell nothing are problems of their folder."""
    return file.kind in KINDS and not (file.kind == UNTOLD and file.problem)


def _may_be_dicom(file: FoundFile) -> bool:
    """Whether it claims to be DICOM, or is long enough for its mark."""
    return file.kind != ZIP and (file.kind != UNTOLD or file.size >= HEAD_BYTES)


def _any_dicom(source: str, located: Sequence[LocatedFile]) -> bool:
    """Whether a file claims to be DICOM, or begins so."""
    if any(file.kind != UNTOLD for _, file in located):
        return True
    paths = [path for path, _ in located]
    if not is_uri(source):
        return any(_begins_so(source, path) for path in paths)
    with ThreadPoolExecutor(CONCURRENT_PEEKS) as pool:
        batches = (paths[start : start + PEEKS_AT_ONCE] for start in range(0, len(paths), PEEKS_AT_ONCE))
        return any(any(pool.map(lambda path: _begins_so(source, path), batch)) for batch in batches)


def _begins_so(source: str, path: str) -> bool:
    try:
        with open_file(source, path, HEAD_BYTES) as stream:
            return is_dicom(stream.read(HEAD_BYTES))
    except (OSError, ScanError):
        return False


def _look_into_zips(source: str, zips: Sequence[LocatedFile]) -> tuple[list[LocatedFile], list[Draft], int]:
    """The files in zips that may be DICOM, and a draft of each zip of which something cannot be read.

    Where nothing in such a zip is DICOM or is called so, it is no scan that fails: these are counted.
    """
    members: list[LocatedFile] = []
    broken = []
    num_others = 0
    for (path, file), contents in zip(zips, list_zips(source, [path for path, _ in zips]), strict=True):
        for name, size in contents.members:
            member = FoundFile(name.rpartition("/")[2], size, file.changed_ns, zip_size=file.size)
            members.append((f"{path}/{name}", member))
        if contents.problem is not None and not contents.holds_dicom:
            num_others += 1
        elif contents.problem is not None:
            names, split = naming_parts(path.rpartition("/")[0])
            draft = Draft(path, (*names, path), [(path, file)], split=split, problem=contents.problem)
            draft.reader, draft.layout = READER, LAYOUT
            broken.append(draft)
    return members, broken, num_others


def _leave_out_links(located: Sequence[LocatedFile]) -> tuple[dict[str, FoundFile], int]:
    """Each file once, by the way with the fewest links, and how many ways are left out."""
    if not any(file.num_links or file.num_names > 1 for _, file in located):
        return dict(located), 0
    known: set[tuple[int, int, int]] = set()
    once = {}
    for path, file in sorted(located, key=lambda item: (item[1].num_links, item[0])):
        key = (file.identity, file.size, file.changed_ns)
        if not file.identity or key not in known:
            once[path] = file
        known.add(key)
    return once, len(located) - len(once)


def _refuse_series(naming: Naming, cause: str) -> UsageError:
    name, globs = next(iter(naming.series.items()))
    return UsageError(
        f"--channel {show_name(name)}={show_name(globs[0])} is a glob over descriptions of DICOM series, and {cause}; "
        f"globs of files have {PLACEHOLDER} in them, {example_glob('')}."
    )
