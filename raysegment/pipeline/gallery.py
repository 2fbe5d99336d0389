"""Figures of finished runs: which scans to show, their pixels read anew, their masks from the tables."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from raysegment.archive.decoder import Decoder
from raysegment.archive.manifest import entries, read_manifest
from raysegment.errors import DamagedTablesError
from raysegment.imaging.threshold import show_thresholds
from raysegment.pipeline.blocks import read_block, scans_of
from raysegment.pipeline.score import CONFUSION, mean_of
from raysegment.pipeline.segment import ScanSegmenter
from raysegment.pipeline.settings import SegmentSettings
from raysegment.scan import Labels, ReadSettings, ScanEntry, SliceAxis, Spacing
from raysegment.store.damage import report_damage
from raysegment.store.masks import decode_mask
from raysegment.store.place import Place
from raysegment.store.publish import list_parts, read_rows
from raysegment.store.schema import SCHEMAS

MAX_TRAINING_CASES = 12
"""Validation scans that are segmented to find the best, the median and the worst."""


class Shown(NamedTuple):
    """One scan that is to be drawn: its row of `masks`, and how it was cut into slices."""

    title: str
    entry: ScanEntry
    mask: Mapping[str, Any] | None
    slice_axis: SliceAxis | None


def draw_training_figures(
    folder: Path,
    *,
    best_epoch: int | None,
    best_by: str,
    spacing_mm: Spacing | None = None,
    unnamed: Path | None = None,
) -> list[Path]:
    """Draw `curves.png` and, where there are a bundle and validation scans, `predictions.png` of a training run.

    Args:
        folder: What `train` wrote.
        best_epoch: The epoch whose weights were kept; None if the run does not say yet.
        best_by: What chose it, `val_dice` or `val_loss`.
        spacing_mm: (slices, rows, columns) of scans whose format has none.
        unnamed: Folder for a second `predictions.png` without scan_ids, for others to see.

    Raises:
        DamagedTablesError: The history cannot be read.
        UsageError: The run's manifest cannot be read, or nothing can be written in the folder.
    """
    from raysegment.pictures.figures import draw_curves

    figures = [_make_folder(folder) / "curves.png"]
    history = _read_parquet(folder / "history.parquet").to_pydict()
    draw_curves(history, figures[0], best_epoch=best_epoch, best_by=best_by)
    manifest = folder / "manifest.parquet"
    if manifest.is_file() and (folder / "model").is_dir():
        table = read_manifest(str(manifest))
        table = table.filter(pc.fill_null(pc.equal(table["split"], "val"), False))
        figures += _draw_validation(folder, list(entries(table.slice(0, MAX_TRAINING_CASES))), spacing_mm, unnamed)
    return figures


def draw_inference_figures(
    folder: Path, manifest: pa.Table | None, labels: Labels | None = None, reference_labels: Labels | None = None
) -> list[Path]:
    """Draw what the tables of an output folder allow.

    Args:
        folder: What `infer` or `evaluate` wrote.
        manifest: Scans to take into account; None where they are not known, so that no scan can be shown.
        labels: Of the model; as the masks name them if not given.
        reference_labels: The values of the same labels in references; as in `labels` if not given.

    Returns:
        `predictions.png`; and with references `confusion_matrix.png` and `dice_per_scan.png`.

    Raises:
        DamagedTablesError: The tables cannot be read.
        UsageError: Nothing can be written in the folder.
    """
    place = Place(str(folder))
    metrics = read_rows(place, "metrics")
    if manifest is not None:
        metrics = metrics.filter(pc.is_in(metrics["scan_id"], value_set=manifest["scan_id"].combine_chunks()))
    compared = metrics.filter(pc.is_valid(metrics["dice"]))
    figures = _draw_scores(_make_folder(folder), compared, labels) if compared.num_rows else []
    if manifest is not None and metrics.num_rows:
        shown = _choose_rows(compared if compared.num_rows else metrics)
        figures += _draw_stored(place, _make_folder(folder), manifest, shown, labels, reference_labels)
    return figures


def _draw_scores(folder: Path, metrics: pa.Table, labels: Labels | None) -> list[Path]:
    from raysegment.pictures.figures import draw_confusion_between, draw_confusion_matrix, draw_dice_per_scan

    by_label = {
        name: metrics.filter(pc.equal(metrics["label"], name)) for name in metrics["label"].unique().to_pylist()
    }
    confusion = {
        label: {name: int(pc.sum(rows[name]).as_py()) for name in CONFUSION} for label, rows in by_label.items()
    }
    between = _count_between(by_label)
    if between is None:
        draw_confusion_matrix(confusion, folder / "confusion_matrix.png")
    else:
        draw_confusion_between(list(by_label), between, folder / "confusion_matrix.png")
    ids, dice = _mean_over_labels(metrics, "dice")
    apart = {}
    for label, rows in by_label.items() if len(by_label) > 1 else ():
        known = dict(zip(rows["scan_id"].to_pylist(), rows["dice"].to_pylist(), strict=True))
        apart[label] = [known.get(scan_id, math.nan) for scan_id in ids]
    draw_dice_per_scan(ids, dice.tolist(), folder / "dice_per_scan.png", by_label=apart, labels=labels)
    return [folder / "confusion_matrix.png", folder / "dice_per_scan.png"]


def _count_between(by_label: Mapping[str, pa.Table]) -> npt.NDArray[np.int64] | None:
    """Voxels of all scans by what reference and mask have there, background first; None where that is not known."""
    if len(by_label) < 2 or any(rows["voxels_by_reference"].null_count for rows in by_label.values()):
        return None
    of_labels = [np.array(rows["voxels_by_reference"].to_pylist(), np.int64).sum(axis=0) for rows in by_label.values()]
    first = next(iter(by_label.values()))
    total = sum(int(pc.sum(first[name]).as_py()) for name in CONFUSION)
    in_reference = [int(pc.sum(rows["reference_voxels"]).as_py()) for rows in by_label.values()]
    drawn = np.array([total - sum(in_reference), *in_reference])
    found = np.stack(of_labels, axis=1)
    return np.column_stack([drawn - found.sum(axis=1), found])


def _mean_over_labels(metrics: pa.Table, name: str) -> tuple[list[str], npt.NDArray[np.float64]]:
    """The scans, in the order of their first rows, and a number of each: the mean over its labels, NaN left out."""
    values = metrics[name].cast(pa.float64()).to_numpy()
    encoded = metrics["scan_id"].combine_chunks().dictionary_encode()
    scan, known = encoded.indices.to_numpy(), ~np.isnan(values)
    sums = np.bincount(scan[known], values[known], minlength=len(encoded.dictionary))
    counts = np.bincount(scan[known], minlength=len(encoded.dictionary))
    means = np.divide(sums, counts, out=np.full(len(sums), math.nan), where=counts > 0)
    return encoded.dictionary.to_pylist(), means


def _choose_rows(metrics: pa.Table) -> list[tuple[str, str]]:
    """Title and scan_id of the scans to show; without references those with the largest, a middle and no mask."""
    from raysegment.pictures.predictions import choose_cases

    if metrics["dice"].null_count < metrics.num_rows:
        ids, dice = _mean_over_labels(metrics, "dice")
        chosen = choose_cases(dice.tolist())
        return [(f"{word}, Dice {dice[index]:.2f}\n{ids[index]}", ids[index]) for word, index in chosen]
    totals = metrics.group_by("scan_id", use_threads=False).aggregate([("voxels", "sum")])
    ids, voxels = totals["scan_id"].to_pylist(), totals["voxels_sum"].to_numpy()
    order = np.argsort(-voxels, kind="stable")
    picked = dict.fromkeys(int(order[position]) for position in (0, len(order) // 2, -1))
    return [(f"{voxels[index]} voxels\n{ids[index]}", ids[index]) for index in picked]


def _draw_stored(
    place: Place,
    folder: Path,
    manifest: pa.Table,
    shown: list[tuple[str, str]],
    labels: Labels | None,
    reference_labels: Labels | None,
) -> list[Path]:
    ids = [scan_id for _, scan_id in shown]
    masks = {scan_id: _find_mask(place, scan_id) for scan_id in ids}
    wanted = manifest.filter(pc.is_in(manifest["scan_id"], value_set=pa.array(ids, pa.string())))
    by_id = {entry.scan_id: entry for entry in entries(wanted)}
    scans = read_rows(place, "scans", ["scan_id", "slice_axis"])
    scans = scans.filter(pc.is_in(scans["scan_id"], value_set=pa.array(ids, pa.string())))
    axes = dict(zip(scans["scan_id"].to_pylist(), scans["slice_axis"].to_pylist(), strict=True))
    known = [
        Shown(title, by_id[scan_id], masks[scan_id], axes.get(scan_id)) for title, scan_id in shown if scan_id in by_id
    ]
    stored = next((row for row in masks.values() if row is not None), None)
    if stored is None:
        return []
    labels = labels or _labels_of(stored)
    return _draw_cases(folder, known, labels, reference_labels or labels)


def _draw_cases(
    folder: Path,
    shown: Sequence[Shown],
    labels: Labels,
    reference_labels: Labels,
    unnamed: Path | None = None,
) -> list[Path]:
    """Draw scans with the rows of their masks; those that cannot be read any more are left out."""
    from raysegment.pictures.predictions import draw_predictions, make_case

    cases = []
    with Decoder() as decoder:
        for title, entry, row, slice_axis in shown:
            if row is None:
                continue
            mask = decode_mask(row)
            decoder.settings = ReadSettings(
                labels=reference_labels, slice_axis=slice_axis or "auto", resample_channels=True
            )
            read = next(scans_of(next(read_block(decoder, [entry]))))
            if read.scan is not None and mask.shape[-3:] == read.scan.grid:
                cases.append(make_case(title, read.scan.pixels, read.reference, mask, labels, reference_labels))
    if not cases:
        return []
    draw_predictions(cases, folder / "predictions.png", labels)
    if unnamed is not None:
        unnamed.mkdir(parents=True, exist_ok=True)
        others = [replace(case, title=case.title.splitlines()[0]) for case in cases]
        draw_predictions(others, unnamed / "predictions.png", labels)
    return [folder / "predictions.png"]


def _draw_validation(
    folder: Path, scans: list[ScanEntry], spacing_mm: Spacing | None, unnamed: Path | None
) -> list[Path]:
    """Segment some validation scans with the run's bundle, and show the best, the median and the worst."""
    from raysegment.model.bundle import load_bundle
    from raysegment.model.engines.tensorflow import Predictor
    from raysegment.pictures.predictions import choose_cases

    bundle = load_bundle(folder)
    settings = SegmentSettings(
        preprocessing=bundle.preprocessing,
        postprocessing=replace(bundle.postprocessing, threshold=show_thresholds(bundle.threshold, bundle.labels)),
        labels=bundle.labels,
        num_channels=bundle.num_channels,
        grid_factor=bundle.grid_factor,
        spacing_mm=spacing_mm,
        foreground_box=False,
        needs_reference=True,
    )
    segmenter = ScanSegmenter(Predictor(bundle).predict_each, settings)
    read_settings = ReadSettings(
        labels=bundle.labels, slice_axis=bundle.preprocessing.slice_axis, resample_channels=True
    )
    with Decoder(settings=read_settings) as decoder:
        blocks = (block for entry in scans for block in read_block(decoder, [entry]))
        rows = [row for block in blocks for row in segmenter.segment(scans_of(block)) if row.mask is not None]
    dice = [mean_of(np.array([metric["dice"] for metric in row.metrics], np.float64)) for row in rows]
    by_id = {entry.scan_id: entry for entry in scans}
    shown = []
    for word, index in choose_cases(dice):
        row = rows[index]
        title = f"{word} of {len(rows)}, Dice {dice[index]:.2f}\n{row.scan_id}"
        shown.append(Shown(title, by_id[row.scan_id], row.mask, row.scan["slice_axis"]))
    return _draw_cases(folder / "figures", shown, bundle.labels, bundle.labels, unnamed)


def _labels_of(row: Mapping[str, Any]) -> Labels:
    """Labels as far as a mask tells; where they overlap, nothing says which values they have in references."""
    names, values = zip(*row["labels"], strict=True)
    if len(names) == 1:
        return Labels(names)
    if len(row["shape"]) == 4:
        return Labels(names, tuple((1, position + 2) for position in range(len(names))))
    return Labels(names, tuple((value,) for value in values))


def _find_mask(place: Place, scan_id: str) -> dict[str, Any] | None:
    """The row of one scan's mask, or None; parts are looked through one by one, so memory stays small."""
    for name in list_parts(place, "masks"):
        with report_damage(place, f"masks/{name}"):
            found = pq.read_table(
                place.path(f"masks/{name}"),
                filesystem=place.filesystem,
                schema=SCHEMAS["masks"],
                filters=pc.field("scan_id") == scan_id,
                partitioning=None,
            )
            if found.num_rows:
                return dict(found.to_pylist()[0])
    return None


def _read_parquet(path: Path) -> pa.Table:
    try:
        return pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise DamagedTablesError(f"{path} cannot be read: {' '.join(str(error).split())[:200]}.") from error


def _make_folder(folder: Path) -> Path:
    figures = folder / "figures"
    Place(str(figures)).make_writable()
    return figures
