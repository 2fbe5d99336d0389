"""Losses over probabilities, one value per slice, so that they do not depend on how a batch is shared among workers.

With several labels the overlap losses are taken for each label apart, the background left out, and averaged; the
cross-entropies are averaged over labels where each has a probability of its own, and are over background and labels
where these share 1.
"""

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


def make_loss(name: str, head: str = "sigmoid") -> Loss:
    """The loss function of that name.

    Args:
        name: `dice`, `bce` (cross-entropy), `dice_bce` (their sum), `focal` or `tversky`.
        head: What the network ends in, `sigmoid` or `softmax`.

    Returns:
        A function of reference (batch, rows, columns, labels), 0 or 1, and probability, which gives float32 (batch,),
        computed in float32. The probability has the reference's shape; with softmax one channel more, that of the
        background, first.
    """
    if head == "sigmoid":
        return _LOSSES[name]
    return _SOFTMAX_LOSSES[name]


def dice_loss(reference: Any, probability: Any) -> Any:
    """1 − soft Dice of each slice, after Milletari et al. (2016), doi:10.1109/3DV.2016.79, with plain sums below."""
    reference, probability = _as_float32(reference, probability)
    overlap = _sum_pixels(reference * probability)
    total = _sum_pixels(reference) + _sum_pixels(probability)
    return _mean_labels(1 - (2 * overlap + SMOOTHING_PIXELS) / (total + SMOOTHING_PIXELS))


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
    true_positives = _sum_pixels(reference * probability)
    false_positives = _sum_pixels((1 - reference) * probability)
    false_negatives = _sum_pixels(reference * (1 - probability))
    wrong = FALSE_POSITIVE_WEIGHT * false_positives + FALSE_NEGATIVE_WEIGHT * false_negatives
    return _mean_labels(1 - (true_positives + SMOOTHING_PIXELS) / (true_positives + wrong + SMOOTHING_PIXELS))


def softmax_cross_entropy_loss(reference: Any, probability: Any) -> Any:
    """Mean cross-entropy of each slice over background and labels, in nats."""
    reference, probability = _as_float32(reference, probability)
    values = keras.losses.categorical_crossentropy(_with_background(reference), probability)
    return ops.mean(values, axis=(1, 2))


def softmax_focal_loss(reference: Any, probability: Any) -> Any:
    """Mean focal loss of each slice over background and labels; with one label the same as `focal_loss`."""
    reference, probability = _as_float32(reference, probability)
    weights = [1 - FOCAL_BALANCE] + [FOCAL_BALANCE] * reference.shape[-1]
    values = keras.losses.categorical_focal_crossentropy(
        _with_background(reference), probability, alpha=weights, gamma=FOCAL_EXPONENT
    )
    return ops.mean(values, axis=(1, 2))


def _as_float32(reference: Any, probability: Any) -> tuple[Any, Any]:
    return ops.cast(reference, "float32"), ops.cast(probability, "float32")


def _sum_pixels(values: Any) -> Any:
    """Of each slice and label, (slices, labels); (slices,) where there is one label, the same operations as ever."""
    return ops.sum(values, axis=(1, 2, 3) if values.shape[-1] == 1 else (1, 2))


def _mean_labels(values: Any) -> Any:
    return ops.mean(values, axis=-1) if len(values.shape) > 1 else values


def _with_background(reference: Any) -> Any:
    """The reference with the background's channel before those of the labels."""
    return ops.concatenate([1 - ops.sum(reference, axis=-1, keepdims=True), reference], axis=-1)


def _leave_out_background(loss: Loss) -> Loss:
    return lambda reference, probability: loss(reference, probability[..., 1:])


_LOSSES: dict[str, Loss] = {
    "dice": dice_loss,
    "bce": bce_loss,
    "dice_bce": dice_bce_loss,
    "focal": focal_loss,
    "tversky": tversky_loss,
}

_softmax_dice_loss = _leave_out_background(dice_loss)

_SOFTMAX_LOSSES: dict[str, Loss] = {
    "dice": _softmax_dice_loss,
    "bce": softmax_cross_entropy_loss,
    "dice_bce": lambda reference, probability: (
        _softmax_dice_loss(reference, probability) + softmax_cross_entropy_loss(reference, probability)
    ),
    "focal": softmax_focal_loss,
    "tversky": _leave_out_background(tversky_loss),
}
