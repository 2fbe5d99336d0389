"""DICOM segmentations made with highdicom: of a series, from label maps, overlapping segments or fractions."""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from typing import Any

import highdicom
import numpy as np
from dicom_made import make_uid
from highdicom.seg import Segmentation, SegmentDescription
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes


def make_segmentation(
    series: Sequence[Dataset], mask: np.ndarray, labels: Sequence[str] = ("Lesion",), kind: str = "BINARY", **given: Any
) -> Segmentation:
    """A person's segmentation of a series.

    Args:
        series: Images in the order of the mask's slices, or one enhanced image.
        mask: (slices, rows, columns) with the number of each voxel's segment, or with an axis of segments behind.
        labels: SegmentLabel of each segment.
        kind: `BINARY`, `FRACTIONAL` or `LABELMAP`.
        given: Further arguments of highdicom.
    """
    segments = [
        SegmentDescription(number, label, codes.cid7150.Tissue, codes.cid7191.Tissue, "MANUAL")
        for number, label in enumerate(labels, 1)
    ]
    chosen: dict[str, Any] = {
        "source_images": list(series),
        "pixel_array": mask,
        "segmentation_type": kind,
        "segment_descriptions": segments,
        "series_instance_uid": make_uid("drawn", kind),
        "series_number": 9,
        "sop_instance_uid": make_uid("drawn", kind, mask.tobytes()),
        "instance_number": 1,
        "manufacturer": "A person",
        "manufacturer_model_name": "Pencil",
        "software_versions": "1",
        "device_serial_number": "1",
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return Segmentation(**chosen | given)


def segmentation_bytes(made: Dataset) -> bytes:
    """The file."""
    stream = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made.save_as(stream, enforce_file_format=True)
    return stream.getvalue()


def read_by_highdicom(data: bytes, sources: Sequence[str]) -> np.ndarray:
    """(images, rows, columns, segments) of 0 and 1, by the images that frames refer to."""
    segmentation = highdicom.seg.segread(io.BytesIO(data))
    return segmentation.get_pixels_by_source_instance(
        list(sources), ignore_spatial_locations=True, assert_missing_frames_are_empty=True
    )
