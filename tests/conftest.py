"""What all tests share: Ray's settings, set before anything imports it, one Ray, and a small archive of phantoms."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# How fast a test draws its examples tells of the machine's load, not of the code.
settings.register_profile("raysegment", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("raysegment")

# Ray reads its way of authentication once in a process, so all tests share one; outside of tests a token is asked for.
os.environ["RAY_AUTH_MODE"] = "disabled"
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["RAY_DATA_DISABLE_PROGRESS_BARS"] = "1"
os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
# Tests start some hundreds of processes, which need not compile what they import anew.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

# The user's own key of pseudonyms is none of the tests'.
_CONFIGURATION = tempfile.TemporaryDirectory(prefix="raysegment-tests-")
os.environ["XDG_CONFIG_HOME"] = _CONFIGURATION.name

SHARED_RAY = ExitStack()
"""Holds the Ray of `ray_here`, from the first test that asks for it to the first that has to be without."""

TESTS = Path(__file__).parent
BUCKET_CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "x",
    "AWS_SECRET_ACCESS_KEY": "x",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}
"""For the local S3 server of the tests."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that start Ray come first, and those that share one together.

    They take longest; at the end one of them would leave the other process idle.
    """
    shared = {item.path for item in items if "ray_here" in getattr(item, "fixturenames", ())}
    clustered = {item.path for item in items if item.get_closest_marker("cluster")}
    items.sort(key=lambda item: (item.path not in clustered, item.path in shared))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """A test that does not ask for Ray finds none."""
    if "ray_here" not in getattr(item, "fixturenames", ()):
        SHARED_RAY.close()


def pytest_sessionfinish() -> None:
    SHARED_RAY.close()


@pytest.fixture(scope="module")
def ray_here() -> Iterator[str]:
    """The address of a Ray that tests share; its decoders also know the tests' readers of hostile and gated files."""
    from raysegment.cluster.session import ray_session, set_environment

    readers = [str(TESTS / room) for room in ("archive", "commands")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAYSEGMENT_READERS", "hostile_reader,gated_reader")
        patch.setenv("PYTHONPATH", os.pathsep.join((*readers, str(TESTS / "cluster"))), prepend=os.pathsep)
        for folder in readers:
            patch.syspath_prepend(folder)
        for name, value in BUCKET_CREDENTIALS.items():
            patch.setenv(name, value)
        set_environment(None)
        import ray

        if not ray.is_initialized():
            SHARED_RAY.enter_context(ray_session(None, None))
        yield str(ray.get_runtime_context().gcs_address)


@pytest.fixture(scope="session")
def phantom_archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six made-up patients in the LGG layout, 64x64 pixels, 6 to 9 slices each; for reading only."""
    from raysegment.imaging.phantom import write_archive

    folder = tmp_path_factory.mktemp("phantoms")
    write_archive(folder, patients=6, seed=7, image_size=64, slices=6)
    return folder
