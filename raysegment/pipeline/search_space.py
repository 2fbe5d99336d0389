"""SPACE.yaml: which options of `train` a search varies, and how, which are fixed, and choices of the search itself.

source: archive
recipe: lgg-best
epochs: 12
trials: 20
space:
  learning_rate: {log_range: [0.0003, 0.003]}
  filters: {choice: [12, 16, 24]}
"""

from __future__ import annotations

import math
import typing
from collections.abc import Iterator, Mapping
from dataclasses import Field, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, NoReturn

import yaml

from raysegment.archive.filesystem import is_uri
from raysegment.archive.pseudonymise import hide_source
from raysegment.choices import check_value, convert_value, load_options, read_recipe, suggest, unwrap_optional
from raysegment.errors import UsageError
from raysegment.options import CommandOptions, SearchOptions, TrainOptions

Kind = Literal["choice", "range", "log_range"]

OF_THE_COMMAND = frozenset({"out", *(item.name for item in fields(CommandOptions))})
"""Options of `train` that are for the command line of `tune`."""

OF_ONE_RUN = frozenset({"folds", "ensemble"})
"""Options of `train` that make several runs of one; a trial is one, with one split."""

OF_THE_DATA = frozenset(
    {"source", "split_file", "train_fraction", "val_fraction", "channel", "reference"}
    | {"scan_pattern", "patient_pattern", "label", "labels"}
)
"""Options that say what is learned and judged by: trials could not be compared if they differed."""

OF_THE_TIME = frozenset({"epochs", "max_minutes", "early_stopping"})
"""How long a trial learns: trials are compared at the same epoch of equally long schedules."""

FILES = frozenset({"split_file", "init_from", "encoder_weights"})
"""Options that name a file or a folder."""

MAY_VARY = frozenset(
    {item.name for item in fields(TrainOptions) if item.metadata["affects_result"]} | {"precision"}
) - (OF_ONE_RUN | OF_THE_DATA | OF_THE_TIME | FILES)
"""Options that trials may differ in: all that change the result."""

MAX_COMBINATIONS = 10**9


@dataclass(frozen=True, kw_only=True)
class Varied:
    """One option that differs between trials.

    Attributes:
        name: Field of TrainOptions.
        kind: How its values are drawn.
        values: The choices, or the two ends, both of which may be drawn.
        is_integer: Whether only whole numbers are drawn.
    """

    name: str
    kind: Kind
    values: tuple[Any, ...]
    is_integer: bool = False

    def __str__(self) -> str:
        """In a user's words."""
        if self.kind == "choice":
            return f"choice of {', '.join(map(str, self.values))}"
        return f"{self.kind} {self.values[0]} to {self.values[1]}"

    @property
    def num_values(self) -> int | None:
        """How many values there are; None where they are without number."""
        if self.kind == "choice":
            return len(self.values)
        return int(self.values[1] - self.values[0] + 1) if self.is_integer else None


@dataclass(frozen=True, kw_only=True)
class SearchPlan:
    """What SPACE.yaml says.

    Attributes:
        source: Scans and references.
        recipe: What the fixed options and the varied ones change; None for the defaults.
        fixed: Options of `train` that are the same for all trials.
        space: Those that vary.
        search: Choices of the search itself.
    """

    source: str
    recipe: str | None
    fixed: Mapping[str, Any]
    space: tuple[Varied, ...]
    search: SearchOptions

    def make_options(self, drawn: Mapping[str, Any], **given: Any) -> TrainOptions:
        """The options of one trial; what was drawn, but does nothing beside the others, is left out.

        Args:
            drawn: A value for each varied option.
            given: What the command decides: `out`, `split_file`, `address`.

        Raises:
            UsageError: They do not go together.
        """
        varied = {item.name for item in self.space}
        rules = {item.name: item.metadata["only_with"] for item in fields(TrainOptions)}
        may_idle = {name for name in self.fixed if rules[name] and rules[name][0] in varied}
        # The split is drawn once: trials get the file.
        drawing = {"train_fraction", "val_fraction"} if given.get("split_file") else set()
        strict = {name: value for name, value in self.fixed.items() if name not in may_idle | drawing}
        soft = {name: self.fixed[name] for name in may_idle} | dict(drawn)
        options: TrainOptions = load_options(
            TrainOptions, {**strict, "source": self.source, **given}, recipe=self.recipe, drawn=soft
        )
        return hide_source(options)

    @property
    def seed(self) -> int:
        """Seed of what is drawn, and of the split."""
        return int(self._known("seed"))

    @property
    def epochs(self) -> int:
        """Epochs of a trial that is not stopped."""
        return int(self._known("epochs"))

    @property
    def mlflow_uri(self) -> str | None:
        """The MLflow server that search and trials are shown on."""
        return self.fixed.get("mlflow_uri")

    @property
    def identity(self) -> dict[str, Any]:
        """What must be the same for a search to go on, as run.json has it."""
        changes = {item.name for item in fields(TrainOptions) if item.metadata["affects_result"]} | OF_THE_TIME
        changes.add("precision")
        same = read_recipe(self.recipe) if self.recipe else {}
        same = {**same, **self.fixed}
        varied = {f"space.{item.name}": str(item) for item in self.space}
        chosen = {name: same[name] for name in sorted(same) if name in changes and f"space.{name}" not in varied}
        chosen |= {"scheduler": self.search.scheduler} | varied
        if self.search.scheduler == "asha":
            chosen |= {"grace_epochs": self.search.grace_epochs, "reduction": self.search.reduction}
        return chosen

    def _known(self, name: str) -> Any:
        recipe = read_recipe(self.recipe) if self.recipe else {}
        return {"seed": 0, "epochs": TrainOptions.__dataclass_fields__["epochs"].default, **recipe, **self.fixed}[name]


def read_search_plan(path: str) -> SearchPlan:
    """What SPACE.yaml says, checked; nothing is looked for and nothing is started.

    Raises:
        UsageError: Names the file, the line, the key, what stands there and what may.
    """
    return _Reader(path).read()


def count_combinations(space: tuple[Varied, ...]) -> int | None:
    """How many different trials a space has; None where they are without number."""
    counts = [item.num_values for item in space]
    return None if None in counts else min(MAX_COMBINATIONS, math.prod(count or 1 for count in counts))


class _Reader:
    """Reads one SPACE.yaml, and knows on which line each key stands."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.lines: dict[tuple[str, ...], int] = {}
        self.hints = typing.get_type_hints(TrainOptions)
        self.fields: dict[str, Field[Any]] = {item.name: item for item in fields(TrainOptions)}

    def read(self) -> SearchPlan:
        keys = self.load()
        own = {item.name for item in fields(SearchOptions)}
        for key in keys:
            self.check_key(key, own)
        source, space = keys.get("source"), keys.get("space")
        if not isinstance(source, str) or not source:
            self.refuse(("source",), f"source is {source!r}; expected a folder, manifest or bucket with references.")
        recipe = keys.get("recipe")
        self.told(("recipe",), lambda: read_recipe(recipe) if recipe is not None else None)
        if not isinstance(space, dict) or not space:
            self.refuse(
                ("space",), "space must name at least one option, as `learning_rate: {log_range: [1e-4, 1e-2]}`."
            )
        varied = tuple(self.read_varied(name, rule) for name, rule in space.items())
        fixed = {key: value for key, value in keys.items() if key in self.fields and key != "source"}
        for name in fixed:
            if name in space:
                self.refuse(("space", name), f"{name} is both fixed (line {self.lines[name,]}) and varied; drop one.")
            fixed[name] = self.told((name,), lambda name=name: self.check(name, fixed[name]))
            if name in FILES and fixed[name] is not None and not is_uri(fixed[name]):
                # Trials run in processes that may be elsewhere.
                fixed[name] = str(Path(fixed[name]).absolute())
        search = self.read_search({key: value for key, value in keys.items() if key in own})
        plan = SearchPlan(
            source=source if is_uri(source) else str(Path(source).absolute()),
            recipe=recipe,
            fixed=fixed,
            space=varied,
            search=search,
        )
        self.check_plan(plan)
        return plan

    def load(self) -> dict[str, Any]:
        """The file's keys, with `_` for `-`."""
        try:
            text = Path(self.path).read_text(encoding="utf-8")
            node = yaml.compose(text, Loader=yaml.SafeLoader)
            loaded = yaml.safe_load(text)
        except FileNotFoundError:
            raise UsageError(f"{self.path} does not exist; expected a YAML file with `source` and `space`.") from None
        except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
            raise UsageError(f"{self.path} cannot be read as YAML: {' '.join(str(error).split())[:300]}") from None
        if not isinstance(loaded, dict):
            raise UsageError(f"{self.path} must hold `key: value` lines, such as `source` and `space`.")
        for keys, line in _list_keys(node):
            if keys in self.lines:
                self.refuse(keys, f"{'.'.join(keys)} is there twice; the first is on line {self.lines[keys]}.", line)
            self.lines[keys] = line
        space = loaded.get("space")
        if isinstance(space, dict):
            loaded["space"] = {_name(key): value for key, value in space.items()}
        return {_name(key): value for key, value in loaded.items()}

    def check_key(self, key: str, own: set[str]) -> None:
        """Refuse a key that has no meaning here."""
        if key in OF_THE_COMMAND:
            self.refuse((key,), f"{key} belongs to the command line: raysegment tune {self.path} --{key}.")
        if key in OF_ONE_RUN:
            self.refuse((key,), f"{key} makes several runs of one; a trial is one run, with one split.")
        known = {"recipe", "space", *own, *self.fields} - OF_THE_COMMAND - OF_ONE_RUN
        if key not in known:
            self.refuse((key,), f"unknown key {key!r}; {suggest(key, known)}")

    def read_search(self, given: dict[str, Any]) -> SearchOptions:
        """The choices of the search itself."""
        hints = typing.get_type_hints(SearchOptions)
        for item in fields(SearchOptions):
            if item.name in given:
                self.told((item.name,), lambda item=item: check_value(item, hints[item.name], given[item.name]))
        search: SearchOptions = self.told((), lambda: SearchOptions(**given))
        return search

    def read_varied(self, name: str, rule: Any) -> Varied:
        """One line of `space`."""
        where = ("space", name)
        if name in OF_THE_TIME:
            self.refuse(where, f"{name} must be the same for all trials, which are compared at the same epoch.")
        if name not in MAY_VARY:
            what = "unknown option" if name not in self.fields else "an option that cannot vary:"
            self.refuse(where, f"{what} {name!r}; those that may vary are {', '.join(sorted(MAY_VARY))}.")
        expected = "expected {choice: [value, …]}, {range: [low, high]} or {log_range: [low, high]}"
        if not isinstance(rule, dict) or len(rule) != 1:
            self.refuse(where, f"{name} is {rule!r}; {expected}.")
        kind, values = next(iter(rule.items()))
        kind = _name(kind)
        if kind not in typing.get_args(Kind) or not isinstance(values, list):
            self.refuse(where, f"{name} has {kind!r}: {values!r}; {expected}.")
        checked = tuple(self.told(where, lambda value=value: self.check(name, value)) for value in values)
        if kind == "choice":
            if len(checked) < 2 or len({repr(value) for value in checked}) < len(checked):
                self.refuse(where, f"choice has {values}; expected at least two values, each once.")
            return Varied(name=name, kind="choice", values=checked)
        return self.read_range(name, typing.cast(Kind, kind), checked)

    def read_range(self, name: str, kind: Kind, values: tuple[Any, ...]) -> Varied:
        """A range of numbers."""
        where, number = ("space", name), unwrap_optional(self.hints[name])[0]
        if number not in (int, float):
            self.refuse(where, f"{name} is no number, so it has no {kind}; expected {{choice: [value, …]}}.")
        if len(values) != 2 or None in values or not values[0] < values[1]:
            self.refuse(where, f"{kind} has {list(values)}; expected [low, high] with low below high.")
        if kind == "log_range" and values[0] <= 0:
            self.refuse(where, f"log_range begins at {values[0]}; expected a low end above 0.")
        return Varied(name=name, kind=kind, values=values, is_integer=number is int)

    def check(self, name: str, value: Any) -> Any:
        """A value as its option has it.

        Raises:
            UsageError: The option cannot have it.
        """
        converted = convert_value(self.hints[name], value)
        check_value(self.fields[name], self.hints[name], converted)
        return converted

    def check_plan(self, plan: SearchPlan) -> None:
        """Refuse what cannot be done as a whole."""
        search = plan.search
        if search.scheduler == "asha" and search.grace_epochs > plan.epochs:
            where = next((key for key in (("grace_epochs",), ("epochs",)) if key in self.lines), ())
            self.refuse(
                where,
                f"grace_epochs {search.grace_epochs} are more than the {plan.epochs} epochs of a trial: none would be "
                "stopped. Give fewer, more epochs, or scheduler: none.",
            )
        check_combinations(plan, search.trials, self.where(("trials",)))

    def told(self, keys: tuple[str, ...], make: Any) -> Any:
        """What `make` makes; a refusal is told with the place."""
        try:
            return make()
        except UsageError as error:
            raise UsageError(f"{self.where(keys)}: {error}") from None

    def where(self, keys: tuple[str, ...]) -> str:
        """File, line and key in words."""
        line = f", line {self.lines[keys]}" if keys in self.lines else ""
        return f"{self.path}{line}{': ' if keys[1:] else ''}{'.'.join(keys) if keys[1:] else ''}"

    def refuse(self, keys: tuple[str, ...], text: str, line: int | None = None) -> NoReturn:
        place = self.where(keys) if line is None else f"{self.path}, line {line}"
        raise UsageError(f"{place}: {text}")


def check_combinations(plan: SearchPlan, num_trials: int, where: str) -> None:
    """Refuse more trials than a space has different ones.

    Raises:
        UsageError: Names both numbers.
    """
    found = count_combinations(plan.space)
    if found is not None and num_trials > found:
        raise UsageError(
            f"{where}: {num_trials} trials, but the space has {found} combinations; give fewer trials, or a larger "
            "space."
        )


def with_trials(plan: SearchPlan, num_trials: int | None, path: str) -> SearchPlan:
    """The plan with the number of trials that the command line gives.

    Raises:
        UsageError: The space has fewer.
    """
    if num_trials is None:
        return plan
    check_combinations(plan, num_trials, f"{path}: --trials")
    return replace(plan, search=replace(plan.search, trials=num_trials))


def _list_keys(node: Any) -> Iterator[tuple[tuple[str, ...], int]]:
    """Keys of the file and of its `space`, each with its line; a key that is there twice comes twice."""
    for key, value in node.value:
        name = _name(key.value)
        yield (name,), key.start_mark.line + 1
        if name == "space" and isinstance(value, yaml.MappingNode):
            for inner, _ in value.value:
                yield (name, _name(inner.value)), inner.start_mark.line + 1


def _name(key: Any) -> str:
    return str(key).replace("-", "_")
