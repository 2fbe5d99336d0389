"""A loaded network, or the members of an ensemble, that turn batches of slices into probabilities."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from raysegment.errors import UsageError
from raysegment.model.bundle import Bundle
from raysegment.model.precision import find_gpus, resolve_precision
from raysegment.model.start import start_tensorflow

CPU_BATCH_SIZE = 4
"""Slices in one forward pass on processors: as fast as more, and less memory."""


class Predictor:
    """Runs the inference graph of a network, or of each of several.

    Batches are cut into a few fixed sizes, for each of which the processor's kernels are prepared once; how depends on
    their number of slices alone, and a slice's result does not depend on its neighbours. On processors two batches are
    computed side by side, which keeps the cores busier than one with all threads. The graph computes without Python's
    lock, so other threads go on.

    Args:
        network: A bundle, a functional Keras model of `build_network`, or several of these models.
        precision: `auto`, `float32`, `bfloat16` or `float16`; see `resolve_precision`.
        threads: Processor threads to use; TensorFlow's own choice if None. Takes effect only in a process that has
            not used TensorFlow yet.
        batch_size: Slices in one forward pass, at most; on processors at most four, which is as fast.

    Attributes:
        lanes: Batches that are computed side by side.
        num_channels: Channels of a batch.
        num_labels: Regions that the networks tell apart.
        num_members: Networks whose probabilities are averaged.
        grid_factor: Rows and columns of a batch divide by this.

    Raises:
        UsageError: The networks do not see the same channels or do not tell the same regions apart.
    """

    def __init__(
        self,
        network: Bundle | Any | Sequence[Any],
        *,
        precision: str = "auto",
        threads: int | None = None,
        batch_size: int = 16,
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
        self._graphs, interfaces, factors = [], [], []
        for model in _iterate_models(network):
            num_channels = int(model.input_shape[-1])
            fused = FusedNetwork(model, self.precision)
            interfaces.append(Interface(num_channels, fused.num_labels, fused.has_background))
            factors.append(fused.grid_factor)
            self._graphs.append(trace_network(fused, num_channels))
        self.num_channels, self.num_labels, _ = share_interface(interfaces)
        # Powers of two: what divides by the largest divides by all.
        self.grid_factor = max(factors)
        self.num_members = len(factors)

    def predict(self, batch: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Probabilities of slices, the mean over all networks.

        Args:
            batch: float32, (slices, rows, columns, channels), normalized; rows and columns divide by `grid_factor`.
                Any number of slices.

        Returns:
            float32, (slices, rows, columns, labels).
        """
        total, *others = self.predict_each(batch)
        for probability in others:
            total += probability
        return total / np.float32(self.num_members) if others else total

    def predict_each(self, batch: npt.NDArray[np.float32]) -> list[npt.NDArray[np.float32]]:
        """Probabilities of slices by each network: `predict` before their mean is taken.

        A network's are those that it gives when it is alone, to the last bit.
        """
        if batch.ndim != 4 or batch.shape[-1] != self.num_channels:
            raise ValueError(f"batch is {batch.shape}; expected (slices, rows, columns, {self.num_channels}).")
        if any(side % self.grid_factor for side in batch.shape[1:3]):
            raise ValueError(f"batch is {batch.shape}; rows and columns must divide by {self.grid_factor}.")
        stops = np.cumsum(split_batch(len(batch), self.batch_sizes), dtype=int).tolist()
        parts = [batch[start:stop] for start, stop in zip([0, *stops], stops, strict=False)]
        found = [self._pool.map(partial(_run, graph), parts) for graph in self._graphs]
        results = [np.empty((*batch.shape[:3], self.num_labels), np.float32) for _ in self._graphs]
        for result, chunks in zip(results, found, strict=True):
            for stop, chunk in zip(stops, chunks, strict=True):
                result[stop - len(chunk) : stop] = chunk
        return results

    def warm_up(self) -> None:
        """Let TensorFlow optimise the graph and order the weights before the first scan comes."""
        side = 4 * self.grid_factor
        self.predict(np.zeros((1, side, side, self.num_channels), np.float32))


class Interface(NamedTuple):
    """What a network maps to what."""

    num_channels: int
    num_labels: int
    has_background: bool

    def __str__(self) -> str:
        head = "softmax" if self.has_background else "sigmoid"
        return f"{self.num_channels} channels to {self.num_labels} labels by {head}"


def share_interface(interfaces: Sequence[Interface]) -> Interface:
    """What all members of an ensemble map to what.

    Raises:
        UsageError: There is none; or their probabilities cannot be averaged.
    """
    if not interfaces:
        raise UsageError("an ensemble needs at least one network; none was given.")
    for position, interface in enumerate(interfaces):
        if interface != interfaces[0]:
            raise UsageError(
                f"network {position} of the ensemble maps {interface}, network 0 {interfaces[0]}; members must share "
                "channels, labels and head."
            )
    return interfaces[0]


def _iterate_models(network: Bundle | Any | Sequence[Any]) -> Iterator[Any]:
    """The Keras models one after the other: those of a bundle are let go of before the next is loaded."""
    if isinstance(network, Bundle):
        for position in range(network.num_members):
            yield network.load_network(position)
    elif isinstance(network, Sequence):
        yield from network
    else:
        yield network


def _run(graph: Any, batch: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    import tensorflow as tf

    found: npt.NDArray[np.float32] = graph(tf.constant(batch, tf.float32)).numpy()
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
