"""The decoder's child process: `python -m raysegment.archive.decoder_child MEMORY_MB TIMEOUT_SECONDS`.

Reads requests from standard input and answers on what was standard output; see `decoder` for the parent's side.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
from collections.abc import Iterator
from typing import Any, BinaryIO

import numpy as np

from raysegment.archive.children import limit_memory
from raysegment.archive.decoder import LENGTH
from raysegment.archive.formats import readers
from raysegment.archive.read import read_scan
from raysegment.archive.reference import read_reference, read_values
from raysegment.errors import DecoderMemoryError, ScanError, UnreadableFileError
from raysegment.scan import Labels, Pixels, ReadSettings, Scan, ScanEntry

PIECE_BYTES = 16 * 2**20
GRACE_SECONDS = 10
"""The child ends itself this long after the time limit, should the parent be gone."""


def main() -> None:
    """Serve requests until standard input closes."""
    memory_mb, timeout_seconds = int(sys.argv[1]), float(sys.argv[2])
    answers = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)
    readers()
    limit_memory(memory_mb)
    _send(answers, {"ready": True})
    while True:
        head = sys.stdin.buffer.read(LENGTH.size)
        if len(head) < LENGTH.size:
            return
        request = json.loads(sys.stdin.buffer.read(LENGTH.unpack(head)[0]))
        signal.setitimer(signal.ITIMER_REAL, timeout_seconds + GRACE_SECONDS)
        _serve(answers, request, memory_mb)
        signal.setitimer(signal.ITIMER_REAL, 0)


def _serve(answers: BinaryIO, request: dict[str, Any], memory_mb: int) -> None:
    """Read what is asked for and send it, or the error."""
    entry = _entry_of(request["entry"])
    try:
        scan = _read(request, entry, memory_mb * 2**20)
    except ScanError as error:
        _send(answers, {"error_type": type(error).__name__, "message": str(error)})
    except MemoryError:
        message = f"{entry.scan_id!r}: decoding needs more than the {memory_mb} MB it may take."
        _send(answers, {"error_type": DecoderMemoryError.__name__, "message": message})
    except Exception as error:
        message = f"{entry.scan_id!r} cannot be decoded ({type(error).__name__})."
        _send(answers, {"error_type": UnreadableFileError.__name__, "message": message})
    else:
        pixels = scan.pixels
        affine = None if scan.affine is None else scan.affine.tolist()
        _send(
            answers,
            {"shape": pixels.shape, "dtype": pixels.dtype.str, "spacing_mm": scan.spacing_mm, "affine": affine},
        )
        for piece in _in_pieces(pixels):
            _send_all(answers, piece)


def _read(request: dict[str, Any], entry: ScanEntry, max_bytes: int) -> Scan:
    settings = _settings_of(request["settings"])
    if request["what"] == "scan":
        return read_scan(entry, settings, max_bytes=max_bytes)
    if request["what"] == "values":
        return Scan(read_values(entry, settings, max_bytes=max_bytes))
    slices, rows, columns = request["grid"]
    affine = None if request["affine"] is None else np.array(request["affine"], np.float64)
    return Scan(read_reference(entry, (slices, rows, columns), settings, affine=affine, max_bytes=max_bytes))


def _entry_of(values: dict[str, Any]) -> ScanEntry:
    return ScanEntry(**values | {name: tuple(values[name]) for name in ("files", "reference_files", "channel_names")})


def _settings_of(values: dict[str, Any]) -> ReadSettings:
    labels = values["labels"]
    declared = Labels(
        names=tuple(labels["names"]),
        regions=tuple(tuple(region) for region in labels["regions"]),
        colours=tuple(None if colour is None else tuple(colour) for colour in labels["colours"]),
        codes=tuple(labels["codes"]),
    )
    return ReadSettings(**values | {"labels": declared})


def _in_pieces(pixels: Pixels) -> Iterator[memoryview]:
    """The bytes of an array in order; one whose axes were turned is put in order a few slices at a time."""
    step = len(pixels)
    if not pixels.flags.c_contiguous:
        step = max(1, PIECE_BYTES * step // max(1, pixels.nbytes))
    for start in range(0, len(pixels), max(1, step)):
        yield np.ascontiguousarray(pixels[start : start + step]).reshape(-1).view(np.uint8).data


def _send(answers: BinaryIO, answer: dict[str, Any]) -> None:
    message = json.dumps(answer).encode()
    _send_all(answers, memoryview(LENGTH.pack(len(message)) + message))


def _send_all(answers: BinaryIO, data: memoryview) -> None:
    position = 0
    while position < len(data):
        position += answers.write(data[position:]) or 0


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError, KeyboardInterrupt):
        main()
