"""Parts: whole scans staged together by a worker, and the receipt that tells the driver of them."""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from raysegment.store.place import Place
from raysegment.store.schema import SCHEMAS, STATUS_FAILED

STAGING = "_staging"
MAX_FAILURES_SHOWN = 20


@dataclass(frozen=True)
class ScanRows:
    """What the tables get for one scan.

    Attributes:
        scan: Row of `scans`.
        metrics: Rows of `metrics`, one per label; none for a failed scan.
        mask: Row of `masks`; None for a failed scan.
    """

    scan: Mapping[str, Any]
    metrics: tuple[Mapping[str, Any], ...] = ()
    mask: Mapping[str, Any] | None = None

    @property
    def scan_id(self) -> str:
        return str(self.scan["scan_id"])

    @property
    def is_failed(self) -> bool:
        return bool(self.scan["status"] == STATUS_FAILED)

    @property
    def num_bytes(self) -> int:
        return 1000 + (len(self.mask["mask"]) if self.mask else 0)


@dataclass(frozen=True)
class Failure:
    """One failed scan, as it is shown to the user."""

    scan_id: str
    error_type: str
    message: str


@dataclass(frozen=True, kw_only=True)
class PartReceipt:
    """A staged part, ready to be published.

    Attributes:
        name: File name of the part, the same in all tables.
        scan_ids: Scans in it.
        num_slices: Slices of the ok ones.
        failed: Failed ones by type of error.
        failures: The first of them.
        num_bytes: Size of its files.
        seconds_stage: Time to write them.
    """

    name: str
    scan_ids: tuple[str, ...]
    num_slices: int
    failed: Counter[str]
    failures: list[Failure]
    num_bytes: int
    seconds_stage: float


@dataclass
class OpenPart:
    """Rows that wait for their part to close: at a size, or some time after its first scan.

    Args:
        place: The output folder.
        folder: Where to stage, such as `_staging/3-1f2e`.
        max_bytes: Size at which the part is due.
        max_seconds: Time after the first scan at which it is due.
        clock: Monotonic clock in seconds.
        tables: Those that the part has a file in.
    """

    place: Place
    folder: str
    max_bytes: float
    max_seconds: float
    clock: Callable[[], float] = time.monotonic
    rows: list[ScanRows] = field(default_factory=list)
    num_bytes: int = 0
    opened: float = 0.0
    tables: tuple[str, ...] = tuple(SCHEMAS)

    def add(self, rows: ScanRows) -> None:
        """Take the rows of one scan."""
        if not self.rows:
            self.opened = self.clock()
        self.rows.append(rows)
        self.num_bytes += rows.num_bytes

    @property
    def is_due(self) -> bool:
        """Whether it is time to close."""
        if not self.rows:
            return False
        return self.num_bytes >= self.max_bytes or self.clock() - self.opened >= self.max_seconds

    def close(self) -> PartReceipt | None:
        """Stage all rows as one part; None where there are none.

        Raises:
            DiskFullError: The rows could not be written.
        """
        if not self.rows:
            return None
        rows, self.rows, self.num_bytes = self.rows, [], 0
        return stage_part(self.place, self.folder, rows, self.tables)


def stage_part(
    place: Place, folder: str, rows: list[ScanRows], tables: tuple[str, ...] = tuple(SCHEMAS)
) -> PartReceipt:
    """Write rows as one part below the staging folder, under a name that comes from the scans."""
    started = time.perf_counter()
    name = name_part(folder, [row.scan_id for row in rows])
    content = {
        "masks": [row.mask for row in rows if row.mask is not None],
        "metrics": [metric for row in rows for metric in row.metrics],
        "scans": [row.scan for row in rows],
    }
    num_bytes = 0
    for table in tables:
        written = pa.Table.from_pylist(content[table], schema=SCHEMAS[table])
        # Masks are compressed already.
        compression = "none" if table == "masks" else "zstd"
        num_bytes += place.write_table(f"{folder}/{table}/{name}", written, compression=compression)
    failed, failures = count_failures(rows)
    return PartReceipt(
        name=name,
        scan_ids=tuple(row.scan_id for row in rows),
        num_slices=sum(int(row.scan["num_slices"]) for row in rows if not row.is_failed),
        failed=failed,
        failures=failures,
        num_bytes=num_bytes,
        seconds_stage=time.perf_counter() - started,
    )


def name_part(folder: str, scan_ids: list[str]) -> str:
    """File name of a part: the attempt it was made in, and a hash of its scans."""
    digest = hashlib.sha256("\0".join(scan_ids).encode("utf-8", "surrogateescape")).hexdigest()
    return f"{folder.rpartition('/')[2]}-{digest[:16]}.parquet"


def count_failures(rows: list[ScanRows]) -> tuple[Counter[str], list[Failure]]:
    """Failed scans by type of error, and the first of them."""
    failed = [row.scan for row in rows if row.is_failed]
    shown = [Failure(row["scan_id"], row["error_type"], row["error_message"]) for row in failed[:MAX_FAILURES_SHOWN]]
    return Counter(str(row["error_type"]) for row in failed), shown
