"""An archive whose headers are full of words that must appear nowhere, and a search for them in what was written."""

from __future__ import annotations

import gzip
import io
import re
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path

import nibabel
import numpy as np
import pyarrow.parquet as pq
from dicom_made import make_series, to_bytes
from pydicom import config
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence as Items
from segmentations_made import make_segmentation, segmentation_bytes

PLANT = "XQZPLANT"
"""In every text of every header; nobody else writes it."""

UID_ROOT = "2.25.770777077"
DAYS = ("20131113", "20131117", "19111127")
"""Of two studies of one patient, and a birthday."""

FORBIDDEN = (PLANT, "XQZBYTES", UID_ROOT, *DAYS, *(f"{day[:4]}-{day[4:6]}-{day[6:]}" for day in DAYS))

TEXTS = {
    "PatientName": "XQZPLANT^NAME",
    "PatientComments": "XQZPLANT COMMENT",
    "OtherPatientIDs": "XQZPLANT OTHER",
    "PatientAddress": "XQZPLANT STREET",
    "InstitutionName": "XQZPLANT HOSPITAL",
    "InstitutionAddress": "XQZPLANT TOWN",
    "InstitutionalDepartmentName": "XQZPLANT WARD",
    "StationName": "XQZPLANT STAT",
    "OperatorsName": "XQZPLANT^OPERATOR",
    "PerformingPhysicianName": "XQZPLANT^PERFORMER",
    "ReferringPhysicianName": "XQZPLANT^REFERRER",
    "AccessionNumber": "XQZPLANT ACC",
    "StudyID": "XQZPLANT SID",
    "SeriesDescription": "XQZPLANT SERIES",
    "StudyDescription": "XQZPLANT STUDY",
    "ProtocolName": "XQZPLANT PROTOCOL",
    "ImageComments": "XQZPLANT IMAGE",
    "DeviceSerialNumber": "XQZPLANT SERIAL",
    "BodyPartExamined": "XQZPLANT PART",
    "Manufacturer": "XQZPLANT MAKER",
    "ManufacturerModelName": "XQZPLANT MODEL",
    "IssuerOfPatientID": "XQZPLANT ISSUER",
    "PositionReferenceIndicator": "XQZPLANT PLACE",
}

BROKEN: dict[str, tuple[bytes, bytes]] = {
    "ds": (b"11.11111\\22.22222", b"XQZPLANT\\XQZPLANT"),
    "position": (b"33.33333\\", b"XQZPLANT\\"),
    "is": (b"77777777", b"XQZPLANT"),
    "date": (DAYS[0].encode(), b"XQZPLANT"),
    "charset": (b"ISO_IR 100", b"XQZPLANT  "),
    "photometric": (b"MONOCHROME2 ", b"XQZPLANT2222"),
    "uid": (UID_ROOT.encode(), b"XQZPLANT.12345"),
    "modality": (b"\x08\x00\x60\x00CS\x02\x00MR", b"\x08\x00\x60\x00CS\x02\x00\xff\xfe"),
    "syntax": (b"1.2.840.10008.1.2.1\0", b"XQZPLANT10008.1.2.9\0"),
    "class": (b"1.2.840.10008.5.1.4.1.1.4\0", b"XQZPLANT10008.5.1.4.1.1.4\0"),
    "vr": (b"\x08\x00\x3e\x10LO", b"\x08\x00\x3e\x10Q!"),
    "number of VR": (b"\x28\x00\x10\x00US", b"\x28\x00\x10\x00LO"),
    "bytes": (b"XQZPLANT COMMENT", b"XQZBYTES\xff\xfe\xfd\x80\x1b$B\x1b"),
}
"""Bytes of a good file, and those of the same length that take their place."""


def write_planted(root: Path) -> None:
    """Series of two visits of a patient, one series for each way in which a header is broken, and NIfTI volumes."""
    before = config.settings.writing_validation_mode
    config.settings.writing_validation_mode = config.IGNORE
    try:
        for number, day in enumerate(DAYS[:2]):
            _write(root / f"visit{number}", _plant(f"visit{number}", day))
        for name, (old, new) in BROKEN.items():
            _write(root / f"broken_{name.replace(' ', '_')}", _plant(name, DAYS[0]), partial(_exchange, old, new))
        _write(root / "short", _plant("short", DAYS[0]), lambda data: data[:-100])
        _write(root / "long", _plant("long", DAYS[0], AccessionNumber=PLANT * 9, PatientName=PLANT * 40))
        _write(root / "gap", _plant("gap", DAYS[0])[:1] + _plant("gap", DAYS[0])[2:])
        _write(root / "twice", [*_plant("twice", DAYS[0]), *_plant("twice", DAYS[0], SOPInstanceUID=f"{UID_ROOT}99")])
        _write(root / "other", _plant("other", DAYS[0], Modality=PLANT))
        _write(root / "sizes", [*_plant("sizes", DAYS[0])[:2], *_plant("sizes", DAYS[0], size=9)[2:]])
        _write(root / "wrong", _plant("wrong", DAYS[0]), _claim_jpeg)
        _write_segmentations(root)
    finally:
        config.settings.writing_validation_mode = before
    _write_nifti(root)


def find_planted(folders: Iterable[Path], texts: Iterable[str] = ()) -> list[str]:
    """Where a forbidden word stands: in any byte of any file, in packed ones and decoded tables too, or in a text."""
    found = [f"text: {text[max(0, spot - 80) : spot + 40]!r}" for text in texts for spot in _spots(text.encode())]
    for folder in folders:
        for path in sorted(folder.rglob("*")):
            found += [f"name: {path}"] if any(word.lower() in path.name.lower() for word in FORBIDDEN) else []
            if path.is_file() and not path.is_symlink():
                for place, data in _unpack(path.name, path.read_bytes()):
                    found += [f"{path} {place}: {data[max(0, s - 60) : s + 30]!r}" for s in _spots(data)[:1]]
    return found


def _spots(data: bytes) -> list[int]:
    return [match.start() for match in _PATTERN.finditer(data)]


_PATTERN = re.compile(
    b"|".join(re.escape(word.encode(code)) for word in FORBIDDEN for code in ("utf-8", "utf-16-le")), re.IGNORECASE
)


def _unpack(name: str, data: bytes) -> Iterator[tuple[str, bytes]]:
    """What a file holds in all the forms in which somebody may read it."""
    yield "", data
    if name.endswith(".gz"):
        yield "unpacked", gzip.decompress(data)
    if name.endswith((".keras", ".zip")):
        with zipfile.ZipFile(io.BytesIO(data)) as packed:
            for member in packed.namelist():
                yield member, packed.read(member)
    if name.endswith(".png"):
        for match in re.finditer(rb"(?:zTXt|iTXt|tEXt)", data):
            yield "text", data[match.start() :][:4096]
            for start in range(match.start(), match.start() + 200):
                if data[start : start + 1] == b"x":
                    try:
                        yield "packed text", zlib.decompressobj().decompress(data[start:], 65536)
                    except zlib.error:
                        continue
    if name.endswith(".parquet"):
        table = pq.read_table(io.BytesIO(data), use_threads=False)
        rows = [{key: str(value) for key, value in row.items()} for row in table.to_pylist()]
        yield "rows", f"{rows} {table.schema.metadata}".encode("utf-8", "surrogatepass")


def _plant(series: str, day: str, size: int = 8, **values: object) -> list[Dataset]:
    """Four slices with words in all texts, in private elements and within sequences."""
    volume = np.random.default_rng(len(series)).integers(0, 900, (4, size, size + 2)).astype(np.uint16)
    made = make_series(volume, series=series, study=day)
    for index, instance in enumerate(made):
        for keyword, text in TEXTS.items():
            setattr(instance, keyword, text)
        instance.PatientID, instance.PatientBirthDate = f"{PLANT}-ID", DAYS[2]
        instance.StudyDate = instance.SeriesDate = instance.AcquisitionDate = instance.ContentDate = day
        instance.AcquisitionDateTime = f"{day}111213"
        instance.StudyInstanceUID = f"{UID_ROOT}1{day}"
        instance.SeriesInstanceUID = f"{UID_ROOT}2{abs(hash_of(series))}"
        instance.SOPInstanceUID = f"{UID_ROOT}3{abs(hash_of(series))}{index}"
        instance.FrameOfReferenceUID = f"{UID_ROOT}4{day}"
        instance.InstanceNumber = "77777777"
        instance.PixelSpacing = ["11.11111", "22.22222"]
        instance.ImagePositionPatient = ["33.33333", "1.5", str(4.0 * index)]
        instance.ImageOrientationPatient = ["1", "0", "0", "0", "1", "0"]
        instance.SliceThickness = "4"
        block = instance.private_block(0x0011, f"{PLANT} CREATOR", create=True)
        block.add_new(1, "LO", f"{PLANT} PRIVATE")
        block.add_new(2, "UN", f"{PLANT} UNKNOWN".encode())
        inner = Dataset()
        inner.PatientName, inner.CodeMeaning = f"{PLANT}^INNER", f"{PLANT} MEANING"
        instance.RequestAttributesSequence = Items([inner])
        for keyword, value in values.items():
            setattr(instance, keyword, value)
    return made


def hash_of(text: str) -> int:
    return zlib.crc32(text.encode())


def _write(folder: Path, made: list[Dataset], spoil: Callable[[bytes], bytes] = bytes) -> None:
    folder.mkdir(parents=True)
    for number, instance in enumerate(made):
        (folder / f"{number}.dcm").write_bytes(spoil(to_bytes(instance)))


def _exchange(old: bytes, new: bytes, data: bytes) -> bytes:
    assert len(old) == len(new)
    assert old in data
    return data.replace(old, new)


def _claim_jpeg(data: bytes) -> bytes:
    return data.replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.5\0")[: -(8 * 10 * 2)] + PLANT.encode() * 20


def _write_segmentations(root: Path) -> None:
    """A segmentation of each visit's series; one of them with a segment whose number cannot be."""
    for number, day in enumerate(DAYS[:2]):
        series = _plant(f"visit{number}", day)
        mask = np.zeros((4, 8, 10), np.uint8)
        mask[1:3, 2:5, 2:6] = 1
        made = make_segmentation(series, mask, series_instance_uid=f"{UID_ROOT}7{day}")
        made.SeriesDescription, made.ContentCreatorName = f"{PLANT} DRAWN", f"{PLANT}^CREATOR"
        made.ContentDescription, made.ContentLabel = f"{PLANT} CONTENT", PLANT
        made.SegmentSequence[0].SegmentDescription = f"{PLANT} SEGMENT"
        made.SegmentSequence[0].TrackingID = f"{PLANT} TRACK"
        if number:
            made.SegmentSequence[0].SegmentNumber = 9
        (root / f"visit{number}" / "drawn.dcm").write_bytes(segmentation_bytes(made))


def _write_nifti(root: Path) -> None:
    """A volume with a reference, one that is cut off, and one whose header cannot be believed."""
    for name in ("good", "cut", "odd"):
        pixels = np.random.default_rng(3).integers(0, 200, (8, 10, 5)).astype(np.uint8)
        image = nibabel.Nifti1Image(pixels, np.diag([2.0, 2.0, 4.0, 1.0]))
        image.header["descrip"], image.header["aux_file"] = f"{PLANT} descrip", f"{PLANT} aux"
        image.header["db_name"], image.header["intent_name"] = f"{PLANT} db", f"{PLANT}"
        for code in (2, 4, 6):
            image.header.extensions.append(nibabel.nifti1.Nifti1Extension(code, f"{PLANT} {DAYS[2]} inside".encode()))
        (root / "nifti").mkdir(exist_ok=True)
        path = root / "nifti" / f"{name}.nii.gz"
        nibabel.save(image, path)
        mask = nibabel.Nifti1Image((pixels > 150).astype(np.uint8), image.affine, image.header)
        nibabel.save(mask, root / "nifti" / f"{name}_seg.nii.gz")
        data = bytearray(gzip.decompress(path.read_bytes()))
        if name == "cut":
            path.write_bytes(gzip.compress(bytes(data[:-200])))
        if name == "odd":
            data[70:72] = b"\x77\x77"
            path.write_bytes(gzip.compress(bytes(data)))
