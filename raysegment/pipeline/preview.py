"""What a network in training finds: one slice each of the best, the median and the worst validation scan."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from raysegment.imaging.intensity import normalize
from raysegment.imaging.postprocess import threshold_probability
from raysegment.pipeline.samples import KeptScan
from raysegment.pipeline.views.slices import view_slice
from raysegment.pipeline.views.tiles import predict_slices
from raysegment.scan import LabelMap, Labels, Mask, Pixels

Values = npt.NDArray[np.float32]

THRESHOLD = 0.5


@dataclass(frozen=True, eq=False)
class Preview:
    """One slice of a validation scan, on the network's grid.

    Attributes:
        title: Which scan it is and how well it went, and its scan_id on a line of its own.
        pixels: (1, rows, columns, channels), raw.
        reference: Label map, (1, rows, columns).
        mask: Predicted, (1, rows, columns), or (labels, 1, rows, columns) where labels overlap.
    """

    title: str
    pixels: Pixels
    reference: LabelMap
    mask: Mask


def make_previews(
    scan_dice: Sequence[float],
    fetch: Callable[[int], KeptScan],
    predict: Callable[[Values], Values],
    labels: Labels,
    *,
    context_slices: int,
    epoch: int,
) -> list[Preview]:
    """Let the network look at one slice of each of up to three scans, that with the largest reference.

    Args:
        scan_dice: Dice of each validation scan, which chooses them.
        fetch: A validation scan by its position.
        predict: As in `score_scan`.
        labels: What is segmented.
        context_slices: Neighbours on each side that become channels.
        epoch: Counted from 1, for the titles.
    """
    from raysegment.pictures.predictions import choose_cases

    previews = []
    for word, index in choose_cases(scan_dice):
        kept = fetch(index)
        areas = np.count_nonzero(kept.reference, axis=(1, 2))
        position = int(np.argmax(areas)) if areas.any() else len(kept.pixels) // 2
        seen = normalize(view_slice(kept.pixels, position, context_slices)[None], kept.intensity)
        given = np.moveaxis(predict_slices(predict, seen, kept.geometry), -1, 0)
        probability = given[1:] if labels.exclude_each_other else given
        title = f"{word} of {len(scan_dice)}, Dice {scan_dice[index]:.2f}\nepoch {epoch}\n{kept.scan_id}"
        chosen = slice(position, position + 1)
        mask = threshold_probability(np.ascontiguousarray(probability), labels, (THRESHOLD,) * len(labels))
        previews.append(Preview(title, kept.pixels[chosen], kept.reference[chosen], mask))
    return previews


def draw_previews(previews: Sequence[Preview], figure: Path, labels: Labels) -> None:
    """Draw them as the pictures at a training's end; the figure that was there is replaced when the new one is whole.

    Raises:
        OSError: It cannot be written.
    """
    from raysegment.pictures.predictions import draw_predictions, make_case

    cases = [make_case(item.title, item.pixels, item.reference, item.mask, labels) for item in previews]
    partial = figure.with_name(f".{figure.name}.partial")
    try:
        draw_predictions(cases, partial, labels)
        partial.replace(figure)
    finally:
        partial.unlink(missing_ok=True)
