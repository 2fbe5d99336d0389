"""How the pixels of a DICOM file are stored, from its header, and what they become. After PS3.3, C.7.6.3 and C.11.1."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from raysegment.archive.dicom import tags
from raysegment.archive.dicom.elements import DataSet, Elements, PixelPlace
from raysegment.archive.dicom.syntaxes import COMPRESSED, NATIVE, NOT_DECODED, describe_syntax
from raysegment.archive.names import show_name
from raysegment.errors import OversizedScanError, TruncatedFileError, UnreadableFileError

MAX_FRAMES = 100_000
MAX_INSTANCE_BYTES = 4 * 2**30
"""Decoded size from which a header is not believed."""

FLOATS: dict[int, np.dtype[np.generic]] = {0x7FE00008: np.dtype(np.float32), 0x7FE00009: np.dtype(np.float64)}
"""Elements of pixels that are no whole numbers, and their type."""

SHADES = ("MONOCHROME1", "MONOCHROME2")
COLOURS = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")
PALETTE = "PALETTE COLOR"
CHROMINANCE = ("YBR_FULL", "YBR_FULL_422")
"""Brightness and two differences of colours; those of JPEG 2000 become red, green and blue as they are decoded."""

OF_SHADES = (tags.TABLE_DESCRIPTOR, tags.TABLE_DATA)
LARGEST_EXACT = 2**53

Rescale = tuple[float, float]


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Table:
    """Values instead of stored ones.

    Attributes:
        first: The stored value that becomes the first entry; lower ones become it too.
        entries: Of all from there on; values behind the last one become it.
    """

    first: int
    entries: npt.NDArray[np.uint16]

    @property
    def dtype(self) -> np.dtype[np.generic]:
        """Smallest type that holds the entries."""
        return np.dtype(np.uint8 if self.entries.max() < 256 else np.uint16)


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class PixelFormat:
    """How pixels are stored.

    Attributes:
        place: Where they lie.
        frames: How many pictures there are.
        rows: Height of one.
        columns: Width of one.
        samples: 1, or 3 of colours.
        photometric: What values mean: one of `SHADES`, `COLOURS` or `PALETTE`.
        is_planar: Whether each colour is a plane of its own.
        allocated: Bits of one value in the file.
        stored: Bits that count.
        high: Number of the highest of them.
        is_signed: Whether numbers may be negative.
        rescale: Slope and intercept, one pair for all frames or one for each.
        table: Of shades, instead of slope and intercept; None where there is none.
        palette: Red, green and blue; empty where values are no numbers of colours.
    """

    place: PixelPlace
    frames: int
    rows: int
    columns: int
    samples: int
    photometric: str
    is_planar: bool
    allocated: int
    stored: int
    high: int
    is_signed: bool
    rescale: tuple[Rescale, ...]
    table: Table | None
    palette: tuple[Table, ...]

    @property
    def channels(self) -> int:
        """1, or 3 of colours."""
        return 3 if self.palette else self.samples

    @property
    def stored_dtype(self) -> np.dtype[np.generic]:
        """Type of one value in the file, in this machine's order of bytes; of single bits, unpacked."""
        if self.place.tag in FLOATS:
            return FLOATS[self.place.tag]
        return np.dtype(f"{'i' if self.is_signed else 'u'}{max(self.allocated, 8) // 8}")

    @property
    def range(self) -> tuple[int, int]:
        """The lowest and the highest whole number that may be stored."""
        if self.is_signed:
            return -(2 ** (self.stored - 1)), 2 ** (self.stored - 1) - 1
        return 0, 2**self.stored - 1

    @property
    def dtype(self) -> np.dtype[np.generic]:
        """Type of one value once it is read: whole numbers as long as these are exact, else single precision."""
        if self.palette:
            return max((table.dtype for table in self.palette), key=lambda dtype: dtype.itemsize)
        if self.table is not None:
            return self.table.dtype
        if self.place.tag in FLOATS or self.samples > 1 or all(pair == (1, 0) for pair in self.rescale):
            return self.stored_dtype
        return _find_scaled(self.rescale, self.range)

    @property
    def num_bytes(self) -> int:
        """Of the file's pixels, where they are not compressed."""
        values = self.rows * self.columns * self.samples * self.frames
        if self.photometric == "YBR_FULL_422":
            values = values * 2 // 3
        return -(-values * self.allocated // 8)


def find_pixel_format(data: DataSet, rescale: tuple[Rescale, ...], name: str) -> PixelFormat:
    """How the pixels of a file are stored.

    Args:
        data: Its elements.
        rescale: Slope and intercept, one pair for all frames or one for each.
        name: For messages.

    Raises:
        UnreadableFileError: There are none, or what the header says of them makes no sense.
        OversizedScanError: It declares more than anybody has.
        TruncatedFileError: It declares more than the file holds.
    """
    if data.pixels is None:
        raise UnreadableFileError(f"{show_name(name)} has no pixel data.")
    elements = data.elements
    is_signed = elements.short(tags.REPRESENTATION) == 1
    is_float = data.pixels.tag in FLOATS
    allocated = FLOATS[data.pixels.tag].itemsize * 8 if is_float else _whole(elements, tags.BITS_ALLOCATED, name)
    stored = allocated if is_float else elements.short(tags.BITS_STORED) or allocated
    high = elements.short(tags.HIGH_BIT)
    photometric = elements.text(tags.PHOTOMETRIC).upper()
    found = PixelFormat(
        place=data.pixels,
        frames=find_frames(elements, name),
        rows=_whole(elements, tags.ROWS, name),
        columns=_whole(elements, tags.COLUMNS, name),
        samples=elements.short(tags.SAMPLES) or 1,
        photometric=photometric,
        is_planar=elements.short(tags.PLANAR) == 1,
        allocated=allocated,
        stored=stored,
        high=stored - 1 if high is None else high,
        is_signed=is_signed,
        rescale=rescale,
        table=_find_table(elements.first(tags.TABLES), OF_SHADES, is_signed, name),
        palette=_find_palette(elements, is_signed, name) if photometric == PALETTE else (),
    )
    _check_format(found, name)
    _check_size(found, name)
    _check_place(found, data.syntax, name)
    return found


def find_frames(elements: Elements, name: str) -> int:
    """The number of frames, 1 where the header does not say.

    Raises:
        UnreadableFileError: It is none.
        OversizedScanError: There are more than anybody has.
    """
    text = elements.text(tags.FRAMES)
    try:
        frames = int(text) if text else 1
    except ValueError:
        frames = 0
    if frames < 1:
        raise UnreadableFileError(f"{show_name(name)}: the number of its frames is no number above 0.")
    if frames > MAX_FRAMES:
        raise OversizedScanError(f"{show_name(name)} declares {frames} frames; at most {MAX_FRAMES} are read.")
    return frames


def _find_scaled(rescale: tuple[Rescale, ...], stored: tuple[int, int]) -> np.dtype[np.generic]:
    """The smallest signed type for all that slope and intercept can make; single precision where it is not whole."""
    if not all(float(number).is_integer() for pair in rescale for number in pair):
        return np.dtype(np.float32)
    ends = [int(slope) * value + int(intercept) for slope, intercept in rescale for value in stored]
    if max(map(abs, ends)) > LARGEST_EXACT:
        return np.dtype(np.float32)
    return np.result_type(np.int8, *(np.min_scalar_type(min(end, -end - 1)) for end in ends))


def _find_palette(elements: Elements, is_signed: bool, name: str) -> tuple[Table, ...]:
    found = [_find_table(elements, pair, is_signed, name) for pair in tags.PALETTES]
    tables = tuple(table for table in found if table is not None)
    if len(tables) < 3:
        raise UnreadableFileError(f"{show_name(name)} has numbers of colours, and no palette that says what they are.")
    return tables


def _find_table(elements: Elements | None, pair: tuple[int, int], is_signed: bool, name: str) -> Table | None:
    """A look-up table: its descriptor has the number of entries (0 for 65,536), the first value and the bits.

    The first value is one of the pixels, which the file says the sign of, and never the item that has the table.
    """
    descriptor, data = pair
    if elements is None or descriptor not in elements.values:
        return None
    head = np.frombuffer(elements.values[descriptor][:6].ljust(6, b"\0"), elements.order + "u2")
    count, bits = int(head[0]) or 2**16, int(head[2])
    packed = elements.values.get(data, b"")
    # Entries of 8 bits stand in one byte each, or in two.
    dtype = elements.order + "u2" if len(packed) >= 2 * count else "u1"
    entries = np.frombuffer(packed, dtype, len(packed) // np.dtype(dtype).itemsize)[:count]
    if bits not in range(8, 17) or len(entries) < count:
        raise UnreadableFileError(f"{show_name(name)}: a look-up table has fewer entries than it declares.")
    first = int(head[1].astype(np.int16)) if is_signed else int(head[1])
    return Table(first, entries.astype(np.uint16))


def _whole(elements: Elements, tag: int, name: str) -> int:
    number = elements.short(tag)
    if not number:
        words = {tags.ROWS: "rows", tags.COLUMNS: "columns", tags.BITS_ALLOCATED: "bits"}
        raise UnreadableFileError(f"{show_name(name)} does not say how many {words[tag]} its pixels have.")
    return number


def _check_format(found: PixelFormat, name: str) -> None:
    shades = found.samples == 1 and found.photometric in (*SHADES, PALETTE)
    colours = found.samples == 3 and found.photometric in COLOURS
    if not (shades or colours):
        raise UnreadableFileError(
            f"{show_name(name)} has {found.samples} values a pixel of a meaning (photometric interpretation) that is "
            "not read; expected shades of grey, a palette, RGB or YBR."
        )
    sound = found.allocated in (1, 8, 16, 32) or found.place.tag in FLOATS
    if not sound or found.stored > found.allocated or not found.stored - 1 <= found.high < found.allocated:
        raise UnreadableFileError(
            f"{show_name(name)} declares {found.stored} bits up to bit {found.high} in {found.allocated}; expected "
            "values of 1, 8, 16 or 32 bits."
        )
    if found.samples == 3 and found.allocated not in (8, 16):
        raise UnreadableFileError(f"{show_name(name)} declares colours of {found.allocated} bits; expected 8 or 16.")
    if found.photometric in CHROMINANCE and found.stored_dtype != np.uint8:
        raise UnreadableFileError(
            f"{show_name(name)} declares {found.photometric} of {found.allocated} bits"
            f"{' with a sign' if found.is_signed else ''}; expected 8 without a sign. Have it sent as RGB."
        )


def _check_size(found: PixelFormat, name: str) -> None:
    size = math.prod((found.rows, found.columns, found.channels, found.frames, found.dtype.itemsize))
    if found.allocated == 1:
        # Of a segmentation, whose many frames are unpacked one by one.
        size //= 8
    if size > MAX_INSTANCE_BYTES:
        raise OversizedScanError(
            f"{show_name(name)} declares {found.frames} frames of {found.rows} x {found.columns}, "
            f"{size / 2**20:.0f} MB; at most {MAX_INSTANCE_BYTES / 2**20:.0f} MB are read."
        )


def _check_place(found: PixelFormat, syntax: str, name: str) -> None:
    """Whether the pixel data lie as the transfer syntax says, and are as many as the header says."""
    is_native = syntax in NATIVE
    if not is_native and syntax not in COMPRESSED and syntax not in NOT_DECODED:
        raise UnreadableFileError(f"{show_name(name)} is encoded in a way (transfer syntax) that is not known.")
    if is_native and found.place.length is None:
        raise UnreadableFileError(f"{show_name(name)}: its pixels are compressed; its transfer syntax says plain.")
    if not is_native and found.place.length is not None:
        raise UnreadableFileError(
            f"{show_name(name)}: its pixels are not compressed; its transfer syntax says {describe_syntax(syntax)}."
        )
    if is_native and found.place.length is not None and found.place.length < found.num_bytes:
        raise TruncatedFileError(
            f"{show_name(name)} has {found.place.length} bytes of pixels; its header declares {found.num_bytes}."
        )
