"""The cohort file: which scans are segmented again and again, with which model, and where the results go."""

from __future__ import annotations

import typing
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any

from raysegment.archive.filesystem import check_regular, is_uri
from raysegment.archive.marked_yaml import MarkedList, MarkedMapping, read_marked
from raysegment.archive.names import show_name, show_value
from raysegment.archive.selection import Condition, parse_condition
from raysegment.choices import (
    check_value,
    convert_value,
    is_repeated,
    option_name,
    suggest,
    type_name,
    unwrap_optional,
)
from raysegment.errors import AccessError, UsageError
from raysegment.options import CohortOptions, InferOptions
from raysegment.store.review_rule import check_limit

MAX_BYTES = 2**20
PATHS = ("source", "model", "out")
NOT_OF_FILES = frozenset({"model", "source", "out", "limit", "retry_failed", "address", "temp_dir", "json"})
"""Choices of `infer` that the run itself makes."""

_OTHER_KEYS = {
    "infer": "options of `infer`, such as `mirror: columns`",
    "review": "conditions and limits, such as `mirror_dice_below: 0.85`",
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
        review: Limits over those of the bundle's rule, by condition, see `store/review_rule`.
    """

    file: Path
    chosen: CohortOptions
    where: tuple[Condition, ...]
    infer: dict[str, Any]
    review: dict[str, Any]

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
        check_regular(str(file), path)
        if file.stat().st_size > MAX_BYTES:
            raise UsageError(f"{path} has more than {MAX_BYTES} bytes; expected a cohort file.")
        data = file.read_bytes()
    except (OSError, AccessError) as error:
        cause = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise UsageError(f"the cohort file {path} cannot be read: {cause}.") from None
    known = {item.name: item for item in fields(CohortOptions)}
    hints = typing.get_type_hints(CohortOptions)
    values: dict[str, Any] = {}
    where: tuple[Condition, ...] = ()
    infer: dict[str, Any] = {}
    review: dict[str, Any] = {}
    seen: set[str] = set()
    for key, line, value in read_marked(data, path, EXPECTED):
        place = f"{path}, line {line}"
        if key in seen:
            raise UsageError(f"{place}: {show_name(key)} stands there twice.")
        seen.add(key)
        if key == "where":
            where = _read_where(value, path, line)
        elif key == "infer":
            infer = _read_infer(value, path, line)
        elif key == "review":
            review = _read_review(value, path, line)
        elif key in known:
            values[key] = _check(known[key], hints[key], value, place)
        else:
            raise UsageError(f"{place}: unknown key {show_name(key)!r}; {_suggest_key(key, known, hints)}")
    if missing := [name for name, item in known.items() if item.default is MISSING and name not in values]:
        raise UsageError(f"{path}: {missing[0]} is missing: {known[missing[0]].metadata['help']}.")
    if not values["name"].isprintable():
        raise UsageError(f"{path}: name is {show_value(values['name'])}; expected text that can be printed on a line.")
    try:
        values |= {name: _locate(values[name], file.parent) for name in PATHS}
        cohort = Cohort(file, CohortOptions(**values), where, infer, review)
        cohort.make_options(cohort.chosen.out)
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from None
    return cohort


def _check(item: Any, hint: Any, value: Any, place: str) -> Any:
    if value is None or value in ("", []):
        said = "has no value" if value is None else "is empty"
        raise UsageError(
            f"{place}: {item.name} {said}; give it a value ({item.metadata['help']}) or leave the line out."
        )
    converted = convert_value(hint, value)
    if isinstance(converted, list):
        converted = tuple(converted)
    try:
        check_value(item, hint, converted)
    except UsageError as error:
        said = str(error).replace(option_name(item.name), item.name, 1)
        quotes = " Text that looks like a number goes into quotes." if _is_unquoted(hint, converted) else ""
        raise UsageError(f"{place}: {said}{quotes}") from None
    return converted


def _is_unquoted(hint: Any, value: Any) -> bool:
    """Whether YAML may have made something else of what was meant as text."""
    is_text = is_repeated(unwrap_optional(hint)[0]) or hint is str
    items = value if isinstance(value, tuple) else (value,)
    return is_text and not any(isinstance(item, dict | list) for item in items)


def _read_where(value: Any, path: str, line: int) -> tuple[Condition, ...]:
    if not isinstance(value, MarkedList):
        raise UsageError(f"{path}, line {line}: where is {show_value(value)}; expected {_OTHER_KEYS['where']}.")
    items = zip(value, value.lines, strict=True)
    return tuple(parse_condition(item, f"{path}, line {at}: where") for item, at in items)


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


def _read_infer(value: Any, path: str, line: int) -> dict[str, Any]:
    """Choices of `infer`, each checked alone."""
    known = {item.name: item for item in fields(InferOptions) if item.name not in NOT_OF_FILES}
    if not isinstance(value, MarkedMapping):
        raise UsageError(f"{path}, line {line}: infer is {show_value(value)}; expected {_OTHER_KEYS['infer']}.")
    hints = typing.get_type_hints(InferOptions)
    found: dict[str, Any] = {}
    for key, given in value.items():
        place, name = f"{path}, line {value.lines[key]}", str(key).replace("-", "_")
        if name in NOT_OF_FILES:
            raise UsageError(f"{place}: {name} of infer is chosen by the run itself, or at the file's left edge.")
        if name not in known:
            raise UsageError(f"{place}: unknown key {show_name(str(key))!r} of infer; {suggest(name, known)}")
        if name in found:
            raise UsageError(f"{place}: {name} of infer stands there twice.")
        found[name] = _check(known[name], hints[name], given, f"{place}: infer")
    return found


def _read_review(value: Any, path: str, line: int) -> dict[str, Any]:
    """Limits over those of the bundle's rule; null takes a condition away."""
    if not isinstance(value, MarkedMapping) or not value:
        raise UsageError(f"{path}, line {line}: review is {show_value(value)}; expected {_OTHER_KEYS['review']}.")
    for key, limit in value.items():
        check_limit(str(key), limit, f"{path}, line {value.lines[key]}: review")
    return {str(key): dict(limit) if isinstance(limit, dict) else limit for key, limit in value.items()}


def _locate(value: str, folder: Path) -> str:
    """A path as it is meant: relative ones start from the cohort file's folder."""
    try:
        return value if is_uri(value) else str(folder / Path(value).expanduser())
    except RuntimeError:
        raise UsageError(f"{show_name(value)}: there is no such user's folder; write the whole path.") from None
