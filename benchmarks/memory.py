"""Peak memory of driver, workers and object store for archives of growing size; it should stay flat.

    python benchmarks/memory.py LGG_DIR [--slices 500 5000 50000] [--million]

Each archive is a manifest that names the same scans again and again, and the network is tiny, so that it takes minutes.
Memory is the sum of the proportional set sizes of all processes of the run, which counts shared pages once. `--million`
instead plans and starts a manifest of 1,000,000 scans that all name one small file, with a network of a few weights,
for some minutes.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
import psutil

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
SECONDS_BETWEEN_LOOKS = 0.5


def make_bundle(folder: Path, size: int, filters: int, depth: int) -> None:
    from raysegment.model.bundle import BundleDescription, save_bundle
    from raysegment.model.unet import build_network
    from raysegment.options import Postprocessing, Preprocessing

    choices = {"network": "unet", "filters": filters, "depth": depth, "dropout": 0.0, "norm": "batch"}
    description = BundleDescription(
        preprocessing=Preprocessing(image_size=size),
        postprocessing=Postprocessing(threshold=0.9),
        num_channels=3,
        network=choices,
    )
    save_bundle(folder, build_network(**choices, norm_momentum=0.9, input_shape=(size, size, 3)), description)


def write_repeated(source: Path, target: Path, num_slices: int) -> Path:
    """A manifest in which the same scans stand again and again, each time under another name."""
    from raysegment.archive.manifest import to_table, write_manifest
    from raysegment.scan import ScanEntry

    scans = [sorted(folder.glob("*.tif")) for folder in sorted(source.iterdir()) if folder.is_dir()]
    scans = [[file for file in files if not file.name.endswith("_mask.tif")] for files in scans]
    entries, made = [], 0
    while made < num_slices:
        files = scans[len(entries) % len(scans)]
        name = f"scan_{len(entries):06d}"
        paths = tuple(str(file.relative_to(source)) for file in files)
        entries.append(
            ScanEntry(
                scan_id=name,
                patient_id=name,
                source=str(source.resolve()),
                reader="tiff",
                files=paths,
                num_files=len(files),
                bytes=sum(file.stat().st_size for file in files),
            )
        )
        made += len(files)
    write_manifest(to_table(entries), str(target))
    return target


def role_of(process: psutil.Process) -> str:
    words = " ".join(process.cmdline())
    for role, mark in {
        "worker": "ray::Segmenter",
        "decoder": "decoder_child",
        "reading": "ray::",
        "ray": "/ray/",
    }.items():
        if mark in words:
            return role
    return "driver" if "raysegment" in words else "ray"


def measure(process: subprocess.Popen[bytes], seconds: float) -> tuple[Counter[str], float, Counter[str]]:
    """Peak of the whole run and its parts at that moment, and each role's own peak, in MB."""
    driver, deadline = psutil.Process(process.pid), time.monotonic() + seconds
    at_peak: Counter[str] = Counter()
    peaks: Counter[str] = Counter()
    while process.poll() is None and time.monotonic() < deadline:
        now: Counter[str] = Counter()
        for one in [driver, *driver.children(recursive=True)]:
            try:
                now[role_of(one)] += one.memory_full_info().pss / 2**20
            except psutil.Error:
                continue
        at_peak = max(at_peak, now, key=lambda parts: parts.total())
        peaks |= now
        time.sleep(SECONDS_BETWEEN_LOOKS)
    return at_peak, at_peak.total(), peaks


def run_infer(model: Path, source: Path, out: Path, seconds: float) -> None:
    command = [sys.executable, "-m", "raysegment", "infer", str(model), str(source), "--out", str(out)]
    started = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    at_peak, peak, peaks = measure(process, seconds)
    finished = process.poll()
    process.terminate()
    process.wait()
    parts = ", ".join(f"{role} {megabytes:.0f}" for role, megabytes in sorted(at_peak.items()))
    print(f"{source.name}: peak {peak:.0f} MB ({parts}); driver alone {peaks['driver']:.0f} MB; ", end="")
    print(f"exit {finished}, {time.monotonic() - started:.0f} s", flush=True)
    for line in (out / "log.txt").read_text().splitlines()[-6:]:
        print(f"    {line}")


def write_million(folder: Path) -> Path:
    import pyarrow as pa
    import tifffile

    from raysegment.archive.manifest import MANIFEST_SCHEMA, write_manifest

    count = 1_000_000
    tifffile.imwrite(folder / "small.tif", np.zeros((16, 16, 3), np.uint8), photometric="rgb")
    ids = pa.array([f"scan{number:07d}" for number in range(count)])
    columns = {
        "scan_id": ids,
        "patient_id": ids,
        "source": [str(folder)] * count,
        "reader": ["tiff"] * count,
        "files": [["small.tif"]] * count,
        "reference_files": [[]] * count,
        "num_files": np.ones(count, np.int32),
        "bytes": np.full(count, 1000),
        "height": np.full(count, 16, np.int32),
        "width": np.full(count, 16, np.int32),
        "channels": np.full(count, 3, np.int32),
        "fingerprint": ids,
        "split": pa.nulls(count, pa.string()),
        "problem": pa.nulls(count, pa.string()),
    }
    write_manifest(pa.table(columns, schema=MANIFEST_SCHEMA), str(folder / "million.parquet"))
    return folder / "million.parquet"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("archive", type=Path, nargs="?")
    parser.add_argument("--slices", type=int, nargs="+", default=[500, 5_000, 50_000])
    parser.add_argument("--million", action="store_true")
    parser.add_argument("--seconds", type=float, default=180.0, help="how long the million-row manifest runs")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        if arguments.million:
            make_bundle(folder / "model", 16, 1, 1)
            run_infer(folder / "model", write_million(folder), folder / "out", arguments.seconds)
            return
        if arguments.archive is None:
            parser.error("LGG_DIR is missing")
        make_bundle(folder / "model", 256, 2, 2)
        for num_slices in arguments.slices:
            source = write_repeated(arguments.archive, folder / f"slices_{num_slices}.parquet", num_slices)
            run_infer(folder / "model", source, folder / f"out_{num_slices}", 24 * 3600)


if __name__ == "__main__":
    main()
