"""Pictures of single scans: image, reference, mask, and both outlines."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.colors import to_rgb
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke

from raysegment.pictures.style import GREY, ORANGE, SKY, choose_colours, open_figure, shorten
from raysegment.scan import LabelMap, Labels, Mask

REFERENCE_COLOUR, MASK_COLOUR = SKY, ORANGE
DISPLAY_PERCENTILES = (0.5, 99.5)
Regions = npt.NDArray[np.bool_]
"""(labels, rows, columns)."""

Regions3D = npt.NDArray[np.bool_]
"""(labels, slices, rows, columns)."""

MOST_BYTES_LOOKED_AT = 2**25
"""Of a scan in single precision, for the percentiles: enough to show it, and little beside the scan itself."""

MOST_IN_A_ROW = 5
LEAST_ZOOM_SHARE = 0.3
"""An overlay shows at least this share of a slice's sides."""


@dataclass(frozen=True)
class Words:
    """What the two regions of a case are called.

    Attributes:
        columns: Titles of the four panels.
        first: The solid outline, in the legend.
        second: The dashed one.
    """

    columns: tuple[str, str, str, str]
    first: str
    second: str


OF_PREDICTIONS = Words(
    ("image", "reference", "mask", "overlay, enlarged"), "reference, drawn by a person", "mask, predicted"
)
OF_CHANGES = Words(("image", "mask before", "mask after", "overlay, enlarged"), "mask before", "mask after")


@dataclass(frozen=True, eq=False)
class PredictionCase:
    """One row of `draw_predictions`.

    Attributes:
        title: Such as "best, Dice 0.93" and the scan_id, on lines of their own.
        image: uint8, (rows, columns, 3).
        reference: Drawn by a person, bool, (labels, rows, columns), or None.
        mask: Predicted, bool, (labels, rows, columns).
    """

    title: str
    image: npt.NDArray[np.uint8]
    reference: Regions | None
    mask: Regions


def make_case(
    title: str,
    pixels: npt.NDArray[np.generic],
    reference: LabelMap | None,
    mask: Mask,
    labels: Labels | None = None,
    reference_labels: Labels | None = None,
) -> PredictionCase:
    """Show a scan by the slice with most lesion in the reference, or in the mask where the reference has none.

    Args:
        title: As in `PredictionCase`.
        pixels: (slices, rows, columns, channels), raw; up to three channels become red, green and blue.
        reference: (slices, rows, columns) or None.
        mask: (slices, rows, columns), or (labels, slices, rows, columns) where labels overlap.
        labels: What is in the mask; one label if not given.
        reference_labels: The values of the same labels in the reference; as in `labels` if not given.
    """
    labels = labels or Labels()
    drawn = reference_labels or labels
    every = range(len(labels))
    areas = np.zeros(len(pixels), np.int64)
    if reference is not None:
        areas = sum((_measure_slices(drawn.plane_of(reference, position)) for position in every), areas)
    if not areas.any():
        areas = sum((_measure_slices(labels.plane_of_mask(mask, position)) for position in every), areas)
    index = int(np.argmax(areas)) if areas.any() else len(pixels) // 2
    chosen = None if reference is None else np.stack([drawn.plane_of(reference[index], position) for position in every])
    shown = mask[..., index : index + 1, :, :]
    planes = np.stack([labels.plane_of_mask(shown, position)[0] for position in every])
    return PredictionCase(title, _to_display(pixels, index), chosen, planes)


def choose_cases(dice: Sequence[float]) -> list[tuple[str, int]]:
    """Words and positions of the best, the median and the worst scan; fewer where there are fewer, NaN left out."""
    order = [int(index) for index in np.argsort(dice, kind="stable")[::-1] if not math.isnan(dice[index])]
    if not order:
        return []
    found = {"best": order[0], "median": order[len(order) // 2], "worst": order[-1]}
    words = {1: ("best",), 2: ("best", "worst")}.get(len(order), ("best", "median", "worst"))
    return [(word, found[word]) for word in words]


def make_change_case(
    title: str, pixels: npt.NDArray[np.generic], before: Regions3D, after: Regions3D
) -> PredictionCase:
    """Show two masks of one scan by the slice on which they differ most.

    Args:
        title: As in `PredictionCase`.
        pixels: (slices, rows, columns, channels), raw.
        before: Of the labels to show, bool, (labels, slices, rows, columns).
        after: The same labels later.
    """
    differences = np.count_nonzero(before != after, axis=(0, 2, 3))
    index = int(np.argmax(differences))
    return PredictionCase(title, _to_display(pixels, index), before[:, index], after[:, index])


def draw_predictions(
    cases: Sequence[PredictionCase], path: str | Path, labels: Labels | None = None, words: Words = OF_PREDICTIONS
) -> None:
    """Draw image, reference, mask and both outlines, a row for each case.

    One label has a colour in the reference and another one in the mask; of several each has its own in both. Labels
    that overlap are outlines only.

    Args:
        cases: Such as the best, the median and the worst scan.
        path: PNG to write.
        labels: Names and colours; one label if not given.
        words: What the regions are called.
    """
    labels = labels or Labels()
    style = _Style(labels, words)
    rows = max(1, len(cases))
    shapes = [case.image.shape for case in cases] or [(1, 1)]
    height = 2.6 * max(shape[0] / shape[1] for shape in shapes)
    with open_figure(path, (11.2, rows * (min(max(height, 1.2), 5) + 0.12) + 0.6)) as figure:
        panels = figure.subplots(rows, 4, squeeze=False)
        for panel in panels.flat:
            panel.set(xticks=[], yticks=[])
            panel.grid(False)
            panel.spines[:].set_visible(False)
        for row, case in zip(panels, cases, strict=False):
            _draw_case(row, case, style)
        for panel, name in zip(panels[0], words.columns, strict=True):
            panel.set_title(name, loc="center")
        figure.legend(handles=style.make_legend(), loc="outside lower right", ncols=MOST_IN_A_ROW)


class _Style:
    """Colours of labels in references and masks, and whether they are outlines only."""

    def __init__(self, labels: Labels, words: Words) -> None:
        self.labels, self.words = labels, words
        several = choose_colours(labels)
        self.reference = several if len(labels) > 1 else [REFERENCE_COLOUR]
        self.mask = several if len(labels) > 1 else [MASK_COLOUR]

    def make_legend(self) -> list[Line2D]:
        """Names of the labels where there are several; which line is a person's and which the model's."""
        several = len(self.labels) > 1
        names = [shorten(name, 24) for name in self.labels.names] if several else []
        dashes = (0, (3, 1))
        return [
            *(
                Line2D([], [], color=colour, linewidth=6, label=name)
                for name, colour in zip(names, self.mask, strict=False)
            ),
            Line2D(
                [],
                [],
                color=GREY if several else self.reference[0],
                linewidth=2.5,
                label=self.words.first,
            ),
            Line2D(
                [],
                [],
                color=GREY if several else self.mask[0],
                linewidth=2.5,
                linestyle=dashes,
                label=self.words.second,
            ),
        ]


def _measure_slices(plane: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
    return np.asarray(np.count_nonzero(plane, axis=(1, 2)), np.int64)


def _to_display(pixels: npt.NDArray[np.generic], index: int) -> npt.NDArray[np.uint8]:
    """One slice as uint8 (rows, columns, 3), each channel stretched by the scan's percentiles."""
    chosen = pixels[..., :3] if pixels.shape[-1] >= 3 else pixels[..., :1]
    low, high = np.percentile(_thin(chosen).astype(np.float32), DISPLAY_PERCENTILES, axis=(0, 1, 2))
    span = np.where(high > low, high - low, 1)
    stretched = np.clip((chosen[index].astype(np.float32) - low) / span, 0, 1) * 255
    return np.broadcast_to(stretched, (*stretched.shape[:2], 3)).astype(np.uint8)


def _thin(pixels: npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:
    """Every n-th slice, and of large slices every n-th row, so that a whole scan is never looked at; a view."""
    for axis in (0, 1):
        step = max(1, math.ceil(4 * pixels.size / MOST_BYTES_LOOKED_AT))
        pixels = pixels[(slice(None),) * axis + (slice(None, None, step),)]
    return pixels


def _draw_case(row: Any, case: PredictionCase, style: _Style) -> None:
    """Image, the two regions, and both outlines over a grey copy of the image."""
    grey = np.repeat(case.image.mean(axis=2, keepdims=True) / 255, 3, axis=2)
    row[0].imshow(case.image, interpolation="bilinear")
    row[0].set_ylabel("\n".join(shorten(line, 28) for line in case.title.splitlines()), fontsize=9)
    _draw_regions(row[2], grey, case.mask, style.mask, style.labels.overlap)
    row[3].imshow(grey, interpolation="bilinear")
    if case.reference is None:
        row[1].imshow(grey * 0.5)
        row[1].text(0.5, 0.5, "none", ha="center", va="center", color="white", transform=row[1].transAxes)
    else:
        _draw_regions(row[1], grey, case.reference, style.reference, style.labels.overlap)
        for region, colour in zip(case.reference, style.reference, strict=True):
            _outline(row[3], region, colour, "solid")
    for region, colour in zip(case.mask, style.mask, strict=True):
        _outline(row[3], region, colour, "dashed")
    _zoom(row[3], case)


def _draw_regions(
    panel: Any, grey: npt.NDArray[np.float64], regions: Regions, colours: list[str], outlines: bool
) -> None:
    """Regions in their colours over a darker image; their outlines alone where they overlap."""
    shown = grey * 0.8
    for region, colour in zip(regions, colours, strict=True):
        if outlines:
            _outline(panel, region, colour, "solid")
        else:
            shown[region] = 0.35 * grey[region] + 0.65 * np.array(to_rgb(colour))
    panel.imshow(shown)


def _outline(panel: Any, region: npt.NDArray[np.bool_], colour: str, style: str) -> None:
    if not np.any(region) or min(region.shape) < 2:
        return
    padded = np.pad((region != 0).astype(np.float32), 1)
    rows, columns = (np.arange(-1, side + 1) for side in region.shape)
    drawn = panel.contour(columns, rows, padded, levels=[0.5], colors=[colour], linewidths=1.6, linestyles=style)
    drawn.set_path_effects([withStroke(linewidth=2.6, foreground="#00000088")])


def _zoom(panel: Any, case: PredictionCase) -> None:
    """Show both regions and as much around them, in the proportions of the slice."""
    region = case.mask.any(axis=0)
    if case.reference is not None:
        region = region | case.reference.any(axis=0)
    sides = np.array(region.shape)
    found = np.argwhere(region) if region.any() else np.array([[0, 0], sides - 1])
    low, high = found.min(axis=0), found.max(axis=0) + 1
    share = min(1.0, max(LEAST_ZOOM_SHARE, 1.8 * float(np.max((high - low) / sides))))
    start = np.clip((low + high - share * sides) / 2, 0, (1 - share) * sides) - 0.5
    stop = start + share * sides
    panel.set(xlim=(start[1], stop[1]), ylim=(stop[0], start[0]))
