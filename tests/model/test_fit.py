"""One worker's fitting: the same optimisation step for any number of workers, checkpoints, precision."""

import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from raysegment.model.fit import FitTask, Fitter, build_plain
from raysegment.model.optimizer import make_rate
from raysegment.options import TrainOptions
from raysegment.scan import Labels

RANK_SCRIPT = Path(__file__).with_name("fit_rank.py")


def free_addresses(count: int) -> str:
    sockets = [socket.socket() for _ in range(count)]
    for item in sockets:
        item.bind(("127.0.0.1", 0))
    addresses = ",".join(f"127.0.0.1:{item.getsockname()[1]}" for item in sockets)
    for item in sockets:
        item.close()
    return addresses


def fit_ranks(num_workers: int, policy: str, folder: Path) -> list[dict[str, np.ndarray]]:
    addresses = free_addresses(num_workers)
    files = [folder / f"{policy}_{num_workers}_{rank}.npz" for rank in range(num_workers)]
    processes = [
        subprocess.Popen(
            [sys.executable, str(RANK_SCRIPT), str(rank), str(num_workers), addresses, policy, str(file)],
            stderr=subprocess.PIPE,
        )
        for rank, file in enumerate(files)
    ]
    for process in processes:
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors.decode()
    return [dict(np.load(file)) for file in files]


@pytest.fixture(scope="module", params=["float32", "float64"])
def ranks(request, tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[dict[str, np.ndarray]]]:
    folder = tmp_path_factory.mktemp("ranks")
    return {num_workers: fit_ranks(num_workers, request.param, folder) for num_workers in (1, 2)}


def test_two_workers_take_the_steps_of_one(ranks) -> None:
    one, two = ranks[1][0], ranks[2][0]
    names = [name for name in one if name.startswith(("weight_", "average_"))]
    assert len(names) > 40
    tolerance = 1e-4 if one["weight_000"].dtype == np.float32 else 1e-7
    for name in names:
        difference = np.linalg.norm(two[name] - one[name]) / np.linalg.norm(one[name])
        assert difference <= tolerance, f"{name} of shape {one[name].shape}"
    assert two["loss"] == pytest.approx(float(one["loss"]), rel=1e-5)


def test_both_ranks_hold_the_same_weights_and_moving_statistics(ranks) -> None:
    first, second = ranks[2]
    for name in first:
        assert np.array_equal(first[name], second[name]), name


def test_slices_and_sums_are_counted_over_all_ranks(ranks) -> None:
    assert [int(rank["num_slices"]) for rank in [*ranks[1], *ranks[2]]] == [24, 24, 24]
    assert ranks[2][0]["totals"].tolist() == [2.0, 1.0]


def make_fitter(**choices: object) -> Fitter:
    options = TrainOptions(
        source="scans",
        out="run",
        **{"image_size": 16, "filters": 2, "depth": 1, "batch_size": 4, "precision": "float32", **choices},
    )
    return Fitter(FitTask(options=options, num_channels=1, steps_per_epoch=4))


def batches(seed: int = 0):
    random = np.random.default_rng(seed)
    while True:
        pixels = random.normal(size=(4, 16, 16, 1)).astype(np.float32)
        yield pixels, (pixels[..., 0] > 0.5).astype(np.uint8)


def weights_of(fitter: Fitter) -> list[np.ndarray]:
    return [np.array(value) for value in fitter.model.get_weights()]


def test_training_from_a_checkpoint_ends_where_training_without_a_break_does(tmp_path: Path) -> None:
    steps = batches()
    whole = make_fitter(ema=0.9)
    whole.train_epoch(steps)
    whole.save(tmp_path, {"epoch": 1})
    whole.train_epoch(steps)
    again = make_fitter(ema=0.9)
    assert again.restore(tmp_path) == {"epoch": 1}
    steps = batches()
    for _ in range(4):
        next(steps)
    again.train_epoch(steps)
    for first, second in zip(weights_of(whole), weights_of(again), strict=True):
        assert np.allclose(first, second, atol=1e-6)
    assert again.learning_rate == pytest.approx(whole.learning_rate)


def test_a_checkpoint_that_cannot_all_be_read_changes_nothing(tmp_path: Path) -> None:
    make_fitter().save(tmp_path, {"epoch": 1})
    with np.load(tmp_path / "arrays.npz") as arrays:
        first = {name: value for name, value in arrays.items() if name.startswith("model_")}
    np.savez(tmp_path / "arrays.npz", **first)
    fitter = make_fitter(seed=1)
    before = weights_of(fitter)
    with pytest.raises(KeyError):
        fitter.restore(tmp_path)
    for one, other in zip(before, weights_of(fitter), strict=True):
        assert np.array_equal(one, other)


def test_several_steps_in_one_execution_are_the_same_steps() -> None:
    single, triple = make_fitter(), make_fitter(steps_per_execution=3)
    first, second = single.train_epoch(batches()), triple.train_epoch(batches())
    assert first.loss == pytest.approx(second.loss, rel=1e-5)
    for one, other in zip(weights_of(single), weights_of(triple), strict=True):
        assert np.allclose(one, other, atol=1e-6)


def test_averaged_weights_are_used_inside_the_block_only() -> None:
    fitter = make_fitter(ema=0.99)
    fitter.train_epoch(batches())
    before = weights_of(fitter)
    with fitter.averaged_weights():
        inside = weights_of(fitter)
    assert any(not np.array_equal(one, other) for one, other in zip(before, inside, strict=True))
    for one, other in zip(before, weights_of(fitter), strict=True):
        assert np.array_equal(one, other)


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_half_precision_learns_and_leaves_a_float32_model(precision: str) -> None:
    fitter = make_fitter(precision=precision, learning_rate=0.01, warmup_epochs=0.0, epochs=50)
    losses = [fitter.train_epoch(batches()).loss for _ in range(12)]
    assert losses[-1] < losses[0]
    model = build_plain(fitter.task.options, fitter.task.num_channels, fitter.model.get_weights(), Labels())
    assert {layer.dtype_policy.name for layer in model.layers} == {"float32"}


def test_the_learning_rate_rises_and_falls() -> None:
    options = TrainOptions(source="a", out="b", learning_rate=0.1, warmup_epochs=1.0, epochs=5)
    rate = make_rate(options, steps_per_epoch=10)
    rates = [float(rate(step)) for step in range(51)]
    assert max(rates) == pytest.approx(0.1)
    assert rates.index(max(rates)) == 10
    assert rates[0] == pytest.approx(0.002)
    assert rates[30] == pytest.approx(0.0505)
    assert rates[50] == pytest.approx(0.001)


def test_the_end_of_the_learning_rate_can_be_moved_between_epochs() -> None:
    fitter = make_fitter(learning_rate=0.1, warmup_epochs=0.0, epochs=100)
    fitter.train_epoch(batches())
    assert fitter.learning_rate == pytest.approx(0.1, rel=0.01)
    fitter.anneal_over(2)
    assert fitter.learning_rate == pytest.approx(0.0505)
    fitter.train_epoch(batches())
    assert fitter.learning_rate == pytest.approx(0.001)


def test_sgd_takes_momentum_and_a_clipped_step_is_no_longer_than_allowed() -> None:
    plain = {"optimizer": "sgd", "schedule": "constant", "norm": "none", "steps_per_execution": 4}
    lengths = {}
    for clip_norm in (None, 0.01):
        fitter = make_fitter(**plain, momentum=0.0, learning_rate=1.0, clip_norm=clip_norm)
        before = weights_of(fitter)
        fitter.task = replace(fitter.task, steps_per_epoch=1)
        fitter.train_epoch(batches())
        steps = [after - value for after, value in zip(weights_of(fitter), before, strict=True)]
        lengths[clip_norm] = float(np.sqrt(sum((step**2).sum() for step in steps)))
    assert lengths[None] > 0.05
    assert lengths[0.01] == pytest.approx(0.01, rel=1e-3)
    assert make_fitter(**plain).optimizer.momentum == 0.9


def test_dice_of_an_epoch_is_pooled_over_its_pixels() -> None:
    fitter = make_fitter(learning_rate=0.0, optimizer="sgd", schedule="constant", norm="none")
    given = [next(steps) for steps in [batches()] for _ in range(4)]
    statistics = fitter.train_epoch(iter(given))
    pixels, reference = (np.concatenate(arrays) for arrays in zip(*given, strict=True))
    mask, reference = fitter.predict(pixels)[..., 0] >= 0.5, reference > 0
    total = mask.sum() + reference.sum()
    assert statistics.dice == pytest.approx(2 * (mask & reference).sum() / total)
    assert statistics.num_slices == 16
