"""Segment scans from pixels to table rows: prepare, predict, restore, clean, measure."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from raysegment.archive.names import drop_seals
from raysegment.archive.orientation import plane_of
from raysegment.errors import (
    NetworkFailedError,
    ScanError,
    UnreadableReferenceError,
    WorkerCrashedError,
    parse_scan_error,
    scan_error,
)
from raysegment.imaging.measure import count_by_reference, measure_mask
from raysegment.imaging.postprocess import clean_labels
from raysegment.imaging.preprocess import (
    PreparedScan,
    check_channels,
    normalize,
    prepare_scan,
    select_channels,
)
from raysegment.imaging.quantiles import measure_quantiles
from raysegment.pipeline.blocks import ReadScan
from raysegment.pipeline.doubt import judge_doubt, measure_doubt
from raysegment.pipeline.passes import Agreement, Passes, PredictEach, Values, run_passes, smooth_over_slices
from raysegment.pipeline.settings import SegmentSettings
from raysegment.pipeline.sides import check_orientation, find_swaps
from raysegment.pipeline.slabs import RawMask, Slabs, threshold_slabs
from raysegment.pipeline.views.slices import view_slice
from raysegment.pipeline.views.tiles import View, add_view, cut_views, group_by_shape
from raysegment.pipeline.views.windows import Windows, find_windows, skip_empty, whole_windows
from raysegment.scan import Mask, Scan, SliceAxis, Spacing
from raysegment.store.masks import encode_mask
from raysegment.store.parts import ScanRows
from raysegment.store.schema import STATUS_FAILED, STATUS_OK

POOLED_SLICES = 4
"""Scans with at most this many slices share batches, which are always full; others have their own."""


LARGE_BYTES = 256 * 2**20
"""From this size on probabilities of several labels are held in half precision until they are thresholded."""


@dataclass(eq=False)
class Work:
    """One scan on its way to a mask.

    Attributes:
        views: What the network sees of each slice.
        probability: (labels, slices, grid_rows, grid_columns) from `allocate_probability`; 0 where the network saw
            nothing. The mean over mirrored passes and members; smoothed over slices once the scan is being finished.
        agreement: How far these agree.
        intensity_quantiles: Of the chosen channels as stored.
    """

    read: ReadScan
    scan: Scan
    prepared: PreparedScan
    views: list[View]
    probability: npt.NDArray[np.floating[Any]]
    seconds: dict[str, float] = field(default_factory=dict)
    agreement: Agreement = field(default_factory=Agreement)
    intensity_quantiles: list[float] = field(default_factory=list)


class ScanSegmenter:
    """Segments scans with one loaded network, or the members of an ensemble; several threads may share it.

    Few threads are inside the network at a time; the others prepare and finish their scans meanwhile.

    Args:
        predict_each: The network, or all members.
        settings: What decides the masks.
        lanes: Threads that may be inside the network.

    Raises:
        UsageError: Sides of the body would be mistaken for each other, see `sides.find_swaps`.

    Attributes:
        first_prediction: When the first probabilities came out of the network, in seconds since 1970.
    """

    def __init__(self, predict_each: PredictEach, settings: SegmentSettings, *, lanes: int = 1) -> None:
        self.settings = settings
        self.first_prediction: float | None = None
        self._predict_each = predict_each
        self._swaps = find_swaps(settings.labels, settings.mirror, settings.preprocessing.slice_axis)
        self._network_room = threading.Semaphore(lanes)

    def segment(self, reads: Iterator[ReadScan] | list[ReadScan]) -> Iterator[ScanRows]:
        """Rows for each scan, failed ones included; small scans come together after the others."""
        pooled: list[Work] = []
        for read in reads:
            work = self._attempt_prepare(read)
            if isinstance(work, ScanRows):
                yield work
            elif len(work.prepared.pixels) <= POOLED_SLICES:
                pooled.append(work)
                if sum(len(item.views) for item in pooled) >= 4 * self.settings.batch_size:
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
        check_orientation(read.scan, self.settings.labels, self.settings.mirror)
        spacing_mm = read.scan.spacing_mm or self.settings.spacing_mm
        prepared = prepare_scan(read.scan.pixels, self.settings.preprocessing, spacing_mm)
        work = Work(
            read=read,
            scan=read.scan,
            prepared=prepared,
            views=cut_views(self._find_windows(read.scan, prepared), prepared.geometry),
            probability=allocate_probability(len(self.settings.labels), prepared.pixels.shape[:3]),
            intensity_quantiles=measure_quantiles(
                select_channels(read.scan.pixels, self.settings.preprocessing.channels)
            ),
        )
        work.seconds = {"read": read.seconds_read, "prepare": time.perf_counter() - started, "predict": 0.0}
        return work

    def predict_alone(self, work: Work) -> None:
        """Fill the probabilities of one scan from batches of its own."""
        size = self.settings.batch_size
        for group in group_by_shape(work.views):
            for start in range(0, len(group), size):
                views = group[start : start + size]
                passes = self._run_passes([work], self._gather(work, views))
                self._scatter(work, views, passes, slice(0, len(views)))

    def finish(self, work: Work) -> ScanRows:
        """From probabilities to the rows of the tables."""
        started = time.perf_counter()
        settings, read = self.settings, work.read
        if settings.postprocessing.smooth_slices:
            smooth_over_slices(work.probability)
        slabs = Slabs(work.probability, work.prepared.geometry)
        raw = threshold_slabs(slabs, settings.labels, settings.thresholds, read.reference, settings.drawn_labels)
        mask = clean_labels(
            raw.mask,
            settings.labels,
            min_component_voxels=settings.postprocessing.min_component_voxels or 0,
            largest_component=bool(settings.postprocessing.largest_component),
            fill_holes=bool(settings.postprocessing.fill_holes),
        )
        spacing_mm = work.scan.spacing_mm or settings.spacing_mm
        metrics = self._measure_labels(work, slabs, raw, mask, spacing_mm)
        encoded = encode_mask(
            read.scan_id, mask, labels=settings.labels.mask_values, spacing_mm=spacing_mm, affine=work.scan.affine
        )
        work.seconds["finish"] = time.perf_counter() - started
        row = _build_row(read, spacing_mm, work.seconds, settings) | {"intensity_quantiles": work.intensity_quantiles}
        return ScanRows(row, metrics, encoded)

    def _measure_labels(
        self, work: Work, slabs: Slabs, raw: RawMask, mask: Mask, spacing_mm: Spacing | None
    ) -> tuple[dict[str, Any], ...]:
        """One row for each label, with what tells when to doubt it."""
        settings, read, labels = self.settings, work.read, self.settings.labels
        by_reference = count_by_reference(
            mask, list(labels.mask_values.values()), read.reference, settings.drawn_labels
        )
        doubts = measure_doubt(slabs, labels, mask, raw, work.agreement)
        rows = (
            {"scan_id": read.scan_id, "patient_id": read.patient_id, "label": name}
            | {"voxels_by_reference": by_reference[position]}
            | self._measure(read, mask, position, spacing_mm, raw.dice_at_half[position])
            | {"mean_probability": slabs.mean_inside(position, labels.plane_of_mask(mask, position))}
            | doubts[position]
            for position, name in enumerate(labels.names)
        )
        return tuple(judge_doubt(row, settings.doubt, work.scan.grid[1:]) for row in rows)

    def _measure(
        self, read: ReadScan, mask: Mask, position: int, spacing_mm: Spacing | None, dice_at_half: float
    ) -> dict[str, Any]:
        """The numbers of one label that its mask, and its part of the reference, tell."""
        plane, reference = self.settings.labels.plane_of_mask(mask, position), None
        if read.reference is not None:
            reference = self.settings.drawn_labels.plane_of(read.reference, position)
        return measure_mask(
            plane,
            reference,
            spacing_mm,
            affine=None if read.scan is None else read.scan.affine,
            dice_at_half=dice_at_half,
            surface_tolerance_mm=self.settings.surface_tolerance_mm,
        )

    def _segment_pooled(self, pooled: list[Work]) -> Iterator[ScanRows]:
        """Fill full batches with slices of many small scans; the last one is padded to the same size."""
        size = self.settings.batch_size
        views = [(work, view) for work in pooled for view in work.views]
        for start in range(0, len(views), size):
            group = views[start : start + size]
            batch = np.concatenate([self._gather(work, [view]) for work, view in group])
            passes = self._run_passes([work for work, _ in group], _pad(batch, size))
            for index, (work, view) in enumerate(group):
                self._scatter(work, [view], passes, slice(index, index + 1))
        for work in pooled:
            yield self._attempt_finish(work, None)

    def _find_windows(self, scan: Scan, prepared: PreparedScan) -> Windows:
        windows = whole_windows(prepared)
        if not self.settings.foreground_box:
            return windows
        reach = self.settings.preprocessing.context_slices
        is_small = len(windows) <= POOLED_SLICES
        if self.settings.preprocessing.crop == "none" and not is_small and not self.settings.sees_whole_slices:
            chosen = select_channels(scan.pixels, self.settings.preprocessing.channels)
            windows = find_windows(chosen, prepared, context_slices=reach, grid_factor=self.settings.grid_factor)
        return skip_empty(windows, prepared, reach)

    def _gather(self, work: Work, views: Sequence[View]) -> npt.NDArray[np.float32]:
        """Normalized slices with their neighbours as channels, through windows of one shape."""
        pixels, reach = work.prepared.pixels, self.settings.preprocessing.context_slices
        seen = [view_slice(pixels, view.position, reach, view.window.window) for view in views]
        return normalize(np.stack(seen), work.prepared.intensity)

    def _scatter(self, work: Work, views: Sequence[View], passes: Passes, chosen: slice) -> None:
        """Put what was found in some slices of a batch where it belongs in their scan."""
        for view, probability in zip(views, passes.probability[chosen], strict=True):
            planes = np.moveaxis(work.probability[:, view.position], 0, -1)
            add_view(planes, probability, view.window, work.prepared.geometry)
        work.agreement.add(passes, chosen)

    def _run_passes(self, works: list[Work], batch: Values) -> Passes:
        """All passes over a batch; other threads may be in the network between them."""
        settings = self.settings
        return run_passes(
            lambda seen: self._timed_predict(works, seen),
            batch,
            settings.mirror,
            self._swaps,
            settings.thresholds,
            settings.labels,
        )

    def _timed_predict(self, works: list[Work], batch: Values) -> list[Values]:
        """Run the network; its failure is no scan's fault and ends this worker."""
        with self._network_room:
            started = time.perf_counter()
            try:
                found = self._predict_each(batch)
            except Exception as error:
                raise NetworkFailedError(f"{type(error).__name__}: {' '.join(str(error).split())[:300]}") from error
            seconds = time.perf_counter() - started
            self.first_prediction = self.first_prediction or time.time()
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
        except NetworkFailedError:
            raise
        except ScanError as error:
            return fail_scan(work.read, error, self.settings)
        except Exception as error:
            return fail_scan(work.read, _unexpected(work.read, error), self.settings)


def allocate_probability(num_labels: int, grid: tuple[int, ...]) -> npt.NDArray[np.floating[Any]]:
    """Zeros (labels, slices, rows, columns): float32, but float16 for several labels on a grid of `LARGE_BYTES`.

    Half precision keeps probabilities to within 0.0005, and large volumes to half the memory. One label stays as it is,
    so that its masks do not change.
    """
    shape = (num_labels, *grid)
    is_large = num_labels > 1 and 4 * math.prod(shape) > LARGE_BYTES
    return np.zeros(shape, np.float16 if is_large else np.float32)


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
        "source": drop_seals(read.source),
        "fingerprint": read.fingerprint,
        "scan_date": read.scan_date,
        "scan_day": read.scan_day,
        "status": STATUS_OK,
        "reference_error": read.reference_error,
        "num_slices": grid[0],
        "height": grid[1],
        "width": grid[2],
        "spacing_mm": None if spacing_mm is None else list(spacing_mm),
        "slice_axis": None if read.scan is None else _name_slice_axis(read.scan, settings.preprocessing.slice_axis),
        "model_id": settings.model_id,
        "options_id": settings.options_id,
        "attempt": settings.attempt,
        **{f"seconds_{stage}": spent for stage, spent in seconds.items()},
    }


def _name_slice_axis(scan: Scan, chosen: SliceAxis) -> str | None:
    """What slices of a volume are; as it was chosen where the file does not say where in the world they lie."""
    if scan.affine is not None:
        return plane_of(scan.affine)
    return None if scan.spacing_mm is None else chosen


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
    return parse_scan_error(read.reference_error)
