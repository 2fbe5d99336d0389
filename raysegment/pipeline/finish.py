"""From the best weights to a bundle: the threshold is chosen on the validation scans, through the inference path."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from raysegment.choices import changed_result, pick
from raysegment.imaging.threshold import describe_thresholds
from raysegment.options import Postprocessing, Preprocessing, TrainOptions
from raysegment.pipeline.learn import Progress, load_best
from raysegment.pipeline.samples import KeptScan, iterate_batches
from raysegment.pipeline.score import ThresholdScores, choose_thresholds, mean_of, score_thresholds
from raysegment.pipeline.views.tiles import predict_slices
from raysegment.scan import Labels

if TYPE_CHECKING:
    from raysegment.model.bundle import BundleDescription

SLICES_AT_ONCE = 16
"""Slices of a validation scan that are held as the network sees them."""

NETWORK_CHOICES = ("network", "filters", "depth", "dropout", "norm", "norm_momentum")


def write_bundle(
    folder: Path,
    options: TrainOptions,
    labels: Labels,
    progress: Progress,
    validation: Sequence[KeptScan],
    facts: dict[str, Any],
) -> dict[str, Any]:
    """Write `model/` of a finished run.

    Args:
        folder: The run.
        options: Its choices, precision resolved.
        labels: What is segmented.
        progress: Where training ended.
        validation: All validation scans.
        facts: `num_channels` (of a scan), `training_patients`, `data`, `split`, `provenance`.

    Returns:
        `threshold` (by label where each has one of its own), `val_dice` and `val_precision` (over all voxels and
        labels) at it, `val_dice_at_half`; with several labels `val_dice_of_labels`.
    """
    from raysegment.model.bundle import save_bundle
    from raysegment.model.engines.tensorflow import Predictor
    from raysegment.model.fit import build_plain

    num_inputs = count_inputs(options, facts["num_channels"])
    model = build_plain(options, num_inputs, load_best(folder / "checkpoints", progress.best_epoch), labels)
    predictor = Predictor(model, precision=options.precision, batch_size=min(SLICES_AT_ONCE, options.batch_size))
    found = score_thresholds(
        validation, (predict_batches(predictor.predict, kept, options.context_slices) for kept in validation), labels
    )
    thresholds = choose_thresholds(found.dice, labels)
    scores = describe_scores(found, thresholds, labels)
    save_bundle(folder / "model", model, describe_bundle(options, labels, progress, scores, facts))
    return scores


def describe_bundle(
    options: TrainOptions, labels: Labels, progress: Progress, scores: Mapping[str, Any], facts: Mapping[str, Any]
) -> BundleDescription:
    """What the bundle says of its model, from what `write_bundle` is given and what it found."""
    from raysegment.model.bundle import BundleDescription

    best = progress.history[progress.best_epoch - 1]
    return BundleDescription(
        preprocessing=pick(Preprocessing, options),
        postprocessing=Postprocessing(),
        threshold=scores["threshold"],
        labels=labels,
        num_channels=facts["num_channels"],
        network={name: getattr(options, name) for name in NETWORK_CHOICES},
        training_patients=facts["training_patients"],
        data=facts["data"],
        split=facts["split"],
        scores={**without_nan(scores), "best_epoch": progress.best_epoch, "val_loss": best["val_loss"]},
        provenance={
            **facts["provenance"],
            "precision": options.precision,
            "epochs": progress.epoch,
            "options": changed_result(options),
        },
    )


def describe_scores(found: ThresholdScores, thresholds: tuple[float, ...], labels: Labels) -> dict[str, Any]:
    """What the bundle is worth on the validation scans, as run.json and model.json have it."""
    dice = found.dice_at(thresholds)
    return {
        "threshold": describe_thresholds(thresholds, labels),
        "val_dice": mean_of(np.array(dice)),
        "val_dice_at_half": mean_of(np.array(found.dice_at([0.5] * len(labels)))),
        "val_precision": found.precision_at(thresholds),
        **({"val_dice_of_labels": dict(zip(labels.names, dice, strict=True))} if len(labels) > 1 else {}),
    }


def without_nan(scores: Mapping[str, Any]) -> dict[str, Any]:
    """Scores as JSON has them, without a value where there is none."""
    return {
        name: without_nan(score)
        if isinstance(score, Mapping)
        else (None if isinstance(score, float) and math.isnan(score) else score)
        for name, score in scores.items()
    }


def predict_batches(
    predict: Callable[[npt.NDArray[np.float32]], npt.NDArray[np.float32]], kept: KeptScan, context_slices: int
) -> Iterator[tuple[slice, npt.NDArray[np.float32]]]:
    """A scan's probabilities on the network's grid, (slices, rows, columns, labels), some slices at a time."""
    for chosen, pixels in iterate_batches(kept, context_slices, SLICES_AT_ONCE):
        yield chosen, predict_slices(predict, pixels, kept.geometry)


def count_inputs(options: TrainOptions, num_channels: int) -> int:
    """Channels that the network sees: the chosen ones, once for each neighbouring slice and the slice itself."""
    chosen = num_channels if options.channels is None else len(options.channels)
    return chosen * (2 * options.context_slices + 1)
