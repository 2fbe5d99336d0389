"""An S3 server on this machine, for tests of what lies in buckets."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "x",
    "AWS_SECRET_ACCESS_KEY": "x",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}


@dataclass
class LocalBucket:
    """A bucket `lake`.

    Attributes:
        client: Of boto3.
        ending: What URIs of the bucket end in.
    """

    client: Any
    ending: str

    def uri(self, key: str) -> str:
        return f"s3://lake/{key}{self.ending}"

    def keys(self, prefix: str = "") -> list[str]:
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket="lake", Prefix=prefix)
        found = [item["Key"] for page in pages for item in page.get("Contents", [])]
        return [key for key in found if not key.endswith("/")]

    def read(self, key: str) -> bytes:
        return bytes(self.client.get_object(Bucket="lake", Key=key)["Body"].read())

    def upload(self, folder: Path, prefix: str) -> None:
        for file in sorted(folder.rglob("*")):
            if file.is_file():
                self.client.upload_file(str(file), "lake", f"{prefix}/{file.relative_to(folder)}")

    def remove(self, prefix: str) -> None:
        for key in self.keys(prefix):
            self.client.delete_object(Bucket="lake", Key=key)


@contextmanager
def serve_bucket() -> Iterator[LocalBucket]:
    """Start the server; it ends with the block."""
    boto3 = pytest.importorskip("boto3", reason="boto3 is not installed")
    moto_server = pytest.importorskip("moto.server", reason="moto is not installed")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in CREDENTIALS.items():
            patch.setenv(name, value)
        server = moto_server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        server.start()
        try:
            host, port = server.get_host_and_port()
            client = boto3.client("s3", endpoint_url=f"http://{host}:{port}", region_name="us-east-1")
            client.create_bucket(Bucket="lake")
            bucket = LocalBucket(client, f"?endpoint_override={host}:{port}&scheme=http&region=us-east-1")
            # All servers of a process share what they hold.
            bucket.remove("")
            yield bucket
        finally:
            server.stop()
