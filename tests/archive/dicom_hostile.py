"""An archive of DICOM that nobody should send: good series and bad ones, each in a folder of its own, with names in all
headers that must appear nowhere."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import cv2
import numpy as np
from dicom_made import AXIAL, change, make_series, make_uid, place, to_bytes, write_series
from pydicom.encaps import encapsulate
from pydicom.uid import JPEGLSLossless

PLANTED = ("Geheimnis^Erna", "PID-GEHEIM-77", "19410203", "KlinikGeheim", "OperatorGeheim", "KommentarGeheim")
GOOD = ("good", "two series", "two series", "zipped.zip")
"""Folders of good scans; one holds two series side by side."""

BAD = {
    "missing": "MissingSliceError",
    "phases": "DuplicateSliceError",
    "shapes": "SliceMismatchError",
    "picture": "UnknownFormatError",
    "no pixels": None,
    "absurd rows": None,
    "frames": None,
    "nested": None,
    "truncated": "TruncatedFileError",
    "wrong syntax": "UnreadableFileError",
    "names.zip": None,
    "bomb.zip": None,
}
"""Folder or zip of each bad scan, and the type of its error where only one is right."""

ALONE = ("no pixels", "absurd rows", "frames")
"""Bad files of which nobody can tell what else belongs to them."""


def volume(seed: int, slices: int = 6, side: int = 64) -> np.ndarray:
    """A ball in noise."""
    z, y, x = np.ogrid[-1 : 1 : slices * 1j, -1 : 1 : side * 1j, -1 : 1 : side * 1j]
    noise = np.random.default_rng(seed).normal(100, 20, (slices, side, side))
    return (noise + 400 * (x**2 + y**2 + z**2 < 0.4)).astype(np.int16)


def named(name: str, seed: int = 0, **values: object) -> list:
    """A series with the planted words in its headers."""
    series = make_series(volume(seed), study=name, series=name, **{"patient": PLANTED[1], **values})
    for instance in series:
        change(
            instance,
            PatientName=PLANTED[0],
            PatientBirthDate=PLANTED[2],
            InstitutionName=PLANTED[3],
            OperatorsName=PLANTED[4],
            PatientComments=PLANTED[5],
        )
        instance.private_block(0x0041, PLANTED[3], create=True).add_new(1, "LO", PLANTED[5])
    return series


def write_hostile(archive: Path) -> None:
    """Write all of it."""
    write_series(archive / "good", named("good", 1))
    write_series(archive / "two series", named("left", 2), names=[f"a{n}" for n in range(6)])
    write_series(archive / "two series", named("right", 3), names=[f"b{n}.dcm" for n in range(6)])
    for name in ("missing", "phases", "shapes", "truncated", "absurd rows", "no pixels", "wrong syntax", "frames"):
        write_series(archive / name, spoil(name, named(name)))
    cut = sorted((archive / "truncated").iterdir())[2]
    cut.write_bytes(cut.read_bytes()[:-3000])
    (archive / "picture").mkdir()
    picture = cv2.imencode(".jpg", volume(0)[0].clip(0, 255).astype(np.uint8))[1].tobytes()
    (archive / "picture" / "photo.dcm").write_bytes(picture)
    (archive / "nested").mkdir()
    (archive / "nested" / "deep.dcm").write_bytes(nest(to_bytes(named("nested")[0]), 1000))
    write_zip(archive / "zipped.zip", {f"a/{n}.dcm": to_bytes(each) for n, each in enumerate(named("zipped", 4))})
    outside = {f"../../outside/{n}.dcm": to_bytes(each) for n, each in enumerate(named("outside"))}
    write_zip(archive / "names.zip", outside)
    write_zip(archive / "bomb.zip", {"bomb.dcm": b"\0" * 128 + b"DICM" + b"\0" * 2**28})


def spoil(name: str, series: list) -> list:
    """The series with its fault."""
    if name == "missing":
        return series[:2] + series[3:]
    if name == "phases":
        again = named(name, 9)
        for number, instance in enumerate(again):
            change(instance, SOPInstanceUID=make_uid("again", number), **place(AXIAL, number))
        return series + again
    last = series[-1]
    if name in ALONE:
        series = [last]
    if name == "shapes":
        change(last, Rows=32, PixelData=last.PixelData[: 32 * 64 * 2])
    if name == "absurd rows":
        change(last, Rows=65535, Columns=65535)
    if name == "no pixels":
        change(last, PixelData=None)
    if name == "frames":
        change(last, NumberOfFrames="2147483648")
    if name == "wrong syntax":
        encoded = cv2.imencode(".jp2", volume(0)[0].clip(0, 255).astype(np.uint16))[1].tobytes()
        last.PixelData = encapsulate([encoded])
        last["PixelData"].is_undefined_length = True
        last["PixelData"].VR = "OB"
        last.file_meta.TransferSyntaxUID = JPEGLSLossless
    return series


def nest(file: bytes, depth: int) -> bytes:
    """The file with a sequence within a sequence, and so on, before its pixels."""
    opened = b"\x08\x00\x15\x11SQ\0\0\xff\xff\xff\xff\xfe\xff\x00\xe0\xff\xff\xff\xff"
    closed = b"\xfe\xff\x0d\xe0\0\0\0\0\xfe\xff\xdd\xe0\0\0\0\0"
    # Behind StudyDate and before StudyTime: 0008,1115 would come later, but no reader may need the order.
    at = file.index(b"\x08\x00\x20\x00DA")
    return file[:at] + opened * depth + closed * depth + file[at:]


def write_zip(path: Path, members: dict[str, bytes]) -> None:
    """Names as they are given, also those that lead outside."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as made:
        for name, content in members.items():
            made.writestr(zipfile.ZipInfo(name), content, zipfile.ZIP_DEFLATED)
    path.write_bytes(stream.getvalue())
