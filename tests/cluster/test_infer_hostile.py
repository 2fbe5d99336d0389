"""Archives, disks and buckets that misbehave."""

from __future__ import annotations

import json
import os
import shutil
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import tifffile
from tables import assert_equal_tables, assert_whole, read_table

from raysegment.commands.index import index as write_index
from raysegment.commands.infer import infer
from raysegment.errors import DiskFullError
from raysegment.imaging.phantom import make_phantom
from raysegment.options import IndexOptions, InferOptions

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("ray_here")]

ODD_NAMES = ("with spaces", 'it\'s "quoted"', "new\nline", "Ünïcödé-脑")


def write_scan(folder: Path, pixels: np.ndarray) -> None:
    folder.mkdir(parents=True)
    for index, plane in enumerate(pixels):
        tifffile.imwrite(folder / f"s_{index + 1}.tif", plane)


def write_hostile_archive(archive: Path) -> tuple[set[str], set[str]]:
    """Writes good scans under odd names and bad ones of every kind; returns their scan_ids."""
    pixels = make_phantom(1, image_size=64, slices=6)[0]
    for name in ODD_NAMES:
        write_scan(archive / name, pixels)
    good = archive / ODD_NAMES[0] / "s_1.tif"
    whole = good.read_bytes()
    bad = {
        **{f"cut{tenth}": whole[: len(whole) * tenth // 10] for tenth in range(1, 10)},
        "zero bytes": b"",
        "text": b"this is no picture\n" * 20,
        "huge": declare_size(whole, 100_000),
        "crash": b"HOSTILE crash",
        "eat": b"HOSTILE eat",
    }
    for name, content in bad.items():
        (archive / name).mkdir()
        ending = "hostile" if content.startswith(b"HOSTILE") else "tif"
        (archive / name / f"s_1.{ending}").write_bytes(content)
    write_scan(archive / "nan", np.where(pixels > 100, np.nan, pixels.astype(np.float32)))
    write_scan(archive / "channels", pixels[..., 0])
    write_scan(archive / "shapes", pixels)
    tifffile.imwrite(archive / "shapes" / "s_3.tif", pixels[2, :32, :32])
    (archive / "broken").mkdir()
    (archive / "broken" / "s_1.tif").symlink_to(archive / "nowhere.tif")
    (archive / "loop").symlink_to(archive)
    return set(ODD_NAMES), {*bad, "nan", "channels", "shapes", "broken"}


def declare_size(tiff: bytes, side: int) -> bytes:
    """The same file with another width and height in its header."""
    data = bytearray(tiff)
    (offset,) = struct.unpack_from("<I", data, 4)
    (count,) = struct.unpack_from("<H", data, offset)
    for entry in range(offset + 2, offset + 2 + 12 * count, 12):
        tag, _, _ = struct.unpack_from("<HHI", data, entry)
        if tag in (256, 257):
            struct.pack_into("<HHII", data, entry, tag, 4, 1, side)
    return bytes(data)


def test_every_good_scan_of_a_hostile_archive_is_segmented_and_every_bad_one_is_a_row(tmp_path, tiny_bundle):
    archive, out = tmp_path / "archive", tmp_path / "out"
    good, bad = write_hostile_archive(archive)
    result = infer(
        InferOptions(
            model=str(tiny_bundle), source=str(archive), out=str(out), read_memory_mb=256, read_timeout_seconds=20.0
        )
    )
    scans = read_table(out, "scans").set_index("scan_id")
    assert result.exit_code == 3
    assert set(scans.index[scans["status"] == "ok"]) == good
    failed = scans[scans["status"] == "failed"]
    found = {scan_id.split("/")[0] for scan_id in failed.index}
    assert found == bad
    errors = {scan_id.split("/")[0]: row["error_type"] for scan_id, row in failed.iterrows()}
    expected = {
        "zero bytes": "EmptyFileError",
        "text": "UnknownFormatError",
        "huge": "OversizedScanError",
        "crash": "DecoderCrashedError",
        "eat": "DecoderMemoryError",
        "nan": "NonFinitePixelsError",
        "channels": "ChannelMismatchError",
        "shapes": "SliceMismatchError",
        "broken": "AccessError",
    }
    assert {name: errors[name] for name in expected} == expected
    assert failed["error_message"].str.len().min() > 10
    assert assert_whole(out) == len(good) + len(bad)


def test_a_manifest_names_files_anywhere_pipes_fail_at_once_and_changes_are_noticed(tmp_path, tiny_bundle):
    pixels = make_phantom(1, image_size=64, slices=6)[0][:2]
    for name in ("one", "two"):
        write_scan(tmp_path / "elsewhere" / name, pixels)
    os.mkfifo(tmp_path / "pipe.tif")
    files = {name: sorted(map(str, (tmp_path / "elsewhere" / name).iterdir())) for name in ("one", "two")}
    rows = [(name, json.dumps(names).replace('"', '""')) for name, names in {**files, "pipe": ["pipe.tif"]}.items()]
    text = "\n".join(["scan_id,files", *(f'{name},"{names}"' for name, names in rows)])
    (tmp_path / "m.csv").write_text(text + "\n")
    write_index(IndexOptions(source=str(tmp_path / "m.csv"), out=str(tmp_path / "m.parquet")))
    options = InferOptions(
        model=str(tiny_bundle), source=str(tmp_path / "m.parquet"), out=str(tmp_path / "out"), read_timeout_seconds=60.0
    )
    assert infer(options).exit_code == 3
    os.utime(files["one"][0], ns=(5, 5))
    assert infer(options).exit_code == 3
    scans = read_table(tmp_path / "out", "scans").set_index("scan_id")
    assert scans["status"].to_dict() == {"one": "ok", "two": "ok", "pipe": "failed"}
    parts = [pq.read_table(path).to_pylist() for path in (tmp_path / "out" / "scans").glob("*.parquet")]
    assert {row["scan_id"]: row["attempt"] for rows in parts for row in rows} == {"one": 2, "two": 1, "pipe": 2}
    assert scans.loc["pipe"]["error_type"] == "AccessError"
    assert "pipe.tif is no regular file" in scans.loc["pipe"]["error_message"]


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Path]:
    """A file system with room for some parts only."""
    mount = tmp_path / "disk"
    mount.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(mount)], capture_output=True)
    if done.returncode:
        pytest.skip(f"a tmpfs cannot be mounted here: {done.stderr.decode().strip()}")
    yield mount
    subprocess.run(["umount", "-l", str(mount)], check=False)


def test_a_full_disk_ends_the_run_with_valid_tables_and_the_same_command_goes_on(
    tmp_path, small_disk, tiny_bundle, phantom_archive
):
    options = InferOptions(
        model=str(tiny_bundle), source=str(phantom_archive), out=str(small_disk / "out"), part_seconds=0.0
    )
    with pytest.raises(DiskFullError, match="no space left"):
        infer(options)
    done = assert_whole(small_disk / "out")
    assert 0 < done < 24
    subprocess.run(["mount", "-o", "remount,size=64m", str(small_disk)], check=True)
    result = infer(options)
    assert (result.scans_now, result.scans_ok) == (24 - done, 24)
    assert assert_whole(small_disk / "out") == 24


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[object, str]]:
    """A client of a local S3 server, and what its URIs end in."""
    boto3 = pytest.importorskip("boto3", reason="boto3 is not installed")
    moto_server = pytest.importorskip("moto.server", reason="moto is not installed")
    server = moto_server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    client = boto3.client("s3", endpoint_url=f"http://{host}:{port}", region_name="us-east-1")
    client.create_bucket(Bucket="lake")
    yield client, f"?endpoint_override={host}:{port}&scheme=http&region=us-east-1"
    server.stop()


def test_a_bucket_gives_the_same_tables_as_a_folder(tmp_path, bucket, tiny_bundle, phantom_archive):
    client, ending = bucket
    few = tmp_path / "few"
    for folder in sorted(phantom_archive.iterdir())[:6]:
        shutil.copytree(folder, few / folder.name)
    for file in sorted(few.rglob("*.tif")):
        client.upload_file(str(file), "lake", f"scans/{file.relative_to(few)}")
    local = InferOptions(model=str(tiny_bundle), source=str(few), out=str(tmp_path / "local"))
    remote = InferOptions(model=str(tiny_bundle), source=f"s3://lake/scans{ending}", out=f"s3://lake/out{ending}")
    assert infer(local).scans_ok == infer(remote).scans_ok == 6
    assert infer(remote).scans_now == 0
    keys = [item["Key"] for item in client.list_objects_v2(Bucket="lake", Prefix="out/")["Contents"]]
    for key in keys:
        target = tmp_path / "copy" / key
        target.parent.mkdir(parents=True, exist_ok=True)
        if not key.endswith("/"):
            client.download_file("lake", key, str(target))
    assert not [key for key in keys if "_staging" in key and key.endswith(".parquet")]
    assert_equal_tables(tmp_path / "copy" / "out", tmp_path / "local", except_columns=("source", "fingerprint"))
