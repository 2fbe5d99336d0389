"""`dataset.json` of the Medical Segmentation Decathlon and of nnU-Net: labels and channels of a dataset.

Labels stand there in two directions, `{"0": "background", "1": "Anterior"}` (Decathlon) or `{"background": 0,
"Anterior": 1}` (nnU-Net), and files in the wild mix the keys of both dialects. So each entry tells for itself: a key
that is a whole number with a text beside it is a value, any other key a name. In nnU-Net's direction a list of values
is a region, `{"whole tumor": [1, 2, 3], "core": [2, 3]}`, with `regions_class_order`; the order is checked and not
needed, because regions that share a value get masks of their own. Labels stand in the order of their values, or of the
file where one of them is a list.

Channels stand in `channel_names` (nnU-Net) or `modality` (Decathlon), numbered from "0".
"""

from __future__ import annotations

import json
import re
from typing import Any

from raysegment.archive.filesystem import read_small_file
from raysegment.archive.names import show_name, show_value
from raysegment.errors import UsageError
from raysegment.scan import LARGEST_LABEL_VALUE, Labels, Region

DATASET_FILE = "dataset.json"
MAX_BYTES = 64 * 2**20
IGNORE = "ignore"

_VALUE = re.compile("[0-9]{1,5}")

Dataset = dict[str, Any]


def read_dataset(source: str, folder: str = "") -> Dataset:
    """What `dataset.json` of a folder or bucket holds; empty where there is none, or it is something else.

    Args:
        source: Folder or bucket.
        folder: Below the source, if not the source itself.

    Raises:
        UsageError: It is no JSON.
    """
    data = read_small_file(source, f"{folder}/{DATASET_FILE}" if folder else DATASET_FILE, MAX_BYTES)
    if data is None:
        return {}
    try:
        loaded = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{DATASET_FILE} in {show_name(source)} cannot be read as JSON: {error}.") from None
    return loaded if isinstance(loaded, dict) else {}


def labels_of_dataset(dataset: Dataset) -> Labels | None:
    """The labels of a dataset, None where it declares none.

    Raises:
        UsageError: An entry is no label, or a label is to be ignored; the message names it.
    """
    if "labels" not in dataset:
        return None
    declared = dataset["labels"]
    if not isinstance(declared, dict):
        raise UsageError(
            f'{DATASET_FILE}: labels is {type(declared).__name__}; expected {{"background": 0, "NAME": 1}} or '
            '{"0": "background", "1": "NAME"}. Give --labels or a labels.yaml instead.'
        )
    regions: dict[str, Region] = {}
    for key, value in declared.items():
        name, region = _read_entry(key, value)
        if name.lower() == IGNORE:
            raise refuse_ignore(f"{DATASET_FILE}: label {show_name(name)}")
        if region == (0,):
            continue
        if name in regions:
            raise UsageError(f"{DATASET_FILE}: label {show_name(name)} stands there twice; expected different names.")
        regions[name] = region
    if not regions:
        raise UsageError(f"{DATASET_FILE}: labels names nothing but the background.")
    _check_order(dataset, len(regions))
    if all(len(region) == 1 for region in regions.values()):
        regions = dict(sorted(regions.items(), key=lambda item: item[1]))
    return Labels(tuple(regions), tuple(regions.values()))


def channels_of_dataset(dataset: Dataset) -> tuple[str, ...]:
    """Names of a dataset's channels in order; empty where it names none.

    Raises:
        UsageError: They are not numbered from 0, or two have one name.
    """
    key = next((key for key in ("channel_names", "modality") if key in dataset), None)
    if key is None:
        return ()
    named = dataset[key]
    numbered = [str(number) for number in range(len(named))] if isinstance(named, dict) else []
    if not numbered or sorted(named) != sorted(numbered) or not all(isinstance(name, str) for name in named.values()):
        raise UsageError(f'{DATASET_FILE}: {key} is {show_value(named)}; expected {{"0": "NAME", "1": "NAME", …}}.')
    names = [named[number].strip() or number for number in numbered]
    return tuple(name if names.count(name) == 1 else f"{name}_{index}" for index, name in enumerate(names))


def refuse_ignore(place: str) -> UsageError:
    """The error for a label that marks voxels nobody looked at.

    Args:
        place: Where it stands, and its name.
    """
    return UsageError(
        f"{place} marks voxels that are to be ignored, which raysegment does not do: they would count as background. "
        "Take these scans out, or declare labels without it through --labels; references that hold its value are then "
        "refused one by one."
    )


def _read_entry(key: str, value: Any) -> tuple[str, Region]:
    """Name and values of one entry, in whichever direction it stands."""
    if _VALUE.fullmatch(key) and isinstance(value, str):
        return value.strip(), (int(key),)
    if isinstance(value, str) and _VALUE.fullmatch(value):
        value = int(value)
    items = value if isinstance(value, list) and value else [value]
    is_number_twice = key.isdecimal() and (not _VALUE.fullmatch(key) or items != [int(key)])
    if is_number_twice or not all(type(item) is int and abs(item) <= LARGEST_LABEL_VALUE for item in items):
        raise UsageError(
            f"{DATASET_FILE}: labels has {show_value(key)}: {show_value(value)}; expected a name and its values, such "
            'as "Anterior": 1, "tumor": [1, 2] or "1": "Anterior".'
        )
    return key.strip(), tuple(items)


def _check_order(dataset: Dataset, num_labels: int) -> None:
    order = dataset.get("regions_class_order")
    if order is not None and (not isinstance(order, list) or len(order) != num_labels):
        raise UsageError(
            f"{DATASET_FILE}: regions_class_order is {show_value(order)}; expected a list with a value for each of the "
            f"{num_labels} labels."
        )
