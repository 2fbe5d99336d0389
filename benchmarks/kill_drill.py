"""SIGKILL of the driver at random moments, ten times, and the same command again: the tables must not differ.

    python benchmarks/kill_drill.py [--kills 10] [--patients 60] [--seed 0]

Prints what was done before each kill, and ends with exit code 1 where any table differs from an undisturbed run's.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

TESTS = Path(__file__).parents[1] / "tests" / "cluster"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")


def make_bundle(folder: Path) -> None:
    import keras

    from raysegment.model.bundle import BundleDescription, save_bundle
    from raysegment.model.unet import build_network
    from raysegment.options import Postprocessing, Preprocessing

    keras.utils.set_random_seed(1)
    choices = {"network": "unet", "filters": 4, "depth": 2, "dropout": 0.0, "norm": "batch", "norm_momentum": 0.9}
    description = BundleDescription(
        preprocessing=Preprocessing(image_size=64),
        postprocessing=Postprocessing(threshold=0.5),
        num_channels=3,
        network=choices,
    )
    save_bundle(folder, build_network(**choices, input_shape=(64, 64, 3)), description)


def start(model: Path, archive: Path, out: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "raysegment", "infer", str(model), str(archive), "--out", str(out)]
    return subprocess.Popen([*command, "--part-seconds", "0"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--patients", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    sys.path.insert(0, str(TESTS))
    from tables import assert_equal_tables, assert_whole

    from raysegment.imaging.phantom import write_archive

    draw = random.Random(arguments.seed)
    with tempfile.TemporaryDirectory() as scratch:
        model, archive, out, expected = (Path(scratch) / name for name in ("model", "archive", "out", "expected"))
        write_archive(archive, patients=arguments.patients, seed=arguments.seed, image_size=64, slices=8)
        make_bundle(model)
        if start(model, archive, expected).wait():
            raise SystemExit("the undisturbed run failed")
        done = 0
        for kill in range(1, arguments.kills + 1):
            driver = start(model, archive, out)
            wanted = draw.randint(0, max(1, (arguments.patients - done) // 3))
            while len(list((out / "scans").glob("*.parquet"))) < done + wanted and driver.poll() is None:
                time.sleep(0.005)
            time.sleep(draw.uniform(0, 8.0 if wanted == 0 else 0.1))
            driver.send_signal(signal.SIGKILL)
            driver.wait()
            done = assert_whole(out)
            print(f"kill {kill}: {done} of {arguments.patients} scans done, tables whole", flush=True)
        if start(model, archive, out).wait():
            raise SystemExit("the last run failed")
        assert_equal_tables(out, expected)
        print(f"the tables equal an undisturbed run's after {arguments.kills} kills")


if __name__ == "__main__":
    main()
