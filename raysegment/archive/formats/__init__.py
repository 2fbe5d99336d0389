"""The readers: one module per file format, found by its name.

A reader is a module with

    EXTENSIONS: tuple[str, ...]                 lower case, such as (".tif", ".tiff")
    def recognises(head: bytes) -> bool         whether a file may be of this format, from its first 512 bytes
    def read_header(stream, name) -> Header     from an open binary file, without decoding pixels
    def read_slices(data, name) -> Scan         from all bytes; pixels (slices, rows, columns, channels)

A reader of volumes also has `IS_VOLUME = True`: the first three axes of its pixels, and slices, rows, columns of its
header, are the axes as stored, in any order; spacing and affine are about them, and `archive/volumes` turns them.

A reader of series has `IS_SERIES = True` besides: a file is a scan or a part of one, and `archive/dicom/series` sorts
and stacks what its files hold. Such a scan is a volume if it has an affine; else it is slices, which nothing turns.

`stream` is a seekable binary file, `name` is for messages only, and both functions raise a `ScanError`; messages must
not quote what headers say. The module's name is the manifest's `reader`. A module in this folder is a reader as soon
as it lies here. Modules elsewhere are named, with commas between, in the environment variable RAYSEGMENT_READERS; they
must be importable wherever scans are decoded.
"""

from __future__ import annotations

import importlib
import os
import pkgutil
from dataclasses import dataclass, field
from functools import lru_cache
from typing import BinaryIO, Protocol, cast

import numpy as np
import numpy.typing as npt

from raysegment.errors import UnknownFormatError, UsageError
from raysegment.scan import Scan, Spacing

READERS_VARIABLE = "RAYSEGMENT_READERS"
HEAD_BYTES = 512


@dataclass(frozen=True)
class Header:
    """What a file declares before its pixels are read.

    Attributes:
        slices: Number of planes in the file.
        rows: Height of a plane in pixels.
        columns: Width of a plane in pixels.
        channels: Number of contrasts or colours.
        dtype: Type of one value as stored.
        spacing_mm: (slices, rows, columns), None where the format has none.
        is_lossy: Whether the pixels were compressed so that they are not exactly what was saved.
        affine: 4x4, (slice, row, column, 1) to RAS+ millimetres, None where the format has none.
        note: In which way the header contradicts itself, for people; None where it does not.
    """

    slices: int
    rows: int
    columns: int
    channels: int
    dtype: np.dtype[np.generic]
    spacing_mm: Spacing | None = None
    is_lossy: bool = False
    affine: npt.NDArray[np.float64] | None = field(default=None, compare=False)
    note: str | None = None

    @property
    def num_bytes(self) -> int:
        """Bytes that the decoded pixels take."""
        return self.slices * self.rows * self.columns * self.channels * self.dtype.itemsize


class Reader(Protocol):
    """The shape of a reader module."""

    EXTENSIONS: tuple[str, ...]

    def recognises(self, head: bytes) -> bool: ...

    def read_header(self, stream: BinaryIO, name: str) -> Header: ...

    def read_slices(self, data: bytes, name: str) -> Scan: ...


def readers() -> dict[str, Reader]:
    """All readers by name: those of this folder, then those that RAYSEGMENT_READERS names."""
    return _load_readers(os.environ.get(READERS_VARIABLE, ""))


def get_reader(name: str) -> Reader:
    """The reader of that name.

    Raises:
        UnknownFormatError: No reader has that name.
    """
    found = readers().get(name)
    if found is None:
        raise UnknownFormatError(f"no reader is called {name!r}; there are {', '.join(sorted(readers()))}.")
    return found


def reads_volumes(reader: Reader) -> bool:
    """Whether a reader leaves the axes as stored, so that `archive/volumes` must turn them."""
    return bool(getattr(reader, "IS_VOLUME", False))


def reads_series(reader: Reader) -> bool:
    """Whether the files of a reader are parts of series, to be sorted and stacked."""
    return bool(getattr(reader, "IS_SERIES", False))


def is_turned(reader: Reader, found: Header | Scan) -> bool:
    """Whether what a reader found is a volume, with axes that must be turned."""
    return reads_volumes(reader) and (found.affine is not None or not reads_series(reader))


def is_volume(name: str) -> bool:
    """Whether files of a reader hold volumes; not known of one that is not there."""
    found = readers().get(name)
    return found is not None and reads_volumes(found)


def is_series(name: str) -> bool:
    """Whether files of a reader are parts of series; not known of one that is not there."""
    found = readers().get(name)
    return found is not None and reads_series(found)


def readers_by_extension() -> dict[str, str]:
    """Name of the reader that looks at files with an extension."""
    return _map_extensions(os.environ.get(READERS_VARIABLE, ""))


def recognise(head: bytes) -> str | None:
    """Name of the reader that recognises a file by its first bytes, None where none does."""
    return next((name for name, reader in readers().items() if reader.recognises(head)), None)


@lru_cache(maxsize=8)
def _load_readers(extra: str) -> dict[str, Reader]:
    names = [f"{__name__}.{module.name}" for module in pkgutil.iter_modules(__path__)]
    found = {name.rpartition(".")[2]: cast(Reader, importlib.import_module(name)) for name in names}
    for name in filter(None, (part.strip() for part in extra.split(","))):
        try:
            found[name.rpartition(".")[2]] = cast(Reader, importlib.import_module(name))
        except ImportError as error:
            raise UsageError(f"{READERS_VARIABLE} names {name!r}, which cannot be imported: {error}.") from error
    return found


@lru_cache(maxsize=8)
def _map_extensions(extra: str) -> dict[str, str]:
    return {extension: name for name, reader in _load_readers(extra).items() for extension in reader.EXTENSIONS}
