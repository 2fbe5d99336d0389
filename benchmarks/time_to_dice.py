"""Minutes to a validation Dice on LGG: a plain Keras script against a finished run of raysegment.

    python benchmarks/time_to_dice.py LGG_DIR SPLIT_FILE --run RUN [--minutes 40]

The plain script is what the author of a small project writes: 256x256, Dice loss, Adam 1e-4, batch 32, float32, all
slices in memory, rotation, shift, zoom, shear and flip in the data generator, `Model.fit`. After each epoch the mean
per-scan Dice on the validation patients is taken at 0.5. RUN is a folder of `raysegment train … --recipe lgg-best` on
the same machine; its minutes come from its history. Nothing else should run on the machine.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import time
from pathlib import Path

import cv2
import numpy as np
import pyarrow.parquet as pq
import tifffile

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
BATCH = 32


def read_patient(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    masks = sorted(folder.glob("*_mask.tif"), key=lambda path: int(re.findall(r"_(\d+)_mask", path.name)[0]))
    pixels = np.stack([tifffile.imread(str(path).replace("_mask", "")) for path in masks])
    return pixels, np.stack([tifffile.imread(path) for path in masks]) > 127


def augment(pixels: np.ndarray, reference: np.ndarray, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    side = pixels.shape[0]
    turn = np.deg2rad(random.uniform(-11.5, 11.5))
    zoom, shear = 1 + random.uniform(-0.05, 0.05), random.uniform(-0.05, 0.05)
    linear = np.array([[np.cos(turn), -np.sin(turn) + shear], [np.sin(turn), np.cos(turn)]]) * zoom
    if random.random() < 0.5:
        linear[:, 0] *= -1
    centre = np.full(2, (side - 1) / 2)
    shift = centre - linear @ centre + random.uniform(-0.05, 0.05, 2) * side
    matrix = np.column_stack([linear, shift])
    warped = cv2.warpAffine(pixels, matrix, (side, side))
    return warped / np.float32(255), cv2.warpAffine(reference.astype(np.uint8), matrix, (side, side), flags=0)


def fit_plainly(archive: Path, split_file: Path, minutes: float) -> list[tuple[float, float]]:
    """(minutes, Dice) after each epoch."""
    import keras
    import tensorflow as tf

    from raysegment.model.unet import build_network

    splits = json.loads(split_file.read_text())
    scans = [read_patient(archive / patient) for patient in splits["train"]]
    pixels, reference = (np.concatenate(arrays) for arrays in zip(*scans, strict=True))
    validation = [read_patient(archive / patient) for patient in splits["val"]]
    random = np.random.default_rng(0)

    class Slices(keras.utils.PyDataset):
        def __len__(self) -> int:
            return -(-len(pixels) // BATCH)

        def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
            chosen = random.integers(0, len(pixels), BATCH)
            samples = [augment(pixels[i], reference[i], random) for i in chosen]
            return np.stack([s[0] for s in samples]), np.stack([s[1] for s in samples])[..., None].astype(np.float32)

    def dice_loss(expected: tf.Tensor, probability: tf.Tensor) -> tf.Tensor:
        overlap = tf.reduce_sum(expected * probability)
        return 1 - (2 * overlap + 1) / (tf.reduce_sum(expected) + tf.reduce_sum(probability) + 1)

    start = time.monotonic()
    model = build_network(network="unet", input_shape=(256, 256, 3), filters=32, depth=4, norm_momentum=0.99)
    model.compile(keras.optimizers.Adam(1e-4), dice_loss, jit_compile=False)
    curve: list[tuple[float, float]] = []
    while not curve or curve[-1][0] + curve[-1][0] / len(curve) < minutes:
        model.fit(Slices(workers=1), epochs=1, verbose=0)
        dice = []
        for scan, truth in validation:
            mask = model.predict(scan / np.float32(255), batch_size=BATCH, verbose=0)[..., 0] > 0.5
            dice.append(2 * (mask & truth).sum() / (mask.sum() + truth.sum()))
        curve.append(((time.monotonic() - start) / 60, float(np.mean(dice))))
        print(f"plain Keras   {curve[-1][0]:6.1f} min   Dice {curve[-1][1]:.4f}", flush=True)
    return curve


def read_run(run: Path) -> list[tuple[float, float]]:
    """(minutes, Dice) after each epoch of a raysegment run, reading the scans included."""
    record = json.loads((run / "run.json").read_text())
    rows = pq.read_table(run / "history.parquet").to_pylist()
    minutes = record["seconds_prepare"] / 60 + np.cumsum([row["minutes"] for row in rows])
    return [(float(minute), row["val_dice"]) for minute, row in zip(minutes, rows, strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("archive", type=Path)
    parser.add_argument("split_file", type=Path)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=40)
    arguments = parser.parse_args()
    ours = read_run(arguments.run)
    for minute, dice in ours:
        print(f"raysegment    {minute:6.1f} min   Dice {dice:.4f}")
    plain = fit_plainly(arguments.archive, arguments.split_file, arguments.minutes)
    goal, plain_minutes = max((dice, minute) for minute, dice in plain)
    reached = [minute for minute, dice in ours if dice >= goal]
    if not reached:
        print(f"raysegment did not reach Dice {goal:.4f}, which plain Keras reached after {plain_minutes:.1f} min")
        return
    share = reached[0] / plain_minutes
    print(f"Dice {goal:.4f}: plain Keras {plain_minutes:.1f} min, raysegment {reached[0]:.1f} min, share {share:.2f}")


if __name__ == "__main__":
    main()
