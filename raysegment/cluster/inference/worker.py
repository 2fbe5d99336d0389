"""The actor that segments: the network loaded once, rows gathered into parts, receipts for the driver."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from raysegment.model.bundle import Bundle
from raysegment.pipeline.blocks import scans_of
from raysegment.pipeline.segment import ScanSegmenter
from raysegment.pipeline.settings import SegmentSettings
from raysegment.store.parts import OpenPart, PartReceipt, ScanRows
from raysegment.store.place import Place

CALLS_AT_ONCE = 3
"""Blocks in hand of one worker: one in the network, one being prepared, one being finished."""


@dataclass(frozen=True, kw_only=True)
class WorkerSettings:
    """What a worker needs beside the bundle.

    Attributes:
        segment: What decides the masks.
        precision: Arithmetic of the network, resolved.
        threads: TensorFlow threads.
        location: The output folder.
        staging: Folder below it for this start of the command.
        part_bytes: Size at which a part closes.
        part_seconds: Time after its first scan at which a part closes.
    """

    segment: SegmentSettings
    precision: str
    threads: int | None
    location: str
    staging: str
    part_bytes: float
    part_seconds: float


@dataclass(kw_only=True)
class Receipt:
    """What a worker did: all that the driver ever sees of a scan.

    Attributes:
        scan_ids: Scans finished in this call; they are in a part, staged or open.
        num_slices: Slices of the ok ones.
        num_failed: Failed scans.
        seconds: Time by stage.
        parts: Parts that closed in this call; they may hold scans of earlier calls.
        first_prediction: When this worker's network gave its first probabilities, in seconds since 1970.
    """

    scan_ids: list[str] = field(default_factory=list)
    num_slices: int = 0
    num_failed: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    parts: list[PartReceipt] = field(default_factory=list)
    first_prediction: float | None = None

    def add(self, rows: ScanRows) -> None:
        """Count one scan."""
        self.scan_ids.append(rows.scan_id)
        self.num_failed += rows.is_failed
        if not rows.is_failed:
            self.num_slices += int(rows.scan["num_slices"])
        for name, value in rows.scan.items():
            if name.startswith("seconds_") and value is not None:
                stage = name.removeprefix("seconds_")
                self.seconds[stage] = self.seconds.get(stage, 0.0) + value


class Segmenter:
    """Runs as a Ray actor with several threads; without Ray it is an ordinary object.

    Args:
        bundle: The trained model.
        settings: What to do with it.
    """

    def __init__(self, bundle: Bundle, settings: WorkerSettings) -> None:
        from raysegment.model.engines.tensorflow import Predictor

        predictor = Predictor(
            bundle,
            precision=settings.precision,
            threads=settings.threads,
            batch_size=settings.segment.batch_size,
        )
        predictor.warm_up()
        self._segmenter = ScanSegmenter(predictor.predict_each, settings.segment, lanes=predictor.lanes)
        self._part = OpenPart(Place(settings.location), settings.staging, settings.part_bytes, settings.part_seconds)
        self._part_lock = threading.Lock()

    def describe(self, block: pa.Table) -> list[str]:
        """The scans of a block, so that the driver knows what is in hand."""
        return list(block["scan_id"].to_pylist())

    def segment(self, block: pa.Table) -> Receipt:
        """Segment the scans of a block into the open part.

        Raises:
            DiskFullError: A part could not be staged.
        """
        receipt = Receipt()
        for rows in self._segmenter.segment(scans_of(block)):
            receipt.add(rows)
            with self._part_lock:
                self._part.add(rows)
                part = self._part.close() if self._part.is_due else None
            if part is not None:
                receipt.parts.append(part)
        receipt.first_prediction = self._segmenter.first_prediction
        return receipt

    def close_part(self) -> Receipt:
        """Stage what waits in the open part."""
        with self._part_lock:
            part = self._part.close()
        return Receipt(parts=[] if part is None else [part])

    def identify(self) -> Mapping[str, Any]:
        """Where this worker runs; it answers once the network is loaded."""
        return {"pid": os.getpid(), "time": time.time()}


def start_segmenter(
    bundle: Any,
    settings: WorkerSettings,
    *,
    node_id: str,
    num_cpus: float,
    num_gpus: float,
    kind: type[Segmenter] = Segmenter,
) -> Any:
    """Start a Segmenter on a node of the Ray cluster; it never restarts by itself.

    Args:
        bundle: Reference to the bundle in Ray's object store.
        settings: For the worker.
        node_id: Ray's id of the node.
        num_cpus: Logical CPUs.
        num_gpus: GPUs.
        kind: The actor's class.

    Returns:
        The actor's handle.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    actor = ray.remote(concurrency_groups={"blocks": CALLS_AT_ONCE, "questions": 1})(kind)
    return actor.options(
        num_cpus=num_cpus,
        num_gpus=num_gpus,
        max_restarts=0,
        max_task_retries=0,
        scheduling_strategy=NodeAffinitySchedulingStrategy(node_id, soft=False),
    ).remote(bundle=bundle, settings=settings)
