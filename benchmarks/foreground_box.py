"""What foreground boxes change: Dice with and without them, and the time.

    python benchmarks/foreground_box.py MODEL SOURCE [--split val] [--split-file FILE] [--precision auto]

MODEL is a trained run or bundle with `--crop none`; SOURCE has references. Scans on which the network was trained count
as well as others here: what is asked is whether the masks stay the same.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pyarrow.dataset as pds


def evaluate(arguments: argparse.Namespace, out: Path, word: str) -> dict[str, float]:
    """Dice by scan."""
    command = [sys.executable, "-m", "raysegment", "evaluate", arguments.model, arguments.source, "--out", str(out)]
    for name in ("split", "split_file", "precision"):
        if value := getattr(arguments, name):
            command += ["--" + name.replace("_", "-"), value]
    done = subprocess.run([*command, word], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stdout + done.stderr)
    record = json.loads((out / "run.json").read_text())
    predict = record["seconds"]["predict"]
    rate = record["slices_per_second"] or record["slices"] / record["seconds_total"]
    print(f"{word:<20} {record['slices']} slices, network {predict:.1f} s, {rate:.1f} slices/s")
    rows = pds.dataset(out / "metrics").to_table(columns=["scan_id", "dice"]).to_pylist()
    return {row["scan_id"]: row["dice"] for row in rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("source")
    parser.add_argument("--split")
    parser.add_argument("--split-file")
    parser.add_argument("--precision", default="auto")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        whole = evaluate(arguments, Path(scratch) / "whole", "--no-foreground-box")
        boxed = evaluate(arguments, Path(scratch) / "boxed", "--foreground-box")
    pairs = np.array([(whole[name], boxed[name]) for name in whole], float)
    means = np.nanmean(pairs, axis=0)
    difference = np.abs(pairs[:, 0] - pairs[:, 1])
    print(
        f"mean Dice without boxes {means[0]:.5f}, with boxes {means[1]:.5f}, difference {abs(means[0] - means[1]):.5f}"
    )
    print(f"per scan: median difference {np.nanmedian(difference):.5f}, largest {np.nanmax(difference):.5f}")


if __name__ == "__main__":
    main()
