"""Training speed in one sitting: plain Keras, raysegment with one and two workers, and a peer.

    python benchmarks/training.py LGG_DIR [--precision bfloat16 float32] [--peer-python PYTHON --peer-script PEER.py]

The network is the 7.77 M-weight U-Net at 256x256, batch 16. (a) is `Model.fit` on arrays in memory without
augmentation; (b) and (c) are `raysegment train` with augmentation, the mean of the epochs after the first; (d) is any
script that prints `… : RATE slices/s`. Nothing else should run on the machine.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import pyarrow.parquet as pq

KERAS = """
import sys, time, os
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
import keras, numpy as np
from raysegment.model.unet import build_network
keras.config.set_dtype_policy({"float32": "float32", "bfloat16": "mixed_bfloat16"}[sys.argv[1]])
batch, steps = 16, int(sys.argv[2])
random = np.random.default_rng(0)
pixels = random.standard_normal((batch * steps, 256, 256, 3), dtype=np.float32)
reference = (random.random((batch * steps, 256, 256, 1)) > 0.9).astype(np.float32)
model = build_network(network="unet", input_shape=(256, 256, 3), filters=32, depth=4, norm_momentum=0.99)
model.compile(keras.optimizers.Adam(1e-4), "binary_crossentropy", jit_compile=False)
model.fit(pixels[:batch * 2], reference[:batch * 2], batch_size=batch, verbose=0)
start = time.time()
model.fit(pixels, reference, batch_size=batch, verbose=0)
print(f"{batch * steps / (time.time() - start):.3f}")
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("archive")
    parser.add_argument("--precision", nargs="+", default=["bfloat16", "float32"])
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--peer-python")
    parser.add_argument("--peer-script")
    arguments = parser.parse_args()
    for precision in arguments.precision:
        rates = {
            "a  plain Keras fit": measure_keras(precision, arguments.steps),
            "b  raysegment, 1 worker": measure_raysegment(arguments.archive, precision, arguments.steps, workers=1),
            "c  raysegment, 2 workers": measure_raysegment(arguments.archive, precision, arguments.steps, workers=2),
        }
        if arguments.peer_python:
            rates["d  peer"] = measure_peer(arguments, precision)
        print_rates(precision, rates)


def measure_keras(precision: str, steps: int) -> float:
    done = subprocess.run([sys.executable, "-c", KERAS, precision, str(steps)], capture_output=True, text=True)
    return float(done.stdout.split()[-1])


def measure_raysegment(archive: str, precision: str, steps: int, workers: int) -> float:
    """The mean of the epochs after the first, which also traces the graph."""
    with tempfile.TemporaryDirectory() as folder:
        words = ["train", archive, "--out", folder, "--precision", precision, "--workers", str(workers)]
        words += ["--epochs", "3", "--slices-per-epoch", str(16 * steps), "--batch-size", "16", "--image-size", "256"]
        words += ["--filters", "32", "--depth", "4", "--loss", "bce", "--optimizer", "adam", "--learning-rate", "1e-4"]
        words += ["--val-fraction", "0.02"]
        done = subprocess.run([sys.executable, "-m", "raysegment", *words], capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(done.stdout + done.stderr)
        history = pq.read_table(Path(folder) / "history.parquet").to_pydict()
        print(
            f"   {workers} workers: slices/s {[round(rate, 2) for rate in history['slices_per_second']]}, share of "
            f"time waiting for data {[round(share, 3) for share in history['data_wait_share']]}",
            flush=True,
        )
        return float(sum(history["slices_per_second"][1:]) / 2)


def measure_peer(arguments: argparse.Namespace, precision: str) -> float:
    words = [arguments.peer_python, arguments.peer_script, arguments.archive]
    words += ["bf16"] * (precision == "bfloat16") + ["1", str(arguments.steps)]
    done = subprocess.run(words, capture_output=True, text=True)
    found = re.search(r": ([\d.]+) slices/s", done.stdout)
    if not found:
        raise SystemExit(done.stdout + done.stderr)
    return float(found[1])


def print_rates(precision: str, rates: dict[str, float]) -> None:
    by_letter = {name[0]: rate for name, rate in rates.items()}
    print(f"{precision}, 256x256x3, batch 16")
    for name, rate in rates.items():
        print(f"  {name:<28}{rate:8.2f} slices/s")
    pairs = [("b", "a", 0.95), ("c", "b", 0.85), ("b", "d", 1.15)]
    for above, below, target in pairs:
        if below in by_letter:
            print(f"  {above} / {below} = {by_letter[above] / by_letter[below]:.3f}   (target {target})")


if __name__ == "__main__":
    main()
