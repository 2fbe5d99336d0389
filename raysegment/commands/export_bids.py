"""`raysegment export --to bids`: masks as a BIDS dataset of derivatives, each on its scan's own grid."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from raysegment.archive.filesystem import is_uri, open_source
from raysegment.archive.own_folders import OWN_DESCRIPTION
from raysegment.commands.export_volumes import (
    VolumeTask,
    WrittenVolumes,
    find_entries,
    plan_volumes,
    write_tasks,
)
from raysegment.options import ExportOptions, parse_thresholds
from raysegment.runs.bids_names import (
    LABEL_MAP,
    NIFTI,
    BidsName,
    BidsSource,
    name_scans,
    read_bids_source,
    safe_labels,
)
from raysegment.runs.export_folder import ExportFolder
from raysegment.runs.record import read_record
from raysegment.store.masks import iterate_masks
from raysegment.store.place import Place
from raysegment.store.writers.bids import (
    DESCRIPTION_FILE,
    OWN_SPACE,
    README,
    README_FILE,
    SOURCE_LINK,
    MaskLabel,
    MaskOrigin,
    make_description,
    make_label_table,
    make_sidecar,
    write_text,
)

OWN_FOLDER = "derivatives/raysegment"
"""The one folder below a source that may be written: where BIDS has what was made of a dataset."""

SIDECAR = ".json"


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """What the files of one export share.

    Attributes:
        labels: Of the masks.
        label_words: Of the labels in names of files where each has one of its own, because they overlap; else empty.
        threshold: As `MaskOrigin`.
        version: Of the raysegment that made the masks.
        names: Of each scan.
        sources: Of the scans that lie in a BIDS dataset.
        link: Path from the export to that dataset, where the export lies below its source.
    """

    labels: tuple[MaskLabel, ...]
    label_words: tuple[str, ...]
    threshold: float | Mapping[str, float] | None
    version: str
    names: Mapping[str, BidsName]
    sources: Mapping[str, BidsSource]
    link: str | None

    @property
    def are_apart(self) -> bool:
        """Whether each label has a file of its own."""
        return bool(self.label_words)

    def paths(self, scan_id: str) -> tuple[str, ...]:
        """Of a scan's volumes, without extension."""
        if not self.are_apart:
            return (self.names[scan_id].path(),)
        return tuple(self.names[scan_id].path(word) for word in self.label_words)

    def sidecars(self, scan_id: str, model_id: str) -> dict[str, bytes]:
        """The JSON beside each of a scan's volumes, by name."""
        source = self.sources.get(scan_id)
        prefix = f"bids:{SOURCE_LINK}:" if self.link else ""
        files = [prefix + path for path in source.files] if source else []
        origin = MaskOrigin(
            scan_id=scan_id,
            model_id=model_id,
            version=self.version,
            threshold=self.threshold,
            sources=files,
            reference=files[0] if files and self.link else OWN_SPACE,
        )
        groups = [(label,) for label in self.labels] if self.are_apart else [self.labels]
        return {
            path + SIDECAR: make_sidecar(origin, group, is_label_map=not self.are_apart)
            for path, group in zip(self.paths(scan_id), groups, strict=True)
        }


def write_bids(options: ExportOptions, place: Place, folder: ExportFolder, scans: pa.Table) -> WrittenVolumes:
    """Write each mask as `sub-…_desc-raysegment_dseg.nii.gz` with its sidecar, and the dataset's own files.

    Where labels overlap each has a `…_label-<label>_desc-raysegment_mask.nii.gz`. What an earlier start finished, of
    the same scan and model, stays as it is.

    Args:
        options: Choices of `export`.
        place: The tables.
        folder: Where files go.
        scans: Rows of `scans` that are ok.

    Raises:
        RaysegmentError: As `write_volumes`.
    """
    entries = find_entries(options, place, scans)
    dataset = _describe(place, folder, scans, entries)
    texts = {
        DESCRIPTION_FILE: make_description(
            dataset.version, scans["model_id"].drop_null().unique().to_pylist(), dataset.link
        ),
        README_FILE: README.encode(),
    }
    if not dataset.are_apart:
        texts[f"desc-{OWN_DESCRIPTION}_{LABEL_MAP}.tsv"] = make_label_table(dataset.labels)
    names = {
        scan_id: tuple(path + NIFTI for path in dataset.paths(scan_id)) for scan_id in scans["scan_id"].to_pylist()
    }
    volumes = [name for each in names.values() for name in each]
    sidecars = [name.removesuffix(NIFTI) + SIDECAR for name in volumes]
    with folder.writing([*texts, *volumes, *sidecars]):
        for name, content in texts.items():
            write_text(folder.path(name), content)
        tasks = _with_sidecars(plan_volumes(place, scans, entries, names), dataset)
        return write_tasks(tasks, place, folder, options.workers)


def _describe(place: Place, folder: ExportFolder, scans: pa.Table, entries: pa.Table | None) -> Dataset:
    record = read_record(place)
    are_hidden = bool(dict(record.get("chosen") or {}).get("pseudonymise"))
    patient_ids = pc.coalesce(scans["patient_id"], scans["scan_id"])
    patients = dict(zip(scans["scan_id"].to_pylist(), patient_ids.to_pylist(), strict=True))
    # Names of a source's files are the user's own words.
    sources = {} if entries is None or are_hidden else _read_sources(entries, patients)
    roots = {source.root for source in sources.values()}
    link = None
    if len(roots) == 1 and entries is not None:
        link = _find_link(folder, entries["source"].unique().to_pylist(), roots.pop())
    _, first = next(iterate_masks(place, ["labels", "shape"]))
    labels = _read_labels(first["labels"], record.get("labels") or [])
    words = safe_labels(label.name for label in labels) if len(first["shape"]) == 4 else {}
    threshold = dict(record.get("result_options") or {}).get("threshold")
    return Dataset(
        labels=labels,
        label_words=tuple(words[label.name] for label in labels if words),
        threshold=parse_thresholds(threshold) if isinstance(threshold, str) else threshold,
        version=str(dict(record.get("versions") or {}).get("raysegment") or ""),
        names=name_scans(patients, sources),
        sources=sources if len(roots) < 2 else {},
        link=link,
    )


def _read_sources(entries: pa.Table, wanted: Mapping[str, Any]) -> dict[str, BidsSource]:
    """Scans whose files lie in a BIDS dataset."""
    volumes = entries.filter(pc.equal(entries["reader"], "nifti")).select(["scan_id", "files"])
    sources = {}
    for batch in volumes.to_batches(max_chunksize=10_000):
        for row in batch.to_pylist():
            source = read_bids_source(row["files"]) if row["scan_id"] in wanted else None
            if source is not None:
                sources[row["scan_id"]] = source
    return sources


def _find_link(folder: ExportFolder, locations: Sequence[str], root: str) -> str | None:
    """The way from an export to the dataset of its scans, where the export is what the dataset has below it."""
    if len(locations) != 1 or is_uri(locations[0]):
        return None
    source, here = Path(open_source(locations[0])[1]).resolve(), Path(folder.root).resolve()
    return os.path.relpath(source / root, here) if here == source / OWN_FOLDER else None


def _read_labels(pairs: Sequence[tuple[str, int]], described: Sequence[Mapping[str, Any]]) -> tuple[MaskLabel, ...]:
    """Labels of the masks, with what the run's record knows of them."""
    known = {str(item["name"]): item for item in described if isinstance(item, Mapping) and "name" in item}
    labels = []
    for name, value in pairs:
        item = known.get(name, {})
        labels.append(MaskLabel(name=name, value=value, colour=item.get("colour"), code=item.get("code")))
    return tuple(labels)


def _with_sidecars(tasks: Iterator[VolumeTask], dataset: Dataset) -> Iterator[VolumeTask]:
    for task in tasks:
        texts = dataset.sidecars(task.scan["scan_id"], task.scan["model_id"] or "")
        yield replace(task, texts=texts)
