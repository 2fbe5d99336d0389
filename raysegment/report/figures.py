"""Pictures of finished runs: curves, predictions, confusion matrix, Dice of each scan.

Colours are from Okabe and Ito (2008), which colour-blind people tell apart.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import numpy.typing as npt
from matplotlib.colors import LinearSegmentedColormap, to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator, PercentFormatter

BLUE, SKY, ORANGE, VERMILLION, GREY, INK = "#0072B2", "#56B4E9", "#E69F00", "#D55E00", "#8A8A8A", "#222222"
REFERENCE_COLOUR, MASK_COLOUR = SKY, ORANGE
STYLE = {
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": GREY,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E4E4E4",
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "text.parse_math": False,
    "figure.dpi": 120,
}
DISPLAY_PERCENTILES = (0.5, 99.5)
MOST_NAMED_SCANS = 40
LONGEST_NAME = 36
LEAST_ZOOM_SHARE = 0.3
"""An overlay shows at least this share of a slice's sides."""


@dataclass(frozen=True, eq=False)
class PredictionCase:
    """One row of `draw_predictions`.

    Attributes:
        title: Such as "best, Dice 0.93" and the scan_id, on lines of their own.
        image: uint8, (rows, columns, 3).
        reference: Drawn by a person, (rows, columns), or None.
        mask: Predicted, (rows, columns).
    """

    title: str
    image: npt.NDArray[np.uint8]
    reference: npt.NDArray[np.generic] | None
    mask: npt.NDArray[np.generic]


def make_case(
    title: str,
    pixels: npt.NDArray[np.generic],
    reference: npt.NDArray[np.generic] | None,
    mask: npt.NDArray[np.generic],
) -> PredictionCase:
    """Show a scan by the slice with most lesion in the reference, or in the mask where the reference has none.

    Args:
        title: As in `PredictionCase`.
        pixels: (slices, rows, columns, channels), raw; up to three channels become red, green and blue.
        reference: (slices, rows, columns) or None.
        mask: (slices, rows, columns).
    """
    shown = reference if reference is not None and np.any(reference) else mask
    areas = np.count_nonzero(shown, axis=(1, 2))
    index = int(np.argmax(areas)) if areas.any() else len(mask) // 2
    chosen = None if reference is None else reference[index]
    return PredictionCase(title, _to_display(pixels, index), chosen, mask[index])


def choose_cases(dice: Sequence[float]) -> list[tuple[str, int]]:
    """Words and positions of the best, the median and the worst scan; fewer where there are fewer, NaN left out."""
    order = [int(index) for index in np.argsort(dice, kind="stable")[::-1] if not math.isnan(dice[index])]
    if not order:
        return []
    found = {"best": order[0], "median": order[len(order) // 2], "worst": order[-1]}
    words = {1: ("best",), 2: ("best", "worst")}.get(len(order), ("best", "median", "worst"))
    return [(word, found[word]) for word in words]


def draw_curves(history: Mapping[str, Sequence[float | None]], path: str | Path) -> None:
    """Draw loss and Dice over the epochs, for training and validation.

    Args:
        history: `epoch, loss, dice, val_loss, val_dice`, each a value per epoch; None and NaN leave a gap.
        path: PNG to write.
    """
    with _figure(path, (10, 3.9)) as figure:
        panels = figure.subplots(1, 2)
        for panel, key, name in zip(panels, ("loss", "dice"), ("Loss", "Dice"), strict=True):
            for prefix, colour, label in (("", BLUE, "training"), ("val_", ORANGE, "validation")):
                _draw_line(panel, history, prefix + key, colour, label)
            panel.set(title=name, xlabel="epoch")
            panel.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        panels[1].set_ylim(0, 1)
        panels[1].yaxis.set_major_locator(MaxNLocator(5))
        _mark_best(panels[1], history)
        for panel in panels:
            if panel.get_legend_handles_labels()[0]:
                panel.legend()


def draw_predictions(cases: Sequence[PredictionCase], path: str | Path) -> None:
    """Draw image, reference, mask and both outlines, a row for each case.

    Args:
        cases: Such as the best, the median and the worst scan.
        path: PNG to write.
    """
    rows = max(1, len(cases))
    shapes = [case.image.shape for case in cases] or [(1, 1)]
    height = 2.6 * max(shape[0] / shape[1] for shape in shapes)
    with _figure(path, (11.2, rows * (min(max(height, 1.2), 5) + 0.12) + 0.6)) as figure:
        panels = figure.subplots(rows, 4, squeeze=False)
        for panel in panels.flat:
            panel.set(xticks=[], yticks=[])
            panel.grid(False)
            panel.spines[:].set_visible(False)
        for row, case in zip(panels, cases, strict=False):
            _draw_case(row, case)
        for panel, name in zip(panels[0], ("image", "reference", "mask", "overlay, enlarged"), strict=True):
            panel.set_title(name, loc="center")
        handles = [
            Line2D([], [], color=REFERENCE_COLOUR, linewidth=2.5, label="reference, drawn by a person"),
            Line2D([], [], color=MASK_COLOUR, linewidth=2.5, linestyle=(0, (3, 1)), label="mask, predicted"),
        ]
        figure.legend(handles=handles, loc="outside lower right", ncols=2)


def draw_confusion_matrix(confusion: Mapping[str, int], path: str | Path) -> None:
    """Draw the four counts of voxels pooled over all scans, and their share of each row.

    Args:
        confusion: `true_negatives, false_positives, false_negatives, true_positives`.
        path: PNG to write.
    """
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
    with _figure(path, (5.6, 4.8)) as figure:
        panel = figure.subplots()
        colours = LinearSegmentedColormap.from_list("share", ["#FFFFFF", BLUE])
        drawn = panel.imshow(shares, cmap=colours, vmin=0, vmax=1)
        for row, column in np.ndindex(2, 2):
            ink = "white" if shares[row, column] > 0.55 else INK
            text = f"{int(counts[row, column]):,}\n{shares[row, column]:.2%}\n{names[row][column]}"
            panel.text(column, row, text, ha="center", va="center", color=ink, linespacing=1.5)
        panel.set_xticks([0, 1], ["background", "lesion"])
        panel.set_yticks([0, 1], ["background", "lesion"], rotation=90, va="center")
        panel.set(xlabel="mask", ylabel="reference", title="Voxels of all scans")
        panel.grid(False)
        panel.tick_params(length=0)
        bar = figure.colorbar(drawn, ax=panel, shrink=0.8, format=PercentFormatter(1))
        bar.set_label("share of the reference's row")
        bar.outline.set_visible(False)


def draw_dice_per_scan(scan_ids: Sequence[str], dice: Sequence[float], path: str | Path) -> None:
    """Draw the Dice of every scan, sorted: named bars for a few scans, a curve and a histogram for many.

    Args:
        scan_ids: Names of the scans.
        dice: From 0 to 1; NaN where mask and reference are both empty, which are counted in the title.
        path: PNG to write.
    """
    values = np.asarray(dice, np.float64)
    scored = np.flatnonzero(~np.isnan(values))
    order = scored[np.argsort(values[scored], kind="stable")]
    left_out = len(values) - len(order)
    named = len(order) <= MOST_NAMED_SCANS
    size = (8.0, 1.3 + 0.24 * max(3, len(order))) if named else (10.0, 4.0)
    title = f"Dice of {len(order)} scan" + ("" if len(order) == 1 else "s")
    if left_out:
        title += f" ({left_out} without lesion in reference and mask left out)"
    with _figure(path, size) as figure:
        if named:
            panel = figure.subplots()
            _draw_bars(panel, [_shorten(scan_ids[index]) for index in order], values[order])
        else:
            panel, beside = figure.subplots(1, 2, width_ratios=(3, 2))
            _draw_ranks(panel, values[order])
            _draw_histogram(beside, values[order])
        panel.set_title(title)
        if len(order):
            figure.legend(*panel.get_legend_handles_labels(), loc="outside lower center", ncols=2)
        else:
            panel.text(0.5, 0.5, "no scan to score", ha="center", transform=panel.transAxes, color=GREY)


@contextmanager
def _figure(path: str | Path, size: tuple[float, float]) -> Iterator[Figure]:
    """A figure in our style that is written to `path` at the end; no global state, so threads may draw."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=size, layout="constrained")
        yield figure
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, format="png")


def _to_display(pixels: npt.NDArray[np.generic], index: int) -> npt.NDArray[np.uint8]:
    """One slice as uint8 (rows, columns, 3), each channel stretched by the scan's percentiles."""
    chosen = pixels[..., :3] if pixels.shape[-1] >= 3 else pixels[..., :1]
    low, high = np.percentile(chosen.astype(np.float32), DISPLAY_PERCENTILES, axis=(0, 1, 2))
    span = np.where(high > low, high - low, 1)
    stretched = np.clip((chosen[index].astype(np.float32) - low) / span, 0, 1) * 255
    return np.broadcast_to(stretched, (*stretched.shape[:2], 3)).astype(np.uint8)


def _numbers(values: Iterable[float | None]) -> npt.NDArray[np.float64]:
    return np.array([math.nan if value is None else value for value in values], np.float64)


def _draw_line(panel: Any, history: Mapping[str, Sequence[float | None]], key: str, colour: str, label: str) -> None:
    values = _numbers(history.get(key, ()))
    if not len(values) or np.isnan(values).all():
        return
    epochs = _numbers(history["epoch"]) if "epoch" in history else np.arange(1, len(values) + 1)
    marker = "o" if len(values) <= 40 else None
    panel.plot(epochs, values, color=colour, label=label, linewidth=1.8, marker=marker, markersize=3.5)


def _mark_best(panel: Any, history: Mapping[str, Sequence[float | None]]) -> None:
    values = _numbers(history.get("val_dice", ()))
    if not len(values) or np.isnan(values).all():
        return
    best = int(np.nanargmax(values))
    epoch = _numbers(history["epoch"])[best] if "epoch" in history else best + 1
    label = f"best: {values[best]:.3f} in epoch {epoch:.0f}"
    panel.plot([epoch], [values[best]], "o", color=VERMILLION, markersize=8, fillstyle="none", label=label)


def _draw_case(row: Any, case: PredictionCase) -> None:
    """Image, the two regions, and both outlines over a grey copy of the image."""
    grey = np.repeat(case.image.mean(axis=2, keepdims=True) / 255, 3, axis=2)
    row[0].imshow(case.image, interpolation="bilinear")
    row[0].set_ylabel("\n".join(_shorten(line, 28) for line in case.title.splitlines()), fontsize=9)
    row[2].imshow(_tint(grey, case.mask, MASK_COLOUR))
    row[3].imshow(grey, interpolation="bilinear")
    if case.reference is None:
        row[1].imshow(grey * 0.5)
        row[1].text(0.5, 0.5, "none", ha="center", va="center", color="white", transform=row[1].transAxes)
    else:
        row[1].imshow(_tint(grey, case.reference, REFERENCE_COLOUR))
        _outline(row[3], case.reference, REFERENCE_COLOUR, "solid")
    _outline(row[3], case.mask, MASK_COLOUR, "dashed")
    _zoom(row[3], case)


def _tint(grey: npt.NDArray[np.float64], region: npt.NDArray[np.generic], colour: str) -> npt.NDArray[np.float64]:
    return np.asarray(np.where((region != 0)[..., None], 0.35 * grey + 0.65 * np.array(to_rgb(colour)), grey * 0.8))


def _outline(panel: Any, region: npt.NDArray[np.generic], colour: str, style: str) -> None:
    if not np.any(region) or min(region.shape) < 2:
        return
    padded = np.pad((region != 0).astype(np.float32), 1)
    rows, columns = (np.arange(-1, side + 1) for side in region.shape)
    drawn = panel.contour(columns, rows, padded, levels=[0.5], colors=[colour], linewidths=1.6, linestyles=style)
    drawn.set_path_effects([withStroke(linewidth=2.6, foreground="#00000088")])


def _zoom(panel: Any, case: PredictionCase) -> None:
    """Show both regions and as much around them, in the proportions of the slice."""
    region = (case.mask != 0) if case.reference is None else (case.mask != 0) | (case.reference != 0)
    sides = np.array(region.shape)
    found = np.argwhere(region) if region.any() else np.array([[0, 0], sides - 1])
    low, high = found.min(axis=0), found.max(axis=0) + 1
    share = min(1.0, max(LEAST_ZOOM_SHARE, 1.8 * float(np.max((high - low) / sides))))
    start = np.clip((low + high - share * sides) / 2, 0, (1 - share) * sides) - 0.5
    stop = start + share * sides
    panel.set(xlim=(start[1], stop[1]), ylim=(stop[0], start[0]))


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


def _shorten(name: str, longest: int = LONGEST_NAME) -> str:
    """A name on one line, its middle left out where it is long; what fonts may lack is escaped."""
    plain = "".join(
        letter if letter.isprintable() and ord(letter) < 0x250 else letter.encode("unicode_escape").decode()
        for letter in name
    )
    if len(plain) <= longest:
        return plain
    return plain[: longest // 2 - 1] + "…" + plain[-(longest - longest // 2) :]
