"""Cohort files and manifests of others: names in them lead nowhere out of the cohort's folder, and run nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from test_resegment import Cohort, models  # noqa: F401

import raysegment
from raysegment.archive.manifest import write_manifest
from raysegment.commands.cohort_check import check_cohort
from raysegment.errors import DamagedTablesError, UsageError
from raysegment.options import CohortCheckOptions

NAMES = (
    "../../escaped",
    "/{root}/escaped-absolute",
    "a/../../../escaped",
    "line\nbreak",
    "-rf",
    "$(touch escaped)",
    "results/../../../escaped",
    "\u202egnp.exe",
)


def everything_but(root: Path, *inside: Path) -> dict[str, bytes]:
    """Files below a folder, but for those in some places."""
    files = [path for path in root.rglob("*") if path.is_file() and not any(map(path.is_relative_to, inside))]
    return {str(path): path.read_bytes() for path in files}


@pytest.fixture
def hostile(tmp_path: Path, models: tuple[Path, Path]) -> Cohort:  # noqa: F811
    """A cohort deep enough below the test's folder that what escapes from it is found there."""
    folder = tmp_path / "a" / "b" / "c"
    folder.mkdir(parents=True)
    return Cohort(folder, models[0])


def write_hostile_manifest(cohort: Cohort, root: Path) -> list[str]:
    """A manifest of the archive's scans under other names, patients and splits."""
    table = raysegment.index(raysegment.IndexOptions(source=str(cohort.archive))).table
    names = [name.replace("{root}", str(root).strip("/")) for name in NAMES]
    for column in ("scan_id", "patient_id"):
        table = table.set_column(table.column_names.index(column), table.schema.field(column), pa.array(names))
    write_manifest(table, str(cohort.folder / "scans.parquet"))
    text = (cohort.folder / "cohort.yaml").read_text().replace("source: archive", "source: scans.parquet")
    (cohort.folder / "cohort.yaml").write_text(text.replace("name: test", 'name: "../../escaped; touch escaped"'))
    return names


def test_names_of_a_manifest_and_of_a_cohort_lead_nowhere(hostile: Cohort, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(hostile.folder)
    names = write_hostile_manifest(hostile, tmp_path)
    before = everything_but(tmp_path, hostile.out)
    first = hostile.run()
    hostile.change(1)
    # What a manifest says of times is not looked at again until it is written anew.
    write_hostile_manifest(hostile, tmp_path)
    before |= {str(path): path.read_bytes() for path in hostile.folder.glob("*.*")}
    before |= {str(path): path.read_bytes() for path in hostile.archive.rglob("*.tif")}
    second = hostile.run()
    assert (first.scans_ok, second.scans["changed"]) == (len(NAMES), 1)
    assert everything_but(tmp_path, hostile.out) == before
    assert sorted(raysegment.open_cohort(str(hostile.out)).read("scans")["scan_id"].to_pylist()) == sorted(names)
    assert sorted(pq.read_table(hostile.out / "members")["scan_id"].to_pylist()) == sorted(names)


STORED = (
    {"result": "results/../../../../x/000001-20260101T000000Z"},
    {"result": "/etc"},
    {"result": "results/x/../000001-20260101T000000Z"},
    {"result": ["results"], "run": {}},
    [],
    7,
)


def test_a_current_json_of_others_is_refused_and_deletes_nothing(hostile: Cohort, tmp_path: Path) -> None:
    first = hostile.run()
    before = everything_but(tmp_path, hostile.out)
    known = {"run": "x", "model_id": "m", "options_id": "o"}
    for stored in STORED:
        (hostile.out / "current.json").write_text(json.dumps(known | stored if isinstance(stored, dict) else stored))
        with pytest.raises(DamagedTablesError, match=r"current\.json"):
            hostile.run()
        with pytest.raises(DamagedTablesError, match=r"current\.json"):
            check_cohort(CohortCheckOptions(cohort=str(hostile.folder / "cohort.yaml")))
    assert everything_but(tmp_path, hostile.out) == before
    assert (hostile.out / str(first.result)).is_dir()


@pytest.mark.parametrize(
    "line",
    [
        "notify: touch escaped",
        "extra: !!python/object/apply:os.system ['touch escaped']",
        "infer: {out: ../escaped}",
        "infer: {address: 'ray://elsewhere:10001'}",
        "where: [[\"__import__('os').system('touch escaped')\", '=', 1]]",
    ],
)
def test_a_cohort_file_runs_nothing_and_moves_no_output(
    hostile: Cohort, line: str, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.chdir(hostile.folder)
    with (hostile.folder / "cohort.yaml").open("a") as file:
        file.write(f"{line}\n")
    before = everything_but(tmp_path)
    with pytest.raises(UsageError):
        hostile.run()
    assert everything_but(tmp_path) == before
