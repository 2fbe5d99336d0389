"""Reads headers for `survey`: `python -m raysegment.archive.dicom.survey_child MEMORY_MB TIMEOUT_SECONDS`.

The first line on standard input says what is wanted and holds the key of hashes; each further one names files, or a
zip. Answers go to what was standard output, a line of JSON each. Identifiers and texts of headers never leave here.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import date
from fnmatch import translate
from typing import Any, BinaryIO

import numpy as np

from raysegment.archive.children import limit_memory
from raysegment.archive.dicom.elements import is_dicom
from raysegment.archive.dicom.header import Instance, parse_instance
from raysegment.archive.dicom.survey import CANDIDATES, DIRECTORY, SharedHeader
from raysegment.archive.filesystem import describe, encode_name, is_uri, open_file, open_zip, try_again
from raysegment.archive.names import show_name
from raysegment.archive.pseudonyms import Pseudonyms
from raysegment.archive.walk import UNTOLD, kind_of
from raysegment.errors import AccessError, DecoderMemoryError, EmptyFileError, ScanError, UnreadableFileError

CONCURRENT_READS = 16
BUFFER_BYTES = 16 * 1024
MAGIC_END = 132
GRACE_SECONDS = 10
LONGEST_SHIFT_DAYS = 36_525
FIRST_YEAR, LAST_YEAR = "1900", "2199"
"""Days of other years stand for none."""

MAX_REFERENCED_INSTANCES = 20


@dataclass(frozen=True)
class _Survey:
    """What is wanted of files."""

    source: str
    pseudonyms: Pseudonyms
    channels: dict[str, list[re.Pattern[str]]]
    modalities: tuple[str, ...]
    keep_patient_ids: bool
    keep_dates: bool


def main() -> None:
    """Serve requests until standard input closes."""
    memory_mb, timeout_seconds = int(sys.argv[1]), float(sys.argv[2])
    answers = os.dup(1)
    os.dup2(2, 1)
    limit_memory(memory_mb)
    survey = _parse_introduction(json.loads(sys.stdin.buffer.readline()))
    _send(answers, {})
    for line in sys.stdin.buffer:
        request = json.loads(line)
        found = _survey_files(survey, request["paths"]) if "paths" in request else [_list_zip(survey, request["zip"])]
        for answer in found:
            _send(answers, answer)
            # Should the parent be gone, a file that takes for ever ends with this process.
            signal.setitimer(signal.ITIMER_REAL, timeout_seconds + GRACE_SECONDS)
        signal.setitimer(signal.ITIMER_REAL, 0)


def survey_file(survey: _Survey, path: str) -> dict[str, Any] | None:
    """What one file declares, with hashes instead of identifiers; None where it is no DICOM and nobody claims so."""
    is_untold = kind_of(path.rpartition("/")[2]) == UNTOLD

    def look(stream: BinaryIO) -> dict[str, Any] | None:
        head = stream.read(MAGIC_END)
        if is_untold and not is_dicom(head):
            return None
        if not head:
            raise EmptyFileError(f"{show_name(path)} has no bytes.")
        stream.seek(0)
        return describe_instance(survey, parse_instance(stream, path), path)

    try:
        return try_again(survey.source, path, look, BUFFER_BYTES)
    except ScanError as error:
        return _problem(error)
    except MemoryError:
        return _problem(DecoderMemoryError(f"{show_name(path)}: its header needs more memory than it may take."))
    except Exception as error:
        return _problem(UnreadableFileError(f"{show_name(path)}: its header cannot be read ({type(error).__name__})."))


def describe_instance(survey: _Survey, instance: Instance, path: str) -> dict[str, Any]:
    """An instance as it is told to the parent.

    Args:
        survey: What is wanted.
        instance: What its header declares; what should name it, its series or its study may be missing, and is then
            something that no other file has.
        path: Of its file.
    """
    hashed = survey.pseudonyms.hash
    instance_text = instance.sop or path
    series_text = instance.series or instance_text
    study = hashed("study", instance.study or series_text)
    patient = hashed("patient", instance.patient) if instance.patient else study
    header = SharedHeader(
        kind=instance.kind,
        patient=instance.patient if survey.keep_patient_ids and instance.patient else patient,
        study=study,
        series=hashed("series", series_text),
        frame=instance.frame_of_reference and hashed("frame", instance.frame_of_reference),
        referenced=tuple(sorted({hashed("series", series) for series in instance.referenced_series})),
        referenced_instances=() if instance.referenced_series else _some_instances(survey, instance),
        is_own=instance.is_own,
        is_wanted=not survey.modalities or instance.modality in survey.modalities,
        channels=tuple(name for name, globs in survey.channels.items() if _fits(instance.description, globs)),
        day=_find_day(survey, instance.date, patient),
        rows=instance.rows,
        columns=instance.columns,
        frames=instance.frames,
        colours=instance.channels,
        dtype=instance.dtype.str,
        pixel_spacing=instance.pixel_spacing,
        thickness=instance.thickness,
        orientations=_shorten(instance),
        was_lossy=instance.was_lossy,
    )
    is_placed = instance.kind == "image" and instance.positions is not None
    places = instance.positions.ravel().tolist() if is_placed and instance.positions is not None else []
    return {"header": json.dumps(header), "instance": hashed("instance", instance_text), "places": places}


def _parse_introduction(given: dict[str, Any]) -> _Survey:
    return _Survey(
        source=given["source"],
        pseudonyms=Pseudonyms(bytes.fromhex(given["key"])),
        channels={
            name: [re.compile(translate(glob), re.IGNORECASE) for glob in globs]
            for name, globs in given["channels"].items()
        },
        modalities=tuple(given["modalities"]),
        keep_patient_ids=given["keep_patient_ids"],
        keep_dates=given["keep_dates"],
    )


def _survey_files(survey: _Survey, paths: list[str]) -> Iterator[dict[str, Any] | None]:
    """Answers in the order of paths; those of a bucket are waited for side by side."""
    if not is_uri(survey.source):
        yield from (survey_file(survey, path) for path in paths)
        return
    with ThreadPoolExecutor(CONCURRENT_READS) as pool:
        yield from pool.map(lambda path: survey_file(survey, path), paths)


def _list_zip(survey: _Survey, path: str) -> dict[str, Any]:
    holds_dicom = True
    try:
        found = open_zip(survey.source, path)
        members = [(encode_name(member.name), member.size) for member in found.list_members(_may_be_dicom)]
        fault = found.describe_faults(_may_be_dicom)
        if not found.names_any(_claims_dicom):
            holds_dicom = any(_begins_so(survey, f"{path}/{name}") for name, _ in members)
    except ScanError as error:
        members, fault = [], error
    except OSError as error:
        members, fault = [], AccessError(f"{show_name(path)} cannot be read: {describe(error)}.")
    except MemoryError:
        members, fault = [], DecoderMemoryError(f"{show_name(path)}: the list of its files needs too much memory.")
    problem = None if fault is None else f"{type(fault).__name__}: {fault}"
    return {"members": members if holds_dicom else [], "problem": problem, "holds_dicom": holds_dicom}


def _may_be_dicom(member: str) -> bool:
    return kind_of(member.rpartition("/")[2]) in CANDIDATES


def _claims_dicom(member: str) -> bool:
    name = member.rpartition("/")[2]
    return name.upper() == DIRECTORY or (_may_be_dicom(member) and kind_of(name) != UNTOLD)


def _begins_so(survey: _Survey, path: str) -> bool:
    try:
        with open_file(survey.source, path, BUFFER_BYTES) as stream:
            return is_dicom(stream.read(MAGIC_END))
    except (OSError, ScanError):
        return False


def _problem(error: ScanError) -> dict[str, Any]:
    return {"problem": f"{type(error).__name__}: {error}"}


def _fits(description: str, globs: list[re.Pattern[str]]) -> bool:
    return any(glob.fullmatch(description) for glob in globs)


def _find_day(survey: _Survey, text: str, patient: str) -> int | None:
    """The day's number in the calendar; moved by one number for all days of a patient, unless dates are kept."""
    if not FIRST_YEAR <= text[:4] <= LAST_YEAR:
        return None
    day = date(int(text[:4]), int(text[4:6]), int(text[6:8])).toordinal()
    shift = 0 if survey.keep_dates else int(survey.pseudonyms.hash("days", patient, 12), 16) % LONGEST_SHIFT_DAYS
    return day - shift


def _some_instances(survey: _Survey, instance: Instance) -> tuple[str, ...]:
    """Each is of the one series; one of them may be missing."""
    texts = instance.referenced_instances[:MAX_REFERENCED_INSTANCES]
    return tuple(survey.pseudonyms.hash("instance", text) for text in texts)


def _shorten(instance: Instance) -> tuple[float, ...]:
    """Directions of all frames; once where they are the same."""
    if instance.orientations is None or instance.kind != "image":
        return ()
    given = instance.orientations
    return tuple((given[:1] if np.all(given == given[0]) else given).ravel().tolist())


def _send(answers: int, answer: dict[str, Any] | None) -> None:
    data = memoryview(json.dumps(answer).encode() + b"\n")
    while data:
        data = data[os.write(answers, data) :]


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError, KeyboardInterrupt):
        main()
