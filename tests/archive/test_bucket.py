from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from raysegment.archive.decoder import Decoder
from raysegment.archive.index import find_scans, summarise
from raysegment.archive.manifest import entries, read_manifest, write_manifest
from raysegment.errors import AccessError, UsageError
from raysegment.options import Finding

boto3 = pytest.importorskip("boto3", reason="boto3 is not installed")
moto_server = pytest.importorskip("moto.server", reason="moto is not installed")


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[object, str]]:
    """A client of a local S3 server, and the URI of a bucket in it."""
    for name, value in {
        "AWS_ACCESS_KEY_ID": "x",
        "AWS_SECRET_ACCESS_KEY": "x",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    server = moto_server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    client = boto3.client("s3", endpoint_url=f"http://{host}:{port}", region_name="us-east-1")
    client.create_bucket(Bucket="archive")
    yield client, f"s3://archive/scans?endpoint_override={host}:{port}&scheme=http&region=us-east-1"
    server.stop()


def upload(client, folder: Path) -> None:
    for file in sorted(folder.rglob("*")):
        if file.is_file():
            client.upload_file(str(file), "archive", f"scans/{file.relative_to(folder)}")


def test_a_bucket_gives_the_same_scans_and_pixels_as_a_folder(bucket, tmp_path, write_series):
    client, uri = bucket
    write_series(tmp_path / "p 1", "p_", slices=11)
    write_series(tmp_path / "p2", "p2_", slices=2)
    (tmp_path / "p2" / "p2_2.tif").write_bytes(b"")
    upload(client, tmp_path)
    local, remote = find_scans(str(tmp_path)), find_scans(uri)
    differing = ["source", "fingerprint"]
    assert remote.drop_columns(differing).equals(local.drop_columns(differing))
    assert set(remote["source"].to_pylist()) == {uri}
    assert summarise(remote).problems == [("p2", "p2/p2_2.tif has no bytes")]
    near, far = list(entries(local))[1], list(entries(remote))[1]
    with Decoder() as decoder:
        expected, found = decoder.read(near, with_reference=True), decoder.read(far, with_reference=True)
    np.testing.assert_array_equal(found.scan.pixels, expected.scan.pixels)
    np.testing.assert_array_equal(found.reference, expected.reference)


def test_manifests_are_kept_in_buckets_too(bucket, tmp_path, write_series):
    client, uri = bucket
    write_series(tmp_path / "p1", "p_")
    upload(client, tmp_path)
    table = find_scans(uri)
    path = uri.replace("scans?", "m.parquet?")
    write_manifest(table, path)
    assert find_scans(path).equals(table)
    with pytest.raises(UsageError, match="does not exist"):
        read_manifest(path.replace("m.parquet", "gone.parquet"))


def test_contents_of_a_bucket_are_hashed_as_those_of_a_folder(bucket, tmp_path, write_series, monkeypatch):
    client, uri = bucket
    write_series(tmp_path / "p1", "p_")
    upload(client, tmp_path)
    monkeypatch.setattr("raysegment.archive.filesystem.HASH_BYTES", 100)
    tables = [find_scans(source, Finding(fingerprint="content")) for source in (str(tmp_path), uri)]
    near, far = ({entry.scan_id: entry.fingerprint for entry in entries(table)}["p1"] for table in tables)
    assert near == far


def test_a_vanished_object_is_an_access_error(bucket, tmp_path, write_series):
    client, uri = bucket
    write_series(tmp_path / "p1", "p_")
    upload(client, tmp_path)
    entry = next(entries(find_scans(uri)))
    client.delete_object(Bucket="archive", Key="scans/p1/p_2.tif")
    with Decoder() as decoder, pytest.raises(AccessError, match=r"p1/p_2\.tif"):
        decoder.read(entry)


def test_a_missing_bucket_and_an_empty_one_are_wrong_usage(bucket):
    _, uri = bucket
    with pytest.raises(UsageError, match="SOURCE s3://gone"):
        find_scans(uri.replace("archive/scans", "gone/scans"))


@pytest.mark.parametrize("uri", ["s3://key:h1dden@archive/scans", "s3://archive/scans?secret_key=h1dden&scheme=http"])
def test_passwords_in_uris_are_refused_and_not_repeated(uri):
    with pytest.raises(UsageError) as caught:
        find_scans(uri)
    assert "h1dden" not in str(caught.value)
