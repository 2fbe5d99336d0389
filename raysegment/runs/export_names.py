"""What exported files are called: after their scans, within what file systems take."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Sequence

from raysegment.archive.filesystem import decode_name

SUFFIX = "_pred"
"""Not `_mask`, which is what a person's reference is called."""

TIFF, NIFTI, DICOM = ".tif", ".nii.gz", ".dcm"
MAX_LABEL_BYTES = 60

MAX_NAME_BYTES = 255
MAX_PATH_BYTES = 4000
"""What file systems and Linux take, the latter with some room."""

HASH_DIGITS = 12
IMAGE_EXTENSIONS = (".tif", ".tiff", ".png", ".jpg", ".jpeg", ".nii", ".nii.gz", ".dcm")
_NOT_IN_NAMES = re.compile(r"[\x00-\x1f\x7f]")


def name_files(scan_ids: Iterable[str], *, max_bytes: int, ending: str = SUFFIX + TIFF) -> dict[str, str]:
    """A file for each scan, as a path below the export's folder, whatever the scan is called; the same in every export.

    Args:
        scan_ids: The scans.
        max_bytes: Length that a path may have.
        ending: What all names end in, such as `_pred.tif`.
    """
    names: dict[str, str] = {}
    taken: set[str] = set()
    for scan_id in sorted(scan_ids):
        pieces = [_NOT_IN_NAMES.sub("_", piece) for piece in scan_id.split("/") if piece not in ("", ".", "..")]
        stem = _drop_extension("/".join(pieces) or "scan")
        name, number = _fit(stem, max_bytes, ending), 2
        while name in taken:
            name, number = _fit(f"{stem}-{number}", max_bytes, ending), number + 1
        taken.add(name)
        names[scan_id] = name
    return names


def name_endings(labels: Sequence[str]) -> list[str]:
    """What the volumes of a scan's labels end in, where each label has its own: `_pred_WT.nii.gz`; all different."""
    endings: list[str] = []
    for label in labels:
        safe = _shorten(_NOT_IN_NAMES.sub("_", label).replace("/", "_"), MAX_LABEL_BYTES)
        ending, number = f"{SUFFIX}_{safe}{NIFTI}", 2
        while ending in endings:
            ending, number = f"{SUFFIX}_{safe}-{number}{NIFTI}", number + 1
        endings.append(ending)
    return endings


def _drop_extension(name: str) -> str:
    """The name without the extension of an image, where it has one."""
    found = max((each for each in IMAGE_EXTENSIONS if name.lower().endswith(each)), key=len, default="")
    stem = name[: len(name) - len(found)]
    return stem if stem.rpartition("/")[2].strip(".") else name


def _fit(stem: str, max_bytes: int, ending: str) -> str:
    """The stem with its ending, each piece short enough for a file system, and all of it in one piece if it must be."""
    *folders, last = stem.split("/")
    short = [_shorten(folder, MAX_NAME_BYTES) for folder in folders]
    name = "/".join([*short, _shorten(last, MAX_NAME_BYTES - len(ending)) + ending])
    if _num_bytes(name) <= max_bytes:
        return name
    return _shorten(stem.replace("/", "_"), MAX_NAME_BYTES - len(ending)) + ending


def _shorten(piece: str, max_bytes: int) -> str:
    """A piece that is too long is cut, and ends in a hash of the whole."""
    if _num_bytes(piece) <= max_bytes:
        return piece
    room, kept = max_bytes - HASH_DIGITS - 1, ""
    for character in piece:
        if _num_bytes(kept + character) > room:
            break
        kept += character
    return f"{kept}-{hashlib.sha256(piece.encode('utf-8', 'surrogatepass')).hexdigest()[:HASH_DIGITS]}"


def _num_bytes(name: str) -> int:
    return len(os.fsencode(decode_name(name)))
