from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raysegment.runs.bids_names import BidsSource, name_scans, read_bids_source, safe_labels

NAME = re.compile(
    r"sub-([A-Za-z0-9]+)/(?:ses-([A-Za-z0-9]+)/)?anat/sub-\1(?:_ses-\2)?(?:_[a-z]+-[A-Za-z0-9]+)*_desc-raysegment_dseg"
)


def path_of(*files: str) -> str:
    source = read_bids_source(files)
    assert source is not None
    return name_scans({"scan": "p"}, {"scan": source})["scan"].path()


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (["sub-01/anat/sub-01_T1w.nii.gz"], "sub-01/anat/sub-01_space-orig_desc-raysegment_dseg"),
        (
            [
                "sub-1/ses-2/anat/sub-1_ses-2_acq-a_ce-gad_run-1_T1w.nii",
                "sub-1/ses-2/anat/sub-1_ses-2_acq-a_T2w.nii.gz",
            ],
            "sub-1/ses-2/anat/sub-1_ses-2_acq-a_space-orig_desc-raysegment_dseg",
        ),
        # Entities that the standard has not for label maps are told in acq; space and chunk stand where it has them.
        (
            ["sub-1/anat/sub-1_acq-a_inv-2_chunk-3_MP2RAGE.nii.gz"],
            "sub-1/anat/sub-1_acq-ainv2_space-orig_chunk-3_desc-raysegment_dseg",
        ),
        (
            ["sub-1/anat/sub-1_space-MNI_desc-preproc_T1w.nii.gz"],
            "sub-1/anat/sub-1_space-MNI_desc-raysegment_dseg",
        ),
    ],
    ids=["one file", "two contrasts", "others in acq", "a derivative"],
)
def test_names_keep_what_all_files_of_a_scan_share(files, expected):
    assert path_of(*files) == expected


@pytest.mark.parametrize(
    "path",
    [
        "sub-01/anat/sub-02_T1w.nii.gz",
        "sub-01/ses-1/anat/sub-01_T1w.nii.gz",
        "sub-01/anat/sub-01_ses-1_T1w.nii.gz",
        "sub-01/func/sub-01_bold.nii.gz",
        "sub-01/anat/sub-01_T1w.dcm",
        "sub-0_1/anat/sub-0_1_T1w.nii.gz",
        "imagesTr/case.nii.gz",
    ],
)
def test_other_files_are_of_no_dataset(path):
    assert read_bids_source([path]) is None


def test_files_of_several_contrasts_that_are_scans_of_their_own_are_told_apart():
    files = [f"sub-01/anat/sub-01_{contrast}.nii.gz" for contrast in ("T1w", "T2w")]
    sources = {path: read_bids_source([path]) for path in files}
    names = name_scans(dict.fromkeys(files, "sub-01"), sources)
    assert [names[path].path() for path in files] == [
        f"sub-01/anat/sub-01_space-orig_desc-raysegment{contrast}_dseg" for contrast in ("T1w", "T2w")
    ]


def test_subjects_of_several_datasets_are_named_by_patient_and_scan():
    source = BidsSource("", "01", "", (), "T1w", ("sub-01/anat/sub-01_T1w.nii.gz",))
    there = BidsSource("b/", "01", "", (), "T1w", ("sub-01/anat/sub-01_T1w.nii.gz",))
    names = name_scans({"a": "sub-01", "c": "sub-01"}, {"a": source, "c": there})
    assert names["a"].subject == names["c"].subject == "01"
    assert names["a"].session != names["c"].session


def test_a_patient_is_never_taken_for_a_subject_of_the_dataset():
    source = BidsSource("", "ab", "", (), "", ("sub-ab/anat/sub-ab_T1w.nii.gz",))
    names = name_scans({"x": "sub-ab", "y": "AB", "z": "ab"}, {"x": source})
    assert names["x"].subject == "ab"
    assert len({name.subject.lower() for name in names.values()}) == 3


def test_a_series_of_dicom_or_a_pseudonymised_scan_is_a_session_of_its_hash():
    names = name_scans({"study/0123456789ab": "00ff00ff00ff00ff", "0123456789abcdef": "00ff00ff00ff00ff"}, {})
    assert names["study/0123456789ab"].path().startswith("sub-00ff00ff00ff00ff/ses-0123456789ab/anat/")
    assert names["0123456789abcdef"].session == "0123456789abcdef"


@settings(max_examples=40, deadline=None)
@given(st.dictionaries(st.text(min_size=1), st.text(min_size=1), min_size=1, max_size=8))
def test_names_are_of_the_standard_and_differ_whatever_scans_and_patients_are_called(patients):
    names = name_scans(patients, {})
    paths = [name.path() for name in names.values()]
    assert all(NAME.fullmatch(path) for path in paths)
    assert len({path.lower() for path in paths}) == len(patients)
    by_patient = {patient: names[scan_id].subject.lower() for scan_id, patient in patients.items()}
    assert len(set(by_patient.values())) == len(set(patients.values()))
    assert {names[scan_id].subject.lower() for scan_id in patients} == set(by_patient.values())


@settings(max_examples=40, deadline=None)
@given(st.lists(st.text(min_size=1), unique=True))
def test_labels_stay_different(texts):
    words = safe_labels(texts)
    assert len({word.lower() for word in words.values()}) == len(texts)
    assert all(re.fullmatch(r"[A-Za-z0-9]+", word) for word in words.values())
