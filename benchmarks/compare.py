"""Seconds and memory of `raysegment compare` over many masks: `python benchmarks/compare.py --scans 100000`.

The masks are made up: an ellipsoid on 20 slices of 128x128 in each scan, one of a thousand, which in every tenth scan
grows from one table to the other. The second table has the scans in another order. Memory is the peak of the comparing
process alone, which is started anew; with `--shuffle-all` scans that are near to each other in one table are not so in
the other.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from raysegment.runs.record import write_record
from raysegment.store.masks import encode_mask
from raysegment.store.parts import ScanRows, stage_part
from raysegment.store.place import Place
from raysegment.store.publish import prepare_tables, publish_part

GRID = (20, 128, 128)
SCANS_PER_PART = 2_000
SPACING_MM = (5.0, 1.0, 1.0)


@cache
def encode(size: int, shift: int) -> tuple[int, dict[str, Any]]:
    """Voxels of an ellipsoid, and its row of `masks` but for the scan."""
    slices, rows, columns = np.ogrid[: GRID[0], : GRID[1], : GRID[2]]
    radius = 8 + size % 24
    inside = ((slices - 10) / 6) ** 2 + ((rows - 60) / radius) ** 2 + ((columns - 44 - shift) / radius) ** 2 < 1
    mask = inside.astype(np.uint8)
    return int(mask.sum()), encode_mask("", mask, labels={"lesion": 1}, spacing_mm=SPACING_MM)


def make_row(number: int, voxels: int, cell: dict[str, Any]) -> ScanRows:
    scan_id = f"site-{number % 7}/scan-{number:07d}"
    scan = {"scan_id": scan_id, "patient_id": scan_id, "status": "ok", "num_slices": GRID[0], "model_id": "m"}
    metric = {"scan_id": scan_id, "patient_id": scan_id, "label": "lesion", "voxels": voxels, "volume_ml": voxels / 200}
    return ScanRows(scan, (metric,), cell | {"scan_id": scan_id})


def write_tables(folder: Path, order: np.ndarray, grown: bool) -> None:
    place = Place(str(folder))
    prepare_tables(place)
    for start in range(0, len(order), SCANS_PER_PART):
        chosen = order[start : start + SCANS_PER_PART]
        rows = [make_row(n, *encode(n % 24 + (grown and n % 10 == 0), n // 24 % 40)) for n in map(int, chosen)]
        publish_part(place, f"_staging/{start}", stage_part(place, f"_staging/{start}", rows).name)
    write_record(place, {"command": "infer", "model_id": "m", "options_id": "o", "status": "done", "chosen": {}})


def compare_alone(before: str, after: str, out: str) -> None:
    from raysegment.commands.compare import compare
    from raysegment.options import CompareOptions

    started = time.perf_counter()
    summary = compare(CompareOptions(before=before, after=after, out=out)).summary
    # Not `ru_maxrss`, which begins with what the parent process had.
    peak_mb = int(Path("/proc/self/status").read_text(encoding="ascii").split("VmHWM:")[1].split()[0]) / 1024
    seconds = {"seconds": time.perf_counter() - started, "cpu_seconds": time.process_time()}
    print(json.dumps({**seconds, "peak_mb": peak_mb, "changed": summary["changed_scans"]}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scans", type=int, default=10_000)
    parser.add_argument("--shuffle-all", action="store_true")
    parser.add_argument("--alone", nargs=3, metavar=("BEFORE", "AFTER", "OUT"))
    given = parser.parse_args()
    if given.alone:
        compare_alone(*given.alone)
        return
    with tempfile.TemporaryDirectory() as folder:
        before, after, out = (Path(folder) / name for name in ("before", "after", "out"))
        order = np.arange(given.scans)
        write_tables(before, order, grown=False)
        rng = np.random.default_rng(0)
        if given.shuffle_all:
            order = rng.permutation(order)
        else:
            for start in range(0, len(order), SCANS_PER_PART):
                rng.shuffle(order[start : start + SCANS_PER_PART])
        write_tables(after, order, grown=True)
        command = [sys.executable, __file__, "--alone", *map(str, (before, after, out))]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        found = json.loads(done.stdout.splitlines()[-1])
    print(
        f"{given.scans} scans: {found['seconds']:.1f} s ({found['cpu_seconds']:.1f} s of processor, imports included), "
        f"{given.scans / found['seconds']:.0f} scans/s, peak {found['peak_mb']:.0f} MB, {found['changed']} changed"
    )


if __name__ == "__main__":
    main()
