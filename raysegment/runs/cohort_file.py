"""The cohort file: which scans are segmented again and again, with which model, and where the results go."""

from __future__ import annotations

import typing
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any

from raysegment.archive.filesystem import is_uri
from raysegment.archive.marked_yaml import MarkedMapping, read_marked
from raysegment.archive.names import show_name
from raysegment.archive.selection import Condition, parse_condition
from raysegment.choices import check_value, convert_value, option_name, suggest, type_name, unwrap_optional
from raysegment.errors import UsageError
from raysegment.options import CohortOptions, InferOptions

MAX_BYTES = 2**20
PATHS = ("source", "model", "out")
NOT_OF_FILES = frozenset({"model", "source", "out", "limit", "retry_failed", "address", "temp_dir", "json"})
"""Choices of `infer` that the run itself makes."""

_OTHER_KEYS = {
    "infer": "options of `infer`, such as `mirror: columns`",
    "where": "a list of [column, operator, value]",
}

EXPECTED = "keys; expected lines such as `name: …`, `source: …`, `model: …`, `out: …`"


@dataclass(frozen=True)
class Cohort:
    """A cohort file that was read.

    Attributes:
        file: Where it lies.
        chosen: Its plain keys.
        where: Conditions on columns of the manifest.
        infer: Choices of `infer`, by name.
    """

    file: Path
    chosen: CohortOptions
    where: tuple[Condition, ...]
    infer: dict[str, Any]

    def make_options(self, out: str, **general: Any) -> InferOptions:
        """The choices of one run of `infer` on the cohort.

        Raises:
            UsageError: A choice has a value that does not go with another one.
        """
        return InferOptions(model=self.chosen.model, source=self.chosen.source, out=out, **general, **self.infer)


def read_cohort(path: str) -> Cohort:
    """Read a cohort file.

    Raises:
        UsageError: It cannot be read, or names the line, the key and what is allowed.
    """
    file = Path(path).absolute()
    try:
        if file.stat().st_size > MAX_BYTES:
            raise UsageError(f"{path} has more than {MAX_BYTES} bytes; expected a cohort file.")
        data = file.read_bytes()
    except OSError as error:
        raise UsageError(f"the cohort file {path} cannot be read: {error.strerror}.") from None
    known = {item.name: item for item in fields(CohortOptions)}
    hints = typing.get_type_hints(CohortOptions)
    values: dict[str, Any] = {}
    where: tuple[Condition, ...] = ()
    infer: dict[str, Any] = {}
    seen: set[str] = set()
    for key, line, value in read_marked(data, path, EXPECTED):
        place = f"{path}, line {line}"
        if key in seen:
            raise UsageError(f"{place}: {show_name(key)} stands there twice.")
        seen.add(key)
        if key == "where":
            where = _read_where(value, place)
        elif key == "infer":
            infer = _read_infer(value, place, path)
        elif key in known:
            values[key] = _check(known[key], hints[key], value, place)
        else:
            raise UsageError(f"{place}: unknown key {show_name(key)!r}; {_suggest_key(key, known, hints)}")
    if missing := [name for name, item in known.items() if item.default is MISSING and name not in values]:
        raise UsageError(f"{path}: {missing[0]} is missing: {known[missing[0]].metadata['help']}.")
    values |= {name: _locate(values[name], file.parent) for name in PATHS}
    return Cohort(file, CohortOptions(**values), where, infer)


def _check(item: Any, hint: Any, value: Any, place: str) -> Any:
    converted = convert_value(hint, value)
    if isinstance(converted, list):
        converted = tuple(converted)
    try:
        check_value(item, hint, converted)
    except UsageError as error:
        raise UsageError(f"{place}: {str(error).replace(option_name(item.name), item.name, 1)}") from None
    return converted


def _read_where(value: Any, place: str) -> tuple[Condition, ...]:
    if not isinstance(value, list):
        raise UsageError(f"{place}: where is {value!r}; expected a list of [column, operator, value].")
    return tuple(parse_condition(item, f"{place}: where") for item in value)


def _suggest_key(key: str, known: dict[str, Any], hints: dict[str, Any]) -> str:
    """What may stand there instead: where one key is near also what it holds."""
    said = suggest(key, [*known, *_OTHER_KEYS])
    near = said.removeprefix("did you mean ").removesuffix("?")
    if near in _OTHER_KEYS:
        return f"did you mean {near} ({_OTHER_KEYS[near]})?"
    if near not in known:
        return said
    kind = type_name(unwrap_optional(hints[near])[0])
    return f"did you mean {near} ({kind}: {known[near].metadata['help']})?"


def _read_infer(value: Any, place: str, path: str) -> dict[str, Any]:
    """Choices of `infer`, each checked alone."""
    known = {item.name: item for item in fields(InferOptions) if item.name not in NOT_OF_FILES}
    if not isinstance(value, MarkedMapping):
        raise UsageError(f"{place}: infer is {value!r}; expected options of `infer`, such as `mirror: columns`.")
    hints = typing.get_type_hints(InferOptions)
    found = {}
    for key, given in value.items():
        name, line = str(key).replace("-", "_"), f"{path}, line {value.lines[key]}"
        if name in NOT_OF_FILES:
            raise UsageError(f"{line}: {name} of infer is chosen by the run itself, or at the file's left edge.")
        if name not in known:
            raise UsageError(f"{line}: unknown key {show_name(str(key))!r} of infer; {suggest(name, known)}")
        found[name] = _check(known[name], hints[name], given, f"{line}: infer")
    return found


def _locate(value: str, folder: Path) -> str:
    """A path as it is meant: relative ones start from the cohort file's folder."""
    return value if is_uri(value) else str(folder / Path(value).expanduser())
