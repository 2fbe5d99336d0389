"""`raysegment report`: draw the figures of a training or inference run anew."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from raysegment.archive.index import find_scans, recorded_finding
from raysegment.archive.labels import parse_labels
from raysegment.archive.names import show_name
from raysegment.archive.sealed import use_key
from raysegment.errors import EXIT_DONE, RaysegmentError, UsageError
from raysegment.model.bundle import read_labels
from raysegment.options import ReportOptions
from raysegment.pipeline.follow_up import PICTURE_FILE, publish_trajectories
from raysegment.pipeline.gallery import draw_inference_figures, draw_training_figures
from raysegment.pipeline.search_space import Varied
from raysegment.pipeline.trials import FIGURE, TABLE_FILE, draw_rows, read_rows
from raysegment.runs.record import read_record
from raysegment.scan import as_spacing
from raysegment.store.place import Place
from raysegment.store.publish import check_tables, list_parts

PREDICTIONS = "predictions.png"


@dataclass(frozen=True, kw_only=True)
class ReportResult:
    """What `report` drew.

    Attributes:
        figures: Paths of the pictures.
        notes: Which picture could not be drawn, and why.
        exit_code: Always 0.
    """

    figures: tuple[str, ...]
    notes: tuple[str, ...] = ()
    exit_code: int = EXIT_DONE


def report(options: ReportOptions) -> ReportResult:
    """Draw the figures of a training or inference run anew.

    Raises:
        UsageError: The folder is no run, has nothing to draw yet, or cannot be written.
        DamagedTablesError: What the run wrote cannot be read any more.
    """
    folder = Path(options.folder)
    place = Place(options.folder)
    record = read_record(place) if place.is_local else {}
    if not record:
        raise UsageError(f"{folder} is no run: it has no run.json. Give the folder of a training or inference run.")
    chosen = dict(record.get("chosen") or record.get("options") or {})
    if chosen.get("pseudonymise"):
        with suppress(UsageError):
            # Without the key figures are drawn that show no scan.
            use_key(chosen.get("key_file"))
    if (folder / "history.parquet").is_file():
        best_by = str(chosen.get("best_by", "val_dice"))
        figures = draw_training_figures(
            folder,
            best_epoch=record.get("best_epoch"),
            best_by=best_by,
            spacing_mm=as_spacing(chosen.get("spacing_mm")),
        )
        is_left_out = (folder / "model").is_dir() and not any(path.name == PREDICTIONS for path in figures)
        notes = (f"{PREDICTIONS} is not drawn: {_describe_unread(chosen)}",) if is_left_out else ()
        return ReportResult(figures=tuple(map(str, figures)), notes=notes)
    if record.get("command") == "tune":
        return ReportResult(figures=(redraw_trials(folder, record),))
    if not list_parts(place, "scans"):
        if (folder / "folds").is_dir():
            raise UsageError(
                f"{folder} is a run with folds, which have figures of their own: give one of {folder / 'folds'}, or "
                f"{folder / 'out_of_fold'}."
            )
        raise UsageError(f"{folder} has nothing to draw yet: no epoch and no scan is finished.")
    labels = read_labels(record["labels"]) if record.get("labels") else None
    if record.get("command") == "measure":
        check_tables(place, "metrics")
        return ReportResult(figures=tuple(map(str, draw_inference_figures(folder, None, labels))))
    check_tables(place, "metrics", "masks")
    drawn = parse_labels(tuple(chosen["labels"])) if chosen.get("labels") else labels
    manifest, why = find_manifest(chosen)
    figures = draw_inference_figures(folder, manifest, labels, drawn)
    has_scans = any(path.name == PREDICTIONS for path in figures)
    figures += draw_followed_patients(place)
    notes = () if has_scans else (f"{PREDICTIONS} is not drawn: {why or _describe_unread(chosen)}",)
    return ReportResult(figures=tuple(map(str, figures)), notes=notes)


def draw_followed_patients(place: Place) -> list[Path]:
    """Write `trajectories/` where patients have scans of several days; returns the picture's path."""
    found = publish_trajectories(place, place, place.location)
    return [Path(place.root) / PICTURE_FILE] if found.growth.num_rows else []


def redraw_trials(folder: Path, record: Mapping[str, Any]) -> str:
    """Draw the trials of a search; returns the picture's path.

    Raises:
        UsageError: No trial has ended yet.
    """
    if not (folder / TABLE_FILE).is_file():
        raise UsageError(f"{folder} has nothing to draw yet: no trial has ended.")
    space = [Varied(**{**item, "values": tuple(item["values"])}) for item in record["space"]]
    draw_rows(read_rows(folder / TABLE_FILE, space), space, folder / FIGURE)
    return str(folder / FIGURE)


def _describe_unread(chosen: Mapping[str, Any]) -> str:
    return f"no scan that it would show can be read at {show_name(str(chosen.get('source')))}."


def find_manifest(chosen: Mapping[str, Any]) -> tuple[pa.Table | None, str]:
    """The scans of a run's source, by the options it was started with; None, and why, where they are not there."""
    try:
        found = find_scans(chosen["source"], recorded_finding(chosen, chosen["source"]), again=True)
    except KeyError:
        return None, "the run does not say where its scans lie."
    except RaysegmentError as error:
        return None, f"the scans are not found: {error}"
    return found, ""
