"""What may be inside a model.keras: Keras' own layers that compute, and nothing that runs code of a stranger."""

from __future__ import annotations

import io
import json
import os
import zipfile
from collections.abc import Iterator
from typing import Any

from raysegment.errors import UsageError

ALLOWED_LAYERS = frozenset(
    {
        "Activation",
        "Add",
        "BatchNormalization",
        "Concatenate",
        "Conv2D",
        "Conv2DTranspose",
        "DepthwiseConv2D",
        "Dropout",
        "GlobalAveragePooling2D",
        "GroupNormalization",
        "InputLayer",
        "MaxPooling2D",
        "Multiply",
        "Rescaling",
        "Reshape",
        "UpSampling2D",
        "ZeroPadding2D",
    }
)
"""Layers that `build_network` uses, those of its encoders included."""

ALLOWED_MODULES = frozenset({"keras", "keras.initializers", "keras.layers", "keras.models"})

EXPECTED_MEMBERS = frozenset({"metadata.json", "config.json", "model.weights.h5"})

MAX_CONFIG_BYTES = 16_000_000


def check_network_file(content: bytes, name: str | os.PathLike[str]) -> None:
    """Refuse a model.keras with layers other than those that raysegment builds, before Keras sees it.

    Args:
        content: The file's bytes.
        name: The file, for messages.

    Raises:
        UsageError: No Keras archive, or a Lambda, custom or unknown layer inside.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            members = set(archive.namelist())
            if archive.getinfo("config.json").file_size > MAX_CONFIG_BYTES:
                raise UsageError(f"{name} is refused: its config.json is larger than {MAX_CONFIG_BYTES} bytes.")
            config = json.loads(archive.read("config.json"))
    except (zipfile.BadZipFile, KeyError, ValueError, OSError, RuntimeError) as error:
        raise UsageError(f"{name} is no Keras model: {' '.join(str(error).split())}") from None
    if unknown := members - EXPECTED_MEMBERS:
        raise UsageError(f"{name} is refused: it holds {', '.join(sorted(unknown)[:3])} besides a network.")
    for item in _find_objects(config):
        reason = _find_objection(item)
        if reason:
            raise UsageError(f"{name} is refused: {reason}; only networks that raysegment trained are loaded.")


def _find_objects(node: Any) -> Iterator[dict[str, Any]]:
    """Every serialized object in a configuration."""
    if isinstance(node, dict):
        if "class_name" in node:
            yield node
        for value in node.values():
            yield from _find_objects(value)
    elif isinstance(node, list):
        for value in node:
            yield from _find_objects(value)


def _find_objection(item: dict[str, Any]) -> str | None:
    kind, module = item["class_name"], item.get("module")
    if kind == "__keras_tensor__":
        return None
    if kind == "__lambda__" or kind == "Lambda":
        return "it holds a Lambda layer"
    if kind == "Functional":
        return None if module in ALLOWED_MODULES | {"keras.src.models.functional"} else f"it needs {module}.{kind}"
    if module not in ALLOWED_MODULES:
        return f"it needs {module}.{kind}"
    if module == "keras.layers" and kind not in ALLOWED_LAYERS:
        return f"it holds a {kind} layer"
    return None
