"""Neither workers nor Ray's own files tell what headers hold; with `--pseudonymise` nothing tells the user's words."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import nibabel
import numpy as np
import pyarrow.parquet as pq
import pytest

TESTS = Path(__file__).parents[1]
sys.path.insert(0, str(TESTS / "archive"))

from planted import PLANT, find_planted, write_planted  # noqa: E402

pytestmark = pytest.mark.cluster

WORDS = re.compile("Doctorow|Waldklinik|visit[01]|broken_|nifti/", re.IGNORECASE)
"""What the archive's folders are called."""

TINY = ["--image-size", "16", "--filters", "2", "--depth", "1", "--epochs", "1", "--batch-size", "4", "--workers", "1"]


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    """An archive with planted headers under telling names, and folders for all else; Ray's sockets need short paths."""
    with tempfile.TemporaryDirectory(prefix="planted", dir="/tmp") as folder:
        root = Path(folder)
        archive = root / "Waldklinik"
        write_planted(archive)
        for number in range(5):
            _write_patient(archive / f"Doctorow{number}", number)
        for name in ("config/raysegment", "home", "tmp", "ray", "out"):
            (root / name).mkdir(parents=True)
        key = root / "config" / "raysegment" / "pseudonyms.key"
        key.write_bytes(bytes(range(32)))
        key.chmod(0o600)
        split = {"train": [f"Doctorow{number}" for number in range(4)], "val": ["Doctorow4"]}
        (root / "split.json").write_text(json.dumps(split))
        yield root


def _write_patient(folder: Path, seed: int) -> None:
    folder.mkdir()
    pixels = np.random.default_rng(seed).integers(0, 200, (16, 16, 4)).astype(np.uint8)
    image = nibabel.Nifti1Image(pixels, np.diag([1.0, 1.0, 3.0, 1.0]))
    image.header["descrip"], image.header["db_name"] = f"{PLANT} descrip", PLANT
    nibabel.save(image, folder / "scan.nii.gz")
    nibabel.save(nibabel.Nifti1Image((pixels > 120).astype(np.uint8), image.affine), folder / "scan_seg.nii.gz")


def run(place: Path, *words: str, expected: tuple[int, ...] = (0, 3)) -> str:
    environment = os.environ | {
        "HOME": str(place / "home"),
        "XDG_CONFIG_HOME": str(place / "config"),
        "TMPDIR": str(place / "tmp"),
        "PYTHONPATH": str(TESTS.parent),
        "PYTHONWARNINGS": "always",
        "CUDA_VISIBLE_DEVICES": "",
    }
    command = [sys.executable, "-m", "raysegment", *words]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=170)
    assert done.returncode in expected, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_a_pseudonymised_run_from_training_to_export_tells_nothing(place: Path) -> None:
    archive, out = str(place / "Waldklinik"), place / "out"
    hidden = ["--pseudonymise"]
    on_ray = ["--temp-dir", str(place / "ray")]
    split = ["--split-file", str(place / "split.json")]
    said = [run(place, "train", archive, "--out", str(out / "run"), *TINY, *hidden, *on_ray, *split)]
    said.append(run(place, "infer", str(out / "run"), archive, "--out", str(out / "tables"), *hidden, *on_ray))
    again = run(place, "infer", str(out / "run"), archive, "--out", str(out / "tables"), *hidden, *on_ray)
    assert "nothing to do" in again
    said += [again, run(place, "report", str(out / "tables"))]
    said.append(run(place, "export", str(out / "tables"), "--to", "nifti", "--out", str(out / "nifti")))
    scans = pq.read_table(out / "tables" / "scans").to_pylist()
    assert {row["status"] for row in scans} == {"ok", "failed"}
    assert all(re.fullmatch("[0-9a-f]{16}", row["scan_id"]) for row in scans)
    assert len(list((out / "nifti").glob("*.nii.gz"))) == sum(row["status"] == "ok" for row in scans)
    written = [out, place / "home", place / "tmp", place / "ray"]
    assert find_planted(written, said) == []
    assert [text for text in said if WORDS.search(text)] == []
    for row in scans:
        assert not WORDS.search(str(row))
    for path in (path for path in out.rglob("*") if path.is_file()):
        assert not WORDS.search(path.name)
        assert not WORDS.search(path.read_bytes().decode("latin-1")), path
    # The key's owner knows whom all this is about.
    lookup = (place / "config" / "raysegment" / "pseudonyms.key.lookup.csv").read_text()
    assert "Doctorow0" in lookup
    record = json.loads((out / "tables" / "run.json").read_text())
    assert record["key"] == json.loads((out / "run" / "model" / "model.json").read_text())["provenance"]["key"]
    other = place / "config" / "other"
    other.write_bytes(bytes(32))
    choices = ["--out", str(out / "other"), "--split", "test", *hidden, "--key-file", str(other)]
    refused = run(place, "evaluate", str(out / "run"), archive, *choices, expected=(2,))
    assert "has pseudonyms of the key" in refused
