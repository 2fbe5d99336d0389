"""The rooms, what they may import, and what the package exports."""

from __future__ import annotations

import ast
import json
import re
import tomllib
from importlib.metadata import distribution
from pathlib import Path

import grimp
import jsonschema
import pytest
import yaml
from importlinter.cli import EXIT_STATUS_SUCCESS, lint_imports
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import raysegment
from raysegment.choices import load_options
from raysegment.options import InferOptions, TrainOptions
from raysegment.pipeline.search_space import read_search_plan
from raysegment.runs.cohort_file import read_cohort

ROOT = Path(__file__).parent.parent
MODULES = sorted((ROOT / "raysegment").rglob("*.py"))
PUBLIC = [
    "CohortCheckOptions",
    "CompareOptions",
    "DemoOptions",
    "EvaluateOptions",
    "ExportOptions",
    "IndexOptions",
    "InferOptions",
    "MeasureOptions",
    "RaysegmentError",
    "ReportOptions",
    "ResegmentOptions",
    "Scan",
    "ScanEntry",
    "TrainOptions",
    "TuneOptions",
    "__version__",
    "check_cohort",
    "compare",
    "demo",
    "evaluate",
    "export",
    "index",
    "infer",
    "load_bundle",
    "load_options",
    "measure",
    "open_cohort",
    "report",
    "resegment",
    "train",
    "tune",
]


def test_rooms_import_only_what_lies_below_them(monkeypatch, tmp_path):
    monkeypatch.chdir(ROOT)
    assert lint_imports(no_cache=True) == EXIT_STATUS_SUCCESS


def test_each_module_is_named_in_a_test_or_reached_through_one_that_is():
    graph = grimp.build_graph("raysegment")
    text = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("*.py"))
    imported = re.findall(r"from (raysegment[\w.]*) import ([\w, ]+)", text)
    names = {f"{package}.{name.strip()}" for package, listed in imported for name in listed.split(",")}
    named = {module for module in graph.modules if module in names or re.search(rf"\b{re.escape(module)}\b", text)}
    reached = named.union(*(graph.find_upstream_modules(module) for module in named))
    packages = {".".join(path.parent.relative_to(ROOT).parts) for path in MODULES if path.name == "__init__.py"}
    assert graph.modules - reached - packages - {"raysegment.__main__"} == set()


def test_one_module_uses_what_ray_does_not_promise_to_keep():
    private = re.compile(r"ray\.(\w+\.)*_|ray\.train\.v2|\._create_executor|_internal_ref_bundles")
    users = [path.relative_to(ROOT) for path in MODULES if private.search(path.read_text(encoding="utf-8"))]
    assert users == [Path("raysegment/cluster/ray_internals.py")]


def test_the_public_names_are_the_documented_ones():
    assert raysegment.__all__ == PUBLIC
    assert dir(raysegment) == PUBLIC


@pytest.mark.parametrize("name", PUBLIC)
def test_a_public_name_can_be_imported(name):
    assert getattr(raysegment, name) is not None


def test_no_public_name_is_that_of_a_room():
    """Importing a room would put the module in the name's place."""
    rooms = {path.stem for path in (ROOT / "raysegment").iterdir()}
    assert set(PUBLIC) & rooms == set()


def test_an_unknown_name_is_refused():
    with pytest.raises(AttributeError, match="has no attribute 'segment'"):
        raysegment.segment  # noqa: B018


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_is_short_and_says_what_it_is(path):
    text = path.read_text(encoding="utf-8")
    assert ast.get_docstring(ast.parse(text))
    assert len(text.splitlines()) <= 400 or path.name == "options.py"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_function_fits_on_a_screen(path):
    functions = [
        node
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    lengths = {node.name: (node.end_lineno or 0) - node.lineno + 1 for node in functions}
    assert {name: length for name, length in lengths.items() if length > 60} == {}


def test_no_room_is_a_drawer_for_everything():
    assert not {path.stem for path in MODULES} & {"utils", "util", "helpers", "common", "manager", "misc"}


def test_the_constraints_lie_within_the_declared_bounds():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    pins = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines())
    declared = [Requirement(text) for text in project["dependencies"] + project["optional-dependencies"]["test"]]
    assert [str(need) for need in declared if not need.specifier.contains(pins[canonicalize_name(need.name)])] == []


def test_the_version_is_written_once_and_in_the_changelog():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["version"] == raysegment.__version__
    assert f"## {raysegment.__version__}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_the_cluster_file_fits_rays_schema_and_the_pinned_ray():
    path = next(file for file in distribution("ray").files if file.name == "ray-schema.json")
    cluster = yaml.safe_load((ROOT / "cluster.yaml").read_text(encoding="utf-8"))
    jsonschema.validate(cluster, json.loads(Path(path.locate()).read_text(encoding="utf-8")))
    pinned = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    version = cluster["docker"]["image"].split(":")[1].split("-")[0]
    assert f"\nray=={version}\n" in pinned


def test_the_example_jobs_hold_valid_choices():
    kinds = {"train": TrainOptions, "infer": InferOptions}
    jobs = sorted((ROOT / "jobs").glob("*.yaml"))
    assert jobs
    for job in jobs:
        if (verb := job.stem.split("-")[0]) == "tune":
            read_search_plan(str(job))
        elif verb == "cohort":
            cohort = read_cohort(str(job))
            cohort.make_options(cohort.chosen.out)
        else:
            load_options(kinds[verb], {}, job=str(job))
