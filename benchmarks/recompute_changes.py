"""The table `changes` of `raysegment compare`, worked out once more from the stored masks, without raysegment.

    python benchmarks/recompute_changes.py BEFORE AFTER CHANGES

BEFORE and AFTER are the two outputs, CHANGES is what `compare --out` wrote. Masks are unpacked with zlib and counted
with NumPy; HD95 is DeepMind's `surface-distance` at 95 % of the area less a millionth, which is where ties end. It ends
with the largest difference of each column, and with exit code 1 where one is above 1e-9 or a row differs.

Masks that lie on different grids are counted, and their Dice and HD95 left out: laying one grid on another is not
recomputed here.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import warnings
import zlib
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

TOLERANCE = 1e-9
HD95_PERCENT = 95 * (1 - 1e-6)
NUMBERS = (
    "voxels_before",
    "voxels_after",
    "volume_ml_before",
    "volume_ml_after",
    "difference_ml",
    "difference_percent",
    "dice",
    "hd95_mm",
)
FACTS = ("state", "is_change", "appeared", "vanished", "newly_failed", "model_id_before", "model_id_after")


def read_side(folder: Path) -> tuple[dict[str, dict[str, Any]], dict[str, dict[str, Any]]]:
    """Rows of `scans` and where the mask of each scan lies."""
    scans, places = {}, {}
    for part in sorted((folder / "scans").glob("*.parquet")):
        scans |= {row["scan_id"]: row for row in pq.read_table(part, partitioning=None).to_pylist()}
        ids = pq.read_table(folder / "masks" / part.name, columns=["scan_id"], partitioning=None)["scan_id"].to_pylist()
        places |= {scan_id: {"part": part.name, "index": index} for index, scan_id in enumerate(ids)}
    return scans, places


def read_mask(folder: Path, place: dict[str, Any], kept: dict[Path, Any]) -> dict[str, Any]:
    path = folder / "masks" / place["part"]
    if path not in kept:
        for other in [key for key in kept if key.parent == path.parent]:
            del kept[other]
        kept[path] = pq.read_table(path, partitioning=None)
    row = kept[path].slice(place["index"], 1).to_pylist()[0]
    row["voxels"] = np.frombuffer(zlib.decompress(row["mask"]), np.dtype(row["dtype"])).reshape(row["shape"])
    return row


def region(row: dict[str, Any], label: str) -> np.ndarray | None:
    """Where a label is; None where the mask does not know it."""
    labels = dict(row["labels"])
    if label not in labels:
        return None
    if row["voxels"].ndim == 4:
        return row["voxels"][list(labels).index(label)] != 0
    return row["voxels"] == labels[label]


def share_grid(before: dict[str, Any], after: dict[str, Any]) -> bool:
    """Whether no corner voxel lies farther off than a hundredth of the smallest voxel side."""
    shape = before["voxels"].shape[-3:]
    if shape != after["voxels"].shape[-3:]:
        return False
    if before["affine"] is None or after["affine"] is None:
        spacings = before["spacing_mm"], after["spacing_mm"]
        return None in spacings or bool(np.allclose(*spacings, rtol=0.01))
    first, second = (np.reshape(row["affine"], (4, 4)) for row in (before, after))
    corners = np.stack(np.meshgrid(*[(0, side - 1) for side in shape], indexing="ij"), -1).reshape(-1, 3)
    corners = np.concatenate([corners, np.ones((8, 1))], axis=1)
    gaps = np.linalg.norm((corners @ (first - second).T)[:, :3], axis=1)
    return bool(gaps.max() <= 0.01 * np.linalg.norm(first[:3, :3], axis=0).min())


def hd95_of(first: np.ndarray, second: np.ndarray, spacing_mm: list[float] | None) -> float:
    if spacing_mm is None or not first.any() or not second.any():
        return math.nan
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import surface_distance

        found = surface_distance.compute_surface_distances(first, second, spacing_mm)
    return float(surface_distance.compute_robust_hausdorff(found, HD95_PERCENT))


def volume_of(row: dict[str, Any], voxels: int) -> float | None:
    """In ml: by the affine, which knows of shear, else by the spacing."""
    if row["affine"] is not None:
        return voxels * abs(float(np.linalg.det(np.reshape(row["affine"], (4, 4))[:3, :3]))) / 1000
    return None if row["spacing_mm"] is None else voxels * float(np.prod(row["spacing_mm"])) / 1000


def recompute(
    label: str, before: dict[str, Any] | None, after: dict[str, Any] | None, percent: float, dice_below: float
) -> dict[str, Any]:
    """Numbers of one label from the masks of both sides; None for a side without one."""
    row: dict[str, Any] = dict.fromkeys([*NUMBERS, "is_change", "appeared", "vanished"])
    regions = [None if side is None else region(side, label) for side in (before, after)]
    for name, side, where in zip(("before", "after"), (before, after), regions, strict=True):
        if side is not None and where is not None:
            row[f"voxels_{name}"] = int(np.count_nonzero(where))
            row[f"volume_ml_{name}"] = volume_of(side, row[f"voxels_{name}"])
    earlier, later = row["volume_ml_before"], row["volume_ml_after"]
    if earlier is not None and later is not None:
        row["difference_ml"] = later - earlier
        row["difference_percent"] = 100 * (later - earlier) / earlier if earlier else None
    if before is None or after is None or regions[0] is None or regions[1] is None:
        return row
    voxels = row["voxels_before"], row["voxels_after"]
    row["appeared"], row["vanished"] = bool(not voxels[0] and voxels[1]), bool(voxels[0] and not voxels[1])
    if not share_grid(before, after):
        row["on_other_grid"] = True
        return row
    both = int(np.count_nonzero(regions[0] & regions[1]))
    row["dice"] = 2 * both / sum(voxels) if sum(voxels) else math.nan
    row["hd95_mm"] = hd95_of(regions[0], regions[1], before["spacing_mm"] or after["spacing_mm"])
    sizes = (earlier, later) if row["difference_ml"] is not None else voxels
    has_grown = abs(sizes[1] - sizes[0]) > percent / 100 * max(sizes)
    row["is_change"] = bool(row["appeared"] or row["vanished"] or has_grown or row["dice"] < dice_below)
    return row


def state_of(before: dict[str, Any] | None, after: dict[str, Any] | None) -> str:
    if before is None or after is None:
        return "only_after" if before is None else "only_before"
    ok = before["status"] == "ok", after["status"] == "ok"
    return {(True, True): "compared", (True, False): "newly_failed", (False, True): "recovered"}.get(ok, "failed")


def gap(found: float | None, expected: float | None) -> float:
    """How far two numbers lie apart; infinitely where only one of them is there."""
    if found is None or expected is None:
        return 0.0 if found is expected else math.inf
    if math.isnan(found) or math.isnan(expected):
        return 0.0 if math.isnan(found) and math.isnan(expected) else math.inf
    return abs(found - expected)


def read_rule(folder: Path) -> tuple[float, float]:
    chosen = json.loads((folder / "run.json").read_text(encoding="utf-8"))["chosen"]
    return float(chosen["change_percent"]), float(chosen["change_dice"])


class Recount:
    """Compares the table row by row and keeps what is wrong."""

    def __init__(self, before: Path, after: Path, rule: tuple[float, float]) -> None:
        self.folders, self.rule = (before, after), rule
        self.scans, self.places = zip(read_side(before), read_side(after), strict=True)
        self.kept: dict[Path, Any] = {}
        self.largest: dict[str, float] = dict.fromkeys(NUMBERS, 0.0)
        self.wrong: list[str] = []
        self.counts: Counter[str] = Counter()

    def check(self, scan_id: str, rows: list[dict[str, Any]]) -> None:
        """One scan, all its labels."""
        known = [side.get(scan_id) for side in self.scans]
        state = state_of(*known)
        masks = [
            read_mask(folder, places[scan_id], self.kept) if scan_id in places else None
            for folder, places in zip(self.folders, self.places, strict=True)
        ]
        expected_labels = {name for mask in masks if mask for name in dict(mask["labels"])} or {None}
        if {row["label"] for row in rows} != expected_labels or len(rows) != len(expected_labels):
            self.wrong.append(f"{scan_id}: labels {[row['label'] for row in rows]}, expected {expected_labels}")
        for row in rows:
            expected = recompute(str(row["label"]), *masks, *self.rule) | {"state": state}
            expected |= {"newly_failed": state == "newly_failed"}
            for name, side in zip(("before", "after"), known, strict=True):
                expected[f"model_id_{name}"] = None if side is None else side["model_id"]
            self.compare(row, expected)

    def compare(self, row: dict[str, Any], expected: dict[str, Any]) -> None:
        is_laid = expected.pop("on_other_grid", False)
        self.counts["on another grid" if is_laid else str(expected["state"])] += 1
        skipped = {"dice", "hd95_mm", "is_change"} if is_laid else set()
        for name in NUMBERS:
            if name in skipped:
                continue
            difference = gap(row[name], expected[name])
            self.largest[name] = max(self.largest[name], difference)
            if not difference <= TOLERANCE:
                self.wrong.append(f"{row['scan_id']} {row['label']}: {name} {row[name]}, expected {expected[name]}")
        for name in FACTS:
            if name not in skipped and row[name] != expected[name]:
                self.wrong.append(f"{row['scan_id']} {row['label']}: {name} {row[name]}, expected {expected[name]}")


def recount(before: Path, after: Path, changes: Path) -> Recount:
    """Work out every row of a comparison anew."""
    by_scan: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in pq.read_table(changes / "changes" / "changes.parquet").to_pylist():
        by_scan[row["scan_id"]].append(row)
    found = Recount(before, after, read_rule(changes))
    if by_scan.keys() != found.scans[0].keys() | found.scans[1].keys():
        found.wrong.append("the table does not hold just the scans of both sides")
    order = {name: (place["part"], place["index"]) for name, place in found.places[1].items()}
    for scan_id in sorted(by_scan, key=lambda name: order.get(name, ("", 0))):
        found.check(scan_id, by_scan[scan_id])
    changed = {name for name, rows in by_scan.items() if any(row["is_change"] for row in rows)}
    summary = json.loads((changes / "summary.json").read_text(encoding="utf-8"))
    if summary["changed_scans"] != len(changed):
        found.wrong.append(f"summary.json: changed_scans {summary['changed_scans']}, expected {len(changed)}")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("before", "after", "changes"):
        parser.add_argument(name, type=Path)
    given = parser.parse_args()
    found = recount(given.before, given.after, given.changes)
    print("rows:", ", ".join(f"{count} {name}" for name, count in sorted(found.counts.items())))
    print("largest differences:", ", ".join(f"{name} {value:.1e}" for name, value in found.largest.items()))
    for line in found.wrong[:20]:
        print("WRONG", line)
    print(f"{len(found.wrong)} wrong" if found.wrong else f"all equal to {TOLERANCE:g}")
    return 1 if found.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
