"""What changed between two masks of one scan: one row per label, from the tables and masks of both runs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from raysegment.archive.orientation import corner_distance
from raysegment.imaging.measure import count_overlap, dice_of
from raysegment.imaging.surface import compare_surfaces
from raysegment.scan import Mask, Spacing, as_spacing
from raysegment.store.masks import decode_mask

SAME_PLACE_SHARE = 0.01
"""Share of a voxel by which two grids may lie apart and count as one."""

COMPARED, ONLY_BEFORE, ONLY_AFTER = "compared", "only_before", "only_after"
NEWLY_FAILED, RECOVERED, FAILED = "newly_failed", "recovered", "failed"

NO_LABEL = "the label is in one of the two only"
NO_PLACE = "the grids differ, and nothing says where they lie in the world"
NO_OVERLAP = "the grids have no place in common"

Affine = npt.NDArray[np.float64]
Plane = npt.NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class ChangeRule:
    """From when on a label of a scan counts as changed.

    It does where it appeared or vanished, where the volume differs by more than `percent` of the larger one, or where
    the Dice of the two masks is below `dice`. Where volumes or masks cannot be compared, that part of the rule is left
    out.

    Attributes:
        percent: Of the larger volume.
        dice: From 0 to 1.
    """

    percent: float
    dice: float

    def is_change(self, row: Mapping[str, Any]) -> bool | None:
        """Whether a row of `changes` is a change; None where nothing could be compared."""
        if row["appeared"] or row["vanished"]:
            return True
        volumes, dice = _volumes_of(row), row["dice"]
        if volumes is None and not _is_known(dice):
            return None
        larger = max(volumes) if volumes else 0.0
        has_grown = volumes is not None and abs(volumes[1] - volumes[0]) > self.percent / 100 * larger
        return bool(has_grown or (_is_known(dice) and dice < self.dice))


@dataclass(frozen=True, kw_only=True)
class Side:
    """One scan as one of the two runs has it.

    Attributes:
        scan: Row of `scans`; None where the run does not have the scan.
        metrics: Rows of `metrics` by label; none for a scan that failed.
        mask: Row of `masks`; None for a scan that failed.
    """

    scan: Mapping[str, Any] | None
    metrics: Mapping[str, Mapping[str, Any]]
    mask: Mapping[str, Any] | None


def describe_state(before: Side, after: Side) -> str:
    """What became of a scan: compared, in one of the runs only, newly failed, recovered, or failed in both."""
    if before.scan is None or after.scan is None:
        return ONLY_AFTER if before.scan is None else ONLY_BEFORE
    if before.mask is None or after.mask is None:
        return FAILED if before.mask is after.mask else (RECOVERED if before.mask is None else NEWLY_FAILED)
    return COMPARED


def compare_sides(before: Side, after: Side, rule: ChangeRule) -> list[dict[str, Any]]:
    """Rows of `changes` of one scan, one per label of either side; one without label where neither has a mask.

    Volumes are those of the metrics tables; Dice and HD95 those of the stored masks, on the grid of the earlier one. A
    later mask on another grid is laid on it by nearest neighbour, and only what lies in both is compared.

    Args:
        before: The scan as the earlier run has it.
        after: As the later one has it.
        rule: What counts as a change.
    """
    state = describe_state(before, after)
    known = after.scan or before.scan or {}
    common = {
        "scan_id": known.get("scan_id"),
        "patient_id": known.get("patient_id"),
        "state": state,
        "newly_failed": state == NEWLY_FAILED,
        "model_id_before": None if before.scan is None else before.scan["model_id"],
        "model_id_after": None if after.scan is None else after.scan["model_id"],
    }
    names: list[str | None] = list(dict.fromkeys([*before.metrics, *after.metrics]))
    pair = MaskPair(before.mask, after.mask) if state == COMPARED else None
    rows = []
    for name in names or [None]:
        row = (
            common
            | {"label": name}
            | _compare_volumes(before.metrics.get(str(name)), after.metrics.get(str(name)), state)
        )
        row |= {"dice": None, "hd95_mm": None, "why_not": None} if pair is None else pair.compare(name)
        rows.append(row | {"is_change": rule.is_change(row) if state == COMPARED else None})
    return rows


def _compare_volumes(before: Mapping[str, Any] | None, after: Mapping[str, Any] | None, state: str) -> dict[str, Any]:
    """Voxels and volumes of one label on both sides, and how they differ; None where there is nothing to compare."""
    row: dict[str, Any] = {}
    for side, metrics in (("before", before), ("after", after)):
        row[f"voxels_{side}"] = None if metrics is None else metrics["voxels"]
        row[f"volume_ml_{side}"] = None if metrics is None else _number_or_none(metrics["volume_ml"])
    earlier, later = row["volume_ml_before"], row["volume_ml_after"]
    difference = None if earlier is None or later is None else later - earlier
    row["difference_ml"] = difference
    row["difference_percent"] = 100 * difference / earlier if difference is not None and earlier else None
    is_pair = state == COMPARED and before is not None and after is not None
    row["appeared"] = bool(not row["voxels_before"] and row["voxels_after"]) if is_pair else None
    row["vanished"] = bool(row["voxels_before"] and not row["voxels_after"]) if is_pair else None
    return row


class MaskPair:
    """The masks of one scan in both runs, on one grid.

    Args:
        before: Row of `masks` of the earlier run.
        after: Of the later one.
    """

    def __init__(self, before: Mapping[str, Any] | None, after: Mapping[str, Any] | None) -> None:
        assert before is not None
        assert after is not None
        self._rows = before, after
        self._masks: tuple[Mask, Mask] | None = None
        self._common: Plane | None = None
        self.why_not: str | None = None

    def compare(self, name: str | None) -> dict[str, Any]:
        """Dice and HD95 of one label where both masks lie; None, and `why_not`, where they cannot be compared.

        Both are NaN where the label is empty in both masks, HD95 also where it is empty in one or there is no spacing.
        """
        values = [dict(row["labels"]).get(name) for row in self._rows]
        if None in values:
            return {"dice": None, "hd95_mm": None, "why_not": NO_LABEL}
        planes = self.planes(name)
        if planes is None:
            return {"dice": None, "hd95_mm": None, "why_not": self.why_not}
        spacing_mm = as_spacing(self._rows[0]["spacing_mm"] or self._rows[1]["spacing_mm"])
        if planes[0] is planes[1]:
            dice = 1.0 if planes[0].any() else math.nan
        else:
            dice = float(dice_of(*count_overlap(planes[1], planes[0]).sum(axis=0)))
        return {
            "dice": dice,
            "hd95_mm": _measure_hd95(planes, spacing_mm),
            "why_not": None,
        }

    def planes(self, name: str | None) -> tuple[Plane, Plane] | None:
        """Where the label is in both masks, on the earlier one's grid; None where the grids cannot be joined."""
        if self._masks is None and self.why_not is None:
            self._load()
        if self._masks is None:
            return None
        before = _plane_of(self._masks[0], self._rows[0], name)
        is_same = self._masks[0] is self._masks[1] and self._rows[0]["labels"] == self._rows[1]["labels"]
        if is_same and self._common is None:
            return before, before
        after = _plane_of(self._masks[1], self._rows[1], name)
        if self._common is None:
            return before, after
        return before & self._common, lay_on(after, *self._way())

    def _load(self) -> None:
        before = decode_mask(self._rows[0])
        after = before if self._is_same() else decode_mask(self._rows[1])
        if not self._share_grid():
            if any(row["affine"] is None for row in self._rows):
                self.why_not = NO_PLACE
                return
            self._common = lay_on(np.ones(after.shape[-3:], np.bool_), *self._way())
            if not self._common.any():
                self.why_not = NO_OVERLAP
                return
        self._masks = before, after

    def _is_same(self) -> bool:
        before, after = self._rows
        return all(before[key] == after[key] for key in ("mask", "shape", "dtype"))

    def _share_grid(self) -> bool:
        before, after = self._rows
        if list(before["shape"])[-3:] != list(after["shape"])[-3:]:
            return False
        if before["affine"] is None or after["affine"] is None:
            return before["spacing_mm"] is None or after["spacing_mm"] is None or _is_near(before, after)
        first, second = _affine_of(before), _affine_of(after)
        tolerance_mm = SAME_PLACE_SHARE * float(np.sqrt((first[:3, :3] ** 2).sum(axis=0)).min())
        return corner_distance(first, second, tuple(before["shape"][-3:])) <= tolerance_mm

    def _way(self) -> tuple[Affine, tuple[int, ...]]:
        """From the earlier grid's indices to the later one's, and the earlier grid's shape."""
        before, after = self._rows
        return np.linalg.inv(_affine_of(after)) @ _affine_of(before), tuple(before["shape"][-3:])


def lay_on(plane: Plane, way: Affine, shape: tuple[int, ...]) -> Plane:
    """A region brought to another grid by nearest neighbour; outside of its own grid there is nothing.

    Args:
        plane: bool, (slices, rows, columns).
        way: 4x4, from indices of the other grid to those of this one.
        shape: Of the other grid.
    """
    from scipy.ndimage import affine_transform

    laid = affine_transform(
        plane.astype(np.uint8), way[:3, :3], way[:3, 3], output_shape=shape, order=0, mode="grid-constant", cval=0
    )
    return np.asarray(laid, np.bool_)


def _measure_hd95(planes: tuple[Plane, Plane], spacing_mm: Spacing | None) -> float:
    if planes[0] is planes[1] or np.array_equal(*planes):
        return 0.0 if spacing_mm is not None and planes[0].any() else math.nan
    return compare_surfaces(planes[1], planes[0], spacing_mm, 1.0).hd95_mm


def _plane_of(mask: Mask, row: Mapping[str, Any], name: str | None) -> Plane:
    """Where one label is, by the row's own values; of labels that overlap each has an axis of its own."""
    labels = dict(row["labels"])
    if mask.ndim == 4:
        return np.asarray(mask[list(labels).index(name)] != 0)
    return np.asarray(mask == labels[name])


def _affine_of(row: Mapping[str, Any]) -> Affine:
    return np.asarray(row["affine"], np.float64).reshape(4, 4)


def _is_near(before: Mapping[str, Any], after: Mapping[str, Any]) -> bool:
    return bool(np.allclose(before["spacing_mm"], after["spacing_mm"], rtol=SAME_PLACE_SHARE))


def _volumes_of(row: Mapping[str, Any]) -> tuple[float, float] | None:
    """Volumes in ml; voxels where no spacing is known and the masks share a grid."""
    if row["volume_ml_before"] is not None and row["volume_ml_after"] is not None:
        return row["volume_ml_before"], row["volume_ml_after"]
    if row["voxels_before"] is None or row["voxels_after"] is None or row["why_not"] is not None:
        return None
    return row["voxels_before"], row["voxels_after"]


def _number_or_none(value: float | None) -> float | None:
    return value if _is_known(value) else None


def _is_known(value: float | None) -> bool:
    return value is not None and not math.isnan(value)
