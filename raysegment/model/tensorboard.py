"""Training curves for TensorBoard."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import tensorflow as tf


def log_epoch(folder: Path, row: Mapping[str, float]) -> None:
    """Append one epoch's numbers, under the epoch as step."""
    with tf.summary.create_file_writer(str(folder)).as_default():
        for name, value in row.items():
            if name != "epoch" and not math.isnan(value):
                tf.summary.scalar(name, value, step=int(row["epoch"]))
