"""What the user says of which files make a scan: patterns and globs, compiled."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from raysegment.archive.dates import compile_date_pattern
from raysegment.archive.names import show_name
from raysegment.errors import UsageError
from raysegment.options import Finding

PLACEHOLDER = "{scan}"

Globs = tuple[re.Pattern[str], ...]
"""Ways in which the files of one kind are called."""

Channels = Mapping[str, Globs]
"""Globs by the name of their channel, in order."""

_TOKEN = re.compile(r"\{scan\}|\*\*/|\*\*|\*|\?|\[!?\]?[^\]/]*\]|.", re.DOTALL)


@dataclass(frozen=True)
class Naming:
    """What the user says of which files make a scan.

    Attributes:
        scan_pattern: Names the scan of each image by its first group; layouts then tell nothing.
        channels: Globs of channels; layouts then tell nothing.
        series: Globs over descriptions of DICOM series by the name of their channel.
        modalities: Of DICOM series that are wanted, such as `MR`; empty for all.
        references: Globs of references; those of a layout then do not count.
        patients: Names the patient of each scan by its first group.
        dates: Names the day of each scan by its named groups.
        key_file: With the key of pseudonyms; None for the user's own.
        keep_patient_ids: Take patients as headers call them.
        keep_dates: Take the days that headers say; without it only what lies between them.

    Raises:
        UsageError: Both a pattern and globs say what a scan is, or globs of files and of series.
    """

    scan_pattern: re.Pattern[str] | None = None
    channels: Channels = field(default_factory=dict)
    series: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    modalities: tuple[str, ...] = ()
    references: Globs = ()
    patients: re.Pattern[str] | None = None
    dates: re.Pattern[str] | None = None
    key_file: str | None = None
    keep_patient_ids: bool = False
    keep_dates: bool = False

    def __post_init__(self) -> None:
        if self.scan_pattern is not None and self.channels:
            raise UsageError("--scan-pattern and --channel both say what a scan is; leave one of them out.")
        if self.channels and self.series:
            raise UsageError(
                f"--channel {show_name(next(iter(self.channels)))} is a glob of files, as it has {PLACEHOLDER} in it, "
                f"and {show_name(next(iter(self.series)))} one of descriptions of DICOM series; expected one kind."
            )


def parse_naming(how: Finding) -> Naming:
    """What `--scan-pattern`, `--channel`, `--reference`, `--patient-pattern` and their like say.

    Raises:
        UsageError: A pattern is no regular expression with the groups it needs, a glob has no `{scan}`, or both tell
            the scans.
    """
    series = [text for text in how.channel or () if "=" in text and PLACEHOLDER not in text]
    return Naming(
        _compile_pattern("--scan-pattern", how.scan_pattern, "scan"),
        parse_channels([text for text in how.channel or () if text not in series]),
        parse_series(series),
        tuple(modality.strip().upper() for modality in how.modality or ()),
        parse_references(how.reference),
        _compile_pattern("--patient-pattern", how.patient_pattern, "patient"),
        compile_date_pattern(how.date_pattern),
        key_file=how.key_file,
        keep_patient_ids=how.keep_patient_ids,
        keep_dates=how.keep_dates,
    )


def parse_channels(given: Sequence[str] | None) -> Channels:
    """Globs of channels as `--channel` says them.

    Raises:
        UsageError: Names the text that is no NAME=GLOB with `{scan}` in it.
    """
    found: dict[str, Globs] = {}
    for text in given or ():
        name, equals, glob = text.partition("=")
        if not equals or not name.strip():
            raise UsageError(
                f"--channel {show_name(text)!r} is no channel; expected NAME=GLOB, {example_glob('flair=')}."
            )
        found[name.strip()] = (*found.get(name.strip(), ()), _compile_glob("--channel", glob))
    return found


def parse_series(given: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Globs over descriptions of DICOM series, as `--channel` says them without `{scan}`.

    Raises:
        UsageError: A name or a glob is missing.
    """
    found: dict[str, tuple[str, ...]] = {}
    for text in given:
        name, _, glob = text.partition("=")
        if not name.strip() or not glob.strip():
            raise UsageError(
                f"--channel {show_name(text)!r} is no channel; expected NAME=GLOB, {example_glob('flair=')}, or of "
                "DICOM the description of a series, such as flair='*FLAIR*'."
            )
        found[name.strip()] = (*found.get(name.strip(), ()), glob.strip())
    return found


def parse_references(given: Sequence[str] | None) -> Globs:
    """Globs of references as `--reference` says them.

    Raises:
        UsageError: Names the glob without `{scan}`.
    """
    return tuple(_compile_glob("--reference", glob) for glob in given or ())


def _compile_pattern(option: str, pattern: str | None, what: str) -> re.Pattern[str] | None:
    if pattern is None:
        return None
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise UsageError(f"{option} {pattern!r} is no regular expression: {error}.") from error
    if not compiled.groups:
        raise UsageError(f"{option} {pattern!r} has no group; put brackets around the {what}'s part.")
    return compiled


def _compile_glob(option: str, glob: str) -> re.Pattern[str]:
    """A glob as a regular expression with the group `scan`."""
    text = glob.strip().removeprefix("./")
    if PLACEHOLDER not in text or text.startswith("/") or ".." in text.split("/"):
        example = example_glob("", "seg") if option == "--reference" else example_glob("")
        raise UsageError(
            f"{option} {show_name(glob)!r} must be a glob below SOURCE with {PLACEHOLDER} in it, {example}."
        )
    pieces: list[str] = []
    for token in _TOKEN.findall(text):
        pieces.append(_translate(token, is_first=not any("(?P<scan>" in piece for piece in pieces)))
    try:
        return re.compile("".join(pieces), re.IGNORECASE | re.DOTALL)
    except re.error as error:
        raise UsageError(f"{option} {show_name(glob)!r} is no glob: {error.msg}.") from None


def _translate(token: str, is_first: bool) -> str:
    simple = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    if token == PLACEHOLDER:
        return "(?P<scan>.+)" if is_first else "(?P=scan)"
    if len(token) > 2 and token.startswith("["):
        # Python may one day read doubled signs as operations on sets, and warns of them.
        inside = re.sub(r"[\\\[&~|]|-(?=-)", r"\\\g<0>", token[1:-1])
        return f"(?!/)[{'^' + inside[1:] if inside.startswith('!') else inside}]"
    return simple.get(token) or re.escape(token)


def example_glob(name: str, ending: str = "flair") -> str:
    """A glob for messages.

    Args:
        name: What stands before it.
        ending: What the names of its files end in.
    """
    return f"such as {name}'{PLACEHOLDER}/*_{ending}.nii.gz'"
