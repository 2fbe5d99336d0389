"""What training prints of each epoch."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops


class TrainingDice(keras.metrics.Mean):
    """Hard Dice of each batch at 0.5, averaged over the batches of an epoch.

    Batches with neither reference nor prediction are left out. It follows training from step to step; scores to report
    are taken per scan instead.
    """

    def __init__(self, name: str = "dice", dtype: Any = "float32") -> None:
        super().__init__(name=name, dtype=dtype)

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> None:
        """Add one batch.

        Args:
            y_true: Reference, 0 or 1, (batch, rows, columns, labels).
            y_pred: Probability, same shape.
            sample_weight: Not used.
        """
        reference, mask = ops.cast(y_true, "float32"), ops.cast(y_pred > 0.5, "float32")
        total = ops.sum(reference) + ops.sum(mask)
        dice = 2 * ops.sum(reference * mask) / ops.maximum(total, 1.0)
        super().update_state(dice, sample_weight=ops.cast(total > 0, "float32"))
