"""Picture of what changed between two outputs: volumes before and after, and how alike the masks are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from raysegment.pictures.style import GREY, VERMILLION, choose_colours, open_figure, shorten
from raysegment.scan import Labels

Numbers = npt.NDArray[np.float64]
DICE_BINS = np.linspace(0, 1, 41)
LARGEST_FREE_SPAN = 50.0
"""Volumes that span a larger factor are drawn on axes that are logarithmic beyond the smallest."""


@dataclass(frozen=True, eq=False)
class LabelChanges:
    """What is drawn of one label, an element for each scan; NaN where there is no number.

    Attributes:
        before: Volumes, or voxels.
        after: The same later.
        dice: Between the two masks.
        is_change: bool.
    """

    before: Numbers
    after: Numbers
    dice: Numbers
    is_change: npt.NDArray[np.bool_]


def draw_changes(by_label: Mapping[str, LabelChanges], path: str | Path, *, unit: str) -> None:
    """Draw volumes after against before, and the distribution of Dice between old and new masks.

    Args:
        by_label: What to draw.
        path: PNG to write.
        unit: Of the volumes: `ml` or `voxels`.
    """
    colours = choose_colours(Labels(tuple(by_label), tuple((place,) for place in range(1, len(by_label) + 1))))
    with open_figure(path, (10.5, 4.6)) as figure:
        volumes, likeness = figure.subplots(1, 2)
        for (name, found), colour in zip(by_label.items(), colours, strict=True):
            _draw_volumes(volumes, found, colour, shorten(name, 24))
            known = found.dice[~np.isnan(found.dice)]
            likeness.hist(known, DICE_BINS, histtype="step", color=colour, linewidth=1.8, label=shorten(name, 24))
        _finish_volumes(volumes, by_label, unit)
        likeness.set(xlabel="Dice of mask before and mask after", ylabel="scans", xlim=(0, 1.005))
        likeness.set_title("how alike the masks are")
        figure.legend(*volumes.get_legend_handles_labels(), loc="outside lower right", ncols=4)


def _draw_volumes(panel: Any, found: LabelChanges, colour: str, name: str) -> None:
    same, changed = ~found.is_change, found.is_change
    panel.scatter(found.before[same], found.after[same], s=14, color=colour, alpha=0.6, label=name, linewidths=0)
    label = f"{name}, changed" if changed.any() else None
    ring = {"s": 34, "facecolors": colour, "edgecolors": VERMILLION, "linewidths": 1.4}
    panel.scatter(found.before[changed], found.after[changed], label=label, **ring)


def _finish_volumes(panel: Any, by_label: Mapping[str, LabelChanges], unit: str) -> None:
    """Both axes alike, with the line on which nothing changed."""
    values = np.concatenate([side for found in by_label.values() for side in (found.before, found.after)])
    positive = values[values > 0]
    highest = float(positive.max()) if len(positive) else 1.0
    panel.axline((0, 0), slope=1, color=GREY, linewidth=1, zorder=0)
    if len(positive) and highest / float(np.quantile(positive, 0.05)) > LARGEST_FREE_SPAN:
        threshold = float(np.quantile(positive, 0.05))
        panel.set_xscale("symlog", linthresh=threshold)
        panel.set_yscale("symlog", linthresh=threshold)
    panel.set(xlim=(0, 1.1 * highest), ylim=(0, 1.1 * highest), aspect="equal")
    panel.set(xlabel=f"before, {unit}", ylabel=f"after, {unit}")
    panel.set_title("volumes")
