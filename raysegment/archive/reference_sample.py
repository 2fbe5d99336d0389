"""What the references of an archive hold, from a look at a few of them.

References are decoded in the decoder's child with limits of their own, so that `index` stays quick and whole whatever
the files hold.
"""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raysegment.archive.decoder import Decoder
from raysegment.archive.manifest import entries
from raysegment.archive.reference import describe_values, find_threshold, find_unnamed
from raysegment.errors import ReferenceValuesError, ScanError
from raysegment.scan import Labels, ReadSettings, ScanEntry

MAX_SCANS = 20
MAX_SECONDS = 20.0
SECONDS_PER_SCAN = 10.0
MEMORY_MB = 1024


@dataclass(frozen=True)
class ReferenceSample:
    """What a look at some references found.

    Attributes:
        references_read: Scans whose references were looked at.
        references_refused: Those of them whose values do not tell what is region, or that cannot be read.
        reference_values: Scans by the values that their reference holds, or by the error; the most frequent first.
        unnamed_values: Values that no declared label names; none where no labels are declared.
    """

    references_read: int
    references_refused: int
    reference_values: dict[str, int]
    unnamed_values: list[float]


def sample_references(manifest: pa.Table, labels: Labels) -> ReferenceSample:
    """Decode the references of at most 20 scans, spread over the manifest, for at most 20 seconds.

    Args:
        manifest: Scans, with and without references.
        labels: What values mean, if that is declared.
    """
    rows = np.flatnonzero(pc.greater(pc.list_value_length(manifest["reference_files"]), 0).to_numpy())
    if len(rows) > MAX_SCANS:
        rows = rows[np.linspace(0, len(rows) - 1, MAX_SCANS).astype(np.int64)]
    found: Counter[str] = Counter()
    num_refused = 0
    unnamed: set[float] = set()
    deadline = time.monotonic() + MAX_SECONDS
    with Decoder(MEMORY_MB, SECONDS_PER_SCAN, ReadSettings(labels=labels)) as decoder:
        for entry in entries(manifest.take(rows)):
            if time.monotonic() > deadline:
                break
            described, is_usable, strange = _look_at(decoder, entry, labels)
            found[described] += 1
            num_refused += not is_usable
            unnamed.update(strange)
    return ReferenceSample(found.total(), num_refused, dict(found.most_common()), sorted(unnamed))


def _look_at(decoder: Decoder, entry: ScanEntry, labels: Labels) -> tuple[str, bool, list[float]]:
    """The values of one reference or the type of its error, whether it can be used, and values without a label."""
    try:
        values = decoder.read_values(entry)
    except ScanError as error:
        return type(error).__name__, False, []
    if labels.are_declared:
        strange = find_unnamed(values, labels).tolist()
        return describe_values(values), not strange, strange
    try:
        find_threshold(values, entry.scan_id)
    except ReferenceValuesError:
        return describe_values(values), False, []
    return describe_values(values), True, []
