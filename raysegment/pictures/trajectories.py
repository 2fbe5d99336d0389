"""Picture of volumes over time: a panel for each patient, a line with its interval for each label."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.dates import AutoDateLocator, ConciseDateFormatter
from matplotlib.ticker import MaxNLocator

from raysegment.pictures.style import INK, VERMILLION, choose_colours, open_figure, shorten
from raysegment.scan import Labels

Numbers = npt.NDArray[np.float64]
COLUMNS = 4
MOST_LINES_OF_TEXT = 3
"""Labels whose growth is written above a panel; more have no room."""

HIGHEST_BAND = 1.6
"""How far above the largest volume an interval is shown."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Course:
    """One label of one patient over time.

    Attributes:
        label: Its name.
        days: Of each scan, days since 1970; since the patient's first scan where it has no dates.
        is_dated: Which of the two they are.
        volumes_ml: Of each scan.
        needs_review: Whether a person should look at the mask; False where nobody knows.
        line_days: Where the line is drawn.
        line_ml: The line there.
        half_ml: Half the width of the line's interval there; NaN where there is none.
        growth: What is written of it.
    """

    label: str
    days: Numbers
    is_dated: bool = True
    volumes_ml: Numbers
    needs_review: npt.NDArray[np.bool_]
    line_days: Numbers
    line_ml: Numbers
    half_ml: Numbers
    growth: str


def draw_trajectories(patients: Mapping[str, Sequence[Course]], path: str | Path, *, title: str) -> None:
    """Draw volumes against dates, a panel for each patient.

    Args:
        patients: What to draw, by name.
        path: PNG to write.
        title: Of the whole.
    """
    names = list(dict.fromkeys(course.label for courses in patients.values() for course in courses))
    labels = Labels(tuple(names), tuple((place,) for place in range(1, len(names) + 1)))
    colours = dict(zip(names, choose_colours(labels), strict=True))
    columns = min(len(patients), COLUMNS)
    rows = math.ceil(len(patients) / columns)
    lines = min(len(names), MOST_LINES_OF_TEXT)
    with open_figure(path, (max(6.5, 3.3 * columns), (2.5 + 0.18 * lines) * rows + 0.8)) as figure:
        panels = figure.subplots(rows, columns, squeeze=False)
        for panel in panels.flat[len(patients) :]:
            panel.set_visible(False)
        for panel, (patient, courses) in zip(panels.flat, patients.items(), strict=False):
            _draw_patient(panel, patient, courses, colours)
        for panel in panels[:, 0]:
            panel.set_ylabel("volume, ml")
        figure.suptitle(title, x=0.01, ha="left", fontsize=11, fontweight="bold")
        handles = {name: handle for panel in panels.flat for handle, name in zip(*_legend_of(panel), strict=True)}
        figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=5)


def _draw_patient(panel: Any, patient: str, courses: Sequence[Course], colours: Mapping[str, str]) -> None:
    written = [course for course in courses[:MOST_LINES_OF_TEXT] if course.growth]
    for place, course in enumerate(written):
        height = 1.02 + 0.085 * (len(written) - 1 - place)
        name = f"{shorten(course.label, 14)}: " if len(courses) > 1 else ""
        colour = _darken(colours[course.label]) if len(courses) > 1 else INK
        panel.text(0, height, f"{name}{course.growth}", transform=panel.transAxes, fontsize=8.5, color=colour)
    panel.set_title(shorten(patient, 30), pad=4 + 13 * len(written))
    highest = max(float(course.volumes_ml.max()) for course in courses) or 1.0
    for course in courses:
        _draw_course(panel, course, colours[course.label])
        if np.isfinite(course.half_ml).all():
            highest = max(highest, min(HIGHEST_BAND * highest, float((course.line_ml + course.half_ml).max())))
    panel.set_ylim(0, 1.08 * highest)
    panel.yaxis.set_major_locator(MaxNLocator(5))
    first, last = (edge(course.days[place] for course in courses) for edge, place in ((min, 0), (max, -1)))
    # At least a day on each side, so that ticks are days.
    margin = max(1.0, 0.05 * (last - first))
    is_dated = courses[0].is_dated
    panel.set_xlim(*_as_shown(np.array([first - margin, last + margin]), is_dated))
    panel.tick_params(labelsize=8.5)
    if not is_dated:
        panel.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        panel.set_xlabel("days since the first scan", fontsize=8.5)
        return
    locator = AutoDateLocator(minticks=2, maxticks=5)
    panel.xaxis.set_major_locator(locator)
    panel.xaxis.set_major_formatter(ConciseDateFormatter(locator))
    panel.xaxis.get_offset_text().set_fontsize(8.5)


def _draw_course(panel: Any, course: Course, colour: str) -> None:
    line_days, days = (_as_shown(side, course.is_dated) for side in (course.line_days, course.days))
    panel.plot(line_days, course.line_ml, color=colour, linewidth=1.5)
    if np.isfinite(course.half_ml).all():
        low, high = course.line_ml - course.half_ml, course.line_ml + course.half_ml
        panel.fill_between(line_days, low, high, color=colour, alpha=0.18, linewidth=0, label="95 % interval of a line")
    panel.scatter(days, course.volumes_ml, 20, color=colour, label=shorten(course.label, 24), zorder=3, clip_on=False)
    asked = course.needs_review
    if asked.any():
        ring = {"facecolors": "none", "edgecolors": VERMILLION, "linewidths": 1.4, "zorder": 4, "clip_on": False}
        panel.scatter(days[asked], course.volumes_ml[asked], 60, label="needs review", **ring)


def _as_shown(days: Numbers, is_dated: bool) -> Any:
    """Dates in minutes, so that a line of a few days is straight; days since the first scan as they are."""
    if not is_dated:
        return days
    return (days * 24 * 60).round().astype("datetime64[m]")


def _darken(colour: str) -> str:
    """A colour in which small letters can be read on white."""
    channels = (int(colour[place : place + 2], 16) for place in (1, 3, 5))
    return "#" + "".join(f"{int(0.72 * value):02X}" for value in channels)


def _legend_of(panel: Any) -> tuple[list[Any], list[str]]:
    handles, names = panel.get_legend_handles_labels()
    return handles, names
