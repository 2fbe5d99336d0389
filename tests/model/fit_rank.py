"""One rank of a small training, in a process of its own: `fit_rank.py RANK NUM_WORKERS ADDRESSES POLICY OUT`."""

import json
import os
import sys

import numpy as np

from raysegment.imaging.geometry import resize_reference
from raysegment.imaging.phantom import make_phantom
from raysegment.imaging.preprocess import normalize, prepare_scan
from raysegment.options import Preprocessing, TrainOptions

GLOBAL_BATCH, STEPS, SIDE = 8, 3, 32


def main() -> None:
    rank, num_workers, addresses, policy, out = int(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:6]
    if num_workers > 1:
        task = {"type": "worker", "index": rank}
        os.environ["TF_CONFIG"] = json.dumps({"cluster": {"worker": addresses.split(",")}, "task": task})
    from raysegment.model import fit

    fit.POLICIES["float32"] = policy
    options = TrainOptions(
        source="scans",
        out="run",
        image_size=SIDE,
        filters=4,
        depth=2,
        batch_size=GLOBAL_BATCH,
        optimizer="sgd",
        momentum=0.8,
        clip_norm=0.05,
        learning_rate=0.01,
        schedule="constant",
        precision="float32",
        ema=0.9,
    )
    task = fit.FitTask(
        options=options, num_channels=3, steps_per_epoch=STEPS, rank=rank, num_workers=num_workers, threads=1
    )
    fitter = fit.Fitter(task)
    start_anywhere(fitter.model)
    statistics = fitter.train_epoch(make_batches(rank, num_workers))
    with fitter.averaged_weights():
        averaged = fitter.model.get_weights()
    arrays = {f"weight_{i:03d}": value for i, value in enumerate(fitter.model.get_weights())}
    arrays |= {f"average_{i:03d}": value for i, value in enumerate(averaged)}
    totals = fitter.sum_over_ranks(np.array([1.0, rank]))
    np.savez(out, loss=statistics.loss, num_slices=statistics.num_slices, totals=totals, **arrays)


def start_anywhere(model) -> None:
    """Give all weights a size. Shifts that start at 0 would after three steps be hardly more than rounding errors."""
    random = np.random.default_rng(1)
    for variable in model.trainable_variables:
        if len(variable.shape) == 1:
            variable.assign(variable.numpy() + random.normal(0, 0.1, variable.shape))


def make_batches(rank: int, num_workers: int):
    """This rank's share of the same global batches of phantom slices."""
    pixels, reference = make_phantom(0)
    prepared = prepare_scan(pixels, Preprocessing(image_size=SIDE))
    normalized = normalize(prepared.pixels, prepared.intensity)
    resized = resize_reference(reference, prepared.geometry).astype(np.uint8)
    share = GLOBAL_BATCH // num_workers
    for step in range(STEPS):
        mine = (np.arange(rank * share, (rank + 1) * share) + step * GLOBAL_BATCH) % len(normalized)
        yield normalized[mine], resized[mine]


if __name__ == "__main__":
    main()
