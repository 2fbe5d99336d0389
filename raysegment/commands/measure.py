"""`raysegment measure`: compare masks that stand in the tables of a run with references, without segmenting again."""

from __future__ import annotations

import hashlib
import json
import os
import time
import uuid
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from raysegment.archive.filesystem import absolute_source
from raysegment.archive.index import find_scans, key_of, recorded_finding
from raysegment.archive.manifest import entry_of, is_manifest
from raysegment.archive.names import drop_seals
from raysegment.archive.pseudonymise import hide_source, recorded_identifiers
from raysegment.archive.pseudonyms import check_same_key
from raysegment.archive.reference_join import Joined, find_references, join_references
from raysegment.archive.split import choose_scans
from raysegment.cluster.inference.remaining import find_remaining
from raysegment.cluster.session import interruptible
from raysegment.commands.evaluate import EvaluateResult, read_metrics
from raysegment.commands.stored_tables import StoredTables
from raysegment.errors import UsageError
from raysegment.options import MeasureOptions
from raysegment.pipeline.gallery import draw_inference_figures
from raysegment.pipeline.remeasure import COPIED, RemeasureSettings, StoredScan, remeasure_all
from raysegment.pipeline.score import summarise_metrics
from raysegment.runs.closing import (
    choose_exit_code,
    count_finished,
    describe_damage,
    describe_failures,
    describe_nothing_to_do,
    describe_review,
    describe_run,
)
from raysegment.runs.console import Console
from raysegment.runs.identity import Identity, identify
from raysegment.runs.lock import RunLock
from raysegment.runs.progress import ScanProgress
from raysegment.runs.record import (
    as_json,
    describe_choices,
    describe_machine,
    keep_record,
    read_record,
    write_record,
)
from raysegment.scan import Labels, ReadSettings
from raysegment.store.masks import iterate_masks
from raysegment.store.parts import MAX_FAILURES_SHOWN, STAGING, Failure, OpenPart, PartReceipt
from raysegment.store.place import Place
from raysegment.store.publish import (
    drop_orphans,
    prepare_tables,
    publish_part,
    read_finished,
    read_rows,
    take_out,
)
from raysegment.store.schema import MEASURED_TABLES, SCHEMA_VERSION, STATUS_OK
from raysegment.store.upgrade import bring_up_tables, read_version

PART_BYTES = 2**26
READ_COLUMNS = ["scan_id", "label", "dice_at_half", *COPIED]


@dataclass(frozen=True, kw_only=True)
class MeasureResult(EvaluateResult):
    """What a measurement came to.

    Attributes:
        scans_total: Scans that have a mask or failed, and a reference.
        scans_ok: Of these, measured, now or before.
        scans_failed: Of these, failed: they were not segmented, or their reference cannot be used.

    The others are as in `EvaluateResult`.
    """


@interruptible()
def measure(options: MeasureOptions) -> MeasureResult:
    """Compare stored masks with references; goes on where it was stopped. The tables are only read.

    Raises:
        UsageError: There are no tables, no scan has a reference, the labels or the split do not fit, or the model was
            trained on the patients of a split.
        RaysegmentError: As `evaluate`.
    """
    started = time.time()
    stored = StoredTables(options)
    options = hide_source(options, "references", recorded_identifiers(stored.chosen, options.key_file))
    joined = _join(options, stored)
    manifest, split_origin = choose_scans(
        joined.table,
        split=options.split,
        split_file=options.split_file,
        run_manifest=stored.find_run_manifest(),
    )
    stored.check_patients(manifest)
    labels = stored.match_labels(options, joined.table)
    notes = []
    if stored.why_unknown:
        notes.append(f"warning: whether the model was trained on these patients is not known: {stored.why_unknown}.")
    if joined.num_without_reference:
        notes.append(f"{joined.num_without_reference} scans of the tables have no reference and are left out")
    if joined.num_without_scan:
        notes.append(f"{joined.num_without_scan} references are of scans that the tables do not have")
    run = Measurement(options, stored, manifest, labels, started)
    return run.run(notes, {"split": options.split, "split_origin": split_origin})


class Measurement:
    """One start of the command on its output folder.

    Args:
        options: Choices of `measure`.
        stored: The tables whose masks are measured.
        manifest: Scans that are wanted, with their references.
        labels: What the values of references mean, for the masks' labels first.
        started: When the command began, in seconds since 1970.
    """

    def __init__(
        self, options: MeasureOptions, stored: StoredTables, manifest: pa.Table, labels: Labels, started: float
    ) -> None:
        self.options = replace(options, labels=labels.as_typed or None)
        self.stored = stored
        self.labels = labels
        self.started = started
        self.manifest, same_files = _mark(manifest, stored.scans)
        self.as_then = same_files if stored.reads_as_then(labels) else set()
        self.place = Place(options.out)
        self.failed: Counter[str] = Counter()
        self.failures: list[Failure] = []
        self.seconds = {"read": 0.0, "finish": 0.0}
        self.num_slices = self.scans_now = 0

    def run(self, notes: list[str], about_split: Mapping[str, Any]) -> MeasureResult:
        """Measure what is left to do, then summarise."""
        identity = self._identify()
        identity.open(self.place)
        self.place.make_writable()
        with RunLock(self.place) as lock:
            record = identity.open(self.place) | {"options_id": identity.options_id}
            version = read_version(self.place, record)
            record["schema_version"] = SCHEMA_VERSION
            console = Console(self.place, as_json=self.options.json)
            for note in notes:
                console.say(note)
            if removed := prepare_tables(self.place, MEASURED_TABLES):
                console.say(describe_damage(removed))
            if version < SCHEMA_VERSION:
                bring_up_tables(self.place)
                if record.get("status"):
                    write_record(self.place, read_record(self.place) | {"schema_version": SCHEMA_VERSION})
            if not record.get("status"):
                identity.check_rows(self.place)
            remaining = find_remaining(self.manifest, read_finished(self.place), retry_failed=self.options.retry_failed)
            is_idle = remaining.plan.num_rows == 0 and record.get("status") == "done"
            if not is_idle:
                record |= {**describe_choices(self.options), **describe_machine()}
                record["labels"] = (self.stored.labels or self.labels).as_plain
                with keep_record(self.place, record, measure=self._count), console:
                    take_out(self.place, remaining.take_out)
                    self._measure_all(remaining.plan, record, lock, console)
            summary = self._summarise(about_split)
            return self._conclude(console, is_idle, summary)

    def _identify(self) -> Identity:
        return identify(
            "measure",
            self.options,
            key="result_options",
            model_id=self.stored.record.get("model_id"),
            tables_options_id=self.stored.record.get("options_id"),
            references=drop_seals(absolute_source(self.options.references)),
            reference=" ".join(self.options.reference or ()) or None,
        )

    def _measure_all(self, plan: pa.Table, record: Mapping[str, Any], lock: RunLock, console: Console) -> None:
        settings = RemeasureSettings(
            labels=tuple(self.stored.mask_labels[0]),
            read=ReadSettings(labels=self.labels, resample_channels=self.options.resample_channels),
            surface_tolerance_mm=self.options.surface_tolerance_mm,
            options_id=str(record["options_id"]),
            attempt=int(record["attempt"]),
            memory_mb=self.options.read_memory_mb,
            timeout_seconds=self.options.read_timeout_seconds,
        )
        staging = f"{STAGING}/{settings.attempt:04d}-{uuid.uuid4().hex[:8]}"
        part = OpenPart(self.place, staging, PART_BYTES, self.options.part_seconds, tables=MEASURED_TABLES)
        progress = ScanProgress(console, plan.num_rows)
        workers = self.options.workers or os.cpu_count() or 1
        try:
            for rows in remeasure_all(self._iterate(plan), self.stored.place, settings, workers):
                for stage in self.seconds:
                    self.seconds[stage] += rows.scan.get(f"seconds_{stage}") or 0.0
                part.add(rows)
                progress.advance(1, int(rows.is_failed), 0 if rows.is_failed else int(rows.scan["num_slices"] or 0))
                if part.is_due:
                    self._publish(part.close(), staging, lock)
            self._publish(part.close(), staging, lock)
        finally:
            self.place.delete(STAGING)
            drop_orphans(self.place)

    def _iterate(self, plan: pa.Table) -> Iterator[StoredScan]:
        """What there is to do: failed scans first, then mask by mask, a few rows in memory at a time."""
        position = {scan_id: index for index, scan_id in enumerate(plan["scan_id"].to_pylist())}
        scans = self.stored.scans.filter(pc.is_in(self.stored.scans["scan_id"], value_set=plan["scan_id"]))
        places = {scan_id: index for index, scan_id in enumerate(scans["scan_id"].to_pylist())}
        metrics = self._read_metrics(plan)

        def describe(scan_id: str, mask: Mapping[str, Any] | None, part: str) -> StoredScan:
            row = plan.slice(position[scan_id], 1).to_pylist()[0]
            return StoredScan(
                scan=scans.slice(places[scan_id], 1).to_pylist()[0],
                metrics=metrics[scan_id],
                mask=mask,
                part=part,
                entry=entry_of(row),
                fingerprint=row["fingerprint"],
                is_as_then=scan_id in self.as_then,
            )

        for scan_id in scans.filter(pc.not_equal(scans["status"], STATUS_OK))["scan_id"].to_pylist():
            yield describe(scan_id, None, "")
        for part, mask in iterate_masks(self.stored.place):
            if mask["scan_id"] in position:
                yield describe(mask["scan_id"], mask, part)

    def _read_metrics(self, plan: pa.Table) -> dict[str, list[dict[str, Any]]]:
        rows = read_rows(self.stored.place, "metrics", READ_COLUMNS)
        by_scan: dict[str, list[dict[str, Any]]] = defaultdict(list)
        for row in rows.filter(pc.is_in(rows["scan_id"], value_set=plan["scan_id"])).to_pylist():
            by_scan[row["scan_id"]].append(row)
        return by_scan

    def _publish(self, receipt: PartReceipt | None, staging: str, lock: RunLock) -> None:
        if receipt is None:
            return
        lock.check()
        publish_part(self.place, staging, receipt.name, MEASURED_TABLES)
        self.scans_now += len(receipt.scan_ids)
        self.num_slices += receipt.num_slices
        self.failed += receipt.failed
        self.failures += receipt.failures[: MAX_FAILURES_SHOWN - len(self.failures)]

    def _summarise(self, about_split: Mapping[str, Any]) -> dict[str, Any]:
        num_failed = count_finished(self.manifest, read_finished(self.place))[1]
        summary = summarise_metrics(
            read_metrics(self.place, self.manifest),
            scans_failed=num_failed,
            threshold=self.stored.describe_threshold(),
            training_patients=self.stored.count_training_patients(self.manifest),
        )
        summary |= about_split
        self.place.write_bytes("summary.json", (json.dumps(as_json(summary), indent=2) + "\n").encode())
        return summary

    def _count(self) -> dict[str, Any]:
        num_ok, num_failed = count_finished(self.manifest, read_finished(self.place))
        return {
            "scans_total": self.manifest.num_rows,
            "scans_ok": num_ok,
            "scans_failed": num_failed,
            "slices": self.num_slices,
            "seconds_total": time.time() - self.started,
            "seconds_startup": None,
            "slices_per_second": None,
            "seconds": dict(self.seconds),
        }

    def _conclude(self, console: Console, is_idle: bool, summary: dict[str, Any]) -> MeasureResult:
        numbers = self._count()
        if is_idle:
            console = Console(None, as_json=self.options.json)
            lines = [describe_nothing_to_do(numbers["scans_total"], numbers["scans_failed"], self.options.out)]
        else:
            lines = describe_run(numbers, self.scans_now)
            lines += describe_review({**summary, **numbers}, self.options.out)
            lines += describe_failures(dict(self.failed), self.failures, self.options.out)
        for line in lines:
            console.say(line)
        shown = self.stored.labels or self.labels
        figures = draw_inference_figures(Path(self.options.out), None, shown) if self.place.is_local else []
        return MeasureResult(
            out=self.options.out,
            scans_now=self.scans_now,
            failed_by_type=dict(self.failed),
            failures=tuple(self.failures),
            summary=summary,
            figures=tuple(map(str, figures)),
            exit_code=choose_exit_code(numbers["scans_ok"], numbers["scans_failed"]),
            **numbers,
        )


def _join(options: MeasureOptions, stored: StoredTables) -> Joined:
    """The references: by the globs that are given, or in the way in which the tables' scans were found."""
    if options.reference and is_manifest(options.references):
        raise UsageError(
            f"{options.references} is a manifest, which names the references; --reference belongs to folders."
        )
    if options.reference and stored.chosen.get("pseudonymise"):
        raise UsageError(
            "--reference names scans by their own names, and the tables have pseudonyms of them. Leave it out: "
            "references are found as the tables' scans were."
        )
    if options.reference:
        return find_references(options.references, options.reference, stored.scans, options.fingerprint)
    chosen = stored.chosen | {"patient_pattern": None, "fingerprint": options.fingerprint}
    chosen["key_file"] = options.key_file or chosen.get("key_file")
    if options.scan_pattern:
        chosen["scan_pattern"] = options.scan_pattern
    how = recorded_finding(chosen, options.references)
    found = find_scans(options.references, how, again=True)
    check_same_key(stored.record.get("key"), key_of(found), options.tables)
    return join_references(found, stored.scans)


def _mark(manifest: pa.Table, scans: pa.Table) -> tuple[pa.Table, set[str]]:
    """The manifest with fingerprints of all that the numbers are made of, and scans whose files are as they were."""
    wanted = scans.filter(pc.is_in(scans["scan_id"], value_set=manifest["scan_id"].combine_chunks()))
    columns = ("fingerprint", "status", "model_id", "options_id")
    known = {row["scan_id"]: [str(row[name]) for name in columns] for row in wanted.to_pylist()}
    given = list(zip(manifest["scan_id"].to_pylist(), manifest["fingerprint"].to_pylist(), strict=True))
    hashes = [hashlib.sha256("\0".join([now, *known[scan_id]]).encode()).hexdigest() for scan_id, now in given]
    index = manifest.schema.get_field_index("fingerprint")
    marked = manifest.set_column(index, manifest.schema.field(index), pa.array(hashes, pa.string()))
    return marked, {scan_id for scan_id, now in given if now == known[scan_id][0]}
