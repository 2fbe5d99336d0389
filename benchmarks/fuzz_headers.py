"""Damaged headers of TIFF, BigTIFF, PNG, JPEG, NIfTI, DICOM: counts, times, memory, and whether all came as errors.

    python benchmarks/fuzz_headers.py [--headers 20000] [--decodes 500] [--seed 0] [--formats dicom]

Each header is read as `index` reads it, in this process; then the damaged files are indexed, a thousand at a time, and
some of them are decoded in the child process with its limits. Ends with exit code 1 if anything but an error of the
scan was raised, if a header took more than a second of processor time, or if this process grew by more than 200 MB.
"""

from __future__ import annotations

import argparse
import faulthandler
import io
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "archive"))

from mutants import EVERY_FORMAT, FORMATS, READERS, SUFFIXES, mutate

from raysegment.archive.decoder import Decoder
from raysegment.archive.formats import HEAD_BYTES, get_reader, recognise
from raysegment.archive.index import find_scans
from raysegment.archive.manifest import entries
from raysegment.errors import ScanError

LIMIT_SECONDS = 1.0
LIMIT_GROWTH_MB = 200
SECONDS_WITHOUT_SIGN = 120
FILES_IN_A_FOLDER = 1000
DECODE_MEMORY_MB = 512
DECODE_SECONDS = 5.0


class HangError(Exception):
    """A header took longer than it may."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--headers", type=int, default=20_000)
    parser.add_argument("--decodes", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--formats", nargs="+", choices=EVERY_FORMAT, help="those to damage; all if not given")
    given = parser.parse_args()
    signal.signal(signal.SIGPROF, _raise_hang)
    bad = 0
    for kind in given.formats or EVERY_FORMAT:
        mutate(kind, np.random.default_rng(0))
        bad += fuzz_headers(kind, given.headers, given.seed)
    for kind in given.formats or EVERY_FORMAT:
        bad += fuzz_index(kind, given.headers, given.seed)
    for kind in given.formats or EVERY_FORMAT:
        fuzz_decoder(kind, given.decodes, given.seed)
    print(f"{bad} failures" if bad else "no failures")
    return 1 if bad else 0


def fuzz_headers(kind: str, num_headers: int, seed: int) -> int:
    """Read damaged headers one by one; returns the number of failures."""
    outcomes: Counter[str] = Counter()
    before_mb, started, longest, bad = peak_mb(), time.perf_counter(), 0.0, 0
    for number in range(num_headers):
        faulthandler.dump_traceback_later(SECONDS_WITHOUT_SIGN, exit=True)
        data = mutate(kind, np.random.default_rng((seed, number)))
        begun = time.process_time()
        try:
            outcomes[read_header(kind, data)] += 1
        except BaseException as error:
            bad += 1
            print(f"{kind} number {number}: {type(error).__name__}", file=sys.stderr)
            traceback.print_exc(limit=-3)
            outcomes[f"FAILED {type(error).__name__}"] += 1
        longest = max(longest, time.process_time() - begun)
    faulthandler.cancel_dump_traceback_later()
    growth_mb = peak_mb() - before_mb
    print(
        f"{kind:8} {num_headers} headers in {time.perf_counter() - started:.1f} s, longest {longest * 1000:.0f} ms, "
        f"grown by {growth_mb:.0f} MB to {peak_mb():.0f} MB; {show(outcomes)}",
        flush=True,
    )
    return bad + (growth_mb > LIMIT_GROWTH_MB)


def read_header(kind: str, data: bytes) -> str:
    """What came of a header: `read`, or the type of its error."""
    signal.setitimer(signal.ITIMER_PROF, LIMIT_SECONDS)
    try:
        reader = get_reader(recognise(data[:HEAD_BYTES]) or READERS[kind])
        reader.read_header(io.BytesIO(data), "a")
        return "read"
    except ScanError as error:
        return type(error).__name__
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def fuzz_index(kind: str, num_files: int, seed: int) -> int:
    """Index folders of damaged files; returns the number of folders that failed."""
    before_mb, started, num_rows, num_problems, bad = peak_mb(), time.perf_counter(), 0, 0, 0
    for first in range(0, num_files, FILES_IN_A_FOLDER):
        with tempfile.TemporaryDirectory() as folder:
            write_files(Path(folder), kind, range(first, min(first + FILES_IN_A_FOLDER, num_files)), seed)
            try:
                table = find_scans(folder)
            except Exception:
                bad += 1
                traceback.print_exc()
                continue
        num_rows += table.num_rows
        num_problems += table.num_rows - table["problem"].null_count
    growth_mb = peak_mb() - before_mb
    print(
        f"{kind:8} {num_files} files indexed in {time.perf_counter() - started:.1f} s: {num_rows} rows, {num_problems} "
        f"with a problem; grown by {growth_mb:.0f} MB to {peak_mb():.0f} MB",
        flush=True,
    )
    # Damaged DICOM files are rows of their own or slices of one scan, as their headers happen to say.
    is_whole = num_rows == num_files if kind in FORMATS else 0 < num_rows <= num_files
    return bad + (not is_whole) + (growth_mb > LIMIT_GROWTH_MB)


def fuzz_decoder(kind: str, num_files: int, seed: int) -> None:
    """Decode damaged files in the child; whatever but an error of the scan comes out ends the program."""
    outcomes: Counter[str] = Counter()
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder, Decoder(DECODE_MEMORY_MB, DECODE_SECONDS) as decoder:
        write_files(Path(folder), kind, range(num_files), seed)
        for entry in entries(find_scans(folder)) if num_files else ():
            try:
                decoder.read(entry)
                outcomes["read"] += 1
            except ScanError as error:
                outcomes[type(error).__name__] += 1
    print(f"{kind:8} {num_files} files decoded in {time.perf_counter() - started:.1f} s; {show(outcomes)}", flush=True)


def write_files(folder: Path, kind: str, numbers: range, seed: int) -> None:
    for number in numbers:
        data = mutate(kind, np.random.default_rng((seed, number)))
        (folder / f"{number} x{SUFFIXES[kind]}").write_bytes(data)


def show(outcomes: Counter[str]) -> str:
    return ", ".join(f"{name} {count}" for name, count in outcomes.most_common())


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _raise_hang(number: int, frame: object) -> None:
    raise HangError(f"more than {LIMIT_SECONDS:g} seconds")


if __name__ == "__main__":
    sys.exit(main())
