"""Objects of a bucket that are replaced only where nobody else replaced them since: what pyarrow.fs cannot ask for.

S3 takes a condition with each object that is put: `If-None-Match: *`, where there must be none yet, and `If-Match` with
the ETag of the one that may be replaced. Of two machines that put on one condition the store lets one through.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from functools import cached_property
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from raysegment.errors import MissingExtraError, OutputError, UsageError
from raysegment.store.place import Place

NOTHING_DONE = frozenset({404, 409, 412})
"""What a store answers where an object is missing or just being replaced, or where a condition does not hold."""

NOT_IMPLEMENTED = 501


@dataclass(frozen=True)
class Version:
    """An object as it was when it was read.

    Attributes:
        data: Its bytes.
        etag: The store's mark of this content.
        age_seconds: Time since it was put, by the store's own clock, which all machines share.
    """

    data: bytes
    etag: str
    age_seconds: float


class ConditionalBucket:
    """Small objects of one bucket's folder that several machines replace.

    Args:
        place: The folder.

    Raises:
        UsageError: It is not in S3.
    """

    def __init__(self, place: Place) -> None:
        self.place = place
        parts = urlsplit(place.location)
        if parts.scheme != "s3":
            raise UsageError(
                f"{parts.scheme}://{parts.netloc}{parts.path}: only over S3's protocol are files put on a condition, "
                "without which two machines could both move the current result; expected s3:// or a folder."
            )
        self._bucket = parts.netloc
        self._options = dict(parse_qsl(parts.query))

    @cached_property
    def _client(self) -> Any:
        """Looks for credentials where pyarrow's file system does: environment, configuration, role of the machine."""
        try:
            import boto3
            from botocore.config import Config
        except ImportError:
            raise MissingExtraError(
                "a cohort's folder in a bucket needs boto3, because its current result is moved by a conditional put: "
                "pip install 'raysegment[bucket]'"
            ) from None
        endpoint = self._options.get("endpoint_override")
        # Checksums that boto3 adds by default are unknown to many stores beside Amazon's.
        config = Config(
            connect_timeout=10,
            read_timeout=30,
            retries={"max_attempts": 5, "mode": "standard"},
            s3={"addressing_style": "path"} if endpoint else {},
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
        )
        return boto3.client(
            "s3",
            region_name=self.place.filesystem.region,
            endpoint_url=f"{self._options.get('scheme', 'https')}://{endpoint}" if endpoint else None,
            verify=self._options.get("tls_ca_file_path"),
            config=config,
        )

    def read(self, name: str) -> Version | None:
        """An object with its mark; None where there is none.

        Raises:
            UsageError: There is no such bucket.
            OutputError: The storage does not answer, or refuses it.
        """
        answer = self._ask("get_object", name)
        if answer is None:
            return None
        age = parsedate_to_datetime(answer["ResponseMetadata"]["HTTPHeaders"]["date"]) - answer["LastModified"]
        return Version(answer["Body"], str(answer["ETag"]), max(0.0, age.total_seconds()))

    def write(self, name: str, data: bytes, replaces: str | None) -> str | None:
        """Put an object where it replaces the content that is known.

        Args:
            name: Of the object.
            data: Its bytes, which no other process would write.
            replaces: Mark of what it may replace; None where there must be nothing.

        Returns:
            Its mark; None where the store holds something else than what it may replace.

        Raises:
            UsageError: There is no such bucket.
            OutputError: The storage does not answer, or refuses it.
        """
        condition = {"IfNoneMatch": "*"} if replaces is None else {"IfMatch": replaces}
        answer = self._ask("put_object", name, Body=data, **condition)
        if answer is not None:
            return str(answer["ETag"])
        # An answer may be lost on its way; then the client asks again, and its own object is in the way.
        found = self.read(name)
        return found.etag if found is not None and found.data == data else None

    def check(self) -> None:
        """Make sure that the store keeps to conditions: one that ignores them lets everyone through.

        Raises:
            UsageError: It does not, or there is no such bucket.
            OutputError: The storage does not answer, or refuses files.
        """
        name = f"_probe-{uuid.uuid4().hex}"
        first = self.write(name, b"first", None)
        try:
            keeps_to_them = (
                first is not None
                and self.write(name, b"second", None) is None
                and self.write(name, b"second", f'"{uuid.uuid4().hex}"') is None
                and self.write(name, b"third", first) is not None
            )
        finally:
            self._ask("delete_object", name)
        if not keeps_to_them:
            raise self._without_conditions()

    def _ask(self, operation: str, name: str, **options: Any) -> dict[str, Any] | None:
        """The store's answer; None where it says that there is no such object, or that a condition does not hold."""
        client = self._client
        from botocore.exceptions import BotoCoreError, ClientError

        key = self.place.path(name).partition("/")[2]
        try:
            answer = dict(getattr(client, operation)(Bucket=self._bucket, Key=key, **options))
            if "Body" in answer:
                answer["Body"] = bytes(answer["Body"].read())
            return answer
        except ClientError as error:
            code = str(error.response.get("Error", {}).get("Code"))
            status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode")
            if code == "NoSuchBucket":
                raise UsageError(f"{self.place.location}: there is no bucket {self._bucket}.") from None
            if status == NOT_IMPLEMENTED:
                raise self._without_conditions() from None
            if status in NOTHING_DONE:
                return None
            raise self._refused(error) from None
        except (BotoCoreError, OSError) as error:
            raise self._refused(error) from None

    def _refused(self, error: Exception) -> OutputError:
        return OutputError(f"{self.place.location} cannot be used: {' '.join(str(error).split())[:200]}")

    def _without_conditions(self) -> UsageError:
        return UsageError(
            f"{self.place.location}: this store does not keep to the conditions If-None-Match and If-Match of an "
            "object that is put, so two machines could both move the current result. Choose a bucket of a store that "
            "does, or a folder."
        )
