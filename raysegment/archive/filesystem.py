"""Local folders and buckets behind one interface: `s3://`, `gs://` and plain paths through pyarrow.fs."""

from __future__ import annotations

import errno
import hashlib
import io
import os
import re
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import BinaryIO, TypeVar, cast
from urllib.parse import urlsplit

import pyarrow as pa
import pyarrow.fs as pafs

from raysegment.archive.names import ESCAPE_BASE, TO_ESCAPE, extension_of, show_name
from raysegment.archive.sealed import current_key, is_sealed, open_name, open_seal, seal_file, seal_source
from raysegment.archive.zipped import EXTENSION as ZIP
from raysegment.archive.zipped import MARK, OpenZip
from raysegment.errors import AccessError, ScanError, UnreadableFileError, UsageError

REMOTE_SCHEMES = ("s3", "gs", "gcs", "file")
LOCAL_PAUSES_SECONDS = (0.05, 0.1, 0.2)
REMOTE_PAUSES_SECONDS = (0.2, 0.8, 2.0)
HASH_BYTES = 4 * 2**20
MAX_OPEN_ZIPS = 2

_ESCAPED = re.compile("[\U0010fe80-\U0010feff]+")

Result = TypeVar("Result")


def is_uri(path: str) -> bool:
    """Whether a path names a bucket rather than a local file or folder."""
    return "://" in (open_seal(path) if is_sealed(path) else path)


def encode_name(name: str) -> str:
    """A name from the file system as valid Unicode, for tables and messages; `decode_name` is its exact inverse."""
    if name.isascii():
        return name
    return TO_ESCAPE.sub(lambda found: "".join(chr(ESCAPE_BASE + byte) for byte in os.fsencode(found[0])), name)


def decode_name(text: str) -> str:
    """The file system's name for a text that `encode_name` made."""
    if text.isascii():
        return text
    raw = b"".join(
        bytes(ord(character) - ESCAPE_BASE for character in piece) if _ESCAPED.fullmatch(piece) else os.fsencode(piece)
        for piece in re.split(f"({_ESCAPED.pattern})", text)
    )
    return os.fsdecode(raw)


def absolute_source(source: str) -> str:
    """A source as tables name it: a bucket's URI, or the absolute path of a local folder or file."""
    return source if is_sealed(source) or is_uri(source) else encode_name(os.path.abspath(source))


def folder_of(source: str) -> str:
    """The folder that a file lies in, as tables name it."""
    if is_sealed(source):
        return seal_source(folder_of(open_seal(source)), current_key())
    if is_uri(source):
        return source.split("?")[0].rpartition("/")[0]
    return encode_name(os.path.dirname(os.path.abspath(source)))


@lru_cache(maxsize=64)
def open_source(source: str) -> tuple[pafs.FileSystem, str]:
    """The file system of a source, and the source's path in it.

    Args:
        source: Local folder or file, or a URI such as `s3://bucket/folder`. Options of the file system follow a
            question mark: `s3://bucket/folder?endpoint_override=host:9000&scheme=http`.

    Raises:
        UsageError: The URI's scheme is unknown, or it holds a password.
    """
    if is_sealed(source):
        return open_source(open_seal(source))
    if not is_uri(source):
        return pafs.LocalFileSystem(), os.path.abspath(decode_name(source))
    parts = urlsplit(source)
    if parts.scheme not in REMOTE_SCHEMES:
        known = ", ".join(f"{scheme}://" for scheme in REMOTE_SCHEMES)
        raise UsageError(f"{show_name(source)}: unknown scheme {parts.scheme}://; expected a path or one of {known}.")
    if parts.password:
        raise UsageError(
            f"{parts.scheme}://…@{parts.hostname}{parts.path} holds a password, which would end up in tables. "
            "Give credentials through the environment or the cloud's usual files."
        )
    try:
        filesystem, root = pafs.FileSystem.from_uri(source)
    except (pa.ArrowException, OSError, ValueError) as error:
        # Without what follows the question mark: people put keys there.
        raise UsageError(f"{show_name(source.split('?')[0])} cannot be opened: {describe(error)}") from error
    return filesystem, root.rstrip("/")


def join_source(source: str, name: str) -> str:
    """Path of one file below a source, in the source's own file system; an absolute path stands for itself."""
    if is_sealed(source):
        source, name = open_seal(source), open_name(name)
    _, root = open_source(source)
    if not name:
        return root
    if os.path.isabs(name) and not is_uri(source):
        return decode_name(name)
    return f"{root.rstrip('/')}/{name if is_uri(source) else decode_name(name)}"


def split_zip(source: str, name: str) -> tuple[str, str] | None:
    """The zip that a path goes through, and the path in it; None where it goes through none.

    Raises:
        OSError: The storage does not answer.
    """
    start = 0
    while (start := name.lower().find(MARK, start) + len(MARK)) >= len(MARK):
        path = name[: start - 1]
        if stat_file(source, path) is not None:
            return path, name[start:]
    return None


def stat_file(source: str, name: str) -> tuple[int, int] | None:
    """Size and time of change of a file, in bytes and nanoseconds; None where no file has that name.

    Raises:
        OSError: The storage does not answer.
    """
    filesystem, _ = open_source(source)
    try:
        info = filesystem.get_file_info(join_source(source, name))
    except pa.ArrowException as error:
        raise OSError(describe(error)) from error
    return (info.size or 0, info.mtime_ns or 0) if info.type == pafs.FileType.File else None


def open_zip(source: str, name: str) -> OpenZip:
    """A zip of a source; the last ones stay open for the next file of theirs.

    Raises:
        ScanError: It is no zip, or cannot be read.
        OSError: The storage refuses it.
    """
    stamp = stat_file(source, name)
    if stamp is None:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
    return _open_zip(source, name, stamp)


def read_bytes(source: str, name: str) -> bytes:
    """All bytes of one file; what the storage refuses is tried three times more.

    Args:
        source: Folder or bucket, as in the manifest.
        name: The file's path below it, with forward slashes, through a zip as through a folder; an absolute path of
            this machine stands for itself.

    Raises:
        AccessError: The file is missing, is no regular file, or the storage refuses it.
        ScanError: It is a zip, or damaged in one.
    """
    if extension_of(_below(source, name)) == ZIP:
        raise _refuse_zip(source, name)
    return try_again(source, name, lambda stream: bytes(stream.read() or b""))


def read_small_file(source: str, name: str, max_bytes: int) -> bytes | None:
    """A file about an archive; None where there is none.

    Raises:
        UsageError: It is no regular file, is larger, or the storage refuses it.
    """
    filesystem, _ = open_source(source)
    try:
        info = filesystem.get_file_info(join_source(source, name))
        if info.type == pafs.FileType.NotFound:
            return None
        with open_file(source, name) as stream:
            data = stream.read(max_bytes + 1)
    except (AccessError, pa.ArrowException, OSError) as error:
        raise UsageError(f"{show_name(name)} in {show_name(source)} cannot be read: {describe(error)}") from error
    if len(data) > max_bytes:
        raise UsageError(f"{show_name(name)} in {show_name(source)} has more than {max_bytes} bytes.")
    return bytes(data)


def hash_bytes(source: str, name: str) -> str:
    """SHA-256 of a file's bytes in hex digits, a piece at a time.

    Raises:
        AccessError: As `read_bytes`.
    """
    return try_again(source, name, _hash_stream)


@contextmanager
def open_file(source: str, name: str, buffer_bytes: int = io.DEFAULT_BUFFER_SIZE) -> Iterator[BinaryIO]:
    """Open a file for reading, in a zip too. Pipes, devices, sockets and links to them are never opened.

    Raises:
        AccessError: No regular file.
        ScanError: It cannot be read out of its zip.
        OSError: The storage refuses it.
    """
    below = _below(source, name)
    if MARK in below.lower() and (parts := split_zip(source, below)) is not None:
        outer = seal_file(parts[0], current_key()) if is_sealed(source) else parts[0]
        with open_zip(source, outer).open(decode_name(parts[1]), name, buffer_bytes) as stream:
            yield stream
        return
    filesystem, _ = open_source(source)
    path = join_source(source, name)
    if isinstance(filesystem, pafs.LocalFileSystem):
        with _open_regular(path, name, buffer_bytes) as stream:
            yield stream
        return
    try:
        with filesystem.open_input_file(path) as stream:
            yield cast(BinaryIO, io.BufferedReader(stream, buffer_bytes))
    except pa.ArrowException as error:
        raise OSError(describe(error)) from error


def check_regular(path: str, name: str) -> None:
    """Refuse a local path that is there and is neither a file nor a link to one; it is not opened.

    Raises:
        AccessError: It is a pipe, a device, a socket or a folder.
    """
    try:
        mode = os.stat(path).st_mode
    except ValueError:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL)) from None
    if not stat.S_ISREG(mode):
        raise AccessError(f"{show_name(name)} is no regular file.")


def describe(error: BaseException) -> str:
    """The cause of an I/O error in a few words on one line."""
    if isinstance(error, OSError) and error.strerror and error.errno:
        return os.strerror(error.errno)
    text = show_name(" ".join(str(error).split()))
    return text[:300] or type(error).__name__


@lru_cache(maxsize=MAX_OPEN_ZIPS)
def _open_zip(source: str, name: str, stamp: tuple[int, int]) -> OpenZip:
    """A zip as it was at a time: one that has changed is opened again."""
    filesystem, _ = open_source(source)
    path = join_source(source, name)
    if isinstance(filesystem, pafs.LocalFileSystem):
        stream = _open_regular(path, name, io.DEFAULT_BUFFER_SIZE)
    else:
        try:
            stream = cast(BinaryIO, io.BufferedReader(filesystem.open_input_file(path), io.DEFAULT_BUFFER_SIZE))
        except pa.ArrowException as error:
            raise OSError(describe(error)) from error
    try:
        return OpenZip(stream, name)
    except ScanError:
        stream.close()
        raise


def _below(source: str, name: str) -> str:
    """A file's path below a source as it is, also where its name is sealed."""
    return open_name(name) if is_sealed(source) else name


def _refuse_zip(source: str, name: str) -> ScanError:
    """Why a zip itself is no scan: what is wrong with its files, where something is."""
    try:
        if split_zip(source, _below(source, name)) is not None:
            # A zip within a zip, which opening refuses.
            with open_file(source, name):
                pass
        fault = open_zip(source, name).describe_faults(lambda _: True)
    except OSError as error:
        return AccessError(f"{show_name(name)} cannot be read: {describe(error)}.")
    except ScanError as error:
        return error
    return fault or UnreadableFileError(f"{show_name(name)} is a zip: its files may be scans, it itself is none.")


def _open_regular(path: str, name: str, buffer_bytes: int) -> BinaryIO:
    """Look before opening, because opening alone may wait for ever or set a device going, and again afterwards."""
    check_regular(path, name)
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    stream = os.fdopen(descriptor, "rb", buffer_bytes)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        stream.close()
        raise AccessError(f"{show_name(name)} is no regular file.")
    return stream


def _hash_stream(stream: BinaryIO) -> str:
    digest = hashlib.sha256()
    while piece := stream.read(HASH_BYTES):
        digest.update(piece)
    return digest.hexdigest()


def try_again(
    source: str, name: str, read: Callable[[BinaryIO], Result], buffer_bytes: int = io.DEFAULT_BUFFER_SIZE
) -> Result:
    """Open a file and read from it; what the storage refuses is tried three times more.

    Args:
        source: Folder or bucket.
        name: As in `read_bytes`.
        read: What is done with the open file.
        buffer_bytes: Read at once.

    Raises:
        AccessError: The storage still refuses it.
        ScanError: What `read` raises, or it cannot be read out of its zip.
    """
    pauses = REMOTE_PAUSES_SECONDS if is_uri(source) else LOCAL_PAUSES_SECONDS
    for pause_seconds in (*pauses, None):
        try:
            with open_file(source, name, buffer_bytes) as stream:
                return read(stream)
        except OSError as error:
            if pause_seconds is None:
                if not is_sealed(source):
                    raise AccessError(f"{show_name(name)} cannot be read: {describe(error)}") from error
                # Storages quote the path.
                cause = describe(error) if error.errno else type(error).__name__
                raise AccessError(f"{show_name(name)} cannot be read: {cause}") from None
            time.sleep(pause_seconds)
    raise AssertionError("the last attempt returns or raises")
