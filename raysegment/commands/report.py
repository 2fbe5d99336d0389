"""`raysegment report`: draw the figures of a training or inference run anew."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from raysegment.errors import EXIT_DONE, UsageError
from raysegment.options import ReportOptions
from raysegment.pipeline.gallery import draw_inference_figures, draw_training_figures
from raysegment.store.place import Place
from raysegment.store.publish import list_parts


@dataclass(frozen=True, kw_only=True)
class ReportResult:
    """What `report` drew.

    Attributes:
        figures: Paths of the pictures.
        exit_code: Always 0.
    """

    figures: tuple[str, ...]
    exit_code: int = EXIT_DONE


def report(options: ReportOptions) -> ReportResult:
    """Draw the figures of a training or inference run anew.

    Raises:
        UsageError: The folder is no run, or has nothing to draw yet.
    """
    folder = Path(options.folder)
    if not (folder / "run.json").is_file():
        raise UsageError(f"{folder} is no run: it has no run.json. Give the folder of a training or inference run.")
    if (folder / "history.parquet").is_file():
        return ReportResult(figures=tuple(map(str, draw_training_figures(folder))))
    if not list_parts(Place(str(folder)), "scans"):
        raise UsageError(f"{folder} has nothing to draw yet: no epoch and no scan is finished.")
    return ReportResult(figures=tuple(map(str, draw_inference_figures(folder))))
