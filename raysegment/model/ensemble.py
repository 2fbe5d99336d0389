"""An ensemble: the networks of several bundles in one, whose probabilities are averaged."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from raysegment.errors import UsageError
from raysegment.model.bundle import ENSEMBLE_VERSION, Bundle, BundleDescription, write_bundle_folder
from raysegment.model.members import MEMBERS_FOLDER, name_member


def save_ensemble(folder: str | os.PathLike[str], bundles: Sequence[Bundle], description: BundleDescription) -> Bundle:
    """Write a bundle of the networks of others; one that was there is replaced when the new one is whole.

    Their files go over byte for byte, so neither Keras nor TensorFlow is imported.

    Args:
        folder: The new bundle's folder.
        bundles: Whose networks become members, in this order.
        description: What to say of the ensemble; its members keep their own `network`, and their training patients
            are added to those given here.

    Returns:
        The bundle as it reads back.

    Raises:
        UsageError: No bundle; or one that sees scans in another way than is described, or segments something else.
    """
    if not bundles:
        raise UsageError(f"the ensemble {folder} has no networks; expected at least one bundle.")
    for bundle in bundles:
        _check_fit(bundle, description)
    inherited = [item for bundle in bundles for item in bundle.training_patients.as_plain]
    seen = [*description.inherited_patients, *inherited]

    def write_networks(temporary: Path) -> dict[str, Any]:
        (temporary / MEMBERS_FOLDER).mkdir()
        members = [(member, bundle.model_id) for bundle in bundles for member in bundle.members]
        for position, (member, _) in enumerate(members):
            (temporary / name_member(position)).write_bytes(member.content)
        return {
            "format_version": ENSEMBLE_VERSION,
            "members": [
                {
                    "network": dict(member.network),
                    "from_model": model_id,
                    "weights_sha256": member.weights_sha256,
                    "network_sha256": member.network_sha256,
                }
                for member, model_id in members
            ],
        }

    return write_bundle_folder(folder, replace(description, inherited_patients=seen), write_networks)


def _check_fit(bundle: Bundle, description: BundleDescription) -> None:
    """Refuse a bundle whose network would see or say something else than the ensemble's others.

    Raises:
        UsageError: Names both.
    """
    expected, found = _list_shared(description), _list_shared(bundle)
    for name, value in expected.items():
        if found[name] != value:
            raise UsageError(
                f"{bundle.path} cannot be a member of this ensemble: its {name.replace('_', ' ')} is {found[name]}, "
                f"of the others {value}. Members share channels, labels and preprocessing."
            )


def _list_shared(model: Bundle | BundleDescription) -> dict[str, Any]:
    """What members must share, by name."""
    return {
        "number_of_channels": model.num_channels,
        "channel_names": list(model.data.get("channel_names", ())),
        "labels": [*model.labels.names, *model.labels.as_typed],
        **vars(model.preprocessing),
    }
