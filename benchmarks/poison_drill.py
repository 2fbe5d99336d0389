"""One scan that kills every inference worker, in the middle of many tiny ones: what the search for it costs.

    python benchmarks/poison_drill.py [--scans 6000] [--victim worker|reader]

Segments the archive without the scan and with it, and prints the seconds, parts and rounds of both. Ends with exit code
1 unless that scan fails alone. `reader` makes the scan kill the process that reads it, the decoder's parent.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
POISONED = "PHANTOM_0011"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")


def write_pictures(archive: Path, count: int) -> None:
    """Half of the scans are read before the poisoned one, half after it."""
    import cv2
    import numpy as np

    draw = np.random.default_rng(0)
    for index in range(count):
        folder = archive / f"{'A' if index < count // 2 else 'Z'}_{index:05d}"
        folder.mkdir(parents=True)
        cv2.imwrite(str(folder / "s_1.png"), draw.integers(0, 255, (16, 16, 3)).astype(np.uint8))


def add_poison(archive: Path, victim: str) -> None:
    """Two slices, so that the scan has its folder's name."""
    folder = archive / POISONED
    folder.mkdir()
    picture = (archive / "A_00000" / "s_1.png").read_bytes()
    for index in (1, 2):
        if victim == "reader":
            (folder / f"s_{index}.hostile").write_bytes(b"HOSTILE kill-parent")
        else:
            (folder / f"s_{index}.png").write_bytes(picture)


def segment(model: Path, archive: Path, out: Path) -> dict[str, Any]:
    """Segment an archive; returns what it cost."""
    from raysegment import InferOptions, infer
    from raysegment.cluster.inference import rounds

    num_rounds = 0
    write_plan = rounds.write_plan

    def count_round(*arguments: Any) -> Any:
        nonlocal num_rounds
        num_rounds += 1
        return write_plan(*arguments)

    rounds.write_plan = count_round
    started = time.monotonic()
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            result = infer(InferOptions(model=str(model), source=str(archive), out=str(out)))
    finally:
        rounds.write_plan = write_plan
    return {
        "ok": result.scans_ok,
        "failed": [(failure.scan_id, failure.error_type) for failure in result.failures],
        "seconds": round(time.monotonic() - started, 1),
        "parts": len(list((out / "scans").glob("*.parquet"))),
        "rounds": num_rounds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scans", type=int, default=6000)
    parser.add_argument("--victim", choices=("worker", "reader"), default="worker")
    arguments = parser.parse_args()
    helpers = [str(ROOT / "tests" / "cluster"), str(ROOT / "tests" / "archive")]
    sys.path[:0] = helpers
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), *helpers])
    os.environ["RAYSEGMENT_READERS"] = "hostile_reader"
    from kill_drill import make_bundle

    from raysegment.cluster.inference import pool, worker

    with tempfile.TemporaryDirectory() as scratch:
        model, archive = Path(scratch) / "model", Path(scratch) / "archive"
        make_bundle(model)
        write_pictures(archive, arguments.scans)
        print("without:", segment(model, archive, Path(scratch) / "without"), flush=True)
        add_poison(archive, arguments.victim)
        if arguments.victim == "worker":
            from poison import PoisonedSegmenter

            pool.start_segmenter = lambda bundle, settings, **place: worker.start_segmenter(
                bundle, settings, kind=PoisonedSegmenter, **place
            )
        cost = segment(model, archive, Path(scratch) / "with")
        print("with:   ", cost, flush=True)
        if cost["ok"] != arguments.scans or [scan_id for scan_id, _ in cost["failed"]] != [POISONED]:
            raise SystemExit(f"{POISONED} should have failed alone")


if __name__ == "__main__":
    main()
