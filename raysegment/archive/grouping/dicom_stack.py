"""The slices of a DICOM series, put in order by where they lie."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from raysegment.archive.dicom.geometry import SliceOrder, order_slices
from raysegment.archive.dicom.survey import SharedHeader, Surveyed
from raysegment.archive.formats import Header
from raysegment.archive.names import natural_key, show_name
from raysegment.archive.volumes import turn_header
from raysegment.archive.walk import FoundFile
from raysegment.errors import AffineError, ScanError, SliceMismatchError

DIGITS = 12
"""Of the hash in a scan_id."""

SAME_SPACING = 1e-3
"""Share by which the size of pixels may differ from slice to slice."""


@dataclass(eq=False)
class Series:
    """The images of one series, or one that is a scan of its own.

    Attributes:
        name: As a scan: its folder and hash.
        files: In order along the normal where that is known, else of their names.
        header: As it is read; None where slices cannot be stacked.
        problem: `ErrorType: message` then.
        note: What else is odd.
    """

    name: str
    files: list[Surveyed]
    header: Header | None = None
    problem: str | None = None
    note: str | None = None

    @property
    def shared(self) -> SharedHeader:
        """What the first file shares with the others."""
        return shared_header(self.files[0])

    @property
    def day(self) -> int | None:
        """The first on which one of its images was made."""
        return min(
            (day for day in map(lambda file: shared_header(file).day, self.files) if day is not None), default=None
        )


def leave_out_copies(
    surveyed: Iterable[Surveyed], files: Mapping[str, FoundFile]
) -> tuple[list[Surveyed], list[Surveyed]]:
    """The files of which each holds an object of its own, and copies of them.

    Files of one SOPInstanceUID are copies where their headers and sizes are the same; where these differ, nobody knows
    which is right, and all stay. Those outside of zips are kept rather than those within, then those in the folder with
    the shortest path: so that a study's zip beside its folder changes nothing, nor does `study - copy`.

    Args:
        surveyed: Files that could be read.
        files: Size of each by its path.
    """

    def rank(file: Surveyed) -> tuple[bool, int, object]:
        folder = file.path.rpartition("/")[0]
        return files[file.path].zip_size > 0, len(folder), natural_key(file.path)

    known = set()
    kept: list[Surveyed] = []
    copies: list[Surveyed] = []
    for file in sorted(surveyed, key=rank):
        content = (file.instance, file.header, file.places, files[file.path].size)
        (copies if content in known else kept).append(file)
        known.add(content)
    return kept, copies


def group_images(images: Iterable[Surveyed]) -> Iterator[list[Surveyed]]:
    """The images of each series in order of their names; those without a position alone."""
    groups: dict[str, list[Surveyed]] = defaultdict(list)
    for file in images:
        groups[shared_header(file).series].append(file)
    for key in sorted(groups):
        group = sorted(groups[key], key=lambda file: natural_key(file.path))
        if any(file.places for file in group):
            yield group
        else:
            yield from ([file] for file in group)


def stack_series(group: list[Surveyed]) -> Series:
    """A series with its files in order along the normal of its slices, or why they cannot be stacked.

    Args:
        group: From `group_images`.
    """
    shared = shared_header(group[0])
    digits = shared.series if any(file.places for file in group) else group[0].instance
    series = Series(join_path(common_folder(group), digits[:DIGITS]), group)
    try:
        # Numbers that no scanner writes may be too large for what is made of them.
        with np.errstate(all="ignore"):
            _check_one_patient(series)
            _check_alike(series)
            order = _order_frames(series)
            series.header = _find_header(group, order)
    except ScanError as error:
        series.problem = f"{type(error).__name__}: {error}{_describe_copies(group)}"
        return series
    except (ArithmeticError, ValueError, np.linalg.LinAlgError):
        series.problem = (
            f"{AffineError.__name__}: {show_name(series.name)}: its headers do not say where its slices lie."
        )
        return series
    owners = np.repeat(np.arange(len(group)), [shared_header(file).frames for file in group])
    series.files = [group[index] for index in dict.fromkeys(owners[list(order.order)].tolist())]
    series.note = None if order.note is None else f"{show_name(series.name)}: {order.note}"
    return series


def _find_header(group: Sequence[Surveyed], order: SliceOrder) -> Header:
    """What the headers of all files say of the scan, as it is read."""
    shared = shared_header(group[0])
    header = Header(
        len(order.order),
        shared.rows,
        shared.columns,
        shared.colours,
        np.result_type(*{shared_header(file).dtype for file in group}),
        order.spacing_mm,
        any(shared_header(file).was_lossy for file in group),
        order.affine,
    )
    if order.affine is None:
        return header
    turned = turn_header(header, "auto")
    if turned.affine is None or not np.isfinite(turned.affine).all() or not all(turned.spacing_mm or (0,)):
        raise ValueError("places beyond the numbers that there are")
    return turned


def _check_one_patient(series: Series) -> None:
    """Refuse a series that is cut in parts by a patient or study that only some of its files name."""
    for words, named in (
        ("patients", Counter(shared_header(file).patient for file in series.files)),
        ("studies", Counter(shared_header(file).study for file in series.files)),
    ):
        if len(named) > 1:
            counts = " and ".join(str(count) for _, count in named.most_common())
            raise SliceMismatchError(
                f"{show_name(series.name)}: files of one series name {len(named)} {words} ({counts} files each; "
                "a missing name counts as one); expected one. Correct them, or leave these files out."
            )


def _check_alike(series: Series) -> None:
    """Refuse slices of different sizes, and those of which only some say where they lie."""
    sizes = Counter(
        (shared_header(file).rows, shared_header(file).columns, shared_header(file).colours) for file in series.files
    )
    if len(sizes) > 1:
        shown = ", ".join(
            f"{count} of {rows} x {columns} x {colours}" for (rows, columns, colours), count in sizes.items()
        )
        raise SliceMismatchError(f"{show_name(series.name)} has slices of different sizes: {shown}.")
    spacings = {shared_header(file).pixel_spacing for file in series.files}
    known = np.array([spacing for spacing in spacings if spacing is not None])
    if len(spacings) > 1 and (None in spacings or np.ptp(known, axis=0).max() > SAME_SPACING * known.min()):
        raise SliceMismatchError(f"{show_name(series.name)} has slices with pixels of different sizes in millimetres.")
    num_placed = sum(bool(file.places) and bool(shared_header(file).orientations) for file in series.files)
    if 0 < num_placed < len(series.files):
        raise SliceMismatchError(
            f"{show_name(series.name)}: {len(series.files) - num_placed} of its {len(series.files)} files do not say "
            "where they lie."
        )


def _order_frames(series: Series) -> SliceOrder:
    shared = series.shared
    positions = [file.positions for file in series.files if file.positions is not None]
    orientations = [file.orientations for file in series.files if file.orientations is not None]
    return order_slices(
        np.concatenate(positions) if positions else None,
        np.concatenate(orientations) if orientations else None,
        shared.pixel_spacing,
        shared.thickness,
        series.name,
        sum(shared_header(file).frames for file in series.files),
    )


def _describe_copies(group: Sequence[Surveyed]) -> str:
    num_copies = len(group) - len({file.instance for file in group})
    return f" {num_copies} of its {len(group)} files are copies of others (one SOPInstanceUID)." if num_copies else ""


def shared_header(file: Surveyed) -> SharedHeader:
    """What a file that could be read shares with others."""
    assert file.header is not None
    return file.header


def common_folder(files: Iterable[Surveyed]) -> str:
    """The deepest folder that all files lie in."""
    folders = {file.path.rpartition("/")[0] for file in files}
    return os.path.commonpath(folders) if len(folders) > 1 else folders.pop()


def join_path(folder: str, name: str) -> str:
    """A path below the source; the source itself has an empty one."""
    return f"{folder}/{name}" if folder else name
