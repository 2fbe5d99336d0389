"""The command line: help, wrong usage, exit codes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import click
import pytest
import typer

from raysegment import cli
from raysegment.errors import DiskFullError, InterruptedRunError

COMMANDS = (
    "cohort check",
    "compare",
    "demo",
    "evaluate",
    "export",
    "index",
    "infer",
    "measure",
    "report",
    "resegment",
    "train",
    "tune",
)
TRAIN = ("train", "archive", "--out", "run")


def group() -> click.Group:
    return typer.main.get_command(cli.app)


def find(words: str) -> click.Command:
    """The command of that name, in its group if it is in one."""
    found: click.Command = group()
    for word in words.split():
        found = found.commands[word]
    return found


def run(monkeypatch, capsys, *words):
    """Run the command line in this process; returns exit code, stdout and stderr."""
    monkeypatch.setattr(sys, "argv", ["raysegment", *words])
    with pytest.raises(SystemExit) as end:
        cli.main()
    shown = capsys.readouterr()
    return end.value.code or 0, shown.out, shown.err


def imported_by(code: str) -> set[str]:
    """Which of the heavy packages a fresh process has imported after some code."""
    tail = "; import sys; print([name for name in ('ray', 'tensorflow', 'keras') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code + tail], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout.splitlines()[-1].replace("'", '"')))


def test_importing_raysegment_imports_neither_ray_nor_tensorflow():
    assert imported_by("import raysegment, raysegment.cli") == set()


@pytest.mark.parametrize("command", COMMANDS)
def test_help_imports_neither_ray_nor_tensorflow(command):
    code = f"import runpy, sys; sys.argv = ['raysegment', *'{command} --help'.split()]\n"
    code += "try: runpy.run_module('raysegment', run_name='__main__')\nexcept SystemExit: pass\nNone"
    assert imported_by(code) == set()


def test_the_commands_are_those_of_the_documentation():
    assert sorted(group().commands) == sorted({command.split()[0] for command in COMMANDS})


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_and_command_has_help(command):
    found = find(command)
    assert found.help
    assert [item.name for item in found.params if not item.help] == []


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_every_option(command, monkeypatch, capsys):
    code, out, _ = run(monkeypatch, capsys, *command.split(), "--help")
    assert code == 0
    assert [item.opts[0] for item in find(command).params if item.opts[0].startswith("--")] != []
    assert all(item.opts[0] in out for item in find(command).params if item.opts[0].startswith("--"))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("segment",), "segment"),
        ((*TRAIN, "--epoch", "3"), "--epoch"),
        ((*TRAIN, "--epochs", "-1"), "--epochs is -1; expected at least 1"),
        ((*TRAIN, "--learning-rate", "-1e-3"), "--learning-rate is -0.001"),
        ((*TRAIN, "--workers", "2.5"), "--workers is '2.5'; expected a whole number"),
        ((*TRAIN, "--image-size", "100"), "the nearest are 96 or 112"),
        ((*TRAIN, "--image-size", "24", "--depth", "5"), "the nearest are 32"),
        ((*TRAIN, "--batch-size", "10", "--workers", "4"), "the nearest are 8 or 12"),
        ((*TRAIN, "--recipe", "mine"), "lgg-best, lgg-dice-256"),
        ((*TRAIN, "--job", "nowhere.yaml"), "nowhere.yaml does not exist"),
        (("train", "--out", "run"), "SOURCE is missing"),
        (("train", "archive"), "--out is missing"),
        (("infer", "model", "archive", "--out", "masks", "--threshold", "1.5"), "--threshold is 1.5"),
        (("evaluate", "model", "archive", "--out", "masks", "--split", "dev"), "expected one of train, val, test"),
        (("cohort", "chek", "c.yaml"), "Did you mean 'check'?"),
        (("cohort", "check", "nowhere.yaml"), "the cohort file nowhere.yaml cannot be read"),
        (("resegment", "nowhere.yaml", "--check"), "--check"),
        (("index", "nowhere", "--out", "m.parquet"), "nowhere"),
        (("infer", "nowhere", "archive", "--out", "masks"), "nowhere"),
        (("report", "nowhere"), "nowhere is no run"),
        (("export", "nowhere", "--out", "files"), "no masks"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_code_2(words, said, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    code, out, err = run(monkeypatch, capsys, *words)
    assert (code, out) == (2, "")
    assert said in err
    assert err.startswith("raysegment: ")
    assert len(err.splitlines()) == 1


def test_an_unknown_job_key_is_wrong_usage(monkeypatch, capsys, tmp_path):
    job = tmp_path / "job.yaml"
    job.write_text("batchsize: 4\n")
    code, _, err = run(monkeypatch, capsys, *TRAIN, "--job", str(job))
    assert code == 2
    assert "unknown key 'batchsize'" in err
    assert "batch_size" in err


@pytest.mark.parametrize(
    ("error", "expected"),
    [(DiskFullError("no space left."), 1), (InterruptedRunError("stopped."), 130)],
)
def test_an_error_ends_in_its_exit_code_and_one_line(error, expected, monkeypatch, capsys):
    def fail(options):
        raise error

    monkeypatch.setattr("raysegment.commands.report.report", fail)
    code, _, err = run(monkeypatch, capsys, "report", "run")
    assert code == expected
    assert len(err.splitlines()) == 1


def test_ctrl_c_outside_of_a_run_ends_with_130_and_no_traceback(monkeypatch, capsys):
    def interrupt(options):
        raise KeyboardInterrupt

    monkeypatch.setattr("raysegment.commands.report.report", interrupt)
    code, _, err = run(monkeypatch, capsys, "report", "run")
    assert code == 130
    assert "Traceback" not in err


def test_index_lists_an_archive_and_writes_its_manifest(monkeypatch, capsys, tmp_path, phantom_archive: Path):
    out = tmp_path / "manifest.parquet"
    code, shown, _ = run(monkeypatch, capsys, "index", str(phantom_archive), "--out", str(out))
    assert code == 0
    assert out.is_file()
    assert "6" in shown


def test_index_prints_json_for_programs(monkeypatch, capsys, phantom_archive: Path):
    code, shown, _ = run(monkeypatch, capsys, "index", str(phantom_archive), "--json")
    assert code == 0
    assert [json.loads(line) for line in shown.splitlines()]


def test_an_option_of_several_texts_is_given_once_for_each(monkeypatch, capsys):
    got = []
    monkeypatch.setattr("raysegment.commands.index.index", lambda options: got.append(options.labels) or sys.exit(0))
    run(monkeypatch, capsys, "index", "archive", "--labels", "WT=1+2", "--labels", "ET=2")
    run(monkeypatch, capsys, "index", "archive")
    assert got == [("WT=1+2", "ET=2"), None]
