"""Networks with several labels and few weights that were never trained: nonsense, but always the same."""

from __future__ import annotations

from pathlib import Path

from raysegment.scan import Labels


def save_untrained(folder: Path, labels: Labels, *, num_channels: int = 3) -> Path:
    """Write a bundle for slices of 64x64 with two thresholds, or one where labels exclude each other."""
    import keras

    from raysegment.model.bundle import BundleDescription, save_bundle
    from raysegment.model.unet import build_network
    from raysegment.options import Postprocessing, Preprocessing

    head = {"num_labels": len(labels), "head": "softmax" if labels.exclude_each_other else "sigmoid"}
    keras.utils.set_random_seed(3)
    choices = {"network": "unet", "filters": 4, "depth": 2, "dropout": 0.0, "norm": "batch", "norm_momentum": 0.9}
    description = BundleDescription(
        preprocessing=Preprocessing(image_size=64),
        postprocessing=Postprocessing(),
        threshold=0.6 if labels.exclude_each_other else dict(zip(labels.names, (0.5, 0.45), strict=True)),
        labels=labels,
        num_channels=num_channels,
        network=choices,
        training_patients=[],
    )
    save_bundle(folder, build_network(**choices, input_shape=(64, 64, num_channels), **head), description)
    return folder
