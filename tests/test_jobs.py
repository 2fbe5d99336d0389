"""`jobs/`: the commands, crontab lines and units that are printed there, run as they stand, below a test's folder."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from raysegment import cli, errors
from raysegment.choices import load_options
from raysegment.options import TrainOptions

ROOT = Path(__file__).parent.parent
JOBS = ROOT / "jobs"
TEXT = (JOBS / "README.md").read_text(encoding="utf-8")
HOME = "/srv/raysegment"
CRON = re.compile(r"^(?:#\s+)?((?:[\d*/,-]+ ){4}[\d*/,-]+)  (cd .+)$", re.MULTILINE)
UNITS = ("raysegment-cohort@.service", "raysegment-cohort@.timer")


def blocks(language: str) -> str:
    return "\n".join(re.findall(rf"^```{language}\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL))


def crontab_lines(text: str) -> list[str]:
    """The commands of crontab lines."""
    return [match[2] for match in CRON.finditer(text)]


class Machine:
    """A machine as `jobs/README.md` supposes it, below a folder.

    Args:
        folder: Stands for its root.
    """

    def __init__(self, folder: Path) -> None:
        self.root, self.home, self.bin = folder, folder / "srv", folder / "bin"
        shutil.copytree(JOBS, self.home / "jobs")
        (self.root / "etc" / "systemd" / "system").mkdir(parents=True)
        self.write_program(self.home / ".venv" / "bin" / "raysegment", f'exec {sys.executable} -m raysegment "$@"')
        self.write_program(self.bin / "sudo", 'exec "$@"')
        self.write_program(self.bin / "mail", f'echo "$2" "$3" > {self.root}/mail.txt; cat > {self.root}/mail.json')

    def write_program(self, path: Path, script: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)

    def run(self, line: str) -> subprocess.CompletedProcess[str]:
        """Run a line as cron does: with sh, and next to nothing in its environment."""
        line = line.replace(HOME, str(self.home)).replace("/etc/systemd", f"{self.root}/etc/systemd")
        kept = {name: value for name, value in os.environ.items() if name.startswith(("RAY_", "TF_"))}
        environment = {"PATH": f"{self.bin}:/usr/bin:/bin", "HOME": str(self.home), "PYTHONPATH": str(ROOT), **kept}
        return subprocess.run(
            ["/bin/sh", "-c", line], cwd=self.root, env=environment, capture_output=True, text=True, timeout=300
        )

    def current(self) -> dict[str, str]:
        return dict(json.loads((self.home / "results" / "glioma" / "current.json").read_text()))


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Machine:
    return Machine(tmp_path_factory.mktemp("machine"))


@pytest.fixture(scope="module")
def archive(machine: Machine) -> Path:
    """Three scans and an untrained model where the examples look for them."""
    import keras

    from raysegment.imaging.phantom import write_archive
    from raysegment.model.bundle import BundleDescription, save_bundle
    from raysegment.model.unet import build_network
    from raysegment.options import Postprocessing, Preprocessing

    choices = {"network": "unet", "filters": 2, "depth": 1, "dropout": 0.0, "norm": "batch", "norm_momentum": 0.9}
    keras.utils.set_random_seed(1)
    description = BundleDescription(
        preprocessing=Preprocessing(image_size=32),
        postprocessing=Postprocessing(threshold=0.5),
        num_channels=3,
        network=choices,
    )
    save_bundle(machine.home / "runs" / "lgg", build_network(**choices, input_shape=(32, 32, 3)), description)
    write_archive(machine.home / "archive", patients=3, seed=5, image_size=32, slices=3)
    return machine.home / "archive"


@pytest.mark.cluster
@pytest.mark.slow
def test_the_commands_and_crontab_lines_run_as_printed(machine: Machine, archive: Path) -> None:
    copy, check, night = [
        line for line in blocks("bash").splitlines() if line and "||" not in line and "sudo" not in line
    ]
    nightly, infer, told = crontab_lines(blocks("crontab"))
    assert machine.run(copy).returncode == 0
    looked = machine.run(check)
    assert looked.returncode == 0, looked.stderr
    assert "cohort glioma: 3 new" in looked.stdout
    assert not (machine.home / "results").exists()
    done = machine.run(night)
    assert done.returncode == 0, done.stderr
    first = machine.current()

    assert machine.run(nightly).returncode == 0
    last = json.loads((machine.home / "cohort.log").read_text().splitlines()[-1])
    assert (last["event"], last["scans"]["unchanged"], last["has_moved"]) == ("result", 3, False)
    assert machine.current() == first
    assert machine.run(told).returncode == 0
    assert (machine.root / "mail.txt").read_text() == "glioma, last night group@example.org\n"
    summary = json.loads((machine.root / "mail.json").read_text())
    assert (summary["status"], summary["exit_code"], summary["cohort"]) == ("done", 0, "glioma")

    assert machine.run(infer).returncode == 0
    assert (machine.home / "masks" / "run.json").is_file()
    for name in ("infer-nightly.yaml", "cohort-nightly.yaml"):
        (line,) = crontab_lines((JOBS / name).read_text(encoding="utf-8"))
        assert machine.run(line).returncode == 0, name
    assert machine.current() == first
    shutil.move(archive, machine.home / "unmounted")
    assert machine.run(told).returncode == 2
    summary = json.loads((machine.root / "mail.json").read_text())
    assert (summary["status"], summary["exit_code"], summary["error_type"]) == ("failed", 2, "UsageError")


def test_the_line_that_takes_3_for_success_does(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    (line,) = [line for line in blocks("bash").splitlines() if "||" in line]
    for code, expected in {0: 0, 1: 1, 2: 1, 3: 0, 4: 1, 130: 1}.items():
        machine.write_program(machine.home / ".venv" / "bin" / "raysegment", f"exit {code}")
        assert machine.run(line).returncode == expected, code


def test_the_crontab_line_of_the_training_is_understood(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    (line,) = crontab_lines((JOBS / "train-lgg.yaml").read_text(encoding="utf-8"))
    name, *words = shlex.split(line.split("raysegment ", 2)[-1].partition(">>")[0])
    given = typer.main.get_command(cli.app).commands[name].make_context(name, words).params
    recipe, job = given.pop("recipe", None), given.pop("job", None)
    assert load_options(TrainOptions, given, recipe=recipe, job=job).out == "runs/lgg"


def test_every_exit_code_is_explained() -> None:
    explained = {int(match) for match in re.findall(r"^\| (\d+) \|", TEXT, re.MULTILINE)}
    known = {value for name, value in vars(errors).items() if name.startswith("EXIT_")}
    assert known <= explained


def test_every_file_that_is_named_is_there() -> None:
    assert [name for name in re.findall(r"\]\(([^)]+)\)", TEXT) if not (JOBS / name).exists()] == []


def read_unit(name: str) -> dict[str, str]:
    lines = (JOBS / "systemd" / name).read_text(encoding="utf-8").splitlines()
    return dict(line.split("=", 1) for line in lines if "=" in line and not line.startswith("#"))


def test_the_units_say_what_the_table_of_exit_codes_says() -> None:
    service, timer = map(read_unit, UNITS)
    assert int(service["SuccessExitStatus"]) == errors.EXIT_SOME_SCANS_FAILED
    assert {2, 130} <= set(map(int, service["RestartPreventExitStatus"].split()))
    assert (service["Restart"], service["TimeoutStartSec"], service["KillMode"]) == ("on-failure", "infinity", "mixed")
    assert timer["Persistent"] == "true"


def test_the_command_of_the_service_is_understood() -> None:
    program, *words = shlex.split(read_unit(UNITS[0])["ExecStart"].replace("%i", "glioma"))
    assert program == f"{HOME}/.venv/bin/raysegment"
    given = typer.main.get_command(cli.app).commands[words[0]].make_context(words[0], words[1:]).params
    assert (given["cohort"], given["json"]) == ("cohorts/glioma.yaml", True)


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
def test_systemd_has_nothing_to_say_against_the_units(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    for name in UNITS:
        text = (JOBS / "systemd" / name).read_text(encoding="utf-8").replace(HOME, str(machine.home))
        (tmp_path / name).write_text(text)
    done = subprocess.run(["systemd-analyze", "verify", *UNITS], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.skipif(shutil.which("systemctl") is None, reason="systemctl is not installed")
def test_the_units_are_installed_and_enabled_as_printed(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    # Without a running systemd it is told which folder stands for the root, and starts nothing.
    real = shutil.which("systemctl")
    script = f'if [ "$1 $2" = "enable --now" ]; then exec {real} --root={tmp_path} enable "$3"; fi'
    machine.write_program(machine.bin / "systemctl", script)
    lines = [line for line in blocks("bash").splitlines() if "sudo" in line]
    for line in lines:
        done = machine.run(f"cd {HOME} && {line}")
        assert done.returncode == 0, done.stderr
    system = tmp_path / "etc" / "systemd" / "system"
    assert sorted(path.name for path in system.glob("*@*")) == list(UNITS)
    assert (system / "timers.target.wants" / "raysegment-cohort@glioma.timer").is_symlink()
