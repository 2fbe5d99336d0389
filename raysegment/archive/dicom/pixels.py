"""From the bytes of a DICOM file to its frames, as numbers that mean what the header says.

Plain pixels are read by NumPy, RLE by pydicom, JPEG of all kinds by gdcm through pydicom's decoders, JPEG of 12 bits by
imagecodecs. What a compressed picture says of its size must be what the header says, before it is decoded.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from raysegment.archive.dicom.codestream import check_fragments, read_picture
from raysegment.archive.dicom.elements import inflate
from raysegment.archive.dicom.header import Instance, check_complete
from raysegment.archive.dicom.library import quiet_libraries, silence_gdcm
from raysegment.archive.dicom.pixel_format import FLOATS, MAX_INSTANCE_BYTES, PixelFormat, Table
from raysegment.archive.dicom.syntaxes import COMPRESSED, EXPLICIT_BIG, JPEG, NATIVE, RLE, describe_syntax
from raysegment.archive.names import show_name
from raysegment.errors import ScanError, TruncatedFileError, UnreadableFileError
from raysegment.scan import Pixels

Numbers = npt.NDArray[Any]

TWELVE_BITS = f"{JPEG}51"
"""The syntax of JPEG with up to 12 bits, which gdcm reads up to 8."""

SIGN_ELSEWHERE = frozenset(f"{JPEG}{number}" for number in (80, 81, 90, 91))
"""Syntaxes whose pictures may say nothing of signs, or something else than the header does."""

CORRECTIONS = ("apply_j2k_sign_correction", "apply_jls_sign_correction", "correct_unused_bits")
"""What pydicom's decoders would do to signs and unused bits; it is done here, for plain and compressed pixels alike."""

SUBSAMPLED = "YBR_FULL_422"


def read_frames(data: bytes, instance: Instance, name: str) -> Pixels:
    """All frames of a file, in the order in which they are stored.

    Args:
        data: The file.
        instance: What it declares.
        name: For messages.

    Returns:
        (frames, rows, columns, channels) of `instance.dtype`, rescaled; MONOCHROME1 inverted, so that air is dark in
        all of them; colours as red, green, blue.

    Raises:
        TruncatedFileError: There are fewer pixels than declared.
        UnreadableFileError: They cannot be decoded, or are not what the header says.
    """
    pixels = instance.pixels
    if pixels is None:
        raise UnreadableFileError(f"{show_name(name)} has no pixel data that are an image.")
    frames = np.empty((pixels.frames, pixels.rows, pixels.columns, pixels.channels), pixels.dtype)
    for index, frame in enumerate(iterate_stored(data, instance, name)):
        _convert(frame, pixels, index, frames[index])
    return frames


def iterate_stored(data: bytes, instance: Instance, name: str) -> Iterator[Numbers]:
    """Each frame of a file with the values that are stored, (rows, columns, samples); colours as red, green, blue.

    Args:
        data: The file.
        instance: What it declares.
        name: For messages.

    Raises:
        TruncatedFileError: There are fewer frames than declared.
        UnreadableFileError: They cannot be decoded, or are not what the header says.
    """
    pixels = instance.pixels
    if pixels is None:
        raise UnreadableFileError(f"{show_name(name)} has no pixel data that are an image.")
    check_complete(instance, len(data), name)
    iterate = _iterate_native if instance.syntax in NATIVE else _iterate_compressed
    num_read = 0
    for frame in iterate(data, instance, pixels, name):
        num_read += 1
        if num_read <= pixels.frames:
            yield frame
    if num_read != pixels.frames:
        raise TruncatedFileError(f"{show_name(name)} holds {num_read} frames; its header declares {pixels.frames}.")


def _iterate_native(data: bytes, instance: Instance, pixels: PixelFormat, name: str) -> Iterator[Numbers]:
    """Frames as stored, (rows, columns, samples)."""
    if pixels.place.packed_from is not None:
        data = inflate(data[pixels.place.packed_from :], MAX_INSTANCE_BYTES, name, is_whole=True)
        if len(data) < pixels.place.offset + pixels.num_bytes:
            raise TruncatedFileError(f"{show_name(name)} ends before its pixels do.")
    if pixels.photometric == SUBSAMPLED:
        yield from _decode(data, instance, pixels, name)
        return
    if pixels.allocated == 1:
        yield from _unpack_bits(data, pixels)
        return
    values = _take_values(data, pixels, is_big=instance.syntax == EXPLICIT_BIG)
    shape = (pixels.rows, pixels.columns, pixels.samples)
    for frame in values.reshape(pixels.frames, -1):
        if pixels.is_planar and pixels.samples > 1:
            turned = frame.reshape(shape[2], *shape[:2]).transpose(1, 2, 0)
        else:
            turned = frame.reshape(shape)
        yield _to_rgb(turned) if pixels.photometric == "YBR_FULL" else turned


def _unpack_bits(data: bytes, pixels: PixelFormat) -> Iterator[Numbers]:
    """Frames of single bits, the first one in the lowest bit; a frame may begin within a byte."""
    packed = np.frombuffer(data, np.uint8, pixels.num_bytes, pixels.place.offset)
    size = pixels.rows * pixels.columns * pixels.samples
    for index in range(pixels.frames):
        first, skipped = divmod(index * size, 8)
        bits = np.unpackbits(packed[first : first + -(-(skipped + size) // 8)], bitorder="little")
        yield bits[skipped : skipped + size].reshape(pixels.rows, pixels.columns, pixels.samples)


def _take_values(data: bytes, pixels: PixelFormat, *, is_big: bool) -> Numbers:
    """All values in a row, as stored; without a copy where each has bytes of its own."""
    num_values = pixels.frames * pixels.rows * pixels.columns * pixels.samples
    offset = pixels.place.offset
    if is_big and pixels.allocated == 8 and pixels.place.is_words:
        words = np.frombuffer(data, np.uint8, num_values + num_values % 2, offset)
        return words.reshape(-1, 2)[:, ::-1].reshape(-1)[:num_values].view(pixels.stored_dtype)
    dtype = pixels.stored_dtype.newbyteorder(">" if is_big else "<")
    return np.frombuffer(data, dtype, num_values, offset)


def _iterate_compressed(data: bytes, instance: Instance, pixels: PixelFormat, name: str) -> Iterator[Numbers]:
    if instance.syntax not in COMPRESSED:
        raise UnreadableFileError(f"{show_name(name)} is compressed by {describe_syntax(instance.syntax)}, not read.")
    check_fragments(data, pixels.place.offset, name)
    yield from _decode(data, instance, pixels, name)


def _decode(data: bytes, instance: Instance, pixels: PixelFormat, name: str) -> Iterator[Numbers]:
    """Frames that a library decodes; whatever it says of its trouble stays here."""
    try:
        with quiet_libraries():
            yield from _ask_library(data, instance, pixels, name)
    except (ScanError, MemoryError):
        raise
    except Exception as error:
        raise UnreadableFileError(
            f"{show_name(name)}: its pixels ({describe_syntax(instance.syntax)}) cannot be decoded "
            f"({type(error).__name__})."
        ) from None


def _ask_library(data: bytes, instance: Instance, pixels: PixelFormat, name: str) -> Iterator[Numbers]:
    from pydicom.encaps import generate_frames
    from pydicom.pixels import get_decoder

    shape = (pixels.rows, pixels.columns, pixels.samples)
    stream = io.BytesIO(data)
    bits: list[int] = []
    if instance.syntax not in NATIVE:
        is_twelve = False
        stream.seek(pixels.place.offset)
        for codes in generate_frames(stream, number_of_frames=pixels.frames):
            bits.append(_check_picture(codes, pixels, name))
            is_twelve = instance.syntax == TWELVE_BITS and bits[-1] > 8
            if is_twelve:
                yield _decode_twelve(codes).reshape(shape)
        if is_twelve:
            return
    stream.seek(pixels.place.offset)
    plugin = "" if instance.syntax in NATIVE else "pydicom" if instance.syntax == RLE else "gdcm"
    if plugin == "gdcm":
        silence_gdcm()
    choices: dict[str, Any] = {
        "rows": pixels.rows,
        "columns": pixels.columns,
        "number_of_frames": pixels.frames,
        "samples_per_pixel": pixels.samples,
        "photometric_interpretation": pixels.photometric,
        "planar_configuration": int(pixels.is_planar),
        "pixel_representation": int(pixels.is_signed),
        "bits_allocated": pixels.allocated,
        "bits_stored": pixels.stored,
        "pixel_keyword": "PixelData",
        **dict.fromkeys(CORRECTIONS, False),
    }
    frames = get_decoder(instance.syntax).iter_array(stream, decoding_plugin=plugin, **choices)
    for index, (frame, _) in enumerate(frames):
        decoded = frame.reshape(shape).astype(pixels.stored_dtype, copy=False)
        num_bits = bits[index] if index < len(bits) and instance.syntax in SIGN_ELSEWHERE else 0
        yield _extend_sign(decoded, num_bits) if num_bits else decoded


def _check_picture(codes: bytes, pixels: PixelFormat, name: str) -> int:
    """Bits of a compressed picture, 0 where it does not say; one of another size than the header's is refused."""
    found = read_picture(codes)
    if found is None:
        return 0
    declared = (pixels.rows, pixels.columns, pixels.samples)
    if (found.rows, found.columns, found.samples) != declared or found.bits > pixels.allocated:
        raise UnreadableFileError(
            f"{show_name(name)}: its compressed picture is {found.rows} x {found.columns} with {found.samples} values "
            f"of {found.bits} bits, its header declares {declared[0]} x {declared[1]} with {declared[2]} of "
            f"{pixels.allocated}."
        )
    return found.bits


def _extend_sign(frame: Numbers, num_bits: int) -> Numbers:
    """Values of so many bits with the sign that their type says."""
    unused = frame.dtype.type(8 * frame.dtype.itemsize - num_bits)
    return np.asarray(np.right_shift(np.left_shift(frame, unused), unused))


def _decode_twelve(codes: bytes) -> Numbers:
    import imagecodecs

    return np.asarray(imagecodecs.jpeg8_decode(codes))


def _to_rgb(frame: Numbers) -> Numbers:
    from pydicom.pixels import convert_color_space

    return convert_color_space(np.ascontiguousarray(frame), "YBR_FULL", "RGB")


def _convert(frame: Numbers, pixels: PixelFormat, index: int, target: Numbers) -> None:
    """Write one frame as stored to where it goes, as numbers that mean something."""
    if pixels.place.tag not in FLOATS and pixels.samples == 1:
        frame = _keep_bits(frame, pixels)
    if pixels.palette:
        for channel, table in enumerate(pixels.palette):
            target[..., channel] = _look_up(frame[..., 0], table)
        return
    if pixels.photometric == "MONOCHROME1" and pixels.place.tag not in FLOATS:
        low, high = pixels.range
        frame = np.invert(frame) if pixels.is_signed else np.subtract(frame.dtype.type(high - low), frame)
    if pixels.table is not None:
        target[...] = _look_up(frame, pixels.table)
        return
    slope, intercept = pixels.rescale[index if len(pixels.rescale) > 1 else 0]
    if pixels.samples > 1 or (slope, intercept) == (1, 0):
        target[...] = frame
    elif target.dtype.kind == "f":
        # What is too large for single precision becomes infinite, which is told where all pixels are looked at.
        with np.errstate(over="ignore", invalid="ignore"):
            np.add(frame * np.float64(slope), intercept, out=target, casting="same_kind")
    else:
        # Both ends of the range fit, so whatever wraps around on the way comes back.
        scale, shift = (np.int64(number).astype(target.dtype) for number in (slope, intercept))
        np.add(np.multiply(frame.astype(target.dtype), scale), shift, out=target)


def _keep_bits(frame: Numbers, pixels: PixelFormat) -> Numbers:
    """Values without what lies in bits beside them: overlays, or what was left there."""
    if pixels.stored == pixels.allocated or pixels.allocated == 1:
        return frame
    dtype = pixels.stored_dtype
    above, unused = pixels.allocated - 1 - pixels.high, pixels.allocated - pixels.stored
    moved = np.left_shift(frame.astype(dtype), dtype.type(above))
    return np.asarray(np.right_shift(moved, dtype.type(unused)))


def _look_up(values: Numbers, table: Table) -> Numbers:
    places = np.clip(values.astype(np.int64) - table.first, 0, len(table.entries) - 1)
    return np.asarray(table.entries[places])
