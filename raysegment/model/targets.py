"""The label axis inside the network's step: planes from label maps, masks from probabilities, Dice from counts."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from raysegment.scan import Labels


def make_targets(label_map: Any, labels: Labels) -> Any:
    """What the network is to answer, made as late as here: a label map is smaller than its planes.

    Args:
        label_map: Values of references, (slices, rows, columns).
        labels: What they mean.

    Returns:
        float32, 0 or 1, (slices, rows, columns, labels).
    """
    if not labels.are_declared:
        return tf.cast(label_map[..., None], tf.float32)
    values = tf.cast(label_map, tf.int32)
    planes = [tf.reduce_any([values == value for value in region], axis=0) for region in labels.regions]
    return tf.cast(tf.stack(planes, axis=-1), tf.float32)


def find_masks(probability: Any, labels: Labels) -> Any:
    """Masks of what the network gives, float32, (slices, rows, columns, labels); the same as those of a run at 0.5.

    Where labels exclude each other, a pixel belongs to the largest one, if all labels together are at least 0.5.
    """
    if not labels.exclude_each_other:
        return tf.cast(probability >= 0.5, tf.float32)
    of_labels = probability[..., 1:]
    largest = tf.one_hot(tf.argmax(of_labels, axis=-1), len(labels))
    return largest * tf.cast(tf.reduce_sum(of_labels, axis=-1, keepdims=True) >= 0.5, tf.float32)


def pool_dice(counts: npt.NDArray[np.float64]) -> float:
    """Mean Dice over labels from (3, labels) true positives, mask and reference pixels; NaN where there is nothing."""
    true_positives, mask, reference = counts
    known = mask + reference > 0
    if not known.any():
        return float("nan")
    return float(np.mean(2 * true_positives[known] / (mask + reference)[known]))
