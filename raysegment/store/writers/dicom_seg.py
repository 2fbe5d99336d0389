"""A mask as a DICOM segmentation that refers to the images it was drawn on.

What it takes of the source's headers: `dicom_sources`. After PS3.3, A.51 and C.8.20.
"""

from __future__ import annotations

import hashlib
import re
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from raysegment.errors import MissingExtraError, UnknownGridError, UnreadableFileError
from raysegment.scan import Colour, Labels, Mask
from raysegment.store.place import write_whole
from raysegment.store.writers.dicom_sources import copy_sources

OWN_MODEL = "raysegment"
"""Manufacturer and model of what is written here: by it `index` knows that it is no person's reference."""

RESEARCH_USE = "raysegment, for research use only"
SERIES_DESCRIPTION = f"Segmentation ({RESEARCH_USE})"
CONTENT_LABEL = "SEGMENTATION"
SERIES_NUMBER_OFFSET = 1000
MAX_SERIES_NUMBER = 2**31 - 1

UTF_8 = "ISO_IR 192"
MAX_TEXT = 64
"""Characters of a label or of a code's meaning."""

TISSUE = ("SCT", "85756007", "Tissue")
"""Category and type of a label without a code, as other tools have it: the standard demands both."""

CATEGORIES = {
    7194: ("SCT", "49755003", "Morphologically Abnormal Structure"),
    7192: ("SCT", "123037004", "Anatomical Structure"),
    7191: TISSUE,
    7197: ("SCT", "91720002", "Body Substance"),
    7198: ("SCT", "105590001", "Substance"),
    7193: ("SCT", "260787004", "Physical Object"),
    7195: ("SCT", "246464006", "Function"),
    7196: ("SCT", "309825002", "Spatial and Relational Concept"),
}
"""Of PS3.16, CID 7150, by the context group that lists the category's types."""

NAMESPACE = uuid.UUID("6f2c9f0e-6a0c-4d0a-9d0e-1f6d2b8f7a11")

_NOT_IN_TEXTS = re.compile(r"[\x00-\x1f\x7f\\]")


@dataclass(frozen=True, kw_only=True)
class Maker:
    """What made a mask.

    Attributes:
        version: Of raysegment.
        model_id: Of the bundle.
        options_id: Of the options that decide a mask.
        made: When the run began.
    """

    version: str
    model_id: str
    options_id: str
    made: datetime


def require_highdicom() -> None:
    """Whether segmentations can be written here.

    Raises:
        MissingExtraError: highdicom is not installed; names the command that installs it.
    """
    try:
        import highdicom  # noqa: F401
    except ImportError:
        raise MissingExtraError(
            "DICOM segmentations are written with highdicom, which is not installed: pip install 'raysegment[dicom]'"
        ) from None


def write_segmentation(
    path: Path, mask: Mask, values: Mapping[str, int], sources: Sequence[Any], labels: Labels, maker: Maker, name: str
) -> None:
    """Write a mask as a binary segmentation, one segment a label, in one step.

    Frames of a segment that are empty are left out; of an empty mask one is written, because the standard demands one.
    The same mask, model and options on the same images have the same UIDs in every export. To be called
    while pydicom and highdicom are silent, because they warn of headers and quote them.

    Args:
        path: The file.
        mask: (frames, rows, columns), the label's value in each voxel; (labels, frames, rows, columns) where labels
            overlap.
        values: The value of each label in the mask, in the labels' order.
        sources: pydicom data sets of the images of one series, each frame of the mask has one, or one with as many
            frames; pixels are not needed.
        labels: What is known of the labels: colours and codes.
        maker: What made the mask.
        name: For messages.

    Raises:
        UnknownGridError: The sources do not say where they lie, and their kind must.
        UnreadableFileError: The sources' headers cannot stand in a segmentation.
        DiskFullError: No space left.
        OutputError: The system refuses the file.
    """
    try:
        segmentation = _make(mask, values, sources, labels, maker)
    except (UnknownGridError, MemoryError):
        raise
    except Exception as error:
        # Messages of libraries quote headers.
        raise UnreadableFileError(
            f"{name}: the headers of its files cannot stand in a DICOM segmentation ({type(error).__name__}). "
            "Export --to nifti."
        ) from None
    with write_whole(path) as temporary:
        segmentation.save_as(temporary, enforce_file_format=True)


def _make(mask: Mask, values: Mapping[str, int], sources: Sequence[Any], labels: Labels, maker: Maker) -> Any:
    from highdicom.seg import Segmentation

    headers = copy_sources(sources)
    pixels = _number_segments(mask, values)
    series_uid, sop_uid, dimension_uid = _make_uids(pixels, values, headers, labels, maker)
    is_empty = not pixels.any()
    if is_empty:
        pixels.flat[0] = 1
    moment = {"content_date": maker.made.date(), "content_time": maker.made.time()}
    segmentation = Segmentation(
        source_images=headers,
        pixel_array=pixels,
        segmentation_type="BINARY",
        segment_descriptions=_describe_segments(list(values), labels, maker),
        series_instance_uid=series_uid,
        series_number=_series_number(sources[0]),
        sop_instance_uid=sop_uid,
        instance_number=1,
        manufacturer=OWN_MODEL,
        manufacturer_model_name=OWN_MODEL,
        software_versions=maker.version,
        device_serial_number=maker.model_id[:MAX_TEXT] or OWN_MODEL,
        content_description=RESEARCH_USE,
        content_label=CONTENT_LABEL,
        series_description=SERIES_DESCRIPTION,
        specific_character_set=UTF_8,
        **moment,
    )
    for item in [*segmentation.DimensionOrganizationSequence, *segmentation.DimensionIndexSequence]:
        item.DimensionOrganizationUID = dimension_uid
    if is_empty:
        segmentation.PixelData = bytes(len(segmentation.PixelData))
    for item in segmentation.get("ContributingEquipmentSequence", []):
        item.ContributionDateTime = maker.made
    segmentation.InstanceCreationDate, segmentation.InstanceCreationTime = moment.values()
    return segmentation


def _number_segments(mask: Mask, values: Mapping[str, int]) -> Any:
    """Segments by their numbers: (frames, rows, columns), or (frames, rows, columns, segments) where they overlap."""
    if mask.ndim == 4:
        return np.moveaxis(mask != 0, 0, -1).astype(np.uint8)
    numbers = np.zeros(max([*values.values(), int(mask.max(initial=0))]) + 1, np.min_scalar_type(len(values)))
    for number, value in enumerate(values.values(), 1):
        numbers[value] = number
    return numbers[mask]


def _describe_segments(names: Sequence[str], labels: Labels, maker: Maker) -> list[Any]:
    from highdicom import AlgorithmIdentificationSequence
    from highdicom.color import CIELabColor
    from highdicom.seg import SegmentDescription
    from pydicom.sr.codedict import codes

    algorithm = AlgorithmIdentificationSequence(
        name=OWN_MODEL,
        family=codes.cid7162.ArtificialIntelligence,
        version=maker.version,
        source=OWN_MODEL,
        parameters={"model_id": maker.model_id, "options_id": maker.options_id},
    )
    segments = []
    for number, name in enumerate(names, 1):
        code, colour = _code_of(labels, name), _colour_of(labels, name)
        category, kind = _find_codes(code, _as_label(name))
        segments.append(
            SegmentDescription(
                segment_number=number,
                segment_label=_as_label(name),
                segmented_property_category=category,
                segmented_property_type=kind,
                algorithm_type="AUTOMATIC",
                algorithm_identification=algorithm,
                display_color=None if colour is None else CIELabColor.from_rgb(*colour),
            )
        )
    return segments


@lru_cache(maxsize=256)
def _find_codes(code: str | None, name: str) -> tuple[Any, Any]:
    """Category and type of what a label is: its code with the meaning that the standard lists, else its own name."""
    from pydicom.sr.codedict import codes
    from pydicom.sr.coding import Code

    def as_code(scheme: str, value: str, meaning: str) -> Any:
        return Code(value, scheme, meaning)

    if code is None:
        return as_code(*TISSUE), as_code(*TISSUE)
    scheme, _, value = code.partition(":")
    for group, category in CATEGORIES.items():
        for known in getattr(codes, f"cid{group}").concepts.values():
            if known == as_code(scheme, value, name):
                return as_code(*category), as_code(scheme, value, known.meaning[:MAX_TEXT])
    return as_code(*TISSUE), as_code(scheme, value, name)


def _code_of(labels: Labels, name: str) -> str | None:
    known = dict(zip(labels.names, labels.codes, strict=False))
    return known.get(name)


def _colour_of(labels: Labels, name: str) -> Colour | None:
    known = dict(zip(labels.names, labels.colours, strict=False))
    return known.get(name)


def _as_label(name: str) -> str:
    """A name as DICOM takes it: 64 characters, none of them special."""
    return _NOT_IN_TEXTS.sub("_", name)[:MAX_TEXT].strip() or "label"


def _series_number(source: Any) -> int:
    try:
        number = int(source.get("SeriesNumber") or 0)
    except (TypeError, ValueError):
        number = 0
    return min(max(number, 0) + SERIES_NUMBER_OFFSET, MAX_SERIES_NUMBER)


def _make_uids(
    pixels: Any, values: Mapping[str, int], headers: Sequence[Any], labels: Labels, maker: Maker
) -> tuple[str, str, str]:
    """UIDs of series, instance and dimensions: by what they stand for."""
    series = [str(headers[0].SeriesInstanceUID), maker.model_id, maker.options_id]
    content = hashlib.sha256(np.ascontiguousarray(pixels).data)
    known = [f"{name}={_code_of(labels, name)}={_colour_of(labels, name)}" for name in values]
    content.update("\0".join([*series, *known, *(str(header.SOPInstanceUID) for header in headers)]).encode())
    shape = "x".join(map(str, pixels.shape))
    return (
        _uid("series", *series),
        _uid("instance", *series, shape, content.hexdigest()),
        _uid("dimensions", *series, shape, content.hexdigest()),
    )


def _uid(*words: str) -> str:
    """A UID that is made of a UUID, which is made of words. After PS3.5, B.2."""
    return f"2.25.{uuid.uuid5(NAMESPACE, chr(0).join(words)).int}"
