"""Inference speed in one sitting: the bare network, the inference graph, whole runs, and peers.

    python benchmarks/inference.py LGG_DIR [--peer-python PYTHON --peer-scripts FOLDER] [--limit N]

The network is the 7.77 M-weight U-Net at 256x256, batch 16, untrained: its arithmetic is that of a trained one.
(a) plain Keras and (b) raysegment's inference graph, of one network and of three, run on slices in memory; (c) is
`raysegment infer` from files to tables, without and with foreground boxes, and with these averaged over mirrored passes
and slices; (d) `infer_monai.py` and (e) `bare.py openvino infer bf16` of the folder with peer scripts run in the
environment of --peer-python. Nothing else should run on the machine.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
CHOICES = {"network": "unet", "filters": 32, "depth": 4, "dropout": 0.0, "norm": "batch", "norm_momentum": 0.9}
BATCH = 16
AVERAGING = {
    "smoothed over slices": ("--smooth-slices",),
    "mirrored columns": ("--mirror", "columns"),
    "mirrored rows and columns": ("--mirror", "rows,columns"),
    "mirrored columns, smoothed": ("--mirror", "columns", "--smooth-slices"),
}
"""Settings of averaging, each timed against none."""

MEMBERS = 3
"""Networks of an ensemble that is timed against one."""


def make_bundle(folder: Path) -> None:
    from raysegment.model.bundle import BundleDescription, save_bundle
    from raysegment.model.unet import build_network
    from raysegment.options import Postprocessing, Preprocessing

    description = BundleDescription(
        preprocessing=Preprocessing(image_size=256),
        postprocessing=Postprocessing(threshold=0.9),
        num_channels=3,
        network=CHOICES,
    )
    save_bundle(folder, build_network(**CHOICES, input_shape=(256, 256, 3)), description)


def time_engine(name: str, precision: str, batches: int) -> float:
    """Median rate of one engine in a process of its own."""
    command = [sys.executable, __file__, "--engine", name, precision, str(batches)]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return float(output.split()[-1])


def run_engine(name: str, precision: str, batches: int) -> None:
    import keras
    import tensorflow as tf

    from raysegment.model.engines.tensorflow import Predictor
    from raysegment.model.unet import build_network

    if name == "keras" and precision == "bfloat16":
        keras.mixed_precision.set_global_policy("mixed_bfloat16")
    model = build_network(**CHOICES, input_shape=(256, 256, 3))
    pixels = np.random.default_rng(0).random((BATCH, 256, 256, 3), np.float32)
    if name == "keras":
        function = tf.function(lambda batch: model(batch, training=False))
        step: Any = lambda: function(tf.constant(pixels)).numpy()  # noqa: E731
    else:
        predictor = Predictor([model] * (MEMBERS if name == "members" else 1), precision=precision, batch_size=BATCH)
        step = lambda: predictor.predict(pixels)  # noqa: E731
    step()
    seconds = []
    for _ in range(batches):
        started = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - started)
    print(BATCH / float(np.median(seconds)))


def run_infer(model: Path, archive: Path, out: Path, *more: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "raysegment", "infer", str(model), str(archive), "--out", str(out), *more]
    started = time.monotonic()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    record = json.loads((out / "run.json").read_text())
    return record | {"seconds_command": time.monotonic() - started}


def time_averaging(model: Path, archive: Path, scratch: Path, limit: list[str], plain: float | None) -> None:
    """Whole runs with each setting of averaging, as shares of the rate without."""
    for number, (name, words) in enumerate(AVERAGING.items()):
        record = run_infer(model, archive, scratch / f"averaged-{number}", *words, "--precision", "bfloat16", *limit)
        rate = record["slices_per_second"]
        show(f"(c) {name}", rate, f"{rate / plain:.2f} of none" if plain and rate else "")


def time_reading(archive: Path) -> tuple[float, float]:
    """Slices per second and core: plain tifffile, and one kept-alive decoder with its transport."""
    import tifffile

    from raysegment.archive.decoder import Decoder
    from raysegment.archive.index import find_scans
    from raysegment.archive.manifest import entries
    from raysegment.pipeline.blocks import read_block

    scans = list(entries(find_scans(str(archive)).slice(0, 20)))
    files = [Path(scan.source) / name for scan in scans for name in scan.files]
    started = time.process_time()
    for file in files:
        tifffile.imread(file)
    plain = len(files) / (time.process_time() - started)
    bare = [scan.__class__(**{**vars(scan), "reference_files": ()}) for scan in scans]
    with Decoder() as decoder:
        next(iter(read_block(decoder, bare[:1])))
        started = time.monotonic()
        for _ in read_block(decoder, bare):
            pass
        ours = len(files) / (time.monotonic() - started)
    return plain, ours


def run_peer(python: str, script: Path, *words: str) -> float | None:
    done = subprocess.run([python, str(script), *words], capture_output=True, text=True)
    found = re.search(r"(?:steady |: )([\d.]+) img/s", done.stdout)
    return float(found.group(1)) if found else None


def show(name: str, rate: float | None, note: str = "") -> None:
    print(f"{name:<44}{'failed' if rate is None else f'{rate:8.1f} slices/s'}  {note}", flush=True)


def main() -> None:
    if sys.argv[1:2] == ["--engine"]:
        run_engine(sys.argv[2], sys.argv[3], int(sys.argv[4]))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("archive", type=Path)
    parser.add_argument("--peer-python")
    parser.add_argument("--peer-scripts", type=Path)
    parser.add_argument("--limit", type=int, help="scans of the whole runs; all if not given")
    parser.add_argument("--batches", type=int, default=8)
    arguments = parser.parse_args()
    limit = ["--limit", str(arguments.limit)] if arguments.limit else []
    rates: dict[str, float | None] = {}
    for precision in ("float32", "bfloat16"):
        rates[f"a {precision}"] = time_engine("keras", precision, arguments.batches)
        show(f"(a) bare Keras {precision}", rates[f"a {precision}"])
        rates[f"b {precision}"] = time_engine("raysegment", precision, arguments.batches)
        show(f"(b) inference graph {precision}", rates[f"b {precision}"])
        rates[f"b members {precision}"] = time_engine("members", precision, arguments.batches)
        ratio = f"{rates[f'b members {precision}'] / rates[f'b {precision}']:.2f} of one network"
        show(f"(b) the mean of {MEMBERS} networks {precision}", rates[f"b members {precision}"], ratio)
    with tempfile.TemporaryDirectory() as scratch:
        model = Path(scratch) / "model"
        make_bundle(model)
        for name, word in (("without", "--no-foreground-box"), ("with", "--foreground-box")):
            record = run_infer(model, arguments.archive, Path(scratch) / name, word, "--precision", "bfloat16", *limit)
            rates[f"c {name}"] = record["slices_per_second"]
            whole = record["slices"] / record["seconds_command"]
            # The interpreter's start and end are not in the record's own times.
            outside = record["seconds_command"] - record["seconds_total"]
            startup = record["seconds_startup"] + outside
            first = f"first prediction after {startup:.1f} s, whole run {whole:.1f} slices/s"
            show(f"(c) infer bfloat16 {name} foreground boxes", rates[f"c {name}"], first)
        time_averaging(model, arguments.archive, Path(scratch), limit, rates["c with"])
        plain, ours = time_reading(arguments.archive)
        show("reading, plain tifffile, one core", plain)
        show("reading, decoder with transport", ours, f"{ours / plain:.2f} of plain")
        if arguments.peer_python and arguments.peer_scripts:
            scripts = arguments.peer_scripts
            for word in ("fp32", "bf16"):
                out = str(Path(scratch) / f"monai_{word}")
                rates[f"d {word}"] = run_peer(
                    arguments.peer_python, scripts / "infer_monai.py", str(arguments.archive), out, word
                )
                show(f"(d) MONAI {word}", rates[f"d {word}"])
            rates["e"] = run_peer(arguments.peer_python, scripts / "bare.py", "openvino", "infer", "bf16")
            show("(e) OpenVINO alone bf16", rates["e"])
    targets = (
        ("b bfloat16", "e", 0.95),
        ("c without", "b bfloat16", 0.9),
        ("c with", "d bf16", 2.0),
        ("c with", "d fp32", 4.0),
    )
    for ours_name, other, target in targets:
        mine, theirs = rates.get(ours_name), rates.get(other)
        if mine and theirs:
            print(f"{ours_name} / {other}: {mine / theirs:.2f} (target {target})")


if __name__ == "__main__":
    main()
