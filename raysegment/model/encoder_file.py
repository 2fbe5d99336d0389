"""The file of an encoder's weights, checked before anything starts. Imports neither Keras nor TensorFlow."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from raysegment.errors import UsageError
from raysegment.options import Encoder, TrainOptions
from raysegment.scan import Labels

SHAPES: dict[Encoder, tuple[int, int, str]] = {
    "efficientnetv2-b0": (359, 5_919_312, "fd929bb36af22cd14a0a31086ef269c056d3fd95c171834bd8f47642afcaef42"),
    "resnet50v2": (270, 23_564_800, "638a17600e01fc4ee4d2eff45d9df3c0f8319ba55b180e71d9c6f93d17416aba"),
}
"""Arrays, values in them and `hash_shapes` of each encoder without its top; tests hold them to keras.applications."""


@dataclass(frozen=True, kw_only=True)
class EncoderStart:
    """Weights that an encoder starts from; it may be sent to workers.

    Attributes:
        encoder: Which it is.
        name: The file, as the user says it.
        sha256: Of the file.
        content: Its bytes.
    """

    encoder: Encoder
    name: str
    sha256: str
    content: bytes = field(repr=False)

    def apply(self, model: Any, labels: Labels) -> str:
        """Give the encoder inside a network its weights; the rest stays at random, whatever the labels.

        Returns:
            What was done, for the user.
        """
        from raysegment.model.encoders import NUM_COLOURS, load_pretrained

        count, channels = load_pretrained(model, self.encoder, self.content, self.name), model.input_shape[-1]
        adapted = f"; its first convolution ({NUM_COLOURS} colours -> {channels})" if channels != NUM_COLOURS else ""
        return f"{self.encoder} starts from {self.name}, SHA-256 {self.sha256[:12]}: {count} layers{adapted}"


def read_encoder_file(options: TrainOptions) -> EncoderStart | None:
    """The weights of the encoder, if the user has some.

    Raises:
        UsageError: They cannot be read, or are of another network.
    """
    if options.encoder_weights is None:
        return None
    path = Path(options.encoder_weights)
    check_shapes(path, options.encoder)
    content = path.read_bytes()
    return EncoderStart(
        encoder=options.encoder, name=str(path), sha256=hashlib.sha256(content).hexdigest(), content=content
    )


def check_shapes(path: Path, encoder: Encoder) -> None:
    """Refuse a file that does not hold the arrays of an encoder.

    Raises:
        UsageError: Says what it holds and what was expected.
    """
    shapes = list_shapes(path)
    num_arrays, num_values, digest = SHAPES[encoder]
    if hash_shapes(shapes) == digest:
        return
    found = sum(map(count_values, shapes))
    others = [name for name, known in SHAPES.items() if known[2] == hash_shapes(shapes)]
    advice = f"It is of {others[0]}." if others else "Give the published *_notop.h5, without the layers for classes."
    raise UsageError(
        f"--encoder-weights {path} holds {len(shapes)} arrays with {found:,} values; {encoder} has {num_arrays} with "
        f"{num_values:,}{' of other shapes' * ((len(shapes), found) == (num_arrays, num_values))}. {advice}"
    )


def list_shapes(path: Path) -> list[tuple[int, ...]]:
    """Shapes of the weights in an HDF5 file of Keras, those of an optimizer and of random generators left out.

    Raises:
        UsageError: It is missing or no such file.
    """
    import h5py

    shapes: list[tuple[int, ...]] = []

    def visit(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset) and not {"optimizer", "optimizer_weights", "seed_generator"} & {
            *name.split("/")
        }:
            shapes.append(tuple(item.shape))

    try:
        with h5py.File(path) as file:
            file.visititems(visit)
    except (OSError, RuntimeError, ValueError) as error:
        reason = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else "it is no HDF5 file"
        raise UsageError(
            f"--encoder-weights {path} cannot be read: {reason}. Expected the published *_notop.h5 or a .weights.h5."
        ) from None
    return shapes


def hash_shapes(shapes: Iterable[tuple[int, ...]]) -> str:
    """SHA-256 over shapes, whatever their order."""
    return hashlib.sha256(repr(sorted(shapes)).encode()).hexdigest()


def count_values(shape: tuple[int, ...]) -> int:
    """Values in an array."""
    return math.prod(shape)
