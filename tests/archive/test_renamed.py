from __future__ import annotations

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raysegment.archive.grouping.folders import draft_scans
from raysegment.archive.manifest import to_table
from raysegment.archive.renamed import find_renamed
from raysegment.archive.walk import Folder, FoundFile
from raysegment.scan import ScanEntry

SOURCE = "/archives/one"


def table_of(*paths: str, source: str = SOURCE, changed: str = "") -> pa.Table:
    """The manifest of an archive with these files; the fingerprint is their names, and `changed`."""
    folders: dict[str, Folder] = {}
    for path in paths:
        folder, _, name = path.rpartition("/")
        folders.setdefault(folder, Folder(folder)).files.append(FoundFile(name, 1, 1))
    drafts, _ = draft_scans(folders.values(), "one")
    entries = []
    for draft in drafts:
        files = tuple(path for path, _ in draft.files)
        mark = changed + "|".join(files)
        entries.append(ScanEntry(scan_id=draft.scan_id, patient_id="p", source=source, reader="tiff", files=files))
        entries[-1] = ScanEntry(**{**vars(entries[-1]), "fingerprint": mark})
    return to_table(entries)


def series(name: str, *numbers: int) -> list[str]:
    return [f"{name}{number}.tif" for number in numbers]


def renamed(before: pa.Table, after: pa.Table, *, source: str = SOURCE, limit: int | None = None) -> list[str]:
    wanted = after if limit is None else after.slice(0, limit)
    return find_renamed(source, wanted, after, before).to_pylist()


ONE = series("p/a_", 1, 2)


@pytest.mark.parametrize("changed", ["", "other times"])
@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        (ONE, ONE + series("p/b_", 1, 2), ["p"]),
        (ONE + series("p/b_", 1, 2), ONE, ["p/a"]),
        (["p/a_1.tif"], ONE, ["p/a_1.tif"]),
        (ONE, ["p/a_1.tif"], ["p"]),
        (series("a_", 1, 2), series("a_", 1, 2) + series("b_", 1, 2), ["one"]),
        (ONE + series("q/a_", 1, 2), ONE, []),
        (ONE, ["p/overview.tif"], []),
        (ONE, [*ONE, "p/overview.tif"], []),
    ],
)
def test_rows_go_whose_slices_have_another_name_and_no_others(before, after, expected, changed):
    assert renamed(table_of(*before), table_of(*after, changed=changed)) == expected


def test_rows_of_another_source_and_of_scans_beyond_the_limit_stay():
    both = ONE + series("p/b_", 1, 2)
    assert renamed(table_of(*ONE, source="/archives/two"), table_of(*both)) == []
    before = table_of(*ONE, *series("q/a_", 1, 2))
    after = table_of(*both, *series("q/a_", 1, 2))
    assert renamed(before, after, limit=1) == ["p"]
    assert renamed(before, table_of("o.tif", *both), limit=1) == []


def test_in_a_manifest_only_the_fingerprint_tells():
    before, after = table_of(*ONE), table_of(*ONE, *series("p/b_", 1, 2))
    assert renamed(before, after, source="m.parquet") == ["p"]
    assert renamed(before, table_of(*ONE, *series("p/b_", 1, 2), changed="x"), source="m.parquet") == []


FILES = st.lists(
    st.builds(
        "{}{}{}.tif".format, st.sampled_from(["p/", "q/", ""]), st.sampled_from(["a_", "b_", ""]), st.integers(1, 4)
    ),
    min_size=1,
    max_size=8,
    unique=True,
)


@settings(deadline=None, max_examples=300)
@given(before=FILES, after=FILES)
def test_no_slice_that_is_still_there_stands_twice(before, after):
    old, new = table_of(*before), table_of(*after)
    gone = renamed(old, new)
    files_of = {row["scan_id"]: set(row["files"]) for row in old.to_pylist()}
    files_of = {name: files for name, files in files_of.items() if name not in gone}
    files_of |= {row["scan_id"]: set(row["files"]) for row in new.to_pylist()}
    stand = [path for files in files_of.values() for path in files if path in after]
    assert sorted(stand) == sorted(after)
