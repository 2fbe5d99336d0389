"""The README: its commands, its tables of options, its code."""

from __future__ import annotations

import re
import runpy
import shlex
from pathlib import Path

import numpy as np
import pytest
import typer

from raysegment import cli
from raysegment.choices import load_options, recipe_names
from raysegment.errors import RaysegmentError
from raysegment.options import (
    CohortCheckOptions,
    CompareOptions,
    DemoOptions,
    EvaluateOptions,
    ExportOptions,
    IndexOptions,
    InferOptions,
    ReportOptions,
    ResegmentOptions,
    TrainOptions,
)
from raysegment.store.masks import encode_mask
from raysegment.store.parts import ScanRows, stage_part
from raysegment.store.place import Place
from raysegment.store.publish import prepare_tables, publish_part

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
CI = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
KINDS = {
    "cohort check": CohortCheckOptions,
    "compare": CompareOptions,
    "demo": DemoOptions,
    "evaluate": EvaluateOptions,
    "export": ExportOptions,
    "index": IndexOptions,
    "infer": InferOptions,
    "report": ReportOptions,
    "resegment": ResegmentOptions,
    "train": TrainOptions,
}


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def raysegment_lines(text: str) -> list[str]:
    """Arguments of each `raysegment COMMAND …` line, prompts taken off, continuation lines joined."""
    command = re.compile(r"\s*(?:[#$] )?(?:.*&& )?(?:\.venv/bin/)?raysegment ([a-z]+ ?.*)$")
    found = [command.match(line) for line in text.replace("\\\n", " ").splitlines()]
    return [match[1] for match in found if match]


COMMANDS = [line for block in blocks("bash") + blocks("console") for line in raysegment_lines(block)]
SETUP = [line for block in blocks("bash") for line in block.splitlines() if "venv" in line]


def name_of(line: str) -> str:
    """The command of a line, with its group."""
    words = line.split()
    return " ".join(words[:2]) if words[0] == "cohort" else words[0]


def test_the_readme_shows_every_command():
    assert {name_of(line) for line in COMMANDS} == set(KINDS)


@pytest.mark.parametrize("line", COMMANDS)
def test_a_command_of_the_readme_is_understood(line):
    name = name_of(line)
    words = shlex.split(line.removesuffix("&").strip(), comments=True)[len(name.split()) :]
    command = typer.main.get_command(cli.app)
    for word in name.split():
        command = command.commands[word]
    given = command.make_context(name, words).params
    recipe, job = given.pop("recipe", None), given.pop("job", None)
    load_options(KINDS[name], given, recipe=recipe, job=job)


def test_the_two_set_up_commands_are_one_line_each_and_what_ci_runs():
    demo, tests = SETUP
    assert demo.split(" && ")[2] == ".venv/bin/raysegment demo"
    for step in tests.split(" && "):
        assert f"\n{step}\n" in CI
    assert CI.rstrip().endswith(tests.split(" && ")[-1])


def test_the_readme_names_every_recipe():
    assert [name for name in recipe_names() if f"`{name}`" not in README] == []


def test_the_tables_of_options_are_those_of_the_classes():
    fill_tables = runpy.run_path(str(ROOT / "docs" / "write_options.py"))["fill_tables"]
    assert fill_tables(README) == README


def test_pictures_and_links_of_the_readme_exist_and_are_small():
    targets = [target for target in re.findall(r"\]\(([^)#]+)\)", README) if not target.startswith("http")]
    assert targets
    assert [target for target in targets if not (ROOT / target).is_file()] == []
    assert max((ROOT / target).stat().st_size for target in targets if target.endswith(".png")) < 300_000


@pytest.fixture
def segmented(tmp_path: Path) -> Path:
    """A folder with the tables of one segmented and one failed scan where the README's code looks for them."""
    place = Place(str(tmp_path / "masks" / "archive"))
    place.make_folder()
    prepare_tables(place)
    mask = np.zeros((2, 3, 4), np.uint8)
    mask[1, 1, 1:3] = 1
    scan = {"scan_id": "one", "patient_id": "p", "status": "ok", "num_slices": 2}
    metric = {"scan_id": "one", "patient_id": "p", "label": "lesion", "voxels": 2, "num_components": 1}
    failed = {"scan_id": "two", "status": "failed", "error_type": "EmptyFileError", "error_message": "no bytes"}
    rows = [ScanRows(scan, (metric,), encode_mask("one", mask, labels={"lesion": 1})), ScanRows(failed)]
    part = stage_part(place, "_staging/0001", rows)
    publish_part(place, "_staging/0001", part.name)
    return tmp_path


@pytest.mark.parametrize("code", [code for code in blocks("python") if "raysegment." not in code])
def test_code_that_reads_the_tables_runs(code, segmented, monkeypatch, capsys):
    monkeypatch.chdir(segmented)
    names: dict[str, object] = {}
    exec(code, names)
    shown = capsys.readouterr().out
    if "mask" in names:
        assert shown == "one (2, 3, 4) 2\n"
    elif "failed" in names:
        assert names["failed"].values.tolist() == [["two", "EmptyFileError", "no bytes"]]
    else:
        assert "one" in shown


@pytest.mark.parametrize("code", [code for code in blocks("python") if "raysegment." in code])
def test_code_that_calls_raysegment_fails_only_for_want_of_a_model(code, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RaysegmentError, match=r"runs/lgg|/results/glioma"):
        exec(code, {})


def test_the_columns_of_the_readme_are_those_of_the_tables():
    from raysegment.store.schema import SCHEMAS

    for name, schema in SCHEMAS.items():
        row = next(line for line in README.splitlines() if line.startswith(f"| `{name}/`"))
        listed = [word.strip() for cell in re.findall(r"`([^`]+)`", row)[1:] for word in cell.split(",")]
        assert listed == schema.names
