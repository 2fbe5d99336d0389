"""No identifier of a header appears in anything that raysegment writes or says, whatever is wrong with the header."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

TESTS = Path(__file__).parents[1]
sys.path.insert(0, str(TESTS / "archive"))

from planted import BROKEN, PLANT, find_planted, write_planted  # noqa: E402

LOUD = """
import logging, warnings
logging.basicConfig(level=logging.DEBUG)
warnings.simplefilter("always")
"""
"""Of every process: all log levels, all warnings."""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The archive, and folders for all else that processes may write."""
    root = tmp_path_factory.mktemp("planted")
    write_planted(root / "archive")
    for name in ("home", "config", "tmp", "loud", "out"):
        (root / name).mkdir()
    (root / "loud" / "sitecustomize.py").write_text(LOUD)
    return root


def run(place: Path, *words: str, expected: tuple[int, ...] = (0,)) -> str:
    """What a process says, on both ways out."""
    paths = [place / "loud", TESTS.parent, TESTS / "archive", TESTS / "commands"]
    environment = os.environ | {
        "HOME": str(place / "home"),
        "XDG_CONFIG_HOME": str(place / "config"),
        "TMPDIR": str(place / "tmp"),
        "PYTHONPATH": os.pathsep.join(map(str, paths)),
        "TF_CPP_MIN_LOG_LEVEL": "0",
        "CUDA_VISIBLE_DEVICES": "",
    }
    command = ["-m", "raysegment"] if not words[0].endswith(".py") else []
    done = subprocess.run(
        [sys.executable, *command, *words], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode in expected, done.stdout + done.stderr
    return done.stdout + done.stderr


def check(place: Path, *said: str) -> None:
    written = [place / name for name in ("out", "home", "config", "tmp")]
    assert find_planted(written, said) == []


def test_the_search_finds_what_is_planted(place: Path) -> None:
    found = find_planted([place / "archive"], [f"x{PLANT.lower()}"])
    assert len({line.split(" ")[0] for line in found}) > len(BROKEN)
    packed = [line for line in found if "nifti/good.nii.gz unpacked" in line]
    assert packed


def test_index_tells_no_identifier(place: Path) -> None:
    archive = str(place / "archive")
    said = [
        run(place, "index", archive, "--out", str(place / "out" / "m.parquet")),
        run(place, "index", archive, "--modality", "MR", "--channel", f"t1={PLANT} S*", "--json"),
    ]
    table = pq.read_table(place / "out" / "m.parquet")
    assert table.num_rows > 10
    visits = [row for row in table.to_pylist() if row["scan_id"].startswith("visit")]
    assert [row["scan_day"] for row in visits] == [0, 4]
    assert len({row["patient_id"] for row in visits}) == 1
    # What the user typed is the user's own.
    check(place, *(text.replace(f"{PLANT} S*", "") for text in said))


def test_tables_pictures_and_exports_tell_none_also_where_scans_fail(place: Path) -> None:
    out = str(place / "out" / "tables")
    said = [run(place, str(TESTS / "commands" / "segment_planted.py"), str(place / "archive"), out)]
    scans = pq.read_table(place / "out" / "tables" / "scans").to_pylist()
    assert {row["status"] for row in scans} == {"ok", "failed"}
    assert [row["scan_id"][:6] for row in scans if row["reference_error"]] == ["visit1"]
    said.append(run(place, "report", out, expected=(0, 2)))
    for kind in ("nifti", "bids"):
        said.append(run(place, "export", out, "--to", kind, "--out", str(place / "out" / kind), expected=(0, 3)))
    assert [path for path in (place / "out" / "nifti").rglob("*.nii.gz") if "visit0" in str(path)]
    check(place, *said)


def test_a_key_that_names_patients_and_days_is_what_tells_them(place: Path, tmp_path: Path) -> None:
    manifest = tmp_path / "told.parquet"
    run(place, "index", str(place / "archive"), "--out", str(manifest), "--keep-patient-ids", "--keep-dates")
    rows = [row for row in pq.read_table(manifest).to_pylist() if row["scan_id"].startswith("visit")]
    assert all(f"{PLANT}-ID" in row["patient_id"] for row in rows)
    assert [str(row["scan_date"]) for row in rows] == ["2013-11-13", "2013-11-17"]
    assert {row["scan_day"] for row in rows} == {None}
