"""Seconds and memory to find the series of many small DICOM files: `python benchmarks/dicom_index.py --files 100000`.

The files are made up: series of `--slices` instances of 16 x 16 pixels with some dozens of elements, a patient for each
study of four series, under names without extension that say nothing of their order. Printed are the seconds to the
manifest, the peak memory of the driver and that of all its children together, once for a folder and once more with
`--zip` for the same files in one zip.
"""

from __future__ import annotations

import argparse
import io
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil

SECONDS_BETWEEN_LOOKS = 0.1
SERIES_OF_STUDY = 4
UID_DIGITS = 24
FIND = """
import sys, time
from raysegment.archive.index import find_scans, summarise
from raysegment.options import Finding
started = time.perf_counter()
summary = summarise(find_scans(sys.argv[1], Finding(key_file=sys.argv[2])))
print(f"{time.perf_counter() - started:.1f} s, {summary.scans} scans, {summary.files} files, "
      f"{len(summary.problems)} problems")
"""


def make_files(num_files: int, num_slices: int) -> Iterator[tuple[str, bytes]]:
    """Path and bytes of each file: one is written by pydicom, the others differ in places of equal length."""
    template = write_template()
    order = np.random.default_rng(0).permutation(num_slices)
    for number in range(num_files):
        series, index = divmod(number, num_slices)
        study = series // SERIES_OF_STUDY
        data = template
        for word, value in (("1", study), ("2", series), ("3", number)):
            data = data.replace((word * UID_DIGITS).encode(), f"{word}{value:0{UID_DIGITS - 1}d}".encode())
        data = data.replace(b"-7777.50", f"{index * 2.5:08.2f}".encode())
        data = data.replace(b"PATIENT0000000", f"PATIENT{study:07d}".encode())
        yield f"{study // 100:04d}/{study:06d}/{series:07d}/IM{order[index]:06d}", data


def write_template() -> bytes:
    """A valid instance with words in the places that change."""
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage

    made = Dataset()
    made.file_meta = FileMetaDataset()
    made.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    made.SOPClassUID = MRImageStorage
    made.StudyInstanceUID, made.SeriesInstanceUID, made.SOPInstanceUID = (
        f"2.25.{word * UID_DIGITS}" for word in ("1", "2", "3")
    )
    made.FrameOfReferenceUID = made.StudyInstanceUID
    made.PatientID, made.PatientName, made.Modality = "PATIENT0000000", "Made^Up", "MR"
    made.StudyDate = made.SeriesDate = made.AcquisitionDate = "20200131"
    made.SeriesDescription, made.Manufacturer, made.InstitutionName = "t1_mprage_sag", "Made up", "Nowhere"
    for keyword in ("EchoTime", "RepetitionTime", "FlipAngle", "MagneticFieldStrength", "ImagingFrequency"):
        setattr(made, keyword, "12.5")
    made.ImageType, made.InstanceNumber = ["ORIGINAL", "PRIMARY", "M"], "1"
    made.ImagePositionPatient, made.ImageOrientationPatient = ["-100.5", "-90.25", "-7777.50"], [1, 0, 0, 0, 1, 0]
    made.PixelSpacing, made.SliceThickness = ["0.9375", "0.9375"], "2.5"
    made.SamplesPerPixel, made.PhotometricInterpretation, made.Rows, made.Columns = 1, "MONOCHROME2", 16, 16
    made.BitsAllocated, made.BitsStored, made.HighBit, made.PixelRepresentation = 16, 12, 11, 0
    made.add_new(0x00090010, "LO", "MADE UP VENDOR")
    for element in range(0x1001, 0x1021):
        made.add_new(0x00090000 | element, "LO", "some private text of a vendor")
    made.PixelData = np.arange(256, dtype=np.uint16).tobytes()
    stream = io.BytesIO()
    made.save_as(stream, enforce_file_format=True)
    return stream.getvalue()


def write_folder(target: Path, num_files: int, num_slices: int) -> None:
    for path, data in make_files(num_files, num_slices):
        file = target / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)


def write_zip(target: Path, num_files: int, num_slices: int) -> None:
    target.mkdir(parents=True)
    with zipfile.ZipFile(target / "scans.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for path, data in make_files(num_files, num_slices):
            archive.writestr(path, data)


def find(source: Path, key: Path) -> None:
    """Index in a process of its own, and look at its memory while it works."""
    process = subprocess.Popen([sys.executable, "-c", FIND, str(source), str(key)], stdout=subprocess.PIPE, text=True)
    peaks = {"driver": 0, "children": 0}
    ended = threading.Event()

    def look() -> None:
        driver = psutil.Process(process.pid)
        while not ended.wait(SECONDS_BETWEEN_LOOKS):
            try:
                peaks["driver"] = max(peaks["driver"], driver.memory_info().rss)
                sizes = [child.memory_info().rss for child in driver.children(recursive=True)]
            except psutil.Error:
                continue
            peaks["children"] = max(peaks["children"], sum(sizes))

    watcher = threading.Thread(target=look)
    watcher.start()
    out, _ = process.communicate()
    ended.set()
    watcher.join()
    shown = ", ".join(f"peak of {name} {size / 2**20:.0f} MB" for name, size in peaks.items())
    print(f"  {out.strip()}; {shown}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=100_000)
    parser.add_argument("--slices", type=int, default=200)
    parser.add_argument("--zip", action="store_true")
    parser.add_argument("--dir", help="where the files are made; a temporary folder if not given")
    given = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="dicom_index_", dir=given.dir))
    try:
        key = folder / "key"
        key.write_bytes(os.urandom(32))
        key.chmod(0o600)
        for name, write in (("folder", write_folder), *([("zip", write_zip)] if given.zip else [])):
            started = time.perf_counter()
            write(folder / name, given.files, given.slices)
            print(f"{name} of {given.files} files, made in {time.perf_counter() - started:.0f} s", flush=True)
            find(folder / name, key)
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
