"""Several scans in hand at the same time, in threads whose work is mostly outside of Python's lock."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from itertools import islice
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def run_side_by_side(function: Callable[[Item], Result], items: Iterable[Item], workers: int) -> Iterator[Result]:
    """Results as they come, in no order; items are taken as they are needed, two for each worker at a time.

    Args:
        function: Called in threads.
        items: Read in the caller's thread.
        workers: Threads.

    Raises:
        Exception: What the function raised; what ended at the same time without an error was told before.
    """
    waiting, running = iter(items), set[Future[Result]]()
    with ThreadPoolExecutor(workers, thread_name_prefix="scan") as pool:
        try:
            while True:
                running |= {pool.submit(function, item) for item in islice(waiting, 2 * workers - len(running))}
                if not running:
                    return
                ended, running = wait(running, return_when=FIRST_COMPLETED)
                # What is finished is told before an error ends the loop.
                for future in sorted(ended, key=lambda future: future.exception() is not None):
                    yield future.result()
        finally:
            pool.shutdown(cancel_futures=True)
