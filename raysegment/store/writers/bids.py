"""What stands in a BIDS dataset of masks beside the volumes: sidecars, the dataset's description, the table of labels.

After https://bids-specification.readthedocs.io, version 1.10, "Derivatives". Nothing in these files depends on the day
or on the folder that they lie in, so that two exports are the same byte for byte.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raysegment.store.place import write_whole

BIDS_VERSION = "1.10.0"
DESCRIPTION_FILE = "dataset_description.json"
README_FILE = "README"
SOURCE_LINK = "source"
"""What URIs call the dataset that the scans lie in."""

OWN_SPACE = "orig"
"""The standard's word for the grid of the image itself."""

README = """\
Masks that raysegment made, as derivatives of the Brain Imaging Data Structure (BIDS).

Research use only. raysegment is not a medical device; its masks have not been validated for diagnosis or treatment.

sub-*/[ses-*/]anat/*_space-orig_desc-raysegment_dseg.nii.gz is a label map on the grid of the scan itself, 0 is
background; *_dseg.tsv in this folder names its values. Where labels overlap each has a file of 0 and 1 instead,
*_space-orig_label-*_desc-raysegment_mask.nii.gz.

The .json beside each mask says which model made it (ModelID), with which version of raysegment and which threshold,
and of which scan (ScanID: its name in raysegment's tables). A scan that did not come from a BIDS dataset has its
patient_id as subject and its scan_id as session, reduced to letters and digits, with a hash where that loses
something; several sessions of a subject are then several scans, not several visits.
"""


@dataclass(frozen=True, kw_only=True)
class MaskOrigin:
    """What a sidecar says of a mask.

    Attributes:
        scan_id: In the tables.
        model_id: Of the model; empty where it is not known.
        version: Of the raysegment that made the mask; empty where it is not known.
        threshold: A number where there is one for all labels, or one by name; None where it is not known.
        sources: Files that it was made of, as URIs or paths in a BIDS dataset; empty where they are in none.
        reference: The image on whose grid it lies, or the standard's word for that.
    """

    scan_id: str
    model_id: str
    version: str
    threshold: float | Mapping[str, float] | None
    sources: Sequence[str] = ()
    reference: str = OWN_SPACE


@dataclass(frozen=True, kw_only=True)
class MaskLabel:
    """One label of a mask.

    Attributes:
        name: As the model calls it.
        value: In the label map; 1 in a mask of its own.
        colour: Red, green, blue from 0 to 255 for viewers; None where none is given.
        code: Of a terminology, such as `SCT:91772007`; None where none is given.
    """

    name: str
    value: int
    colour: Sequence[int] | None = None
    code: str | None = None


def make_sidecar(origin: MaskOrigin, labels: Sequence[MaskLabel], *, is_label_map: bool) -> bytes:
    """The JSON beside one volume.

    Args:
        origin: Where the mask comes from.
        labels: All in a label map, or the one of a mask.
        is_label_map: Whether values tell labels.
    """
    names = ", ".join(label.name for label in labels)
    kind = {"Manual": False} if is_label_map else {"Type": "ROI"}
    known = {
        "ModelID": origin.model_id,
        "RaysegmentVersion": origin.version,
        "Threshold": _threshold_of(origin.threshold, labels),
    }
    content: dict[str, Any] = {
        "Description": f"{names}, segmented by raysegment. Research use only.",
        "SpatialReference": origin.reference,
        **({"Sources": list(origin.sources)} if origin.sources else {}),
        **kind,
        "Labels": {label.name: _describe_label(label) for label in labels},
        "ScanID": origin.scan_id,
        **{key: value for key, value in known.items() if value not in (None, "")},
    }
    return _as_json(content)


def make_description(version: str, model_ids: Sequence[str], link: str | None) -> bytes:
    """The dataset's own description.

    Args:
        version: Of the raysegment that made the masks; empty where it is not known.
        model_ids: Of the models that made them.
        link: Path from here to the BIDS dataset of the scans, where this one lies in it.
    """
    tool: dict[str, Any] = {"Name": "raysegment", **({"Version": version} if version else {})}
    if model_ids:
        tool["Description"] = "Segmentation by the model " + ", ".join(sorted(model_ids))
    content: dict[str, Any] = {
        "Name": "Masks by raysegment",
        "BIDSVersion": BIDS_VERSION,
        "DatasetType": "derivative",
        "GeneratedBy": [tool],
        **({"DatasetLinks": {SOURCE_LINK: link}} if link else {}),
    }
    return _as_json(content)


def make_label_table(labels: Sequence[MaskLabel]) -> bytes:
    """The table of values in label maps: index and name, and colours where any is given."""
    has_colours = any(label.colour for label in labels)
    rows = [("index", "name", *(("color",) if has_colours else ()))]
    for label in labels:
        shown = "n/a" if label.colour is None else "#{:02x}{:02x}{:02x}".format(*label.colour)
        rows.append((str(label.value), " ".join(label.name.split()), *((shown,) if has_colours else ())))
    return "".join("\t".join(row) + "\n" for row in rows).encode()


def write_text(path: Path, content: bytes) -> None:
    """Write a small file in one step.

    Raises:
        DiskFullError: No space left.
        OutputError: The system refuses the file.
    """
    with write_whole(path) as temporary:
        temporary.write_bytes(content)


def _threshold_of(threshold: float | Mapping[str, float] | None, labels: Sequence[MaskLabel]) -> float | None:
    """The one that these labels have together; labels with one each have a file each."""
    return threshold.get(labels[0].name) if isinstance(threshold, Mapping) else threshold


def _describe_label(label: MaskLabel) -> dict[str, Any]:
    return {"Value": label.value, **({"Code": label.code} if label.code else {})}


def _as_json(content: Mapping[str, Any]) -> bytes:
    return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode("utf-8", "surrogatepass")
