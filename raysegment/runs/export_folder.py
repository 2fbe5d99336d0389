"""The folder that `export` writes: where it may lie, which of its files are its own, and the list of them."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from raysegment.archive.filesystem import decode_name, is_uri, open_source
from raysegment.archive.names import show_name
from raysegment.archive.own_folders import EXPORT_FILE
from raysegment.errors import UsageError
from raysegment.store.place import Place

FORMAT = "raysegment-export"


class ExportFolder:
    """A local folder of exported files. It holds nothing but these, and a list of them.

    Args:
        out: The folder, as the user gave it.
        tables: What is exported there; one folder takes the files of one output folder.

    Raises:
        UsageError: It is no local folder.
    """

    def __init__(self, out: str, tables: Place) -> None:
        if is_uri(out):
            raise UsageError(f"--out {show_name(out)} is no local folder; files are exported to folders only.")
        self.root = os.path.abspath(out)
        self._place = Place(self.root)
        self._tables = tables

    def path(self, name: str) -> Path:
        """Where a file of that name, as in tables, goes."""
        return Path(self.root) / decode_name(name)

    def check_apart(self, sources: Iterable[str], *, allowed: str = "") -> None:
        """Refuse a folder from which scans, references or tables come, that lies in one, or that one lies in.

        What is exported must never stand among what is read; and `index` leaves out an export with all below it.

        Args:
            sources: Folders and URIs; manifests and empty names are left out.
            allowed: The one folder below a source that may be written, such as `derivatives/raysegment`; none if empty.

        Raises:
            UsageError: Names both folders.
        """
        here = Path(self.root).resolve()
        for source in dict.fromkeys(sources):
            there = _local_folder(source)
            if there is None:
                continue
            if _lies_in(here, there) and not (allowed and here == there / allowed):
                raise UsageError(
                    f"--out {self.root} lies in {show_name(source)}, where the scans of these tables come from. Choose "
                    f"a folder apart from it{f', or {show_name(source)}/{allowed}' if allowed else ''}."
                )
            if _lies_in(there, here):
                raise UsageError(
                    f"--out {self.root} holds {show_name(source)}, where the scans of these tables come from, and "
                    "`index` leaves out what lies in an export. Choose a folder apart from it."
                )
        tables = _local_folder(self._tables.location)
        if tables is not None and _lies_in(here, tables):
            raise UsageError(f"--out {self.root} lies in the tables' own folder; choose another one.")

    @contextmanager
    def writing(self, names: Collection[str]) -> Iterator[None]:
        """Claim the folder for some files; the list of them is there before the first, and true at the end.

        Raises:
            UsageError: Before anything is written: the folder holds what `export` did not write, or the export of
                other tables, or cannot be written.
        """
        before = self._read_files()
        self._check_targets(names, before)
        self._place.make_writable()
        listed = before | set(names)
        self._write_list(listed)
        try:
            yield
        finally:
            self._write_list({name for name in listed if os.path.lexists(self.path(name))})

    def _read_files(self) -> set[str]:
        """Files that earlier exports of the same tables wrote."""
        if not self._place.exists(EXPORT_FILE):
            foreign = [name for name in self._place.list_names() if not name.startswith(".")]
            if foreign:
                raise UsageError(
                    f"--out {self.root} is not empty and no export: it holds {show_name(foreign[0])!r}. Choose another "
                    "--out."
                )
            return set()
        listed = _parse_list(self._place.read_bytes(EXPORT_FILE))
        if listed is None:
            raise UsageError(f"{self.root}/{EXPORT_FILE} is damaged, so it does not tell whose files are there.")
        if listed["tables"] != self._tables.location:
            raise UsageError(f"--out {self.root} holds the export of {listed['tables']}. Choose another --out.")
        return set(listed["files"])

    def _check_targets(self, names: Collection[str], own: set[str]) -> None:
        for name in names:
            if name not in own and os.path.lexists(self.path(name)):
                raise UsageError(
                    f"{self.path(name)} is there, and `export` did not write it. Move it away, or choose another --out."
                )
        root = os.path.realpath(self.root)
        for folder in {self.path(name).parent for name in names}:
            real = os.path.realpath(folder)
            if os.path.commonpath((real, root)) != root:
                raise UsageError(f"{folder} is a link that leads out of --out {self.root}. Choose another --out.")
            if os.path.lexists(folder) and not os.path.isdir(folder):
                raise UsageError(f"{folder} cannot be a folder: a file is in its place. Choose another --out.")

    def _write_list(self, files: set[str]) -> None:
        content = {"format": FORMAT, "version": 1, "tables": self._tables.location, "files": sorted(files)}
        self._place.write_bytes(EXPORT_FILE, (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode())


def _parse_list(content: bytes) -> dict[str, Any] | None:
    try:
        listed = json.loads(content)
    except ValueError:
        return None
    if not isinstance(listed, dict) or listed.get("format") != FORMAT or not isinstance(listed.get("files"), list):
        return None
    return {"tables": listed.get("tables"), "files": [str(name) for name in listed["files"]]}


def _local_folder(source: str) -> Path | None:
    """A source as a folder of this machine; None for buckets and manifests."""
    if not source or (is_uri(source) and not source.startswith("file:")):
        return None
    folder = Path(open_source(source)[1]).resolve()
    return None if folder.is_file() else folder


def _lies_in(path: Path, folder: Path) -> bool:
    """Whether a path is a folder or below it, also where the same folder has two paths."""
    above = (path, *path.parents)
    return folder in above or _identity(folder) in {_identity(each) for each in above} - {None}


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino
