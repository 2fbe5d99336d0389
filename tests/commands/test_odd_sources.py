"""Sources that nobody tidied: pipes, deep folders, long names, and one patient behind two links."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tifffile

import raysegment

LIMIT_SECONDS = 60


def write_series(folder: Path, *, slices: int = 3, seed: int = 0, masks: bool = False) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (slices, 8, 8), np.uint8)
    for number in range(slices):
        tifffile.imwrite(folder / f"x_{number + 1}.tif", pixels[number])
        if masks:
            tifffile.imwrite(folder / f"x_{number + 1}_mask.tif", np.zeros((8, 8), np.uint8))


def index(source: Path, **choices: object):
    return raysegment.index(raysegment.IndexOptions(source=str(source), **choices))


def index_elsewhere(*words: str) -> dict:
    """What the command says, from a process that is ended when it hangs."""
    command = [sys.executable, "-m", "raysegment", "index", *words, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_SECONDS, check=True)
    return json.loads(done.stdout)


@pytest.mark.parametrize("made", ["a pipe", "a link to a pipe", "a socket", "a link to a device"])
def test_what_is_no_file_is_never_opened_for_its_content(tmp_path, made):
    write_series(tmp_path / "archive" / "good")
    target = tmp_path / "archive" / "a.tif"
    if made == "a socket":
        os.mknod(target, stat.S_IFSOCK | 0o600)
    elif made == "a link to a device":
        target.symlink_to("/dev/zero")
    else:
        os.mkfifo(tmp_path / "pipe")
        target.symlink_to(tmp_path / "pipe") if "link" in made else (tmp_path / "pipe").rename(target)
    said = index_elsewhere(str(tmp_path / "archive"), "--fingerprint", "content")
    assert said["problems"] == [["a.tif", "a.tif is no regular file"]]


@pytest.mark.parametrize("made", ["a pipe", "a link to a device"])
def test_what_a_manifest_names_is_opened_only_if_it_is_a_file(tmp_path, made):
    write_series(tmp_path / "good")
    if made == "a pipe":
        os.mkfifo(tmp_path / "a.tif")
    else:
        (tmp_path / "a.tif").symlink_to("/dev/zero")
    (tmp_path / "m.csv").write_text("scan_id,files\none,a.tif\n")
    said = index_elsewhere(str(tmp_path / "m.csv"), "--fingerprint", "content", "--out", str(tmp_path / "m.parquet"))
    assert said["scans"] == 1


def test_a_manifest_that_is_a_pipe_is_wrong_usage(tmp_path):
    os.mkfifo(tmp_path / "m.csv")
    with pytest.raises(subprocess.CalledProcessError) as caught:
        index_elsewhere(str(tmp_path / "m.csv"))
    assert caught.value.returncode == 2
    assert "no regular file" in caught.value.stderr


def test_hashing_content_holds_a_part_of_a_file_only(tmp_path):
    write_series(tmp_path / "archive" / "good")
    with (tmp_path / "archive" / "a.tif").open("wb") as file:
        file.truncate(600 * 2**20)
    code = (
        "import raysegment, resource, sys;"
        "raysegment.index(raysegment.IndexOptions(source=sys.argv[1], fingerprint=sys.argv[2]));"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)"
    )
    peaks = [
        int(subprocess.run([sys.executable, "-c", code, str(tmp_path / "archive"), mode], capture_output=True).stdout)
        for mode in ("stat", "content")
    ]
    assert peaks[1] - peaks[0] < 50


@pytest.fixture
def deep_archive(tmp_path: Path) -> Iterator[Path]:
    """A scan 1,100 folders deep; removed by `rm`, because pytest's own way of removing it is recursive."""
    here = os.open(tmp_path, os.O_RDONLY)
    try:
        for _ in range(1100):
            os.mkdir("d", dir_fd=here)
            below = os.open("d", os.O_RDONLY, dir_fd=here)
            os.close(here)
            here = below
        tifffile.imwrite(f"/proc/self/fd/{here}/deep.tif", np.zeros((8, 8), np.uint8))
        yield tmp_path
    finally:
        os.close(here)
        subprocess.run(["rm", "-rf", str(tmp_path / "d")], check=True)


def test_a_scan_1100_folders_deep_is_found(deep_archive):
    write_series(deep_archive / "good")
    deep, good = index(deep_archive).table.to_pylist()
    assert (deep["scan_id"], deep["problem"]) == ("d/" * 1100 + "deep.tif", None)
    assert good["scan_id"] == "good"


@pytest.mark.parametrize("suffix", [".parquet", ".csv"])
def test_a_manifest_may_have_a_name_of_250_characters(tmp_path, suffix):
    write_series(tmp_path / "good")
    out = tmp_path / ("m" * (250 - len(suffix)) + suffix)
    index(tmp_path, out=str(out))
    assert index(out).summary.scans == 1


def test_a_scan_may_have_a_name_of_250_characters(tmp_path):
    name = "n" * 246 + ".tif"
    tifffile.imwrite(tmp_path / name, np.zeros((8, 8), np.uint8))
    index(tmp_path, out=str(tmp_path / "m.parquet"))
    assert index(tmp_path / "m.parquet").table["scan_id"].to_pylist() == [name]


@pytest.mark.parametrize("out", ["file/m.parquet", "folder.parquet", "n" * 300 + ".parquet", "/proc/m.parquet"])
def test_a_manifest_that_cannot_be_written_is_wrong_usage(tmp_path, out):
    write_series(tmp_path / "archive")
    (tmp_path / "file").touch()
    (tmp_path / "folder.parquet").mkdir()
    with pytest.raises(raysegment.RaysegmentError) as caught:
        index(tmp_path / "archive", out=str(tmp_path / out))
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("kind", ["folder", "files", "hard"])
def test_a_scan_that_two_ways_lead_to_is_indexed_once_and_reported(tmp_path, kind):
    write_series(tmp_path / "store" / "p1", seed=1, masks=True)
    archive = tmp_path / "archive"
    archive.mkdir()
    for name in ("one", "two"):
        if kind == "folder":
            (archive / name).symlink_to(tmp_path / "store" / "p1")
            continue
        (archive / name).mkdir()
        for file in (tmp_path / "store" / "p1").iterdir():
            target = archive / name / file.name
            target.symlink_to(file) if kind == "files" else target.hardlink_to(file)
    write_series(archive / "p2", seed=2, masks=True)
    result = index(archive)
    assert result.table["scan_id"].to_pylist() == ["one", "p2"]
    assert [text for scan_id, text in result.summary.problems if "two" in text and scan_id == "one"]


def test_the_scan_that_is_no_link_keeps_its_name(tmp_path):
    write_series(tmp_path / "p9")
    write_series(tmp_path / "p5", seed=5)
    (tmp_path / "a_link").symlink_to(tmp_path / "p9")
    result = index(tmp_path)
    assert result.table["scan_id"].to_pylist() == ["p5", "p9"]
    assert result.summary.problems[0][0] == "p9"


def test_scans_that_share_a_slice_are_of_one_patient(tmp_path):
    write_series(tmp_path / "p1", slices=6)
    write_series(tmp_path / "p2", slices=6, seed=2)
    (tmp_path / "selected").mkdir()
    for number in (2, 3):
        (tmp_path / "selected" / f"x_{number}.tif").symlink_to(tmp_path / "p1" / f"x_{number}.tif")
    table = index(tmp_path).table
    patients = dict(zip(table["scan_id"].to_pylist(), table["patient_id"].to_pylist(), strict=True))
    assert patients == {"p1": "p1", "p2": "p2", "selected": "p1"}


def test_a_patient_pattern_does_not_part_scans_that_share_a_slice(tmp_path):
    write_series(tmp_path / "p1", slices=6)
    write_series(tmp_path / "p2", slices=6, seed=2)
    (tmp_path / "p3").mkdir()
    for number in (2, 3):
        (tmp_path / "p3" / f"x_{number}.tif").symlink_to(tmp_path / "p1" / f"x_{number}.tif")
    table = raysegment.index(raysegment.IndexOptions(source=str(tmp_path), patient_pattern="(p[0-9])")).table
    patients = dict(zip(table["scan_id"].to_pylist(), table["patient_id"].to_pylist(), strict=True))
    assert patients == {"p1": "p1", "p2": "p2", "p3": "p1"}


def test_one_folder_of_masks_may_serve_two_folders_of_images(tmp_path):
    (tmp_path / "masks").mkdir()
    for split in ("train", "test"):
        (tmp_path / "a" / split / "images").mkdir(parents=True)
        tifffile.imwrite(tmp_path / "a" / split / "images" / f"{split}.tif", np.zeros((8, 8), np.uint8))
        tifffile.imwrite(tmp_path / "masks" / f"{split}.tif", np.zeros((8, 8), np.uint8))
        (tmp_path / "a" / split / "masks").symlink_to(tmp_path / "masks")
    assert index(tmp_path / "a").summary.with_reference == 2


def test_links_among_folders_do_not_multiply_an_archive(tmp_path):
    names = [f"p{number}" for number in range(12)]
    for seed, name in enumerate(names):
        write_series(tmp_path / name, slices=2, seed=seed)
    for name in names:
        for other in names:
            if other != name:
                (tmp_path / name / other).symlink_to(tmp_path / other)
    started = time.process_time()
    table = index(tmp_path).table
    assert time.process_time() - started < 10
    found = {row["scan_id"]: row["problem"] for row in table.to_pylist()}
    assert set(names) <= set(found)
    others = [problem for scan_id, problem in found.items() if scan_id not in names]
    assert len(others) == len(names)
    assert all("more than 64 ways" in problem for problem in others)
