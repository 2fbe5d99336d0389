"""A mask as a NIfTI volume: the grid of its source to the last digit, and none of the source's texts.

Headers go through here as bytes, so that affines, codes and byte order come out as they went in. After
https://nifti.nimh.nih.gov/nifti-1 and nifti-2.
"""

from __future__ import annotations

import gzip
import struct
from pathlib import Path
from typing import Any, Literal

import nibabel
import numpy as np
import numpy.typing as npt

from raysegment.store.place import write_whole

MAX_HEADER_BYTES = 540
"""So many bytes of a source hold its header, NIfTI-1 or NIfTI-2."""

COMPRESSION_LEVEL = 6
BYTES_AT_ONCE = 16 * 2**20
NO_EXTENSIONS = bytes(4)

DATATYPES = {"u1": 2, "u2": 512}

ALIGNED = 2
"""Code of an affine that came from elsewhere than the scanner's own file."""

FIELDS: dict[int, dict[str, tuple[int, str]]] = {
    348: {
        "dim": (40, "8h"),
        "intent_numbers": (56, "3f"),
        "intent_code": (68, "h"),
        "datatype": (70, "h"),
        "bitpix": (72, "h"),
        "vox_offset": (108, "f"),
        "scaling": (112, "2f"),
        "cal": (124, "2f"),
        "data_type": (4, "10s"),
        "db_name": (14, "18s"),
        "descrip": (148, "80s"),
        "aux_file": (228, "24s"),
        "intent_name": (328, "16s"),
    },
    540: {
        "dim": (16, "8q"),
        "intent_numbers": (80, "3d"),
        "intent_code": (504, "i"),
        "datatype": (12, "h"),
        "bitpix": (14, "h"),
        "vox_offset": (168, "q"),
        "scaling": (176, "2d"),
        "cal": (192, "2d"),
        "descrip": (240, "80s"),
        "aux_file": (320, "24s"),
        "intent_name": (508, "16s"),
        "unused": (525, "15s"),
    },
}
"""Offset and type of the fields that a mask does not share with its source, by length of the header."""


def make_header(shape: tuple[int, int, int], affine: npt.NDArray[np.float64]) -> bytes:
    """A NIfTI-1 header for a grid that comes from no NIfTI file.

    Args:
        shape: (i, j, k).
        affine: 4x4, from (i, j, k, 1) to RAS+ millimetres.
    """
    header = nibabel.Nifti1Header()
    header.set_data_shape(shape)
    header.set_xyzt_units("mm")
    header.set_qform(affine, code=ALIGNED)
    header.set_sform(affine, code=ALIGNED)
    return bytes(header.binaryblock)


def adapt_header(source: bytes, voxels: npt.NDArray[Any]) -> bytes:
    """The header of a mask on a source's grid.

    Everything that says where voxels are stays byte for byte: matrices, codes, spacing, units, byte order. New are the
    type of values and what belongs to it (scaling, display range, intent); a fourth axis of channels goes; texts and
    extensions are left out, because they may name patients.

    Args:
        source: The source's first bytes, at least its header.
        voxels: uint8 or uint16, (i, j, k) as the source stores them.

    Raises:
        ValueError: No NIfTI header, or other voxels than it declares.
    """
    order, size = _find_layout(source)
    header, fields = bytearray(source[:size]), FIELDS[size]
    kind = voxels.dtype.kind + str(voxels.dtype.itemsize)
    at, form = fields["dim"]
    sizes = struct.unpack_from(order + form, source, at)
    declared = tuple(sizes[axis] if axis <= sizes[0] else 1 for axis in range(1, 4))
    if declared != voxels.shape or kind not in DATATYPES:
        raise ValueError(f"{kind} voxels {voxels.shape} under a header for {declared}")
    blank = {name: (b"",) for name, (_, form) in fields.items() if form.endswith("s")}
    if any(number != 1 for number in sizes[4 : sizes[0] + 1]):
        blank["dim"] = (3, *declared, 1, 1, 1, 1)
    values: dict[str, tuple[Any, ...]] = blank | {
        "intent_numbers": (0, 0, 0),
        "intent_code": (0,),
        "datatype": (DATATYPES[kind],),
        "bitpix": (8 * voxels.dtype.itemsize,),
        "vox_offset": (size + len(NO_EXTENSIONS),),
        "scaling": (1, 0),
        "cal": (0, 0),
    }
    for name, numbers in values.items():
        at, form = fields[name]
        struct.pack_into(order + form, header, at, *numbers)
    return bytes(header)


def write_volume(path: Path, voxels: npt.NDArray[Any], header: bytes) -> None:
    """Write a mask as `.nii.gz` in one step; the same mask and header always give the same bytes.

    Args:
        path: The file; folders above it are made.
        voxels: uint8 or uint16, (i, j, k).
        header: Of its source, or of `make_header`.

    Raises:
        DiskFullError: No space left.
        OutputError: The system refuses the file.
    """
    adapted = adapt_header(header, voxels)
    stored = voxels.astype(voxels.dtype.newbyteorder(_find_layout(header)[0]), copy=False)
    with (
        write_whole(path) as temporary,
        temporary.open("wb") as file,
        gzip.GzipFile("", "wb", COMPRESSION_LEVEL, file, mtime=0) as packed,
    ):
        packed.write(adapted + NO_EXTENSIONS)
        _write_slabs(packed, stored)


def _write_slabs(packed: gzip.GzipFile, voxels: npt.NDArray[Any]) -> None:
    """The first axis runs fastest; some planes at a time, so that a large mask is not copied whole."""
    planes = max(1, BYTES_AT_ONCE // max(1, voxels[:, :, :1].nbytes))
    for start in range(0, voxels.shape[2], planes):
        packed.write(voxels[:, :, start : start + planes].tobytes(order="F"))


def _find_layout(header: bytes) -> tuple[Literal["<", ">"], int]:
    """Byte order and length of a header."""
    orders: tuple[Literal["<", ">"], ...] = ("<", ">")
    for order in orders:
        (size,) = struct.unpack(order + "i", header[:4].ljust(4, b"\0"))
        if size in FIELDS and len(header) >= size:
            return order, int(size)
    raise ValueError("no NIfTI header")
