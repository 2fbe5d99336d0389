"""Files within a zip, read in memory within limits: a zip is never unpacked, and its names lead nowhere outside of it.

Members are stored or deflated, not encrypted, and no zip themselves; what else lies in a zip is told as its problem. A
member that declares more than `MAX_MEMBER_BYTES`, or far more than its compressed bytes can hold of a scan, is a bomb.
"""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import IO, Any, BinaryIO, cast

from raysegment.archive.names import extension_of, show_name
from raysegment.errors import OversizedScanError, ScanError, UnreadableFileError

EXTENSION = ".zip"
MARK = f"{EXTENSION}/"
"""In a path: what stands before it is a zip, unless it is a folder, and what stands behind it lies in it."""

MAX_DIRECTORY_BYTES = 32 * 2**20
"""A zip's list of its files; this much are some 300,000 names."""

MAX_MEMBER_BYTES = 2 * 2**30
BOMB_BYTES, BOMB_RATIO = 64 * 2**20, 200
"""Pixels of scans are packed to a third of their size, empty ones to a thousandth."""

ENCRYPTED_FLAG = 1
METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
PIECE_BYTES = 2**20

BOMB = f"unpacks to more than {MAX_MEMBER_BYTES // 2**20} MB, or {BOMB_RATIO} times its size"
DAMAGES = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    EOFError,
    NotImplementedError,
    RuntimeError,
    ValueError,
    OverflowError,
)
"""What `zipfile` raises on files that are none, or are damaged."""


@dataclass(frozen=True, slots=True)
class Member:
    """One file of a zip.

    Attributes:
        name: Its path in the zip.
        size: Unpacked, as the zip declares it.
    """

    name: str
    size: int


class OpenZip:
    """A zip and its list of files.

    Args:
        stream: Seekable; stays open as long as the zip is used.
        name: For messages.

    Raises:
        UnreadableFileError: No zip, or a damaged one.
        OversizedScanError: It lists more files than an archive of scans has in one zip.
    """

    def __init__(self, stream: BinaryIO, name: str) -> None:
        self._name = name
        try:
            self._archive = zipfile.ZipFile(cast(IO[bytes], _Bounded(stream, name)))
        except DAMAGES as error:
            raise UnreadableFileError(
                f"{show_name(name)} is no zip that can be read ({type(error).__name__})."
            ) from None
        self._infos: dict[str, zipfile.ZipInfo] = {}
        self._twice: set[str] = set()
        for info in self._archive.infolist():
            if info.filename in self._infos:
                self._twice.add(info.filename)
            self._infos[info.filename] = info

    def list_members(self, is_wanted: Callable[[str], bool]) -> list[Member]:
        """The files that can be read, in order of their names; hidden ones are left out.

        Args:
            is_wanted: Whether a file may be of use, by its path in the zip.
        """
        good = [info for info in self._find_candidates(is_wanted) if self._find_fault(info) is None]
        return sorted((Member(info.filename, info.file_size) for info in good), key=lambda member: member.name)

    def names_any(self, is_wanted: Callable[[str], bool]) -> bool:
        """Whether a file, be it one that can be read or not, may be of use; hidden ones are left out.

        Args:
            is_wanted: As in `list_members`.
        """
        return bool(self._find_candidates(is_wanted))

    def describe_faults(self, is_wanted: Callable[[str], bool]) -> ScanError | None:
        """What is wrong with files that may be of use; None where all can be read.

        Args:
            is_wanted: As in `list_members`.
        """
        candidates = self._find_candidates(lambda name: is_wanted(name) or _is_zip(name))
        faults = Counter(filter(None, map(self._find_fault, candidates)))
        if not faults:
            return None
        texts = "; ".join(f"{words} ({count})" for words, count in faults.most_common())
        kind = OversizedScanError if BOMB in faults else UnreadableFileError
        return kind(f"{show_name(self._name)} holds files that are left alone: {texts}.")

    def open(self, member: str, name: str, buffer_bytes: int) -> BinaryIO:
        """Open one file for reading; what was read is all that is held of it.

        Args:
            member: Its path in the zip.
            name: Path below the source, through the zip, for messages.
            buffer_bytes: Read at once.

        Raises:
            UnreadableFileError: It is not there or cannot be read.
            OversizedScanError: It declares more than is read.
        """
        info = self._infos.get(member)
        fault = "the zip holds no such file" if info is None else self._find_fault(info)
        if info is None or fault is not None:
            kind = OversizedScanError if fault == BOMB else UnreadableFileError
            raise kind(f"{show_name(name)}: {fault}.")
        return cast(BinaryIO, io.BufferedReader(_MemberStream(self._archive, info, name), buffer_bytes))

    def _find_candidates(self, is_wanted: Callable[[str], bool]) -> list[zipfile.ZipInfo]:
        return [info for name, info in self._infos.items() if _is_shown(name) and is_wanted(name)]

    def _find_fault(self, info: zipfile.ZipInfo) -> str | None:
        """Why a file is not read; None where it can be."""
        parts = info.filename.split("/")
        if any(part in ("", ".", "..") for part in parts) or "\\" in info.filename or ":" in parts[0]:
            return "a name that leads out of the zip"
        if info.filename in self._twice:
            return "a name that stands there more than once"
        if _is_zip(info.filename):
            return "a zip within a zip, which is not opened"
        if info.flag_bits & ENCRYPTED_FLAG:
            return "encrypted"
        if info.compress_type not in METHODS:
            return "packed in a way that is not read (neither stored nor deflated)"
        is_dense = info.file_size > BOMB_BYTES and info.file_size > BOMB_RATIO * max(1, info.compress_size)
        return BOMB if is_dense or info.file_size > MAX_MEMBER_BYTES else None


def _is_shown(name: str) -> bool:
    """Whether it is a file and no folder, and neither it nor a folder of it is hidden."""
    parts = name.split("/")
    return bool(parts[-1]) and not any(part.startswith(".") and not part.startswith("..") for part in parts)


def _is_zip(name: str) -> bool:
    return extension_of(name) == EXTENSION


class _Bounded(io.BufferedIOBase):
    """A file that gives no more at once than the list of a zip's files may take."""

    def __init__(self, stream: BinaryIO, name: str) -> None:
        self._stream = stream
        self._name = name

    def read(self, size: int | None = -1) -> bytes:
        wanted = -1 if size is None else size
        if wanted > MAX_DIRECTORY_BYTES:
            raise OversizedScanError(
                f"{show_name(self._name)} is a zip whose list of files takes {wanted / 2**20:.0f} MB; at most "
                f"{MAX_DIRECTORY_BYTES // 2**20} MB are read."
            )
        return bytes(self._stream.read(wanted))

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._stream.seek(offset, whence)

    def tell(self) -> int:
        return self._stream.tell()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def close(self) -> None:
        self._stream.close()
        super().close()


class _MemberStream(io.RawIOBase):
    """A file of a zip whose seeks cost nothing until something is read."""

    def __init__(self, archive: zipfile.ZipFile, info: zipfile.ZipInfo, name: str) -> None:
        self._name = name
        self._size = info.file_size
        self._position = 0
        self._stream: Any = self._guard(archive.open, info)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = 0) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        self._position = max(0, start + offset)
        return self._position

    def readinto(self, target: Any) -> int:
        if self._position >= self._size:
            return 0
        data = self._guard(self._read, min(len(target), PIECE_BYTES))
        target[: len(data)] = data
        self._position += len(data)
        return len(data)

    def readall(self) -> bytes:
        pieces = []
        while self._position < self._size:
            piece = self._guard(self._read, PIECE_BYTES)
            if not piece:
                break
            self._position += len(piece)
            pieces.append(piece)
        return b"".join(pieces)

    def close(self) -> None:
        if not self.closed:
            self._stream.close()
        super().close()

    def _read(self, size: int) -> bytes:
        if self._stream.tell() != self._position:
            self._stream.seek(self._position)
        return bytes(self._stream.read(size))

    def _guard(self, act: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return act(*arguments)
        except DAMAGES as error:
            raise UnreadableFileError(
                f"{show_name(self._name)} is damaged in its zip ({type(error).__name__})."
            ) from None
