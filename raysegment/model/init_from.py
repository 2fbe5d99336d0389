"""Fine-tuning: what a training takes over from a base model, and where its weights start."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

from raysegment.choices import is_used, show_choice
from raysegment.errors import UsageError
from raysegment.model.bundle import Bundle, load_bundle
from raysegment.model.encoder_file import EncoderStart, read_encoder_file
from raysegment.model.transfer import Start
from raysegment.options import Preprocessing, TrainOptions, check_grid

FIXED_CHOICES = ("network", "encoder", "filters", "depth", "norm", "context_slices")
"""What the base's weights were made for; another choice contradicts it."""

FREE_CHOICES = ("dropout", "norm_momentum", *(item.name for item in fields(Preprocessing)))
"""What the base was trained with; another choice may be typed."""


WeightStart = Start | EncoderStart
"""Where the weights of a training start, instead of at random."""


def load_base(options: TrainOptions) -> Bundle | None:
    """The bundle that training starts from, if there is one.

    Raises:
        UsageError: It cannot be read, or has more than one network.
    """
    if options.init_from is None:
        return None
    try:
        base = load_bundle(options.init_from)
    except UsageError as error:
        raise UsageError(f"--init-from: {error}") from None
    if base.num_members > 1:
        raise UsageError(
            f"--init-from {options.init_from} is an ensemble of {base.num_members} networks; training starts from one. "
            "Give one of the runs that it was made of, such as RUN/folds/0."
        )
    return base


def adopt_choices(options: TrainOptions, base: Bundle | None) -> TrainOptions:
    """Options in which what was not typed is as the base has it: its network and its preprocessing.

    Defaults and recipes give way to the base; what was typed stays, unless the base's weights do not allow it.

    Args:
        options: As given; `typed` tells what the user chose.
        base: None for none, which changes nothing.

    Raises:
        UsageError: A typed choice contradicts the base, and the message names both; or the base's network does not fit
            the grid.
    """
    if base is None:
        return options
    known: dict[str, Any] = {"encoder": "none", **vars(base.preprocessing), **base.network}
    if known["encoder"] != "none":
        del known["depth"]
    chosen = vars(options)
    for name in FIXED_CHOICES:
        if name in options.typed and known.get(name, chosen[name]) != chosen[name]:
            raise UsageError(
                f"{show_choice(name, chosen[name])} contradicts --init-from {options.init_from}, whose model has "
                f"{name} {known[name]}. Leave it out, or train without --init-from."
            )
    adopted = {name: known[name] for name in (*FIXED_CHOICES, *FREE_CHOICES) if name in known}
    adopted = {name: value for name, value in adopted.items() if name not in options.typed}
    values = chosen | adopted
    idle = {
        item.name: item.default
        for item in fields(options)
        if item.name not in options.typed and not is_used(item, values)
    }
    tuned = replace(options, **adopted | idle)
    check_grid(tuned)
    return tuned


@dataclass(frozen=True)
class Origin:
    """Where the weights of a run start: a base model, a file of its encoder's weights, or neither."""

    base: Bundle | None = None
    encoder_file: EncoderStart | None = None

    @property
    def facts(self) -> dict[str, str | None]:
        """What of it makes a run another one, as run.json and model.json have it."""
        return {
            "base_model_id": self.base.model_id if self.base else None,
            "encoder_weights_sha256": self.encoder_file.sha256 if self.encoder_file else None,
        }

    def has_seen(self, patient_id: str) -> bool:
        """Whether the base was trained on that patient."""
        return self.base is not None and self.base.has_seen(patient_id)


def adopt_origin(options: TrainOptions) -> tuple[TrainOptions, Origin]:
    """The options with the choices of the base that they name, and where the weights start.

    Raises:
        UsageError: Base or file cannot be read, do not fit, or contradict what was typed.
    """
    base = load_base(options)
    options = adopt_choices(options, base)
    return options, Origin(base, read_encoder_file(options))


def find_start(options: TrainOptions, channel_names: tuple[str, ...]) -> WeightStart | None:
    """Where the weights of a run start, as its options say; None for at random.

    Args:
        options: With the base's choices adopted.
        channel_names: Channels of the run's scans as read, empty where they have no names.

    Raises:
        UsageError: The base, or the encoder's weights, cannot be read.
    """
    base = load_base(options)
    if base is None:
        return read_encoder_file(options)
    return Start(
        base=base,
        channel_names=channel_names,
        channels=options.channels,
        context_slices=options.context_slices,
    )


def describe_origin(start: WeightStart | None) -> dict[str, Any]:
    """What a bundle says of where its weights started: `origin`, and the `inherited_patients`."""
    if start is None:
        return {}
    if isinstance(start, EncoderStart):
        return {"origin": {"encoder_weights_sha256": start.sha256}}
    inherited = start.base.training_patients.as_plain
    return {"origin": {"base_model_id": start.base.model_id}, "inherited_patients": inherited}
