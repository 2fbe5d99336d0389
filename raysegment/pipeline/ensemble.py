"""The folds' networks as one bundle, whose probabilities are the mean of theirs.

Its threshold is the mean of the folds' thresholds, its smallest component their median: to choose them for the mean of
all members would need patients that no member was trained on, and each patient has only one such member.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from raysegment.imaging.threshold import describe_thresholds
from raysegment.model.bundle import Bundle, BundleDescription
from raysegment.model.ensemble import save_ensemble
from raysegment.options import Postprocessing
from raysegment.pipeline.doubt import join_doubt
from raysegment.pipeline.predicted_dice import fit_predicted_dice
from raysegment.pipeline.training_features import describe_held_out


def join_bundles(
    folder: Path,
    bundles: Sequence[Bundle],
    patients: Iterable[str],
    metrics: pa.Table,
    scans: pa.Table,
    facts: Mapping[str, Mapping[str, Any]],
) -> Bundle:
    """Write the bundle of several folds.

    Args:
        folder: Where to.
        bundles: Of the folds; its members, in this order.
        patients: All who took part. Each was held out by one fold, and trained or at least validated on by the others,
            so the ensemble has seen them all.
        metrics: Of each scan segmented by the fold that held it out; from these the Dice is predicted.
        scans: Rows of the same scans.
        facts: `data`, `split`, `scores`, `provenance` of the description.

    Returns:
        The bundle as it reads back.
    """
    first = bundles[0]
    doubts = [bundle.doubt for bundle in bundles if bundle.doubt is not None]
    description = BundleDescription(
        preprocessing=first.preprocessing,
        postprocessing=join_postprocessing([bundle.postprocessing for bundle in bundles]),
        threshold=describe_thresholds(join_thresholds([bundle.threshold for bundle in bundles]), first.labels),
        labels=first.labels,
        num_channels=first.num_channels,
        data={**first.data, **facts["data"]},
        training_patients=patients,
        split=facts["split"],
        scores=facts["scores"],
        doubt=join_doubt(doubts, fit_predicted_dice(metrics)) if len(doubts) == len(bundles) else None,
        training_features=describe_held_out(scans),
        provenance={**facts["provenance"], "members": [bundle.model_id for bundle in bundles]},
    )
    return save_ensemble(folder, bundles, description)


def join_thresholds(thresholds: Sequence[tuple[float, ...]]) -> tuple[float, ...]:
    """The mean threshold of each label."""
    return tuple(round(statistics.fmean(of_label), 3) for of_label in zip(*thresholds, strict=True))


def join_postprocessing(found: Sequence[Postprocessing]) -> Postprocessing:
    """The first one's, with the median of the smallest components; the threshold is said apart from it."""
    sizes = [item.min_component_voxels or 0 for item in found]
    return replace(found[0], threshold=None, min_component_voxels=round(statistics.median(sizes)))
