"""What a run says at its end: done, failed by type, speed, and where the time went."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from raysegment.archive.names import show_name
from raysegment.errors import EXIT_DONE, EXIT_FAILED, EXIT_SOME_SCANS_FAILED
from raysegment.store.damage import Damage
from raysegment.store.parts import MAX_FAILURES_SHOWN, Failure
from raysegment.store.schema import STATUS_OK


def choose_exit_code(num_ok: int, num_failed: int) -> int:
    """How a run ends: done, done with failed scans, or failed because no scan is ok."""
    if not num_failed:
        return EXIT_DONE
    return EXIT_SOME_SCANS_FAILED if num_ok else EXIT_FAILED


def count_finished(manifest: pa.Table, finished: pa.Table) -> tuple[int, int]:
    """How many scans of a manifest are in the tables: ok, and failed."""
    wanted = pc.is_in(finished["scan_id"], value_set=manifest["scan_id"].combine_chunks())
    status = finished["status"].filter(wanted)
    num_ok = int(pc.sum(pc.equal(status, STATUS_OK)).as_py() or 0)
    return num_ok, len(status) - num_ok


def describe_nothing_to_do(scans_total: int, scans_failed: int, out: str) -> str:
    """One line for a run that is finished already."""
    failed = f", {scans_failed} of them failed; --retry-failed tries these again" if scans_failed else ""
    return f"nothing to do: all {scans_total} scans are in {out}{failed}."


def describe_damage(removed: Sequence[Damage]) -> str:
    """One line for parts of the tables that were lost."""
    parts = "1 part of the tables is" if len(removed) == 1 else f"{len(removed)} parts of the tables are"
    return f"{parts} lost or damaged; the scans are done again. The first: {removed[0]}"


def describe_amended(dates: int, patients: int, reviews: int) -> str:
    """One line for finished rows that get another day, patient or judgement, without being segmented again."""
    parts = [f"{dates} scans with another date"] * bool(dates)
    parts += [f"{patients} scans of another patient"] * bool(patients)
    parts += [f"{reviews} masks judged otherwise for review"] * bool(reviews)
    return f"brought up to date, not segmented again: {', '.join(parts)}"


def describe_renamed(scan_ids: Sequence[str]) -> str:
    """One line for rows that go because their scans have other names now."""
    shown = ", ".join(map(show_name, scan_ids[:3])) + (" …" if len(scan_ids) > 3 else "")
    return f"{len(scan_ids)} scans have other names now; the rows of the old ones are taken out: {shown}"


def describe_run(numbers: Mapping[str, Any], scans_now: int) -> list[str]:
    """The closing table, a line each.

    Args:
        numbers: `scans_total, scans_ok, scans_failed, slices, seconds_total, seconds_startup, slices_per_second`, and
            `seconds` by stage.
        scans_now: Scans done by this start of the command.
    """
    total = float(numbers["seconds_total"])
    none_ok = "; the run failed: no scan is ok" if numbers["scans_failed"] and not numbers["scans_ok"] else ""
    lines = [
        f"{'scans':<10}{numbers['scans_ok']} ok, {numbers['scans_failed']} failed of {numbers['scans_total']}; "
        f"{scans_now} of them now{none_ok}",
        f"{'time':<10}{total:.1f} s in all" + _add(", {:.1f} s to the first prediction", numbers["seconds_startup"]),
        f"{'speed':<10}{numbers['slices']} slices, {numbers['slices'] / total:.1f} slices/s and "
        f"{scans_now / total:.2f} scans/s in all"
        + _add(", {:.1f} slices/s in steady state", numbers["slices_per_second"]),
    ]
    if spent := numbers["seconds"]:
        stages = ", ".join(f"{stage} {seconds:.1f} s" for stage, seconds in spent.items())
        lines.append(f"{'workers':<10}{stages}")
    return lines


def describe_review(numbers: Mapping[str, Any], out: str) -> list[str]:
    """One line for scans that a person should look at, and where the list of them stands; none where no scan is ok.

    Args:
        numbers: `scans_ok, scans_to_review, scans_review_unknown`.
        out: The output folder.
    """
    asked, unknown, ok = numbers["scans_to_review"], numbers["scans_review_unknown"], numbers["scans_ok"]
    if not ok:
        return []
    notes = f"; of {unknown} more nothing is known that would tell" if unknown else ""
    where = f": {out}/metrics, needs_review = true" if asked else ""
    return [f"{'review':<10}{asked} of {ok} scans need{'s' * (asked == 1)} it{where}{notes}"]


def describe_failures(failed_by_type: Mapping[str, int], failures: Sequence[Failure], out: str) -> list[str]:
    """Failed scans by type, then the first of them, and where the rest stands."""
    if not failed_by_type:
        return []
    counts = ", ".join(f"{error_type} {count}" for error_type, count in sorted(failed_by_type.items()))
    lines = [f"{'failed':<10}{counts}"]
    lines += [f"  {show_name(item.scan_id)}: {item.error_type}: {show_name(item.message)}" for item in failures]
    rest = sum(failed_by_type.values()) - len(failures)
    where = f"{out}/scans, status = 'failed'"
    return [*lines, f"  and {rest} more in {where}" if rest > 0 else f"  all of them are in {where}"]


def describe_left_out(errors: Mapping[str, tuple[str, str]], where: Path) -> list[str]:
    """Scans that a training leaves out by type of error, then the first of them, and where the rest stands.

    Args:
        errors: (type, message) by scan_id.
        where: The run's manifest.
    """
    by_type = Counter(error_type for error_type, _ in errors.values())
    counts = ", ".join(f"{count} {name}" for name, count in sorted(by_type.items()))
    lines = [f"{len(errors)} scans left out: {counts}"]
    shown = list(errors.items())[:MAX_FAILURES_SHOWN]
    lines += [f"  {scan_id!r}: {error_type}: {message}" for scan_id, (error_type, message) in shown]
    rest = len(errors) - len(shown)
    return [*lines, f"  … and {rest} more in {where}"] if rest else lines


def describe_summary(summary: Mapping[str, Any], out: str) -> list[str]:
    """An evaluation in a few lines.

    Args:
        summary: What summary.json holds.
        out: The output folder.
    """
    labels = dict(summary.get("labels") or {})
    known = summary["training_patients_included"]
    split = [f"{summary['split']} split, by {summary['split_origin']}"] if summary.get("split") else []
    warning = [f"warning: {known} of these patients were trained on; the numbers flatter the model"] if known else []
    return [
        *warning,
        *split,
        f"{_show_all_dice(summary, len(labels))}, at threshold {_show_threshold(summary['threshold'])}; "
        f"{summary['scans']} scans of {summary['patients']} patients, whom the interval resamples",
        f"IoU mean {_show(summary['iou_mean'])}, lesion-slice Dice {_show(summary['lesion_slice_dice_mean'])}; "
        f"over all voxels precision {_show(summary['precision'])}, recall {_show(summary['recall'])}",
        *_describe_distances(summary),
        *(_describe_label(name, numbers) for name, numbers in labels.items() if len(labels) > 1),
        f"summary in {out}/summary.json, each scan in {out}/metrics",
    ]


def _show_all_dice(summary: Mapping[str, Any], num_labels: int) -> str:
    """Dice of the whole: of several labels these are means over labels, not over scans."""
    if num_labels < 2:
        return f"Dice per scan: {_show_dice(summary)}"
    low, high = summary["dice_ci95"]
    return (
        f"Dice: mean of the labels' means {_show(summary['dice_mean'])} (95 % interval {_show(low)} to {_show(high)}), "
        f"of their medians {_show(summary['dice_median'])}"
    )


def _show_dice(numbers: Mapping[str, Any]) -> str:
    low, high = numbers["dice_ci95"]
    return (
        f"mean {_show(numbers['dice_mean'])} (95 % interval {_show(low)} to {_show(high)}), median "
        f"{_show(numbers['dice_median'])}"
    )


def _show_threshold(threshold: float | Mapping[str, float] | None) -> str:
    if threshold is None:
        return "–"
    if isinstance(threshold, Mapping):
        return ", ".join(f"{value:.2f} for {name}" for name, value in threshold.items())
    return f"{threshold:.2f}"


def _describe_distances(numbers: Mapping[str, Any]) -> list[str]:
    """Distances, where a scan has one or should have one, and lesions, where these are counted in all scans."""
    mean, undefined = numbers.get("hd95_mm_mean", math.nan), numbers.get("hd95_undefined") or 0
    lines = []
    if not math.isnan(mean):
        lines.append(
            f"HD95 mean {mean:.2f} mm, median {numbers['hd95_mm_median']:.2f} mm{_show_scans(numbers)}, {undefined} "
            f"undefined; mean surface distance {numbers['mean_surface_distance_mm_mean']:.2f} mm, surface Dice at "
            f"{numbers['surface_tolerance_mm']:g} mm {_show(numbers['surface_dice_mean'])}"
        )
    elif undefined:
        lines.append(f"HD95 of no scan, {undefined} undefined: only one of mask and reference is empty")
    found, drawn, false = (numbers.get(f"lesions_{name}", math.nan) for name in ("found", "reference", "false"))
    if not any(map(math.isnan, (found, drawn, false))):
        lines.append(f"{found} of {drawn} lesions found, {false} false")
    return lines


def _show_scans(numbers: Mapping[str, Any]) -> str:
    """Of how many scans distances are a mean; several labels have each their own."""
    if "hd95_scans" not in numbers:
        return ""
    each = " of a label" if len(numbers.get("labels") or {}) > 1 else ""
    return f" over {numbers['hd95_scans']} scans{each}"


def _describe_label(name: str, numbers: Mapping[str, Any]) -> str:
    mean, undefined = numbers.get("hd95_mm_mean", math.nan), numbers.get("hd95_undefined") or 0
    distance = f"; HD95 of no scan, {undefined} undefined" if undefined else ""
    if not math.isnan(mean):
        distance = f"; HD95 mean {mean:.2f} mm{_show_scans(numbers)}, {undefined} undefined"
    return f"  {show_name(name)}: Dice {_show_dice(numbers)}{distance}"


def _show(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.4f}"


def _add(text: str, value: float | None) -> str:
    return "" if value is None else text.format(value)
