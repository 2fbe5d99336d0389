"""Figures of a comparison: distributions, and the scans that changed most with both masks over their pixels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from raysegment.archive.decoder import Decoder
from raysegment.archive.manifest import entries
from raysegment.pipeline.blocks import read_block, scans_of
from raysegment.pipeline.changes import COMPARED, MaskPair
from raysegment.scan import Labels, ReadSettings, SliceAxis
from raysegment.store.pairs import MaskRows
from raysegment.store.place import Place

DRAWN = ["label", "is_change", "voxels_before", "voxels_after", "volume_ml_before", "volume_ml_after", "dice"]


@dataclass(frozen=True)
class ChangedScan:
    """A label of a scan that is to be shown.

    Attributes:
        title: Of its row in the picture.
        scan_id: The scan.
        label: What is shown of it.
    """

    title: str
    scan_id: str
    label: str


def draw_distributions(folder: Path, table: pa.Table) -> list[Path]:
    """Draw `changes.png`; nothing where no mask was compared.

    Args:
        folder: The comparison's.
        table: Of `CHANGES_SCHEMA`.
    """
    from raysegment.pictures.changes import LabelChanges, draw_changes

    rows = table.select(DRAWN).filter(pc.equal(table["state"], COMPARED))
    if not rows.num_rows:
        return []
    has_volumes = rows["volume_ml_before"].null_count + rows["volume_ml_after"].null_count == 0
    measure = "volume_ml" if has_volumes else "voxels"
    by_label = {}
    for name in sorted(rows["label"].unique().to_pylist()):
        found = rows.filter(pc.equal(rows["label"], name))
        by_label[name] = LabelChanges(
            before=_numbers(found[f"{measure}_before"]),
            after=_numbers(found[f"{measure}_after"]),
            dice=_numbers(found["dice"]),
            is_change=np.asarray(pc.fill_null(found["is_change"], False).to_numpy(zero_copy_only=False), np.bool_),
        )
    path = folder / "figures" / "changes.png"
    draw_changes(by_label, path, unit="ml" if has_volumes else "voxels")
    return [path]


def draw_largest(
    folder: Path,
    shown: Sequence[ChangedScan],
    before: Place,
    after: Place,
    manifest: pa.Table | None,
    slice_axes: Mapping[str, SliceAxis | None],
) -> list[Path]:
    """Draw `largest_changes.png`: scans that cannot be read any more, or have changed their grid, are left out.

    Args:
        folder: The comparison's.
        shown: What to draw, a row each.
        before: The earlier output.
        after: The later one.
        manifest: Where the scans lie; None where that is not known.
        slice_axes: How each was cut into slices.
    """
    from raysegment.pictures.predictions import OF_CHANGES, draw_predictions, make_change_case

    if manifest is None or not shown:
        return []
    ids = pa.array([item.scan_id for item in shown], pa.string())
    by_id = {entry.scan_id: entry for entry in entries(manifest.filter(pc.is_in(manifest["scan_id"], value_set=ids)))}
    sides = MaskRows(before), MaskRows(after)
    cases = []
    with Decoder() as decoder:
        for item in shown:
            planes = _planes_of(item, sides)
            if planes is None or item.scan_id not in by_id:
                continue
            decoder.settings = ReadSettings(slice_axis=slice_axes.get(item.scan_id) or "auto", resample_channels=True)
            read = next(scans_of(next(read_block(decoder, [by_id[item.scan_id]]))))
            if read.scan is not None and read.scan.grid == planes[0].shape:
                cases.append(make_change_case(item.title, read.scan.pixels, planes[0][None], planes[1][None]))
    if not cases:
        return []
    path = folder / "figures" / "largest_changes.png"
    draw_predictions(cases, path, Labels(), OF_CHANGES)
    return [path]


def _planes_of(
    item: ChangedScan, sides: tuple[MaskRows, MaskRows]
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]] | None:
    """Where the label is in both masks, on the grid of the earlier one."""
    rows = [side.find(item.scan_id) for side in sides]
    if any(row is None or item.label not in dict(row["labels"]) for row in rows):
        return None
    return MaskPair(*rows).planes(item.label)


def _numbers(column: pa.ChunkedArray) -> npt.NDArray[np.float64]:
    values: Any = column.cast(pa.float64()).to_numpy(zero_copy_only=False)
    return np.asarray(values, np.float64)
