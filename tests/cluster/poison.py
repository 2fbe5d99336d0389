"""Workers that die or fail on one scan, like a library that a certain scan crashes; Ray's workers import them."""

from __future__ import annotations

import os
import signal

import pyarrow as pa

from raysegment.cluster.inference.worker import Receipt, Segmenter
from raysegment.errors import NetworkFailedError


class PoisonedSegmenter(Segmenter):
    """Dies on PHANTOM_0011."""

    def segment(self, block: pa.Table) -> Receipt:
        if "PHANTOM_0011" in block["scan_id"].to_pylist():
            os.kill(os.getpid(), signal.SIGKILL)
        return super().segment(block)


class FailingSegmenter(Segmenter):
    """Its network fails on PHANTOM_0011."""

    def segment(self, block: pa.Table) -> Receipt:
        if "PHANTOM_0011" in block["scan_id"].to_pylist():
            raise NetworkFailedError("MemoryError: no memory left on the GPU")
        return super().segment(block)
