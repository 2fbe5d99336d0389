"""Weights of a base model for a network with other channels and labels: what fits is kept, and the rest is said.

Imports neither Keras nor TensorFlow; only `Start.apply` does, through the base's network.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from raysegment.errors import UsageError
from raysegment.model.bundle import Bundle
from raysegment.scan import Labels

PROBABILITY = "probability"
"""Name of the layer that tells the labels apart."""

Array = npt.NDArray[Any]


@dataclass(frozen=True, kw_only=True)
class Start:
    """Where the weights of a training start, instead of at random; it may be sent to workers.

    Attributes:
        base: The base model.
        channel_names: Channels of the new scans as read, empty where they have none.
        channels: Those that the network sees, counted from 0; None for all.
        context_slices: Neighbours on each side that the network sees, of base and new network alike.
    """

    base: Bundle
    channel_names: tuple[str, ...] = ()
    channels: tuple[int, ...] | None = None
    context_slices: int = 0

    def apply(self, model: Any, labels: Labels) -> str:
        """Give a network the base's weights, as far as they fit.

        Args:
            model: Functional Keras model with the base's choices of network, for other channels and labels maybe.
            labels: What it is to tell apart.

        Returns:
            What was kept and what not, for the user.

        Raises:
            UsageError: The base cannot be loaded, or is of another plan.
        """
        network, first = self.base.load_network(), find_first(model)
        layers, bases, new = list_weighted(model), list_weighted(network), 0
        if len(layers) != len(bases):
            layers, bases = leave_out_shortcut(model), leave_out_shortcut(network)
            new = len(list_weighted(model)) - len(layers)
        if [type_name(layer) for layer in layers] != [type_name(layer) for layer in bases]:
            raise UsageError(
                f"the network of --init-from {self.base.path} has {len(bases)} layers with weights, the new one "
                f"{len(layers)} that do not follow the same plan. Train without --init-from."
            )
        notes = [
            self._fill(layer, given, labels, sees_pixels=layer in first)
            for layer, given in zip(layers, bases, strict=True)
        ]
        return describe_kept(self.base.model_id, [*notes, *[Note(new="shortcut around the first block")] * new])

    def _fill(self, layer: Any, given: Any, labels: Labels, *, sees_pixels: bool) -> Note:
        """Give one layer what fits of its counterpart's weights."""
        mine, theirs = layer.get_weights(), given.get_weights()
        if given.name == PROBABILITY:
            note, arrays = join_outputs(mine, theirs, labels, self.base.labels)
        elif sees_pixels:
            note, arrays = join_inputs(mine, theirs, self._input_names(), self._base_names())
        elif [array.shape for array in mine] == [array.shape for array in theirs]:
            note, arrays = KEPT, theirs
        else:
            note, arrays = Note(new=f"{layer.name} ({mine[0].shape} for {theirs[0].shape})"), mine
        layer.set_weights(arrays)
        return note

    def _input_names(self) -> tuple[str, ...]:
        return name_inputs(self.channel_names, self.channels, self.context_slices)

    def _base_names(self) -> tuple[str, ...]:
        return name_inputs(self.base.channel_names, self.base.preprocessing.channels, self.context_slices)


@dataclass(frozen=True)
class Note:
    """What became of one layer: kept where both are empty."""

    in_part: str = ""
    new: str = ""


KEPT = Note()


def list_weighted(model: Any) -> list[Any]:
    """The layers of a network that have weights, in order."""
    return [layer for layer in model.layers if layer.get_weights()]


def leave_out_shortcut(model: Any) -> list[Any]:
    """The same without the convolution around the first block, and its normalization: it is there unless a network has
    as many filters as channels."""
    shortcuts = find_first(model)[1:]
    outputs = {id(layer.output) for layer in shortcuts}
    layers = list_weighted(model)
    return [layer for layer in layers if layer not in shortcuts and id(layer.input) not in outputs]


def type_name(layer: Any) -> str:
    """The kind of a layer; those for training count as the one that they stand for."""
    name = type(layer).__name__
    return "BatchNormalization" if name.endswith("BatchNormalization") else name


def find_first(model: Any) -> list[Any]:
    """The layers with weights that see the pixels themselves, maybe rescaled or padded."""
    pixels, found = {id(model.inputs[0])}, []
    for layer in model.layers:
        if id(layer.input) not in pixels:
            continue
        if layer.get_weights():
            found.append(layer)
        else:
            pixels.add(id(layer.output))
    return found


def name_inputs(names: Sequence[str], channels: Sequence[int] | None, context_slices: int) -> tuple[str, ...]:
    """What each channel of the network's input is: the scan's channel, and of which neighbour; empty where that has no
    names."""
    if not names or any(channel >= len(names) for channel in channels or ()):
        return ()
    chosen = names if channels is None else [names[channel] for channel in channels]
    reach = range(-context_slices, context_slices + 1)
    return tuple(f"{name}{offset:+d}" if offset else name for offset in reach for name in chosen)


def join_inputs(
    mine: list[Array], theirs: list[Array], names: Sequence[str], base_names: Sequence[str]
) -> tuple[Note, list[Array]]:
    """Weights of a first convolution, whose kernels see the channels that both have as the base's do.

    Channels that the base does not know begin with 0, so that the network begins as the base.

    Args:
        mine: The new layer's, kernel (rows, columns, channels, filters) first.
        theirs: The base's.
        names: Of the new inputs; empty where they have none.
        base_names: Of the base's.
    """
    count, base_count = mine[0].shape[2], theirs[0].shape[2]
    keys, base_keys = [name.casefold() for name in names], [name.casefold() for name in base_names]
    if len(keys) != count or len(base_keys) != base_count:
        keys = base_keys = []
    if keys == base_keys and count == base_count:
        return KEPT, theirs
    shared = set(keys) & set(base_keys)
    if not shared:
        return Note(new=f"first convolution ({_count(base_count, 'channel')} -> {count})"), mine
    kernel = np.zeros_like(mine[0])
    for position, key in enumerate(keys):
        if key in shared:
            kernel[:, :, position] = theirs[0][:, :, base_keys.index(key)]
    added = [name for name, key in zip(names, keys, strict=True) if key not in shared]
    lost = [name for name, key in zip(base_names, base_keys, strict=True) if key not in shared]
    changes = [f"new {', '.join(added)}"] * bool(added) + [f"without {', '.join(lost)}"] * bool(lost)
    joined = [kernel, *theirs[1:]]
    return (Note(in_part=f"first convolution ({'; '.join(changes)})") if changes else KEPT), joined


def join_outputs(
    mine: list[Array], theirs: list[Array], labels: Labels, base_labels: Labels
) -> tuple[Note, list[Array]]:
    """Weights of the last convolution: one label takes the place of one, several are found again by their names.

    Args:
        mine: The new layer's kernel (1, 1, features, outputs) and bias.
        theirs: The base's.
        labels: Of the new network.
        base_labels: Of the base.
    """
    names, base_names = labels.names, base_labels.names
    same_head = labels.exclude_each_other == base_labels.exclude_each_other
    if same_head and (names == base_names or len(names) == len(base_names) == 1):
        return KEPT, theirs
    shared = set(names) & set(base_names)
    if not same_head or not shared:
        return Note(new=f"{PROBABILITY} ({_count(len(base_names), 'label')} -> {len(names)})"), mine
    arrays = [array.copy() for array in mine]
    # Where labels exclude each other the background comes first, and is the same in both.
    first = int(labels.exclude_each_other)
    pairs = [(0, 0)] * first
    pairs += [(first + names.index(name), first + base_names.index(name)) for name in sorted(shared)]
    for position, base_position in pairs:
        for array, given in zip(arrays, theirs, strict=True):
            array[..., position] = given[..., base_position]
    added = [name for name in names if name not in shared]
    return (Note(in_part=f"{PROBABILITY} (new {', '.join(added)})") if added else KEPT), arrays


def describe_kept(model_id: str, notes: Sequence[Note]) -> str:
    """What was kept of a base and what not, in one line."""
    kept = sum(note == KEPT for note in notes)
    parts = [f"starting from model {model_id[:12]}: kept {kept} of {len(notes)} layers"]
    for kind in ("in_part", "new"):
        # A shortcut around the first block sees the pixels as its first convolution does: what is said of both is one.
        said = dict.fromkeys(getattr(note, kind) for note in notes if getattr(note, kind))
        parts += [f"{kind.replace('_', ' ')}: {', '.join(said)}"] * bool(said)
    return "; ".join(parts)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"
