"""One threshold for each label, from what was chosen and what a model brings."""

from __future__ import annotations

from collections.abc import Sequence

from raysegment.errors import UsageError
from raysegment.options import Threshold, parse_thresholds
from raysegment.scan import Labels

DEFAULT_THRESHOLD = 0.5


def resolve_thresholds(given: Threshold | None, labels: Labels, stored: float | Sequence[float]) -> tuple[float, ...]:
    """One threshold for each label.

    Args:
        given: A number for all labels, or `NAME=0.4,…` for some of them; None leaves all to the model.
        labels: Of the model.
        stored: The model's own, for all labels or one for each.

    Raises:
        UsageError: A name is of no label; or the labels exclude each other and have one threshold only.
    """
    own = tuple(stored) if isinstance(stored, Sequence) else (float(stored),) * len(labels)
    if given is None:
        return own
    if not isinstance(given, str):
        return (float(given),) * len(labels)
    if labels.exclude_each_other:
        raise UsageError(
            f"--threshold {given}: {', '.join(labels.names)} exclude each other and have one threshold together, such "
            "as --threshold 0.4."
        )
    by_name = parse_thresholds(given)
    if unknown := [name for name in by_name if name not in labels.names]:
        raise UsageError(f"--threshold names {unknown[0]!r}; the model's labels are {', '.join(labels.names)}.")
    return tuple(by_name.get(name, before) for name, before in zip(labels.names, own, strict=True))


def show_thresholds(thresholds: Sequence[float], labels: Labels) -> Threshold:
    """Thresholds as the user types them: a number where there is one for all labels by rule."""
    described = describe_thresholds(thresholds, labels)
    if isinstance(described, float):
        return described
    return ",".join(f"{name}={value!r}" for name, value in described.items())


def describe_thresholds(thresholds: Sequence[float], labels: Labels) -> float | dict[str, float]:
    """Thresholds as JSON has them: a number where there is one for all labels by rule, else one by name."""
    if len(labels) == 1 or labels.exclude_each_other:
        return float(thresholds[0])
    return dict(zip(labels.names, map(float, thresholds), strict=True))
