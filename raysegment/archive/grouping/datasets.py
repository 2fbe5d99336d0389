"""Datasets as the Medical Segmentation Decathlon and nnU-Net have them.

    dataset.json
    imagesTr/CASE.nii.gz                    Decathlon: all channels in one file
    imagesTr/CASE_0000.nii.gz, _0001 …      nnU-Net: a file for each channel
    labelsTr/CASE.nii.gz                    the references
    imagesTs/…                              as imagesTr, without references and split

- A scan_id is the path of the case's one file, or that of its files without number and extension. Each case is its own
  patient, called as the case.
- Channels have the names of `dataset.json` beside these folders; without it they are called 0, 1, …, or nothing where
  there is only one.
- Numbers of four digits count channels if the names without them have a reference and the whole names have none. Where
  no reference tells, they do if there are as few of them as there are channels, or up to 8.
- Only volumes count, in any folder so called; labelsTs is left alone. `--channel` and `--reference` read it otherwise.
- Without imagesTr and imagesTs, what lies in labelsTr and labelsTs are masks without image.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Sequence

from raysegment.archive.grouping.folders import Draft
from raysegment.archive.grouping.volumes import ChannelsOf, Taken, add_reference, draft_channels, place_of
from raysegment.archive.names import stem_of
from raysegment.archive.walk import LocatedFile

DECATHLON = "Medical Segmentation Decathlon"
NNUNET = "nnU-Net"
TRAINING, TESTING, REFERENCES, UNUSED = "imagestr", "imagests", "labelstr", "labelsts"
MAX_UNTOLD_CHANNELS = 8

_NUMBERED = re.compile(r"(.+)_(\d{4})", re.DOTALL)

Dataset = dict[str, list[LocatedFile]]
"""Files of one dataset by the name of their folder in lower case."""


def take_datasets(volumes: Sequence[LocatedFile], source_name: str, channels_of: ChannelsOf) -> Taken:
    """Find the cases of all datasets below a source.

    Args:
        volumes: All volumes of the archive.
        source_name: The source's last folder, which may itself be `imagesTr` or `imagesTs`.
        channels_of: What a dataset's own file says of its channels.
    """
    datasets: dict[str, Dataset] = defaultdict(lambda: defaultdict(list))
    for item in volumes:
        root, _, last = item[0].rpartition("/")[0].rpartition("/")
        word = (last or source_name).lower()
        if word in (TRAINING, TESTING, REFERENCES, UNUSED):
            datasets[root][word].append(item)
    taken = Taken()
    lone_masks = 0
    for root, dataset in sorted(datasets.items()):
        if not dataset[TRAINING] and not dataset[TESTING]:
            masks = dataset[REFERENCES] + dataset[UNUSED]
            taken.paths.update(path for path, _ in masks)
            lone_masks += len(masks)
            continue
        drafts, num_lone = _draft_dataset(dataset, channels_of(root))
        taken.drafts.extend(drafts)
        taken.paths.update(path for items in dataset.values() for path, _ in items)
        lone_masks += num_lone
    return Taken(taken.drafts, taken.paths, lone_masks)


def _draft_dataset(dataset: Dataset, names: tuple[str, ...]) -> tuple[list[Draft], int]:
    """The cases of one dataset, and the number of references without a case."""
    references: dict[str, list[LocatedFile]] = defaultdict(list)
    for item in dataset[REFERENCES]:
        references[item[1].stem].append(item)
    images = dataset[TRAINING] + dataset[TESTING]
    drafts = _draft_numbered(images, names) if _has_numbers(images, references, names) else _draft_whole(images, names)
    of_training = {path.rpartition("/")[0] for path, _ in dataset[TRAINING]}
    used = set()
    for draft in drafts:
        if draft.patient in references and draft.scan_id.rpartition("/")[0] in of_training:
            add_reference(draft, references[draft.patient])
            used.add(draft.patient)
    return drafts, len(references) - len(used)


def _has_numbers(images: list[LocatedFile], references: Collection[str], names: tuple[str, ...]) -> bool:
    """Whether the names of images end in the number of a channel."""
    stems = [file.stem for _, file in images]
    if any(stem in references for stem in stems):
        return False
    matches = [_NUMBERED.fullmatch(stem) for stem in stems]
    if any(match is not None and match[1] in references for match in matches):
        return True
    numbers = {int(match[2]) if match else -1 for match in matches}
    return min(numbers) == 0 and max(numbers) < (len(names) or MAX_UNTOLD_CHANNELS)


def _draft_numbered(images: list[LocatedFile], names: tuple[str, ...]) -> list[Draft]:
    """nnU-Net: a file for each channel."""
    cases: dict[str, dict[int, list[LocatedFile]]] = defaultdict(lambda: defaultdict(list))
    for item in images:
        folder, stem = item[0].rpartition("/")[0], item[1].stem
        match = _NUMBERED.fullmatch(stem)
        case, number = (match[1], int(match[2])) if match else (stem, -1)
        cases[f"{folder}/{case}" if folder else case][number].append(item)
    most = max(number for numbers in cases.values() for number in numbers)
    is_nameless = not names and most == 0
    names = names or tuple(map(str, range(most + 1)))
    drafts = []
    for scan_id, numbers in cases.items():
        found = {name: numbers[number] for number, name in enumerate(names) if number in numbers}
        draft = draft_channels(scan_id, names, found)
        if strange := [number for number in numbers if not 0 <= number < len(names)]:
            shown = "no number" if strange[0] < 0 else f"{strange[0]:04d}"
            draft.problem = f"a file of it ends in {shown}; there are channels 0000 to {len(names) - 1:04d}"
        if is_nameless:
            draft.channel_names = draft.missing = ()
        drafts.append(_name_case(draft, NNUNET))
    return drafts


def _draft_whole(images: list[LocatedFile], names: tuple[str, ...]) -> list[Draft]:
    """Decathlon: one file for a case, with all channels."""
    return [
        _name_case(Draft(path, place_of(path), [(path, file)], channel_names=names), DECATHLON) for path, file in images
    ]


def _name_case(draft: Draft, layout: str) -> Draft:
    draft.layout = layout
    draft.patient = stem_of(draft.scan_id) if layout == DECATHLON else draft.scan_id.rpartition("/")[2]
    draft.is_own_patient = True
    return draft
