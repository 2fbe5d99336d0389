"""How far an export has come: which files are finished, and of what, so that the same command goes on."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from raysegment.archive.own_folders import EXPORT_PROGRESS_FILE
from raysegment.runs.export_folder import ExportFolder
from raysegment.store.place import Place, report_full_disk

Finished = dict[str, tuple[str, int]]
"""Key and size in bytes of each finished file."""


class ExportProgress:
    """Finished files of an export, one line each in a file of the folder.

    Args:
        folder: The export.
        finished: Files that are there and whole.
        stream: Where more of them are noted.
    """

    def __init__(self, folder: ExportFolder, finished: Finished, stream: TextIO) -> None:
        self._folder = folder
        self._finished = finished
        self._stream = stream

    def is_done(self, name: str, key: str) -> bool:
        """Whether a file is there, whole, and made of the same."""
        return name in self._finished and self._finished[name][0] == key

    def note(self, name: str, key: str) -> None:
        """Note a file that was just written."""
        self._stream.write(_line(name, key, _size_of(self._folder.path(name)) or 0))
        self._stream.flush()


@contextmanager
def keep_progress(folder: ExportFolder) -> Iterator[ExportProgress]:
    """Read what earlier starts finished, without what has gone or changed its size since, and note what comes.

    Raises:
        DiskFullError: No space is left for a line.
    """
    path = folder.path(EXPORT_PROGRESS_FILE)
    finished = {name: each for name, each in _read(path).items() if _size_of(folder.path(name)) == each[1]}
    with report_full_disk(str(path)):
        lines = "".join(_line(name, *each) for name, each in finished.items())
        Place(folder.root).write_bytes(EXPORT_PROGRESS_FILE, lines.encode())
        with path.open("a", encoding="utf-8") as stream:
            yield ExportProgress(folder, finished, stream)


def _line(name: str, key: str, size: int) -> str:
    return json.dumps([name, key, size]) + "\n"


def _read(path: Path) -> Finished:
    """A line that is half, or of something else, counts for nothing."""
    finished: Finished = {}
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []
    for line in lines:
        try:
            name, key, size = json.loads(line)
        except (ValueError, TypeError, RecursionError):
            continue
        finished[str(name)] = str(key), size
    return finished


def _size_of(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except OSError:
        return None
