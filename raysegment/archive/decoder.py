"""Decoding of files that nobody vouches for, in a child process with limits.

A decoder library that crashes, hangs or eats memory on a hostile file takes only the child with it. The child imports
neither Ray nor TensorFlow, stays alive from scan to scan, and ends when its standard input closes. Requests and answers
are JSON, pixels follow as raw bytes: nothing that the child says is executed.
"""

from __future__ import annotations

import json
import math
import os
import select
import struct
import subprocess
import threading
import time
from dataclasses import asdict, dataclass, replace
from types import TracebackType
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from raysegment.archive.children import describe_death, end_child, start_child
from raysegment.archive.names import show_name
from raysegment.archive.reference import Values
from raysegment.errors import (
    DecoderCrashedError,
    DecoderTimeoutError,
    ScanError,
    UnreadableFileError,
    scan_error,
)
from raysegment.scan import READ_AS_STORED, LabelMap, Pixels, ReadSettings, Scan, ScanEntry

CHILD_MODULE = "raysegment.archive.decoder_child"
START_TIMEOUT_SECONDS = 60.0
MAX_ANSWER_BYTES = 2**20
LENGTH = struct.Struct("<Q")


@dataclass(frozen=True)
class Decoded:
    """What came of one scan.

    Attributes:
        scan: The pixels.
        reference: (slices, rows, columns); None where there is none, where none was asked for, or on an error.
        reference_error: `ErrorType: message` of a reference that cannot be used; None where all is well.
    """

    scan: Scan
    reference: LabelMap | None = None
    reference_error: str | None = None


class _ChildDiedError(Exception):
    """The child's pipe closed before the answer was complete."""


class Decoder:
    """A child process that reads scans; one per thread of work, kept alive.

        with Decoder(memory_mb=4096, timeout_seconds=60) as decoder:
            decoded = decoder.read(entry, with_reference=True)

    Args:
        memory_mb: Memory that one scan may take in the child, above what the child needs itself.
        timeout_seconds: Time that the pixels, and then the reference, may take.
        settings: What reading depends on besides the manifest's row.
    """

    def __init__(
        self, memory_mb: int = 4096, timeout_seconds: float = 60.0, settings: ReadSettings = READ_AS_STORED
    ) -> None:
        self.memory_mb = memory_mb
        self.timeout_seconds = timeout_seconds
        self.settings = settings
        self._child: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()

    def __enter__(self) -> Decoder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()

    def read(self, entry: ScanEntry, with_reference: bool = False) -> Decoded:
        """Read one scan, and its reference where it has one and it is asked for.

        Raises:
            ScanError: The scan cannot be used: what `read_scan` raises, or DecoderCrashedError, DecoderMemoryError,
                DecoderTimeoutError. A reference that cannot be used is no error of the scan.
        """
        with self._lock:
            pixels, answer = self._ask("scan", entry, None)
            spacing_mm, affine = answer["spacing_mm"], answer["affine"]
            scan = Scan(
                pixels,
                None if spacing_mm is None else (float(spacing_mm[0]), float(spacing_mm[1]), float(spacing_mm[2])),
                None if affine is None else np.array(affine, np.float64).reshape(4, 4),
            )
            if not with_reference or not any(entry.reference_files):
                return Decoded(scan)
            try:
                reference, _ = self._ask("reference", entry, scan)
            except ScanError as error:
                return Decoded(scan, None, f"{type(error).__name__}: {error}")
            return Decoded(scan, cast(LabelMap, reference))

    def read_reference(
        self, entry: ScanEntry, grid: tuple[int, int, int], affine: npt.NDArray[np.float64] | None
    ) -> LabelMap:
        """The reference of a scan that was read before.

        Args:
            entry: The scan's row of the manifest.
            grid: The scan's (slices, rows, columns).
            affine: The scan's, on which a volume must lie; None where it has none.

        Raises:
            ScanError: As `read_reference` of `archive/reference`, or one of the decoder's own.
        """
        with self._lock:
            reference, _ = self._ask("reference", entry, Scan(np.broadcast_to(np.uint8(0), (*grid, 1)), None, affine))
            return cast(LabelMap, reference)

    def read_values(self, entry: ScanEntry) -> Values:
        """The different values that the reference of a scan holds, ascending.

        Raises:
            ScanError: The reference cannot be read, or is no mask.
        """
        with self._lock:
            values, _ = self._ask("values", entry, None)
            return values.astype(np.float64, copy=False)

    def close(self) -> None:
        """End the child."""
        child, self._child = getattr(self, "_child", None), None
        if child is None:
            return
        end_child(child)

    def _ask(self, what: str, entry: ScanEntry, scan: Scan | None) -> tuple[Pixels, dict[str, Any]]:
        """Ask the child for pixels; for the reference of a scan that was read."""
        request = {
            "what": what,
            # JSON knows no dates, and reading needs none.
            "entry": asdict(replace(entry, scan_date=None, scan_day=None)),
            "settings": asdict(self.settings),
            "grid": scan and scan.grid,
            "affine": None if scan is None or scan.affine is None else scan.affine.tolist(),
        }
        cause = ""
        for _ in range(2):
            try:
                return self._ask_once(request)
            except _ChildDiedError as error:
                cause = str(error)
                self.close()
        raise DecoderCrashedError(f"{_first_file(what, entry)}: the decoder died twice ({cause}).")

    def _ask_once(self, request: dict[str, Any]) -> tuple[Pixels, dict[str, Any]]:
        try:
            child = self._running_child()
            deadline = time.monotonic() + self.timeout_seconds
            self._send(child, json.dumps(request).encode())
            answer = self._receive_answer(child, deadline)
            if "error_type" in answer:
                if answer["error_type"] == "DecoderMemoryError":
                    self.close()
                raise scan_error(answer["error_type"], answer["message"])
            pixels = self._receive_pixels(child, answer, deadline)
        except TimeoutError:
            self.close()
            entry = ScanEntry(**request["entry"])
            raise DecoderTimeoutError(
                f"{_first_file(request['what'], entry)}: not decoded within {self.timeout_seconds:g} seconds."
            ) from None
        return pixels, answer

    def _running_child(self) -> subprocess.Popen[bytes]:
        if self._child is not None and self._child.poll() is None:
            return self._child
        self.close()
        self._child = start_child(CHILD_MODULE, str(self.memory_mb), str(self.timeout_seconds))
        try:
            self._receive_answer(self._child, time.monotonic() + START_TIMEOUT_SECONDS)
        except TimeoutError:
            raise _ChildDiedError(f"did not start within {START_TIMEOUT_SECONDS:g} seconds") from None
        return self._child

    def _send(self, child: subprocess.Popen[bytes], message: bytes) -> None:
        assert child.stdin is not None
        try:
            child.stdin.write(LENGTH.pack(len(message)) + message)
            child.stdin.flush()
        except OSError:
            raise _ChildDiedError(describe_death(child)) from None

    def _receive_answer(self, child: subprocess.Popen[bytes], deadline: float) -> dict[str, Any]:
        (length,) = LENGTH.unpack(self._receive(child, LENGTH.size, deadline))
        if length > MAX_ANSWER_BYTES:
            raise _ChildDiedError("answered nonsense")
        answer = json.loads(bytes(self._receive(child, length, deadline)))
        return dict(answer)

    def _receive_pixels(self, child: subprocess.Popen[bytes], answer: dict[str, Any], deadline: float) -> Pixels:
        shape, dtype = tuple(int(size) for size in answer["shape"]), np.dtype(str(answer["dtype"]))
        num_bytes = math.prod(shape) * dtype.itemsize
        if dtype.kind not in "buif" or min(shape) < 0 or num_bytes > 2 * self.memory_mb * 2**20:
            self.close()
            raise UnreadableFileError(f"the decoder answered with {shape} {dtype}.")
        pixels = np.empty(shape, dtype)
        self._receive_into(child, pixels.reshape(-1).view(np.uint8).data, deadline)
        return pixels

    def _receive(self, child: subprocess.Popen[bytes], num_bytes: int, deadline: float) -> bytearray:
        data = bytearray(num_bytes)
        self._receive_into(child, memoryview(data), deadline)
        return data

    def _receive_into(self, child: subprocess.Popen[bytes], target: memoryview, deadline: float) -> None:
        assert child.stdout is not None
        descriptor = child.stdout.fileno()
        poller = select.poll()
        poller.register(descriptor, select.POLLIN)
        position = 0
        while position < len(target):
            if not poller.poll(max(0.0, deadline - time.monotonic()) * 1000):
                raise TimeoutError
            count = os.readv(descriptor, [target[position:]])
            if not count:
                raise _ChildDiedError(describe_death(child))
            position += count


def _first_file(what: str, entry: ScanEntry) -> str:
    files = [name for name in (entry.files if what == "scan" else entry.reference_files) if name]
    return show_name(files[0] if len(files) == 1 else entry.scan_id)
