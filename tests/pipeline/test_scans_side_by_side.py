"""Scans in threads: every result is told, before an error too."""

import collections
import concurrent.futures

import pytest

from raysegment.errors import DiskFullError
from raysegment.pipeline import side_by_side
from raysegment.pipeline.side_by_side import run_side_by_side


def test_every_item_has_one_result() -> None:
    assert sorted(run_side_by_side(lambda item: item * item, range(20), 3)) == [item * item for item in range(20)]


def test_what_ended_together_with_an_error_is_told_before_it(monkeypatch) -> None:
    monkeypatch.setattr(side_by_side, "wait", lambda futures, return_when: concurrent.futures.wait(futures))

    def write(item: int) -> int:
        if item == 5:
            raise DiskFullError("no space left")
        return item

    for _ in range(10):
        told: list[int] = []
        results = run_side_by_side(write, range(6), 4)
        with pytest.raises(DiskFullError):
            collections.deque(map(told.append, results))
        assert sorted(told) == [0, 1, 2, 3, 4]
