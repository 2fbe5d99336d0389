"""A program that is told how a run ended: what it gets, how long it may take, and what is never written down."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from raysegment.errors import LockedError, UsageError
from raysegment.runs.console import Console
from raysegment.runs.notify import describe_end, exit_code_of, notify, split_command
from raysegment.runs.record import show_command_line

Tell = Callable[..., str]


@pytest.fixture
def tell(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> Tell:
    """Runs a Python program as the one to be told; returns what the console said."""

    def run(program: str, *words: str, content: dict | None = None, seconds: float = 20.0) -> str:
        script = tmp_path / "program.py"
        script.write_text(program)
        command = [sys.executable, str(script), *words]
        notify(command, content or {}, Console(None, as_json=False), timeout_seconds=seconds)
        return capfd.readouterr().out

    return run


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def test_a_hanging_program_and_its_children_are_ended(tell: Tell, tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    program = (
        "import os, signal, subprocess, sys, time\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(300)'])\n"
        f"open({str(pids)!r}, 'w').write(f'{{os.getpid()}} {{child.pid}}')\n"
        "time.sleep(300)\n"
    )
    started = time.monotonic()
    said = tell(program, seconds=2.0)
    assert time.monotonic() - started < 15
    assert f"warning: --notify failed: {sys.executable} took more than 2 seconds and was ended" in said
    deadline = time.monotonic() + 5
    found = [int(pid) for pid in pids.read_text().split()]
    while any(map(is_running, found)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert [is_running(pid) for pid in found] == [False, False]


def test_a_program_that_reads_nothing_of_a_long_summary_is_no_failure(tell: Tell) -> None:
    assert tell("pass", content={"text": "x" * 1_000_000}) == ""


def test_a_child_that_a_program_leaves_behind_holds_nothing_up(tell: Tell, tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    program = (
        "import subprocess, sys\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(8)'])\n"
        f"open({str(pid)!r}, 'w').write(str(child.pid))\n"
    )
    started = time.monotonic()
    assert tell(program) == ""
    assert time.monotonic() - started < 6
    os.kill(int(pid.read_text()), 9)


def test_a_warning_names_the_program_and_none_of_its_arguments(tell: Tell) -> None:
    said = tell("import sys; sys.exit(7)", "https://chat.example/hooks/s3cr3t")
    assert said.rstrip().endswith(f"warning: --notify failed: {sys.executable} ended with exit code 7")
    assert "s3cr3t" not in said


def test_what_the_program_prints_leaves_standard_output_alone(
    tell: Tell, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    script = tmp_path / "loud.py"
    script.write_text("import sys; print('ok from the server'); print(len(sys.stdin.read()))")
    notify([sys.executable, str(script)], {"a": float("nan")}, Console(None, as_json=True))
    shown = capfd.readouterr()
    assert shown.out == ""
    assert "ok from the server" in shown.err


@pytest.mark.parametrize(
    ("exit_code", "status"),
    [(0, "done"), (1, "failed"), (2, "failed"), (3, "some scans failed"), (4, "drift"), (130, "interrupted")],
)
def test_the_end_is_said_in_words_too(exit_code: int, status: str) -> None:
    told = describe_end(exit_code, {"cohort": "glioma", "exit_code": 99})
    assert told == {
        "status": status,
        "exit_code": exit_code,
        "error_type": None,
        "error_message": None,
        "cohort": "glioma",
    }
    assert json.loads(json.dumps(told)) == told


def test_errors_have_the_exit_code_of_the_command_line() -> None:
    errors = [UsageError("a"), LockedError("b"), KeyboardInterrupt(), ValueError("a bug")]
    assert [exit_code_of(error) for error in errors] == [2, 1, 130, 1]
    assert describe_end(1, {}, LockedError("in use\nby 7"))["error_message"] == "in use by 7"


def test_words_are_split_and_nothing_is_expanded() -> None:
    assert split_command("mail -s 'last night' $HOME *.txt; rm x") == [
        *("mail", "-s", "last night", "$HOME", "*.txt;", "rm", "x")
    ]


def test_the_program_is_not_written_down_with_the_command_line() -> None:
    words = ["raysegment", "resegment", "c.yaml", "--notify", "curl https://x/s3cr3t", "--json", "s3://key:pw@bucket/a"]
    shown = ["raysegment", "resegment", "c.yaml", "--notify", "***", "--json", "s3://***@bucket/a"]
    assert show_command_line(words) == shown
    assert show_command_line(["r", "--notify=curl https://x/s3cr3t", "--notify"]) == ["r", "--notify=***", "--notify"]
