"""What a DICOM segmentation takes of the headers of the images that it was drawn on.

That is what the standard demands of it: the attributes of type 1 and 2 that say whose study it is, with who issued the
patient's ID, what the study is called and whether names were removed; the frame of reference, and the place of each
image. Values that the standard does not allow are left blank.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from raysegment.errors import UnknownGridError

MAX_NUMBER = 16
"""Characters of a number that is written as text."""

PERSONS = ("PatientName", "ReferringPhysicianName")
TEXTS = ("PatientID", "AccessionNumber", "StudyID")
OPTIONAL_TEXTS = ("IssuerOfPatientID", "StudyDescription", "PatientIdentityRemoved", "DeidentificationMethod")
REMOVAL_CODES = "DeidentificationMethodCodeSequence"
CODE = ("CodeValue", "CodingSchemeDesignator", "CodeMeaning")
DAYS, TIMES = ("PatientBirthDate", "StudyDate"), ("StudyTime",)
SEXES = ("M", "F", "O")
IDENTIFIERS = ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID")
WANTED = (
    *PERSONS,
    *TEXTS,
    *OPTIONAL_TEXTS,
    *DAYS,
    *TIMES,
    *IDENTIFIERS,
    REMOVAL_CODES,
    *("SpecificCharacterSet", "PatientSex", "Modality", "SeriesNumber", "NumberOfFrames", "Rows", "Columns"),
    *("FrameOfReferenceUID", "PositionReferenceIndicator", "ImagePositionPatient", "ImageOrientationPatient"),
    *("PixelSpacing", "SliceThickness", "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"),
    *("LossyImageCompression", "LossyImageCompressionRatio", "LossyImageCompressionMethod"),
)
"""Attributes of a source that are looked at; whoever reads headers need read no other ones."""

_DAY = re.compile(r"\d{8}")
_TIME = re.compile(r"\d{2}(\d{2}(\d{2}(\.\d{1,6})?)?)?")
_NUMBER = re.compile(r"[+-]?\d*\.?\d+([eE][+-]?\d+)?")


def copy_sources(sources: Sequence[Any]) -> list[Any]:
    """What a segmentation takes of its sources, in valid values; whatever else their headers hold stays behind."""
    from pydicom.dataset import Dataset

    people = _copy_people(sources[0])
    copies = []
    for source in sources:
        copy = Dataset()
        copy.update(people)
        for keyword in IDENTIFIERS:
            setattr(copy, keyword, str(getattr(source, keyword)))
        copy.Modality = _text(source, "Modality")
        copy.Rows, copy.Columns = int(source.Rows), int(source.Columns)
        if _text(source, "FrameOfReferenceUID"):
            copy.FrameOfReferenceUID = _text(source, "FrameOfReferenceUID")
            copy.PositionReferenceIndicator = _text(source, "PositionReferenceIndicator")
        _copy_loss(source, copy)
        _copy_place(source, copy, sources[0])
        copies.append(copy)
    _check_placed(copies)
    _fill_thickness(copies)
    return copies


def _copy_people(source: Any) -> Any:
    """The modules of patient and study, as far as the standard demands them."""
    from pydicom.dataset import Dataset

    people = Dataset()
    for keyword in (*PERSONS, *TEXTS):
        setattr(people, keyword, _text(source, keyword))
    for keyword in OPTIONAL_TEXTS:
        if text := _text(source, keyword):
            setattr(people, keyword, text)
    if removal := [_copy_code(item) for item in source.get(REMOVAL_CODES) or ()]:
        setattr(people, REMOVAL_CODES, removal)
    for keywords, pattern in ((DAYS, _DAY), (TIMES, _TIME)):
        for keyword in keywords:
            text = _text(source, keyword)
            setattr(people, keyword, text if pattern.fullmatch(text) else "")
    sex = _text(source, "PatientSex")
    people.PatientSex = sex if sex in SEXES else ""
    return people


def _copy_code(item: Any) -> Any:
    from pydicom.dataset import Dataset

    code = Dataset()
    for keyword in CODE:
        setattr(code, keyword, _text(item, keyword))
    return code


def _copy_loss(source: Any, copy: Any) -> None:
    """Whether the images were compressed with losses, and how, where they say both."""
    ratio, method = source.get("LossyImageCompressionRatio"), source.get("LossyImageCompressionMethod")
    if _text(source, "LossyImageCompression") == "01" and ratio is not None and method:
        copy.LossyImageCompression = "01"
        copy.LossyImageCompressionRatio, copy.LossyImageCompressionMethod = ratio, method


def _copy_place(source: Any, copy: Any, first: Any) -> None:
    """Where an image, or where each of its frames lies; highdicom wants the very same orientation in all of them."""
    from pydicom.dataset import Dataset

    if int(source.get("NumberOfFrames") or 1) == 1 and "ImagePositionPatient" in source:
        copy.ImagePositionPatient = _numbers(source.ImagePositionPatient)
        copy.ImageOrientationPatient = _numbers(first.ImageOrientationPatient)
        copy.PixelSpacing = _numbers(source.PixelSpacing)
        thickness = source.get("SliceThickness")
        copy.SliceThickness = None if thickness in (None, "") else _numbers([thickness])[0]
        return
    groups = source.get("PerFrameFunctionalGroupsSequence")
    if not groups:
        return
    copy.NumberOfFrames = len(groups)
    shared = Dataset()
    shared.PlaneOrientationSequence = [_pick(_group(source, "PlaneOrientationSequence"), "ImageOrientationPatient")]
    shared.PixelMeasuresSequence = [_pick(_group(source, "PixelMeasuresSequence"), "PixelSpacing", "SliceThickness")]
    copy.SharedFunctionalGroupsSequence = [shared]
    copy.PerFrameFunctionalGroupsSequence = []
    for group in groups:
        frame = Dataset()
        position = group.get("PlanePositionSequence") or [_group(source, "PlanePositionSequence")]
        frame.PlanePositionSequence = [_pick(position[0], "ImagePositionPatient")]
        copy.PerFrameFunctionalGroupsSequence.append(frame)


def _check_placed(copies: Sequence[Any]) -> None:
    first = copies[0]
    is_placed = "ImagePositionPatient" in first or "PerFrameFunctionalGroupsSequence" in first
    if is_placed and "FrameOfReferenceUID" in first:
        return
    if is_placed or len(copies) > 1:
        missing = "position" if "FrameOfReferenceUID" in first else "frame of reference"
        raise UnknownGridError(
            f"the headers of its files name no {missing}, which a DICOM segmentation must refer to. Export --to nifti."
        )


def _fill_thickness(copies: Sequence[Any]) -> None:
    """The standard demands a thickness of slices: where sources have none it is the distance of their planes."""
    first = copies[0]
    if len(copies) < 2 or first.SliceThickness is not None:
        return
    rows, columns = np.array(first.ImageOrientationPatient, float).reshape(2, 3)
    depths = [np.cross(rows, columns) @ np.array(copy.ImagePositionPatient, float) for copy in copies]
    (thickness,) = _numbers([round(float(np.median(np.diff(np.sort(depths)))), 6)])
    for copy in copies:
        copy.SliceThickness = thickness


def _group(source: Any, keyword: str) -> Any:
    """A functional group that all frames share, or that of the first one."""
    for outer in ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"):
        items = source.get(outer)
        if items and items[0].get(keyword):
            return items[0][keyword].value[0]
    raise UnknownGridError("its frames do not say where they lie, which a DICOM segmentation must. Export --to nifti.")


def _pick(item: Any, *keywords: str) -> Any:
    """An item with some numbers of another one."""
    from pydicom.dataset import Dataset

    picked = Dataset()
    for keyword in keywords:
        if item.get(keyword) is not None:
            value = item[keyword].value
            is_several = item[keyword].VM > 1
            setattr(picked, keyword, _numbers(value) if is_several else _numbers([value])[0])
    return picked


def _text(source: Any, keyword: str) -> str:
    value = source.get(keyword)
    if value is None:
        return ""
    parts = value if isinstance(value, list | tuple) or type(value).__name__ == "MultiValue" else [value]
    return "\\".join(re.sub(r"[\x00-\x1f\x7f]", "", str(part)).strip() for part in parts)


def _numbers(values: Sequence[Any]) -> list[str]:
    """Numbers as text, as the source has them unless that is too long for the standard."""
    from pydicom.valuerep import format_number_as_ds

    texts = [str(value).strip() for value in values]
    return [
        text if len(text) <= MAX_NUMBER and _NUMBER.fullmatch(text) else format_number_as_ds(float(text))
        for text in texts
    ]
