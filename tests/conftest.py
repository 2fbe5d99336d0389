"""What all tests share: Ray's settings, set before anything imports it, and a small archive of phantoms."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

# Ray reads its way of authentication once in a process, so all tests share one; outside of tests a token is asked for.
os.environ["RAY_AUTH_MODE"] = "disabled"
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["RAY_DATA_DISABLE_PROGRESS_BARS"] = "1"
os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"


@pytest.fixture(scope="session")
def phantom_archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six made-up patients in the LGG layout, 64x64 pixels, 6 to 9 slices each; for reading only."""
    from raysegment.imaging.phantom import write_archive

    folder = tmp_path_factory.mktemp("phantoms")
    write_archive(folder, patients=6, seed=7, image_size=64, slices=6)
    return folder
