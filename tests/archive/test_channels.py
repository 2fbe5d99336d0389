"""Channels by their names, in the order that a network was trained on."""

from __future__ import annotations

from dataclasses import replace

import pytest

from raysegment.archive.channels import most_common_names, order_channels
from raysegment.archive.manifest import entries, to_table
from raysegment.errors import UsageError
from raysegment.scan import ScanEntry

FOUR = ScanEntry(
    scan_id="a",
    patient_id="p",
    source="/scans",
    reader="nifti",
    files=("f.nii", "t1.nii", "t1ce.nii", "t2.nii"),
    channel_names=("flair", "t1", "t1ce", "t2"),
    channels=4,
)
TWO = replace(FOUR, scan_id="b", files=("c.nii", "f.nii"), channel_names=("T1ce", "FLAIR"), channels=2)
PLAIN = ScanEntry(scan_id="c", patient_id="q", source="/scans", reader="tiff", files=("x.tif",), channels=3)


def ordered(wanted: tuple[str, ...], *rows: ScanEntry) -> list[ScanEntry]:
    return list(entries(order_channels(to_table(rows), wanted)))


def test_files_are_put_in_the_wanted_order_and_others_left_out():
    first, second, third = ordered(("FLAIR", "T1ce"), FOUR, TWO, PLAIN)
    assert first.files == ("f.nii", "t1ce.nii")
    assert second.files == ("f.nii", "c.nii")
    assert first.channel_names == second.channel_names == ("FLAIR", "T1ce")
    assert (first.channels, first.problem) == (2, None)
    assert third == PLAIN


def test_series_of_slices_are_put_in_order_as_a_whole():
    series = replace(TWO, reader="dicom", files=("c/1", "c/2", "f/1", "f/2"))
    (entry,) = ordered(("flair", "t1ce"), series)
    assert entry.files == ("f/1", "f/2", "c/1", "c/2")
    (entry,) = ordered(("t1ce", "t2", "flair"), series)
    assert entry.files == ("c/1", "c/2", "", "", "f/1", "f/2")


def test_a_missing_channel_is_an_empty_name_and_a_problem():
    _, second = ordered(FOUR.channel_names, FOUR, TWO)
    assert second.files == ("f.nii", "", "c.nii", "")
    assert second.problem == "there is no file for channel t1, t2"


def test_numbers_and_single_channels_are_no_names():
    numbered = replace(TWO, channel_names=("0", "1"))
    single = replace(PLAIN, reader="nifti", channel_names=("MRI",))
    assert ordered(("FLAIR", "T1ce"), numbered, single) == [numbered, single]
    assert ordered(("0", "1"), TWO) == [TWO]
    assert ordered(("T1w",), single) == [single]


def test_scans_without_any_wanted_channel_are_wrong_usage():
    with pytest.raises(UsageError, match=r"the model sees the channels CT, PET; a has flair, t1, t1ce, t2\. Name"):
        ordered(("CT", "PET"), FOUR)


def test_channels_of_one_file_in_another_order_are_refused():
    with pytest.raises(UsageError, match="in one file"):
        ordered(("T1ce", "FLAIR"), replace(TWO, files=("all.nii",), channel_names=("FLAIR", "T1ce")))
    same = replace(TWO, files=("all.nii",))
    assert ordered(("t1ce", "flair"), same) == [same]


def test_the_most_common_names_count():
    assert most_common_names(to_table([FOUR, TWO, replace(TWO, scan_id="d"), PLAIN])) == ("T1ce", "FLAIR")
    assert most_common_names(to_table([PLAIN])) == ()
