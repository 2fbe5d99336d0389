"""A bundle: a trained network, or several, with all that is needed to use it, as a folder.

    model.keras     plain float32 network; `keras.saving.load_model` opens it without raysegment
    model.json      preprocessing, postprocessing, labels, provenance and identity
    MODEL_CARD.md   the same for a person

An ensemble has `members/0.keras`, `members/1.keras`, … in place of model.keras; its probabilities are their mean.
Reading a bundle imports neither Keras nor TensorFlow; only `load_network` and `load_networks` do.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from raysegment.choices import as_plain
from raysegment.errors import UsageError
from raysegment.model.card import write_card
from raysegment.model.members import NETWORK_FILE, Member, hash_weights, read_members
from raysegment.model.patients import SeenPatients, hash_patients, read_patients
from raysegment.options import Postprocessing, Preprocessing
from raysegment.scan import Labels

FORMAT = "raysegment-bundle"
FORMAT_VERSION, ENSEMBLE_VERSION = 1, 2
"""`format_version` of a bundle with one network, and with several, which earlier versions cannot read."""

DESCRIPTION_FILE, CARD_FILE = "model.json", "MODEL_CARD.md"

UNIDENTIFIED = ("model_id", "created", "network_sha256")
"""Keys of model.json and of its members that do not enter `model_id`: dates, and hashes of files that hold dates."""


@dataclass(frozen=True, kw_only=True)
class BundleDescription:
    """What a bundle says of its network.

    Attributes:
        preprocessing: How scans become what the network sees.
        postprocessing: How probabilities become masks.
        threshold: For all labels, or by the name of each; if not given, that of the postprocessing.
        labels: The segmented regions; the network has a channel for each, and where they exclude each other one for
            the background before them.
        num_channels: Channels of a scan as read, before the choice of channels and the neighbouring slices.
        network: Arguments of `build_network` that made the network, `depth` among them; members have their own.
        training_patients: Patients the network was trained on; only their hashes are stored.
        inherited_patients: `as_plain` of those that a base model or members of an ensemble were trained on.
        data: What it was trained on, for the card, such as {"source": …, "scans": …}.
        split: Patients and scans per split, for the card.
        scores: Scores on scans not trained on, for the card.
        provenance: Anything else that made it: options, seed, versions. No dates, they would change `model_id`.
        doubt: Plain numbers that tell when to doubt a mask, see `pipeline/doubt`; None for none.
        training_features: Plain numbers to compare new scans with, see `pipeline/training_features`; None for none.
    """

    preprocessing: Preprocessing
    postprocessing: Postprocessing
    threshold: float | Mapping[str, float] | None = None
    labels: Labels = field(default_factory=Labels)
    num_channels: int
    network: Mapping[str, Any] = field(default_factory=dict)
    training_patients: Iterable[str] = ()
    inherited_patients: Iterable[Any] = ()
    data: Mapping[str, Any] = field(default_factory=dict)
    split: Mapping[str, Any] = field(default_factory=dict)
    scores: Mapping[str, Any] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)
    doubt: Mapping[str, Any] | None = None
    training_features: Mapping[str, Any] | None = None


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """A bundle that was read and found whole. It may be sent to other processes, without the folder.

    Attributes:
        path: Folder it was read from.
        model_id: SHA-256 of weights and model.json without dates.
        threshold: Of each label: probability from which a voxel belongs to its mask; where labels exclude each other
            it is one for all, which their probabilities together must reach.
        members: The networks; one, or those of an ensemble in their order.
        training_patients: Hashes of each patient that any of the networks was trained on.

    The others are as in `BundleDescription`.
    """

    path: Path
    model_id: str
    preprocessing: Preprocessing
    postprocessing: Postprocessing
    threshold: tuple[float, ...]
    labels: Labels
    num_channels: int
    members: tuple[Member, ...]
    training_patients: SeenPatients
    data: Mapping[str, Any]
    split: Mapping[str, Any]
    scores: Mapping[str, Any]
    provenance: Mapping[str, Any]
    doubt: Mapping[str, Any] | None
    training_features: Mapping[str, Any] | None

    @property
    def num_members(self) -> int:
        """Networks whose probabilities are averaged; 1 where there is no ensemble."""
        return len(self.members)

    @property
    def network(self) -> Mapping[str, Any]:
        """Arguments of `build_network` that made the network; of an ensemble, its first."""
        return self.members[0].network

    @property
    def depth(self) -> int:
        """The grid sides of all networks divide by 2**depth."""
        return max(member.depth for member in self.members)

    @property
    def grid_factor(self) -> int:
        """Rows and columns of a batch must divide by this."""
        return 2**self.depth

    @property
    def sees_whole_slices(self) -> bool:
        """Whether a network looks at all of its input at once, so that a window around a part would change what it
        finds: group norm by its statistics, EfficientNet by its gates on means over the grid."""
        return any(
            member.network.get("norm") == "group" or member.network.get("encoder") == "efficientnetv2-b0"
            for member in self.members
        )

    @property
    def channel_names(self) -> tuple[str, ...]:
        """Of the channels of a scan as read; empty where there is one, or they had no names."""
        return tuple(self.data.get("channel_names", ()))

    @property
    def key(self) -> str | None:
        """Fingerprint of the key that its patients' pseudonyms were made with; None where they had none."""
        return str(self.provenance.get("key") or "") or None

    def has_seen(self, patient_id: str) -> bool:
        """Whether a network was trained on that patient."""
        return patient_id in self.training_patients

    def count_members(self, asked: int | None) -> int | None:
        """How many networks `--members` means, counted from the first; None where it means all.

        Raises:
            UsageError: There are fewer.
        """
        if asked is not None and asked > self.num_members:
            holds = "one network" if self.num_members == 1 else f"{self.num_members} networks"
            raise UsageError(f"--members {asked}: MODEL {self.path} holds {holds}. Give no more, or leave it out.")
        return None if asked == self.num_members else asked

    def keep_members(self, count: int | None) -> Bundle:
        """The same with its first networks only, all if None. Who trained on what, and `model_id`, stay."""
        return replace(self, members=self.members[: self.count_members(count)])

    def load_network(self, position: int = 0) -> Any:
        """The Keras model, uncompiled, float32; one of several by its position. Imports Keras.

        Raises:
            UsageError: Its file holds other layers or weights than were saved, or cannot be loaded.
        """
        return self.members[position].load()

    def load_networks(self, count: int | None = None) -> list[Any]:
        """The first Keras models, all if None, as `load_network` gives them.

        Raises:
            UsageError: There are fewer, or one is not what was saved.
        """
        return [member.load() for member in self.keep_members(count).members]


def save_bundle(folder: str | os.PathLike[str], model: Any, description: BundleDescription) -> Bundle:
    """Write a bundle; one that was there is replaced when the new one is whole.

    Args:
        folder: The bundle's folder.
        model: Functional Keras model; stored as a float32 twin without synchronization.
        description: What to say of it.

    Returns:
        The bundle as it reads back.
    """
    from raysegment.model.unet import copy_as_plain

    def write_network(temporary: Path) -> dict[str, Any]:
        plain = copy_as_plain(model)
        plain.save(temporary / NETWORK_FILE)
        return {
            "network": dict(description.network),
            "weights_sha256": hash_weights(plain),
            "network_sha256": hashlib.sha256((temporary / NETWORK_FILE).read_bytes()).hexdigest(),
        }

    return write_bundle_folder(folder, description, write_network)


def write_bundle_folder(
    folder: str | os.PathLike[str],
    description: BundleDescription,
    write_networks: Callable[[Path], Mapping[str, Any]],
) -> Bundle:
    """Write a bundle in one step.

    Args:
        folder: The bundle's folder; one that was there is replaced when the new one is whole.
        description: What to say of it.
        write_networks: Called with the folder to write networks into; returns what model.json says of them.

    Returns:
        The bundle as it reads back.
    """
    target = Path(folder).absolute()
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        # Through JSON once, so that model_id is the same before writing and after reading.
        networks = write_networks(temporary)
        weights = " ".join(member["weights_sha256"] for member in networks.get("members", [networks]))
        patients = hash_patients(description.training_patients, description.inherited_patients, weights).as_plain
        content = json.loads(json.dumps({**_describe(description), "training_patients": patients, **networks}))
        content["model_id"] = compute_model_id(content)
        content["created"] = datetime.now(UTC).isoformat(timespec="seconds")
        text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
        (temporary / DESCRIPTION_FILE).write_text(text, encoding="utf-8")
        (temporary / CARD_FILE).write_text(write_card(content, read_labels(content["labels"])), encoding="utf-8")
        temporary.chmod(0o755)
        _replace_folder(temporary, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return load_bundle(target)


def load_bundle(path: str | os.PathLike[str]) -> Bundle:
    """Read and verify a bundle, without importing Keras.

    Args:
        path: A bundle, or the folder of a training run that holds one as `model/`.

    Raises:
        UsageError: Missing, not a bundle, from another version, damaged, a network missing or exchanged, or with
            layers that raysegment does not build.
    """
    folder = _find_bundle(Path(path))
    content = _read_description(folder / DESCRIPTION_FILE)
    try:
        members = read_members(folder, content)
        bundle = _build_bundle(folder, content, members)
        model_id = compute_model_id(content)
    except OSError as error:
        raise UsageError(f"{error.filename} cannot be read: {error.strerror}. The bundle is incomplete.") from None
    except (KeyError, TypeError, ValueError, AttributeError, UsageError) as error:
        raise UsageError(f"{folder / DESCRIPTION_FILE} is damaged or from another version: {error!r}") from None
    if bundle.model_id != model_id:
        raise UsageError(
            f"{folder / DESCRIPTION_FILE} was changed after the bundle was saved: model_id does not match."
        )
    for member in members:
        member.check()
    return bundle


def compute_model_id(content: Mapping[str, Any]) -> str:
    """SHA-256 of model.json without dates; the weights enter through their own hashes in it."""
    kept = _identified(content)
    if "members" in kept:
        kept["members"] = [_identified(member) for member in kept["members"]]
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()


def _describe(description: BundleDescription) -> dict[str, Any]:
    content: dict[str, Any] = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "preprocessing": as_plain(description.preprocessing),
        "postprocessing": as_plain(description.postprocessing),
        "labels": description.labels.as_plain,
        "num_channels": description.num_channels,
        "data": dict(description.data),
        "split": dict(description.split),
        "scores": dict(description.scores),
        "provenance": dict(description.provenance),
    }
    if description.threshold is not None:
        content["postprocessing"]["threshold"] = description.threshold
    # Bundles of older versions lack them, and keep their model_id.
    known = {"doubt": description.doubt, "training_features": description.training_features}
    content |= {name: dict(values) for name, values in known.items() if values is not None}
    return content


def _identified(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if key not in UNIDENTIFIED}


def _build_bundle(folder: Path, content: Mapping[str, Any], members: tuple[Member, ...]) -> Bundle:
    labels = read_labels(content["labels"])
    stored = dict(content["postprocessing"])
    threshold = _read_threshold(stored.get("threshold"), labels)
    if isinstance(stored.get("threshold"), dict):
        stored["threshold"] = None
    return Bundle(
        path=folder,
        model_id=str(content["model_id"]),
        preprocessing=_read_choices(Preprocessing, content["preprocessing"]),
        postprocessing=_read_choices(Postprocessing, stored),
        threshold=threshold,
        labels=labels,
        num_channels=int(content["num_channels"]),
        members=members,
        training_patients=read_patients(content["training_patients"]),
        **{name: content[name] for name in ("data", "split", "scores", "provenance")},
        doubt=content.get("doubt"),
        training_features=content.get("training_features"),
    )


def read_labels(items: list[Any]) -> Labels:
    """Labels from what `Labels.as_plain` made of them."""
    if all(isinstance(item, str) for item in items):
        return Labels(tuple(items))
    colours = tuple(tuple(item["colour"]) if "colour" in item else None for item in items)
    codes = tuple(item.get("code") for item in items)
    return Labels(
        tuple(item["name"] for item in items),
        tuple(tuple(item["values"]) for item in items),
        colours if any(colours) else (),
        codes if any(codes) else (),
    )


def _read_threshold(stored: float | dict[str, float] | None, labels: Labels) -> tuple[float, ...]:
    """The threshold of each label; 0.5 where none was stored."""
    if isinstance(stored, dict):
        return tuple(float(stored[name]) for name in labels.names)
    return (0.5 if stored is None else float(stored),) * len(labels)


def _read_choices(kind: type[Any], values: Mapping[str, Any]) -> Any:
    """Choices as an earlier version may have stored them; what it did not have it did in its own way."""
    before = {item.name: item.metadata["before"] for item in fields(kind)}
    if unknown := set(values) - set(before):
        raise ValueError(f"unknown keys {sorted(unknown)}")
    stored = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
    return kind(**before | stored)


def _find_bundle(path: Path) -> Path:
    try:
        if not path.exists():
            raise UsageError(f"MODEL {path} does not exist; expected a bundle or the folder of a training run.")
        for folder in (path, path / "model"):
            if (folder / DESCRIPTION_FILE).is_file():
                return folder.absolute()
    except OSError as error:
        raise UsageError(f"MODEL {path} cannot be opened: {error.strerror}.") from error
    hint = f" Give one of {path / 'folds'}, or train it with --ensemble." if (path / "folds").is_dir() else ""
    raise UsageError(
        f"MODEL {path} is no bundle and holds none: neither {DESCRIPTION_FILE} nor model/{DESCRIPTION_FILE} is there."
        f"{hint}"
    )


def _read_description(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{file} cannot be read as JSON: {error}") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise UsageError(f'{file} is not of a raysegment bundle: "format" is not {FORMAT!r}.')
    if content.get("format_version") != (ENSEMBLE_VERSION if "members" in content else FORMAT_VERSION):
        raise UsageError(
            f"{file} has format_version {content.get('format_version')}; this raysegment reads {FORMAT_VERSION}, and "
            f"{ENSEMBLE_VERSION} of ensembles."
        )
    return content


def _replace_folder(source: Path, target: Path) -> None:
    """Rename `source` to `target`; a folder that was there is moved aside first and then removed."""
    if not target.exists():
        source.rename(target)
        return
    aside = Path(tempfile.mkdtemp(prefix=f".{target.name}-old-", dir=target.parent))
    target.rename(aside / target.name)
    source.rename(target)
    shutil.rmtree(aside, ignore_errors=True)
