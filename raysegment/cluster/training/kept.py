"""Training scans read once, in parallel, and kept in Ray's object store."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import ray
import ray.data
from ray.data import DataContext, TaskPoolStrategy

from raysegment.archive.decoder import Decoder
from raysegment.archive.manifest import entry_of
from raysegment.choices import pick
from raysegment.cluster.ray_internals import list_blocks, watch_lost_tasks
from raysegment.cluster.session import live_nodes
from raysegment.errors import (
    ClusterError,
    ReaderCrashedError,
    ScanError,
    UnreadableReferenceError,
    WorkerCrashedError,
    parse_scan_error,
)
from raysegment.imaging.preprocess import select_channels
from raysegment.imaging.quantiles import measure_quantiles
from raysegment.options import Preprocessing, TrainOptions
from raysegment.pipeline.doubt import ReferenceSize
from raysegment.pipeline.samples import KeptScan, keep_scan, pack_scan, unpack_scan
from raysegment.pipeline.training_features import ScanTraits
from raysegment.scan import LabelMap, Labels, ReadSettings, Scan, Spacing, as_spacing, voxel_volume_mm3

MAX_RETRIES = 3
"""Times that a data task or actor is started again after its process or node was lost."""

NO_REFERENCE = f"{UnreadableReferenceError.__name__}: the scan has no reference."
BUFFERS = ("pixels", "reference")
PIXELS = ("shape", "dtype", *BUFFERS, "extras")
"""Columns that only `unpack_scan` needs."""

READ_MEMORY_MB = 8192
READ_TIMEOUT_SECONDS = 300.0

KEPT_SCHEMA = pa.schema(
    [
        ("scan_id", pa.string()),
        ("channels", pa.int64()),
        ("shape", pa.list_(pa.int64())),
        ("dtype", pa.string()),
        ("pixels", pa.large_binary()),
        ("reference", pa.large_binary()),
        ("has_lesion", pa.list_(pa.bool_())),
        ("values", pa.list_(pa.int64())),
        ("label_voxels", pa.list_(pa.int64())),
        ("voxel_mm3", pa.float64()),
        ("slice_shape", pa.list_(pa.int64())),
        ("spacing_mm", pa.list_(pa.float64())),
        ("intensity_quantiles", pa.list_(pa.float64())),
        ("extras", pa.large_binary()),
        ("error_type", pa.string()),
        ("error_message", pa.string()),
    ]
)


@dataclass(frozen=True, eq=False)
class KeptSet:
    """Kept scans that are trained or validated on together.

    Attributes:
        blocks: References to Arrow tables in Ray's object store, owned by the driver.
        scan_ids: In the manifest's order.
        num_channels: Channels of the first one as read, before any were chosen; 0 where there is none.
        places: (scans, 2): the block of each scan and the row in it.
        slices: (slices, 2): scan index and slice index of every slice.
        has_lesion: bool, (slices,).
        values: All that the label maps hold.
        reference_sizes: Of each scan, on its own grid.
        traits: Of each scan, by scan_id.
    """

    blocks: list[Any]
    scan_ids: list[str]
    num_channels: int
    places: npt.NDArray[np.int64]
    slices: npt.NDArray[np.int64]
    has_lesion: npt.NDArray[np.bool_]
    values: frozenset[int]
    reference_sizes: list[ReferenceSize]
    traits: dict[str, ScanTraits]

    @property
    def slices_per_scan(self) -> list[int]:
        return list(np.bincount(self.slices[:, 0], minlength=len(self.scan_ids)))

    def fetch(self, scan: int) -> KeptScan:
        """The kept scan of an index; its pixels stay in shared memory."""
        block, row = self.places[scan]
        table: pa.Table = ray.get(self.blocks[block]).slice(row, 1)
        columns = {
            name: table[name].chunk(0)[0].as_buffer() if name in BUFFERS else table[name][0].as_py()
            for name in ("scan_id", "shape", "dtype", "pixels", "reference", "extras")
        }
        return unpack_scan(columns)


@dataclass(frozen=True, eq=False)
class KeptScans:
    """All scans that were kept together; any number of trainings may choose theirs among them.

    Attributes:
        blocks: References to Arrow tables in Ray's object store, owned by the driver.
        places: Where each scan lies, by scan_id.
        errors: (type, message) of those that cannot be used.
        num_channels: Channels that every scan had to have; None where any number would do.
        seconds: How long it took.
    """

    blocks: list[Any]
    places: Mapping[str, KeptPlace]
    errors: dict[str, tuple[str, str]]
    num_channels: int | None
    seconds: float

    def select(self, manifest: pa.Table, split: str) -> KeptSet:
        """The scans that a manifest has in a split, in its order, without those that cannot be used."""
        scan_ids = manifest["scan_id"].filter(pc.equal(manifest["split"], split)).to_pylist()
        return make_set(self.blocks, [scan_id for scan_id in scan_ids if scan_id not in self.errors], self.places)


def keep_scans(manifest: pa.Table, options: TrainOptions, labels: Labels, num_channels: int | None) -> KeptScans:
    """Read, check and keep all scans of the splits, in parallel.

    Args:
        manifest: Rows whose `split` is set; of val the references are kept on the scan's own grid too.
        options: The run's choices.
        labels: What the values of references mean.
        num_channels: Channels that every scan must have.

    Raises:
        ClusterError: Reading failed for a reason that is no scan's.
    """
    start, preprocessing = time.monotonic(), pick(Preprocessing, options)
    settings = ReadSettings(labels=labels, slice_axis=options.slice_axis, resample_channels=options.resample_channels)

    def keep(batch: pa.Table) -> pa.Table:
        table, spacing_mm = manifest.take(batch["item"]), as_spacing(options.spacing_mm)
        return keep_rows(table, settings, preprocessing, num_channels, spacing_mm)

    references, death = read_all(keep, manifest.num_rows)
    described = ray.get([describe_block.remote(reference) for reference in references])
    found = {
        row["scan_id"]: KeptPlace(block, position, row)
        for block, rows in enumerate(described)
        for position, row in enumerate(rows)
    }
    errors = list_errors(found, manifest["scan_id"].to_pylist(), death)
    return KeptScans(references, found, errors, num_channels, time.monotonic() - start)


def read_all(keep: Callable[[pa.Table], pa.Table], num_scans: int) -> tuple[list[Any], str | None]:
    """Keep all scans, each in a block of its own.

    Args:
        keep: From a table with one `item`, the scan's row in the manifest, to its kept row.
        num_scans: Rows of the manifest.

    Returns:
        References to the blocks that came, and what the last reading process died of, None where all lived.

    Raises:
        ClusterError: Reading failed for a reason that is no scan's.
    """
    context = DataContext.get_current().copy()
    # A scan whose reading process dies again and again is left out; it is its block's only one.
    context.max_errored_blocks = -1
    with DataContext.current(context), watch_lost_tasks() as lost, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Ray 2.60 says that `max_retries` goes away; nothing else bounds its retries.
        # Unlike from_arrow or range, from_items starts no task of its own.
        blocks = ray.data.from_items(list(range(num_scans)), override_num_blocks=num_scans)
        kept = blocks.map_batches(
            keep,
            batch_size=None,
            batch_format="pyarrow",
            # No logical CPUs: what a lost node had kept is read again while workers hold all CPUs.
            num_cpus=0,
            compute=TaskPoolStrategy(size=max(1, int(sum(node["Resources"]["CPU"] for node in live_nodes())))),
            max_retries=MAX_RETRIES,
            retry_exceptions=False,
        ).materialize()
    if lost.error is not None:
        raise ClusterError(f"reading failed: {' '.join(str(lost.error).split())[:300]}") from lost.error
    return list_blocks(kept), lost.death


def list_errors(
    found: Mapping[str, KeptPlace], scan_ids: Sequence[str], death: str | None
) -> dict[str, tuple[str, str]]:
    """Type and message for each scan that cannot be used, those whose block did not come last."""
    errors = {
        scan_id: (place.row["error_type"], place.row["error_message"])
        for scan_id, place in found.items()
        if place.row["error_type"] is not None
    }
    cause = death or "its block did not come"
    for scan_id in scan_ids:
        if scan_id not in found:
            errors[scan_id] = (ReaderCrashedError.__name__, f"{scan_id}: the reading process died on it: {cause}")
    return errors


class KeptPlace(NamedTuple):
    """Where a kept scan lies, and what is known of it."""

    block: int
    position: int
    row: dict[str, Any]


def make_set(references: list[Any], scan_ids: list[str], found: Mapping[str, KeptPlace]) -> KeptSet:
    """The set of some kept scans."""
    places = [found[scan_id] for scan_id in scan_ids]
    lesions = [np.array(place.row["has_lesion"], bool) for place in places]
    return KeptSet(
        blocks=references,
        scan_ids=scan_ids,
        num_channels=places[0].row["channels"] if places else 0,
        places=np.array([place[:2] for place in places], np.int64).reshape(-1, 2),
        slices=np.array([(scan, i) for scan, flags in enumerate(lesions) for i in range(len(flags))]).reshape(-1, 2),
        has_lesion=np.concatenate([np.zeros(0, bool), *lesions]),
        values=frozenset().union(*(place.row["values"] for place in places)),
        reference_sizes=[read_size(place.row) for place in places],
        traits={place.row["scan_id"]: read_traits(place.row) for place in places},
    )


def keep_rows(
    batch: pa.Table,
    settings: ReadSettings,
    preprocessing: Preprocessing,
    num_channels: int | None,
    spacing_mm: Spacing | None = None,
) -> pa.Table:
    """Read and keep the scans of some manifest rows; a bad scan becomes a row with its error."""
    rows = []
    for manifest_row in batch.to_pylist():
        entry = entry_of(manifest_row)
        row: dict[str, Any] = {"scan_id": entry.scan_id}
        try:
            decoded = open_decoder(settings).read(entry, with_reference=True)
            if decoded.reference is None:
                raise parse_scan_error(decoded.reference_error or NO_REFERENCE)
            kept = keep_scan(
                entry.scan_id,
                decoded.scan,
                decoded.reference,
                preprocessing,
                num_channels=num_channels,
                for_validation=entry.split == "val",
                spacing_mm=spacing_mm,
            )
            row |= {"channels": decoded.scan.pixels.shape[-1], **pack_scan(kept)}
            row |= describe_size(decoded.scan, decoded.reference, settings.labels, spacing_mm)
            row |= describe_traits(decoded.scan, preprocessing, spacing_mm)
        except ScanError as error:
            row |= {"error_type": type(error).__name__, "error_message": str(error)}
        except Exception as error:
            message = f"{entry.scan_id}: {type(error).__name__}: {' '.join(str(error).split())[:500]}"
            row |= {"error_type": WorkerCrashedError.__name__, "error_message": message}
        rows.append(row)
    return pa.Table.from_pylist(rows, schema=KEPT_SCHEMA)


def describe_size(scan: Scan, reference: LabelMap, labels: Labels, spacing_mm: Spacing | None) -> dict[str, Any]:
    """How much of a scan its labels take up, as columns of a kept row."""
    voxels = [int(np.count_nonzero(labels.plane_of(reference, position))) for position in range(len(labels))]
    voxel_mm3 = voxel_volume_mm3(scan.spacing_mm or spacing_mm, scan.affine)
    return {"label_voxels": voxels, "voxel_mm3": voxel_mm3, "slice_shape": list(reference.shape[1:])}


def read_size(row: Mapping[str, Any]) -> ReferenceSize:
    """What `describe_size` said."""
    rows, columns = row["slice_shape"]
    return ReferenceSize(voxels=tuple(row["label_voxels"]), voxel_mm3=row["voxel_mm3"], slice_shape=(rows, columns))


def describe_traits(scan: Scan, preprocessing: Preprocessing, spacing_mm: Spacing | None) -> dict[str, Any]:
    """What else new scans will be compared with, as columns of a kept row."""
    spacing = scan.spacing_mm or spacing_mm
    quantiles = measure_quantiles(select_channels(scan.pixels, preprocessing.channels))
    return {"spacing_mm": None if spacing is None else list(spacing), "intensity_quantiles": quantiles}


def read_traits(row: Mapping[str, Any]) -> ScanTraits:
    """What `describe_size` and `describe_traits` said."""
    rows, columns = row["slice_shape"]
    return ScanTraits(
        num_slices=len(row["has_lesion"]),
        slice_shape=(rows, columns),
        spacing_mm=as_spacing(row["spacing_mm"]),
        voxel_mm3=row["voxel_mm3"],
        intensity_quantiles=tuple(row["intensity_quantiles"]),
    )


@lru_cache(maxsize=1)
def open_decoder(settings: ReadSettings) -> Decoder:
    """This process's decoder, kept alive for the next scan."""
    return Decoder(READ_MEMORY_MB, READ_TIMEOUT_SECONDS, settings)


@ray.remote(num_cpus=0.05, max_retries=3)
def describe_block(block: pa.Table) -> list[dict[str, Any]]:
    """What the driver needs to know of kept scans: everything but pixels."""
    return list(block.select([name for name in KEPT_SCHEMA.names if name not in PIXELS]).to_pylist())
