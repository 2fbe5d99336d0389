"""A loaded network that turns batches of slices into probabilities."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt

from raysegment.model.bundle import Bundle
from raysegment.model.precision import find_gpus, resolve_precision
from raysegment.model.start import start_tensorflow

CPU_BATCH_SIZE = 4
"""Slices in one forward pass on processors: as fast as more, and less memory."""


class Predictor:
    """Runs a network's inference graph.

    Batches are cut into a few fixed sizes, for each of which the processor's kernels are prepared once; how depends on
    their number of slices alone, and a slice's result does not depend on its neighbours. On processors two batches are
    computed side by side, which keeps the cores busier than one with all threads. The graph computes without Python's
    lock, so other threads go on.

    Args:
        network: A bundle, or a functional Keras model of `build_network`.
        precision: `auto`, `float32`, `bfloat16` or `float16`; see `resolve_precision`.
        threads: Processor threads to use; TensorFlow's own choice if None. Takes effect only in a process that has
            not used TensorFlow yet.
        batch_size: Slices in one forward pass, at most; on processors at most four, which is as fast.

    Attributes:
        lanes: Batches that are computed side by side.
        num_labels: Regions that the network tells apart.
    """

    def __init__(
        self, network: Bundle | Any, *, precision: str = "auto", threads: int | None = None, batch_size: int = 16
    ) -> None:
        start_tensorflow()
        has_gpu = bool(find_gpus())
        self.lanes = 1 if has_gpu or threads == 1 else 2
        if threads is not None:
            set_threads(threads, self.lanes)
        let_gpu_memory_grow()
        from raysegment.model.engines.fuse import FusedNetwork, trace_network

        self.precision = resolve_precision(precision)
        self.batch_sizes = list_batch_sizes(batch_size if has_gpu else min(batch_size, CPU_BATCH_SIZE))
        self._pool = ThreadPoolExecutor(self.lanes, thread_name_prefix="network")
        model = network.load_network() if isinstance(network, Bundle) else network
        self.num_channels = int(model.input_shape[-1])
        fused = FusedNetwork(model, self.precision)
        self.grid_factor, self.num_labels = fused.grid_factor, fused.num_labels
        self._graph = trace_network(fused, self.num_channels)

    def predict(self, batch: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Probabilities of slices.

        Args:
            batch: float32, (slices, rows, columns, channels), normalized; rows and columns divide by 2**depth of the
                network. Any number of slices.

        Returns:
            float32, (slices, rows, columns, labels).
        """
        if batch.ndim != 4 or batch.shape[-1] != self.num_channels:
            raise ValueError(f"batch is {batch.shape}; expected (slices, rows, columns, {self.num_channels}).")
        if any(side % self.grid_factor for side in batch.shape[1:3]):
            raise ValueError(f"batch is {batch.shape}; rows and columns must divide by {self.grid_factor}.")
        stops = np.cumsum(split_batch(len(batch), self.batch_sizes), dtype=int).tolist()
        parts = [batch[start:stop] for start, stop in zip([0, *stops], stops, strict=False)]
        result = np.empty((*batch.shape[:3], self.num_labels), np.float32)
        for stop, found in zip(stops, self._pool.map(self._run, parts), strict=True):
            result[stop - len(found) : stop] = found
        return result

    def warm_up(self) -> None:
        """Let TensorFlow optimise the graph and order the weights before the first scan comes."""
        side = 4 * self.grid_factor
        self.predict(np.zeros((1, side, side, self.num_channels), np.float32))

    def _run(self, batch: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        import tensorflow as tf

        found: npt.NDArray[np.float32] = self._graph(tf.constant(batch, tf.float32)).numpy()
        return found


def list_batch_sizes(batch_size: int) -> list[int]:
    """`batch_size`, its fourth part, and so on down to 1; a few, so that kernels for all of them stay prepared."""
    sizes = [batch_size]
    while sizes[-1] > 1:
        sizes.append(max(1, sizes[-1] // 4))
    return sizes


def split_batch(num_slices: int, sizes: list[int]) -> list[int]:
    """Cut a number of slices into the largest of the sizes that fit, nothing padded; `sizes` go down to 1."""
    parts = []
    for size in sizes:
        count, num_slices = divmod(num_slices, size)
        parts += [size] * count
    return parts


def set_threads(threads: int, lanes: int = 1) -> None:
    """Let TensorFlow use that many processor threads for operations side by side; without effect once it runs."""
    import tensorflow as tf

    try:
        # With as many lanes as threads each operation runs in the thread that asks for it, without hand-over.
        tf.config.threading.set_intra_op_parallelism_threads(1 if lanes >= threads else threads)
        tf.config.threading.set_inter_op_parallelism_threads(lanes)
    except RuntimeError:
        return


def let_gpu_memory_grow() -> None:
    """Take GPU memory as it is needed, so that several workers can share a GPU; without effect once TensorFlow runs."""
    import tensorflow as tf

    for device in tf.config.list_physical_devices("GPU"):
        try:
            tf.config.experimental.set_memory_growth(device, True)
        except RuntimeError:
            return
