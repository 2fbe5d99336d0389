"""What every undisturbed or disturbed run must have in common."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

TABLES = ("scans", "metrics", "masks")


def read_table(out: Path, table: str) -> pd.DataFrame:
    """All parts of a table, sorted by scan and label, without what may differ between equal runs."""
    parts = [pd.read_parquet(path) for path in sorted((out / table).glob("*.parquet"))]
    frame = pd.concat(parts) if parts else pd.DataFrame({"scan_id": []})
    kept = [name for name in frame.columns if not name.startswith("seconds_") and name != "attempt"]
    order = [name for name in ("scan_id", "label") if name in kept]
    return frame[kept].sort_values(order, ignore_index=True)


def assert_whole(out: Path, *, num_labels: int = 1) -> int:
    """Every scan is in a table at most once, in metrics once a label, and each done one is in all of them.

    Returns how many are in the table of scans.
    """
    frames = {table: read_table(out, table) for table in TABLES}
    for table, frame in frames.items():
        rows = num_labels if table == "metrics" else 1
        assert (frame["scan_id"].value_counts() == rows).all(), table
        assert not frame.duplicated([name for name in ("scan_id", "label") if name in frame]).any(), table
    if not len(frames["scans"]):
        return 0
    done = set(frames["scans"][frames["scans"]["status"] == "ok"]["scan_id"])
    assert done <= set(frames["metrics"]["scan_id"])
    assert done <= set(frames["masks"]["scan_id"])
    return len(frames["scans"])


def assert_equal_tables(out: Path, expected: Path, *, except_columns: tuple[str, ...] = ()) -> None:
    """Both folders hold the same rows, mask for mask."""
    for table in TABLES:
        ours, theirs = (
            read_table(folder, table).drop(columns=[*except_columns], errors="ignore") for folder in (out, expected)
        )
        columns = [name for name in theirs.columns if theirs[name].map(lambda value: hasattr(value, "tolist")).any()]
        for frame in (ours, theirs):
            for name in columns:
                frame[name] = frame[name].map(lambda value: value if value is None else value.tolist())
        pd.testing.assert_frame_equal(ours, theirs, check_dtype=False)
