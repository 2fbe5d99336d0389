"""Segment scans from pixels to table rows: prepare, predict, restore, clean, measure."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from raysegment.errors import ScanError, UnreadableReferenceError, WorkerCrashedError, scan_error
from raysegment.imaging.measure import measure_mask
from raysegment.imaging.postprocess import clean_mask, threshold_probability
from raysegment.imaging.preprocess import (
    Box,
    PreparedScan,
    check_channels,
    foreground_box,
    normalize,
    prepare_scan,
    restore_grid,
    round_box,
)
from raysegment.options import Postprocessing, Preprocessing
from raysegment.pipeline.blocks import ReadScan
from raysegment.scan import Labels, Mask, Scan, Spacing
from raysegment.store.masks import encode_mask
from raysegment.store.parts import ScanRows
from raysegment.store.schema import STATUS_FAILED, STATUS_OK

Probability = npt.NDArray[np.float32]
"""(slices, image_size, image_size)."""

Predict = Callable[[npt.NDArray[np.float32]], Probability]
"""float32 (slices, rows, columns, channels) to float32 (slices, rows, columns)."""

POOLED_SLICES = 4
"""Scans with at most this many slices share batches, which are always full; others have their own."""

BOX_MARGIN = 16
BOX_STEPS = 8
"""Sides of foreground boxes are multiples of the image size over this, so that few shapes occur."""


@dataclass(frozen=True, kw_only=True)
class SegmentSettings:
    """What decides a mask, resolved once by the driver for all workers, and what marks its rows.

    Attributes:
        postprocessing: Every choice is set.
        num_channels: Channels that the model expects of a scan as read.
        grid_factor: Sides of the network's input must divide by this.
        needs_reference: A scan without a usable reference fails.
        attempt: Number of this start of the command on its output folder.
    """

    preprocessing: Preprocessing
    postprocessing: Postprocessing
    labels: Labels
    num_channels: int
    grid_factor: int
    spacing_mm: Spacing | None = None
    foreground_box: bool = True
    batch_size: int = 16
    needs_reference: bool = False
    model_id: str = ""
    options_id: str = ""
    attempt: int = 1


@dataclass(eq=False)
class Work:
    """One scan on its way to a mask.

    Attributes:
        box: Part of the network's grid that the network sees.
        positions: Slices that the network sees; the others hold nothing.
        probability: (slices, image_size, image_size); 0 where the network saw nothing.
    """

    read: ReadScan
    scan: Scan
    prepared: PreparedScan
    box: Box
    positions: npt.NDArray[np.intp]
    probability: Probability
    seconds: dict[str, float] = field(default_factory=dict)


class ScanSegmenter:
    """Segments scans with one loaded network; several threads may share it.

    Only one thread at a time is inside the network; the others prepare and finish their scans meanwhile.

    Args:
        predict: The network.
        settings: What decides the masks.
    """

    def __init__(self, predict: Predict, settings: SegmentSettings) -> None:
        self.settings = settings
        self._predict = predict
        self._network_lock = threading.Lock()

    def segment(self, reads: Iterator[ReadScan] | list[ReadScan]) -> Iterator[ScanRows]:
        """Rows for each scan, failed ones included; small scans come together after the others."""
        pooled: list[Work] = []
        for read in reads:
            work = self._attempt_prepare(read)
            if isinstance(work, ScanRows):
                yield work
            elif len(work.probability) <= POOLED_SLICES:
                pooled.append(work)
                if sum(len(item.positions) for item in pooled) >= 4 * self.settings.batch_size:
                    yield from self._segment_pooled(pooled)
                    pooled = []
            else:
                yield self._attempt_finish(work, self.predict_alone)
        yield from self._segment_pooled(pooled)

    def prepare(self, read: ReadScan) -> Work:
        """Bring a scan to the network's grid and find where there is anything to see.

        Raises:
            ScanError: The scan or, where one is needed, its reference cannot be used.
        """
        started = time.perf_counter()
        if read.scan is None:
            raise _error_of(read)
        if self.settings.needs_reference and read.reference is None:
            raise _reference_error_of(read)
        check_channels(read.scan.pixels, self.settings.num_channels)
        prepared = prepare_scan(read.scan.pixels, self.settings.preprocessing)
        size = prepared.pixels.shape[1]
        work = Work(
            read=read,
            scan=read.scan,
            prepared=prepared,
            box=self._find_box(read.scan, prepared),
            positions=self._find_positions(prepared),
            probability=np.zeros((len(prepared.pixels), size, size), np.float32),
        )
        work.seconds = {"read": read.seconds_read, "prepare": time.perf_counter() - started, "predict": 0.0}
        return work

    def predict_alone(self, work: Work) -> None:
        """Fill the probabilities of one scan from batches of its own."""
        size = self.settings.batch_size
        for start in range(0, len(work.positions), size):
            positions = work.positions[start : start + size]
            batch = _pad(self._gather(work, positions), round_up_batch(len(positions), size))
            self._scatter(work, positions, self._timed_predict([work], batch)[: len(positions)])

    def finish(self, work: Work) -> ScanRows:
        """From probabilities to the rows of the tables."""
        started = time.perf_counter()
        choices, labels = self.settings.postprocessing, self.settings.labels
        probability = restore_grid(work.probability, work.prepared.geometry)
        mask: Mask = clean_mask(
            threshold_probability(probability, 0.5 if choices.threshold is None else choices.threshold),
            min_component_voxels=choices.min_component_voxels or 0,
            largest_component=bool(choices.largest_component),
            fill_holes=bool(choices.fill_holes),
        )
        spacing_mm = work.scan.spacing_mm or self.settings.spacing_mm
        measured = measure_mask(mask, work.read.reference, probability, spacing_mm)
        scan_id = work.read.scan_id
        metric = {"scan_id": scan_id, "label": labels.names[0], **measured}
        encoded = encode_mask(scan_id, mask, labels=labels.values, spacing_mm=spacing_mm, affine=work.scan.affine)
        work.seconds["finish"] = time.perf_counter() - started
        return ScanRows(_build_row(work.read, spacing_mm, work.seconds, self.settings), (metric,), encoded)

    def _segment_pooled(self, pooled: list[Work]) -> Iterator[ScanRows]:
        """Fill full batches with slices of many small scans; the last one is padded to the same size."""
        size = self.settings.batch_size
        slices = [(work, int(position)) for work in pooled for position in work.positions]
        for start in range(0, len(slices), size):
            group = slices[start : start + size]
            batch = np.concatenate([self._gather(work, np.array([position])) for work, position in group])
            found = self._timed_predict([work for work, _ in group], _pad(batch, size))
            for (work, position), probability in zip(group, found, strict=False):
                self._scatter(work, np.array([position]), probability[None])
        for work in pooled:
            yield self._attempt_finish(work, None)

    def _find_box(self, scan: Scan, prepared: PreparedScan) -> Box:
        """The part of the network's grid around the scan's foreground; everything where boxes are not wanted."""
        size = prepared.geometry.image_size
        whole = Box(0, size, 0, size)
        is_small = scan.num_slices <= POOLED_SLICES
        if not self.settings.foreground_box or self.settings.preprocessing.crop != "none" or is_small:
            return whole
        found = foreground_box(scan.pixels, BOX_MARGIN)
        if found is None:
            return whole
        geometry = prepared.geometry
        row_scale = geometry.scaled_rows / geometry.box.rows
        column_scale = geometry.scaled_columns / geometry.box.columns
        box = Box(
            max(0, geometry.target.row_start + int(np.floor(found.row_start * row_scale))),
            min(size, geometry.target.row_start + int(np.ceil(found.row_stop * row_scale))),
            max(0, geometry.target.column_start + int(np.floor(found.column_start * column_scale))),
            min(size, geometry.target.column_start + int(np.ceil(found.column_stop * column_scale))),
        )
        step = max(32, self.settings.grid_factor, size // BOX_STEPS)
        return round_box(box, size, size, multiple=-(-step // self.settings.grid_factor) * self.settings.grid_factor)

    def _find_positions(self, prepared: PreparedScan) -> npt.NDArray[np.intp]:
        """Slices with anything in them, or all of them where the network is to see everything."""
        pixels = prepared.pixels
        if not self.settings.foreground_box:
            return np.arange(len(pixels))
        corner = pixels[:, :1, :1]
        holds = np.array([bool((plane != first).any()) for plane, first in zip(pixels, corner, strict=True)])
        reach = self.settings.preprocessing.context_slices
        if reach:
            holds = np.convolve(holds, np.ones(2 * reach + 1), "same") > 0
        return np.flatnonzero(holds)

    def _gather(self, work: Work, positions: npt.NDArray[np.intp]) -> npt.NDArray[np.float32]:
        """Normalized slices with their neighbours as channels, within the box."""
        pixels, reach = work.prepared.pixels, self.settings.preprocessing.context_slices
        rows, columns = work.box.window
        last = len(pixels) - 1
        neighbours = [np.clip(positions + shift, 0, last) for shift in range(-reach, reach + 1)]
        stacked = [pixels[chosen, rows, columns] for chosen in neighbours]
        return normalize(stacked[0] if len(stacked) == 1 else np.concatenate(stacked, axis=3), work.prepared.intensity)

    def _scatter(self, work: Work, positions: npt.NDArray[np.intp], found: Probability) -> None:
        rows, columns = work.box.window
        work.probability[positions, rows, columns] = found

    def _timed_predict(self, works: list[Work], batch: npt.NDArray[np.float32]) -> Probability:
        with self._network_lock:
            started = time.perf_counter()
            found = self._predict(batch)
            seconds = time.perf_counter() - started
        for work in works:
            work.seconds["predict"] += seconds / len(works)
        return found

    def _attempt_prepare(self, read: ReadScan) -> Work | ScanRows:
        try:
            return self.prepare(read)
        except ScanError as error:
            return fail_scan(read, error, self.settings)
        except Exception as error:
            return fail_scan(read, _unexpected(read, error), self.settings)

    def _attempt_finish(self, work: Work, predict: Callable[[Work], None] | None) -> ScanRows:
        try:
            if predict is not None:
                predict(work)
            return self.finish(work)
        except ScanError as error:
            return fail_scan(work.read, error, self.settings)
        except Exception as error:
            return fail_scan(work.read, _unexpected(work.read, error), self.settings)


def fail_scan(read: ReadScan, error: ScanError, settings: SegmentSettings) -> ScanRows:
    """The row of a scan that failed."""
    spacing_mm = None if read.scan is None else read.scan.spacing_mm
    row = _build_row(read, spacing_mm, {"read": read.seconds_read}, settings)
    return ScanRows(row | {"status": STATUS_FAILED, "error_type": type(error).__name__, "error_message": str(error)})


def _build_row(
    read: ReadScan, spacing_mm: Spacing | None, seconds: dict[str, float], settings: SegmentSettings
) -> dict[str, Any]:
    grid = (None, None, None) if read.scan is None else read.scan.grid
    return {
        "scan_id": read.scan_id,
        "patient_id": read.patient_id,
        "source": read.source,
        "fingerprint": read.fingerprint,
        "status": STATUS_OK,
        "reference_error": read.reference_error,
        "num_slices": grid[0],
        "height": grid[1],
        "width": grid[2],
        "spacing_mm": None if spacing_mm is None else list(spacing_mm),
        "model_id": settings.model_id,
        "options_id": settings.options_id,
        "attempt": settings.attempt,
        **{f"seconds_{stage}": spent for stage, spent in seconds.items()},
    }


def round_up_batch(num_slices: int, batch_size: int) -> int:
    """The fixed batch that holds a scan's last slices: 4, 8, 16 … or the full one; it depends on the scan alone."""
    size = min(4, batch_size)
    while size < num_slices:
        size *= 2
    return min(size, batch_size)


def _pad(batch: npt.NDArray[np.float32], size: int) -> npt.NDArray[np.float32]:
    if len(batch) == size:
        return batch
    padded = np.zeros((size, *batch.shape[1:]), np.float32)
    padded[: len(batch)] = batch
    return padded


def _unexpected(read: ReadScan, error: Exception) -> ScanError:
    return WorkerCrashedError(f"{read.scan_id}: {type(error).__name__}: {' '.join(str(error).split())[:500]}")


def _error_of(read: ReadScan) -> ScanError:
    error_type, message = read.error or ("UnreadableFileError", f"{read.scan_id}: nothing was read.")
    return scan_error(error_type, message)


def _reference_error_of(read: ReadScan) -> ScanError:
    if read.reference_error is None:
        return UnreadableReferenceError(f"{read.scan_id}: the scan has no reference.")
    error_type, _, message = read.reference_error.partition(": ")
    return scan_error(error_type, message)
