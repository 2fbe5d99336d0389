"""References: masks drawn by a person, and what their values mean.

Where labels are declared, values are taken as they are, also as floating-point ones within 0.001 of whole; a value that
no label names is refused.

Where nobody declares what a mask's values mean, the values of the whole scan decide, all slices together:

- all 0: nothing was found, the reference is empty;
- two values of which one is 0: the other one is the region, whichever it is; if it is below 0 the reference is refused;
- whole numbers from 0 to 255, also as floating-point ones within 0.001: all above 0 (labels, instances);
- two other values: the larger one;
- anything else is refused.

Alpha does not count. Of colours the brightest channel counts; a coloured reference without black is refused, because
its background is unknown. A slice without a file holds 0. What JPEG keeps of a mask is not exact: there a voxel is
region above half of the scan's largest value; if that is below 64, or more voxels lie half-way than near it, the
reference is refused. With several declared values it is refused always.

A DICOM segmentation has segments with names in place of values: `archive/dicom/segmentation`.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from raysegment.archive.dicom.drawn_on import list_drawn_values, read_drawn_segmentation
from raysegment.archive.formats import readers, reads_series, reads_volumes
from raysegment.archive.names import show_name
from raysegment.archive.orientation import Affine
from raysegment.archive.read import MAX_SCAN_BYTES, read_volume
from raysegment.archive.volumes import Grid
from raysegment.errors import GridMismatchError, ReferenceValuesError, ScanError, UnreadableReferenceError
from raysegment.scan import READ_AS_STORED, LabelMap, Labels, Pixels, ReadSettings, ScanEntry

Drawn = npt.NDArray[Any]
"""(slices, rows, columns), the values in a file of references."""

Values = npt.NDArray[np.float64]
"""The different values of a reference, ascending."""

MAX_VALUES = 65536
"""A reference with more different values is no mask."""

LARGEST_LABEL = 255
LABEL_TOLERANCE = 1e-3
DIMMEST_LOSSY = 64
"""Below this the artefacts of JPEG are about as large as what was drawn."""

LISTED_VALUES = 6
EXPECTED = "expected 0 and one value above it, or whole numbers from 0 to 255 of which all above 0 are the region"


def read_reference(
    entry: ScanEntry,
    grid: tuple[int, int, int],
    settings: ReadSettings = READ_AS_STORED,
    *,
    affine: Affine | None = None,
    max_bytes: int = MAX_SCAN_BYTES,
) -> LabelMap:
    """Read the reference of one scan as a label map, by the rules above.

    Args:
        entry: The scan's row of the manifest; an empty name among its reference files is a slice of background.
        grid: The scan's (slices, rows, columns).
        settings: What the values mean, and whether a volume on another grid is resampled.
        affine: The scan's, on which a volume must lie; None where the scan has none.
        max_bytes: Largest decoded size, as in `read_scan`.

    Returns:
        (slices, rows, columns) in the smallest unsigned type for the declared values; uint8 0 and 1 where none are.

    Raises:
        GridMismatchError: The reference lies on another grid.
        ReferenceValuesError: Its values do not tell what is region, or no label names one of them.
        UnreadableReferenceError: There is none, or it cannot be read.
    """
    segmented = read_drawn_segmentation(entry, grid, affine, settings.labels, max_bytes)
    if segmented is not None:
        return segmented
    drawn, is_lossy = _read_drawn(entry, max_bytes, settings, Grid(grid, affine, _is_volume(entry.reader, affine)))
    name = _names(entry)[0]
    by_slice = len(entry.reference_files) > 1 and drawn.shape != tuple(grid)
    slices = len(entry.reference_files) if by_slice else len(drawn)
    if (slices, *drawn.shape[1:]) != tuple(grid) or (by_slice and len(_names(entry)) != len(drawn)):
        shape = (slices, *drawn.shape[1:])
        raise GridMismatchError(
            f"{show_name(name)}: reference is {shape}, scan is {tuple(grid)}; both must share one grid."
        )
    values = _add_empty_slices(list_values(drawn, name), entry)
    if is_lossy:
        label_map = _label_lossy(drawn, settings.labels, name)
    elif settings.labels.are_declared:
        label_map = _label_declared(drawn, values, settings.labels, name)
    else:
        label_map = _above(drawn, find_threshold(values, name))
    if len(drawn) == slices:
        return label_map
    reference = np.zeros(grid, label_map.dtype)
    reference[[index for index, file in enumerate(entry.reference_files) if file]] = label_map
    return reference


def read_values(
    entry: ScanEntry, settings: ReadSettings = READ_AS_STORED, *, max_bytes: int = MAX_SCAN_BYTES
) -> Values:
    """The different values that the reference of one scan holds, whatever they mean.

    Args:
        entry: The scan's row of the manifest.
        settings: Their declared labels say what values the segments of a DICOM segmentation have.
        max_bytes: Largest decoded size.

    Raises:
        ReferenceValuesError: More different values than a mask may have; or a JPEG that is no mask, of which the values
            alone do not tell; or segments that no label names.
        UnreadableReferenceError: There is none, or it cannot be read.
    """
    if (segmented := list_drawn_values(entry, settings.labels, max_bytes)) is not None:
        return np.array(sorted(segmented), np.float64)
    drawn, is_lossy = _read_drawn(entry, max_bytes)
    name = _names(entry)[0]
    if is_lossy:
        find_lossy_threshold(drawn, name)
    return _add_empty_slices(list_values(drawn, name), entry)


def list_values(drawn: Drawn, name: str) -> Values:
    """The different values of (slices, rows, columns), slice by slice so that little memory is taken.

    Raises:
        ReferenceValuesError: More different values than a mask may have.
    """
    found = np.zeros(0, np.float64)
    for plane in drawn:
        found = np.union1d(found, _values_of_plane(plane).astype(np.float64))
        if len(found) > MAX_VALUES:
            raise ReferenceValuesError(
                f"{show_name(name)}: the reference holds more than {MAX_VALUES} different values; {EXPECTED}."
            )
    return found


def find_threshold(values: Values, name: str) -> float:
    """The number above which a value is region.

    Args:
        values: The different values of the scan's whole reference, ascending.
        name: For messages.

    Raises:
        ReferenceValuesError: The values do not tell; the message names them.
    """
    if len(values) == 2 and values[0] == 0:
        return 0.0
    labels = np.unique(np.rint(values))
    is_labels = np.abs(values - np.rint(values)).max(initial=0) <= LABEL_TOLERANCE
    if is_labels and labels.min(initial=0) >= 0 and labels.max(initial=0) <= LARGEST_LABEL:
        return 0.5 if len(labels) != 2 or 0 in labels else float(labels.mean())
    if len(values) == 2 and 0 not in values:
        return float(values[0])
    raise ReferenceValuesError(f"{show_name(name)}: the reference holds {describe_values(values)}; {EXPECTED}.")


def check_declared(values: Values, labels: Labels, name: str) -> None:
    """Refuse values that no label names.

    Args:
        values: The different values of a reference, ascending.
        labels: Declared.
        name: For messages.

    Raises:
        ReferenceValuesError: A value is not whole, or no label has it; the message names both.
    """
    unnamed = find_unnamed(values, labels)
    if len(unnamed):
        raise ReferenceValuesError(
            f"{show_name(name)}: the reference holds {describe_values(unnamed)}, which no label names; "
            f"expected 0 for background and {describe_labels(labels)}."
        )


def find_unnamed(values: Values, labels: Labels) -> Values:
    """Those of some values that no declared label names, or that are not whole."""
    is_known = np.abs(values - np.rint(values)) <= LABEL_TOLERANCE
    is_known &= np.isin(np.rint(values), list(labels.known_values))
    return np.asarray(values[~is_known])


def describe_labels(labels: Labels) -> str:
    """Labels as `--labels` takes them: `WT=1+2+4 ET=4`."""
    pairs = zip(labels.names, labels.regions, strict=False)
    return " ".join(f"{name}={'+'.join(map(str, region))}" for name, region in pairs)


def find_lossy_threshold(drawn: Drawn, name: str) -> float:
    """Half of the largest value of a reference that was stored as JPEG.

    Raises:
        ReferenceValuesError: The largest value is too small, or most voxels do not lie near it or near 0.
    """
    largest = float(drawn.max(initial=0))
    above = np.count_nonzero(drawn > 0.75 * largest)
    between = np.count_nonzero(drawn > 0.25 * largest) - above
    if largest and (largest < DIMMEST_LOSSY or between > above):
        raise ReferenceValuesError(
            f"{show_name(name)}: the reference is a JPEG with a largest value of {largest:g}, {above} voxels near it "
            f"and {between} half-way; expected 0 and 255. JPEG does not keep values: save it as PNG or TIFF."
        )
    return 0.5 * largest


def describe_values(values: Values) -> str:
    """Values for people: all of a few, else the first ones and the last."""
    shown = [f"{value:.10g}" for value in values]
    if len(shown) <= LISTED_VALUES:
        return " ".join(shown)
    return f"{' '.join(shown[: LISTED_VALUES - 1])} … {shown[-1]}"


def _read_drawn(
    entry: ScanEntry, max_bytes: int, settings: ReadSettings = READ_AS_STORED, grid: Grid | None = None
) -> tuple[Drawn, bool]:
    """What was drawn, (slices that have a file, rows, columns), and whether it was compressed with losses."""
    names = _names(entry)
    if not names:
        raise UnreadableReferenceError(f"{show_name(entry.scan_id)} has no reference.")
    try:
        scan, is_lossy = read_volume(entry.source, "", names, max_bytes, settings, grid=grid)
    except GridMismatchError:
        raise
    except ScanError as error:
        raise UnreadableReferenceError(str(error)) from error
    return _brightest(scan.pixels, names[0]), is_lossy


def _is_volume(reader: str, affine: Affine | None) -> bool | None:
    found = readers().get(reader)
    return None if found is None else reads_volumes(found) and (affine is not None or not reads_series(found))


def _names(entry: ScanEntry) -> tuple[str, ...]:
    return tuple(name for name in entry.reference_files if name)


def _brightest(pixels: Pixels, name: str) -> Drawn:
    """(slices, rows, columns): the brightest colour of each voxel, alpha left out."""
    colours = pixels[..., :-1] if pixels.shape[-1] in (2, 4) else pixels
    if colours.shape[-1] == 1:
        return colours[..., 0]
    brightest: Drawn = colours.max(axis=-1)
    is_coloured = (colours != colours[..., :1]).any()
    if is_coloured and brightest.min() > 0:
        raise ReferenceValuesError(
            f"{show_name(name)}: the reference is coloured and has no black voxel; expected regions on black."
        )
    return brightest


def _above(drawn: Drawn, threshold: float) -> npt.NDArray[np.uint8]:
    """1 above a threshold; whole numbers are compared with a whole one, several times as fast as with a fraction."""
    is_whole = drawn.dtype.kind in "ui"
    return np.asarray(drawn > (math.floor(threshold) if is_whole else threshold)).view(np.uint8)


def _label_declared(drawn: Drawn, values: Values, labels: Labels, name: str) -> LabelMap:
    """Values as they are, in the smallest type for all that are declared."""
    check_declared(values, labels, name)
    dtype = np.min_scalar_type(max(labels.known_values))
    whole = np.rint(drawn) if drawn.dtype.kind == "f" else drawn
    return np.asarray(whole.astype(dtype, copy=False))


def _label_lossy(drawn: Drawn, labels: Labels, name: str) -> LabelMap:
    """The one value that a JPEG may hold, above half of its largest one."""
    region = _above(drawn, find_lossy_threshold(drawn, name))
    if not labels.are_declared:
        return region
    if len(labels.known_values) > 2:
        raise ReferenceValuesError(
            f"{show_name(name)}: the reference is a JPEG, which does not keep the values of "
            f"{describe_labels(labels)}; save it as PNG or TIFF."
        )
    value = max(labels.known_values)
    return np.asarray(region * np.min_scalar_type(value).type(value))


def _values_of_plane(plane: Drawn) -> Drawn:
    """The different values of a slice; small whole numbers are counted, which is faster than sorting."""
    if plane.dtype.kind == "b":
        plane = plane.view(np.uint8)
    if plane.dtype.kind == "u" and plane.dtype.itemsize <= 2:
        return np.flatnonzero(np.bincount(plane.ravel()))
    return np.unique(plane)


def _add_empty_slices(values: Values, entry: ScanEntry) -> Values:
    """The values with 0, where a slice has no reference."""
    return values if all(entry.reference_files) else np.union1d(values, [0.0])
