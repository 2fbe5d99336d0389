"""What the header of a NIfTI file declares: NIfTI-1 and NIfTI-2, either byte order.

Only numbers are read. Texts (`descrip`, `aux_file`, `db_name`, `intent_name`, extensions) may hold names of patients,
so they are neither parsed nor told. After https://nifti.nimh.nih.gov/nifti-1 and nifti-2.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from raysegment.archive.names import show_name
from raysegment.archive.orientation import Affine, corner_distance, spacing_of
from raysegment.errors import AffineError, TruncatedFileError, UnknownFormatError, UnreadableFileError
from raysegment.scan import Spacing

HEADER_BYTES = {348: 352, 540: 544}
"""Length that a header gives itself, and the first byte where voxels may lie."""

MAX_HEADER_BYTES = 544
MAX_OFFSET = 64 * 2**20
"""Extensions before the voxels are texts; nobody writes so many."""

FIELDS = {
    348: {
        "dim": (40, "8h"),
        "datatype": (70, "h"),
        "pixdim": (76, "8f"),
        "vox_offset": (108, "f"),
        "scaling": (112, "2f"),
        "units": (123, "B"),
        "qform_code": (252, "h"),
        "sform_code": (254, "h"),
        "quaternion": (256, "3f"),
        "qoffset": (268, "3f"),
        "srow": (280, "12f"),
    },
    540: {
        "dim": (16, "8q"),
        "datatype": (12, "h"),
        "pixdim": (104, "8d"),
        "vox_offset": (168, "q"),
        "scaling": (176, "2d"),
        "units": (500, "i"),
        "qform_code": (344, "i"),
        "sform_code": (348, "i"),
        "quaternion": (352, "3d"),
        "qoffset": (376, "3d"),
        "srow": (400, "12d"),
    },
}
"""Offset and type of the fields that are read."""

DATATYPES = {
    2: "u1",
    4: "i2",
    8: "i4",
    16: "f4",
    64: "f8",
    256: "i1",
    512: "u2",
    768: "u4",
    1024: "i8",
    1280: "u8",
}
OTHER_DATATYPES = {
    1: "single bits",
    32: "complex numbers",
    128: "RGB colours",
    1536: "128-bit floats",
    1792: "complex numbers",
    2048: "complex numbers",
    2304: "RGBA colours",
}

MILLIMETRES = {1: 1000.0, 3: 0.001}
"""Of a metre and of a micrometre; everything else is taken as millimetres."""

SMALLEST_MM, LARGEST_MM = 1e-6, 1e6
FARTHEST_MM = 1e9
FLATTEST = 1e-4
"""Volume of the box that three axes of length 1 span, below which they lie in one plane."""

LONGEST_QUATERNION = 1.01
DISAGREEMENT_SHARE = 0.1
"""Share of the smallest spacing by which two descriptions of a grid may differ."""


@dataclass(frozen=True, eq=False)
class NiftiHeader:
    """What a NIfTI header declares.

    Attributes:
        shape: Sizes of the stored axes: three, or four where the last is more than 1.
        stored: Type of one value in the file, with its byte order.
        offset: First byte of the voxels, after decompression.
        scaling: Slope and intercept; None where values are as stored.
        spacing_mm: Distance of voxel centres along the three stored axes.
        affine: 4x4, stored index to RAS+ millimetres; None where the file only has spacing.
        note: In which way the header contradicts itself; None where it does not.
    """

    shape: tuple[int, ...]
    stored: np.dtype[Any]
    offset: int
    scaling: tuple[float, float] | None
    spacing_mm: Spacing
    affine: Affine | None
    note: str | None = None

    @property
    def num_values(self) -> int:
        return math.prod(self.shape)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of one value once it is read: single precision where it is scaled."""
        return np.dtype(np.float32) if self.scaling else self.stored.newbyteorder("=")


def is_nifti_head(head: bytes) -> bool:
    """Whether decompressed bytes begin like NIfTI or its forerunner Analyze."""
    return head[:4] in {struct.pack(order + "i", size) for order in "<>" for size in HEADER_BYTES}


def parse_header(head: bytes, name: str) -> NiftiHeader:
    """Read a header from the first bytes of a file, decompressed.

    Args:
        head: `MAX_HEADER_BYTES`, or the whole file where that is shorter.
        name: For messages.

    Raises:
        ScanError: No NIfTI, truncated, or a header that describes no volume of numbers.
    """
    if not is_nifti_head(head):
        raise UnknownFormatError(f"{show_name(name)}: the first bytes are not those of a NIfTI file.")
    order = "<" if struct.unpack("<i", head[:4])[0] in HEADER_BYTES else ">"
    (size,) = struct.unpack(order + "i", head[:4])
    if len(head) < size:
        raise TruncatedFileError(f"{show_name(name)} ends before its header does.")
    _check_magic(head, size, name)
    fields = {field: struct.unpack_from(order + kind, head, at) for field, (at, kind) in FIELDS[size].items()}
    affine, spacing_mm, note = _find_affine(fields, name)
    return NiftiHeader(
        shape=_find_shape(fields["dim"], name),
        stored=_find_dtype(fields["datatype"][0], order, name),
        offset=_find_offset(fields["vox_offset"][0], HEADER_BYTES[size], name),
        scaling=_find_scaling(fields["scaling"], name),
        spacing_mm=spacing_mm,
        affine=affine,
        note=note if affine is None else note or _find_disagreement(fields, affine, _find_shape(fields["dim"], name)),
    )


def _check_magic(head: bytes, size: int, name: str) -> None:
    magic = head[344:348] if size == 348 else head[4:12]
    if magic in (b"n+1\0", b"n+2\0\r\n\x1a\n"):
        return
    if magic in (b"ni1\0", b"ni2\0\r\n\x1a\n"):
        raise UnknownFormatError(
            f"{show_name(name)} is half of a NIfTI pair (.hdr and .img), which is not read; convert it to one .nii.gz."
        )
    raise UnknownFormatError(
        f"{show_name(name)} has no NIfTI magic: Analyze 7.5, which does not say where left is, or a damaged header; "
        "convert it to .nii.gz."
    )


def _find_shape(dim: tuple[int, ...], name: str) -> tuple[int, ...]:
    """Sizes of at least three axes; trailing ones of 1 are dropped."""
    if not 1 <= dim[0] <= 7:
        raise UnreadableFileError(f"{show_name(name)}: the header declares {dim[0]} dimensions; expected 3.")
    sizes = list(dim[1 : dim[0] + 1])
    if min(sizes) < 1:
        raise UnreadableFileError(f"{show_name(name)}: the header declares sizes of {sizes}; expected 1 or more.")
    while sizes[-1:] == [1]:
        sizes.pop()
    if len(sizes) > 4:
        raise UnreadableFileError(
            f"{show_name(name)} has {len(sizes)} dimensions ({' x '.join(map(str, sizes))}); expected a volume of 3, "
            "or of 4 where the last one is channels."
        )
    return tuple(sizes + [1] * (3 - len(sizes)))


def _find_dtype(datatype: int, order: str, name: str) -> np.dtype[Any]:
    if datatype in DATATYPES:
        return np.dtype(order + DATATYPES[datatype])
    kind = OTHER_DATATYPES.get(datatype, f"values of an unknown type ({datatype})")
    raise UnreadableFileError(f"{show_name(name)} holds {kind}; expected whole or floating-point numbers.")


def _find_offset(declared: float, first: int, name: str) -> int:
    """0 means right behind the header."""
    if declared == 0:
        return first
    if not math.isfinite(declared) or declared != int(declared) or not first <= declared <= MAX_OFFSET:
        raise UnreadableFileError(
            f"{show_name(name)}: the header declares voxels from byte {declared:g} (vox_offset); expected a whole "
            f"number from {first} to {MAX_OFFSET}."
        )
    return int(declared)


def _find_scaling(declared: tuple[Any, ...], name: str) -> tuple[float, float] | None:
    """Slope and intercept; a slope of 0 or NaN means values as they are."""
    slope, intercept = declared
    if slope == 0 or not math.isfinite(slope) or (slope, intercept) == (1, 0):
        return None
    if not math.isfinite(intercept):
        raise UnreadableFileError(f"{show_name(name)}: slope {slope:g} with intercept {intercept:g}.")
    return float(slope), float(intercept)


def _find_affine(fields: dict[str, tuple[Any, ...]], name: str) -> tuple[Affine | None, Spacing, str | None]:
    """Affine, spacing in millimetres: sform if its code is above 0, else qform, else spacing alone."""
    factor = MILLIMETRES.get(fields["units"][0] & 7, 1.0)
    if fields["sform_code"][0] > 0:
        affine, source = _sform(fields), "sform"
    elif fields["qform_code"][0] > 0:
        affine, source = _qform(fields, name), "qform"
    else:
        x, y, z = _pixdim(fields, name) * factor
        return None, (float(x), float(y), float(z)), None
    _check_affine(affine, f"{show_name(name)}: the {source}")
    affine[:3] *= factor
    return affine, spacing_of(affine), None


def _sform(fields: dict[str, tuple[Any, ...]]) -> Affine:
    return np.array([*fields["srow"], 0, 0, 0, 1], np.float64).reshape(4, 4)


def _qform(fields: dict[str, tuple[Any, ...]], name: str) -> Affine:
    """The affine of a quaternion, spacing and an origin."""
    b, c, d = (float(value) for value in fields["quaternion"])
    length = b * b + c * c + d * d
    if not length <= LONGEST_QUATERNION:
        raise AffineError(f"{show_name(name)}: the qform's quaternion is no rotation (its length is {length:g}).")
    a = math.sqrt(max(0.0, 1 - length))
    rotation = np.array(
        [
            [a * a + b * b - c * c - d * d, 2 * (b * c - a * d), 2 * (b * d + a * c)],
            [2 * (b * c + a * d), a * a + c * c - b * b - d * d, 2 * (c * d - a * b)],
            [2 * (b * d - a * c), 2 * (c * d + a * b), a * a + d * d - b * b - c * c],
        ]
    )
    if length > 1:
        rotation /= length
    spacing = _pixdim(fields, name)
    spacing[2] *= -1 if fields["pixdim"][0] < 0 else 1
    affine = np.eye(4)
    affine[:3, :3] = rotation * spacing
    affine[:3, 3] = fields["qoffset"]
    return affine


def _pixdim(fields: dict[str, tuple[Any, ...]], name: str) -> npt.NDArray[np.float64]:
    spacing = np.array(fields["pixdim"][1:4], np.float64)
    if not all(SMALLEST_MM <= value <= LARGEST_MM for value in spacing):
        shown = " x ".join(f"{value:g}" for value in spacing)
        raise AffineError(f"{show_name(name)}: the header declares a spacing of {shown} mm (pixdim).")
    return spacing


def _check_affine(affine: Affine, what: str) -> None:
    """Refuse an affine that puts voxels nowhere, or all of them into a plane."""
    if not np.isfinite(affine).all():
        raise AffineError(f"{what} holds NaN or infinity.")
    if np.abs(affine).max() > FARTHEST_MM:
        raise AffineError(f"{what} holds {np.abs(affine).max():.3g}; expected millimetres.")
    spacing = spacing_of(affine)
    if not all(SMALLEST_MM <= value <= LARGEST_MM for value in spacing):
        shown = " x ".join(f"{value:g}" for value in spacing)
        raise AffineError(f"{what} declares a spacing of {shown} mm.")
    if abs(np.linalg.det(affine[:3, :3] / np.array(spacing))) < FLATTEST:
        raise AffineError(f"{what} is singular: its three axes lie in one plane.")


def _find_disagreement(fields: dict[str, tuple[Any, ...]], affine: Affine, shape: tuple[int, ...]) -> str | None:
    """Whether sform and qform, where a file has both, put its corners at different places."""
    if fields["sform_code"][0] <= 0 or fields["qform_code"][0] <= 0:
        return None
    try:
        other = _qform(fields, "")
        _check_affine(other, "")
        other[:3] *= MILLIMETRES.get(fields["units"][0] & 7, 1.0)
    except AffineError:
        return "its qform is broken; the sform is taken"
    apart = corner_distance(affine, other, shape)
    if apart <= DISAGREEMENT_SHARE * min(spacing_of(affine)):
        return None
    return f"sform and qform place voxels up to {apart:.3g} mm apart; the sform is taken"
