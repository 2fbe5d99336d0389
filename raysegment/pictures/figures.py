"""Pictures of finished runs: curves, predictions, confusion matrix, Dice of each scan."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.ticker import MaxNLocator, PercentFormatter

from raysegment.pictures.predictions import PredictionCase, choose_cases, draw_predictions, make_case
from raysegment.pictures.style import (
    BLUE,
    GREY,
    INK,
    LONGEST_NAME,
    ORANGE,
    SKY,
    VERMILLION,
    choose_colours,
    open_figure,
    shorten,
)
from raysegment.scan import Labels

__all__ = [
    "PredictionCase",
    "choose_cases",
    "draw_confusion_between",
    "draw_confusion_matrix",
    "draw_curves",
    "draw_dice_per_scan",
    "draw_predictions",
    "make_case",
]

MOST_NAMED_SCANS = 40
MATRICES_IN_A_ROW = 3
MOST_WRITTEN_SIDES = 12


def draw_curves(
    history: Mapping[str, Sequence[float | None]],
    path: str | Path,
    *,
    best_epoch: int | None = None,
    best_by: str = "val_dice",
) -> None:
    """Draw loss and Dice over the epochs, for training and validation.

    Args:
        history: `epoch, loss, dice, val_loss, val_dice`, each a value per epoch; None and NaN leave a gap.
        path: PNG to write.
        best_epoch: The epoch whose weights were kept; the best one of the history if None.
        best_by: What chose it, `val_dice` or `val_loss`.
    """
    with open_figure(path, (10, 3.9)) as figure:
        panels = figure.subplots(1, 2)
        for panel, key, name in zip(panels, ("loss", "dice"), ("Loss", "Dice"), strict=True):
            for prefix, colour, label in (("", BLUE, "training"), ("val_", ORANGE, "validation")):
                _draw_line(panel, history, prefix + key, colour, label)
            panel.set(title=name, xlabel="epoch")
            panel.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        panels[1].set_ylim(0, 1)
        panels[1].yaxis.set_major_locator(MaxNLocator(5))
        _mark_best(panels[1], history, best_epoch, best_by)
        for panel in panels:
            if panel.get_legend_handles_labels()[0]:
                panel.legend()


def draw_confusion_matrix(confusion: Mapping[str, Mapping[str, int]], path: str | Path) -> None:
    """Draw the four counts of voxels pooled over all scans, and their share of each row, for each label.

    Args:
        confusion: By the name of the label `true_negatives, false_positives, false_negatives, true_positives`.
        path: PNG to write.
    """
    columns = min(len(confusion), MATRICES_IN_A_ROW)
    rows = math.ceil(len(confusion) / columns)
    with open_figure(path, (4.8 * columns + 0.8, 4.6 * rows + 0.2)) as figure:
        panels = figure.subplots(rows, columns, squeeze=False)
        for panel in panels.flat[len(confusion) :]:
            panel.set_visible(False)
        for panel, (label, counts) in zip(panels.flat, confusion.items(), strict=False):
            # Outside of one label another one may be.
            others = "elsewhere" if len(confusion) > 1 else "background"
            drawn = _draw_matrix(panel, counts, (others, shorten(label, 24 if len(confusion) > 1 else LONGEST_NAME)))
        bar = figure.colorbar(drawn, ax=panels, shrink=0.8, format=PercentFormatter(1))
        bar.set_label("share of the reference's row")
        bar.outline.set_visible(False)


def draw_confusion_between(names: Sequence[str], counts: npt.NDArray[np.int64], path: str | Path) -> None:
    """Draw what masks have where references have background and each label, pooled over all scans.

    Args:
        names: Of labels that exclude each other.
        counts: Voxels, (1 + labels in the reference, 1 + labels in the mask), background first.
        path: PNG to write.
    """
    totals = counts.sum(axis=1, keepdims=True)
    shares = np.divide(counts, totals, out=np.zeros(counts.shape), where=totals > 0)
    sides = ["background", *(shorten(name, 16) for name in names)]
    is_written = len(sides) <= MOST_WRITTEN_SIDES
    side = max(5.0, (1.25 if is_written else 0.3) * len(sides))
    with open_figure(path, (side + 1.2, side)) as figure:
        panel = figure.subplots()
        colours = LinearSegmentedColormap.from_list("share", ["#FFFFFF", BLUE])
        drawn = panel.imshow(shares, cmap=colours, vmin=0, vmax=1)
        for row, column in np.ndindex(*counts.shape) if is_written else ():
            ink = "white" if shares[row, column] > 0.55 else INK
            text = f"{int(counts[row, column]):,}\n{shares[row, column]:.2%}"
            panel.text(column, row, text, ha="center", va="center", color=ink, linespacing=1.5, fontsize=9)
        panel.set_xticks(range(len(sides)), sides, rotation=30, ha="right", rotation_mode="anchor")
        panel.set_yticks(range(len(sides)), sides)
        panel.set(xlabel="mask", ylabel="reference", title="Voxels of all scans")
        panel.grid(False)
        panel.tick_params(length=0)
        bar = figure.colorbar(drawn, ax=panel, shrink=0.8, format=PercentFormatter(1))
        bar.set_label("share of the reference's row")
        bar.outline.set_visible(False)


def _draw_matrix(panel: Any, confusion: Mapping[str, int], sides: tuple[str, str]) -> Any:
    counts = np.array(
        [
            [confusion["true_negatives"], confusion["false_positives"]],
            [confusion["false_negatives"], confusion["true_positives"]],
        ],
        np.float64,
    )
    totals = counts.sum(axis=1, keepdims=True)
    shares = np.divide(counts, totals, out=np.zeros_like(counts), where=totals > 0)
    names = [["true negatives", "false positives"], ["false negatives", "true positives"]]
    colours = LinearSegmentedColormap.from_list("share", ["#FFFFFF", BLUE])
    drawn = panel.imshow(shares, cmap=colours, vmin=0, vmax=1)
    for row, column in np.ndindex(2, 2):
        ink = "white" if shares[row, column] > 0.55 else INK
        text = f"{int(counts[row, column]):,}\n{shares[row, column]:.2%}\n{names[row][column]}"
        panel.text(column, row, text, ha="center", va="center", color=ink, linespacing=1.5)
    panel.set_xticks([0, 1], sides)
    panel.set_yticks([0, 1], sides, rotation=90, va="center")
    panel.set(xlabel="mask", ylabel="reference", title="Voxels of all scans")
    panel.grid(False)
    panel.tick_params(length=0)
    return drawn


def draw_dice_per_scan(
    scan_ids: Sequence[str],
    dice: Sequence[float],
    path: str | Path,
    *,
    by_label: Mapping[str, Sequence[float]] | None = None,
    labels: Labels | None = None,
) -> None:
    """Draw the Dice of every scan, sorted: named bars for a few scans, a curve and a histogram for many.

    Args:
        scan_ids: Names of the scans.
        dice: From 0 to 1; NaN where mask and reference are both empty, which are counted in the title.
        path: PNG to write.
        by_label: Of several labels the Dice of each scan; `dice` is then the mean over them.
        labels: Their colours.
    """
    apart = {name: np.asarray(values, np.float64) for name, values in (by_label or {}).items()}
    colours = choose_colours(labels if labels and labels.names == tuple(apart) else _unnamed(tuple(apart)))
    values = np.asarray(dice, np.float64)
    scored = np.flatnonzero(~np.isnan(values))
    order = scored[np.argsort(values[scored], kind="stable")]
    left_out = len(values) - len(order)
    named = len(order) <= MOST_NAMED_SCANS
    size = (8.0, 1.3 + 0.24 * max(3, len(order))) if named else (10.0, 4.0)
    title = f"Dice of {len(order)} scan" + ("" if len(order) == 1 else "s")
    if apart:
        title += ", mean over labels"
    if left_out:
        title += f" ({left_out} with neither reference nor mask left out)"
    with open_figure(path, size) as figure:
        if named:
            panel = figure.subplots()
            _draw_bars(panel, [shorten(scan_ids[index]) for index in order], values[order])
            for (name, found), colour in zip(apart.items(), colours, strict=False):
                places = np.arange(len(order))
                panel.scatter(found[order], places, 26, color=colour, edgecolor=INK, linewidth=0.6, label=shorten(name))
        else:
            panel, beside = figure.subplots(1, 2, width_ratios=(3, 2))
            _draw_ranks(panel, values[order])
            for (name, found), colour in zip(apart.items(), colours, strict=False):
                ranked = np.sort(found[~np.isnan(found)])
                panel.plot(np.arange(1, len(ranked) + 1), ranked, color=colour, linewidth=1.6, label=shorten(name))
            _draw_histogram(beside, values[order])
        panel.set_title(title)
        if len(order):
            figure.legend(*panel.get_legend_handles_labels(), loc="outside lower center", ncols=4 if apart else 2)
        else:
            panel.text(0.5, 0.5, "no scan to score", ha="center", transform=panel.transAxes, color=GREY)


def _unnamed(names: tuple[str, ...]) -> Labels:
    return Labels(names, tuple((position + 1,) for position in range(len(names)))) if names else Labels()


def _numbers(values: Iterable[float | None]) -> npt.NDArray[np.float64]:
    return np.array([math.nan if value is None else value for value in values], np.float64)


def _draw_line(panel: Any, history: Mapping[str, Sequence[float | None]], key: str, colour: str, label: str) -> None:
    values = _numbers(history.get(key, ()))
    if not len(values) or np.isnan(values).all():
        return
    epochs = _numbers(history["epoch"]) if "epoch" in history else np.arange(1, len(values) + 1)
    marker = "o" if len(values) <= 40 else None
    panel.plot(epochs, values, color=colour, label=label, linewidth=1.8, marker=marker, markersize=3.5)


def _mark_best(panel: Any, history: Mapping[str, Sequence[float | None]], best_epoch: int | None, best_by: str) -> None:
    """Ring the validation Dice of the epoch that was kept, and say what chose it."""
    dice = _numbers(history.get("val_dice", ()))
    epochs = _numbers(history["epoch"]) if "epoch" in history else np.arange(1.0, len(dice) + 1)
    chosen_by = _numbers(history.get(best_by, ())) * (-1 if best_by == "val_loss" else 1)
    if best_epoch is None:
        best_epoch = 0 if np.isnan(chosen_by).all() else int(epochs[int(np.nanargmax(chosen_by))])
    position = next((index for index, epoch in enumerate(epochs) if epoch == best_epoch), None)
    if position is None or position >= len(dice) or math.isnan(dice[position]):
        return
    word = {"val_loss": "validation loss", "val_dice": "validation Dice"}[best_by]
    label = f"best {word}: epoch {best_epoch}, Dice {dice[position]:.3f}"
    panel.plot([best_epoch], [dice[position]], "o", color=VERMILLION, markersize=8, fillstyle="none", label=label)


def _draw_bars(panel: Any, names: list[str], values: npt.NDArray[np.float64]) -> None:
    places = np.arange(len(values))
    panel.barh(places, values, color=SKY, height=0.72)
    for place, value in zip(places, values, strict=True):
        panel.text(0.008, place, f"{value:.2f}", va="center", fontsize=8)
    panel.set_yticks(places, names, fontsize=8)
    panel.set(xlim=(0, 1), ylim=(-0.8, max(1, len(values)) - 0.2), xlabel="Dice")
    panel.grid(False, axis="y")
    _draw_averages(panel.axvline, values)


def _draw_ranks(panel: Any, values: npt.NDArray[np.float64]) -> None:
    panel.fill_between(np.arange(1, len(values) + 1), values, color=SKY, alpha=0.25, linewidth=0)
    panel.plot(np.arange(1, len(values) + 1), values, color=BLUE, linewidth=1.8)
    panel.set(xlim=(1, len(values)), ylim=(0, 1), xlabel="scans, from worst to best", ylabel="Dice")
    _draw_averages(panel.axhline, values)


def _draw_histogram(panel: Any, values: npt.NDArray[np.float64]) -> None:
    panel.hist(values, bins=np.linspace(0, 1, 21), color=SKY, edgecolor="white")
    panel.set(xlim=(0, 1), xlabel="Dice", ylabel="scans")
    panel.yaxis.set_major_locator(MaxNLocator(integer=True))


def _draw_averages(draw: Any, values: npt.NDArray[np.float64]) -> None:
    if len(values):
        draw(values.mean(), color=VERMILLION, linewidth=1.6, label=f"mean {values.mean():.3f}")
        middle = float(np.median(values))
        draw(middle, color=INK, linewidth=1.6, linestyle=(0, (4, 2)), label=f"median {middle:.3f}")
