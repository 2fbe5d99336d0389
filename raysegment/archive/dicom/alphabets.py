"""Which bytes of a DICOM header are which letters. After PS3.3, C.12.1.1.2, and PS3.5, 6.1.2.5."""

from __future__ import annotations

import codecs
import re
from collections.abc import Sequence

PLAIN = "latin-1"
"""Of files that say nothing, or something that is not known."""

ENCODINGS = {
    "6": PLAIN,
    "100": PLAIN,
    "101": "iso8859-2",
    "109": "iso8859-3",
    "110": "iso8859-4",
    "144": "iso8859-5",
    "127": "iso8859-6",
    "126": "iso8859-7",
    "138": "iso8859-8",
    "148": "iso8859-9",
    "203": "iso8859-15",
    "13": "shift_jis",
    "166": "tis-620",
    "192": "utf-8",
    "87": "iso2022_jp",
    "159": "iso2022_jp_2",
    "149": "euc_kr",
    "58": "gb2312",
    "GB18030": "gb18030",
    "GBK": "gbk",
}
"""By the number in `ISO_IR 100` and `ISO 2022 IR 100`, or the name of what has none."""

NUMBER = re.compile(r"(?:ISO_IR|ISO 2022 IR) ?")

ESCAPES = {
    b"\x1b-A": PLAIN,
    b"\x1b-B": "iso8859-2",
    b"\x1b-C": "iso8859-3",
    b"\x1b-D": "iso8859-4",
    b"\x1b-L": "iso8859-5",
    b"\x1b-G": "iso8859-6",
    b"\x1b-F": "iso8859-7",
    b"\x1b-H": "iso8859-8",
    b"\x1b-M": "iso8859-9",
    b"\x1b-b": "iso8859-15",
    b"\x1b-T": "tis-620",
    b"\x1b)I": "shift_jis",
    b"\x1b(J": "shift_jis",
    b"\x1b$)C": "euc_kr",
    b"\x1b$)A": "gb2312",
}
"""What bytes are from there on."""

ESCAPES_OF_CODEC = {b"\x1b$B": "iso2022_jp", b"\x1b$@": "iso2022_jp", b"\x1b$(D": "iso2022_jp_2"}
"""Those that Python's own codecs want to see."""

TO_ASCII = b"\x1b(B"
PARTS = re.compile(b"(?=\x1b)")

KEEP_APART = "raysegment.keep_apart"
"""How bytes are decoded that are no text: as a sign for it and their number. A backslash would part values."""


def _number_bytes(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeDecodeError):
        raise error
    return "\ufffd" + error.object[error.start : error.end].hex(), error.end


codecs.register_error(KEEP_APART, _number_bytes)


def find_encoding(declared: Sequence[str]) -> str:
    """The encoding in which texts begin.

    Args:
        declared: The values of SpecificCharacterSet. The first one may be empty, which is ASCII, before others that
            escapes in the texts switch to.
    """
    known = (ENCODINGS.get(NUMBER.sub("", text)) for text in declared)
    return next((encoding for encoding in known if encoding), PLAIN)


def decode_text(value: bytes, encoding: str) -> str:
    """The text of an element.

    Bytes that are no text stay apart, so that two identifiers never become one.

    Args:
        value: Its bytes.
        encoding: Of those before the first escape.
    """
    if b"\x1b" not in value:
        return value.decode(encoding, KEEP_APART)
    return "".join(_decode_part(part, encoding) for part in PARTS.split(value))


def _decode_part(part: bytes, encoding: str) -> str:
    """What stands between two escapes, from the first of them on."""
    for escape, switched in ESCAPES_OF_CODEC.items():
        if part.startswith(escape):
            return part.decode(switched, KEEP_APART)
    for escape, switched in ESCAPES.items():
        if part.startswith(escape):
            return part[len(escape) :].decode(switched, KEEP_APART)
    return part.removeprefix(TO_ASCII).decode(encoding, KEEP_APART)
