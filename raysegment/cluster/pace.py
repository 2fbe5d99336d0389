"""Ray Data's scheduling loop, held back."""

from __future__ import annotations

import time

from ray.data import DataContext
from ray.data._internal.execution.execution_callback import ExecutionCallback

SECONDS_BETWEEN_STEPS = 0.05


class Pace(ExecutionCallback):
    """Lets the loop that schedules Ray Data's tasks rest after each step.

    In Ray 2.60 that loop spins without a pause while no task may run because enough is made ahead. It then takes most
    of a core, and Python's lock, from the training or inference it serves.
    """

    def on_execution_step(self, executor: object) -> None:
        time.sleep(SECONDS_BETWEEN_STEPS)


def hold_back(context: DataContext) -> None:
    """Let all executions under a context rest between steps."""
    if Pace not in context.custom_execution_callback_classes:
        context.custom_execution_callback_classes.append(Pace)
