"""Labels that are a side of the body: which two are left and right of each other, and what mirroring does to them."""

from __future__ import annotations

import re
from collections.abc import Iterable

from raysegment.errors import AffineError, UsageError
from raysegment.options import Mirror
from raysegment.scan import Labels, Scan, SliceAxis

LEFT_WORDS = frozenset({"left", "lh", "sin", "sinister", "sinistra", "sinistrum"})
RIGHT_WORDS = frozenset({"right", "rh", "dex", "dx", "dexter", "dextra", "dextrum"})
"""Words in the names of labels that tell a side of the body."""

VOLUME_READERS = frozenset({"nifti", "dicom"})
"""Formats that say where in the world their voxels lie."""

_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[^\W\d_A-Za-z]+|\d+")
_JOINED = re.compile(r"^(left|right)(?=.)|(?<=.)(left|right)$")

Sides = dict[tuple[str, ...], list[tuple[str, str]]]
"""Names of labels with their side, by the thing that they are a side of."""


def find_sides(labels: Labels) -> Sides:
    """The labels that are a side of something, by what that is; alone in its list is one whose other side is no label.

    A letter, or a part of a word, tells a side only where another label has the other one: L1 is a vertebra, and bright
    is no right.
    """
    found: Sides = {}
    for name in labels.names:
        thing, side = split_side(name)
        if side:
            found.setdefault(thing, []).append((name, side))
    return {
        thing: named
        for thing, named in found.items()
        if len({side for _, side in named}) > 1 or any(names_side(name) for name, _ in named)
    }


def find_swaps(labels: Labels, mirror: Mirror, slice_axis: SliceAxis) -> tuple[int, ...]:
    """For each label the one that has its place where columns are mirrored; empty where all stay as they are.

    In volumes columns run from right to left in axial and coronal slices, and to the back in sagittal ones; rows never
    run from one side to the other (`archive/orientation`).

    Raises:
        UsageError: Labels are sides, and which one a mirrored slice shows is not certain: a side without its other one,
            two labels of one side, or slices whose axis each volume decides for itself.
    """
    sides = find_sides(labels)
    if not sides or "columns" not in mirror or slice_axis == "sagittal":
        return ()
    first = next(iter(sides.values()))[0][0]
    if slice_axis == "auto":
        raise UsageError(
            f"--mirror {mirror}: label {first} is of one side, and with --slice-axis auto each volume decides whether "
            "columns run from one side to the other. Train with --slice-axis axial, coronal or sagittal, or give "
            "--mirror rows or none."
        )
    order = list(range(len(labels)))
    for named in sides.values():
        if sorted(side for _, side in named) != ["left", "right"]:
            raise UsageError(
                f"--mirror {mirror}: {_list_names(named)} cannot be exchanged with the other side in mirrored slices: "
                "a left and a right label of the same thing are needed, one each. Give --mirror rows or none."
            )
        one, other = (labels.names.index(name) for name, _ in named)
        order[one], order[other] = other, one
    return tuple(order)


def check_mirror(labels: Labels, mirror: Mirror, slice_axis: SliceAxis, readers: Iterable[str]) -> None:
    """Refuse to mirror where sides of the body would be mistaken for each other.

    Args:
        labels: Of the model.
        mirror: Which passes there are.
        slice_axis: How volumes are cut into slices.
        readers: Of all scans, as in the manifest.

    Raises:
        UsageError: As `find_swaps`; or labels are sides, and scans do not say which of their axes runs from side to
            side.
    """
    find_swaps(labels, mirror, slice_axis)
    sides = find_sides(labels)
    if mirror == "none" or not sides:
        return
    if foreign := sorted(set(readers) - VOLUME_READERS):
        raise UsageError(
            f"--mirror {mirror}: label {next(iter(sides.values()))[0][0]} is of one side, and scans of format "
            f"{foreign[0]} do not say which way their rows and columns run. Give --mirror none, or volumes "
            "(NIfTI, DICOM)."
        )


def check_orientation(scan: Scan, labels: Labels, mirror: Mirror) -> None:
    """Refuse a scan that does not say where its sides are, where mirrored labels depend on it.

    Raises:
        AffineError: Names a label.
    """
    if mirror == "none" or scan.affine is not None or not (sides := find_sides(labels)):
        return
    raise AffineError(
        f"label {next(iter(sides.values()))[0][0]} is of one side, and the file does not say which way its axes run "
        f"(NIfTI without sform and qform, DICOM without positions); it cannot be segmented with --mirror {mirror}."
    )


def split_side(name: str) -> tuple[tuple[str, ...], str]:
    """What a label names, as words in small letters and in order, and its side; empty where it has none or both."""
    words = [word.lower() for found in _WORD.findall(name) for word in _JOINED.sub(r" \1\2 ", found.lower()).split()]
    left, right = LEFT_WORDS | {"l"}, RIGHT_WORDS | {"r"}
    sides = {"left" if word in left else "right" for word in words if word in left | right}
    thing = tuple(sorted(word for word in words if word not in left | right))
    return thing, sides.pop() if len(sides) == 1 else ""


def names_side(name: str) -> bool:
    """Whether a label's name has a word, not a letter, for a side."""
    return not (LEFT_WORDS | RIGHT_WORDS).isdisjoint(map(str.lower, _WORD.findall(name)))


def _list_names(named: list[tuple[str, str]]) -> str:
    return ("label " if len(named) == 1 else "labels ") + ", ".join(name for name, _ in named)
