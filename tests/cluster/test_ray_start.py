"""How Ray is started: once more where its own processes were slow, and in one line where they do not come."""

import os

import pytest
import ray
import ray.train

from raysegment.cluster import session
from raysegment.cluster.session import start_ray
from raysegment.errors import ClusterError, InterruptedRunError


@pytest.fixture
def starts(monkeypatch):
    """What each start of Ray ends with; None is a start that succeeds."""
    endings: list[Exception | None] = []
    calls: list[dict] = []

    def init(**arguments):
        calls.append(arguments)
        if (ending := endings.pop(0)) is not None:
            raise ending

    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    monkeypatch.setattr(session, "tame_ray_data", lambda: None)
    return endings, calls


def test_a_start_on_this_machine_that_takes_too_long_is_tried_once_more(starts) -> None:
    endings, calls = starts
    endings += [Exception("The current node timed out during startup."), None]
    start_ray({"address": "local"})
    assert len(calls) == 2


def test_a_ray_that_does_not_start_is_one_line(starts) -> None:
    endings, calls = starts
    endings += [Exception("The current node timed out\nduring startup.")] * 2
    with pytest.raises(ClusterError, match=r"^a local Ray does not answer: The current node timed out during"):
        start_ray({"address": "local"})
    assert len(calls) == 2


def test_a_cluster_that_does_not_answer_is_asked_once(starts) -> None:
    endings, calls = starts
    endings += [ConnectionError("refused")]
    with pytest.raises(ClusterError, match=r"^--address head:6379 does not answer: refused$"):
        start_ray({"address": "head:6379"})
    assert len(calls) == 1


def test_ctrl_c_while_ray_starts_is_no_failure_of_ray(starts) -> None:
    endings, calls = starts
    endings += [InterruptedRunError("stopped")]
    with pytest.raises(InterruptedRunError):
        start_ray({"address": "local"})
    assert len(calls) == 1


def test_a_training_starts_no_processes_that_it_has_no_use_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", raising=False)
    session.set_environment(None)
    from raysegment.cluster.ray_internals import make_trainer

    trainer = make_trainer(print, scaling_config=ray.train.ScalingConfig(num_workers=1))
    names = {type(callback).__name__ for callback in trainer._create_default_callbacks()}
    assert "BackendSetupCallback" in names
    assert "DatasetsCallback" not in names
    assert os.environ["RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"] == "0"
