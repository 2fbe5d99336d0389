"""From scans with references to training samples: kept once on the network's grid, augmented anew in each epoch."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from raysegment.errors import ChannelMismatchError, EmptyFileError
from raysegment.imaging.augment import Augmentation, augment_slice
from raysegment.imaging.geometry import Geometry, resize_reference
from raysegment.imaging.preprocess import Intensity, normalize, prepare_scan
from raysegment.options import Preprocessing
from raysegment.pipeline.score import count_voxels, find_strengths
from raysegment.pipeline.views.patches import draw_patch
from raysegment.pipeline.views.slices import view_slice, view_slices
from raysegment.pipeline.views.tiles import count_slices_at_once, predict_slices
from raysegment.scan import LabelMap, Labels, Pixels, Scan, Spacing


@dataclass(frozen=True, eq=False)
class KeptScan:
    """A scan ready for training, as compact as it came.

    Attributes:
        scan_id: As in the manifest.
        pixels: (slices, grid_rows, grid_columns, channels) of the geometry, type as stored.
        reference: Label map, (slices, grid_rows, grid_columns).
        grid_reference: Label map on the scan's own grid; None for scans to train on.
        intensity: Normalization of the whole scan.
        geometry: The way back to the scan's own grid.
    """

    scan_id: str
    pixels: Pixels
    reference: LabelMap
    grid_reference: LabelMap | None
    intensity: Intensity
    geometry: Geometry

    @property
    def compared_reference(self) -> LabelMap:
        """What masks are compared with: the reference on the scan's own grid, where it was kept."""
        return self.grid_reference if self.grid_reference is not None else self.reference

    @property
    def has_lesion(self) -> npt.NDArray[np.bool_]:
        """Which slices have any label, bool, (slices,)."""
        return np.asarray(self.reference.any(axis=(1, 2)))

    @property
    def values(self) -> list[int]:
        """The different values of its label map, ascending."""
        # Counting slice by slice is ten times as fast as sorting, and takes the memory of one.
        found = (np.flatnonzero(np.bincount(plane.ravel())).tolist() for plane in self.reference)
        return sorted(set().union(*found))


@dataclass(frozen=True)
class ValidationScore:
    """What validating one scan gives.

    Attributes:
        counts: Voxels on the scan's own grid, (labels, 3): true positives, of the mask, of the reference.
        loss_sum: Over its slices.
        num_slices: How many these are.
    """

    counts: npt.NDArray[np.int64]
    loss_sum: float
    num_slices: int

    def as_vector(self) -> list[float]:
        return [*self.counts.ravel().tolist(), self.loss_sum, self.num_slices]


def keep_scan(
    scan_id: str,
    scan: Scan,
    reference: LabelMap | npt.NDArray[np.bool_],
    preprocessing: Preprocessing,
    *,
    num_channels: int | None,
    for_validation: bool,
    spacing_mm: Spacing | None = None,
) -> KeptScan:
    """Bring a scan and its reference to the network's grid.

    Args:
        scan_id: As in the manifest.
        scan: As read.
        reference: Label map on the scan's grid; bool where there is one label.
        preprocessing: The run's choices.
        num_channels: Channels that every scan of the run has; None where that is not known.
        for_validation: Keep the reference on the scan's own grid too.
        spacing_mm: (slices, rows, columns) where the scan's format has none.

    Raises:
        ScanError: The scan does not fit the others, or its pixels are unusable.
    """
    if num_channels is not None and scan.pixels.shape[-1] != num_channels:
        raise ChannelMismatchError(
            f"the scan has {scan.pixels.shape[-1]} channels, most scans of this archive have {num_channels}."
        )
    if not scan.num_slices:
        raise EmptyFileError("the scan has no slices.")
    prepared = prepare_scan(scan.pixels, preprocessing, scan.spacing_mm or spacing_mm)
    label_map = cast(LabelMap, reference.view(np.uint8) if reference.dtype == np.bool_ else reference)
    return KeptScan(
        scan_id=scan_id,
        pixels=prepared.pixels,
        reference=cast(LabelMap, resize_reference(label_map, prepared.geometry)),
        grid_reference=label_map if for_validation else None,
        intensity=prepared.intensity,
        geometry=prepared.geometry,
    )


def pack_scan(kept: KeptScan) -> dict[str, Any]:
    """A kept scan as one row of plain columns: pixels as bytes with shape and type."""
    extras = (kept.intensity, kept.geometry, kept.grid_reference, kept.reference.dtype.str)
    return {
        "scan_id": kept.scan_id,
        "shape": list(kept.pixels.shape),
        "dtype": kept.pixels.dtype.str,
        "pixels": np.ascontiguousarray(kept.pixels).tobytes(),
        "reference": np.ascontiguousarray(kept.reference).tobytes(),
        "has_lesion": kept.has_lesion.tolist(),
        "values": kept.values,
        "extras": pickle.dumps(extras),
    }


def unpack_scan(row: dict[str, Any]) -> KeptScan:
    """The kept scan of a row from `pack_scan`; its arrays share memory with the row and are read-only."""
    shape = tuple(row["shape"])
    intensity, geometry, grid_reference, reference_type = pickle.loads(row["extras"])
    return KeptScan(
        scan_id=row["scan_id"],
        pixels=np.frombuffer(row["pixels"], np.dtype(row["dtype"])).reshape(shape),
        reference=np.frombuffer(row["reference"], np.dtype(reference_type)).reshape(shape[:3]),
        grid_reference=grid_reference,
        intensity=intensity,
        geometry=geometry,
    )


def make_batch(
    rows: Sequence[Sequence[int]],
    find_scan: Callable[[int], KeptScan],
    augmentation: Augmentation | None,
    *,
    context_slices: int,
    seed: int,
    epoch: int,
) -> tuple[npt.NDArray[np.float32], LabelMap]:
    """Make the samples of one step, in order.

    Args:
        rows: (scan index, slice index, how often that slice came before in the epoch) of each sample.
        find_scan: The kept scan of an index.
        augmentation: Largest random changes; None for none.
        context_slices: Neighbours on each side that become channels.
        seed: Of the run.
        epoch: Counted from 0.

    Returns:
        Normalized pixels (samples, rows, columns, channels) and label map (samples, rows, columns).
    """
    samples = []
    for scan_index, slice_index, occurrence in rows:
        kept = find_scan(scan_index)
        reference = kept.reference[slice_index]
        numbers = {
            "seed": seed,
            "epoch": epoch,
            "scan_index": scan_index,
            "slice_index": slice_index,
            "occurrence": occurrence,
        }
        patch = draw_patch(reference, kept.geometry.image_size, **numbers)
        if augmentation is None:
            pixels = view_slice(kept.pixels, slice_index, context_slices, patch.window)
            samples.append((normalize(pixels, kept.intensity), reference[patch.window]))
        else:
            pixels = view_slice(kept.pixels, slice_index, context_slices)
            samples.append(augment_slice(pixels, reference, kept.intensity, augmentation, patch=patch, **numbers))
    return np.stack([sample[0] for sample in samples]), np.stack([sample[1] for sample in samples])


def score_scan(
    kept: KeptScan,
    predict: Callable[[npt.NDArray[np.float32]], npt.NDArray[np.float32]],
    slice_losses: Callable[[LabelMap, npt.NDArray[np.float32]], npt.NDArray[np.float32]],
    labels: Labels,
    *,
    context_slices: int,
    batch_size: int,
) -> ValidationScore:
    """Validate one whole scan, a batch at a time: loss on the network's grid, counts at 0.5 on the scan's own.

    Args:
        kept: The scan.
        predict: Normalized pixels to all that the network gives, (slices, rows, columns, outputs): the background first
            where labels exclude each other.
        slice_losses: Label map and what `predict` gave to the loss of each slice.
        labels: What label maps mean.
        context_slices: Neighbours on each side that become channels.
        batch_size: Slices at a time.
    """
    counts, loss_sum = np.zeros((len(labels), 3), np.int64), 0.0
    for chosen, pixels in iterate_batches(kept, context_slices, batch_size):
        given = predict_slices(predict, pixels, kept.geometry)
        loss_sum += float(np.sum(slice_losses(kept.reference[chosen], given), dtype=np.float64))
        probability = given[..., 1:] if labels.exclude_each_other else given
        strengths = find_strengths(probability, kept.geometry, labels)
        references = labels.planes_of(kept.compared_reference[chosen])
        counts += [count_voxels(plane >= 0.5, drawn) for plane, drawn in zip(strengths, references, strict=True)]
    return ValidationScore(counts, loss_sum, len(kept.pixels))


def iterate_batches(
    kept: KeptScan, context_slices: int, batch_size: int
) -> Iterator[tuple[slice, npt.NDArray[np.float32]]]:
    """A scan's slices on the network's grid, float32 with their neighbours, so many at a time as fill a batch.

    Returns:
        Which slices they are, and their normalized pixels, (slices, rows, columns, channels).
    """
    step = count_slices_at_once(batch_size, kept.geometry)
    for start in range(0, len(kept.pixels), step):
        chosen = slice(start, min(start + step, len(kept.pixels)))
        views = view_slices(kept.pixels, range(chosen.start, chosen.stop), context_slices)
        yield chosen, normalize(views, kept.intensity)
