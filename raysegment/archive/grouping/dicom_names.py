"""The scan_ids of scans that are made of several DICOM series: names that other scans of the study do not change."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

from raysegment.archive.grouping.dicom_stack import DIGITS, Series, common_folder, join_path
from raysegment.archive.pseudonyms import Pseudonyms


def name_scans(scans: Sequence[Sequence[Series]], pseudonyms: Pseudonyms) -> list[str]:
    """The deepest folder that holds a scan's files, and a keyed hash of what makes it one.

    That is its study and frame of reference, so that a series keeps its name when more of its slices, or another
    channel, arrive. Where one frame holds several grids these do not tell them apart: the place of each is hashed too,
    of all and not of the second alone, which one of them would be by chance only. They are the exception: such a scan
    gets another name when the second grid arrives, or slices before its first. Grids that begin at one place are told
    apart by their sizes.

    Args:
        scans: The series of each.
        pseudonyms: The key.

    Returns:
        As many, in the same order.
    """
    texts = _tell_apart(scans)
    return [
        join_path(
            common_folder([file for each in series for file in each.files]), pseudonyms.hash("scan", text, DIGITS)
        )
        for series, text in zip(scans, texts, strict=True)
    ]


def _tell_apart(scans: Sequence[Sequence[Series]]) -> list[str]:
    """What is hashed of each scan; all that share it get what may tell them apart as well."""
    ways: tuple[Callable[[Sequence[Series]], str], ...] = (_find_frame, _find_place, _find_size, _find_series)
    texts = [""] * len(scans)
    alike = list(range(len(scans)))
    for way in ways:
        for index in alike:
            texts[index] += f"\0{way(scans[index])}"
        counts = Counter(texts)
        alike = [index for index in alike if counts[texts[index]] > 1]
    return texts


def _find_frame(series: Sequence[Series]) -> str:
    return f"{series[0].shared.study} {series[0].shared.frame}"


def _find_place(series: Sequence[Series]) -> str:
    """To whole millimetres, of the series whose name comes first: channels lie a hair apart."""
    headers = [each.header for each in sorted(series, key=lambda each: each.shared.series) if each.header is not None]
    if not headers or headers[0].affine is None:
        return ""
    return " ".join(str(round(number)) for number in headers[0].affine[:3].ravel())


def _find_size(series: Sequence[Series]) -> str:
    """Of the grid; None of what cannot be stacked."""
    header = next((each.header for each in series if each.header is not None), None)
    return "" if header is None else f"{header.slices} {header.rows} {header.columns}"


def _find_series(series: Sequence[Series]) -> str:
    return " ".join(sorted(each.shared.series for each in series))
