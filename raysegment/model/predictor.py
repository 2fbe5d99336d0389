"""A loaded network that turns batches of slices into probabilities."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from raysegment.errors import UsageError
from raysegment.model.bundle import Bundle

FAST_BFLOAT16_FLAGS = frozenset({"avx512_bf16", "amx_bf16"})
"""Processor flags with which bfloat16 is faster than float32; without them it is slower."""

FIRST_GPU_WITH_BFLOAT16 = (8, 0)
FIRST_GPU_WITH_FLOAT16 = (7, 0)
"""CUDA compute capabilities with matrix units for these types."""


class Predictor:
    """Runs a network's inference graph.

    Batches are padded to fixed sizes, for each of which the processor's kernels are prepared once, and a slice's result
    does not depend on its neighbours. The graph computes without Python's lock, so other threads go on.

    Args:
        network: A bundle, or a functional Keras model of `build_network`.
        precision: `auto`, `float32`, `bfloat16` or `float16`; see `resolve_precision`.
        threads: Processor threads to use; TensorFlow's own choice if None. Takes effect only in a process that has
            not used TensorFlow yet.
        batch_size: Slices in one forward pass.
    """

    def __init__(
        self, network: Bundle | Any, *, precision: str = "auto", threads: int | None = None, batch_size: int = 16
    ) -> None:
        if threads is not None:
            set_threads(threads)
        from raysegment.model.fuse import FusedNetwork, trace_network

        self.precision = resolve_precision(precision)
        self.batch_sizes = list_batch_sizes(batch_size)
        model = network.load_network() if isinstance(network, Bundle) else network
        self.num_channels = int(model.input_shape[-1])
        fused = FusedNetwork(model, self.precision)
        self.grid_factor = fused.grid_factor
        self._graph = trace_network(fused, self.num_channels)

    def predict(self, batch: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Probabilities of slices.

        Args:
            batch: float32, (slices, rows, columns, channels), normalized; rows and columns divide by 2**depth of the
                network. Any number of slices.

        Returns:
            float32, (slices, rows, columns).
        """
        if batch.ndim != 4 or batch.shape[-1] != self.num_channels:
            raise ValueError(f"batch is {batch.shape}; expected (slices, rows, columns, {self.num_channels}).")
        if any(side % self.grid_factor for side in batch.shape[1:3]):
            raise ValueError(f"batch is {batch.shape}; rows and columns must divide by {self.grid_factor}.")
        largest = self.batch_sizes[-1]
        result = np.empty(batch.shape[:3], np.float32)
        for start in range(0, len(batch), largest):
            result[start : start + largest] = self._predict_padded(batch[start : start + largest])
        return result

    def warm_up(self, shapes: Iterable[tuple[int, int]]) -> None:
        """Prepare the kernels of full batches before the first scan comes.

        Args:
            shapes: (rows, columns) of the batches to come.
        """
        for rows, columns in shapes:
            self.predict(np.zeros((self.batch_sizes[-1], rows, columns, self.num_channels), np.float32))

    def _predict_padded(self, batch: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        import tensorflow as tf

        size = next(size for size in self.batch_sizes if size >= len(batch))
        padded = batch
        if len(batch) < size:
            padded = np.zeros((size, *batch.shape[1:]), np.float32)
            padded[: len(batch)] = batch
        output: npt.NDArray[np.float32] = self._graph(tf.constant(padded, tf.float32)).numpy()
        return output[: len(batch), ..., 0]


def list_batch_sizes(batch_size: int) -> list[int]:
    """Powers of two below `batch_size`, and `batch_size`."""
    sizes = [1]
    while sizes[-1] * 2 < batch_size:
        sizes.append(sizes[-1] * 2)
    return sizes if batch_size == 1 else [*sizes, batch_size]


def set_threads(threads: int) -> None:
    """Let TensorFlow use that many processor threads; without effect once TensorFlow runs."""
    import tensorflow as tf

    try:
        tf.config.threading.set_intra_op_parallelism_threads(threads)
        tf.config.threading.set_inter_op_parallelism_threads(1)
    except RuntimeError:
        return


def resolve_precision(name: str) -> str:
    """The arithmetic to use on this machine.

    Args:
        name: `auto`, `float32`, `bfloat16` or `float16`. `auto` is bfloat16 where processor or GPU is fast in it,
            float16 on GPUs that are fast in that only, else float32.

    Returns:
        `float32`, `bfloat16` or `float16`.
    """
    if name != "auto":
        if name not in ("float32", "bfloat16", "float16"):
            raise UsageError(f"--precision {name!r} is unknown; expected auto, float32, bfloat16 or float16.")
        return name
    capabilities = _find_gpus()
    if capabilities:
        if min(capabilities) >= FIRST_GPU_WITH_BFLOAT16:
            return "bfloat16"
        return "float16" if min(capabilities) >= FIRST_GPU_WITH_FLOAT16 else "float32"
    return "bfloat16" if _read_cpu_flags() & FAST_BFLOAT16_FLAGS else "float32"


def _find_gpus() -> list[tuple[int, int]]:
    """Compute capability of each GPU this process may use."""
    # The environment answers on most machines, without the seconds that importing TensorFlow takes.
    if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1") or not Path("/dev/nvidiactl").exists():
        return []
    import tensorflow as tf

    found = []
    for device in tf.config.list_physical_devices("GPU"):
        details = tf.config.experimental.get_device_details(device)
        found.append(tuple(details.get("compute_capability", (0, 0))))
    return found


def _read_cpu_flags() -> frozenset[str]:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return frozenset()
    line = next((line for line in text.splitlines() if line.startswith("flags")), "")
    return frozenset(line.split())
