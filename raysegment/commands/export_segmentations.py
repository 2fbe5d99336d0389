"""`raysegment export --to dicom-seg`: each mask as a DICOM segmentation of the images that its scan came from."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raysegment.archive.dicom.library import quiet_libraries
from raysegment.archive.dicom.source_images import read_source_images
from raysegment.archive.names import show_name
from raysegment.commands.export_volumes import VolumeTask, WrittenVolumes, find_archive, plan_volumes, write_tasks
from raysegment.errors import ScanError, SourceFormatError, UsageError
from raysegment.model.bundle import read_labels
from raysegment.options import ExportOptions
from raysegment.pipeline.export import check_unchanged
from raysegment.runs.export_folder import ExportFolder
from raysegment.runs.export_names import DICOM, MAX_PATH_BYTES, SUFFIX, name_files
from raysegment.runs.record import read_record
from raysegment.scan import Labels
from raysegment.store.damage import report_damage
from raysegment.store.masks import decode_mask
from raysegment.store.parts import Failure
from raysegment.store.place import Place
from raysegment.store.writers.dicom_seg import Maker, require_highdicom, write_segmentation
from raysegment.store.writers.dicom_sources import WANTED

READER = "dicom"


def write_segmentations(options: ExportOptions, place: Place, folder: ExportFolder, scans: pa.Table) -> WrittenVolumes:
    """Write each mask as `<scan_id>_pred.dcm`, with a segment for each label, also where labels overlap.

    Files that an earlier start finished, of the same scan and model, stay as they are.

    Args:
        options: Choices of `export`.
        place: The tables.
        folder: Where files go.
        scans: Rows of `scans` that are ok.

    Raises:
        MissingExtraError: highdicom is not installed.
        UsageError: No scan is DICOM; or as `write_volumes`.
        RaysegmentError: As `write_volumes`.
    """
    require_highdicom()
    entries = find_archive(options, place, scans)
    _check_any_dicom(entries, scans)
    room = MAX_PATH_BYTES - len(os.fsencode(folder.root))
    named = name_files(scans["scan_id"].to_pylist(), max_bytes=room, ending=SUFFIX + DICOM)
    tasks = plan_volumes(place, scans, entries, {scan_id: (name,) for scan_id, name in named.items()})
    write = partial(_write_one, record=read_record(place))
    with folder.writing(list(named.values())), quiet_libraries():
        return write_tasks(tasks, place, folder, options.workers, write)


def _check_any_dicom(entries: pa.Table, scans: pa.Table) -> None:
    """Refuse an archive that has none of the scans as DICOM, before anything is written."""
    there = entries.filter(pc.is_in(entries["scan_id"], value_set=scans["scan_id"].combine_chunks()))
    if there.num_rows and not pc.any(pc.equal(there["reader"], READER)).as_py():
        raise UsageError(
            f"none of these {there.num_rows} scans is DICOM, and a DICOM segmentation refers to DICOM images. Export "
            "--to nifti or --to tiff."
        )


def _write_one(task: VolumeTask, place: Place, folder: ExportFolder, *, record: dict[str, Any]) -> Failure | None:
    """Write one mask; None where it is written, else why it is not."""
    with report_damage(place, task.part):
        mask = decode_mask(task.row)
    row, entry = task.row, task.entry
    affine = None if row["affine"] is None else np.asarray(row["affine"], np.float64).reshape(4, 4)
    try:
        check_unchanged(row, task.scan["fingerprint"], entry)
        assert entry is not None
        if entry.reader != READER:
            raise SourceFormatError(f"{show_name(entry.scan_id)} is no DICOM; export it --to nifti or --to tiff.")
        images = read_source_images(entry, mask.shape[-3:], affine, WANTED)
        write_segmentation(
            folder.path(task.names[0]),
            images.to_frames(mask),
            dict(row["labels"]),
            images.headers,
            _labels_of(record, row),
            _maker_of(record, task),
            show_name(entry.scan_id),
        )
    except ScanError as error:
        return Failure(row["scan_id"], type(error).__name__, str(error))
    return None


def _labels_of(record: dict[str, Any], row: Any) -> Labels:
    """What the run knew of its labels; only their names where it kept nothing."""
    return read_labels(record["labels"]) if record.get("labels") else Labels((row["labels"][0][0],))


def _maker_of(record: dict[str, Any], task: VolumeTask) -> Maker:
    versions, started = dict(record.get("versions") or {}), str(record.get("started") or "")
    return Maker(
        version=str(versions.get("raysegment") or "unknown"),
        model_id=str(task.scan["model_id"] or ""),
        options_id=str(task.scan["options_id"] or ""),
        made=_parse_time(started),
    )


def _parse_time(started: str) -> datetime:
    """When a run began; now where it does not say."""
    try:
        return datetime.strptime(started, "%Y-%m-%dT%H:%M:%SZ")
    except ValueError:
        return datetime.now(UTC).replace(tzinfo=None, microsecond=0)
