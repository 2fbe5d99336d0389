"""The headers of many DICOM files, read in child processes side by side, without anybody's name in what comes back.

Patients, studies, series, frames of reference and instances come as keyed hashes, made in the children; descriptions
of series are compared with the globs of `--channel` there, and only a channel's name comes back. What the files of a
series share is held once. A file on which a child dies or hangs is one row with an error, its neighbours go on.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import chain
from queue import SimpleQueue
from typing import Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from raysegment.archive.children import describe_death, end_child, start_child
from raysegment.archive.names import show_name
from raysegment.archive.pseudonyms import Pseudonyms
from raysegment.archive.walk import UNTOLD
from raysegment.errors import DecoderCrashedError, DecoderTimeoutError, ScanError

CHILD_MODULE = "raysegment.archive.dicom.survey_child"
CANDIDATES = frozenset({UNTOLD, ".dcm", ".dicom", ".ima"})
"""Kinds of names that DICOM files have."""

DIRECTORY = "DICOMDIR"
"""The name of a medium's list of its DICOM files."""

FILES_AT_ONCE = 200
MAX_CHILDREN = 16
MEMORY_MB = 1024
TIMEOUT_SECONDS = 60.0
START_TIMEOUT_SECONDS = 60.0
MAX_LINE_BYTES = 64 * 2**20
PIECE_BYTES = 2**18

Piece = TypeVar("Piece")
Result = TypeVar("Result")


@dataclass(frozen=True, kw_only=True)
class SurveySettings:
    """What children are told besides the files.

    Attributes:
        channels: Globs over SeriesDescription by the name of their channel, in order.
        modalities: Of scans that are wanted; empty for all.
        keep_patient_ids: Whether patients keep the names that files give them.
        keep_dates: Whether days are those of the calendar; else a patient's days are all moved by the same number.
    """

    channels: Mapping[str, Sequence[str]] = field(default_factory=dict)
    modalities: tuple[str, ...] = ()
    keep_patient_ids: bool = False
    keep_dates: bool = False


class SharedHeader(NamedTuple):
    """What the files of a series have in common; hashes instead of identifiers.

    Attributes:
        kind: As `Instance` of `header` has it.
        patient: The study's hash where the files name none.
        study: StudyInstanceUID.
        series: SeriesInstanceUID.
        frame: Frame of reference, empty where it is missing.
        referenced: Series that a segmentation was drawn on.
        referenced_instances: Some of the images that it was drawn on, where it names no series.
        is_own: Whether raysegment wrote the segmentation.
        is_wanted: Whether its modality is one of those that are wanted.
        channels: Those whose globs fit its description.
        day: On which it was made, counted from any day; None where nobody says.
        rows: Height of a frame.
        columns: Width of a frame.
        frames: How many there are.
        colours: 1, or 3.
        dtype: Of values once they are read.
        pixel_spacing: Of rows and columns in millimetres, None where it is missing.
        thickness: Of slices in millimetres, None where it is missing.
        orientations: Six numbers that hold for all frames, or for each; empty where they are missing.
        was_lossy: Whether pixels were compressed with losses.
    """

    kind: str
    patient: str
    study: str
    series: str
    frame: str
    referenced: tuple[str, ...]
    referenced_instances: tuple[str, ...]
    is_own: bool
    is_wanted: bool
    channels: tuple[str, ...]
    day: int | None
    rows: int
    columns: int
    frames: int
    colours: int
    dtype: str
    pixel_spacing: tuple[float, float] | None
    thickness: float | None
    orientations: tuple[float, ...]
    was_lossy: bool


@dataclass(slots=True)
class Surveyed:
    """What one file declares.

    Attributes:
        path: Below the source.
        header: None where it cannot be read.
        instance: Keyed hash of its SOPInstanceUID.
        places: Of the first pixel of each frame, three numbers each; empty where they are missing.
        problem: `ErrorType: message` where it cannot be read.
    """

    path: str
    header: SharedHeader | None = None
    instance: str = ""
    places: tuple[float, ...] = ()
    problem: str | None = None

    @property
    def positions(self) -> npt.NDArray[np.float64] | None:
        """(frames, 3); None where they are missing."""
        return np.array(self.places).reshape(-1, 3) if self.places else None

    @property
    def orientations(self) -> npt.NDArray[np.float64] | None:
        """(frames, 6); None where they are missing."""
        if self.header is None or not self.header.orientations:
            return None
        given = np.array(self.header.orientations).reshape(-1, 6)
        return np.repeat(given, self.header.frames, axis=0) if len(given) == 1 else given


@dataclass(frozen=True)
class ZipContents:
    """What is of use in a zip.

    Attributes:
        members: Path in the zip and unpacked size of each file that can be read.
        problem: `ErrorType: message` where some or all of it cannot be.
        holds_dicom: Whether a file in it is DICOM or is called so, or nobody can tell.
    """

    members: tuple[tuple[str, int], ...] = ()
    problem: str | None = None
    holds_dicom: bool = True


def survey_files(source: str, paths: Sequence[str], settings: SurveySettings, pseudonyms: Pseudonyms) -> list[Surveyed]:
    """Read the headers of files.

    Args:
        source: Folder or bucket.
        paths: Below it; files whose names tell no format are left out of the answer where they are no DICOM.
        settings: What of them is wanted.
        pseudonyms: The key of all hashes.

    Returns:
        A row for each file, in the order of paths, whatever number of processes read them.
    """
    batches = [paths[start : start + FILES_AT_ONCE] for start in range(0, len(paths), FILES_AT_ONCE)]
    # Hundreds of files have the same text: it is understood, and held, once.
    shared: dict[str, SharedHeader] = {}

    def survey(child: _Child, batch: Sequence[str]) -> list[Surveyed]:
        return [_row(path, answer, shared) for path, answer in child.survey(batch) if answer is not None]

    found = _ask_children(_introduce(source, settings, pseudonyms), survey, batches)
    return list(chain.from_iterable(found))


def list_zips(source: str, paths: Sequence[str]) -> list[ZipContents]:
    """The files in zips that may be DICOM, by their names.

    Args:
        source: Folder or bucket.
        paths: Of the zips.

    Returns:
        As many as there are paths.
    """
    introduction = _introduce(source, SurveySettings(), Pseudonyms(b""))
    return _ask_children(introduction, _Child.list_zip, paths)


def _introduce(source: str, settings: SurveySettings, pseudonyms: Pseudonyms) -> dict[str, Any]:
    return {
        "source": source,
        "key": pseudonyms.key.hex(),
        "channels": {name: list(globs) for name, globs in settings.channels.items()},
        "modalities": list(settings.modalities),
        "keep_patient_ids": settings.keep_patient_ids,
        "keep_dates": settings.keep_dates,
    }


def _row(path: str, answer: dict[str, Any], shared: dict[str, SharedHeader]) -> Surveyed:
    if (problem := answer.get("problem")) is not None:
        return Surveyed(path, problem=problem)
    text = answer["header"]
    header = shared.get(text)
    if header is None:
        values = [tuple(value) if isinstance(value, list) else value for value in json.loads(text)]
        header = shared[text] = SharedHeader._make(values)
    return Surveyed(path, header, answer["instance"], tuple(answer["places"]))


def _ask_children(
    introduction: dict[str, Any], act: Callable[[_Child, Piece], Result], pieces: Sequence[Piece]
) -> list[Result]:
    """What children make of pieces of work, each led by a thread; in the order of the pieces."""
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    num_children = min(len(pieces), processors, MAX_CHILDREN)
    free: SimpleQueue[_Child] = SimpleQueue()
    children = [_Child(introduction) for _ in range(num_children)]
    for child in children:
        free.put(child)

    def lead(piece: Piece) -> Result:
        child = free.get()
        try:
            return act(child, piece)
        finally:
            free.put(child)

    try:
        with ThreadPoolExecutor(max(1, num_children)) as pool:
            return list(pool.map(lead, pieces))
    finally:
        for child in children:
            child.close()


class _Child:
    """One child process, started when it is needed and again when it has died."""

    def __init__(self, introduction: dict[str, Any]) -> None:
        self._introduction = introduction
        self._process: subprocess.Popen[bytes] | None = None
        self._received = bytearray()

    def survey(self, paths: Sequence[str]) -> list[tuple[str, dict[str, Any] | None]]:
        """What the child says of each file: None where it is no DICOM and nobody claims so."""
        answers: list[tuple[str, dict[str, Any] | None]] = []
        while left := paths[len(answers) :]:
            answers += self._survey_until_death(left)
        return answers

    def list_zip(self, path: str) -> ZipContents:
        """What the child says of a zip."""
        try:
            self._send({"zip": path})
            answer = self._receive()
        except ScanError as error:
            self.close()
            return ZipContents(problem=describe_error(error, path))
        members = tuple((str(name), int(size)) for name, size in answer["members"])
        return ZipContents(members, answer["problem"], answer["holds_dicom"])

    def close(self) -> None:
        """End the process."""
        process, self._process = self._process, None
        self._received.clear()
        if process is not None:
            end_child(process)

    def _survey_until_death(self, paths: Sequence[str]) -> list[tuple[str, dict[str, Any] | None]]:
        """Answers up to the file on which the child dies, which is tried once more alone, or hangs."""
        answers: list[tuple[str, dict[str, Any] | None]] = []
        try:
            self._send({"paths": paths})
            for path in paths:
                answers.append((path, self._receive()))
        except ScanError as error:
            self.close()
            culprit = paths[len(answers)]
            if isinstance(error, DecoderCrashedError) and len(paths) > 1:
                return answers + self._survey_until_death([culprit])
            answers.append((culprit, {"problem": describe_error(error, culprit)}))
        return answers

    def _send(self, request: dict[str, Any]) -> None:
        process = self._running()
        assert process.stdin is not None
        try:
            process.stdin.write(json.dumps(request).encode() + b"\n")
            process.stdin.flush()
        except OSError:
            raise DecoderCrashedError(describe_death(process)) from None

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            self._process = start_child(CHILD_MODULE, str(MEMORY_MB), str(TIMEOUT_SECONDS))
            # Through the pipe: arguments and the environment of a process are there for others to read.
            self._send(self._introduction)
            self._receive(START_TIMEOUT_SECONDS)
        return self._process

    def _receive(self, timeout_seconds: float | None = None) -> Any:
        """The next line of the child, understood."""
        process = self._process
        assert process is not None
        assert process.stdout is not None
        seconds = TIMEOUT_SECONDS if timeout_seconds is None else timeout_seconds
        deadline = time.monotonic() + seconds
        poller = select.poll()
        poller.register(process.stdout.fileno(), select.POLLIN)
        while (end := self._received.find(b"\n")) < 0:
            if not poller.poll(max(0.0, deadline - time.monotonic()) * 1000):
                raise DecoderTimeoutError(f"the header is not read within {seconds:g} seconds")
            piece = os.read(process.stdout.fileno(), PIECE_BYTES)
            if not piece or len(self._received) > MAX_LINE_BYTES:
                raise DecoderCrashedError(f"the process that reads the header died ({describe_death(process)})")
            self._received += piece
        line = bytes(self._received[:end])
        del self._received[: end + 1]
        return json.loads(line)


def describe_error(error: ScanError, path: str) -> str:
    """`ErrorType: message` of an error that does not name its file yet."""
    return f"{type(error).__name__}: {show_name(path)}: {error}"
