"""What one look into each drafted scan tells: its reader, its header, and what looks wrong."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from raysegment.archive.filesystem import describe, is_uri, open_file
from raysegment.archive.formats import (
    HEAD_BYTES,
    Header,
    get_reader,
    is_turned,
    readers_by_extension,
    reads_series,
    reads_volumes,
    recognise,
)
from raysegment.archive.grouping.folders import Draft, single_drafts
from raysegment.archive.names import extension_of, show_name
from raysegment.archive.neighbours import describe_unknown
from raysegment.archive.read import MAX_SCAN_BYTES, describe_fourth_axis
from raysegment.archive.volumes import turn_header
from raysegment.errors import OversizedScanError, ScanError, UnknownFormatError

CONCURRENT_HEADERS = 16
BUFFER_BYTES = 16 * 1024
LARGEST_IN_COLUMN = 2**31 - 1
MAX_SPACINGS = 20


@dataclass(frozen=True, slots=True)
class Examined:
    """A scan of which one file was looked into.

    Attributes:
        draft: The scan.
        reader: What reads it.
        header: Of the file; None where it cannot be read, or cannot be believed.
        problem: What looks wrong.
    """

    draft: Draft
    reader: str
    header: Header | None
    problem: str | None

    @property
    def shape(self) -> tuple[int | None, int | None, int | None]:
        """Rows, columns and channels of the scan; None where no header tells."""
        if self.header is None:
            return None, None, None
        names = self.draft.channel_names
        has_file_each = len(self.draft.file_names) > 1 and bool(names)
        return self.header.rows, self.header.columns, len(names) if has_file_each else self.header.channels

    @property
    def row(self) -> dict[str, Any]:
        """The manifest's row, but for patient, source, fingerprint and date."""
        located = self.draft.located
        height, width, channels = self.shape
        return {
            "scan_id": self.draft.scan_id,
            "reader": self.reader,
            "files": self.draft.file_names,
            "reference_files": [reference[0] if reference else "" for reference in self.draft.references],
            "num_files": len(located),
            "bytes": sum(file.size for _, file in located),
            "height": height,
            "width": width,
            "channels": channels,
            "split": self.draft.split,
            "channel_names": self.draft.channel_names,
            "problem": self.problem,
        }


def examine_drafts(source: str, drafts: list[Draft]) -> list[Examined]:
    """Open one file of each scan; a bucket's answers are waited for side by side.

    Where files of one series turn out to be stacks, each is a scan of its own, so there may be more scans than drafts.
    """
    if not is_uri(source):
        groups = [_examine(source, draft) for draft in drafts]
    else:
        with ThreadPoolExecutor(CONCURRENT_HEADERS) as pool:
            groups = list(pool.map(lambda draft: _examine(source, draft), drafts))
    return [item for group in groups for item in group]


def count_spacings(examined: list[Examined]) -> dict[str, int]:
    """Scans by spacing in millimetres, the most frequent first; scans without one do not count."""
    spacings = (item.header.spacing_mm for item in examined if item.header is not None)
    shown = Counter(" x ".join(f"{size:.3g}" for size in spacing) for spacing in spacings if spacing is not None)
    return dict(shown.most_common(MAX_SPACINGS))


def _examine(source: str, draft: Draft) -> list[Examined]:
    if draft.reader:
        return [_examine_looked_into(draft, draft.header)]
    problem = draft.problem or _file_problem(draft)
    good = next((path for path, file in draft.files if file.size and not file.problem), None)
    if good is None:
        extension = extension_of(draft.files[0][0]) if draft.files else ".nii" if draft.channel_names else ""
        return [Examined(draft, readers_by_extension().get(extension, ""), None, problem)]
    reader, header, cause = _read_header(source, good)
    if (
        header is not None
        and header.slices > 1
        and len(draft.files) > 1
        and not (draft.is_named or draft.channel_names)
    ):
        return [item for single in single_drafts(draft) for item in _examine(source, single)]
    if header is not None and not _is_believable(header, len(draft.files)):
        size_mb = header.num_bytes * len(draft.files) / 2**20
        cause = f"{show_name(good)} declares a scan of {size_mb:.0f} MB"
        header = None
    if header is not None and header.slices > 1 and len(draft.files) > 1 and not draft.channel_names:
        cause = f"{show_name(good)} holds {header.slices} slices; a scan of several files has one in each"
    if header is not None:
        cause = cause or _header_problem(header, reader, draft, good)
    return [Examined(draft, reader, header, problem or cause or draft.note)]


def _examine_looked_into(draft: Draft, header: Header | None) -> Examined:
    """A scan of which all files have been looked into."""
    problem = draft.problem
    if header is not None and not _is_believable(header, max(1, len(draft.channel_names))):
        size_mb = header.num_bytes * max(1, len(draft.channel_names)) / 2**20
        header = None
        problem = problem or f"{OversizedScanError.__name__}: {show_name(draft.scan_id)} has {size_mb:.0f} MB"
    return Examined(draft, draft.reader, header, problem or draft.note)


def _header_problem(header: Header, reader: str, draft: Draft, path: str) -> str | None:
    """What a header that can be read says that is odd."""
    has_fourth_axis = reads_volumes(get_reader(reader)) and not reads_series(get_reader(reader))
    if has_fourth_axis and header.channels > 1 and len(draft.channel_names) < 2:
        return describe_fourth_axis(path, header.channels)
    return f"{show_name(path)}: {header.note}" if header.note else None


def _is_believable(header: Header, num_files: int) -> bool:
    largest = max(header.rows, header.columns, header.channels)
    return header.num_bytes * num_files <= MAX_SCAN_BYTES and largest <= LARGEST_IN_COLUMN


def _file_problem(draft: Draft) -> str | None:
    """What size and links tell of the files, references included."""
    for path, file in draft.located:
        if file.problem:
            return file.problem
        if not file.size:
            return f"{show_name(path)} has no bytes"
    return None


def _read_header(source: str, path: str) -> tuple[str, Header | None, str | None]:
    """Reader and header of a file, or what is wrong with it; first bytes count more than the extension."""
    reader = readers_by_extension().get(extension_of(path), "")
    try:
        with open_file(source, path, BUFFER_BYTES) as stream:
            head = stream.read(HEAD_BYTES)
            reader = recognise(head) or reader
            if not get_reader(reader).recognises(head):
                raise UnknownFormatError(describe_unknown(head, path))
            stream.seek(0)
            header = get_reader(reader).read_header(stream, path)
            return reader, turn_header(header, "auto") if is_turned(get_reader(reader), header) else header, None
    except ScanError as error:
        return reader, None, str(error).rstrip(".")
    except OSError as error:
        return reader, None, f"{show_name(path)} cannot be read: {describe(error)}"
    except Exception as error:
        return reader, None, f"{show_name(path)}: the {reader} reader fails on its header ({type(error).__name__})"
