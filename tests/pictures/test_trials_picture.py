"""The picture of a search's trials."""

from __future__ import annotations

import cv2
import pytest

from raysegment.pictures.trials import Axis, TrialDot, draw_trials

AXES = (
    Axis(name="learning_rate", kind="log_range", values=(1e-4, 1e-2)),
    Axis(name="filters", kind="choice", values=(8, 16)),
    Axis(name="weight_decay", kind="range", values=(0.0, 0.1)),
    Axis(name="channels", kind="choice", values=((0, 1), (2,))),
    Axis(name="lesion_fraction", kind="choice", values=(None, 0.5)),
)


def dot(trial: str, *, is_done: bool, weight_decay: float | None) -> TrialDot:
    drawn = {
        "learning_rate": 1e-3,
        "filters": 8,
        "weight_decay": weight_decay,
        "channels": [0, 1],
        "lesion_fraction": None,
    }
    return TrialDot(trial=trial, is_done=is_done, dice=0.5, drawn=drawn)


@pytest.mark.parametrize("num_axes", [1, 2, 3, 4, 5])
def test_any_number_of_options_is_drawn(tmp_path, num_axes):
    dots = [dot("0001", is_done=True, weight_decay=0.05), dot("0002", is_done=False, weight_decay=None)]
    draw_trials(dots, AXES[:num_axes], tmp_path / "figures" / "trials.png", best="0001", num_failed=1)
    picture = cv2.imread(str(tmp_path / "figures" / "trials.png"))
    assert picture.shape[1] > 500
    assert (picture != 255).any()


def test_no_trial_is_an_empty_picture(tmp_path):
    draw_trials([], AXES[:2], tmp_path / "trials.png")
    assert (tmp_path / "trials.png").stat().st_size > 0
