"""`raysegment export --to nifti`: each mask on the grid of the file that its scan came from, several at a time."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from raysegment.archive.channels import order_channels
from raysegment.archive.index import find_scans, key_of, recorded_finding
from raysegment.archive.manifest import entry_of, is_manifest
from raysegment.archive.pseudonyms import check_same_key
from raysegment.errors import ScanError, UsageError
from raysegment.options import ExportOptions
from raysegment.pipeline.export import check_unchanged, restore_volume
from raysegment.pipeline.side_by_side import run_side_by_side
from raysegment.runs.export_folder import ExportFolder
from raysegment.runs.export_names import MAX_PATH_BYTES, NIFTI, SUFFIX, name_endings, name_files
from raysegment.runs.export_progress import ExportProgress, keep_progress
from raysegment.runs.record import read_record
from raysegment.scan import ScanEntry
from raysegment.store.damage import report_damage
from raysegment.store.masks import decode_mask, iterate_masks
from raysegment.store.parts import Failure
from raysegment.store.place import Place
from raysegment.store.writers.bids import write_text
from raysegment.store.writers.nifti import write_volume


@dataclass(frozen=True, kw_only=True)
class VolumeTask:
    """One mask that is to be written.

    Attributes:
        part: File of the table `masks` that holds the mask.
        row: Of that table.
        scan: Of the table `scans`.
        entry: The scan as its archive has it now; None where it has not, or where nobody needs it.
        names: A file for each volume.
        texts: Files that are written beside them, by name.
    """

    part: str
    row: Mapping[str, Any]
    scan: Mapping[str, Any]
    entry: ScanEntry | None
    names: tuple[str, ...]
    texts: Mapping[str, bytes] = field(default_factory=dict)

    @property
    def files(self) -> tuple[str, ...]:
        """All names."""
        return (*self.names, *self.texts)

    @property
    def key(self) -> str:
        """Of all that the files are made of."""
        parts = [str(self.scan[name]).encode() for name in ("fingerprint", "model_id", "options_id")]
        return hashlib.sha256(b"\0".join((*parts, *self.texts.values()))).hexdigest()[:32]


WriteTask = Callable[[VolumeTask, Place, ExportFolder], Failure | None]
"""Writes the files of one mask; None where they are written, else why they are not."""


@dataclass(frozen=True, kw_only=True)
class WrittenVolumes:
    """What became of the masks.

    Attributes:
        num_files: Files that are there now.
        num_new: Those of them that were written now.
        failures: Scans of which none was written, with the reason.
        num_written: Scans of which there are files.
    """

    num_files: int
    num_new: int
    num_written: int
    failures: tuple[Failure, ...]


def write_volumes(options: ExportOptions, place: Place, folder: ExportFolder, scans: pa.Table) -> WrittenVolumes:
    """Write each mask as `<scan_id>_pred.nii.gz`; where labels overlap, each as `<scan_id>_pred_<label>.nii.gz`.

    Files that an earlier start finished, of the same scan and model, stay as they are.

    Args:
        options: Choices of `export`.
        place: The tables.
        folder: Where files go.
        scans: Rows of `scans` that are ok.

    Raises:
        UsageError: The archive that the scans come from is not there; or as `ExportFolder`.
        DamagedTablesError: A part cannot be read.
        DiskFullError: No space left.
        OutputError: The system refuses a file.
    """
    _, first = next(iterate_masks(place, ["labels", "shape"]))
    labels = [name for name, _ in first["labels"]]
    endings = name_endings(labels) if len(first["shape"]) == 4 else [SUFFIX + NIFTI]
    names = _name_volumes(scans["scan_id"].to_pylist(), endings, folder)
    tasks = plan_volumes(place, scans, find_entries(options, place, scans), names)
    with folder.writing([name for each in names.values() for name in each]):
        return write_tasks(tasks, place, folder, options.workers)


def write_volume_files(task: VolumeTask, place: Place, folder: ExportFolder) -> Failure | None:
    """Write the files of one mask; None where they are written, else why they are not.

    Raises:
        RaysegmentError: As `write_volumes`.
    """
    slice_axis = task.scan["slice_axis"]
    with report_damage(place, task.part):
        mask = decode_mask(task.row)
    try:
        if slice_axis is not None:
            check_unchanged(task.row, task.scan["fingerprint"], task.entry)
        volume = restore_volume(task.row, mask, task.entry, slice_axis)
    except ScanError as error:
        return Failure(task.row["scan_id"], type(error).__name__, str(error))
    for name, plane in zip(task.names, volume.planes, strict=True):
        write_volume(folder.path(name), plane, volume.header)
    for name, text in task.texts.items():
        write_text(folder.path(name), text)
    return None


def write_tasks(
    tasks: Iterable[VolumeTask],
    place: Place,
    folder: ExportFolder,
    workers: int | None,
    write: WriteTask = write_volume_files,
) -> WrittenVolumes:
    """Write what an earlier start did not finish, several masks at a time, in a folder that is claimed for the files.

    Args:
        tasks: One for each scan; they are asked for as they are needed.
        place: The tables.
        folder: Where files go.
        workers: Masks that are written at the same time; one for each CPU if not given.
        write: Writes the files of one mask, in a thread.

    Raises:
        RaysegmentError: As `write_volumes`.
    """

    def write_one(task: VolumeTask) -> Failure | None:
        return write(task, place, folder)

    failures: list[Failure] = []
    counts: Counter[str] = Counter()
    with keep_progress(folder) as progress:
        counted = _count(tasks, counts)
        for task, failure in _write_all(counted, write_one, progress, workers or os.cpu_count() or 1):
            if failure is None:
                counts["new"] += len(task.names)
                for name in task.files:
                    progress.note(name, task.key)
                continue
            failures.append(failure)
            counts["files"] -= len(task.names)
            for name in task.files:
                folder.path(name).unlink(missing_ok=True)
    return WrittenVolumes(
        num_files=counts["files"],
        num_new=counts["new"],
        num_written=counts["scans"] - len(failures),
        failures=tuple(sorted(failures, key=lambda failure: failure.scan_id)),
    )


def _count(tasks: Iterable[VolumeTask], counts: Counter[str]) -> Iterator[VolumeTask]:
    for task in tasks:
        counts["scans"] += 1
        counts["files"] += len(task.names)
        yield task


def _name_volumes(scan_ids: list[str], endings: Sequence[str], folder: ExportFolder) -> dict[str, tuple[str, ...]]:
    room = MAX_PATH_BYTES - len(os.fsencode(folder.root))
    named = [name_files(scan_ids, max_bytes=room, ending=ending) for ending in endings]
    return {scan_id: tuple(names[scan_id] for names in named) for scan_id in scan_ids}


def find_entries(options: ExportOptions, place: Place, scans: pa.Table) -> pa.Table | None:
    """The manifest of the archive as it is now; None where no scan is a volume.

    Raises:
        UsageError: It is not there, or nobody says where.
    """
    if not pc.any(pc.is_valid(scans["slice_axis"])).as_py():
        return None
    return find_archive(options, place, scans)


def find_archive(options: ExportOptions, place: Place, scans: pa.Table) -> pa.Table:
    """The manifest of the archive as it is now, channels in the order in which the model saw them.

    Raises:
        UsageError: It is not there, or nobody says where.
    """
    record = read_record(place)
    chosen = dict(record.get("chosen") or {})
    chosen["key_file"] = options.key_file or chosen.get("key_file")
    source = options.source or str(chosen.get("source") or "")
    if not options.source and not is_manifest(source):
        # The tables have the folder's whole path, whatever way it was given.
        folders = scans["source"].drop_null().unique().to_pylist()
        source = folders[0] if len(folders) == 1 else source
    if not source:
        raise UsageError(f"{options.tables} does not say where its scans lie; give --source.")
    try:
        found = find_scans(source, recorded_finding(chosen, source), again=True)
    except UsageError as error:
        if options.source:
            raise
        raise UsageError(f"{error} If the scans lie elsewhere now, say where with --source.") from error
    check_same_key(record.get("key"), key_of(found), options.tables)
    return order_channels(found, record.get("channel_names") or ())


def plan_volumes(
    place: Place, scans: pa.Table, entries: pa.Table | None, names: Mapping[str, tuple[str, ...]]
) -> Iterator[VolumeTask]:
    """What there is to do, mask by mask, a few rows in memory at a time.

    Args:
        place: The tables.
        scans: Rows of `scans` that are wanted.
        entries: As `find_entries` gives them.
        names: Files of each scan.
    """
    places = {scan_id: index for index, scan_id in enumerate(scans["scan_id"].to_pylist())}
    found = {} if entries is None else {scan_id: index for index, scan_id in enumerate(entries["scan_id"].to_pylist())}
    for part, row in iterate_masks(place):
        scan_id = row["scan_id"]
        if scan_id not in places:
            continue
        index = found.get(scan_id)
        entry = None if index is None or entries is None else entry_of(entries.slice(index, 1).to_pylist()[0])
        scan = scans.slice(places[scan_id], 1).to_pylist()[0]
        yield VolumeTask(part=part, row=row, scan=scan, entry=entry, names=names[scan_id])


def _write_all(
    tasks: Iterable[VolumeTask], write: Callable[[VolumeTask], Failure | None], progress: ExportProgress, workers: int
) -> Iterator[tuple[VolumeTask, Failure | None]]:
    """Write several at a time in threads, which spend their time in zlib and NumPy; yield each as it ends."""
    waiting = (task for task in tasks if not all(progress.is_done(name, task.key) for name in task.files))

    def write_one(task: VolumeTask) -> tuple[VolumeTask, Failure | None]:
        return task, write(task)

    yield from run_side_by_side(write_one, waiting, workers)
