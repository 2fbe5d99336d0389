"""Local folders and buckets behind one interface: `s3://`, `gs://` and plain paths through pyarrow.fs."""

from __future__ import annotations

import os
import time
from functools import lru_cache
from urllib.parse import urlsplit

import pyarrow as pa
import pyarrow.fs as pafs

from raysegment.archive.names import decode_name, show_name
from raysegment.errors import AccessError, UsageError

REMOTE_SCHEMES = ("s3", "gs", "gcs", "file")
LOCAL_PAUSES_SECONDS = (0.05, 0.1, 0.2)
REMOTE_PAUSES_SECONDS = (0.2, 0.8, 2.0)


def is_uri(path: str) -> bool:
    """Whether a path names a bucket rather than a local file or folder."""
    return "://" in path


@lru_cache(maxsize=64)
def open_source(source: str) -> tuple[pafs.FileSystem, str]:
    """The file system of a source, and the source's path in it.

    Args:
        source: Local folder or file, or a URI such as `s3://bucket/folder`. Options of the file system follow a
            question mark: `s3://bucket/folder?endpoint_override=host:9000&scheme=http`.

    Raises:
        UsageError: The URI's scheme is unknown, or it holds a password.
    """
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
        raise UsageError(f"{show_name(source)} cannot be opened: {describe(error)}") from error
    return filesystem, root.rstrip("/")


def join_source(source: str, name: str) -> str:
    """Path of one file below a source, in the source's own file system."""
    _, root = open_source(source)
    if not name:
        return root
    return f"{root.rstrip('/')}/{name if is_uri(source) else decode_name(name)}"


def read_bytes(source: str, name: str) -> bytes:
    """All bytes of one file; what the storage refuses is tried three times more.

    Args:
        source: Folder or bucket, as in the manifest.
        name: The file's path below it, with forward slashes.

    Raises:
        AccessError: The file is missing, or the storage refuses it.
    """
    pauses = REMOTE_PAUSES_SECONDS if is_uri(source) else LOCAL_PAUSES_SECONDS
    for pause_seconds in pauses:
        try:
            return _read_once(source, name)
        except OSError:
            time.sleep(pause_seconds)
    try:
        return _read_once(source, name)
    except OSError as error:
        raise AccessError(f"{show_name(name)} cannot be read: {describe(error)}") from error


def describe(error: BaseException) -> str:
    """The cause of an I/O error in a few words on one line."""
    if isinstance(error, OSError) and error.strerror and error.errno:
        return os.strerror(error.errno)
    text = show_name(" ".join(str(error).split()))
    return text[:300] or type(error).__name__


def _read_once(source: str, name: str) -> bytes:
    path = join_source(source, name)
    if not is_uri(source):
        with open(path, "rb") as stream:
            return stream.read()
    filesystem, _ = open_source(source)
    try:
        with filesystem.open_input_file(path) as stream:
            return bytes(stream.read())
    except pa.ArrowException as error:
        raise OSError(describe(error)) from error
