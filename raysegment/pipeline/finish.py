"""From the best weights to a bundle: the threshold is chosen on the validation scans, through the inference path."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from raysegment.choices import changed_result, pick
from raysegment.options import Postprocessing, Preprocessing, TrainOptions
from raysegment.pipeline.learn import Progress, load_best
from raysegment.pipeline.samples import KeptScan, iterate_batches
from raysegment.pipeline.score import choose_threshold, score_thresholds
from raysegment.scan import Labels

SLICES_AT_ONCE = 16
"""Slices of a validation scan that are held as the network sees them."""

NETWORK_CHOICES = ("network", "filters", "depth", "dropout", "norm", "norm_momentum")


def write_bundle(
    folder: Path,
    options: TrainOptions,
    progress: Progress,
    validation: Sequence[KeptScan],
    facts: dict[str, Any],
) -> dict[str, float]:
    """Write `model/` of a finished run.

    Args:
        folder: The run.
        options: Its choices, precision resolved.
        progress: Where training ended.
        validation: All validation scans.
        facts: `num_channels` (of a scan), `training_patients`, `data`, `split`, `provenance`.

    Returns:
        `threshold`, `val_dice` and `val_precision` (over all voxels) at it, and `val_dice_at_half`.
    """
    from raysegment.model.bundle import BundleDescription, save_bundle
    from raysegment.model.engines.tensorflow import Predictor
    from raysegment.model.fit import build_plain

    num_inputs = count_inputs(options, facts["num_channels"])
    model = build_plain(options, num_inputs, load_best(folder / "checkpoints", progress.best_epoch))
    predictor = Predictor(model, precision=options.precision, batch_size=min(SLICES_AT_ONCE, options.batch_size))
    found = score_thresholds(
        validation, (predict_batches(predictor.predict, kept, options.context_slices) for kept in validation)
    )
    threshold = choose_threshold(found.dice)
    val_dice, val_precision = found.at(threshold)
    best = progress.history[progress.best_epoch - 1]
    scores = {
        "threshold": threshold,
        "val_dice": val_dice,
        "val_dice_at_half": found.at(0.5)[0],
        "val_precision": val_precision,
    }
    save_bundle(
        folder / "model",
        model,
        BundleDescription(
            preprocessing=pick(Preprocessing, options),
            postprocessing=Postprocessing(threshold=threshold),
            labels=Labels((options.label,)),
            num_channels=facts["num_channels"],
            network={name: getattr(options, name) for name in NETWORK_CHOICES},
            training_patients=facts["training_patients"],
            data=facts["data"],
            split=facts["split"],
            scores={
                **{name: None if math.isnan(score) else score for name, score in scores.items()},
                "best_epoch": progress.best_epoch,
                "val_loss": best["val_loss"],
            },
            provenance={
                **facts["provenance"],
                "precision": options.precision,
                "epochs": progress.epoch,
                "options": changed_result(options),
            },
        ),
    )
    return scores


def predict_batches(
    predict: Callable[[npt.NDArray[np.float32]], npt.NDArray[np.float32]], kept: KeptScan, context_slices: int
) -> Iterator[tuple[slice, npt.NDArray[np.float32]]]:
    """A scan's probabilities on the network's grid, some slices at a time: which ones, and (slices, rows, columns)."""
    for chosen, pixels in iterate_batches(kept, context_slices, SLICES_AT_ONCE):
        yield chosen, predict(pixels)[..., 0]


def count_inputs(options: TrainOptions, num_channels: int) -> int:
    """Channels that the network sees: the chosen ones, once for each neighbouring slice and the slice itself."""
    chosen = num_channels if options.channels is None else len(options.channels)
    return chosen * (2 * options.context_slices + 1)
