"""Blocks on their way from reading to dispatch: a few references ahead, pulled by a thread of their own."""

from __future__ import annotations

import queue
import threading
from typing import Any

SECONDS_TO_STOP = 10.0


class BlockFeed:
    """Pulls block references from Ray Data in a thread of its own, a few ahead.

    Args:
        blocks: Iterable of references, with a method `close`.
        num_ahead: References to hold ready.
    """

    def __init__(self, blocks: Any, num_ahead: int) -> None:
        self.is_done = False
        self.error: BaseException | None = None
        self._blocks = blocks
        self._queue: queue.Queue[Any] = queue.Queue(maxsize=num_ahead)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._pull, name="block feed", daemon=True)
        self._thread.start()

    def take(self) -> Any | None:
        """The next reference, or None where none is ready now."""
        try:
            return self._queue.get_nowait()
        except queue.Empty:
            if not self._thread.is_alive() and self._queue.empty():
                self.is_done = True
            return None

    def close(self) -> None:
        """Stop pulling and reading."""
        self._stop.set()
        self._blocks.close()
        self._thread.join(timeout=SECONDS_TO_STOP)

    def _pull(self) -> None:
        try:
            for reference in self._blocks:
                while not self._stop.is_set():
                    try:
                        self._queue.put(reference, timeout=0.2)
                        break
                    except queue.Full:
                        continue
                if self._stop.is_set():
                    return
        except BaseException as error:
            self.error = error
