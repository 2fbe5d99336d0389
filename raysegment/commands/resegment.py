"""`raysegment resegment`: what is new or changed in a cohort is segmented, compared with before, and made current."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from raysegment.archive.channels import check_channels, order_channels
from raysegment.archive.index import find_scans
from raysegment.archive.labels import match_labels_if_known
from raysegment.archive.names import show_name
from raysegment.archive.pseudonymise import hide_source
from raysegment.archive.selection import select_scans
from raysegment.cluster.inference.remaining import find_remaining
from raysegment.cluster.inference.run import InferResult, identify_inference, resolve_options, run_inference
from raysegment.cluster.session import check_temp_dir, interruptible
from raysegment.commands.cohort_drift import NightTables, is_as_bundled, watch_drift, write_drift
from raysegment.commands.compare import compare
from raysegment.errors import EXIT_DONE, EXIT_DRIFT, EXIT_FAILED, DamagedTablesError, UsageError
from raysegment.model.bundle import Bundle, load_bundle
from raysegment.options import CompareOptions, InferOptions, ResegmentOptions
from raysegment.pipeline.doubt import lay_over, rule_of
from raysegment.pipeline.drift import describe_drift
from raysegment.pipeline.follow_up import FOLDER, describe_trajectories, publish_trajectories
from raysegment.runs.closing import describe_amended, describe_damage
from raysegment.runs.cohort import CohortFolder
from raysegment.runs.cohort_file import Cohort, read_cohort
from raysegment.runs.cohort_results import Current
from raysegment.runs.console import Console
from raysegment.runs.members import find_vanished, update_members
from raysegment.runs.notify import describe_end, exit_code_of, notify, split_command
from raysegment.runs.record import read_record
from raysegment.scan import Labels
from raysegment.store.amend import Outdated, amend_tables, find_outdated
from raysegment.store.place import Place
from raysegment.store.publish import prepare_tables, read_finished, read_rows, take_out
from raysegment.store.schema import SCANS_SCHEMA, STATUS_FAILED
from raysegment.store.upgrade import bring_up_tables


@dataclass(frozen=True, kw_only=True)
class ResegmentResult:
    """What a run on a cohort came to.

    Attributes:
        cohort: Its name.
        result: Folder of the current result at the end, below the cohort's; None where there is none.
        scans: How many are `new`, `changed`, `failed_before`, `unchanged` and `vanished`.
        is_new_model: Model or choices are others than those of the result before, so that all scans are done again.
        scans_ok: Of the cohort's scans those that are segmented, now or before.
        scans_failed: Those that failed.
        changed_scans: Scans with a change against the result before; None where there was none.
        drift: How the scans that were segmented differ from the training set and the cohort's past, see
            `pipeline/drift`; None where none were.
        amended: Finished scans with another of the `dates` or `patients`, and masks of which `reviews` are judged
            otherwise, by what manifest and cohort file say now; none of them is segmented again.
        follow_up: Patients who were followed over time, and how many of them grow; empty where nothing was done.
        has_moved: Whether there is a new current result.
        scans_now: Scans that this run segmented.
        seconds_total: Wall-clock time.
        seconds_startup: Until a network gave its first probabilities; None where none did.
        exit_code: 0; 3 where scans failed; 1 where no scan is ok; with `fail_on_drift` 4 where there is drift.
    """

    cohort: str
    result: str | None
    scans: dict[str, int] = field(default_factory=dict)
    is_new_model: bool = False
    scans_ok: int = 0
    scans_failed: int = 0
    changed_scans: int | None = None
    drift: dict[str, Any] | None = None
    amended: dict[str, int] = field(default_factory=dict)
    follow_up: dict[str, int] = field(default_factory=dict)
    has_moved: bool = False
    scans_now: int = 0
    seconds_total: float = 0.0
    seconds_startup: float | None = None
    exit_code: int = EXIT_DONE


def resegment(options: ResegmentOptions, infer: Callable[..., InferResult] = run_inference) -> ResegmentResult:
    """Segment what is new, changed or failed before in a cohort; all of it where model or choices changed.

    Readers of current.json see the result before until this one is whole. The program of --notify is told how it ended,
    whatever happened.

    Args:
        options: Choices of `resegment`.
        infer: What segments; tests put another one here.

    Raises:
        UsageError: The cohort file, the source or the model cannot be used, or too many scans are gone at once.
        LockedError: Another run has the cohort.
        RaysegmentError: As `infer`; the result before stays current.
    """
    if options.notify is None:
        return run_night(options, infer)
    told, console = split_command(options.notify), Console(None, as_json=options.json)
    about = {"cohort_file": options.cohort}
    try:
        result = run_night(options, infer)
    except BaseException as error:
        with interruptible():
            notify(told, describe_end(exit_code_of(error), about, error), console)
        raise
    with interruptible():
        notify(told, describe_end(result.exit_code, about | asdict(result)), console)
    return result


@interruptible()
def run_night(options: ResegmentOptions, infer: Callable[..., InferResult]) -> ResegmentResult:
    """`resegment`, without telling anyone."""
    started = time.time()
    cohort = read_cohort(options.cohort)
    check_temp_dir(options.address, options.temp_dir)
    folder = CohortFolder(cohort.chosen.out)
    night = Night(cohort, options, folder)
    with folder.hold(), Console(folder.place, as_json=options.json) as console:
        night.look()
        night.say_plan(console)
        result = night.run(infer, console, started) if night.has_work else night.conclude(started, has_moved=False)
        folder.write_members(update_members(folder.read_members(), night.manifest, int(time.time())))
        if current := folder.read_current():
            folder.results.keep_newest(cohort.chosen.keep, current)
    return result


class Night:
    """One look at a cohort, and what follows from it.

    Args:
        cohort: The cohort file.
        options: Choices of `resegment`.
        folder: Where its results are.
    """

    manifest: pa.Table
    """The cohort's scans that the source has now."""

    def __init__(self, cohort: Cohort, options: ResegmentOptions, folder: CohortFolder) -> None:
        self.cohort, self.options, self.folder = cohort, options, folder
        bundle: Bundle = load_bundle(cohort.chosen.model)
        self.bundle = replace(bundle, doubt=lay_over(bundle.doubt, cohort.review, bundle.labels))
        general = {"address": options.address, "temp_dir": options.temp_dir, "json": options.json}
        every_night = cohort.make_options(cohort.chosen.out, retry_failed=True, **general)
        self.infer_options: InferOptions = hide_source(every_night)
        self.drawn: Labels = self.bundle.labels
        self.current: Current | None = None
        self.gone = pa.array([], pa.string())
        self.counts: dict[str, int] = {}
        self.outdated = Outdated()

    def look(self) -> None:
        """Find the cohort's scans and tell them from those that the current result has.

        Raises:
            UsageError: No scan is left, or more are gone than the cohort file allows.
        """
        chosen, options = self.cohort.chosen, self.infer_options
        found = find_scans(options.source, options)
        self.drawn = match_labels_if_known(options.source, options.labels, self.bundle.labels, found)
        found = order_channels(found, self.bundle.channel_names)
        self.manifest = select_scans(
            found, globs=chosen.scans or (), patients=chosen.patients or (), where=self.cohort.where
        )
        if not self.manifest.num_rows:
            raise UsageError(
                f"{self.options.cohort}: {show_name(options.source)} has {found.num_rows} scans, and `scans`, "
                "`patients` and `where` leave none of them."
            )
        check_channels(self.manifest, self.bundle.num_channels)
        self._check_vanished()
        self.current = self.folder.read_current()
        before = read_record(Place(self._path(self.current))) if self.current else {}
        resolved = resolve_options(options, self.bundle, self.drawn, before)
        self.infer_options = replace(options, precision=resolved.precision)
        self.options_id = identify_inference(resolved, self.bundle, "infer").options_id
        self._compare_with_current()
        if self.current and not self.is_new_model:
            with suppress(DamagedTablesError):
                # Damaged parts are found, and done again, by the next run that does something.
                rule = rule_of(self.bundle.doubt)
                self.outdated = find_outdated(Place(self._path(self.current)), self.manifest, rule)

    @property
    def is_new_model(self) -> bool:
        """Whether nothing of the current result can be kept."""
        if self.current is None:
            return False
        return (self.current.model_id, self.current.options_id) != (self.bundle.model_id, self.options_id)

    @property
    def has_work(self) -> bool:
        """Whether anything is to be done."""
        return bool(self.outdated) or any(count for name, count in self.counts.items() if name != "unchanged")

    @property
    def retries_only(self) -> bool:
        """Whether nothing is to be done but scans that failed before."""
        others = ("new", "changed", "vanished")
        return not (self.outdated or self.is_new_model or any(self.counts[name] for name in others))

    def run(self, infer: Callable[..., InferResult], console: Console, started: float) -> ResegmentResult:
        """Make the new result beside the current one, compare both, and move current.json."""
        result, run = self.folder.results.begin(self.bundle.model_id, self.options_id, self.current)
        place = Place(self.folder.locate(result))
        take_out(place, self.gone)
        self._amend(place, console)
        options = replace(self.infer_options, out=place.location)
        inference = infer(
            options, self.bundle, self.drawn, self.manifest, self.manifest, command="infer", started=started
        )
        if inference.exit_code == EXIT_FAILED:
            console.say("no scan is ok; the result before stays current")
            return self.conclude(started, has_moved=False, inference=inference)
        if self.retries_only and inference.scans_failed >= self.counts["failed_before"]:
            self.folder.results.delete(result)
            console.say("the scans that failed before failed again; the result before stays current")
            return self.conclude(started, has_moved=False, inference=inference)
        # An earlier start of this night may have segmented scans that are gone by now.
        take_out(place, self._find_gone(read_finished(place)))
        changed = self._compare(result, run)
        drift = self._watch_drift(place, run, console)
        followed = publish_trajectories(place, self.folder.place, run).count()
        self.folder.move_current(Current(result, run, self.bundle.model_id, self.options_id), self.current)
        ended = self.conclude(started, has_moved=True, inference=inference, result=result, changed=changed, drift=drift)
        ended = replace(ended, follow_up=followed)
        self.folder.write_run(run, asdict(ended))
        console.say(f"{result} is current now" + ("" if changed is None else f"; {changed} scans changed"))
        for line in describe_trajectories(followed, self.folder.locate(FOLDER)):
            console.say(line)
        return ended

    def conclude(
        self,
        started: float,
        *,
        has_moved: bool,
        inference: InferResult | None = None,
        result: str | None = None,
        changed: int | None = None,
        drift: dict[str, Any] | None = None,
    ) -> ResegmentResult:
        """What the run came to."""
        failed = self.counts["failed_before"] if inference is None else inference.scans_failed
        return ResegmentResult(
            cohort=self.cohort.chosen.name,
            result=result or (self.current.result if self.current else None),
            scans=self.counts,
            is_new_model=self.is_new_model,
            amended=asdict(self.outdated),
            scans_ok=self.manifest.num_rows - failed if inference is None else inference.scans_ok,
            scans_failed=failed,
            changed_scans=changed,
            drift=drift,
            has_moved=has_moved,
            scans_now=0 if inference is None else inference.scans_now,
            seconds_total=time.time() - started,
            seconds_startup=None if inference is None else inference.seconds_startup,
            exit_code=self._choose_exit_code(inference, drift),
        )

    def say_plan(self, console: Console) -> None:
        """What is to be done, in a line."""
        counts = ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in self.counts.items())
        model = "; model or choices are others than before, so all are done again" if self.is_new_model else ""
        old = f"; {describe_amended(**vars(self.outdated))}" if self.outdated else ""
        todo = "" if self.has_work else "; nothing to do"
        console.say(f"cohort {self.cohort.chosen.name}: {counts}{model}{old}{todo}", **self.counts)

    def _check_vanished(self) -> None:
        """Refuse to take an unmounted folder for a hundred patients who left."""
        members = self.folder.read_members()
        vanished = find_vanished(members, self.manifest)
        there = members.num_rows - members["vanished_at"].drop_null().length()
        allowed = self.cohort.chosen.mass_vanish_percent / 100 * there
        if len(vanished) > allowed and not self.options.allow_mass_vanish:
            raise UsageError(
                f"{len(vanished)} of {there} scans of cohort {self.cohort.chosen.name} are not in "
                f"{show_name(self.infer_options.source)} any more, such as {str(vanished[0])!r}; is all of it mounted? "
                "--allow-mass-vanish goes on without them."
            )

    def _compare_with_current(self) -> None:
        finished = SCANS_SCHEMA.empty_table().select(["scan_id", "fingerprint", "status", "error_type"])
        if self.current and not self.is_new_model:
            finished = read_finished(Place(self._path(self.current)))
        remaining = find_remaining(self.manifest, finished, retry_failed=True)
        failed = finished.filter(pc.equal(finished["status"], STATUS_FAILED))
        known = pc.is_in(remaining.plan["scan_id"], value_set=finished["scan_id"].combine_chunks())
        again = pc.index_in(remaining.plan["scan_id"], value_set=failed["scan_id"].combine_chunks())
        same = pc.fill_null(pc.equal(pc.take(failed["fingerprint"], again), remaining.plan["fingerprint"]), False)
        num_again = int(pc.sum(same).as_py() or 0)
        num_known = int(pc.sum(known).as_py() or 0)
        self.gone = self._find_gone(finished)
        self.counts = {
            "new": remaining.plan.num_rows - num_known,
            "changed": num_known - num_again,
            "failed_before": num_again,
            "unchanged": self.manifest.num_rows - remaining.plan.num_rows,
            "vanished": len(self.gone),
        }

    def _amend(self, place: Place, console: Console) -> None:
        """Bring what was begun from links, or before the cohort file changed, up to the manifest and the rule."""
        rule = rule_of(self.bundle.doubt)
        try:
            if not find_outdated(place, self.manifest, rule):
                return
        except DamagedTablesError:
            pass
        if removed := prepare_tables(place):
            console.say(describe_damage(removed))
        bring_up_tables(place)
        amend_tables(place, self.manifest, rule)

    def _compare(self, result: str, run: str) -> int | None:
        """How many scans changed against the current result; None where there is none, or no scan in common."""
        if self.current is None:
            return None
        before, after = self._path(self.current), self.folder.locate(result)
        ids = [read_rows(Place(place), "scans", ["scan_id"])["scan_id"] for place in (before, after)]
        if not pc.any(pc.is_in(ids[0], value_set=ids[1].combine_chunks())).as_py():
            return None
        chosen, out = self.cohort.chosen, f"changes/{run}"
        # What an earlier start of this night compared may not be what is there now.
        self.folder.place.delete(out)
        compared = compare(
            CompareOptions(
                before=before,
                after=after,
                out=self.folder.locate(out),
                change_percent=chosen.change_percent,
                change_dice=chosen.change_dice,
                json=self.options.json,
            ),
            self.manifest,
        )
        return int(compared.summary["changed_scans"])

    def _watch_drift(self, after: Place, run: str, console: Console) -> dict[str, Any] | None:
        """Say and keep how the scans of this run differ from others; None where there are none."""
        before = None if self.current is None else Place(self._path(self.current))
        options = (self.infer_options, self.bundle, self.drawn)
        night = NightTables(before, after, self.bundle, self.is_new_model, is_as_bundled(*options))
        found = watch_drift(night, self.cohort.chosen.drift_rate)
        if found is None:
            return None
        where = self.folder.locate(write_drift(self.folder.place, run, found))
        for line in describe_drift(found.summary, found.summary["notes"], where):
            console.say(line)
        return found.summary

    def _choose_exit_code(self, inference: InferResult | None, drift: dict[str, Any] | None) -> int:
        code = EXIT_DONE if inference is None else inference.exit_code
        has_drifted = drift is not None and drift["is_drift"]
        return EXIT_DRIFT if code == EXIT_DONE and has_drifted and self.options.fail_on_drift else code

    def _find_gone(self, finished: pa.Table) -> pa.ChunkedArray:
        is_gone = pc.invert(pc.is_in(finished["scan_id"], value_set=self.manifest["scan_id"].combine_chunks()))
        return finished["scan_id"].filter(is_gone)

    def _path(self, current: Current) -> str:
        return self.folder.locate(current.result)
