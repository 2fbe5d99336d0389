"""The pages of a TIFF file and their tags, TIFF 6.0 (Adobe, 1992) and BigTIFF.

Nobody vouches for what the tags say, so walking the pages is bounded: in their number, in tags, in values of tags.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

from raysegment.archive.names import show_name
from raysegment.errors import TruncatedFileError, UnknownFormatError, UnreadableFileError

Tags = dict[int, tuple[int, ...]]

MAGICS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
MAX_PAGES = 20_000
MAX_TAGS = 4096
"""Tags of a page; more are taken for damage, as `tifffile` does."""

MAX_DIGITS = 18
MAX_SHAPE_BYTES = 200
MAX_DESCRIPTIONS = 2
"""`tifffile` writes its own description behind that of the user."""

SUBFILE, WIDTH, LENGTH, BITS, COMPRESSION, PHOTOMETRIC, DESCRIPTION = 254, 256, 257, 258, 259, 262, 270
STRIP_OFFSETS, SAMPLES, ROWS_PER_STRIP, STRIP_BYTES, PLANAR = 273, 277, 278, 279, 284
PREDICTOR, TILE_OFFSETS, TILE_BYTES, SAMPLE_FORMAT = 317, 324, 325, 339

_STRUCT_OF_TYPE = {1: "B", 3: "H", 4: "I", 6: "b", 8: "h", 9: "i", 13: "I", 16: "Q", 17: "q", 18: "Q"}
_PLACES = {STRIP_OFFSETS, STRIP_BYTES, TILE_OFFSETS, TILE_BYTES}
_TEXT_TYPES = (1, 2, 6, 7)


@dataclass(frozen=True)
class Selection:
    """What to read of each page.

    Attributes:
        tags: Tags whose values are wanted.
        max_values: Tags and their values in the whole file; a file with more is refused.
        first_tags: Tags that are wanted of the first page only.
        description_bytes: How much of the first page's descriptions.
    """

    tags: frozenset[int]
    first_tags: frozenset[int]
    max_values: int
    description_bytes: int


@dataclass(frozen=True)
class Page:
    """One page.

    Attributes:
        tags: Values by tag number; none where a tag was not wanted, or its type is wrong.
        order: `<` or `>`, the order of bytes.
        next_offset: Where the next page begins; 0 is nowhere.
        is_big: Whether the file is a BigTIFF.
        descriptions: Those of the first page, cut; none on others.
    """

    tags: Tags
    order: str
    next_offset: int
    is_big: bool
    descriptions: tuple[bytes, ...] = ()

    def first(self, tag: int, default: int) -> int:
        return (self.tags.get(tag) or (default,))[0]


def read_pages(stream: BinaryIO, name: str, selection: Selection) -> list[Page]:
    """The pages of a TIFF file in order.

    Raises:
        UnknownFormatError: The file does not begin as a TIFF does.
        TruncatedFileError: There is no page, or a page lies beyond the end of the file.
        UnreadableFileError: The pages form a loop, or are too many to be those of a scan.
    """
    try:
        pages = list(_walk(_Reader(stream, name, selection)))
    except struct.error:
        raise TruncatedFileError(f"{show_name(name)} ends before its TIFF tags do.") from None
    if not pages:
        raise TruncatedFileError(f"{show_name(name)}: the TIFF has no page.")
    return pages


def check_complete(pages: list[Page], num_bytes: int, name: str) -> None:
    """Refuse a file that ends before the last strip or tile of its pages.

    Raises:
        TruncatedFileError: Says how many bytes are missing.
    """
    end = 0
    for page in pages:
        for starts, counts in ((STRIP_OFFSETS, STRIP_BYTES), (TILE_OFFSETS, TILE_BYTES)):
            pairs = zip(page.tags.get(starts, ()), page.tags.get(counts, ()), strict=False)
            end = max(end, max((start + count for start, count in pairs), default=0))
    if end > num_bytes:
        raise TruncatedFileError(f"{show_name(name)} has {num_bytes} bytes; its pixels end at byte {end}.")


def shape_in(description: bytes) -> tuple[int, ...]:
    """The shape that a description of `tifffile` begins with; empty where it has none."""
    for start, end in ((b'{"shape": [', b"]"), (b"shape=(", b")")):
        if description.startswith(start):
            parts = description[len(start) : len(start) + MAX_SHAPE_BYTES].partition(end)[0].split(b",")
            return tuple(int(part) for part in parts) if all(map(_is_number, parts)) else ()
    return ()


def _is_number(text: bytes) -> bool:
    return len(text) <= MAX_DIGITS and text.strip(b" ").isdigit()


class _Reader:
    """A TIFF's bytes, the order of its bytes, and how much of its tags is wanted."""

    def __init__(self, stream: BinaryIO, name: str, selection: Selection) -> None:
        self.stream, self.name, self.selection = stream, name, selection
        self.num_pages = self.num_values = 0
        self.num_bytes = stream.seek(0, os.SEEK_END)
        head = self.read(0, 16)
        if head[:4] not in MAGICS:
            raise UnknownFormatError(f"{show_name(name)}: the first bytes are not those of a TIFF file.")
        self.order, self.is_big = "<" if head[:2] == b"II" else ">", b"+" in head[:4]
        self.count, self.link = (struct.Struct(self.order + kind) for kind in ("QQ" if self.is_big else "HI"))
        self.entry = struct.Struct(self.order + ("HHQ8s" if self.is_big else "HHI4s"))
        (self.first_offset,) = self.link.unpack_from(head, 8 if self.is_big else 4)

    def count_values(self, count: int) -> None:
        """Keep the sum of tags and values within what is wanted."""
        self.num_values += count
        if self.num_values > self.selection.max_values:
            raise UnreadableFileError(f"{show_name(self.name)}: the TIFF has too many tags for a scan.")

    def read(self, offset: int, num_bytes: int) -> bytes:
        """Bytes at a place; fewer where the file ends, none where the place lies beyond."""
        if offset >= self.num_bytes:
            return b""
        self.stream.seek(offset)
        return self.stream.read(num_bytes)

    def read_values(self, kind: int, count: int, inline: bytes) -> tuple[int, ...]:
        """A tag's whole numbers; none where it holds something else."""
        letter = _STRUCT_OF_TYPE.get(kind)
        if letter is None or not count:
            return ()
        self.count_values(count)
        values = struct.Struct(f"{self.order}{count}{letter}")
        return values.unpack_from(self._value_bytes(values.size, inline))

    def check_place(self, kind: int, count: int, inline: bytes) -> None:
        """Refuse a tag whose values lie beyond the end of the file, without reading them.

        Raises:
            struct.error: They do.
        """
        size = count * struct.calcsize(_STRUCT_OF_TYPE.get(kind, "B"))
        if size > len(inline) and self.link.unpack(inline)[0] + size > self.num_bytes:
            raise struct.error("values beyond the end of the file")

    def read_text(self, kind: int, count: int, inline: bytes) -> bytes:
        """As much of a description as is wanted."""
        size = min(count, self.selection.description_bytes)
        return self._value_bytes(count, inline, size)[:size] if kind in _TEXT_TYPES else b""

    def _value_bytes(self, num_bytes: int, inline: bytes, wanted: int | None = None) -> bytes:
        if num_bytes <= len(inline):
            return inline
        (offset,) = self.link.unpack(inline)
        return self.read(offset, num_bytes if wanted is None else wanted)


def _walk(reader: _Reader) -> Iterator[Page]:
    """Page by page, within the bounds.

    Raises:
        struct.error: The file ends within a page.
    """
    offset, seen = reader.first_offset, set()
    while offset:
        if offset in seen:
            raise UnreadableFileError(f"{show_name(reader.name)}: the TIFF's pages form a loop.")
        seen.add(offset)
        page = _read_page(reader, offset)
        yield page
        offset = page.next_offset


def _read_page(reader: _Reader, offset: int) -> Page:
    (num_tags,) = reader.count.unpack_from(reader.read(offset, reader.count.size))
    reader.num_pages += 1
    reader.count_values(num_tags)
    if num_tags > MAX_TAGS or reader.num_pages > MAX_PAGES:
        shown = f"page {reader.num_pages} with {num_tags} tags"
        raise UnreadableFileError(
            f"{show_name(reader.name)}: the TIFF has a {shown}; at most {MAX_PAGES} pages of {MAX_TAGS} tags are read."
        )
    size = num_tags * reader.entry.size
    block = reader.read(offset + reader.count.size, size + reader.link.size)
    (next_offset,) = reader.link.unpack_from(block, size)
    tags: Tags = {}
    descriptions: list[bytes] = []
    wanted = reader.selection.tags | reader.selection.first_tags if reader.num_pages == 1 else reader.selection.tags
    for code, kind, count, inline in reader.entry.iter_unpack(block[:size]):
        if code == DESCRIPTION and reader.num_pages == 1 and len(descriptions) < MAX_DESCRIPTIONS:
            descriptions.append(reader.read_text(kind, count, inline))
        if code in _PLACES:
            reader.check_place(kind, count, inline)
        if code not in tags:
            tags[code] = reader.read_values(kind, count, inline) if code in wanted else ()
    return Page(tags, reader.order, next_offset, reader.is_big, tuple(descriptions))
