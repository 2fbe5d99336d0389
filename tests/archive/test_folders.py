from __future__ import annotations

import pytest

from raysegment.archive.grouping.folders import draft_scans, former_names
from raysegment.archive.walk import Folder, FoundFile


def scan_ids(*paths: str) -> dict[str, list[str]]:
    """Files by scan_id, as the layout's rules have it."""
    folders: dict[str, Folder] = {}
    for path in paths:
        folder, _, name = path.rpartition("/")
        folders.setdefault(folder, Folder(folder)).files.append(FoundFile(name, 1, 1))
    drafts, _ = draft_scans(folders.values(), "source")
    return {draft.scan_id: [path for path, _ in draft.files] for draft in drafts}


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (["p/a_1.tif", "p/a_2.tif"], ["p/a_1.tif", "p/a_2.tif", "p/b_1.tif", "p/b_2.tif"]),
        (["p/a_1.tif"], ["p/a_1.tif", "p/a_2.tif"]),
        (["a_1.tif", "a_2.tif"], ["a_1.tif", "a_2.tif", "b_1.tif", "b_2.tif"]),
        (["p/1.tif", "p/2.tif"], ["p/1.tif", "p/2.tif", "p/b 1.tif", "p/b 2.tif"]),
    ],
)
def test_former_names_are_those_that_the_layout_gave_before(before, after):
    for earlier, later in ((scan_ids(*before), scan_ids(*after)), (scan_ids(*after), scan_ids(*before))):
        for scan_id, files in earlier.items():
            holders = [name for name, held in later.items() if set(held) & set(files)]
            assert all(scan_id == name or scan_id in former_names(later[name], "source") for name in holders)


def test_a_single_image_is_not_taken_for_the_series_of_its_folder():
    assert former_names(["p/overview.png"], "source") == {"p/overview.png"}
