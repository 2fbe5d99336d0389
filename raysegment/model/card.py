"""The model card: what a person should know before using a bundle."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from raysegment.model.doubt_card import show_doubt
from raysegment.model.members import NETWORK_FILE, name_member
from raysegment.scan import Labels

INTENDED_USE = """Research on medical images like those it was trained on: same kind of scanner, sequence and region.
**Research use, not a medical device**: it was not validated for diagnosis or treatment, and a person must look at its
masks before anything follows from them."""

HOW_TO_USE = """    raysegment infer BUNDLE SOURCE --out OUT

Without raysegment, `keras.saving.load_model("{file}")` gives {network}: float32
(batch, rows, columns, channels), normalized as `model.json` says, to probabilities
(batch, rows, columns, {outputs}){averaged}."""


def write_card(content: Mapping[str, Any], labels: Labels) -> str:
    """The text of MODEL_CARD.md.

    Args:
        content: What model.json holds.
        labels: What the network segments.
    """
    names = _show(labels.names)
    outputs = "background, then labels" if labels.exclude_each_other else "labels"
    sections = [
        f"# Model card: {names}",
        f"Segments {names} in scans of {content['num_channels']} channel{'s' * (content['num_channels'] != 1)}. "
        f"Written {content['created']}.\n\n"
        f"Model `{content['model_id']}`",
        _section("Intended use", INTENDED_USE),
        *([_section("Labels", _list_labels(content["labels"]))] if labels.are_declared else []),
        _section("Data", _lines(content["data"])),
        _section("Split by patient", _lines(content["split"])),
        _section("Scores", _lines(content["scores"])),
        _describe_networks(content),
        _section("Preprocessing", _lines(content["preprocessing"])),
        _section("From probability to mask", _lines(content["postprocessing"])),
        *([_section("Masks to look at", show_doubt(content["doubt"]))] if "doubt" in content else []),
        *([_section("Numbers kept", _describe_features(kept))] if (kept := content.get("training_features")) else []),
        _section("Provenance", _lines(content["provenance"])),
        _section("How to use it", _describe_use(content, outputs)),
    ]
    return "\n\n".join(sections) + "\n"


def _section(title: str, body: str) -> str:
    return f"## {title}\n\n{body}"


def _describe_networks(content: Mapping[str, Any]) -> str:
    """The network, or each member with what tells it from the others."""
    if "members" not in content:
        return _section("Network", _lines(content["network"]))
    members = content["members"]
    lines = [
        f"- {name_member(position)}: {_show(member['network'])}; weights {_show(member['weights_sha256'])}, of model "
        f"{_show(member['from_model'])}"
        for position, member in enumerate(members)
    ]
    said = f"Probabilities are the mean over {len(members)} networks; `--members N` uses the first N."
    return _section("Networks", said + "\n\n" + "\n".join(lines))


def _describe_use(content: Mapping[str, Any], outputs: str) -> str:
    if "members" not in content:
        return HOW_TO_USE.format(file=NETWORK_FILE, network="the network", outputs=outputs, averaged="")
    averaged = ", which are averaged over the members"
    return HOW_TO_USE.format(file=name_member(0), network="the first network", outputs=outputs, averaged=averaged)


def _describe_features(kept: Mapping[str, Mapping[str, list[float]]]) -> str:
    """What model.json has of the scans that the model was made from."""
    lines = [
        f"- {kind}: {_show(list(of_kind))}, of up to {max(map(len, of_kind.values()))} patients"
        for kind, of_kind in kept.items()
    ]
    said = (
        "To tell when new scans drift, `model.json` keeps numbers of the scans trained on, and volume and doubt of "
        "masks of those validated on: one for each patient, of four digits, each feature in ascending order by itself, "
        "without names, dates or order of patients."
    )
    return said + "\n\n" + "\n".join(lines)


def _list_labels(items: list[dict[str, Any]]) -> str:
    """Names and values as they are in references."""
    lines = []
    for item in items:
        code = f", {_show(item['code'])}" if "code" in item else ""
        lines.append(f"- {_show(item['name'])}: {' + '.join(map(str, item['values']))}{code}")
    return "\n".join(lines)


def _lines(values: Mapping[str, Any]) -> str:
    shown = {key: value for key, value in values.items() if value is not None}
    if not shown:
        return "Not recorded."
    return "\n".join(f"- {key.replace('_', ' ')}: {_show(value)}" for key, value in shown.items())


def _show(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{key.replace('_', ' ')} {_show(item)}" for key, item in value.items() if item is not None)
    if isinstance(value, (list, tuple)):
        return ", ".join(_show(item) for item in value)
    # One line each, so that a value cannot write headings or links of its own into the card.
    return " ".join(str(value).split()).replace("[", "\\[")
