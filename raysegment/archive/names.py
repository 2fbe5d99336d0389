"""File names as text: how they are shown, sorted and cut; `filesystem` brings them from the file system and back."""

from __future__ import annotations

import os
import re
import reprlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager

ESCAPE_BASE = 0x10FE00
"""A byte b that is no UTF-8 becomes the private-use character ESCAPE_BASE + b, which Arrow and Parquet can hold."""

TO_ESCAPE = re.compile("[\ud800-\udfff\U0010fe80-\U0010feff]")
"""Bytes that are no UTF-8, as Python has them in names, and the characters that stand for them."""

PACKED = ".nii.gz"
"""The one extension that has two dots."""

SEALED_SOURCE = "pseudonymised:"
"""What the sources of `sealed` begin with."""

_SEALED = re.compile(r"(?<![0-9a-f])([0-9a-f]{16})~[A-Za-z0-9_-]*")
_HIDING: list[Callable[[str], str]] = []
_NUMBERS = re.compile(r"(\d+)")


def show_name(text: str) -> str:
    """A name on one line, for messages: what cannot be printed is escaped, what is sealed left out."""
    text = drop_seals(text)
    if _HIDING and not text.startswith(SEALED_SOURCE):
        text = _HIDING[-1](text)
    return escape_name(text)


def escape_name(text: str) -> str:
    """A name on one line; what cannot be printed is escaped."""
    return "".join(
        character if character.isprintable() and not TO_ESCAPE.match(character) else _escape(character)
        for character in text
    )


def drop_seals(text: str) -> str:
    """A text without what is sealed in names of `sealed`: their hashes are left."""
    return _SEALED.sub(r"\1", text) if "~" in text else text


@contextmanager
def hide_names(hide: Callable[[str], str]) -> Iterator[None]:
    """While the block runs, `show_name` shows what a function makes of each name."""
    _HIDING.append(hide)
    try:
        yield
    finally:
        _HIDING.pop()


def show_value(value: object) -> str:
    """What a file holds instead of what was expected, for messages: the beginning of what is long."""
    return _SHORT.repr(value)


def natural_key(name: str) -> tuple[tuple[int, int | str], ...]:
    """Sort key that puts `_2` before `_10`."""
    pieces = _NUMBERS.split(name)
    return tuple((0, int(piece)) if piece.isdecimal() else (1, piece) for piece in pieces if piece)


def extension_of(name: str) -> str:
    """Extension in lower case with its dot, empty where there is none; `.nii.gz` is one."""
    extension = os.path.splitext(name)[1].lower()
    return PACKED if extension == ".gz" and name.lower().endswith(PACKED) else extension


def stem_of(path: str) -> str:
    """File name without folders and extension."""
    name = path.rpartition("/")[2]
    extension = extension_of(name)
    return name[: len(name) - len(extension)]


class _Short(reprlib.Repr):
    """Shortens numbers too whose digits Python refuses to write."""

    def repr_int(self, x: int, level: int) -> str:
        return repr(x) if abs(x) < 10**20 else "a number of more than 20 digits"


_SHORT = _Short()


def _escape(character: str) -> str:
    code = ord(character)
    if 0 <= code - ESCAPE_BASE < 256:
        return f"\\x{code - ESCAPE_BASE:02x}"
    return character.encode("unicode_escape").decode("ascii")
