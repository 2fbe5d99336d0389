"""Which files make a scan: the rules of folder layout.

- Files of one folder whose names differ only in the number at their end are the slices of one scan, in natural order,
  if at least half of the numbers between the first and the last exist. Its scan_id is the folder's path, or that and
  the common beginning of the names where a folder holds several such series.
- Every other file is a scan of its own: a single image or a stack of pages. Its scan_id is the file's path.
- In a folder called `images` (image, imgs, img) each file is a scan of its own.
- With a scan pattern none of these three holds: images in whose paths its first group finds the same text are slices of
  one scan, in natural order of their paths, and the text is its scan_id.
- Volumes (`.nii`, `.nii.gz`) are never slices: each is a scan of its own, and beside `x_mask.*` its reference may be
  called `x_seg.*` or `x_label.*`. Datasets of several volumes for a scan: `layouts`.
- The reference of `x.tif` is `x_mask.*` beside it, or `x.*` or `x_mask.*` in a folder `masks` (mask, labels, label)
  that lies beside `images`, or in the folder of the images.
- A folder train, val or test (training, valid, validation, testing) among the first three of a path gives the split.
- A scan that several ways lead to is one scan: `ways` has the rules. Whose scan it is: `patients`.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import date

from raysegment.archive.formats import Header
from raysegment.archive.names import natural_key, show_name, stem_of
from raysegment.archive.walk import Folder, FoundFile, LocatedFile
from raysegment.errors import UsageError

IMAGE_FOLDERS = ("images", "image", "imgs", "img")
MASK_FOLDERS = ("masks", "mask", "labels", "label")
MASK_SUFFIX = "_mask"
VOLUME_EXTENSIONS = (".nii", ".nii.gz")
VOLUME_MASK_SUFFIXES = (MASK_SUFFIX, "_seg", "_label")
SPLIT_FOLDERS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
SPLIT_DEPTH = 3

_NUMBERED = re.compile(r"(.*?)([0-9]+)", re.DOTALL)


@dataclass(slots=True)
class Draft:
    """A scan as the folder layout tells it, before any file is opened.

    Attributes:
        scan_id: Path below the source.
        place: What the patient is read from: folders that name something, then the series or file.
        files: Slices in natural order, or the one file.
        references: As `files`; None is a slice without a reference. Empty where there is none at all.
        split: What a train, val or test folder says.
        is_series: Whether the slices were joined by their numbers.
        is_named: Whether a scan pattern joined them.
        problem: Why there is nothing to open.
        note: What else is odd about a scan that can be read.
        shares_with: The scan that has slices of this one, and so its patient.
        channel_names: Of a volume; `files` then holds one for each, in this order, or one with all of them.
        missing: Positions among `channel_names` for which there is no file.
        patient: Whom the layout names; None where `place` tells.
        is_own_patient: Whether that patient is the scan itself, because the layout names none.
        layout: Of which dataset's form it is; empty where folders and names alone tell.
        scan_date: The day on which its header says that it was made; of DICOM moved by some days, the same for all
            scans of a patient, unless dates are kept.
        reader: What reads it, where all its files have been looked into; empty where one has yet to be.
        header: What these say of the scan; None where they cannot be one.
    """

    scan_id: str
    place: tuple[str, ...]
    files: list[LocatedFile] = field(default_factory=list)
    references: list[LocatedFile | None] = field(default_factory=list)
    split: str | None = None
    is_series: bool = False
    is_named: bool = False
    problem: str | None = None
    note: str | None = None
    shares_with: Draft | None = None
    channel_names: tuple[str, ...] = ()
    missing: tuple[int, ...] = ()
    patient: str | None = None
    is_own_patient: bool = False
    layout: str = ""
    scan_date: date | None = None
    reader: str = ""
    header: Header | None = None

    @property
    def located(self) -> list[LocatedFile]:
        """All files, references included."""
        return self.files + [reference for reference in self.references if reference]

    @property
    def file_names(self) -> list[str]:
        """Paths of the files, with empty ones for each channel that has none: as many as the others have."""
        names = [path for path, _ in self.files]
        num_each = max(1, len(names) // max(1, len(self.channel_names) - len(self.missing)))
        for position in self.missing:
            names[position * num_each : position * num_each] = [""] * num_each
        return names


def draft_scans(
    folders: Iterable[Folder],
    source_name: str,
    scan_pattern: re.Pattern[str] | None = None,
    taken: Collection[str] = (),
) -> tuple[list[Draft], int]:
    """Join files to scans.

    Args:
        folders: What lies below the source.
        source_name: The source's last folder, which names a scan that lies directly in it.
        scan_pattern: Names the scan of each image by its first group; None where the layout tells the scans.
        taken: Paths of files that belong to other scans.

    Returns:
        The scans in natural order of their scan_ids, which are all different, and the number of masks beside which no
        image lies.

    Raises:
        UsageError: The pattern finds no scan in an image's path.
    """
    by_path = {folder.path: folder for folder in _leave_out(folders, taken)}
    mask_folders = _mask_folders(by_path)
    used = 0
    drafts: list[Draft] = []
    num_masks = sum(len(by_path[path].files) for path in mask_folders)
    for path, folder in by_path.items():
        if folder.problem:
            drafts.append(_problem_draft(folder, source_name))
        if path in mask_folders:
            continue
        images, masks = _tell_masks(folder)
        num_masks += len(masks)
        for partner in _partners(path, mask_folders):
            masks |= _masks_by_stem(by_path[partner], partner)
        if scan_pattern is None:
            found = _draft_folder(path, images, masks, source_name)
        else:
            found = [_draft_image(path, file, masks, scan_pattern) for file in images]
        used += sum(reference is not None for draft in found for reference in draft.references)
        drafts += found
    if scan_pattern is not None:
        drafts = _join_by_name(drafts)
    return put_in_order(drafts), max(num_masks - used, 0)


def name_of_source(source: str) -> str:
    """The source's last folder, which names a scan that lies directly in it."""
    return source.split("?")[0].rstrip("/").rpartition("/")[2] or "scan"


def single_drafts(series: Draft) -> list[Draft]:
    """Each file of a series as a scan of its own, for files that turn out to be stacks."""
    references = series.references or [None] * len(series.files)
    folder = series.place[:-1] if len(series.place) > 1 else ()
    return [
        Draft(item[0], (*folder, item[0]), [item], [reference] if reference else [], series.split)
        for item, reference in zip(series.files, references, strict=True)
    ]


def naming_parts(path: str) -> tuple[tuple[str, ...], str | None]:
    """Folders of a path that name something, and its split."""
    split = None
    names = []
    for depth, part in enumerate(path.split("/") if path else []):
        word = part.lower()
        if split is None and depth < SPLIT_DEPTH and word in SPLIT_FOLDERS:
            split = SPLIT_FOLDERS[word]
        elif word not in IMAGE_FOLDERS:
            names.append(part)
    return tuple(names), split


def common_folders(drafts: list[Draft]) -> int:
    """Number of folders above all these scans; a scan's last name is never one of them."""
    places = [draft.place for draft in drafts]
    common = min(len(place) for place in places) - 1
    for level in range(common):
        if len({place[level] for place in places}) > 1:
            return level
    return common


def former_names(files: Sequence[str], source_name: str) -> set[str]:
    """The scan_ids that these rules give to the files of one scan while other files lie beside them, or fewer.

    One slice alone has its own path, the only series of a folder the folder's, one of several the folder's and its
    own beginning.

    Args:
        files: The files of one scan, below the source.
        source_name: As in `draft_scans`.
    """
    names = set(files)
    for path in files:
        folder, _, name = path.rpartition("/")
        if match := _NUMBERED.fullmatch(stem_of(name)):
            names |= {folder or source_name, _join(folder, match[1].strip("_-. "))}
    return names


def _leave_out(folders: Iterable[Folder], paths: Collection[str]) -> Iterable[Folder]:
    """The folders without some of their files."""
    if not paths:
        return folders
    left = [replace(folder, files=[file for path, file in folder.located if path not in paths]) for folder in folders]
    return [folder for folder in left if folder.files or folder.problem]


def _draft_folder(path: str, images: list[FoundFile], masks: dict[str, LocatedFile], source_name: str) -> list[Draft]:
    names, split = naming_parts(path)
    groups: list[tuple[str | None, list[FoundFile]]]
    groups = [(None, [file]) for file in images] if _is_image_folder(path) else _find_series(images)
    num_series = sum(prefix is not None for prefix, _ in groups)
    drafts = []
    for prefix, group in groups:
        located = [(_join(path, file.name), file) for file in group]
        draft = Draft(located[0][0], (*names, located[0][0]), located, split=split, is_series=prefix is not None)
        if prefix is not None:
            title = prefix.strip("_-. ")
            only = num_series == 1 or not title
            draft.scan_id = (path or source_name) if only else _join(path, title)
            draft.place = (names or (source_name,)) if only else (*names, title)
        references = [masks.get(file.stem) for file in group]
        draft.references = references if any(references) else []
        drafts.append(draft)
    return drafts


def _draft_image(path: str, file: FoundFile, masks: dict[str, LocatedFile], scan_pattern: re.Pattern[str]) -> Draft:
    """One image as a slice of the scan that the pattern names."""
    located = _join(path, file.name)
    match = scan_pattern.search(located)
    if match is None or not match[1]:
        raise UsageError(f"--scan-pattern {scan_pattern.pattern!r} finds no scan in {show_name(located)}.")
    names, split = naming_parts(path)
    reference = masks.get(file.stem)
    return Draft(match[1], (*names, match[1]), [(located, file)], [reference], split=split, is_named=True)


def _join_by_name(drafts: list[Draft]) -> list[Draft]:
    """Slices of one name as one scan; drafts without a file stay as they are."""
    joined: dict[str, list[Draft]] = defaultdict(list)
    for draft in drafts:
        joined[draft.scan_id if draft.is_named else f"\0{draft.scan_id}"].append(draft)
    return [_join_slices(slices) if slices[0].is_named else slices[0] for slices in joined.values()]


def _join_slices(slices: list[Draft]) -> Draft:
    slices.sort(key=lambda draft: natural_key(draft.files[0][0]))
    splits = {draft.split for draft in slices}
    references = [reference for draft in slices for reference in draft.references]
    is_torn = len(splits) > 1
    return Draft(
        slices[0].scan_id,
        (*slices[0].place[: common_folders(slices)], slices[0].scan_id),
        [file for draft in slices for file in draft.files],
        references if any(references) else [],
        split=None if is_torn else splits.pop(),
        is_named=True,
        problem="its slices lie in folders of different splits, so these give it none" if is_torn else None,
    )


def _find_series(images: list[FoundFile]) -> list[tuple[str | None, list[FoundFile]]]:
    """Numbered files by their common beginning; files that belong to no series have None and stand alone."""
    numbered: dict[tuple[str, str], list[tuple[int, str, FoundFile]]] = defaultdict(list)
    groups: list[tuple[str | None, list[FoundFile]]] = []
    for file in images:
        match = None if _is_volume(file) else _NUMBERED.fullmatch(file.stem)
        if match:
            numbered[match[1], file.extension].append((int(match[2]), file.name, file))
        else:
            groups.append((None, [file]))
    for (prefix, _), items in numbered.items():
        items.sort(key=lambda item: item[:2])
        is_series = len(items) > 1 and 2 * len(items) >= items[-1][0] - items[0][0] + 1
        files = [item[2] for item in items]
        groups += [(prefix, files)] if is_series else [(None, [file]) for file in files]
    groups.sort(key=lambda group: natural_key(group[1][0].name))
    return groups


def _tell_masks(folder: Folder) -> tuple[list[FoundFile], dict[str, LocatedFile]]:
    """The images of a folder, and its files of masks by the stem of their image."""
    images, masks = [], {}
    # In order of their names: of two masks of one image the last one counts, in whatever order files are found.
    for path, file in sorted(folder.located, key=lambda item: item[0]):
        stem = file.stem
        suffixes = VOLUME_MASK_SUFFIXES if _is_volume(file) else (MASK_SUFFIX,)
        suffix = next((each for each in suffixes if stem.lower().endswith(each) and len(stem) > len(each)), None)
        if suffix is None:
            images.append(file)
        else:
            masks[stem[: -len(suffix)]] = (path, file)
    return images, masks


def _masks_by_stem(folder: Folder, path: str) -> dict[str, LocatedFile]:
    images, masks = _tell_masks(folder)
    return masks | {file.stem: (_join(path, file.name), file) for file in images}


def _mask_folders(by_path: dict[str, Folder]) -> dict[str, str]:
    """Folders of masks, each with the path it has when `masks` is taken for `images`."""
    bases = {_base(path, IMAGE_FOLDERS): path for path in by_path if _is_within(path, IMAGE_FOLDERS)}
    roots = {base.partition("\0")[0] for base in bases}
    found: dict[str, str] = {}
    for path, folder in by_path.items():
        if not _is_within(path, MASK_FOLDERS):
            continue
        base = _base(path, MASK_FOLDERS)
        parent = base.partition("\0")[0].rstrip("/")
        has_images = parent in by_path and any(file.extension for file in by_path[parent].files)
        if folder.files and (base.partition("\0")[0] in roots or has_images):
            found[path] = base
    return found


def _partners(path: str, mask_folders: dict[str, str]) -> list[str]:
    """Mask folders that belong to a folder of images."""
    wanted = _base(path, IMAGE_FOLDERS) if _is_within(path, IMAGE_FOLDERS) else (f"{path}/" if path else "") + "\0"
    return [mask_path for mask_path, base in mask_folders.items() if base == wanted]


def _is_within(path: str, words: tuple[str, ...]) -> bool:
    return any(part.lower() in words for part in path.split("/"))


def _base(path: str, words: tuple[str, ...]) -> str:
    """The path with its last folder among `words` replaced by a zero character."""
    parts = path.split("/")
    index = max(index for index, part in enumerate(parts) if part.lower() in words)
    return "/".join([*parts[:index], "\0", *parts[index + 1 :]])


def _is_image_folder(path: str) -> bool:
    parts = [part.lower() for part in path.split("/") if part.lower() not in SPLIT_FOLDERS]
    return bool(parts) and parts[-1] in IMAGE_FOLDERS


def _problem_draft(folder: Folder, source_name: str) -> Draft:
    names, split = naming_parts(folder.path)
    return Draft(
        folder.path or source_name, names or (source_name,), split=split, is_series=True, problem=folder.problem
    )


def put_in_order(drafts: list[Draft]) -> list[Draft]:
    """Scans in natural order of their scan_ids; of two that have one, the second is called as its first file."""
    ordered = sorted(drafts, key=lambda draft: natural_key(draft.scan_id))
    seen: set[str] = set()
    for draft in ordered:
        if draft.scan_id in seen and draft.files:
            draft.scan_id = draft.files[0][0]
        while draft.scan_id in seen:
            draft.scan_id += "+"
        seen.add(draft.scan_id)
    return ordered


def _is_volume(file: FoundFile) -> bool:
    return file.extension in VOLUME_EXTENSIONS


def _join(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder else name
