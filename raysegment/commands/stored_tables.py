"""The tables of another run, and the model that made them, for commands that only read them."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from raysegment.archive.labels import locate_labels, match_labels, parse_labels
from raysegment.archive.pseudonyms import check_same_key
from raysegment.archive.split import find_run_manifest, refuse_training_patients
from raysegment.errors import UsageError
from raysegment.imaging.threshold import describe_thresholds, resolve_thresholds
from raysegment.model.bundle import Bundle, load_bundle, read_labels
from raysegment.model.patients import count_seen
from raysegment.options import MeasureOptions, Threshold
from raysegment.runs.record import read_record
from raysegment.scan import Labels
from raysegment.store.masks import iterate_masks
from raysegment.store.place import Place
from raysegment.store.publish import check_tables, read_rows
from raysegment.store.schema import STATUS_OK
from raysegment.store.upgrade import read_version


class StoredTables:
    """The tables whose masks are measured, and the model that made them as far as it is at hand.

    Args:
        options: Choices of `measure`.

    Attributes:
        place: Their folder.
        record: What its run.json holds.
        scans: Rows of `scans`.
        chosen: The options that they were made with.
        model: Where the model lay, or lies now.
        bundle: The model; None where it is not there any more.
        why_unknown: Why the model is not at hand; empty where it is.

    Raises:
        UsageError: The folder is no output of `infer` or `evaluate`, or --model is another model.
        DamagedTablesError: Parts are lost or damaged.
    """

    def __init__(self, options: MeasureOptions) -> None:
        self.options = options
        self.place = Place(options.tables)
        self.record = read_record(self.place)
        if self.record.get("command") not in ("infer", "evaluate"):
            raise UsageError(f"{options.tables} is no folder that `raysegment infer` or `evaluate` wrote.")
        read_version(self.place, self.record)
        check_apart(options.out, self.place)
        check_tables(self.place, "metrics", "masks")
        self.scans = read_rows(self.place, "scans")
        if not pc.any(pc.equal(self.scans["status"], STATUS_OK)).as_py():
            raise UsageError(f"{options.tables} has no masks yet: no scan is segmented.")
        self.chosen: dict[str, Any] = dict(self.record.get("chosen") or {})
        self.model = options.model or str(self.chosen.get("model") or "")
        self.why_unknown = ""
        self.bundle = self._load_bundle()

    @cached_property
    def labels(self) -> Labels | None:
        """Of the model, as it says itself or as run.json does; None where neither is there."""
        if self.bundle is not None:
            return self.bundle.labels
        stored = self.record.get("labels")
        return read_labels(stored) if stored else None

    @cached_property
    def mask_labels(self) -> tuple[dict[str, int], bool]:
        """Value of each label in the masks, and whether labels overlap, by the first mask."""
        _, row = next(iterate_masks(self.place, ["labels", "shape"]))
        return dict(row["labels"]), len(row["shape"]) == 4

    def check_patients(self, manifest: pa.Table) -> None:
        """Refuse to measure a model on patients that it was trained on as if it had never seen them.

        Raises:
            UsageError: Names them, or says that nobody can tell.
        """
        split = self.options.split
        if split not in ("val", "test") or self.options.allow_training_patients:
            return
        if self.bundle is None:
            raise UsageError(
                f"--split {split}: whether the model was trained on these patients cannot be told, because it is not "
                f"at hand ({self.why_unknown}). Give --model, or --allow-training-patients to measure them all the "
                "same."
            )
        check_same_key(self.bundle.key, self.record.get("key"), f"model {self.model}")
        refuse_training_patients(manifest, split, self.bundle.has_seen)

    def find_run_manifest(self) -> str | None:
        """The manifest of the training run that holds the model, if it is one and at hand."""
        return None if self.bundle is None else find_run_manifest(self.model)

    def count_training_patients(self, manifest: pa.Table) -> int | None:
        """Patients that the model was trained on; None where the model is not at hand."""
        if self.bundle is None:
            return None
        return count_seen(self.bundle, manifest["patient_id"].to_pylist(), self.record.get("key"))

    def match_labels(self, options: MeasureOptions, found: pa.Table) -> Labels:
        """What the values of references mean, for the masks' labels first.

        Args:
            options: Choices of `measure`.
            found: Scans with references.

        Raises:
            UsageError: The references have other labels, or nobody knows which values labels that overlap have.
        """
        names = tuple(self.mask_labels[0])
        known = self.labels or self._guess_labels()
        if known is not None:
            return match_labels(options.references, options.labels, known, found)
        if not locate_labels(options.references, options.labels, names[0], found)[0].are_declared:
            raise UsageError(
                f"which values {', '.join(names)} have in references is known from nowhere: the model is not at hand "
                f"({self.why_unknown}). Give --model, or --labels {names[0]}=1+2 for each."
            )
        return match_labels(options.references, options.labels, Labels(names, ((1,),) * len(names)), found)

    def reads_as_then(self, labels: Labels) -> bool:
        """Whether references are read now as they were when the tables were made.

        Args:
            labels: What their values mean now.
        """
        chosen = self.chosen.get("labels")
        before = parse_labels(tuple(chosen)) if chosen else self.labels or self._guess_labels()
        resampled = bool(self.chosen.get("resample_channels"))
        if before is None or resampled != self.options.resample_channels:
            return False
        names = self.mask_labels[0]
        return [_values_of(before, name) for name in names] == [_values_of(labels, name) for name in names]

    def describe_threshold(self) -> float | dict[str, float] | None:
        """The threshold of the masks, as summary.json has it; None where run.json does not say."""
        names = tuple(self.mask_labels[0])
        given: Threshold | None = dict(self.record.get("result_options") or {}).get("threshold")
        if given is None:
            return None
        if self.labels is not None:
            labels = self.labels
        else:
            labels = Labels(names, ((1,),) * len(names) if isinstance(given, str) else _different(len(names)))
        return describe_thresholds(resolve_thresholds(given, labels, 0.5), labels)

    def _guess_labels(self) -> Labels | None:
        """Labels as far as masks tell; None where they overlap, so that nothing tells their values in references."""
        values, overlap = self.mask_labels
        names = tuple(values)
        if overlap:
            return None
        return Labels(names, () if values == {names[0]: 1} else tuple((value,) for value in values.values()))

    def _load_bundle(self) -> Bundle | None:
        made_by = str(self.record.get("model_id"))
        try:
            bundle = load_bundle(self.model)
        except UsageError as error:
            if self.options.model is not None:
                raise
            self.why_unknown = str(error).rstrip(".")
            return None
        if bundle.model_id == made_by:
            return bundle
        if self.options.model is not None:
            raise UsageError(f"--model {self.model} is {bundle.model_id}; the masks were made by {made_by}.")
        self.why_unknown = f"{self.model} holds another model now"
        return None


def check_apart(out: str, tables: Place) -> None:
    """Refuse to write into the tables' own folder.

    Raises:
        UsageError: Names it.
    """
    place = Place(out)
    if place.is_local and tables.is_local and Path(place.root).resolve().is_relative_to(Path(tables.root).resolve()):
        raise UsageError(f"--out {out} lies in {tables.location}, which is only read. Choose another --out.")


def _different(count: int) -> tuple[tuple[int, ...], ...]:
    return tuple((value,) for value in range(1, count + 1))


def _values_of(labels: Labels, name: str) -> set[int] | None:
    """Values of a label in references; None where nobody declared them or there is no such label."""
    if not labels.are_declared or name not in labels.names:
        return None
    return set(labels.regions[labels.names.index(name)])
