"""What decides a mask, resolved once by the driver for all workers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from raysegment.imaging.threshold import DEFAULT_THRESHOLD, resolve_thresholds
from raysegment.options import Mirror, Postprocessing, Preprocessing
from raysegment.scan import Labels, Spacing


@dataclass(frozen=True, kw_only=True)
class SegmentSettings:
    """What decides a mask, resolved once by the driver for all workers, and what marks its rows.

    Attributes:
        postprocessing: Choices that are not set do nothing.
        labels: Of the model.
        reference_labels: The values that the same labels have in references, others may come after them; those of
            `labels` if not given.
        num_channels: Channels that the model expects of a scan as read.
        grid_factor: Sides of the network's input must divide by this.
        foreground_box: See each slice through a window around its foreground, and empty ones not at all.
        sees_whole_slices: The network normalizes over all of a slice (group norm), so a window would change its result.
        doubt: What the bundle brings for it, see `pipeline/doubt`; None where it brings nothing.
        needs_reference: A scan without a usable reference fails.
        attempt: Number of this start of the command on its output folder.
    """

    preprocessing: Preprocessing
    postprocessing: Postprocessing
    labels: Labels
    num_channels: int
    grid_factor: int
    reference_labels: Labels | None = None
    spacing_mm: Spacing | None = None
    surface_tolerance_mm: float = 1.0
    foreground_box: bool = True
    sees_whole_slices: bool = False
    batch_size: int = 16
    doubt: Mapping[str, Any] | None = None
    needs_reference: bool = False
    model_id: str = ""
    options_id: str = ""
    attempt: int = 1

    @property
    def thresholds(self) -> tuple[float, ...]:
        """One for each label."""
        return resolve_thresholds(self.postprocessing.threshold, self.labels, DEFAULT_THRESHOLD)

    @property
    def mirror(self) -> Mirror:
        """Which passes there are of each batch."""
        return self.postprocessing.mirror or "none"

    @property
    def drawn_labels(self) -> Labels:
        """What the values of references mean."""
        return self.reference_labels or self.labels


def warn_of_averaging(chosen: Postprocessing, stored: Postprocessing) -> list[str]:
    """A line where masks are averaged otherwise than those that the threshold was chosen for.

    Smoothed probabilities are flatter, and their best threshold is lower.

    Args:
        chosen: Every choice is set.
        stored: The bundle's, with its threshold.
    """
    own = (stored.mirror or "none", bool(stored.smooth_slices))
    if chosen.threshold != stored.threshold or (chosen.mirror, chosen.smooth_slices) == own:
        return []
    words = f"--mirror {own[0]} {'--smooth-slices' if own[1] else '--no-smooth-slices'}"
    return [
        f"warning: the bundle's threshold was chosen with {words}; another --threshold may suit these masks better."
    ]
