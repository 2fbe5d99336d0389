"""Formats that are not read, so that a message can name them and say what to do."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

from raysegment.archive.gzipped import MAGIC, unpack_head
from raysegment.archive.names import extension_of, show_name
from raysegment.archive.walk import Folder

BY_MAGIC = {
    b"NRRD": "NRRD",
    b"ObjectType": "MetaImage",
    b"NDims": "MetaImage",
    b"\x89HDF": "HDF5 (MINC-2, SNIRF, MATLAB)",
    b"CDF": "MINC-1",
    b"\0\0\0\x01\0\0": "FreeSurfer MGH",
}
BY_EXTENSION = {
    ".mgz": "FreeSurfer MGZ",
    ".mgh": "FreeSurfer MGH",
    ".nrrd": "NRRD",
    ".nhdr": "NRRD",
    ".mha": "MetaImage",
    ".mhd": "MetaImage",
    ".hdr": "half of a pair of .hdr and .img (NIfTI or Analyze)",
    ".img": "half of a pair of .hdr and .img (NIfTI or Analyze)",
    ".mnc": "MINC",
    ".mif": "MRtrix",
}
"""Neighbours of NIfTI in folders of volumes."""


def set_aside(folders: Iterable[Folder], known: frozenset[str]) -> tuple[list[Folder], dict[str, int]]:
    """Part the files of formats that are not read from the others.

    Args:
        folders: What lies below a source, with files of all of these extensions.
        known: Extensions that a reader has.

    Returns:
        The folders without such files, and how many of these there are by extension.
    """
    unread = BY_EXTENSION.keys() - known
    kept, found = [], Counter[str]()
    for folder in folders:
        extensions = [file.extension for file in folder.files]
        found.update(extension for extension in extensions if extension in unread)
        if not unread.isdisjoint(extensions):
            folder.files = [file for file in folder.files if file.extension not in unread]
        if folder.files or folder.problem or folder.is_own:
            kept.append(folder)
    return kept, dict(found.most_common())


def describe_unread(counts: Mapping[str, int]) -> str:
    """One line about files that are not read, by extension; empty where there are none."""
    if not counts:
        return ""
    shown = ", ".join(f"{count} *{extension}" for extension, count in counts.items())
    return f"{shown}: raysegment does not read these; convert them to NIfTI (.nii.gz)."


def describe_unknown(head: bytes, name: str) -> str:
    """What to tell of a file that no reader recognises.

    Args:
        head: Its first bytes.
        name: Its path, for the message and its extension.
    """
    found = name_of_neighbour(head, name)
    if found is None:
        return f"{show_name(name)}: the first bytes belong to no format that raysegment reads."
    return f"{show_name(name)} is {found}, which raysegment does not read; convert it to NIfTI (.nii.gz)."


def name_of_neighbour(head: bytes, name: str) -> str | None:
    """The format of a file that is not read, by its first bytes or else its extension; None where neither tells."""
    start = unpack_head(head, 16) if head.startswith(MAGIC) else head
    by_magic = next((word for magic, word in BY_MAGIC.items() if start.startswith(magic)), None)
    return by_magic or BY_EXTENSION.get(extension_of(name))
