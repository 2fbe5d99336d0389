"""From the best weights to a bundle: the threshold is chosen on the validation scans, through the inference path."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from raysegment.choices import changed_result, pick
from raysegment.imaging.geometry import restore_grid
from raysegment.imaging.preprocess import normalize, stack_context
from raysegment.options import Postprocessing, Preprocessing, TrainOptions
from raysegment.pipeline.learn import Progress, load_best
from raysegment.pipeline.samples import KeptScan
from raysegment.scan import Labels

THRESHOLDS = np.arange(1, 20) / 20
"""Candidates for the bundle's threshold."""

PLATEAU = 0.001
"""Thresholds whose Dice is this close to the best count as equal; the one nearest to 0.5 is taken."""

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
        `threshold`, `val_dice` at it and `val_dice_at_half`.
    """
    from raysegment.model.bundle import BundleDescription, save_bundle
    from raysegment.model.fit import build_plain
    from raysegment.model.predictor import Predictor

    num_inputs = count_inputs(options, facts["num_channels"])
    model = build_plain(options, num_inputs, load_best(folder / "checkpoints", progress.best_epoch))
    predictor = Predictor(model, precision=options.precision, batch_size=min(16, options.batch_size))
    probabilities = (
        predictor.predict(normalize(stack_context(kept.pixels, options.context_slices), kept.intensity))
        for kept in validation
    )
    dice = score_thresholds(validation, probabilities)
    threshold, at_half = choose_threshold(dice), float(dice[list(THRESHOLDS).index(0.5)])
    best = progress.history[progress.best_epoch - 1]
    scores = {
        "threshold": threshold,
        "val_dice": float(dice[list(THRESHOLDS).index(threshold)]),
        "val_dice_at_half": at_half,
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
            provenance={**facts["provenance"], "precision": options.precision, "options": changed_result(options)},
        ),
    )
    return scores


def count_inputs(options: TrainOptions, num_channels: int) -> int:
    """Channels that the network sees: the chosen ones, once for each neighbouring slice and the slice itself."""
    chosen = num_channels if options.channels is None else len(options.channels)
    return chosen * (2 * options.context_slices + 1)


def score_thresholds(
    validation: Sequence[KeptScan], probabilities: Iterable[npt.NDArray[np.float32]]
) -> npt.NDArray[np.float64]:
    """Mean per-scan Dice at each of `THRESHOLDS`, scans with empty reference left out; NaN if none is left.

    Args:
        validation: Scans with their references on their own grids.
        probabilities: Of each scan, on the network's grid.
    """
    rows = []
    for kept, probability in zip(validation, probabilities, strict=True):
        reference = kept.grid_reference if kept.grid_reference is not None else kept.reference != 0
        if not reference.any():
            continue
        restored = restore_grid(probability, kept.geometry)
        rows.append([_dice(restored >= np.float32(threshold), reference) for threshold in THRESHOLDS])
    return np.mean(rows, axis=0) if rows else np.full(len(THRESHOLDS), np.nan)


def choose_threshold(dice: npt.NDArray[np.float64]) -> float:
    """The best threshold; among equals the one nearest to 0.5; 0.5 where nothing could be measured."""
    if np.isnan(dice).all():
        return 0.5
    good = THRESHOLDS[dice >= np.nanmax(dice) - PLATEAU]
    return float(good[np.argmin(np.abs(good - 0.5))])


def _dice(mask: npt.NDArray[np.bool_], reference: npt.NDArray[np.bool_]) -> float:
    return 2 * int(np.count_nonzero(mask & reference)) / int(np.count_nonzero(mask) + np.count_nonzero(reference))
