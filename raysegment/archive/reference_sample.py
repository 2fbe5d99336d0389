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
from raysegment.archive.reference import describe_values, find_threshold
from raysegment.errors import ReferenceValuesError, ScanError
from raysegment.scan import ScanEntry

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
    """

    references_read: int
    references_refused: int
    reference_values: dict[str, int]


def sample_references(manifest: pa.Table) -> ReferenceSample:
    """Decode the references of at most 20 scans, spread over the manifest, for at most 20 seconds."""
    rows = np.flatnonzero(pc.greater(pc.list_value_length(manifest["reference_files"]), 0).to_numpy())
    if len(rows) > MAX_SCANS:
        rows = rows[np.linspace(0, len(rows) - 1, MAX_SCANS).astype(np.int64)]
    found: Counter[str] = Counter()
    num_refused = 0
    deadline = time.monotonic() + MAX_SECONDS
    with Decoder(MEMORY_MB, SECONDS_PER_SCAN) as decoder:
        for entry in entries(manifest.take(rows)):
            if time.monotonic() > deadline:
                break
            described, is_usable = _look_at(decoder, entry)
            found[described] += 1
            num_refused += not is_usable
    return ReferenceSample(found.total(), num_refused, dict(found.most_common()))


def _look_at(decoder: Decoder, entry: ScanEntry) -> tuple[str, bool]:
    """The values of one reference or the type of its error, and whether it can be used."""
    try:
        values = decoder.read_values(entry)
    except ScanError as error:
        return type(error).__name__, False
    try:
        find_threshold(values, entry.scan_id)
    except ReferenceValuesError:
        return describe_values(values), False
    return describe_values(values), True
