"""Whose an output folder is: what makes two runs the same run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from raysegment.archive.own_folders import RECORD_FILE
from raysegment.choices import changed_result, earlier_choices, hash_choices
from raysegment.errors import UsageError
from raysegment.runs.console import LOG_FILE
from raysegment.runs.lock import LOCK_FILE
from raysegment.runs.record import as_json, read_record
from raysegment.store.place import Place
from raysegment.store.publish import read_rows
from raysegment.store.schema import SCHEMAS

INFERENCE_NAMES = frozenset({*SCHEMAS, RECORD_FILE, "summary.json", "figures", "trajectories", LOG_FILE, LOCK_FILE})
"""What `infer` and `evaluate` leave in their folder."""

TRAINING_NAMES = frozenset(
    {"checkpoints", "manifest.parquet", "history.parquet", "model", "tensorboard", "figures"}
    | {"folds", "out_of_fold", "held_out"}
    | {RECORD_FILE, LOG_FILE, LOCK_FILE}
)
"""What `train` leaves in its folder."""

COMPARISON_NAMES = frozenset({"changes", RECORD_FILE, "summary.json", "figures", LOG_FILE, LOCK_FILE})
"""What `compare` leaves in its folder."""

SEARCH_NAMES = frozenset(
    {"trials", "trials.parquet", "split.json", "best.yaml", "best", "figures"} | {RECORD_FILE, LOG_FILE, LOCK_FILE}
)
"""What `tune` leaves in its folder, and the run of its best options."""

OWN_NAMES = {
    "compare": COMPARISON_NAMES,
    "infer": INFERENCE_NAMES,
    "evaluate": INFERENCE_NAMES,
    "measure": INFERENCE_NAMES,
    "train": TRAINING_NAMES,
    "tune": SEARCH_NAMES,
}


@dataclass(frozen=True, kw_only=True)
class Identity:
    """What must be the same for a run to go on in a folder.

    Attributes:
        command: The verb.
        facts: What else must be equal, such as `model_id` or `data_id`; where run.json has none, as an older version
            wrote it, the options as chosen tell.
        choices: The choices that change the result.
        defaults: What an older version meant that did not have a choice.
        key: Where run.json has the choices.
    """

    command: str
    facts: Mapping[str, str | None]
    choices: Mapping[str, Any]
    defaults: Mapping[str, Any]
    key: str

    @property
    def record(self) -> dict[str, Any]:
        """The same as run.json has it."""
        return {"command": self.command, **self.facts, self.key: dict(self.choices)}

    @property
    def options_id(self) -> str:
        """SHA-256 over the choices that change the result."""
        return hash_choices(dict(self.choices))

    def open(self, place: Place) -> dict[str, Any]:
        """The record of a folder whose run goes on, or a new one.

        Raises:
            UsageError: The folder holds a run with another identity, and the message names the differences; or no run,
                but something else than what one leaves.
        """
        record = read_record(place)
        if record:
            self.check(place, record)
        if not record.get("status"):
            self.check_foreign(place)
        return {**record, **self.record}

    def check(self, place: Place, record: Mapping[str, Any]) -> None:
        """Refuse a folder that another command, or the same with other choices, wrote.

        Raises:
            UsageError: Names the differences.
        """
        if record.get("command") != self.command:
            raise UsageError(
                f"--out {place.location} holds a run of `{record.get('command')}`, not of `{self.command}`. "
                "Choose another --out."
            )
        assumed = as_json(dict(self.defaults))
        now = assumed | as_json({**self.facts, **self.choices})
        known = {**(record.get("chosen") or {}), **record}
        before = assumed | as_json({name: known.get(name) for name in self.facts}) | (record.get(self.key) or {})
        changed = [_describe_change(name, before.get(name), now[name]) for name in now if before.get(name) != now[name]]
        if changed:
            raise UsageError(
                f"--out {place.location} holds a run with other choices: {'; '.join(changed)}. Choose another --out."
            )

    def check_foreign(self, place: Place) -> None:
        """Refuse a folder without run.json that holds something else than what a run leaves.

        Raises:
            UsageError: Names what is there.
        """
        own = OWN_NAMES[self.command]
        foreign = [name for name in place.list_names() if name not in own and not name.startswith(("_", "."))]
        if foreign:
            raise UsageError(
                f"--out {place.location} is not empty and no raysegment output: it holds {foreign[0]!r}. "
                "Choose another --out."
            )

    def check_rows(self, place: Place) -> None:
        """Where run.json was lost, the rows tell whose the tables are: refuse those of another model or other choices.

        Raises:
            UsageError: Names both.
        """
        rows = read_rows(place, "scans", ["model_id", "options_id"])
        if not rows.num_rows:
            return
        models, choices = (set(rows[name].unique().to_pylist()) for name in ("model_id", "options_id"))
        if models != {self.facts["model_id"]}:
            raise UsageError(
                f"--out {place.location} has tables of model {', '.join(sorted(map(str, models)))}; this one is "
                f"{self.facts['model_id']}. Choose another --out."
            )
        if choices != {self.options_id}:
            raise UsageError(
                f"--out {place.location} has tables written with other choices, and {RECORD_FILE}, which would name "
                f"them, is lost: options_id was {', '.join(sorted(map(str, choices)))}, is {self.options_id}. Give the "
                "same options, --precision included, or choose another --out."
            )


def identify(command: str, options: Any, *, key: str, **facts: str | None) -> Identity:
    """The identity of a run with these options."""
    choices, defaults = changed_result(options), earlier_choices(options)
    return Identity(command=command, facts=facts, choices=choices, defaults=defaults, key=key)


def _describe_change(name: str, before: Any, now: Any) -> str:
    if name == "data_id":
        return "the scans, their files or their split changed"
    return f"{name} was {before}, is {now}"
