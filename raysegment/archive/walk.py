"""The files below a source, folder by folder, with size and time: local trees and buckets alike."""

from __future__ import annotations

import os
import stat
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.fs as pafs

from raysegment.archive.filesystem import describe, encode_name, is_uri
from raysegment.archive.names import extension_of, show_name
from raysegment.archive.own_folders import EXPORT_FILE, RECORD_FILE, RECORD_HEAD_BYTES, is_own_record
from raysegment.errors import UsageError

MAX_LINKS_DEEP = 4
"""Links to folders that may lie in one path; more are a knot, not an archive."""

MAX_WAYS = 64
"""Ways to one folder that are followed, so that links among folders cannot multiply an archive without end."""

Extensions = frozenset[str]

UNTOLD = ""
"""Among extensions: names that tell no format, because they have none or only digits behind their last dot, as
`IM000012` and `1.2.840.113619.2.55`, or one of these. DICOM is often called so."""

HABITS = frozenset({".acr", ".ct", ".dc3", ".dic", ".dicm", ".mr", ".pet", ".pt"})
"""Extensions that some scanners and programs give to DICOM files, and others to files of their own."""


@dataclass(slots=True)
class FoundFile:
    """One file.

    Attributes:
        name: In its folder.
        size: In bytes.
        changed_ns: Time of change in nanoseconds.
        problem: Why it cannot be opened.
        identity: The same for all ways to the file; 0 where the storage has no links.
        num_links: Symbolic links on the way to it.
        num_names: Hard links to it.
        zip_size: In bytes, of the zip that it lies in, of which `changed_ns` then is too; 0 where it lies in none.
    """

    name: str
    size: int
    changed_ns: int
    problem: str | None = None
    identity: int = 0
    num_links: int = 0
    num_names: int = 1
    zip_size: int = 0

    @property
    def extension(self) -> str:
        """In lower case with its dot, empty where there is none."""
        return extension_of(self.name)

    @property
    def stem(self) -> str:
        """The name without its extension."""
        return self.name[: len(self.name) - len(self.extension)]

    @property
    def kind(self) -> str:
        """The extension, `UNTOLD` where it tells no format."""
        return kind_of(self.name)


def kind_of(name: str) -> str:
    """The extension of a name, `UNTOLD` where it tells no format."""
    extension = extension_of(name)
    return UNTOLD if extension[1:].isdigit() or extension in HABITS else extension


LocatedFile = tuple[str, FoundFile]
"""A file and its path below the source."""


@dataclass(slots=True)
class Folder:
    """One folder with the files that may belong to scans.

    Attributes:
        path: Below the source, with forward slashes; empty for the source itself.
        files: In no order.
        problem: Why the folder cannot be listed, or is a link to nowhere.
        is_own: raysegment wrote it: nothing in it is told.
    """

    path: str
    files: list[FoundFile] = field(default_factory=list)
    problem: str | None = None
    is_own: bool = False

    @property
    def located(self) -> list[LocatedFile]:
        """The files with their paths below the source."""
        return [(_join(self.path, file.name), file) for file in self.files]


def walk_source(source: str, opened: tuple[pafs.FileSystem, str], extensions: Extensions) -> Iterator[Folder]:
    """Every folder below a source that holds files with one of the extensions, or that cannot be listed.

    Hidden files and folders (a leading dot) are left out, and so is what lies in folders that raysegment wrote; these
    come alone. Links are followed, unless they lead back to a folder that they lie in.

    Args:
        source: Folder or bucket.
        opened: From `open_source`.
        extensions: In lower case, with their dots; `UNTOLD` among them stands for names that tell no format.

    Raises:
        UsageError: The source does not exist, or raysegment wrote it.
    """
    filesystem, root = opened
    if is_uri(source):
        yield from _walk_bucket(source, filesystem, root, extensions)
        return
    try:
        status = os.stat(root)
    except (OSError, ValueError) as error:
        raise UsageError(f"SOURCE {show_name(source)} cannot be opened: {describe(error)}.") from error
    if not os.path.isdir(root):
        raise UsageError(f"SOURCE {show_name(source)} is a file; expected a folder, a manifest or a bucket.")
    yield from _walk_tree(_Way(root, "", _identity(status)), extensions)


@dataclass(frozen=True, slots=True)
class _Way:
    """A folder as it was reached: where it is, below the source, its identity, links on the way, folder above."""

    path: str
    relative: str
    identity: int
    num_links: int = 0
    above: _Way | None = None

    def leads_through(self, identity: int) -> bool:
        way: _Way | None = self
        while way is not None:
            if way.identity == identity:
                return True
            way = way.above
        return False


def _walk_tree(root: _Way, extensions: Extensions) -> Iterator[Folder]:
    """Folder by folder, without recursion, however deep it is; what lies behind links comes last."""
    waiting, linked = [root], deque[_Way]()
    num_ways: Counter[int] = Counter()
    while waiting or linked:
        way = waiting.pop() if waiting else linked.popleft()
        num_ways[way.identity] += 1
        if num_ways[way.identity] > MAX_WAYS:
            if num_ways[way.identity] == MAX_WAYS + 1:
                problem = f"more than {MAX_WAYS} ways lead to this folder; this one and others are left out"
                yield Folder(way.relative, problem=problem)
            continue
        folder, below, unopened = _list_folder(way, extensions)
        if folder.files or folder.problem or folder.is_own:
            yield folder
        yield from unopened
        below.sort(key=lambda found: found.path)
        waiting += [found for found in reversed(below) if not found.num_links]
        linked += [found for found in below if found.num_links]


def _list_folder(way: _Way, extensions: Extensions) -> tuple[Folder, list[_Way], list[Folder]]:
    """A folder's files, the ways on, and the folders below it that cannot be opened."""
    folder = Folder(way.relative)
    try:
        with os.scandir(way.path) as listing:
            items = list(listing)
    except OSError as error:
        folder.problem = f"the folder cannot be listed: {describe(error)}"
        items = []
    if any(_marks_own_folder(item) for item in items):
        if not way.relative:
            raise _refuse_own_folder(way.path)
        return Folder(way.relative, is_own=True), [], []
    below: list[_Way] = []
    unopened: list[Folder] = []
    for item in items:
        name = encode_name(item.name)
        if name.startswith("."):
            continue
        try:
            if not item.is_dir():
                if kind_of(name) in extensions or (item.is_symlink() and "." not in name):
                    _add_file(folder, item, name, extensions, way.num_links)
                continue
            links = way.num_links + item.is_symlink()
            identity = _identity(item.stat())
        except OSError as error:
            unopened.append(Folder(_join(way.relative, name), problem=f"cannot be opened: {describe(error)}"))
            continue
        if links <= MAX_LINKS_DEEP and not way.leads_through(identity):
            below.append(_Way(os.path.join(way.path, item.name), _join(way.relative, name), identity, links, way))
    return folder, below, unopened


def _identity(status: os.stat_result) -> int:
    """One number for device and inode."""
    return (status.st_dev << 64) | status.st_ino


def _marks_own_folder(item: os.DirEntry[str]) -> bool:
    if item.name not in (EXPORT_FILE, RECORD_FILE):
        return False
    try:
        if not item.is_file():
            return False
        if item.name == EXPORT_FILE:
            return True
        with open(item.path, "rb") as stream:
            return is_own_record(stream.read(RECORD_HEAD_BYTES))
    except OSError:
        return False


def _refuse_own_folder(source: str) -> UsageError:
    return UsageError(
        f"SOURCE {show_name(source)} is a folder that raysegment wrote: nothing in it is a scan. Give the folder of "
        "the scans themselves."
    )


def _add_file(folder: Folder, item: os.DirEntry[str], name: str, extensions: Extensions, num_links: int) -> None:
    shown = show_name(_join(folder.path, name))
    try:
        status = item.stat()
    except OSError as error:
        cause = "is a link to nowhere" if item.is_symlink() else f"cannot be opened: {describe(error)}"
        folder.files.append(FoundFile(name, 0, 0, f"{shown} {cause}"))
        return
    kind = kind_of(name)
    if kind not in extensions or (kind == UNTOLD and not stat.S_ISREG(status.st_mode)):
        return
    problem = None if stat.S_ISREG(status.st_mode) else f"{shown} is no regular file"
    found = FoundFile(name, status.st_size, status.st_mtime_ns, problem, _identity(status))
    found.num_links, found.num_names = num_links + item.is_symlink(), status.st_nlink
    folder.files.append(found)


def _walk_bucket(source: str, filesystem: pafs.FileSystem, root: str, extensions: Extensions) -> Iterator[Folder]:
    try:
        listed = filesystem.get_file_info(pafs.FileSelector(root, recursive=True))
    except (pa.ArrowException, OSError) as error:
        raise UsageError(f"SOURCE {show_name(source)} cannot be listed: {describe(error)}") from error
    folders: dict[str, Folder] = {}
    own = _find_own_folders(filesystem, root, listed)
    if "" in own:
        raise _refuse_own_folder(source)
    for item in listed:
        relative = item.path[len(root) :].lstrip("/")
        parent, _, name = relative.rpartition("/")
        if item.type != pafs.FileType.File or kind_of(name) not in extensions:
            continue
        if any(part.startswith(".") for part in relative.split("/")):
            continue
        folder = folders.setdefault(parent, Folder(parent))
        folder.files.append(FoundFile(name, item.size, item.mtime_ns or 0))
    yield from (Folder(path, is_own=True) for path in sorted(own))
    yield from (folders[path] for path in sorted(folders) if own.isdisjoint(_with_parents(path)))


def _find_own_folders(filesystem: pafs.FileSystem, root: str, listed: list[pafs.FileInfo]) -> set[str]:
    """Paths below the source of the folders that raysegment wrote."""
    own = set()
    for item in listed:
        if item.type != pafs.FileType.File or item.base_name not in (EXPORT_FILE, RECORD_FILE):
            continue
        if item.base_name == EXPORT_FILE or is_own_record(_read_head(filesystem, item.path)):
            own.add(item.path[len(root) :].lstrip("/").rpartition("/")[0])
    return own


def _read_head(filesystem: pafs.FileSystem, path: str) -> bytes:
    try:
        with filesystem.open_input_file(path) as stream:
            return bytes(stream.read(RECORD_HEAD_BYTES))
    except (pa.ArrowException, OSError):
        return b""


def _with_parents(path: str) -> Iterator[str]:
    """A folder's path and those of all folders above it, up to the source."""
    yield path
    while "/" in path:
        path = path.rpartition("/")[0]
        yield path


def _join(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder else name
