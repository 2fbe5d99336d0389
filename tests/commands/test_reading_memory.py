"""What a reading process takes beside its decoder, which has a limit of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import tifffile

MEASURE = """
import sys
from pathlib import Path
from raysegment.archive.decoder import Decoder
from raysegment.archive.index import find_scans
from raysegment.archive.manifest import entries
from raysegment.pipeline.blocks import read_block, scans_of

def resident(peak):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM" if peak else "VmRSS"))

small, large = entries(find_scans(sys.argv[1]))
with Decoder(memory_mb=1024, timeout_seconds=60) as decoder:
    for entry in (small, large):
        Path("/proc/self/clear_refs").write_text("5")
        before = resident(peak=False)
        (table,) = read_block(decoder, [entry])
        (read,) = scans_of(table)
        decoded = read.scan.pixels.nbytes
        del table, read
print((resident(peak=True) - before) / decoded)
"""


def write_volume(path: Path, side: int) -> None:
    draw = np.random.default_rng(0)
    path.parent.mkdir(parents=True)
    tifffile.imwrite(path, draw.integers(0, 4000, (64, side, side)).astype(np.uint16), photometric="minisblack")


def test_reading_holds_the_pixels_of_a_scan_once(tmp_path):
    write_volume(tmp_path / "a" / "volume.tif", 16)
    write_volume(tmp_path / "b" / "volume.tif", 1024)
    done = subprocess.run([sys.executable, "-c", MEASURE, str(tmp_path)], capture_output=True, text=True, timeout=120)
    assert not done.returncode, done.stderr
    assert 0.9 < float(done.stdout) < 1.3
