"""From the best weights to a bundle: threshold and cleaning are chosen on the validation scans, as inference works."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from raysegment.choices import changed_result, pick
from raysegment.imaging.threshold import describe_thresholds
from raysegment.options import ENCODER_DEPTH, Postprocessing, Preprocessing, TrainOptions
from raysegment.pipeline.doubt import describe_doubt, take_limits
from raysegment.pipeline.learn import Progress, load_best
from raysegment.pipeline.passes import PredictEach, Values, run_passes, smooth_over_slices
from raysegment.pipeline.samples import KeptScan, iterate_batches
from raysegment.pipeline.score import mean_of
from raysegment.pipeline.segment import allocate_probability
from raysegment.pipeline.sides import find_swaps
from raysegment.pipeline.thresholds import (
    COMPONENT_SIZES,
    ComponentScores,
    ThresholdScores,
    choose_component_size,
    choose_thresholds,
    score_components,
    score_thresholds,
)
from raysegment.pipeline.training_features import TrainingTraits, describe_training_features
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
        facts: `num_channels` (of a scan), `training_patients`, `data`, `split`, `provenance`; `reference_sizes` of the
            scans trained on and `traits` of all scans, where these are known; of a base model `origin` and
            `inherited_patients`.

    Returns:
        `threshold` (by label where each has one of its own), `min_component_voxels`, `val_dice` and `val_precision`
        (over all voxels and labels) with them, `val_dice_at_half` (with nothing removed); with several labels
        `val_dice_of_labels`.
    """
    from raysegment.model.bundle import save_bundle
    from raysegment.model.engines.tensorflow import Predictor
    from raysegment.model.fit import build_plain

    num_inputs = count_inputs(options, facts["num_channels"])
    model = build_plain(options, num_inputs, load_best(folder / "checkpoints", progress.best_epoch), labels)
    predictor = Predictor(model, precision=options.precision, batch_size=min(SLICES_AT_ONCE, options.batch_size))
    scores = choose_postprocessing(predictor.predict_each, options, labels, validation)
    features = describe_training_features(
        lambda kept: predict_validation(predictor.predict_each, kept, options, labels),
        labels,
        scores,
        validation,
        facts.get("traits", TrainingTraits()),
    )
    description = describe_bundle(options, labels, progress, scores, facts)
    doubt = describe_doubt(labels, facts.get("reference_sizes", ()))
    description = replace(description, doubt=take_limits(doubt, labels, features), training_features=features)
    save_bundle(folder / "model", model, description)
    return scores


def choose_postprocessing(
    predict_each: PredictEach, options: TrainOptions, labels: Labels, validation: Sequence[KeptScan]
) -> dict[str, Any]:
    """The threshold and the least size of components that suit the validation scans, and what the masks are then worth.

    The network runs once over each scan, mirrored and smoothed as the options say. The threshold is chosen first, with
    nothing removed; the size then at that threshold: the smallest of `COMPONENT_SIZES` whose mean Dice is within 0.001
    of the best one's, so 0 unless removing gains more. Where the options name a size, it is that.

    Args:
        predict_each: The network, or the members of an ensemble.
        options: The run's choices.
        labels: What is segmented.
        validation: Scans with their references on their own grids.

    Returns:
        As `write_bundle`.
    """
    found = score_thresholds(
        validation, (predict_validation(predict_each, kept, options, labels) for kept in validation), labels
    )
    thresholds = choose_thresholds(found.dice, labels)
    given = options.min_component_voxels
    sizes = COMPONENT_SIZES if given is None else (given,)
    components = score_components(found, validation, thresholds, labels, sizes)
    return describe_scores(found, components, thresholds, choose_component_size(components), labels)


def describe_bundle(
    options: TrainOptions, labels: Labels, progress: Progress, scores: Mapping[str, Any], facts: Mapping[str, Any]
) -> BundleDescription:
    """What the bundle says of its model, from what `write_bundle` is given and what it found."""
    from raysegment.model.bundle import BundleDescription

    best = progress.history[progress.best_epoch - 1]
    return BundleDescription(
        preprocessing=pick(Preprocessing, options),
        postprocessing=Postprocessing(
            min_component_voxels=scores["min_component_voxels"],
            mirror=options.mirror,
            smooth_slices=options.smooth_slices,
        ),
        threshold=scores["threshold"],
        labels=labels,
        num_channels=facts["num_channels"],
        network={name: getattr(options, name) for name in NETWORK_CHOICES} | describe_encoder(options),
        training_patients=facts["training_patients"],
        inherited_patients=facts.get("inherited_patients", ()),
        data=facts["data"],
        split=facts["split"],
        scores={**without_nan(scores), "best_epoch": progress.best_epoch, "val_loss": best["val_loss"]},
        provenance={
            **facts["provenance"],
            **facts.get("origin", {}),
            "precision": options.precision,
            "epochs": progress.epoch,
            "options": changed_result(options),
        },
    )


def describe_encoder(options: TrainOptions) -> dict[str, Any]:
    """What a bundle says of the network's encoder, where it has one."""
    return {} if options.encoder == "none" else {"encoder": options.encoder, "depth": ENCODER_DEPTH}


def describe_scores(
    found: ThresholdScores,
    components: ComponentScores,
    thresholds: tuple[float, ...],
    min_component_voxels: int,
    labels: Labels,
) -> dict[str, Any]:
    """What the bundle is worth on the validation scans, as run.json and model.json have it."""
    dice = components.dice_at(min_component_voxels)
    return {
        "threshold": describe_thresholds(thresholds, labels),
        "min_component_voxels": min_component_voxels,
        "val_dice": mean_of(np.array(dice)),
        "val_dice_at_half": mean_of(np.array(found.dice_at([0.5] * len(labels)))),
        "val_precision": components.precision_at(min_component_voxels),
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


def predict_validation(
    predict_each: PredictEach, kept: KeptScan, options: TrainOptions, labels: Labels
) -> Iterator[tuple[slice, Values]]:
    """A validation scan's probabilities as inference averages them, some slices at a time.

    Args:
        predict_each: The network, or the members of an ensemble.
        kept: The scan.
        options: The run's choices.
        labels: What is segmented.

    Returns:
        Which slices, in order, and (slices, rows, columns, labels) on the network's grid.
    """
    swaps = find_swaps(labels, options.mirror, options.slice_axis)
    halves = (0.5,) * len(labels)

    def predict(batch: Values) -> Values:
        return run_passes(predict_each, batch, options.mirror, swaps, halves, labels).probability

    batches = predict_batches(predict, kept, options.context_slices)
    return smooth_batches(batches, kept, labels) if options.smooth_slices else batches


def predict_batches(
    predict: Callable[[Values], Values], kept: KeptScan, context_slices: int
) -> Iterator[tuple[slice, Values]]:
    """A scan's probabilities on the network's grid, (slices, rows, columns, labels), some slices at a time."""
    for chosen, pixels in iterate_batches(kept, context_slices, SLICES_AT_ONCE):
        yield chosen, predict_slices(predict, pixels, kept.geometry)


def smooth_batches(
    batches: Iterator[tuple[slice, Values]], kept: KeptScan, labels: Labels
) -> Iterator[tuple[slice, Values]]:
    """The same smoothed over slices; as in inference the scan's probabilities are held at once for that."""
    probability = allocate_probability(len(labels), kept.pixels.shape[:3])
    chosen = []
    for some, found in batches:
        probability[:, some] = np.moveaxis(found, -1, 0)
        chosen.append(some)
    smooth_over_slices(probability)
    for some in chosen:
        yield some, np.moveaxis(probability[:, some], 0, -1).astype(np.float32, copy=False)


def count_inputs(options: TrainOptions, num_channels: int) -> int:
    """Channels that the network sees: the chosen ones, once for each neighbouring slice and the slice itself."""
    chosen = num_channels if options.channels is None else len(options.channels)
    return chosen * (2 * options.context_slices + 1)
