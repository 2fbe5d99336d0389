"""The nouns: a scan, what is known of it before it is read, and what is predicted for it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from datetime import date
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from raysegment.errors import UsageError

Spacing = tuple[float, float, float]
"""Distance of voxel centres in millimetres, (slices, rows, columns)."""

Pixels = npt.NDArray[np.generic]
"""(slices, rows, columns, channels), as stored in the file."""

Mask = npt.NDArray[np.unsignedinteger[Any]]
"""(slices, rows, columns), the label's value in each voxel, 0 for background; (labels, slices, rows, columns), 0 and 1,
where labels overlap. In the smallest type for the values."""

LabelMap = npt.NDArray[np.unsignedinteger[Any]]
"""(slices, rows, columns), the value of each voxel in a reference, 0 for background, in the smallest type for it."""

LARGEST_LABEL_VALUE = 65535

NO_NAME = ",="
"""Signs that stand between names and numbers in options."""


@dataclass(frozen=True, kw_only=True)
class ScanEntry:
    """One row of the manifest: what there is to read for one scan.

    Paths in `files` and `reference_files` are relative to `source`, with forward slashes.
    """

    scan_id: str
    patient_id: str
    source: str
    """Folder or bucket that the files are below; absolute or a URI."""
    reader: str
    """Format module that reads the files: `tiff`, `raster` or `nifti`."""
    files: tuple[str, ...]
    """Slice files in natural order, or the one file that holds all slices."""
    reference_files: tuple[str, ...] = ()
    """As `files`, slice by slice; empty where no reference exists. An empty name is a slice without a reference."""
    num_files: int = 0
    bytes: int = 0
    """Size of all files, references included."""
    height: int | None = None
    width: int | None = None
    channels: int | None = None
    fingerprint: str = ""
    split: str | None = None
    channel_names: tuple[str, ...] = ()
    """Names of the channels, where they have any: `files` then holds one volume for each, in this order, or one file
    with all of them."""
    problem: str | None = None
    """What already looks wrong in the header or the folder; None where nothing does."""
    scan_date: date | None = None
    """The day on which it was made; None where nobody says."""
    scan_day: int | None = None
    """Days since the patient's first scan in the archive; None where nobody says, and where `scan_date` is known."""


@dataclass(frozen=True)
class Scan:
    """The pixels of one examination.

    Attributes:
        pixels: (slices, rows, columns, channels), as stored in the file.
        spacing_mm: Distance of voxel centres, or None where the format has none.
        affine: 4x4, (slice, row, column, 1) to RAS+ millimetres, or None.
    """

    pixels: Pixels
    spacing_mm: Spacing | None = None
    affine: npt.NDArray[np.float64] | None = None

    @property
    def num_slices(self) -> int:
        return int(self.pixels.shape[0])

    @property
    def grid(self) -> tuple[int, int, int]:
        """(slices, rows, columns)."""
        slices, rows, columns = self.pixels.shape[:3]
        return int(slices), int(rows), int(columns)


Region = tuple[int, ...]
"""The values that a label has in a label map."""

Colour = tuple[int, int, int]
"""Red, green, blue, 0 to 255."""


@dataclass(frozen=True)
class Labels:
    """The regions that a model segments, and what they are in references and masks.

    A **label map** is (slices, rows, columns) of whole numbers, 0 for background. References are label maps; masks are
    where no voxel can have two labels.

    Attributes:
        names: Of the labels, in order.
        regions: For each label the values that it has in references. Empty where nobody declared them: then there is
            one label, and the values of each reference decide what is region (`archive/reference`), which comes as 1.
        colours: For pictures; None for one chosen by raysegment. Empty where none is given.
        codes: Codes of a terminology, such as `SCT:91772007`; None where a label has none. Empty where none is given.

    Raises:
        UsageError: Names twice, or declared ones that cannot be typed; an empty or negative region, several labels
            without regions.
    """

    names: tuple[str, ...] = ("lesion",)
    regions: tuple[Region, ...] = ()
    colours: tuple[Colour | None, ...] = ()
    codes: tuple[str | None, ...] = ()

    def __post_init__(self) -> None:
        if not self.names or len(set(self.names)) != len(self.names) or not all(self.names):
            raise UsageError(f"labels {', '.join(self.names) or '(none)'}: each needs a name of its own.")
        if not self.regions and len(self.names) > 1:
            raise UsageError(f"labels {', '.join(self.names)}: which values each of them has must be said.")
        if self.regions and len(self.regions) != len(self.names):
            raise UsageError(f"{len(self.names)} labels have {len(self.regions)} sets of values; expected one each.")
        for name, region in zip(self.names, self.regions, strict=False):
            if name != name.strip() or any(sign in name for sign in NO_NAME):
                raise UsageError(
                    f"label {name[:80]!r}: a name has no comma, no = and no blanks at its ends, so that it can be "
                    "typed. Call it otherwise where it stands, or give --labels."
                )
            if not region or min(region) < 1 or max(region) > LARGEST_LABEL_VALUE:
                raise UsageError(
                    f"label {name} has the values {'+'.join(map(str, region[:9])) or '(none)'}; expected whole numbers "
                    f"from 1 to {LARGEST_LABEL_VALUE}, 0 is background."
                )

    def __len__(self) -> int:
        return len(self.names)

    @property
    def are_declared(self) -> bool:
        """Whether somebody said which values in a reference are what."""
        return bool(self.regions)

    @property
    def as_typed(self) -> tuple[str, ...]:
        """As `--labels` says them, values in order and once each; empty where nobody declared values."""
        pairs = zip(self.names, self.regions, strict=False)
        return tuple(f"{name}={'+'.join(map(str, sorted(set(region))))}" for name, region in pairs)

    @property
    def values_by_name(self) -> dict[str, list[int] | None]:
        """The values of each label in references; None where these tell the region themselves."""
        regions = map(list, self.regions) if self.are_declared else (None,)
        return dict(zip(self.names, regions, strict=True))

    @property
    def as_plain(self) -> list[Any]:
        """As model.json and run.json have them: the names alone where nobody declared values."""
        if not self.are_declared:
            return list(self.names)
        nothing = (None,) * len(self)
        rows = zip(self.names, self.regions, self.colours or nothing, self.codes or nothing, strict=True)
        return [
            {"name": name, "values": list(region)}
            | ({"colour": list(colour)} if colour is not None else {})
            | ({"code": code} if code is not None else {})
            for name, region, colour, code in rows
        ]

    @property
    def overlap(self) -> bool:
        """Whether a voxel can have two labels, because two regions share a value."""
        values = [value for region in self.regions for value in set(region)]
        return len(set(values)) < len(values)

    @property
    def exclude_each_other(self) -> bool:
        """Whether there are several labels of which a voxel has at most one: softmax, else sigmoid for each label."""
        return len(self) > 1 and not self.overlap

    @property
    def mask_values(self) -> dict[str, int]:
        """The value of each label in a mask: the smallest of its region; where labels overlap, 1 in its own plane."""
        if self.overlap:
            return dict.fromkeys(self.names, 1)
        return {name: min(region) for name, region in zip(self.names, self.regions or ((1,),), strict=True)}

    def plane_of_mask(self, mask: Mask, position: int) -> npt.NDArray[np.bool_]:
        """Where one label is in a mask; bool, (slices, rows, columns).

        Args:
            mask: As its type says; of one label that nobody declared whatever is not 0 is the label.
            position: Of the label in `names`.
        """
        if self.overlap:
            return np.asarray(mask[position] != 0)
        if len(self) == 1:
            return np.asarray(mask != 0)
        return np.asarray(mask == self.mask_values[self.names[position]])

    @property
    def known_values(self) -> frozenset[int]:
        """Values that a reference may hold, 0 included."""
        return frozenset({0, 1}) if not self.regions else frozenset({0}.union(*self.regions))

    def plane_of(self, label_map: LabelMap, position: int) -> npt.NDArray[np.bool_]:
        """Where one label is in a label map of any shape; bool of the same shape.

        Args:
            label_map: Values of references, 0 for background.
            position: Of the label in `names`.
        """
        region = self.regions[position] if self.regions else (1,)
        inside = label_map == region[0]
        for value in region[1:]:
            inside |= label_map == value
        return np.asarray(inside)

    def planes_of(self, label_map: LabelMap) -> npt.NDArray[np.bool_]:
        """All labels of a label map of any shape; bool, (labels, *shape)."""
        return np.stack([self.plane_of(label_map, position) for position in range(len(self))])


SliceAxis = Literal["auto", "axial", "coronal", "sagittal"]
"""Which way slices of a volume are cut; `auto`: along the thickest spacing, else axial."""


@dataclass(frozen=True, kw_only=True)
class ReadSettings:
    """What reading a scan depends on besides its row of the manifest.

    Attributes:
        labels: What the values of references mean.
        slice_axis: How volumes are cut into slices; files of slices stay as they are.
        resample_channels: Bring channels and references that lie on another grid to that of the first channel; refused
            if not.
    """

    labels: Labels = field(default_factory=Labels)
    slice_axis: SliceAxis = "auto"
    resample_channels: bool = False


READ_AS_STORED = ReadSettings()
"""For files of slices whose labels nobody declared."""


def as_spacing(numbers: tuple[float, ...] | None) -> Spacing | None:
    """The three numbers of --spacing-mm."""
    return None if numbers is None else (numbers[0], numbers[1], numbers[2])


def voxel_volume_mm3(spacing_mm: Spacing | None, affine: npt.NDArray[np.float64] | None = None) -> float:
    """What one voxel takes up in cubic millimetres; NaN where nobody knows.

    Args:
        spacing_mm: Distance of voxel centres; their product is the volume where axes are at right angles.
        affine: 4x4, index to millimetres, or None; where there is one its determinant holds for sheared axes too.
    """
    if affine is not None:
        return float(abs(np.linalg.det(affine[:3, :3])))
    return math.nan if spacing_mm is None else math.prod(spacing_mm)
