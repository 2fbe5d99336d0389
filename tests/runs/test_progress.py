"""The rate of an inference run, by a clock of its own."""

from __future__ import annotations

import pytest

from raysegment.runs import progress
from raysegment.runs.console import Console
from raysegment.runs.progress import STEADY_RECEIPTS, STEADY_SECONDS, ScanProgress


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    seconds = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: seconds[0])
    return seconds


def count(now: list[float], receipts: int, pause_seconds: float) -> float | None:
    shown = ScanProgress(Console(None, as_json=True), 1000)
    for _ in range(receipts):
        now[0] += pause_seconds
        shown.advance(1, 0, 30)
    return shown.slices_per_second


def test_the_rate_is_what_came_after_the_first_receipt_over_the_time_since(now):
    assert count(now, 21, 0.5) == pytest.approx(60.0)


def test_receipts_that_come_together_are_no_rate(now):
    assert count(now, 50, STEADY_SECONDS / 100) is None


def test_a_few_receipts_are_no_rate(now):
    assert count(now, STEADY_RECEIPTS - 1, 10.0) is None
    assert count(now, STEADY_RECEIPTS, 10.0) == pytest.approx(3.0)
