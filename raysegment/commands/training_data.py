"""What a training is asked to learn from: scans with references, their labels and their splits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import pyarrow as pa

from raysegment.archive.channels import most_common_names, order_channels
from raysegment.archive.index import find_scans, warn_of_open_key
from raysegment.archive.labels import find_labels
from raysegment.archive.split import Drawing, SplitResult, assign_splits
from raysegment.model.init_from import Origin
from raysegment.options import Finding, TrainOptions
from raysegment.pipeline.sides import check_mirror
from raysegment.pipeline.training_set import (
    check_channels,
    check_flip,
    check_label,
    check_splits,
    describe_split,
    hash_data,
    keep_labels,
    most_common_channels,
    select_referenced,
    warn_of_base_patients,
    warn_of_few_patients,
    warn_of_lone_sides,
)
from raysegment.runs.console import Console
from raysegment.scan import Labels


@dataclass(frozen=True, kw_only=True)
class TrainingData:
    """What a training is asked to learn from.

    Attributes:
        found: All scans of the source, references or not.
        split: The scans that have a reference and a split.
        labels: What is segmented.
        data_id: SHA-256 of scans, splits and labels.
        origin: Where the weights start.
    """

    found: pa.Table
    split: SplitResult
    labels: Labels
    data_id: str
    origin: Origin

    @property
    def facts(self) -> dict[str, str | None]:
        """What makes a run another one, beside its options: other scans, other first weights."""
        return {"data_id": self.data_id, **self.origin.facts}

    @property
    def manifest(self) -> pa.Table:
        """The scans that have a reference and a split."""
        return self.split.table

    def tell(self, options: TrainOptions, console: Console) -> None:
        """Say what was found, and warn of what is odd about it."""
        console.say(describe_split(self.split, self.found), left_out=list(self.split.left_out))
        for warning in warn_of_open_key(self.found):
            console.say(warning)
        few = [] if options.folds is not None else warn_of_few_patients(self.split)
        warnings = few + warn_of_lone_sides(options, self.labels)
        for warning in warnings + warn_of_base_patients(self.manifest, self.origin.has_seen):
            console.say(warning)


def find_training_data(options: TrainOptions, record: Mapping[str, Any], origin: Origin) -> TrainingData:
    """Index the source, split by patient, and refuse what nothing can be learned from.

    Args:
        options: The run's choices.
        record: What run.json of its folder holds.
        origin: Where the weights start.

    Raises:
        UsageError: Nothing to train on, or choices that do not fit it.
    """
    known = {item.name for item in fields(options)}
    how = Finding(**{item.name: getattr(options, item.name) for item in fields(Finding) if item.name in known})
    found = find_scans(options.source, how)
    labels = find_labels(options.source, options.labels, options.label, found)
    found = order_channels(found, most_common_names(found))
    split = assign_splits(
        select_referenced(found, options.source),
        split_file=options.split_file,
        drawing=Drawing(options.train_fraction, options.val_fraction, options.seed),
    )
    labels = keep_labels(labels, options, split.table, record)
    if options.folds is None:
        check_splits(split)
    check_choices(options, labels, split.table)
    data_id = hash_data(split.table, labels)
    return TrainingData(found=found, split=split, labels=labels, data_id=data_id, origin=origin)


def check_choices(options: TrainOptions, labels: Labels, manifest: pa.Table) -> None:
    """Refuse choices that do not fit the scans, or what is segmented.

    Raises:
        UsageError: Names the choice.
    """
    check_label(options, labels)
    check_flip(options, labels)
    check_channels(options, most_common_channels(manifest))
    check_mirror(labels, options.mirror, options.slice_axis, manifest["reader"].unique().to_pylist())
