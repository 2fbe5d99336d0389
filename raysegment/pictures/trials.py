"""The trials of a search: validation Dice against each option that varied."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from raysegment.pictures.style import BLUE, GREY, VERMILLION, open_figure, shorten

PANELS_IN_A_ROW = 3
SPREAD = 0.18
"""How far dots of one choice are moved apart, in choices."""


@dataclass(frozen=True, kw_only=True)
class Axis:
    """An option that varied.

    Attributes:
        name: As the user types it.
        kind: How its values were drawn.
        values: The choices, or the two ends of the range.
    """

    name: str
    kind: Literal["choice", "range", "log_range"]
    values: tuple[Any, ...]


@dataclass(frozen=True, kw_only=True)
class TrialDot:
    """A trial.

    Attributes:
        trial: Its name.
        is_done: Whether it came to its end.
        dice: Validation Dice.
        drawn: Value of each option; None where it did nothing.
    """

    trial: str
    is_done: bool
    dice: float
    drawn: Mapping[str, Any]


def draw_trials(
    dots: Sequence[TrialDot], axes: Sequence[Axis], path: str | Path, *, best: str | None = None, num_failed: int = 0
) -> None:
    """Draw the validation Dice of each trial against each option that varied.

    Args:
        dots: Trials that have a Dice.
        axes: The options.
        path: PNG to write.
        best: Name of the best trial.
        num_failed: Trials that failed, which the title counts.
    """
    columns = 2 if len(axes) == 4 else min(len(axes), PANELS_IN_A_ROW)
    rows = math.ceil(len(axes) / columns)
    with open_figure(path, (max(5.0, 3.9 * columns), 3.4 * rows + 0.5)) as figure:
        panels = figure.subplots(rows, columns, squeeze=False, sharey=True)
        for panel in panels.flat[len(axes) :]:
            panel.set_visible(False)
        for panel, axis in zip(panels.flat, axes, strict=False):
            _draw_axis(panel, axis, dots, best)
        for panel in panels[:, 0]:
            panel.set_ylabel("validation Dice")
        figure.suptitle(_make_title(dots, num_failed), x=0.01, ha="left", fontsize=11, fontweight="bold")
        legends = [panel.get_legend_handles_labels() for panel in panels.flat]
        handles, names = max(legends, key=lambda legend: len(legend[0]))
        if handles:
            figure.legend(handles, names, loc="outside lower center", ncols=columns)


def _make_title(dots: Sequence[TrialDot], num_failed: int) -> str:
    done = sum(dot.is_done for dot in dots)
    parts = [f"{done} trial{'s' * (done != 1)} done", f"{len(dots) - done} stopped early"]
    return ", ".join(parts + [f"{num_failed} failed, not shown"] * bool(num_failed))


def _draw_axis(panel: Any, axis: Axis, dots: Sequence[TrialDot], best: str | None) -> None:
    shown = [dot for dot in dots if _lies_on(axis, dot.drawn[axis.name])]
    places = dict(zip((dot.trial for dot in shown), _place_dots(axis, shown), strict=True))
    kinds = (
        ("done: its bundle, at its threshold", True, {"color": BLUE, "zorder": 3}),
        ("stopped early: best epoch, at 0.5", False, {"facecolor": "white", "edgecolor": GREY, "zorder": 2}),
    )
    for label, is_done, look in kinds:
        chosen = [dot for dot in shown if dot.is_done == is_done]
        panel.scatter([places[dot.trial] for dot in chosen], [dot.dice for dot in chosen], 34, label=label, **look)
    for dot in shown:
        if dot.trial == best:
            ring = {"facecolor": "none", "edgecolor": VERMILLION, "linewidth": 2, "zorder": 4}
            panel.scatter([places[dot.trial]], [dot.dice], 130, label=f"best: trial {best}, {dot.dice:.3f}", **ring)
    panel.set_xlabel(shorten(axis.name))
    _set_scale(panel, axis)


def _lies_on(axis: Axis, value: Any) -> bool:
    """Whether a trial has a place: an option that did nothing beside the others has no value."""
    return value is not None if axis.kind != "choice" else _show(value) in map(_show, axis.values)


def _place_dots(axis: Axis, dots: Sequence[TrialDot]) -> list[float]:
    """Where dots lie along an axis; those of one choice a little apart, in a way that is always the same."""
    if axis.kind != "choice":
        return [float(dot.drawn[axis.name]) for dot in dots]
    names = list(map(_show, axis.values))
    apart = np.random.default_rng(0).uniform(-SPREAD, SPREAD, len(dots))
    return [names.index(_show(dot.drawn[axis.name])) + shift for dot, shift in zip(dots, apart, strict=True)]


def _set_scale(panel: Any, axis: Axis) -> None:
    if axis.kind == "choice":
        panel.set_xticks(range(len(axis.values)), [shorten(_show(value), 14) for value in axis.values])
        panel.set_xlim(-0.6, len(axis.values) - 0.4)
        panel.grid(False, axis="x")
    elif axis.kind == "log_range":
        panel.set_xscale("log")
        panel.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        panel.xaxis.set_minor_locator(NullLocator())
        panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        panel.set_xlim(axis.values[0] / 1.15, axis.values[1] * 1.15)
    else:
        margin = 0.05 * (axis.values[1] - axis.values[0])
        panel.set_xlim(axis.values[0] - margin, axis.values[1] + margin)


def _show(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ",".join(map(str, value))
    if value is None or isinstance(value, bool):
        return {None: "none", True: "on", False: "off"}[value]
    return f"{value:g}" if isinstance(value, int | float) else str(value)
