"""A bundle: a trained network with all that is needed to use it, as a folder of three files.

    model.keras     plain float32 network; `keras.saving.load_model` opens it without raysegment
    model.json      preprocessing, postprocessing, labels, provenance and identity
    MODEL_CARD.md   the same for a person

Reading a bundle imports neither Keras nor TensorFlow; only `Bundle.load_network` does.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from raysegment.choices import as_plain
from raysegment.errors import UsageError
from raysegment.model.card import write_card
from raysegment.model.safety import check_network_file
from raysegment.model.start import start_tensorflow
from raysegment.options import Postprocessing, Preprocessing
from raysegment.scan import Labels

FORMAT = "raysegment-bundle"
FORMAT_VERSION = 1

NETWORK_FILE, DESCRIPTION_FILE, CARD_FILE = "model.keras", "model.json", "MODEL_CARD.md"

UNIDENTIFIED = ("model_id", "created", "network_sha256")
"""Keys of model.json that do not enter `model_id`: dates, and the hash of a file that holds dates."""


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
        network: Arguments of `build_network` that made the network; `depth` is needed.
        training_patients: Patients the network was trained on; only their hashes are stored.
        inherited_patients: `hash_patient` of those that a base model was trained on.
        data: What it was trained on, for the card, such as {"source": …, "scans": …}.
        split: Patients and scans per split, for the card.
        scores: Scores on scans not trained on, for the card.
        provenance: Anything else that made it: options, seed, versions. No dates, they would change `model_id`.
        doubt: Plain numbers that tell when to doubt a mask, see `pipeline/doubt`; None for none.
    """

    preprocessing: Preprocessing
    postprocessing: Postprocessing
    threshold: float | Mapping[str, float] | None = None
    labels: Labels = field(default_factory=Labels)
    num_channels: int
    network: Mapping[str, Any]
    training_patients: Iterable[str] = ()
    inherited_patients: Iterable[str] = ()
    data: Mapping[str, Any] = field(default_factory=dict)
    split: Mapping[str, Any] = field(default_factory=dict)
    scores: Mapping[str, Any] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)
    doubt: Mapping[str, Any] | None = None


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """A bundle that was read and found whole. It may be sent to other processes, without the folder.

    Attributes:
        path: Folder it was read from.
        model_id: SHA-256 of weights and model.json without dates.
        threshold: Of each label: probability from which a voxel belongs to its mask; where labels exclude each other
            it is one for all, which their probabilities together must reach.
        depth: The network's grid sides divide by 2**depth.
        training_patients: `hash_patient` of each patient the network was trained on.
        weights_sha256: `hash_weights` of the network.
        network_bytes: Content of model.keras.

    The others are as in `BundleDescription`.
    """

    path: Path
    model_id: str
    preprocessing: Preprocessing
    postprocessing: Postprocessing
    threshold: tuple[float, ...]
    labels: Labels
    num_channels: int
    depth: int
    network: Mapping[str, Any]
    training_patients: frozenset[str]
    data: Mapping[str, Any]
    split: Mapping[str, Any]
    scores: Mapping[str, Any]
    provenance: Mapping[str, Any]
    doubt: Mapping[str, Any] | None
    weights_sha256: str
    network_bytes: bytes = field(repr=False)

    @property
    def grid_factor(self) -> int:
        """Rows and columns of a batch must divide by this."""
        return 2**self.depth

    @property
    def sees_whole_slices(self) -> bool:
        """Whether the network looks at all of its input at once, so that a window around a part would change what it
        finds: group norm by its statistics, EfficientNet by its gates on means over the grid."""
        return self.network.get("norm") == "group" or self.network.get("encoder") == "efficientnetv2-b0"

    @property
    def channel_names(self) -> tuple[str, ...]:
        """Of the channels of a scan as read; empty where there is one, or they had no names."""
        return tuple(self.data.get("channel_names", ()))

    def has_seen(self, patient_id: str) -> bool:
        """Whether the network was trained on that patient."""
        return hash_patient(patient_id) in self.training_patients

    def load_network(self) -> Any:
        """The Keras model, uncompiled, float32. Imports Keras.

        Raises:
            UsageError: model.keras holds other layers or weights than were saved, or cannot be loaded.
        """
        start_tensorflow()
        import keras

        check_network_file(self.network_bytes, self.path / NETWORK_FILE)
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / NETWORK_FILE
            file.write_bytes(self.network_bytes)
            try:
                model = keras.saving.load_model(file, compile=False, safe_mode=True)
            except Exception as error:
                reason = " ".join(str(error).split())[:200]
                raise UsageError(f"{self.path / NETWORK_FILE} cannot be loaded as a Keras model: {reason}") from error
        if hash_weights(model) != self.weights_sha256:
            raise UsageError(f"{self.path / NETWORK_FILE} does not hold the weights that {DESCRIPTION_FILE} names.")
        return model


def hash_patient(patient_id: str) -> str:
    """SHA-256 of a patient's identifier."""
    return hashlib.sha256(patient_id.encode("utf-8", "surrogateescape")).hexdigest()


def hash_weights(model: Any) -> str:
    """SHA-256 over a network's arrays in order, with their shapes and types."""
    digest = hashlib.sha256()
    for array in model.get_weights():
        digest.update(f"{array.dtype.str}{array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


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

    target = Path(folder).absolute()
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        plain = copy_as_plain(model)
        plain.save(temporary / NETWORK_FILE)
        content = _describe(description)
        content["weights_sha256"] = hash_weights(plain)
        content["model_id"] = compute_model_id(content)
        content["network_sha256"] = _hash_file(temporary / NETWORK_FILE)
        content["created"] = datetime.now(UTC).isoformat(timespec="seconds")
        text = json.dumps(content, indent=2, ensure_ascii=False)
        (temporary / DESCRIPTION_FILE).write_text(text + "\n", encoding="utf-8")
        (temporary / CARD_FILE).write_text(write_card(content, description.labels), encoding="utf-8")
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
        UsageError: Missing, not a bundle, from another version, damaged, its network exchanged, or with layers that
            raysegment does not build.
    """
    folder = _find_bundle(Path(path))
    content = _read_description(folder / DESCRIPTION_FILE)
    try:
        network_bytes = (folder / NETWORK_FILE).read_bytes()
    except OSError as error:
        raise UsageError(
            f"{folder / NETWORK_FILE} cannot be read: {error.strerror}. The bundle is incomplete."
        ) from None
    try:
        bundle = _build_bundle(folder, content, network_bytes)
        identity = content["model_id"], content["network_sha256"]
    except (KeyError, TypeError, ValueError, AttributeError, UsageError) as error:
        raise UsageError(f"{folder / DESCRIPTION_FILE} is damaged or from another version: {error!r}") from None
    if identity[0] != compute_model_id(content):
        raise UsageError(
            f"{folder / DESCRIPTION_FILE} was changed after the bundle was saved: model_id does not match."
        )
    if identity[1] != hashlib.sha256(network_bytes).hexdigest():
        raise UsageError(
            f"{folder / NETWORK_FILE} is damaged or not the network this bundle was saved with: its SHA-256 does not "
            f"match {DESCRIPTION_FILE}. Save or copy the bundle again."
        )
    check_network_file(network_bytes, folder / NETWORK_FILE)
    return bundle


def compute_model_id(content: Mapping[str, Any]) -> str:
    """SHA-256 of model.json without dates; the weights enter through their own hash in it."""
    kept = {key: value for key, value in content.items() if key not in UNIDENTIFIED}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()


def _describe(description: BundleDescription) -> dict[str, Any]:
    patients = {*map(hash_patient, description.training_patients), *description.inherited_patients}
    content: dict[str, Any] = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "preprocessing": as_plain(description.preprocessing),
        "postprocessing": as_plain(description.postprocessing),
        "labels": description.labels.as_plain,
        "num_channels": description.num_channels,
        "network": dict(description.network),
        "training_patients": sorted(patients),
        "data": dict(description.data),
        "split": dict(description.split),
        "scores": dict(description.scores),
        "provenance": dict(description.provenance),
    }
    if description.threshold is not None:
        content["postprocessing"]["threshold"] = description.threshold
    # Bundles of older versions lack it, and keep their model_id.
    if description.doubt is not None:
        content["doubt"] = dict(description.doubt)
    # Through JSON once, so that model_id is the same before writing and after reading.
    return dict(json.loads(json.dumps(content)))


def _build_bundle(folder: Path, content: Mapping[str, Any], network_bytes: bytes) -> Bundle:
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
        depth=int(content["network"]["depth"]),
        network=content["network"],
        training_patients=frozenset(content["training_patients"]),
        data=content["data"],
        split=content["split"],
        scores=content["scores"],
        provenance=content["provenance"],
        doubt=content.get("doubt"),
        weights_sha256=str(content["weights_sha256"]),
        network_bytes=network_bytes,
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
    raise UsageError(
        f"MODEL {path} is no bundle and holds none: neither {DESCRIPTION_FILE} nor model/{DESCRIPTION_FILE} is there."
    )


def _read_description(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{file} cannot be read as JSON: {error}") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise UsageError(f'{file} is not of a raysegment bundle: "format" is not {FORMAT!r}.')
    if content.get("format_version") != FORMAT_VERSION:
        raise UsageError(
            f"{file} has format_version {content.get('format_version')}; this raysegment reads {FORMAT_VERSION}."
        )
    return content


def _hash_file(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _replace_folder(source: Path, target: Path) -> None:
    """Rename `source` to `target`; a folder that was there is moved aside first and then removed."""
    if not target.exists():
        source.rename(target)
        return
    aside = Path(tempfile.mkdtemp(prefix=f".{target.name}-old-", dir=target.parent))
    target.rename(aside / target.name)
    source.rename(target)
    shutil.rmtree(aside, ignore_errors=True)
