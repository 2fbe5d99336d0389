"""Several trainings at a time: which run, what the failure of one means to the others, how they share the hardware."""

from __future__ import annotations

import threading

import pytest

from raysegment.cluster.training import hardware
from raysegment.cluster.training.folds import run_tasks
from raysegment.cluster.training.hardware import count_side_by_side, share_hardware
from raysegment.errors import DiskFullError, DivergedError, InterruptedRunError
from raysegment.options import TrainOptions


def make_options(**choices: object) -> TrainOptions:
    return TrainOptions(source="", out="", **choices)


def test_one_at_a_time_keeps_the_order() -> None:
    done: list[int] = []
    assert run_tasks({number: lambda n=number: done.append(n) for number in range(4)}, 1) == {}
    assert done == [0, 1, 2, 3]


def test_as_many_as_there_is_room_for_are_under_way_together() -> None:
    # Each waits for the other two: one after the other they would never end.
    barrier = threading.Barrier(3, timeout=10)
    assert run_tasks(dict.fromkeys(range(3), barrier.wait), 3) == {}


def test_a_training_that_diverges_leaves_the_others_to_go_on() -> None:
    done: list[int] = []

    def fail() -> None:
        raise DivergedError("the loss is not a number")

    failures = run_tasks({0: fail, 1: lambda: done.append(1), 2: fail, 3: lambda: done.append(3)}, 1)
    assert (sorted(failures), done) == ([0, 2], [1, 3])


@pytest.mark.parametrize("error", [InterruptedRunError("SIGTERM"), DiskFullError("no space"), TypeError("a bug")])
def test_what_concerns_all_ends_all(error: Exception) -> None:
    done: list[int] = []

    def fail() -> None:
        raise error

    assert run_tasks({0: fail, 1: lambda: done.append(1)}, 1) == {0: error}
    assert done == []


@pytest.mark.parametrize(
    ("nodes", "choices", "folds", "expected"),
    [
        ([2], {}, 5, 1),
        ([2], {"threads": 1}, 5, 1),
        ([2], {"workers": 2}, 5, 1),
        ([16], {}, 5, 2),
        ([16], {"threads": 4}, 5, 4),
        ([64], {}, 5, 5),
        ([2] * 6, {}, 5, 5),
        ([2] * 6, {"workers": 2}, 5, 3),
    ],
)
def test_folds_run_side_by_side_where_there_is_room(monkeypatch, nodes, choices, folds, expected) -> None:
    monkeypatch.setattr(hardware, "live_nodes", lambda: [{"Resources": {"CPU": float(cpus)}} for cpus in nodes])
    options = make_options(**choices)
    assert count_side_by_side(options, folds) == expected
    share = share_hardware(options.workers, options, side_by_side=expected)
    per_node = -(-options.workers * expected // len(nodes))
    assert share.cpus * per_node <= max(nodes)
    assert (share.num_workers, share.side_by_side) == (options.workers, expected)


def test_each_fold_has_gpus_of_its_own(monkeypatch) -> None:
    monkeypatch.setattr(hardware, "live_nodes", lambda: [{"Resources": {"CPU": 16.0, "GPU": 4.0}}] * 2)
    assert count_side_by_side(make_options(), 5) == 5
    assert count_side_by_side(make_options(workers=4), 5) == 2
    share = share_hardware(4, make_options(workers=4), side_by_side=2)
    assert (share.use_gpu, share.threads, share.cpus) == (True, 4, pytest.approx(15.5 / 4, abs=1e-3))
