"""Writes the tables of options in README.md from the option classes: `python docs/write_options.py`."""

from __future__ import annotations

import re
import typing
from dataclasses import MISSING, Field, fields
from pathlib import Path
from typing import Any

from raysegment.choices import option_name, unwrap_optional
from raysegment.options import (
    CohortCheckOptions,
    CohortOptions,
    CommandOptions,
    CompareOptions,
    DemoOptions,
    EvaluateOptions,
    ExportOptions,
    IndexOptions,
    InferOptions,
    MeasureOptions,
    ReportOptions,
    ResegmentOptions,
    TrainOptions,
    TuneOptions,
)

README = Path(__file__).parent.parent / "README.md"
COMMANDS = {
    "demo": DemoOptions,
    "index": IndexOptions,
    "train": TrainOptions,
    "tune": TuneOptions,
    "infer": InferOptions,
    "evaluate": EvaluateOptions,
    "measure": MeasureOptions,
    "compare": CompareOptions,
    "export": ExportOptions,
    "report": ReportOptions,
    "resegment": ResegmentOptions,
    "cohort": CohortOptions,
    "cohort check": CohortCheckOptions,
}
NO_VALUE = "–"


def fill_tables(text: str) -> str:
    """The README with the tables between its `options` marks replaced by those of the option classes."""
    for command in COMMANDS:
        mark = re.compile(rf"(<!-- options {command} -->\n).*?(<!-- end -->)", re.DOTALL)
        text, found = mark.subn(lambda match, name=command: match[1] + make_table(name) + match[2], text)
        if found != 1:
            raise ValueError(f"README.md must hold `<!-- options {command} -->` … `<!-- end -->` once, not {found}x.")
    return text


def make_table(command: str) -> str:
    """Options of one command, those that all commands share last; `evaluate` only has what `infer` has not."""
    kind = COMMANDS[command]
    hints = typing.get_type_hints(kind)
    shared = {item.name for item in fields(CommandOptions)}
    left_out = {item.name for item in fields(InferOptions)} if command == "evaluate" else set()
    chosen = [item for item in fields(kind) if item.name not in left_out and not item.metadata["positional"]]
    chosen.sort(key=lambda item: (item.name != "out", item.name in shared))
    rows = [make_row(item, hints[item.name]) for item in chosen]
    if kind is CohortOptions:
        keys = [
            row.replace(f"`{option_name(item.name)}`", f"`{item.name}`", 1)
            for row, item in zip(rows, chosen, strict=True)
        ]
        return "\n".join(["| key | default | what it says |", "|---|---|---|", *keys, ""])
    return "\n".join(["| option | default | what it does |", "|---|---|---|", *rows, ""])


def make_row(item: Field[Any], hint: Any) -> str:
    """One line of a table."""
    inner, _ = unwrap_optional(hint)
    name = option_name(item.name)
    words = typing.get_args(inner) if typing.get_origin(inner) is typing.Literal else ()
    shown = f"`{name}`, `--no-{name[2:]}`" if inner is bool else f"`{name}`"
    unit = f" ({item.metadata['unit']})" if item.metadata["unit"] else ""
    values = f": {', '.join(f'`{word}`' for word in words)}" if words else ""
    return f"| {shown} | {show_default(item)} | {item.metadata['help']}{values}{unit} |"


def show_default(item: Field[Any]) -> str:
    """A default as the tables show it."""
    if item.default is MISSING:
        return "required"
    if item.default is None:
        return NO_VALUE
    return {True: "on", False: "off"}[item.default] if isinstance(item.default, bool) else f"`{item.default}`"


if __name__ == "__main__":
    README.write_text(fill_tables(README.read_text(encoding="utf-8")), encoding="utf-8")
