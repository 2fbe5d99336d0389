"""File names as text: any name a file system may hold goes through tables and messages and back."""

from __future__ import annotations

import os
import re

ESCAPE_BASE = 0x10FE00
"""A byte b that is no UTF-8 becomes the private-use character ESCAPE_BASE + b, which Arrow and Parquet can hold."""

_TO_ESCAPE = re.compile("[\ud800-\udfff\U0010fe80-\U0010feff]")
_ESCAPED = re.compile("[\U0010fe80-\U0010feff]+")
_NUMBERS = re.compile(r"(\d+)")


def encode_name(name: str) -> str:
    """A name from the file system as valid Unicode; `decode_name` is its exact inverse."""
    if name.isascii():
        return name
    return _TO_ESCAPE.sub(lambda found: "".join(chr(ESCAPE_BASE + byte) for byte in os.fsencode(found[0])), name)


def decode_name(text: str) -> str:
    """The file system's name for a text that `encode_name` made."""
    if text.isascii():
        return text
    raw = b"".join(
        bytes(ord(character) - ESCAPE_BASE for character in piece) if _ESCAPED.fullmatch(piece) else os.fsencode(piece)
        for piece in re.split(f"({_ESCAPED.pattern})", text)
    )
    return os.fsdecode(raw)


def show_name(text: str) -> str:
    """A name on one line, for messages: what cannot be printed is escaped."""
    return "".join(
        character if character.isprintable() and not _TO_ESCAPE.match(character) else _escape(character)
        for character in text
    )


def natural_key(name: str) -> tuple[tuple[int, int | str], ...]:
    """Sort key that puts `_2` before `_10`."""
    pieces = _NUMBERS.split(name)
    return tuple((0, int(piece)) if piece.isdecimal() else (1, piece) for piece in pieces if piece)


def extension_of(name: str) -> str:
    """Extension in lower case with its dot, empty where there is none."""
    return os.path.splitext(name)[1].lower()


def stem_of(path: str) -> str:
    """File name without folders and extension."""
    return os.path.splitext(path.rpartition("/")[2])[0]


def _escape(character: str) -> str:
    code = ord(character)
    if 0 <= code - ESCAPE_BASE < 256:
        return f"\\x{code - ESCAPE_BASE:02x}"
    return character.encode("unicode_escape").decode("ascii")
