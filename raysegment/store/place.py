"""Where tables live: a local folder or a bucket, behind the few operations that publishing needs."""

from __future__ import annotations

import errno
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from raysegment.errors import DiskFullError, OutputError, UsageError

FULL = frozenset({errno.ENOSPC, errno.EDQUOT})


@contextmanager
def report_full_disk(what: str) -> Iterator[None]:
    """Turn "no space left" into DiskFullError; other errors pass.

    Raises:
        DiskFullError: Names what was being written.
    """
    try:
        yield
    except OSError as error:
        if error.errno in FULL or "No space left" in str(error):
            raise DiskFullError(
                f"no space left while writing {what}. What is published is whole; make room and run the same command."
            ) from error
        raise


@contextmanager
def write_whole(path: Path) -> Iterator[Path]:
    """A new file beside `path`, which takes its place when the block ends; a reader sees the old content or the new.

    Args:
        path: On a local disk; folders above it are made.

    Raises:
        DiskFullError: No space left.
        OutputError: The system refuses the file.
    """
    temporary = path.with_name(f".{uuid.uuid4().hex}.partial")
    with report_full_disk(str(path)):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            temporary.replace(path)
        except OSError as error:
            if error.errno in FULL:
                raise
            raise OutputError(f"{path} cannot be written: {error.strerror}.") from error
        finally:
            # Where a file is in the place of its folder, there is nothing to remove either.
            with suppress(OSError):
                temporary.unlink()


class Place:
    """A folder or bucket; names are relative to it, with forward slashes.

    Args:
        location: Path, or a URI such as `s3://bucket/folder`.

    Raises:
        UsageError: The location cannot be opened, or holds credentials.
    """

    def __init__(self, location: str) -> None:
        self.location = location
        if "\0" in location:
            raise UsageError(f"{location!r} holds a zero byte, which no path may hold.")
        self.is_local = "://" not in location
        if self.is_local:
            self.filesystem: pafs.FileSystem = pafs.LocalFileSystem()
            # Absolute, because workers run in other folders.
            self.root = self.location = os.path.abspath(location)
            return
        parts = urlsplit(location)
        if "@" in parts.netloc:
            raise UsageError(
                f"{parts.scheme}://…@{parts.hostname}{parts.path} holds credentials, which would end up in run.json. "
                "Give them through the environment or the cloud's usual files."
            )
        try:
            self.filesystem, root = pafs.FileSystem.from_uri(location)
        except (pa.ArrowException, OSError, ValueError) as error:
            raise UsageError(f"{location} cannot be opened: {' '.join(str(error).split())[:200]}") from None
        self.root = root.rstrip("/")

    def path(self, name: str = "") -> str:
        """The name's path in the file system."""
        return f"{self.root}/{name}" if name else self.root

    def locate(self, name: str) -> str:
        """Where something below lies, as another `Place` takes it."""
        if self.is_local:
            return self.path(name)
        base, mark, options = self.location.partition("?")
        return f"{base.rstrip('/')}/{name}{mark}{options}"

    def list_names(self, folder: str = "") -> list[str]:
        """Names of files and folders directly in a folder, sorted; none where it does not exist.

        Raises:
            UsageError: The location is no possible path.
            OutputError: The storage does not answer, or refuses the folder.
        """
        if self.is_local:
            try:
                return sorted(os.listdir(self.path(folder)))
            except (FileNotFoundError, NotADirectoryError):
                return []
            except OSError as error:
                raise self._refused(error) from None
        try:
            found = self.filesystem.get_file_info(pafs.FileSelector(self.path(folder), allow_not_found=True))
        except (pa.ArrowException, OSError) as error:
            raise self._refused(error) from error
        return sorted(item.base_name for item in found)

    def exists(self, name: str) -> bool:
        """Whether there is a file or folder of that name.

        Raises:
            UsageError: The location is no possible path.
            OutputError: The storage does not answer.
        """
        try:
            return bool(self.filesystem.get_file_info(self.path(name)).type != pafs.FileType.NotFound)
        except (pa.ArrowException, OSError) as error:
            raise self._refused(error) from error

    def make_folder(self, name: str = "") -> None:
        """Make a folder and those above it; buckets need none.

        Raises:
            UsageError: A file is in its place, or the system refuses it.
        """
        if not self.is_local:
            return
        with report_full_disk(self.path(name)):
            try:
                os.makedirs(self.path(name), exist_ok=True)
            except (FileExistsError, NotADirectoryError):
                raise UsageError(f"{self.path(name)} cannot be a folder: a file is in its place.") from None
            except OSError as error:
                if error.errno in FULL:
                    raise
                raise UsageError(f"the folder {self.path(name)} cannot be made: {error.strerror}.") from None

    def make_writable(self) -> None:
        """Make the folder, and make sure that files can be written in it, before work is put into them.

        Raises:
            UsageError: A file is in its place, or it cannot be written.
            DiskFullError: Not even an empty file has room.
        """
        self.make_folder()
        if not self.is_local:
            return
        probe = Path(self.path(f".{uuid.uuid4().hex}.probe"))
        with report_full_disk(self.path()):
            try:
                probe.touch()
                probe.unlink()
            except OSError as error:
                if error.errno in FULL:
                    raise
                raise UsageError(
                    f"nothing can be written in {self.path()}: {error.strerror}. Choose another --out."
                ) from None

    def _refused(self, error: Exception) -> UsageError | OutputError:
        if getattr(error, "errno", None) == errno.ENAMETOOLONG:
            return UsageError(f"{self.location} has a name that is longer than the file system takes.")
        return OutputError(f"{self.location} cannot be opened: {' '.join(str(error).split())[:200]}")

    def read_bytes(self, name: str) -> bytes:
        with self.filesystem.open_input_file(self.path(name)) as stream:
            return bytes(stream.read())

    def read_end(self, name: str, num_bytes: int) -> tuple[int, bytes]:
        """Size of a file, and its last bytes: all of them where there are fewer."""
        with self.filesystem.open_input_file(self.path(name)) as stream:
            size = stream.size()
            start = max(0, size - num_bytes)
            return size, bytes(stream.read_at(size - start, start))

    def write_bytes(self, name: str, data: bytes) -> None:
        """Write a file in one step: a reader sees the old content or the new one.

        Raises:
            DiskFullError: No space is left; the old content stays.
        """
        if not self.is_local:
            with self.filesystem.open_output_stream(self.path(name)) as stream:
                stream.write(data)
            return
        target = Path(self.path(name))
        temporary = target.with_name(f".{uuid.uuid4().hex}.partial")
        try:
            with report_full_disk(str(target)):
                with temporary.open("wb") as file:
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
                temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)

    def write_table(self, name: str, table: pa.Table, *, compression: str = "zstd") -> int:
        """Write a Parquet file and force it to disk; not in one step, so only below `_staging`.

        Returns:
            Size of the file in bytes.
        """
        path = self.path(name)
        with report_full_disk(path):
            self.make_folder(name.rpartition("/")[0])
            pq.write_table(table, path, filesystem=self.filesystem, compression=compression)
            if self.is_local:
                sync(path)
        return int(self.filesystem.get_file_info(path).size)

    def read_table(self, name: str) -> pa.Table:
        return pq.read_table(self.path(name), filesystem=self.filesystem, partitioning=None)

    def read_schema(self, name: str) -> pa.Schema:
        return pq.read_schema(self.path(name), filesystem=self.filesystem)

    def move(self, source: str, target: str) -> None:
        """Rename a file over another one; a server-side copy in a bucket."""
        if self.is_local:
            with report_full_disk(self.path(target)):
                os.replace(self.path(source), self.path(target))
            return
        self.filesystem.copy_file(self.path(source), self.path(target))
        self.filesystem.delete_file(self.path(source))

    def repeat(self, source: str, target: str) -> None:
        """Give a file that is only ever replaced a second name: a hard link, or a server-side copy in a bucket.

        Raises:
            OutputError: The file system has no hard links, or the storage refuses the copy.
            DiskFullError: No space left.
        """
        with report_full_disk(self.path(target)):
            try:
                if self.is_local:
                    os.link(self.path(source), self.path(target))
                else:
                    self.filesystem.copy_file(self.path(source), self.path(target))
            except (pa.ArrowException, OSError) as error:
                if getattr(error, "errno", None) in FULL:
                    raise
                what = "hard link to" if self.is_local else "copy of"
                raise OutputError(
                    f"{self.path(target)} cannot be made a {what} {self.path(source)}: "
                    f"{getattr(error, 'strerror', None) or ' '.join(str(error).split())[:200]}."
                ) from None

    def sync_folder(self, name: str) -> None:
        """Force a folder's renames to disk."""
        if self.is_local:
            sync(self.path(name))

    def delete(self, name: str) -> None:
        """Delete a file or a folder with all below it; nothing happens where it does not exist."""
        if self.is_local:
            path = Path(self.path(name))
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
            return
        kind = self.filesystem.get_file_info(self.path(name)).type
        if kind == pafs.FileType.Directory:
            self.filesystem.delete_dir(self.path(name))
        elif kind == pafs.FileType.File:
            self.filesystem.delete_file(self.path(name))

    @contextmanager
    def _looking(self, name: str) -> Iterator[None]:
        try:
            yield
        except (pa.ArrowException, OSError) as error:
            cause = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else str(error)
            raise UsageError(f"{self.path(name)} cannot be opened: {' '.join(cause.split())[:200]}.") from error


def sync(path: str) -> None:
    """Force a file or folder to disk; file systems that cannot are left alone."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in {errno.EINVAL, errno.ENOTSUP}:
            raise
    finally:
        os.close(descriptor)
