"""Small valid DICOM files made with pydicom: series of one slice a file in any orientation, and enhanced ones."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterable, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.sequence import Sequence as Items
from pydicom.uid import UID, CTImageStorage, ExplicitVRLittleEndian, MRImageStorage
from pydicom.valuerep import format_number_as_ds

CLASSES = {"MR": MRImageStorage, "CT": CTImageStorage, "SR": "1.2.840.10008.5.1.4.1.1.88.11"}
ENHANCED = {"MR": "1.2.840.10008.5.1.4.1.1.4.1", "CT": "1.2.840.10008.5.1.4.1.1.2.1"}

AXIAL = np.array([[0, 0, -1, 20], [0, -2, 0, 30], [3, 0, 0, -10], [0, 0, 0, 1]], float)
"""(slice, row, column, 1) to RAS+ millimetres: slices up, rows to the back, columns from right to left."""


def make_uid(*words: object) -> str:
    """A UID of its own for some words, always the same."""
    digest = hashlib.sha256("\0".join(map(str, words)).encode()).digest()
    return f"2.25.{int.from_bytes(digest[:15], 'big')}"


def make_instance(
    pixels: np.ndarray,
    *,
    modality: str = "MR",
    study: str = "study",
    series: str = "series",
    number: int = 1,
    patient: str = "P-1",
    frame: str = "frame",
    **values: Any,
) -> Dataset:
    """One image without a place: (rows, columns), (rows, columns, 3) of uint8 or (frames, rows, columns).

    Args:
        pixels: As stored; their type says how many bits there are, and whether they are signed.
        modality: `MR` or `CT`.
        study: Word that stands for the study; so do `series` and `frame`.
        number: InstanceNumber, also part of the SOPInstanceUID.
        patient: PatientID.
        values: Further elements by their keywords, or those above otherwise; None takes one out.
    """
    is_colour = pixels.ndim >= 3 and pixels.shape[-1] == 3
    shape = pixels.shape[:-1] if is_colour else pixels.shape
    made = Dataset()
    made.file_meta = FileMetaDataset()
    made.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    made.SpecificCharacterSet = "ISO_IR 100"
    made.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    made.SOPClassUID = CLASSES[modality]
    made.SOPInstanceUID = make_uid(study, series, number)
    made.StudyDate, made.StudyTime, made.AccessionNumber, made.StudyID = "20200131", "101010", "", ""
    made.Modality, made.Manufacturer, made.ReferringPhysicianName = modality, "Made up", ""
    made.SeriesDescription = series
    made.PatientName, made.PatientID, made.PatientBirthDate, made.PatientSex = "Muster^Erika", patient, "19700101", "O"
    made.StudyInstanceUID, made.SeriesInstanceUID = make_uid(study), make_uid(study, series)
    made.SeriesNumber, made.InstanceNumber = "1", str(number)
    made.FrameOfReferenceUID, made.PositionReferenceIndicator = make_uid(study, frame), ""
    made.SamplesPerPixel = 3 if is_colour else 1
    made.PhotometricInterpretation = "RGB" if is_colour else "MONOCHROME2"
    if is_colour:
        made.PlanarConfiguration = 0
    if len(shape) == 3:
        made.NumberOfFrames = str(shape[0])
    made.Rows, made.Columns = shape[-2:]
    made.BitsAllocated = made.BitsStored = 8 * pixels.dtype.itemsize
    made.HighBit = made.BitsStored - 1
    made.PixelRepresentation = int(pixels.dtype.kind == "i")
    stored = np.ascontiguousarray(pixels, pixels.dtype.newbyteorder("<")).tobytes()
    made.PixelData = stored + b"\0" * (len(stored) % 2)
    made["PixelData"].VR = "OB" if pixels.dtype.itemsize == 1 else "OW"
    change(made, **values)
    return made


def make_series(volume: np.ndarray, affine: np.ndarray = AXIAL, **values: Any) -> list[Dataset]:
    """A file for each slice of a volume.

    Args:
        volume: (slices, rows, columns) or (slices, rows, columns, 3).
        affine: 4x4, (slice, row, column, 1) to RAS+ millimetres.
        values: As in `make_instance`.
    """
    made = []
    for index, plane in enumerate(volume):
        instance = make_instance(plane, number=index + 1, **values)
        change(instance, **place(affine, index))
        made.append(instance)
    return made


def make_enhanced(
    volume: np.ndarray,
    affine: np.ndarray = AXIAL,
    *,
    order: Iterable[int] | None = None,
    share: Sequence[str] = ("orientation", "measures"),
    **values: Any,
) -> Dataset:
    """All slices of a volume in one enhanced file.

    Args:
        volume: (slices, rows, columns).
        affine: As in `make_series`.
        order: Of the slices in the file.
        share: Which of `orientation`, `measures` and `rescale` all frames share.
        values: As in `make_instance`; slope and intercept may be lists, one for each slice of the volume.
    """
    order = list(range(len(volume)) if order is None else order)
    slopes, intercepts = (values.pop(name, None) for name in ("RescaleSlope", "RescaleIntercept"))
    made = make_instance(volume[order], **values)
    made.SOPClassUID = ENHANCED[made.Modality]
    shared, frames = Dataset(), []
    for index in order:
        frame = Dataset()
        spot = place(affine, index)
        position, orientation, measures = Dataset(), Dataset(), Dataset()
        position.ImagePositionPatient = spot["ImagePositionPatient"]
        orientation.ImageOrientationPatient = spot["ImageOrientationPatient"]
        measures.PixelSpacing, measures.SliceThickness = spot["PixelSpacing"], spot["SliceThickness"]
        frame.PlanePositionSequence = Items([position])
        (shared if "orientation" in share else frame).PlaneOrientationSequence = Items([orientation])
        (shared if "measures" in share else frame).PixelMeasuresSequence = Items([measures])
        if slopes is not None:
            scaling = Dataset()
            scaling.RescaleSlope = str(slopes if np.isscalar(slopes) else slopes[index])
            scaling.RescaleIntercept = str(intercepts if np.isscalar(intercepts) else intercepts[index])
            scaling.RescaleType = "US"
            (shared if "rescale" in share else frame).PixelValueTransformationSequence = Items([scaling])
        frames.append(frame)
    made.SharedFunctionalGroupsSequence = Items([shared])
    made.PerFrameFunctionalGroupsSequence = Items(frames)
    return made


def place(affine: np.ndarray, index: int) -> dict[str, Any]:
    """The elements that say where a slice lies; numbers as text, of at most 16 signs as the standard demands."""
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    to_lps = np.array([-1, -1, 1])
    columns, rows = (affine[:3, axis] / lengths[axis] * to_lps for axis in (1, 2))
    normal = np.cross(rows, columns)
    position = (affine @ [index, 0, 0, 1])[:3] * to_lps
    return {
        "ImagePositionPatient": [format_number_as_ds(number) for number in position],
        "ImageOrientationPatient": [format_number_as_ds(number) for number in (*rows, *columns)],
        "PixelSpacing": [format_number_as_ds(lengths[1]), format_number_as_ds(lengths[2])],
        "SliceThickness": format_number_as_ds(abs(affine[:3, 0] * to_lps @ normal)),
    }


def change(made: Dataset, **values: Any) -> Dataset:
    """Set elements by their keywords; None takes one out."""
    for keyword, value in values.items():
        if value is None:
            if keyword in made:
                delattr(made, keyword)
        else:
            setattr(made, keyword, value)
    return made


def to_bytes(made: Dataset) -> bytes:
    """A file, whether or not its values obey the standard."""
    syntax = made.file_meta.TransferSyntaxUID
    made.file_meta.MediaStorageSOPClassUID = made.SOPClassUID
    made.file_meta.MediaStorageSOPInstanceUID = made.SOPInstanceUID
    stream = io.BytesIO()
    made.save_as(
        stream, implicit_vr=syntax.is_implicit_VR, little_endian=syntax.is_little_endian, enforce_file_format=True
    )
    return stream.getvalue()


def write_series(folder: Path, made: Sequence[Dataset], *, seed: int = 0, names: Sequence[str] = ()) -> list[str]:
    """Write files under names that say nothing of their order; returns the name of each."""
    folder.mkdir(parents=True, exist_ok=True)
    numbers = np.random.default_rng(seed).permutation(len(made)) + 1
    chosen = list(names) or [f"{number}.dcm" for number in numbers]
    for name, instance in zip(chosen, made, strict=True):
        (folder / name).write_bytes(to_bytes(instance))
    return chosen


def compress(made: Dataset, syntax: str, frames: Sequence[bytes], **values: Any) -> Dataset:
    """The same image with frames that were compressed elsewhere."""
    made = deepcopy(made)
    made.file_meta.TransferSyntaxUID = UID(syntax)
    made.PixelData = encapsulate(list(frames))
    made["PixelData"].VR = "OB"
    made["PixelData"].is_undefined_length = True
    return change(made, **values)
