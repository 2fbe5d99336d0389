"""What one DICOM file declares: whose it is, what kind of object, and where and how its pixels lie.

Identifiers and texts of a header stay in the `Instance`; messages never quote them.
"""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date
from typing import BinaryIO, Literal

import numpy as np
import numpy.typing as npt

from raysegment.archive.dicom import tags
from raysegment.archive.dicom.alphabets import find_encoding
from raysegment.archive.dicom.elements import DataSet, Elements, read_elements
from raysegment.archive.dicom.pixel_format import PixelFormat, find_pixel_format
from raysegment.archive.dicom.places import Places, find_places
from raysegment.archive.dicom.syntaxes import DEFLATED, LOSSY
from raysegment.archive.names import show_name
from raysegment.errors import TruncatedFileError, UnreadableFileError

Kind = Literal[
    "image", "segmentation", "rtstruct", "localizer", "secondary capture", "presentation state", "report", "other"
]

OWN_MODEL = "raysegment"
"""ManufacturerModelName of segmentations that raysegment wrote."""

STORAGE = "1.2.840.10008.5.1.4.1.1."
KINDS: dict[str, Kind] = {
    f"{STORAGE}66.4": "segmentation",
    f"{STORAGE}66.7": "segmentation",
    f"{STORAGE}481.3": "rtstruct",
    f"{STORAGE}7": "secondary capture",
    f"{STORAGE}481.2": "other",
    f"{STORAGE}67": "other",
    f"{STORAGE}4.2": "other",
    f"{STORAGE}77.1.5.3": "other",
}
"""Of SOP classes. RT doses, real-world value maps, MR spectra and pairs of stereo pictures are no scans."""

FAMILIES: dict[str, Kind] = {
    f"{STORAGE}7.": "secondary capture",
    f"{STORAGE}11.": "presentation state",
    f"{STORAGE}88.": "report",
    f"{STORAGE}104.": "report",
    f"{STORAGE}66": "other",
    f"{STORAGE}9.": "other",
    f"{STORAGE}68.": "other",
    "1.2.840.10008.1.3.10": "other",
}
"""Of SOP classes that begin so: documents; raw data, registrations, meshes, waveforms and DICOMDIR."""

IMAGES = re.compile(re.escape(STORAGE) + r"(1|2|3|4|6|12|13|14|20|30|77|128|130|481\.1)(\.|$)")
"""SOP classes that have pixels."""

LOCALIZERS = frozenset({"LOCALIZER", "SCOUT", "TOPOGRAM"})
MOSAIC = "MOSAIC"

WITH_PIXELS = ("image", "segmentation")
"""Kinds whose pixels somebody reads; of others they may be as they like."""

PATIENT = (tags.PATIENT, tags.ISSUER_OF_PATIENT)
DATES = (tags.ACQUISITION_DATE, tags.ACQUISITION_DATE_TIME, tags.SERIES_DATE, tags.STUDY_DATE)
DAY = re.compile(r"(\d{4})[.-]?(\d{2})[.-]?(\d{2})")
Numbers = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Instance:
    """What a file declares. Its texts may name patients: it is neither shown nor stored.

    Attributes:
        kind: What it is; only `image` is a scan or a part of one.
        patient: PatientID, with the issuer of it where that is given; empty where it is missing.
        study: StudyInstanceUID.
        series: SeriesInstanceUID.
        sop: SOPInstanceUID.
        sop_class: SOPClassUID.
        frame_of_reference: Its UID, empty where it is missing.
        referenced_series: Series that a segmentation was drawn on, where it says so.
        referenced_instances: SOPInstanceUIDs of the images that it was drawn on, those of its frames included.
        is_own: Whether it is a segmentation that raysegment wrote.
        modality: `MR`, `CT`, …; empty where it is missing.
        description: SeriesDescription.
        date: Day on which it was made, `YYYYMMDD`; empty where nobody says.
        number: InstanceNumber, which says nothing of where a slice lies.
        syntax: UID of the transfer syntax.
        pixels: How its pixels are stored, of images and segmentations.
        pixel_spacing: Distance of rows, distance of columns, in millimetres; None where it is missing.
        thickness: Of slices, in millimetres; None where it is missing.
        orientations: (frames, 6), direction of rows, then of columns, of each frame; None where they are missing.
        positions: (frames, 3), of the first pixel of each frame, in DICOM's millimetres (left, back, up).
        was_lossy: Whether the pixels were compressed with losses at any time.
    """

    kind: Kind
    patient: str
    study: str
    series: str
    sop: str
    sop_class: str
    frame_of_reference: str
    referenced_series: tuple[str, ...]
    referenced_instances: tuple[str, ...]
    is_own: bool
    modality: str
    description: str
    date: str
    number: int | None
    syntax: str
    pixels: PixelFormat | None
    pixel_spacing: tuple[float, float] | None
    thickness: float | None
    orientations: Numbers | None
    positions: Numbers | None
    was_lossy: bool

    @property
    def rows(self) -> int:
        """Height of a frame, 0 without pixels."""
        return 0 if self.pixels is None else self.pixels.rows

    @property
    def columns(self) -> int:
        """Width of a frame, 0 without pixels."""
        return 0 if self.pixels is None else self.pixels.columns

    @property
    def frames(self) -> int:
        """How many there are, 0 without pixels."""
        return 0 if self.pixels is None else self.pixels.frames

    @property
    def channels(self) -> int:
        """1, or 3 of colours; 0 without pixels."""
        return 0 if self.pixels is None else self.pixels.channels

    @property
    def dtype(self) -> np.dtype[np.generic]:
        """Type of one value once it is read and rescaled; of a byte without pixels."""
        return np.dtype(np.uint8) if self.pixels is None else self.pixels.dtype

    @property
    def orientation(self) -> tuple[float, ...] | None:
        """Of the first frame: direction of rows, then of columns."""
        return None if self.orientations is None else tuple(map(float, self.orientations[0]))

    @property
    def syntax_is_lossy(self) -> bool:
        """Whether the transfer syntax does not keep pixels as they were."""
        return self.syntax in LOSSY


def parse_instance(data: BinaryIO | bytes, name: str) -> Instance:
    """Read what a file declares; its pixels are not looked at.

    Args:
        data: The file, or its beginning up to its pixel data.
        name: For messages.

    Raises:
        ScanError: No DICOM, truncated, absurd, or an image without what an image needs; the message names the file and
            the cause, and never quotes the header.
    """
    found = read_elements(io.BytesIO(data) if isinstance(data, bytes) else data, tags.WANTED, name)
    elements = found.elements
    kind = _find_kind(found, name)
    places = find_places(elements, name) if kind in WITH_PIXELS else Places()
    encoding = find_encoding(elements.texts(tags.CHARACTER_SET))
    return Instance(
        kind=kind,
        patient="\\".join(filter(None, (elements.text(tag, encoding) for tag in PATIENT))),
        study=elements.text(tags.STUDY),
        series=elements.text(tags.SERIES),
        sop=elements.text(tags.SOP_INSTANCE),
        sop_class=elements.text(tags.SOP_CLASS),
        frame_of_reference=elements.text(tags.FRAME_OF_REFERENCE),
        referenced_series=_unique(_referenced_series(elements)),
        referenced_instances=_unique(_referenced_instances(elements)),
        is_own=kind == "segmentation" and elements.text(tags.MODEL_NAME) == OWN_MODEL,
        modality=elements.text(tags.MODALITY).upper(),
        description=elements.text(tags.SERIES_DESCRIPTION, encoding),
        date=_find_date(elements),
        number=_find_number(elements),
        syntax=found.syntax,
        pixels=find_pixel_format(found, places.rescale, name) if kind in WITH_PIXELS else None,
        pixel_spacing=places.pixel_spacing,
        thickness=places.thickness,
        orientations=places.orientations,
        positions=places.positions,
        was_lossy=found.syntax in LOSSY or elements.text(tags.WAS_LOSSY) == "01",
    )


def check_complete(instance: Instance, num_bytes: int, name: str) -> None:
    """Refuse a file that is shorter than its header says.

    Args:
        instance: Of the file.
        num_bytes: Its size.
        name: For messages.

    Raises:
        TruncatedFileError: Its pixels end behind the file.
    """
    pixels = instance.pixels
    if pixels is None or pixels.place.length is None or instance.syntax == DEFLATED:
        return
    end = pixels.place.offset + pixels.num_bytes
    if num_bytes < end:
        raise TruncatedFileError(f"{show_name(name)} has {num_bytes} bytes; its pixels end at byte {end}.")


def _find_kind(found: DataSet, name: str) -> Kind:
    elements = found.elements
    sop_class = elements.text(tags.SOP_CLASS) or found.media_class
    if not sop_class and found.pixels is None:
        raise UnreadableFileError(f"{show_name(name)} neither says what it is (no SOP class) nor has pixel data.")
    kind = KINDS.get(sop_class) or next((kind for start, kind in FAMILIES.items() if sop_class.startswith(start)), None)
    if kind is not None:
        return kind
    types = {text.upper() for text in elements.texts(tags.IMAGE_TYPE)}
    if types & LOCALIZERS:
        return "localizer"
    if MOSAIC in types:
        raise UnreadableFileError(
            f"{show_name(name)} is a mosaic, one picture of all slices side by side, which is not read. Convert it "
            "to NIfTI, or have it sent as slices."
        )
    has_pixels = found.pixels is not None and elements.short(tags.ROWS) is not None
    return "image" if has_pixels or IMAGES.match(sop_class) else "other"


def _referenced_series(elements: Elements) -> Iterator[str]:
    for holder in (elements, *elements.items.get(tags.OTHER_STUDIES, [])):
        for item in holder.items.get(tags.REFERENCED_SERIES, []):
            yield item.text(tags.SERIES)


def _referenced_instances(elements: Elements) -> Iterator[str]:
    """Of the file, of the series that it names, and of its frames."""
    series = elements.items.get(tags.REFERENCED_SERIES, [])
    images = [item for each in series for item in each.items.get(tags.REFERENCED_INSTANCE, [])]
    frames = elements.items.get(tags.SHARED, []) + elements.items.get(tags.PER_FRAME, [])
    derived = [item for frame in frames for item in frame.items.get(tags.DERIVATION, [])]
    for holder in (elements, *derived):
        images += holder.items.get(tags.SOURCE_IMAGE, [])
    for image in images:
        yield image.text(tags.REFERENCED_SOP)


def _unique(texts: Iterator[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(filter(None, texts)))


def _find_date(elements: Elements) -> str:
    """The first of the days that is one."""
    for tag in DATES:
        found = DAY.match(elements.text(tag))
        if found is None:
            continue
        year, month, day = map(int, found.groups())
        with contextlib.suppress(ValueError):
            return date(year, month, day).strftime("%Y%m%d")
    return ""


def _find_number(elements: Elements) -> int | None:
    with contextlib.suppress(ValueError):
        return int(elements.text(tags.INSTANCE_NUMBER))
    return None
