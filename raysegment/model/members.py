"""The networks of a bundle: `model.keras` alone, or `members/<k>.keras` whose probabilities are averaged."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from raysegment.errors import UsageError
from raysegment.model.safety import check_network_file
from raysegment.model.start import start_tensorflow

NETWORK_FILE, MEMBERS_FOLDER = "model.keras", "members"


@dataclass(frozen=True, kw_only=True)
class Member:
    """One network of a bundle, as the bytes of its file. It may be sent to other processes, without the file.

    Attributes:
        file: Where it was read.
        network: Arguments of `build_network` that made it.
        depth: Its grid sides divide by 2**depth.
        weights_sha256: `hash_weights` of it.
        network_sha256: SHA-256 of the file, as model.json has it.
        content: The file's bytes.
    """

    file: Path
    network: Mapping[str, Any]
    depth: int
    weights_sha256: str
    network_sha256: str
    content: bytes = field(repr=False)

    def check(self) -> None:
        """Refuse a file that is not the one that was saved, or holds more than raysegment builds.

        Raises:
            UsageError: Names the file.
        """
        if self.network_sha256 != hashlib.sha256(self.content).hexdigest():
            raise UsageError(
                f"{self.file} is damaged or not the network this bundle was saved with: its SHA-256 does not match "
                "model.json. Save or copy the bundle again."
            )
        check_network_file(self.content, self.file)

    def load(self) -> Any:
        """The Keras model, uncompiled, float32. Imports Keras.

        Raises:
            UsageError: The file holds other layers or weights than were saved, or cannot be loaded.
        """
        start_tensorflow()
        import keras

        check_network_file(self.content, self.file)
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / NETWORK_FILE
            file.write_bytes(self.content)
            try:
                model = keras.saving.load_model(file, compile=False, safe_mode=True)
            except Exception as error:
                reason = " ".join(str(error).split())[:200]
                raise UsageError(f"{self.file} cannot be loaded as a Keras model: {reason}") from error
        if hash_weights(model) != self.weights_sha256:
            raise UsageError(f"{self.file} does not hold the weights that model.json names.")
        return model


def read_members(folder: Path, content: Mapping[str, Any]) -> tuple[Member, ...]:
    """The networks of a bundle; `Member.check` tells whether they are whole.

    Args:
        folder: The bundle.
        content: What its model.json holds.

    Raises:
        OSError: A file cannot be read.
        KeyError, TypeError, ValueError: model.json does not say what it must.
    """
    return tuple(
        Member(
            file=folder / name,
            network=dict(stored["network"]),
            depth=int(stored["network"]["depth"]),
            weights_sha256=str(stored["weights_sha256"]),
            network_sha256=str(stored["network_sha256"]),
            content=(folder / name).read_bytes(),
        )
        for name, stored in _list_members(content)
    )


def name_member(position: int) -> str:
    """File of one network of several, below the bundle."""
    return f"{MEMBERS_FOLDER}/{position}.keras"


def hash_weights(model: Any) -> str:
    """SHA-256 over a network's arrays in order, with their shapes and types."""
    digest = hashlib.sha256()
    for array in model.get_weights():
        digest.update(f"{array.dtype.str}{array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def _list_members(content: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """File and description of each network."""
    if "members" not in content:
        yield NETWORK_FILE, content
        return
    if not content["members"]:
        raise ValueError("no members")
    for position, stored in enumerate(content["members"]):
        yield name_member(position), stored
