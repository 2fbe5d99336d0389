"""Where labels come from: the command line, `labels.yaml`, a dataset's `dataset.json`, or nowhere.

The first of these that there is decides alone:

1. `--labels WT=1+2+4 --labels ET=4`: a name, and the values that the region has in references.
2. `labels.yaml` in SOURCE. Each key is a label; its value a number, several as `1+2+4` or a list, or a mapping with
   `values`, and `colour` and `code` where there are such:

       WT: 1+2+4
       TC: [1, 4]
       ET: {values: 4, colour: "#d62728", code: "SCT:91772007"}

   A colour is a quoted `"#rrggbb"` or a list of three numbers from 0 to 255, a code is SCHEME:VALUE.
3. `dataset.json` in SOURCE; `archive/dataset_json` knows its dialects.
4. Nothing: one label, whose values in each reference decide (`archive/reference`).

Background is 0 and needs no name; one that is given to it is left out. Beside a manifest the files are looked for in
the manifest's folder, then in the source of its scans if all have one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from raysegment.archive.dataset_json import DATASET_FILE, IGNORE, labels_of_dataset, read_dataset, refuse_ignore
from raysegment.archive.filesystem import absolute_source, folder_of, is_uri, read_small_file
from raysegment.archive.manifest import is_manifest
from raysegment.archive.marked_yaml import read_marked
from raysegment.archive.names import show_name, show_value
from raysegment.errors import UsageError
from raysegment.scan import LARGEST_LABEL_VALUE, Colour, Labels, Region

LABELS_FILE = "labels.yaml"
MAX_BYTES = 2**20
MAX_SHOWN = 80
LABEL_KEYS = ("values", "colour", "code")

_REGION = re.compile(r"[0-9]{1,5}(\s*\+\s*[0-9]{1,5})*")
_END = re.compile(r"(=\s*[0-9]+(?:\s*\+\s*[0-9]+)*)\s+(?=[^\s+,])")
"""The values of a label, before the next one's name."""
_COLOUR = re.compile(r"#[0-9a-fA-F]{6}")
_CODE = re.compile(r"[^\s:]+:\S+")


def find_labels(source: str, given: tuple[str, ...] | None, name: str, found: pa.Table | None = None) -> Labels:
    """The labels of an archive, by the rules above.

    Args:
        source: Folder, manifest or bucket, as the user gave it.
        given: What `--labels` says, such as ("WT=1+2+4", "ET=4"); several may stand in one text, with spaces or commas
            between.
        name: Of the one label, where nothing declares any.
        found: Scans of the source, which say where those of a manifest lie.

    Raises:
        UsageError: The option or the file says something else than labels; the message names the place.
    """
    return locate_labels(source, given, name, found)[0]


def locate_labels(
    source: str, given: tuple[str, ...] | None, name: str, found: pa.Table | None = None
) -> tuple[Labels, str]:
    """As `find_labels`, and in words where the labels come from; empty where nothing declares any."""
    if given:
        return parse_labels(given), "--labels"
    for folder in label_folders(source, found):
        if (data := read_small_file(folder, LABELS_FILE, MAX_BYTES)) is not None:
            return parse_labels_file(data, LABELS_FILE), LABELS_FILE
        labels = labels_of_dataset(read_dataset(folder))
        if labels is not None:
            return labels, DATASET_FILE
    return Labels((name,)), ""


def match_labels(source: str, given: tuple[str, ...] | None, model: Labels, found: pa.Table | None = None) -> Labels:
    """What the values of an archive's references mean, where a model's labels are compared with them.

    The names are the model's. Their values are those of `--labels` or of the archive's file, else those that they had
    in training. A file that knows nothing of a model's one undeclared label leaves its values to the rule without
    labels.

    Args:
        source: Folder, manifest or bucket, as the user gave it.
        given: What `--labels` says.
        model: The model's labels.
        found: As in `find_labels`.

    Returns:
        The model's labels in its order, and after them other ones that the archive has; these very labels where
        nothing differs.

    Raises:
        UsageError: A label of the model is not among those that are named.
    """
    drawn, where = locate_labels(source, given, model.names[0], found)
    missing = [name for name in model.names if name not in drawn.names]
    if not drawn.are_declared or (missing and not given and not model.are_declared):
        return model
    if missing:
        values = model.regions[model.names.index(missing[0])] if model.are_declared else (1,)
        raise UsageError(
            f"{where} has the labels {', '.join(drawn.names)}; the model has {', '.join(model.names)}. Say which "
            f"values these have in references, such as --labels {missing[0]}={'+'.join(map(str, values))}."
        )
    regions = dict(zip(drawn.names, drawn.regions, strict=True))
    names = (*model.names, *(name for name in drawn.names if name not in model.names))
    matched = Labels(names, tuple(regions[name] for name in names))
    return model if matched.as_typed == model.as_typed else matched


def match_labels_if_known(
    source: str, given: tuple[str, ...] | None, model: Labels, found: pa.Table | None = None
) -> Labels:
    """As `match_labels`, for a command that needs no references.

    A file of the archive that does not know the model's labels leaves them the values that they had in training.
    """
    if not given and not set(model.names) <= set(find_labels(source, None, model.names[0], found).names):
        return model
    return match_labels(source, given, model, found)


def parse_labels(given: tuple[str, ...]) -> Labels:
    """Labels as `--labels` says them.

    Raises:
        UsageError: Names the part that is no label.
    """
    regions: dict[str, Region] = {}
    for item in _split_items(given):
        name, _, values = item.rpartition("=")
        if not name.strip() or not _REGION.fullmatch(values.strip()):
            raise UsageError(
                f"--labels {show_name(item)!r} is no label; expected NAME=VALUE, such as WT=1+2+4 or ET=4."
            )
        if name.strip() in regions:
            raise UsageError(f"--labels names {show_name(name.strip())} twice; each label needs a name of its own.")
        regions[name.strip()] = _parse_region(values)
    return Labels(tuple(regions), tuple(regions.values()))


def parse_labels_file(data: bytes, where: str) -> Labels:
    """Labels as a `labels.yaml` says them.

    Args:
        data: The file's bytes.
        where: Its name, for messages.

    Raises:
        UsageError: Names the line and the key.
    """
    found: dict[str, tuple[Region, Colour | None, str | None]] = {}
    for name, line, value in read_marked(data, where, "labels; expected lines such as `WT: 1+2+4` and `ET: 4`"):
        place = f"{where}, line {line}: label {show_name(name[:MAX_SHOWN])}"
        if name in found:
            raise UsageError(f"{place} stands there twice; each label needs a name of its own.")
        if name.lower() == IGNORE:
            raise refuse_ignore(place)
        label = _read_label(value, place)
        if label[0] == (0,):
            continue
        if min(label[0]) < 1 or max(label[0]) > LARGEST_LABEL_VALUE:
            values = show_value(list(label[0]))
            raise UsageError(f"{place} has the values {values}; expected 1 to {LARGEST_LABEL_VALUE}.")
        found[name] = label
    if not found:
        raise UsageError(f"{where} names no label; expected lines such as `WT: 1+2+4` and `ET: 4`.")
    regions, colours, codes = zip(*found.values(), strict=True)
    return Labels(tuple(found), regions, colours if any(colours) else (), codes if any(codes) else ())


def label_folders(source: str, found: pa.Table | None) -> Iterator[str]:
    """Folders or buckets in which files about an archive are looked for."""
    if not is_manifest(source):
        yield absolute_source(source)
        return
    if not is_uri(source):
        yield folder_of(source)
    sources = [] if found is None else pc.unique(found["source"]).to_pylist()
    if len(sources) == 1:
        yield sources[0]


def _split_items(given: tuple[str, ...]) -> Iterator[str]:
    """One text for each label; names may hold blanks."""
    for text in given:
        yield from filter(None, map(str.strip, _END.sub(r"\1,", text).split(",")))


def _read_label(value: Any, place: str) -> tuple[Region, Colour | None, str | None]:
    if not isinstance(value, dict):
        return _read_region(value, place), None, None
    unknown = [str(key) for key in value if key not in LABEL_KEYS]
    if unknown or "values" not in value:
        said = f"has the unknown key {show_value(unknown[0])}" if unknown else "has no values"
        raise UsageError(f"{place} {said}; known are {', '.join(LABEL_KEYS)}, and values must be there.")
    colour = _read_colour(value["colour"], place) if "colour" in value else None
    code = value.get("code")
    if "code" in value and not (isinstance(code, str) and _CODE.fullmatch(code)):
        raise UsageError(f"{place}: code is {show_value(code)}; expected SCHEME:VALUE, such as SCT:91772007.")
    return _read_region(value["values"], place), colour, code


def _read_region(value: Any, place: str) -> Region:
    """The values of a label, as a number, a list, or a text with plus signs."""
    items = value if isinstance(value, list) and value else [value]
    if all(isinstance(item, int) and not isinstance(item, bool) and item >= 0 for item in items):
        return tuple(items)
    if isinstance(value, str) and _REGION.fullmatch(value.strip()):
        return _parse_region(value)
    raise UsageError(
        f"{place} has the values {show_value(value)}; expected whole numbers above 0, such as 4, 1+2+4 or [1, 2, 4]."
    )


def _parse_region(text: str) -> Region:
    return tuple(int(part) for part in text.split("+"))


def _read_colour(value: Any, place: str) -> Colour:
    if isinstance(value, str) and _COLOUR.fullmatch(value):
        return int(value[1:3], 16), int(value[3:5], 16), int(value[5:7], 16)
    if isinstance(value, list) and len(value) == 3 and all(type(part) is int and 0 <= part <= 255 for part in value):
        return value[0], value[1], value[2]
    hint = " Put it into quotes, because # begins a comment." if value is None else ""
    raise UsageError(
        f'{place}: colour is {show_value(value)}; expected "#rrggbb" or three numbers from 0 to 255.{hint}'
    )
