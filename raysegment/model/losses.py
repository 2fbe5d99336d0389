"""Losses over probabilities, one value per slice, so that they do not depend on how a batch is shared among workers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
from keras import ops

Loss = Callable[[Any, Any], Any]

SMOOTHING_PIXELS = 1.0
"""Added to both sides of overlap ratios: a slice without lesion and without prediction then has loss 0."""

FALSE_POSITIVE_WEIGHT, FALSE_NEGATIVE_WEIGHT = 0.3, 0.7
"""Weights of the Tversky loss; a missed pixel costs more than a wrong one."""

FOCAL_BALANCE, FOCAL_EXPONENT = 0.25, 2.0
"""Weight of lesion pixels and exponent of the focal loss, as in its paper."""


def make_loss(name: str) -> Loss:
    """The loss function of that name.

    Args:
        name: `dice`, `bce`, `dice_bce` (their sum), `focal` or `tversky`.

    Returns:
        A function of reference (batch, rows, columns, labels), 0 or 1, and probability, same shape, which gives
        float32 (batch,), computed in float32.
    """
    return _LOSSES[name]


def dice_loss(reference: Any, probability: Any) -> Any:
    """1 − soft Dice of each slice, after Milletari et al. (2016), doi:10.1109/3DV.2016.79, with plain sums below."""
    reference, probability = _as_float32(reference, probability)
    overlap = ops.sum(reference * probability, axis=(1, 2, 3))
    total = ops.sum(reference, axis=(1, 2, 3)) + ops.sum(probability, axis=(1, 2, 3))
    return 1 - (2 * overlap + SMOOTHING_PIXELS) / (total + SMOOTHING_PIXELS)


def bce_loss(reference: Any, probability: Any) -> Any:
    """Mean binary cross-entropy of each slice, in nats."""
    reference, probability = _as_float32(reference, probability)
    return ops.mean(keras.losses.binary_crossentropy(reference, probability), axis=(1, 2))


def dice_bce_loss(reference: Any, probability: Any) -> Any:
    """Sum of `dice_loss` and `bce_loss`."""
    return dice_loss(reference, probability) + bce_loss(reference, probability)


def focal_loss(reference: Any, probability: Any) -> Any:
    """Mean focal loss of each slice, after Lin et al. (2017), arXiv:1708.02002."""
    reference, probability = _as_float32(reference, probability)
    values = keras.losses.binary_focal_crossentropy(
        reference, probability, apply_class_balancing=True, alpha=FOCAL_BALANCE, gamma=FOCAL_EXPONENT
    )
    return ops.mean(values, axis=(1, 2))


def tversky_loss(reference: Any, probability: Any) -> Any:
    """1 − Tversky index of each slice, after Salehi et al. (2017), arXiv:1706.05721."""
    reference, probability = _as_float32(reference, probability)
    true_positives = ops.sum(reference * probability, axis=(1, 2, 3))
    false_positives = ops.sum((1 - reference) * probability, axis=(1, 2, 3))
    false_negatives = ops.sum(reference * (1 - probability), axis=(1, 2, 3))
    wrong = FALSE_POSITIVE_WEIGHT * false_positives + FALSE_NEGATIVE_WEIGHT * false_negatives
    return 1 - (true_positives + SMOOTHING_PIXELS) / (true_positives + wrong + SMOOTHING_PIXELS)


def _as_float32(reference: Any, probability: Any) -> tuple[Any, Any]:
    return ops.cast(reference, "float32"), ops.cast(probability, "float32")


_LOSSES: dict[str, Loss] = {
    "dice": dice_loss,
    "bce": bce_loss,
    "dice_bce": dice_bce_loss,
    "focal": focal_loss,
    "tversky": tversky_loss,
}
