"""Measure stored masks against references, without segmenting again."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from raysegment.archive.decoder import Decoder
from raysegment.archive.names import show_name
from raysegment.errors import GridMismatchError, ScanError, WorkerCrashedError
from raysegment.imaging.measure import count_by_reference, measure_mask
from raysegment.pipeline.side_by_side import run_side_by_side
from raysegment.scan import LabelMap, Mask, ReadSettings, ScanEntry, Spacing
from raysegment.store.damage import report_damage
from raysegment.store.masks import decode_mask
from raysegment.store.parts import ScanRows
from raysegment.store.place import Place
from raysegment.store.schema import ADDED_COLUMNS, STATUS_FAILED

COPIED = ("mean_probability", *ADDED_COLUMNS[3]["metrics"])
"""Columns of metrics that need probabilities and no reference."""


@dataclass(frozen=True, kw_only=True)
class RemeasureSettings:
    """What decides the numbers, and what marks their rows.

    Attributes:
        labels: Names of the masks' labels, in the tables' order.
        read: What the values of references mean, for these labels first, and how they are brought to the scan's grid.
        surface_tolerance_mm: Distance that surface Dice takes for agreement.
        options_id: Of the choices that made these numbers.
        attempt: Number of this start of the command on its output folder.
        memory_mb: Memory that decoding one reference may take.
        timeout_seconds: Time that it may take.
    """

    labels: tuple[str, ...]
    read: ReadSettings
    surface_tolerance_mm: float
    options_id: str
    attempt: int
    memory_mb: int
    timeout_seconds: float


@dataclass(frozen=True, kw_only=True)
class StoredScan:
    """A scan as the tables have it, and its reference as it lies in the archive.

    Attributes:
        scan: Row of `scans`.
        metrics: Rows of `metrics`.
        mask: Row of `masks`; None for a scan that failed.
        part: File of `masks` that the row comes from.
        entry: The reference.
        fingerprint: Of all that the numbers are made of.
        is_as_then: Whether scan and reference are the very files that were segmented and measured then, and references
            are read in the same way.
    """

    scan: Mapping[str, Any]
    metrics: Sequence[Mapping[str, Any]]
    mask: Mapping[str, Any] | None
    part: str
    entry: ScanEntry
    fingerprint: str
    is_as_then: bool


def remeasure_all(
    scans: Iterable[StoredScan], place: Place, settings: RemeasureSettings, workers: int
) -> Iterator[ScanRows]:
    """Rows of each scan as it is done, failed ones included, several at a time.

    References are decoded in a child process for each thread; what threads themselves do is NumPy and zlib, mostly
    outside of Python's lock.

    Args:
        scans: Read as they are needed.
        place: The folder that the masks come from.
        settings: What decides the numbers.
        workers: Scans in hand at the same time.

    Raises:
        DamagedTablesError: A mask cannot be unpacked.
        OutputError: The storage refuses a file.
    """
    decoders: list[Decoder] = []
    own = threading.local()

    def run(stored: StoredScan) -> ScanRows:
        if not hasattr(own, "decoder"):
            own.decoder = Decoder(settings.memory_mb, settings.timeout_seconds, settings.read)
            decoders.append(own.decoder)
        return remeasure(stored, place, own.decoder, settings)

    try:
        yield from run_side_by_side(run, scans, workers)
    finally:
        for decoder in decoders:
            decoder.close()


def remeasure(stored: StoredScan, place: Place, decoder: Decoder, settings: RemeasureSettings) -> ScanRows:
    """The rows of one scan; where its reference cannot be used, the row of a failed one.

    Raises:
        DamagedTablesError: The mask cannot be unpacked.
    """
    started = time.perf_counter()
    if stored.mask is None:
        return ScanRows(_build_row(stored, settings))
    with report_damage(place, stored.part):
        mask = decode_mask(stored.mask)
    try:
        reference = _read_reference(stored, mask, decoder)
        seconds_read = time.perf_counter() - started
        metrics = _measure(stored, mask, reference, settings)
    except ScanError as error:
        text = f"{type(error).__name__}: {error}"
        return ScanRows(_build_row(stored, settings) | _failure(error) | {"reference_error": text})
    except Exception as error:
        text = f"{stored.entry.scan_id}: {type(error).__name__}: {' '.join(str(error).split())[:500]}"
        return ScanRows(_build_row(stored, settings) | _failure(WorkerCrashedError(text)))
    seconds = {"seconds_read": seconds_read, "seconds_finish": time.perf_counter() - started - seconds_read}
    return ScanRows(_build_row(stored, settings) | seconds, metrics)


def _read_reference(stored: StoredScan, mask: Mask, decoder: Decoder) -> LabelMap:
    slices, rows, columns = mask.shape[-3:]
    # A volume that does not say where in the world it lies is only cut as its scan was if this is told.
    decoder.settings = replace(decoder.settings, slice_axis=stored.scan["slice_axis"] or "auto")
    return decoder.read_reference(stored.entry, (slices, rows, columns), _affine_of(stored.mask or {}))


def _affine_of(row: Mapping[str, Any]) -> npt.NDArray[np.float64] | None:
    return None if row["affine"] is None else np.array(row["affine"], np.float64).reshape(4, 4)


def _measure(
    stored: StoredScan, mask: Mask, reference: LabelMap, settings: RemeasureSettings
) -> tuple[dict[str, Any], ...]:
    """One row for each label, with what only probabilities tell from the tables."""
    row = stored.mask or {}
    scan_id, spacing_mm, values = row["scan_id"], row["spacing_mm"], dict(row["labels"])
    spacing: Spacing | None = None if spacing_mm is None else (spacing_mm[0], spacing_mm[1], spacing_mm[2])
    before = {metric["label"]: metric for metric in stored.metrics}
    if set(values) != set(settings.labels):
        raise GridMismatchError(
            f"{show_name(scan_id)}: its mask has the labels {', '.join(values)}, others have "
            f"{', '.join(settings.labels)}."
        )
    order = [values[name] for name in settings.labels]
    by_reference = count_by_reference(mask, order, reference, settings.read.labels)
    rows = []
    for position, name in enumerate(settings.labels):
        known = before.get(name, {})
        measured = measure_mask(
            plane_of_stored(mask, values, name),
            settings.read.labels.plane_of(reference, position),
            spacing,
            affine=_affine_of(row),
            surface_tolerance_mm=settings.surface_tolerance_mm,
        )
        measured["voxels_by_reference"] = by_reference[position]
        copied = {name: known.get(name) for name in COPIED}
        copied["dice_at_half"] = known.get("dice_at_half") if stored.is_as_then else None
        rows.append({"scan_id": scan_id, "patient_id": stored.scan["patient_id"], "label": name} | measured | copied)
    return tuple(rows)


def plane_of_stored(mask: Mask, values: Mapping[str, int], name: str) -> npt.NDArray[np.bool_]:
    """Where one label is in a mask from the tables; bool, (slices, rows, columns).

    Args:
        mask: As `decode_mask` gives it; with a leading axis where labels overlap.
        values: Value of each label in the mask, in the order of that axis.
        name: Of the label.
    """
    if mask.ndim == 4:
        return np.asarray(mask[list(values).index(name)] != 0)
    return np.asarray(mask != 0 if len(values) == 1 else mask == values[name])


def _build_row(stored: StoredScan, settings: RemeasureSettings) -> dict[str, Any]:
    """The row that the scan had, marked as these numbers'."""
    spent = {name: None for name in stored.scan if name.startswith("seconds_")}
    marks = {"fingerprint": stored.fingerprint, "options_id": settings.options_id, "attempt": settings.attempt}
    return {**stored.scan, **spent, "reference_error": None, **marks}


def _failure(error: ScanError) -> dict[str, Any]:
    return {"status": STATUS_FAILED, "error_type": type(error).__name__, "error_message": str(error)}
