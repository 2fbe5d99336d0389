from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tifffile

from raysegment.archive.decoder import Decoder
from raysegment.archive.formats import READERS_VARIABLE
from raysegment.archive.index import find_scans
from raysegment.archive.manifest import entries
from raysegment.errors import (
    AccessError,
    DecoderCrashedError,
    DecoderMemoryError,
    DecoderTimeoutError,
    TruncatedFileError,
)
from raysegment.scan import Labels, ReadSettings, ScanEntry


@pytest.fixture(scope="module")
def decoder() -> Iterator[Decoder]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(READERS_VARIABLE, "hostile_reader")
        patch.syspath_prepend(str(Path(__file__).parent))
        with Decoder(memory_mb=256, timeout_seconds=5) as decoder:
            yield decoder


def hostile_entry(folder: Path, does: str) -> ScanEntry:
    (folder / "scan.hostile").write_text(f"HOSTILE {does}")
    return ScanEntry(
        scan_id="scan.hostile", patient_id="p", source=str(folder), reader="hostile_reader", files=("scan.hostile",)
    )


def child_pid(decoder: Decoder) -> int | None:
    return decoder._child.pid if decoder._child else None


def test_pixels_and_reference_pass_through_the_child_unchanged(decoder, tmp_path, write_series):
    pixels = write_series(tmp_path / "p1", "p1_", slices=11)
    entry = next(entries(find_scans(str(tmp_path))))
    decoded = decoder.read(entry, with_reference=True)
    np.testing.assert_array_equal(decoded.scan.pixels, pixels)
    np.testing.assert_array_equal(decoded.reference, pixels[..., 0] > 128)
    assert decoded.reference_error is None
    assert decoded.scan.spacing_mm is None


def test_the_child_stays_alive_from_scan_to_scan(decoder, tmp_path, write_series):
    write_series(tmp_path / "p1", "p1_")
    entry = next(entries(find_scans(str(tmp_path))))
    decoder.read(entry)
    before = child_pid(decoder)
    decoder.read(entry)
    assert child_pid(decoder) == before


def test_a_crash_is_tried_once_more_and_then_named(decoder, tmp_path):
    with pytest.raises(DecoderCrashedError, match=r"scan\.hostile.*SIGSEGV"):
        decoder.read(hostile_entry(tmp_path, "crash"))


def test_a_decoder_that_crashes_once_reads_the_scan_in_a_fresh_child(decoder, tmp_path):
    decoded = decoder.read(hostile_entry(tmp_path, f"crash-once {tmp_path}/crashed"))
    assert (decoded.scan.pixels == 7).all()


def test_memory_beyond_the_limit_is_an_error_of_that_scan(decoder, tmp_path):
    with pytest.raises(DecoderMemoryError, match=r"scan\.hostile.*256 MB"):
        decoder.read(hostile_entry(tmp_path, "eat"))
    assert decoder.read(hostile_entry(tmp_path, "well")).scan.spacing_mm == (5.0, 1.0, 1.0)


def test_a_hanging_decoder_is_ended_at_the_time_limit(tmp_path, monkeypatch):
    monkeypatch.setenv(READERS_VARIABLE, "hostile_reader")
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    with Decoder(memory_mb=256, timeout_seconds=1) as hasty:
        with pytest.raises(DecoderTimeoutError, match=r"scan\.hostile.*1 seconds"):
            hasty.read(hostile_entry(tmp_path, "hang"))
        np.testing.assert_array_equal(hasty.read(hostile_entry(tmp_path, "well")).scan.affine, np.diag([1, 1, 5, 1]))


def test_noise_that_a_decoder_prints_does_not_reach_the_answers(decoder, tmp_path):
    assert decoder.read(hostile_entry(tmp_path, "shout")).scan.pixels.shape == (1, 4, 4, 1)


def test_a_crash_in_the_reference_leaves_the_scan_usable(decoder, tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((8, 8), np.uint8))
    (tmp_path / "a.hostile").write_text("HOSTILE crash")
    entry = ScanEntry(
        scan_id="a",
        patient_id="a",
        source=str(tmp_path),
        reader="tiff",
        files=("a.tif",),
        reference_files=("a.hostile",),
    )
    decoded = decoder.read(entry, with_reference=True)
    assert decoded.scan.grid == (1, 8, 8)
    assert decoded.reference is None
    assert decoded.reference_error.startswith("DecoderCrashedError: a.hostile")


def test_errors_of_content_and_access_keep_their_type(decoder, tmp_path, write_series):
    write_series(tmp_path / "p1", "p1_")
    entry = next(entries(find_scans(str(tmp_path))))
    file = tmp_path / "p1" / "p1_2.tif"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(TruncatedFileError, match=r"p1/p1_2\.tif"):
        decoder.read(entry)
    file.unlink()
    with pytest.raises(AccessError, match=r"p1/p1_2\.tif.*No such file"):
        decoder.read(entry)


def test_a_decoder_outlives_the_thread_that_started_it(decoder, tmp_path, write_series):
    write_series(tmp_path / "p1", "p1_")
    entry = next(entries(find_scans(str(tmp_path))))
    decoder.close()
    thread = threading.Thread(target=decoder.read, args=(entry,))
    thread.start()
    thread.join()
    before = child_pid(decoder)
    decoder.read(entry)
    assert before is not None
    assert child_pid(decoder) == before


def test_the_child_ends_with_its_parent(tmp_path, write_series):
    write_series(tmp_path / "p1", "p1_")
    program = (
        "import os, sys\n"
        "from raysegment.archive.decoder import Decoder\n"
        "from raysegment.archive.index import find_scans\n"
        "from raysegment.archive.manifest import entries\n"
        "decoder = Decoder()\n"
        "decoder.read(next(entries(find_scans(sys.argv[1]))))\n"
        "print(decoder._child.pid, flush=True)\n"
        "os.kill(os.getpid(), 9)\n"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)}
    result = subprocess.run([sys.executable, "-c", program, tmp_path], capture_output=True, text=True, env=environment)
    pid = int(result.stdout)
    deadline = time.monotonic() + 10
    while is_running(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not is_running(pid)


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_the_decoder_loads_neither_ray_nor_tensorflow():
    program = (
        "import sys, raysegment.archive.decoder_child, raysegment.archive.index\n"
        "sys.exit(bool({'ray', 'tensorflow', 'keras'} & sys.modules.keys()))"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)}
    assert subprocess.run([sys.executable, "-c", program], env=environment).returncode == 0


def test_every_real_slice_equals_what_tifffile_reads(decoder, real_lgg):
    table = find_scans(str(real_lgg)).slice(0, 3)
    for entry in entries(table):
        decoded = decoder.read(entry, with_reference=True)
        expected = np.stack([tifffile.imread(real_lgg / file) for file in entry.files])
        drawn = np.stack([tifffile.imread(real_lgg / file) for file in entry.reference_files])
        np.testing.assert_array_equal(decoded.scan.pixels, expected)
        np.testing.assert_array_equal(decoded.reference, drawn == 255)


def test_what_values_mean_reaches_the_child_with_each_request(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((2, 2), np.uint8))
    tifffile.imwrite(tmp_path / "a_mask.tif", np.array([[0, 1], [300, 4]], np.uint16))
    (entry,) = entries(find_scans(str(tmp_path)))
    labels = Labels(("core", "edema"), ((1, 4), (300,)), colours=((255, 0, 0), None), codes=("SCT:1", None))
    with Decoder(memory_mb=256, timeout_seconds=5, settings=ReadSettings(labels=labels)) as decoder:
        assert decoder.read(entry, with_reference=True).reference[0].tolist() == [[0, 1], [300, 4]]
        decoder.settings = ReadSettings(labels=Labels(("core",), ((1,),)))
        refused = decoder.read(entry, with_reference=True)
    assert refused.reference is None
    assert refused.reference_error.startswith("ReferenceValuesError: a_mask.tif: the reference holds 4 300, which")
