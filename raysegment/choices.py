"""What a choice is: a dataclass field with help, unit and range, its checks, and where its value comes from.

One loader merges: defaults < recipe < job file < command line.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import re
import types
import typing
from collections.abc import Collection, Container, Mapping
from dataclasses import MISSING, Field, asdict, dataclass, field, fields
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import yaml

from raysegment.errors import UsageError


class _MoreThanZero:
    """The numbers that switch something on."""

    def __contains__(self, value: object) -> bool:
        return isinstance(value, (int, float)) and value > 0


LARGEST_NUMBER = 10**18
"""No choice needs more, and what is larger fits no column of a table."""

MORE_THAN_ZERO = _MoreThanZero()


def choice(
    default: Any,
    help: str,
    *,
    unit: str = "",
    affects_result: bool = False,
    minimum: float | None = None,
    maximum: float | None = None,
    positional: bool = False,
    added: str = "",
    before: Any = MISSING,
    only_typed: bool = False,
    only_with: tuple[str, Container[Any]] | None = None,
) -> Any:
    """A dataclass field that carries what the command line and the checks need to know of it.

    `added` names the version with which a choice came whose default changes nothing: at its default it does not enter
    `options_id`, so that an upgrade alone makes no run another one. `before` is what versions without a choice did,
    where that is not its default; a choice added later does not enter `options_id` with it either. `only_with` names
    another field and its values without which a choice does nothing. `only_typed` choices run programs or hold secrets:
    they are taken from the command line, never from a file, and are not written beside the results.
    """
    metadata = {
        "help": help,
        "unit": unit,
        "affects_result": affects_result,
        "minimum": minimum,
        "maximum": maximum,
        "positional": positional,
        "added": added,
        "before": default if before is MISSING else before,
        "only_with": only_with,
        "only_typed": only_typed,
    }
    return field(default=default, metadata=metadata)


@dataclass(frozen=True, kw_only=True)
class Checked:
    """Base of all choices: refuses values outside a field's type, range or set of words, and those that do nothing."""

    def __post_init__(self) -> None:
        hints = typing.get_type_hints(type(self))
        for item in fields(self):
            if isinstance(value := getattr(self, item.name), list) and _is_tuple(hints[item.name]):
                object.__setattr__(self, item.name, tuple(value))
            check_value(item, hints[item.name], getattr(self, item.name))
        for item in fields(self):
            check_use(item, self)

    @property
    def typed(self) -> frozenset[str]:
        """Names of the choices that someone made, on the command line or in a job file; of options that were made in
        Python those that are not at their defaults."""
        changed = frozenset(item.name for item in fields(self) if getattr(self, item.name) != item.default)
        return frozenset(getattr(self, "_typed", changed))


def check_value(item: Field[Any], hint: Any, value: Any) -> None:
    """Refuse a value that its field cannot hold.

    Raises:
        UsageError: The value has the wrong type, is outside the range, or is not one of the words.
    """
    option = option_name(item.name)
    inner, optional = unwrap_optional(hint)
    if value is None:
        if optional:
            return
        raise UsageError(f"{option} must have a value.")
    if typing.get_origin(inner) is Literal:
        words = typing.get_args(inner)
        if value not in words:
            raise UsageError(f"{option} {value!r} is unknown; expected one of {', '.join(map(str, words))}.")
        return
    if not _is_of_type(value, inner):
        raise UsageError(f"{option} is {value!r}; expected {type_name(inner)}.")
    items = value if isinstance(value, tuple) else (value,)
    if any(isinstance(entry, int) and abs(entry) >= LARGEST_NUMBER for entry in items):
        raise UsageError(f"{option} is a number of more than 18 digits; expected a smaller one.")
    minimum, maximum = item.metadata.get("minimum"), item.metadata.get("maximum")
    numeric = isinstance(value, (int, float))
    if numeric and not (value == value and abs(value) != float("inf")):
        raise UsageError(f"{option} is {value}; expected a finite number.")
    if numeric and minimum is not None and value < minimum:
        raise UsageError(f"{option} is {value}; expected at least {minimum}.")
    if numeric and maximum is not None and value > maximum:
        raise UsageError(f"{option} is {value}; expected at most {maximum}.")


def check_use(item: Field[Any], options: Any) -> None:
    """Refuse a choice that does nothing beside another one; defaults, and what switches something off, never do.

    Raises:
        UsageError: Names both.
    """
    value = getattr(options, item.name)
    if not value or value == item.default or is_used(item, vars(options)):
        return
    other, _ = item.metadata["only_with"]
    raise UsageError(
        f"{show_choice(item.name, value)} does nothing beside {show_choice(other, getattr(options, other))}; "
        "leave one of them out."
    )


def is_used(item: Field[Any], values: Mapping[str, Any]) -> bool:
    """Whether a choice has an effect beside the other ones."""
    if item.metadata.get("only_with") is None:
        return True
    other, needed = item.metadata["only_with"]
    return values[other] in needed


def load_options(
    kind: type[Any],
    given: dict[str, Any],
    *,
    recipe: str | None = None,
    job: str | None = None,
    drawn: Mapping[str, Any] | None = None,
) -> Any:
    """Merge defaults < recipe < what a search drew < job file < what is given on the command line.

    What a recipe or a search chooses, but does nothing beside what the others choose, is left out.

    Args:
        kind: A class of options.
        given: What the user typed; None means not typed.
        recipe: Name of a recipe shipped with the package.
        job: Path of a YAML file with the same keys.
        drawn: What a search drew from a space.

    Raises:
        UsageError: Unknown recipe, key or value; the message names what is known.
    """
    values: dict[str, Any] = {}
    job_values = _read_yaml(Path(job), "--job") if job else {}
    recipe = recipe or job_values.pop("recipe", None)
    job_values.pop("recipe", None)
    if recipe:
        values.update(_checked_keys(kind, read_recipe(recipe), f"recipe {recipe}"))
    values.update(_checked_keys(kind, dict(drawn or {}), "space"))
    chosen = _checked_keys(kind, job_values, f"job file {job}")
    chosen = chosen | {key: value for key, value in given.items() if value is not None}
    values, idle = {item.name: item.default for item in fields(kind)} | values | chosen, set[str]()
    for item in fields(kind):
        # In order, since what is left out may itself be what another choice needs.
        if item.name not in chosen and not is_used(item, values):
            values[item.name] = item.default
            idle.add(item.name)
    values = {key: value for key, value in values.items() if value is not MISSING}
    for item in fields(kind):
        if item.default is MISSING and item.name not in values:
            name = item.name.upper() if item.metadata["positional"] else option_name(item.name)
            raise UsageError(f"{name} is missing: {item.metadata['help']}.")
    hints = typing.get_type_hints(kind)
    options = kind(**{key: convert_value(hints[key], value) for key, value in values.items()})
    object.__setattr__(options, "_typed", frozenset(chosen) | (set(drawn or {}) - idle))
    return options


def recipe_names() -> list[str]:
    """Names of the recipes shipped with the package."""
    folder = resources.files("raysegment") / "recipes"
    return sorted(item.name.removesuffix(".yaml") for item in folder.iterdir() if item.name.endswith(".yaml"))


def read_recipe(name: str) -> dict[str, Any]:
    """The choices of a recipe shipped with the package."""
    if name not in recipe_names():
        raise UsageError(f"--recipe {name!r} is unknown; expected one of {', '.join(recipe_names())}.")
    text = (resources.files("raysegment") / "recipes" / f"{name}.yaml").read_text(encoding="utf-8")
    return dict(yaml.safe_load(text))


def convert_value(hint: Any, value: Any) -> Any:
    """Bring a value from YAML or the command line to its field's type, where that loses nothing."""
    inner, _ = unwrap_optional(hint)
    if typing.get_origin(inner) is tuple and value is not None and not isinstance(value, tuple):
        number = typing.get_args(inner)[0]
        if number is str:
            return tuple(value) if isinstance(value, list) else (value,)
        items = value.split(",") if isinstance(value, str) else value if isinstance(value, list) else [value]
        try:
            return tuple(number(item) for item in items)
        except (TypeError, ValueError, OverflowError):
            return value
    if is_union(inner):
        return convert_value(typing.get_args(inner)[0], value)
    if isinstance(value, bool) or inner not in (int, float):
        return value
    if isinstance(value, str) or inner is float:
        try:
            return inner(value)
        except (TypeError, ValueError, OverflowError):
            return value
    return value


def changed_result(options: Any) -> dict[str, Any]:
    """The choices that change the result, by name.

    Those that came later are left out at their defaults, and where they say what was done before they came.
    """
    chosen = {item: getattr(options, item.name) for item in _fields_in_use(options)}
    return {
        item.name: value
        for item, value in chosen.items()
        if not (item.metadata.get("added") and value in (item.default, item.metadata["before"]))
    }


def earlier_choices(options: Any) -> dict[str, Any]:
    """What versions that did not have them did, for the choices that change the result, by name."""
    return {item.name: item.metadata["before"] for item in _fields_in_use(options)}


def hash_choices(choices: dict[str, Any]) -> str:
    """SHA-256 over choices, independent of their order."""
    return hashlib.sha256(json.dumps(choices, sort_keys=True, default=list).encode()).hexdigest()


def as_plain(options: Any) -> dict[str, Any]:
    """The choices as JSON can hold them."""
    return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(options).items()}


def pick(kind: type[Any], options: Any) -> Any:
    """The part of a command's options that another class holds, such as `pick(Preprocessing, train_options)`."""
    return kind(**{item.name: getattr(options, item.name) for item in fields(kind)})


def option_name(name: str) -> str:
    """A field's name as the user types it."""
    return "--" + name.replace("_", "-")


def show_choice(name: str, value: Any) -> str:
    """A choice as the user types it."""
    if isinstance(value, bool):
        return option_name(name) if value else option_name(f"no_{name}")
    return f"{option_name(name)} {value}"


def suggest(name: str, known: Collection[str]) -> str:
    """What to write instead of a name that is not known: the near ones, else all."""
    near = difflib.get_close_matches(name, known, n=3)
    return f"did you mean {' or '.join(near)}?" if near else f"known are {', '.join(sorted(known))}."


def hide_credentials(uri: str) -> str:
    """A URI without the name and password that stand before its host."""
    return re.sub(r"(?<=://)[^/?#]*@", "***@", uri)


def unwrap_optional(hint: Any) -> tuple[Any, bool]:
    """`X | None` as (X, True), any other type as (X, False)."""
    if is_union(hint):
        inner = [item for item in typing.get_args(hint) if item is not type(None)]
        return typing.Union[tuple(inner)], True  # noqa: UP007
    return hint, False


def is_repeated(hint: Any) -> bool:
    """Whether a choice is several texts: the option is given once for each, a job file has a list."""
    return typing.get_origin(hint) is tuple and typing.get_args(hint)[0] is str


def is_union(hint: Any) -> bool:
    """Whether a type is one of several."""
    return typing.get_origin(hint) in (typing.Union, types.UnionType)


def type_name(hint: Any) -> str:
    """A type in a user's words."""
    if is_repeated(hint):
        return "text, or a list of texts"
    if is_union(hint):
        return " or ".join(map(type_name, typing.get_args(hint)))
    if typing.get_origin(hint) is tuple:
        return f"{type_name(typing.get_args(hint)[0]).removeprefix('a ')}s with commas between"
    return {int: "a whole number", float: "a number", bool: "true or false", str: "text"}.get(hint, str(hint))


def _fields_in_use(options: Any) -> list[Field[Any]]:
    """The choices that change the result, without those that have no effect beside the others."""
    return [item for item in fields(options) if item.metadata.get("affects_result") and is_used(item, vars(options))]


def _is_tuple(hint: Any) -> bool:
    return typing.get_origin(unwrap_optional(hint)[0]) is tuple


def _is_of_type(value: Any, hint: Any) -> bool:
    if is_union(hint):
        return any(_is_of_type(value, kind) for kind in typing.get_args(hint))
    if typing.get_origin(hint) is tuple:
        item = typing.get_args(hint)[0]
        return isinstance(value, tuple) and all(_is_of_type(entry, item) for entry in value)
    if isinstance(value, bool):
        return hint is bool
    if hint is float:
        return isinstance(value, (int, float))
    return isinstance(value, hint)


def _read_yaml(path: Path, option: str) -> dict[str, Any]:
    try:
        loaded = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsageError(f"{option} {path} does not exist.") from None
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise UsageError(f"{option} {path} cannot be read as YAML: {' '.join(str(error).split())}") from None
    if not isinstance(loaded, dict):
        raise UsageError(f"{option} {path} must hold `key: value` lines, not {type(loaded).__name__}.")
    return {str(key).replace("-", "_"): value for key, value in loaded.items()}


def _checked_keys(kind: type[Any], values: dict[str, Any], where: str) -> dict[str, Any]:
    known = {item.name: item for item in fields(kind)}
    for key in values:
        if key not in known:
            of_files = [name for name, item in known.items() if not item.metadata.get("only_typed")]
            raise UsageError(f"{where}: unknown key {key!r}; {suggest(key, of_files)}")
        if known[key].metadata.get("only_typed"):
            raise UsageError(
                f"{where}: {key} is taken from the command line only, {option_name(key)}; whoever may write the file "
                "could run any program with it."
            )
    return values
