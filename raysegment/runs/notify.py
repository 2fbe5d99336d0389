"""Telling a program of the user's how a run ended: JSON on its standard input, without a shell, within a time."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from raysegment.errors import (
    EXIT_DONE,
    EXIT_DRIFT,
    EXIT_FAILED,
    EXIT_INTERRUPTED,
    EXIT_SOME_SCANS_FAILED,
    EXIT_USAGE,
    RaysegmentError,
    UsageError,
)
from raysegment.runs.console import Console
from raysegment.runs.record import as_json

NOTIFY_SECONDS = 60.0
"""How long the program may take; then it and what it started are ended."""

STATUS = {
    EXIT_DONE: "done",
    EXIT_SOME_SCANS_FAILED: "some scans failed",
    EXIT_DRIFT: "drift",
    EXIT_FAILED: "failed",
    EXIT_USAGE: "failed",
    EXIT_INTERRUPTED: "interrupted",
}


def split_command(command: str) -> list[str]:
    """A command as its words; nothing in it is expanded.

    Raises:
        UsageError: There is none, or a quotation mark has no partner.
    """
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise UsageError(f"--notify {command!r} cannot be split into words: {error}.") from None
    if not words:
        raise UsageError("--notify is empty; expected a program and its arguments.")
    return words


def describe_end(exit_code: int, summary: Mapping[str, Any], error: BaseException | None = None) -> dict[str, Any]:
    """What the program gets: how the run ended, why it failed, and what it came to.

    Args:
        exit_code: Of the run.
        summary: What is known of it.
        error: What ended it.
    """
    return {
        "status": STATUS.get(exit_code, "failed"),
        "exit_code": exit_code,
        "error_type": None if error is None else type(error).__name__,
        "error_message": None if error is None else " ".join(str(error).split()),
        **{key: value for key, value in summary.items() if key != "exit_code"},
    }


def exit_code_of(error: BaseException) -> int:
    """The exit code with which an error ends the command."""
    if isinstance(error, KeyboardInterrupt):
        return EXIT_INTERRUPTED
    return error.exit_code if isinstance(error, RaysegmentError) else EXIT_FAILED


def notify(
    command: list[str], content: Mapping[str, Any], console: Console, *, timeout_seconds: float = NOTIFY_SECONDS
) -> None:
    """Hand a summary to a program; that it fails, hangs or is not there is a warning, nothing more.

    Its output goes to standard error, so that standard output stays what programs read. Warnings name the program
    alone: arguments may hold secrets.

    Args:
        command: The program and its arguments.
        content: Becomes one JSON object.
        console: Where the warning goes.
        timeout_seconds: The program and its children are ended after this.
    """
    try:
        code = _run(command, json.dumps(as_json(dict(content))).encode(), timeout_seconds)
        why = f"ended with exit code {code}" if code else None
    except subprocess.TimeoutExpired:
        why = f"took more than {timeout_seconds:g} seconds and was ended"
    except (OSError, ValueError) as error:
        why = f"cannot be run: {getattr(error, 'strerror', None) or error}"
    if why is not None:
        console.say(f"warning: --notify failed: {command[0]} {why}")


def _run(command: list[str], content: bytes, timeout_seconds: float) -> int:
    program = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=2, start_new_session=True)
    try:
        program.communicate(content, timeout=timeout_seconds)
        return program.returncode
    finally:
        if program.returncode is None:
            # A session of its own has a group of its own: children that hang with it, or hold it up, end as well.
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(program.pid, signal.SIGKILL)
            program.wait()
