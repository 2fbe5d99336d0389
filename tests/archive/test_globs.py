"""Scans by --channel and --reference."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from raysegment.archive.grouping.folders import Draft
from raysegment.archive.grouping.layouts import group_files
from raysegment.archive.grouping.naming import Naming, parse_channels, parse_references
from raysegment.archive.index import find_scans, summarise, warn_of_references
from raysegment.archive.walk import Folder, FoundFile
from raysegment.errors import UsageError
from raysegment.options import Finding


def group(
    *paths: str, channels: tuple[str, ...] = (), references: tuple[str, ...] = (), source_name: str = "source"
) -> tuple[dict[str, Draft], int]:
    """Scans by scan_id, and the number of masks without one."""
    folders: dict[str, Folder] = {}
    for path in paths:
        folder, _, name = path.rpartition("/")
        folders.setdefault(folder, Folder(folder)).files.append(FoundFile(name, 1, 1))
    naming = Naming(channels=parse_channels(channels), references=parse_references(references))
    drafts, lone = group_files(list(folders.values()), source_name, lambda _: (), naming)
    return {draft.scan_id: draft for draft in drafts}, lone


def names(drafts: dict[str, Draft]) -> dict[str, list[str]]:
    return {scan_id: draft.file_names for scan_id, draft in drafts.items()}


TWO_STYLES = (
    "A_1/A_1_flair.nii.gz",
    "A_1/A_1_t1.nii.gz",
    "A_1/A_1_t1ce.nii.gz",
    "A_1/A_1_seg.nii.gz",
    "b/Flair_norm.nii.gz",
    "b/T1c_norm.nii.gz",
    "b/OTMultiClass.nii.gz",
    "b/brainmask.nii.gz",
)


def test_globs_join_two_styles_of_names_and_leave_other_files_alone():
    drafts, lone = group(
        *TWO_STYLES,
        channels=("FLAIR={scan}/*flair*", "T1ce={scan}/*_t1ce*", "T1ce={scan}/T1c_*"),
        references=("{scan}/*_seg.nii.gz", "{scan}/OT*"),
    )
    assert names(drafts) == {
        "A_1": ["A_1/A_1_flair.nii.gz", "A_1/A_1_t1ce.nii.gz"],
        "b": ["b/Flair_norm.nii.gz", "b/T1c_norm.nii.gz"],
    }
    assert [draft.references[0][0] for draft in drafts.values()] == ["A_1/A_1_seg.nii.gz", "b/OTMultiClass.nii.gz"]
    assert {draft.channel_names for draft in drafts.values()} == {("FLAIR", "T1ce")}
    assert {draft.problem for draft in drafts.values()} == {None}
    assert lone == 0


def test_a_channel_without_a_file_or_with_two_is_a_problem():
    drafts, _ = group(
        "a/f.nii", "a/t1.nii", "b/f.nii", "c/f.nii", "c/t1.nii", "c/t1x.nii", channels=("f={scan}/f*", "t={scan}/t1*")
    )
    assert names(drafts) == {"a": ["a/f.nii", "a/t1.nii"], "b": ["b/f.nii", ""], "c": ["c/f.nii", ""]}
    assert drafts["b"].problem == "there is no file for channel t"
    assert drafts["c"].problem == "2 files fit channel t, c/t1.nii and c/t1x.nii"


def test_a_file_that_fits_two_channels_is_a_problem_of_both():
    drafts, _ = group("a/t1ce.nii", "a/f.nii", channels=("t1={scan}/t1*", "t1ce={scan}/t1ce*", "f={scan}/f*"))
    assert names(drafts) == {"a": ["", "", "a/f.nii"]}
    assert drafts["a"].problem.startswith("a/t1ce.nii fits the channels t1 and t1ce")


def test_one_file_for_all_channels_holds_them():
    drafts, _ = group("a.nii.gz", channels=("f={scan}.nii.gz", "t={scan}.nii.gz"))
    assert names(drafts) == {"a": ["a.nii.gz"]}
    assert drafts["a"].channel_names == ("f", "t")
    assert drafts["a"].problem is None


@pytest.mark.parametrize(
    ("path", "glob", "scan"),
    [
        ("HGG/p1/p1_flair.nii.gz", "{scan}/*_flair.nii.gz", "HGG/p1"),
        ("HGG/p1/p1_flair.nii.gz", "*/{scan}/*_flair.nii.gz", "p1"),
        ("HGG/p1/p1_flair.nii.gz", "{scan}_flair*", "HGG/p1/p1"),
        ("p1/p1_flair.nii", "{scan}/{scan}_flair.nii", "p1"),
        ("a/b/c/p1_FLAIR.NII", "**/{scan}_flair.nii", "p1"),
        ("p1_0000.nii.gz", "{scan}_000[0-3].nii.gz", "p1"),
        ("imagesTr/p1_0000.nii.gz", "./imagesTr/{scan}_????.nii.gz", "p1"),
        ("p1-flair.nii", "{scan}*flair.nii", "p1"),
        ("p1x.nii", "{scan}[!a-c].nii", "p1"),
    ],
)
def test_the_scan_is_what_the_glob_says(path, glob, scan):
    drafts, _ = group(path, channels=(f"f={glob}",))
    assert list(drafts) == [scan]


@pytest.mark.parametrize(
    ("path", "glob"),
    [("a/b/f.nii", "{scan}x/f.nii"), ("p2/p1_f.nii", "{scan}/{scan}_f.nii"), ("a+b.nii", "{scan}b+.nii")],
)
def test_globs_that_fit_nothing_are_refused(path, glob):
    with pytest.raises(UsageError, match="--channel f fits no file"):
        group(path, channels=(f"f={glob}",))


@pytest.mark.parametrize("text", ["flair", "={scan}/x", "flair=", "flair=*.nii", "flair=/a/{scan}", "f=../{scan}/x"])
def test_a_channel_that_is_no_glob_is_refused(text):
    with pytest.raises(UsageError, match="--channel"):
        parse_channels((text,))


def test_a_reference_without_scan_is_refused():
    with pytest.raises(
        UsageError, match=re.escape("--reference 'labels/*.nii' must be a glob below SOURCE with {scan}")
    ):
        parse_references(("labels/*.nii",))


def test_a_range_that_ends_before_it_begins_is_refused():
    with pytest.raises(UsageError, match=re.escape("--reference '{scan}[b-a]' is no glob: bad character range b-a")):
        parse_references(("{scan}[b-a]",))


@given(st.text("ab[]!?*\\^-&|~.{}()+$/", max_size=12))
@example("[?||]")
@example("[a--]")
def test_any_glob_is_understood_or_refused(text):
    try:
        (pattern,) = parse_references(("{scan}" + text,))
    except UsageError:
        return
    pattern.fullmatch("some/scan_a.nii")


@given(st.text("abc.+()$^-_ ", min_size=1, max_size=12))
def test_characters_without_a_meaning_stand_for_themselves(text):
    (pattern,) = parse_references(("{scan}/" + text.strip() + "x",))
    assert pattern.fullmatch("s/" + text.strip() + "x")["scan"] == "s"


def test_several_channels_of_slices_are_refused():
    with pytest.raises(UsageError, match=r"--channel r fits a_r\.tif; only volumes"):
        group("a_r.tif", "a_g.tif", channels=("r={scan}_r.tif", "g={scan}_g.tif"))


def test_references_of_a_layout_are_replaced_by_those_of_a_glob():
    drafts, lone = group(
        "imagesTr/a.nii.gz",
        "imagesTr/b.nii.gz",
        "labelsTr/a.nii.gz",
        "second/a.nii.gz",
        "second/c.nii.gz",
        references=("second/{scan}.nii.gz",),
    )
    assert {name: draft.references for name, draft in drafts.items()}["imagesTr/b.nii.gz"] == []
    assert drafts["imagesTr/a.nii.gz"].references[0][0] == "second/a.nii.gz"
    assert lone == 1


def test_references_that_fit_no_scan_are_refused_with_examples():
    with pytest.raises(
        UsageError, match=r"--reference fits x, of which none is a scan; \{scan\} must be one, such as a"
    ):
        group("a.nii", "x_ref.nii", references=("{scan}_ref.nii",))


def test_a_scan_pattern_and_channels_exclude_each_other(tmp_path):
    with pytest.raises(UsageError, match="both say what a scan is"):
        find_scans(str(tmp_path), Finding(scan_pattern="(a)", channel=("f={scan}.nii",)))


def test_all_three_real_cases_are_found_by_two_channels():
    folder = Path(os.environ.get("RAYSEGMENT_DATA", "missing")) / "brats"
    if not folder.is_dir():
        pytest.skip("RAYSEGMENT_DATA names no folder that holds brats/")
    table = find_scans(
        str(folder),
        Finding(
            channel=("FLAIR={scan}/*flair*", "T1ce={scan}/*_t1ce.nii.gz", "T1ce={scan}/T1c_*"),
            reference=("{scan}/*_seg.nii.gz", "{scan}/OTMultiClass*"),
        ),
    )
    assert table["scan_id"].to_pylist() == ["BraTS20_Training_001", "brats_2013_pat0001_1", "brats_2013_pat0002_1"]
    assert table["channels"].to_pylist() == [2, 2, 2]
    assert summarise(table).with_reference == 3
    assert summarise(table).problems == []


def test_references_that_take_all_files_or_none_are_told(tmp_path):
    (tmp_path / "a.nii.gz").write_bytes(b"")
    with pytest.raises(UsageError, match=r"fits all files, such as a.nii.gz, .* such as '\{scan\}/\*_seg.nii.gz'"):
        find_scans(str(tmp_path), Finding(reference=("{scan}",)))
    with pytest.raises(UsageError, match=r"such as '\{scan\}/\*_seg.nii.gz'"):
        find_scans(str(tmp_path), Finding(reference=("*_seg.nii.gz",)))
    found = find_scans(str(tmp_path), Finding(channel=("t1={scan}.nii.gz",), reference=("{scan}_seg.nii.gz",)))
    assert len(warn_of_references(found)) == 1
    assert warn_of_references(find_scans(str(tmp_path))) == []
