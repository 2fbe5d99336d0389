"""The elements of a DICOM file, as far as anybody asks for them: a walk over their heads that opens nothing else.

Nothing is read that is not wanted, pixel data never. A walk ends after `MAX_ELEMENTS` elements, and in sequences nested
deeper than `MAX_DEPTH`, so that it takes no longer than a second, whatever a file holds; of many frames, where the file
is as large as their descriptions, some seconds. After PS3.5, section 7.
"""

from __future__ import annotations

import io
import struct
import zlib
from dataclasses import dataclass, field, replace
from typing import BinaryIO

from raysegment.archive.dicom.alphabets import PLAIN, decode_text
from raysegment.archive.dicom.syntaxes import DEFLATED, EXPLICIT_BIG, IMPLICIT_LITTLE
from raysegment.archive.names import show_name
from raysegment.errors import OversizedScanError, TruncatedFileError, UnknownFormatError, UnreadableFileError

MAGIC_OFFSET, MAGIC = 128, b"DICM"

UNDEFINED = 0xFFFFFFFF
ITEM, ITEM_END, SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
PIXEL_DATA = (0x7FE00008, 0x7FE00009, 0x7FE00010)
MEDIA_CLASS, SYNTAX = 0x00020002, 0x00020010
NUMBER_OF_FRAMES = 0x00280008

MAX_DEPTH = 40
MAX_ELEMENTS = 400_000
ELEMENTS_PER_FRAME, MAX_COUNTED_FRAMES = 300, 10_000
"""How many more elements a file of several frames may have, which describes each of them."""

MAX_VALUE_BYTES = 2**20
MAX_INFLATED_BYTES = 64 * 2**20

LONG_KINDS = frozenset((b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"))

Wanted = dict[int, "Wanted | None"]
"""Tags that are read; of a sequence those of its items."""


@dataclass(frozen=True, slots=True)
class PixelPlace:
    """Where pixel data lie.

    Attributes:
        tag: The element: whole numbers, single or double precision.
        offset: Of its value in the data set, inflated where that is deflated.
        length: Of its value; None where it is cut into fragments, as compressed pixels are.
        is_words: Whether values are in words of two bytes, which matters where single bytes are stored so.
        packed_from: Where a deflated data set begins in the file; None where it is not deflated.
    """

    tag: int
    offset: int
    length: int | None
    is_words: bool = False
    packed_from: int | None = None


@dataclass(slots=True, repr=False)
class Elements:
    """The wanted elements of a data set or of an item of a sequence.

    Attributes:
        order: Order of bytes in numbers, `<` or `>`.
        values: Bytes of each element.
        items: Of each sequence.
    """

    order: str
    values: dict[int, bytes] = field(default_factory=dict)
    items: dict[int, list[Elements]] = field(default_factory=dict)

    def texts(self, tag: int, encoding: str = PLAIN) -> list[str]:
        """The texts of an element, without what fills them; empty where it is missing.

        Bytes that are no text stay apart, so that two identifiers never become one.
        """
        text = decode_text(self.values.get(tag, b""), encoding)
        return [part.strip(" \0\t\r\n") for part in text.split("\\")] if text else []

    def text(self, tag: int, encoding: str = PLAIN) -> str:
        """The first text of an element; empty where it is missing."""
        return next(iter(self.texts(tag, encoding)), "")

    def numbers(self, tag: int) -> tuple[float, ...]:
        """Numbers that are written as text; empty where the element is missing or blank.

        Raises:
            ValueError: They are no numbers.
        """
        texts = self.texts(tag)
        return tuple(float(text) for text in texts) if any(texts) else ()

    def short(self, tag: int) -> int | None:
        """A number of two bytes, None where there is none."""
        value = self.values.get(tag, b"")
        return struct.unpack_from(self.order + "H", value)[0] if len(value) >= 2 else None

    def first(self, *tags: int) -> Elements | None:
        """The first item of a sequence, or of a sequence in its first item; None where there is none."""
        found: Elements | None = self
        for tag in tags:
            items = [] if found is None else found.items.get(tag, [])
            found = items[0] if items else None
        return found


@dataclass(frozen=True, slots=True, repr=False)
class DataSet:
    """What was wanted of a file.

    Attributes:
        syntax: UID of its transfer syntax.
        media_class: SOP class by the file's meta information; empty where that has none.
        elements: The wanted ones that are there.
        pixels: Where the pixel data lie; None where there are none.
    """

    syntax: str
    media_class: str
    elements: Elements
    pixels: PixelPlace | None


def is_dicom(head: bytes) -> bool:
    """Whether a file may be DICOM, from its first bytes."""
    return head[MAGIC_OFFSET : MAGIC_OFFSET + len(MAGIC)] == MAGIC


def read_elements(stream: BinaryIO, wanted: Wanted, name: str) -> DataSet:
    """Read the wanted elements of a file, up to its pixel data.

    Args:
        stream: The whole file, or its beginning up to the head of its pixel data.
        wanted: Tags, ascending or not.
        name: For messages.

    Raises:
        UnknownFormatError: Not DICOM.
        TruncatedFileError: The file ends within an element that comes before the pixel data.
        UnreadableFileError: Elements that nobody would write, sequences nested without end, too many of them.
        OversizedScanError: It is deflated, and unpacks to more than a header has.
    """
    start = stream.read(MAGIC_OFFSET + len(MAGIC))
    if not is_dicom(start):
        raise UnknownFormatError(f"{show_name(name)}: the first bytes are not those of a DICOM file.")
    meta = _Walk(stream, name, explicit=True, order="<")
    described = meta.read_meta()
    if not (syntax := described.get(SYNTAX, "")):
        raise UnreadableFileError(f"{show_name(name)} does not say how it is encoded (no transfer syntax).")
    packed_from = None
    if syntax == DEFLATED:
        packed_from = meta.position
        stream = io.BytesIO(inflate(stream.read(), MAX_INFLATED_BYTES, name, is_whole=False))
    walk = _Walk(stream, name, explicit=syntax != IMPLICIT_LITTLE, order=">" if syntax == EXPLICIT_BIG else "<")
    walk.guess_encoding()
    elements = walk.read_set(wanted)
    pixels = walk.pixels and replace(walk.pixels, packed_from=packed_from)
    return DataSet(syntax, described.get(MEDIA_CLASS, ""), elements, pixels)


def inflate(packed: bytes, max_bytes: int, name: str, *, is_whole: bool) -> bytes:
    """Unpack a deflated data set.

    Args:
        packed: What follows the file's meta information.
        max_bytes: More is refused, or cut off.
        name: For messages.
        is_whole: Whether all of it is needed, or its beginning.

    Raises:
        UnreadableFileError: It is damaged.
        OversizedScanError: It is larger, and all of it is needed.
    """
    unpacker = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        data = unpacker.decompress(packed, max_bytes)
    except zlib.error:
        raise UnreadableFileError(f"{show_name(name)}: its deflated data are damaged.") from None
    if is_whole and unpacker.unconsumed_tail:
        raise OversizedScanError(f"{show_name(name)} unpacks to more than {max_bytes / 2**20:.0f} MB.")
    return data


class _Walk:
    """A walk over a data set, from where a stream stands."""

    def __init__(self, stream: BinaryIO, name: str, *, explicit: bool, order: str) -> None:
        self.stream = stream
        self.name = name
        self.explicit = explicit
        self.order = order
        self.position = stream.tell()
        self.end = stream.seek(0, io.SEEK_END)
        stream.seek(self.position)
        self.num_elements = 0
        self.max_elements = MAX_ELEMENTS
        self.pixels: PixelPlace | None = None

    def read_meta(self) -> dict[int, str]:
        """Transfer syntax and class; the stream then stands behind the file's meta information."""
        found = {}
        while (head := self._peek(2)) == b"\2\0":
            tag, _, length = self._read_head()
            if length == UNDEFINED:
                raise self._broken("its meta information has no end")
            if tag in (MEDIA_CLASS, SYNTAX):
                found[tag] = self._take(length).decode("ascii", "replace").strip(" \0")
            else:
                self._skip(length)
        if not head:
            raise TruncatedFileError(f"{show_name(self.name)} ends before its header does.")
        return found

    def guess_encoding(self) -> None:
        """Take elements with a type for such, whatever the transfer syntax says: some writers mix them up."""
        head = self._peek(6)
        if len(head) == 6 and self.order == "<":
            self.explicit = head[4:6].isalpha() and head[4:6].isupper()

    def read_set(self, wanted: Wanted) -> Elements:
        """Elements to the pixel data or the end."""
        found = Elements(self.order)
        while self.position < self.end:
            tag, kind, length = self._read_head()
            if tag in PIXEL_DATA:
                self.pixels = PixelPlace(tag, self.position, None if length == UNDEFINED else length, kind == b"OW")
                break
            self._read_element(found, tag, kind, length, wanted)
        return found

    def _read_element(self, found: Elements, tag: int, kind: bytes, length: int, wanted: Wanted) -> None:
        if tag not in wanted:
            if length == UNDEFINED:
                self._skip_sequence(kind)
            else:
                self._skip(length)
            return
        inner = wanted[tag]
        if inner is not None:
            found.items[tag] = self._read_items(kind, length, inner)
        elif length == UNDEFINED:
            raise self._broken("an element that is no sequence has no end")
        else:
            found.values[tag] = self._take(length)
            if tag == NUMBER_OF_FRAMES:
                self._expect_frames(found.values[tag])

    def _expect_frames(self, text: bytes) -> None:
        digits = text.strip(b" \0")
        frames = int(digits) if digits.isdigit() and len(digits) < 10 else 0
        self.max_elements = MAX_ELEMENTS + ELEMENTS_PER_FRAME * min(frames, MAX_COUNTED_FRAMES)

    def _read_items(self, kind: bytes, length: int, wanted: Wanted) -> list[Elements]:
        """The items of a sequence; those of unknown type are encoded without types."""
        explicit, self.explicit = self.explicit, self.explicit and kind != b"UN"
        end = self.end if length == UNDEFINED else self.position + length
        items = []
        while self.position < end:
            tag, _, item_length = self._read_head()
            if tag == SEQUENCE_END:
                break
            if tag != ITEM:
                raise self._broken("a sequence holds something that is no item")
            items.append(self._read_item(item_length, wanted))
        self.explicit = explicit
        return items

    def _read_item(self, length: int, wanted: Wanted) -> Elements:
        found = Elements(self.order)
        end = self.end if length == UNDEFINED else self.position + length
        while self.position < end:
            tag, kind, element_length = self._read_head()
            if tag == ITEM_END:
                break
            self._read_element(found, tag, kind, element_length, wanted)
        return found

    def _skip_sequence(self, kind: bytes) -> None:
        """Go behind a sequence without length, whatever is nested in it."""
        outer = [self.explicit]
        self.explicit = self.explicit and kind != b"UN"
        while outer:
            tag, inner_kind, length = self._read_head()
            if tag in (ITEM_END, SEQUENCE_END):
                self.explicit = outer.pop()
            elif length == UNDEFINED:
                if len(outer) >= MAX_DEPTH:
                    raise self._broken(f"its sequences are nested more than {MAX_DEPTH // 2} deep")
                outer.append(self.explicit)
                self.explicit = self.explicit and inner_kind != b"UN"
            else:
                self._skip(length)

    def _read_head(self) -> tuple[int, bytes, int]:
        """Tag, type (empty where it is not written) and length of the next element."""
        self.num_elements += 1
        if self.num_elements > self.max_elements:
            raise OversizedScanError(
                f"{show_name(self.name)} has a header of more than {self.max_elements} elements; so many are read."
            )
        head = self._take(8)
        group, number, length = struct.unpack(self.order + "HHI", head)
        tag = group << 16 | number
        if not self.explicit or group == 0xFFFE:
            return tag, b"", length
        kind = head[4:6]
        if kind in LONG_KINDS:
            (length,) = struct.unpack(self.order + "I", self._take(4))
            return tag, kind, length
        if not kind.isalpha():
            raise self._broken("an element has no type")
        return tag, kind, struct.unpack(self.order + "H", head[6:])[0]

    def _take(self, length: int) -> bytes:
        if self.position + length > self.end:
            raise TruncatedFileError(f"{show_name(self.name)} ends before its header does.")
        if length > MAX_VALUE_BYTES:
            raise self._broken(f"an element has {length} bytes")
        self.position += length
        return self.stream.read(length)

    def _skip(self, length: int) -> None:
        self.position += length
        if self.position > self.end:
            raise TruncatedFileError(f"{show_name(self.name)} ends before its header does.")
        self.stream.seek(self.position)

    def _peek(self, length: int) -> bytes:
        head = self.stream.read(length)
        self.stream.seek(self.position)
        return head

    def _broken(self, cause: str) -> UnreadableFileError:
        return UnreadableFileError(f"{show_name(self.name)} is no sound DICOM file: {cause}.")
