"""Which volumes make a scan: datasets in the layouts of the Decathlon and of nnU-Net."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raysegment.archive.dataset_json import channels_of_dataset
from raysegment.archive.grouping.folders import Draft
from raysegment.archive.grouping.layouts import group_files
from raysegment.archive.grouping.naming import Naming
from raysegment.archive.grouping.patients import assign_patients
from raysegment.archive.index import find_scans
from raysegment.archive.split import assign_splits
from raysegment.archive.walk import Folder, FoundFile
from raysegment.errors import UsageError


def group(
    *paths: str, channels: tuple[str, ...] = (), source_name: str = "source", naming: Naming | None = None
) -> dict[str, Draft]:
    """Scans by scan_id, as the layouts' rules have them."""
    folders: dict[str, Folder] = {}
    for path in paths:
        folder, _, name = path.rpartition("/")
        folders.setdefault(folder, Folder(folder)).files.append(FoundFile(name, 1, 1))
    drafts, _ = group_files(list(folders.values()), source_name, lambda _: channels, naming or Naming())
    return {draft.scan_id: draft for draft in drafts}


def references(drafts: dict[str, Draft]) -> dict[str, list[str]]:
    return {scan_id: [item[0] for item in draft.references if item] for scan_id, draft in drafts.items()}


def test_a_case_of_the_decathlon_is_its_file_and_its_own_patient():
    drafts = group("imagesTr/heart_01.nii.gz", "imagesTr/heart_02.nii.gz", "labelsTr/heart_01.nii.gz")
    assert references(drafts) == {
        "imagesTr/heart_01.nii.gz": ["labelsTr/heart_01.nii.gz"],
        "imagesTr/heart_02.nii.gz": [],
    }
    assert assign_patients(list(drafts.values())) == (["heart_01", "heart_02"], 2)


def test_channels_of_a_dataset_in_one_file_have_its_names():
    (draft,) = group("imagesTr/BRATS_001.nii.gz", channels=("FLAIR", "T1w", "t1gd", "T2w")).values()
    assert draft.channel_names == ("FLAIR", "T1w", "t1gd", "T2w")
    assert draft.file_names == ["imagesTr/BRATS_001.nii.gz"]


def test_numbers_of_four_digits_are_channels():
    drafts = group(
        "a/imagesTr/case_1_0000.nii.gz",
        "a/imagesTr/case_1_0001.nii.gz",
        "a/labelsTr/case_1.nii.gz",
        channels=("T1", "T2"),
    )
    (draft,) = drafts.values()
    assert references(drafts) == {"a/imagesTr/case_1": ["a/labelsTr/case_1.nii.gz"]}
    assert draft.file_names == ["a/imagesTr/case_1_0000.nii.gz", "a/imagesTr/case_1_0001.nii.gz"]
    assert draft.channel_names == ("T1", "T2")
    assert draft.patient == "case_1"
    assert draft.problem is None


def test_a_case_that_lacks_a_channel_has_an_empty_name_for_it_and_a_problem():
    drafts = group(
        "imagesTr/a_0000.nii.gz",
        "imagesTr/a_0001.nii.gz",
        "imagesTr/b_0001.nii.gz",
        "labelsTr/a.nii.gz",
        "labelsTr/b.nii.gz",
        channels=("T1", "T2"),
    )
    assert drafts["imagesTr/a"].problem is None
    assert drafts["imagesTr/b"].problem == "there is no file for channel T1"
    assert drafts["imagesTr/b"].file_names == ["", "imagesTr/b_0001.nii.gz"]


def test_two_files_for_one_channel_are_a_problem_and_none_is_taken():
    paths = ("imagesTr/a_0000.nii.gz", "imagesTr/a_0000.nii", "imagesTr/a_0001.nii", "labelsTr/a.nii")
    (draft,) = group(*paths, channels=("T1", "T2")).values()
    assert draft.file_names == ["", "imagesTr/a_0001.nii"]
    assert draft.problem == "2 files fit channel T1, imagesTr/a_0000.nii and imagesTr/a_0000.nii.gz"


def test_a_channel_that_the_dataset_does_not_know_is_a_problem():
    (draft,) = group("imagesTr/a_0000.nii.gz", "imagesTr/a_0002.nii", "labelsTr/a.nii", channels=("T1",)).values()
    assert draft.problem == "a file of it ends in 0002; there are channels 0000 to 0000"


def test_the_only_channel_of_nnunet_needs_no_name():
    (draft,) = group("imagesTr/a_0000.nii.gz", "labelsTr/a.nii.gz").values()
    assert (draft.scan_id, draft.channel_names, draft.file_names) == ("imagesTr/a", (), ["imagesTr/a_0000.nii.gz"])


def test_channels_without_a_name_are_counted():
    (draft,) = group("imagesTr/a_0000.nii.gz", "imagesTr/a_0001.nii.gz", "labelsTr/a.nii.gz").values()
    assert draft.channel_names == ("0", "1")


def test_numbers_of_four_digits_that_are_cases_stay_cases():
    paths = [f"imagesTr/liver_{number:04d}.nii.gz" for number in range(3)]
    assert list(group(*paths, "labelsTr/liver_0000.nii.gz")) == paths
    many = [f"imagesTs/liver_{number:04d}.nii.gz" for number in range(20)]
    assert list(group(*many)) == many


def test_images_to_test_on_have_neither_reference_nor_split():
    drafts = group(
        "imagesTr/a_0000.nii.gz", "labelsTr/a.nii.gz", "imagesTs/b_0000.nii.gz", "labelsTs/b.nii.gz", channels=("T1",)
    )
    assert references(drafts) == {"imagesTr/a": ["labelsTr/a.nii.gz"], "imagesTs/b": []}
    assert [draft.split for draft in drafts.values()] == [None, None]


def test_the_source_may_be_a_folder_of_images_itself():
    assert list(group("a_0000.nii.gz", "a_0001.nii.gz", source_name="imagesTs")) == ["a"]


def test_other_files_in_folders_of_a_dataset_are_grouped_as_ever():
    assert list(group("imagesTr/a_1.tif", "imagesTr/a_2.tif", "imagesTr/b.nii")) == ["imagesTr", "imagesTr/b.nii"]


def test_volumes_outside_of_datasets_are_scans_of_their_own():
    drafts = group(
        "p1/t_1.nii.gz",
        "p1/t_2.nii.gz",
        "p1/t_1_seg.nii.gz",
        "images/x.nii",
        "labels/x.nii.gz",
        "p2/y.nii",
        "p2/y_mask.nii.gz",
        "p2/z.nii",
        "p2/z_label.nii",
    )
    assert references(drafts) == {
        "images/x.nii": ["labels/x.nii.gz"],
        "p1/t_1.nii.gz": ["p1/t_1_seg.nii.gz"],
        "p1/t_2.nii.gz": [],
        "p2/y.nii": ["p2/y_mask.nii.gz"],
        "p2/z.nii": ["p2/z_label.nii"],
    }


FOUR = ("flair", "t1", "t1ce", "t2")


def test_brats_of_both_styles_has_the_same_four_channels():
    old = [f"HGG/B_001/B_001_{word}.nii.gz" for word in (*FOUR, "seg")]
    new = [f"BraTS-GLI-00005-001/BraTS-GLI-00005-001-{word}.nii.gz" for word in ("t1n", "t2f", "t1c", "t2w", "seg")]
    drafts = group(*old, *new)
    assert references(drafts) == {"HGG/B_001/B_001": [old[-1]], "BraTS-GLI-00005-001/BraTS-GLI-00005-001": [new[-1]]}
    assert {draft.channel_names for draft in drafts.values()} == {FOUR}
    assert drafts["HGG/B_001/B_001"].file_names == old[:-1]
    first = drafts["BraTS-GLI-00005-001/BraTS-GLI-00005-001"]
    assert [name[-10:-7] for name in first.file_names] == ["t2f", "t1n", "t1c", "t2w"]


def test_visits_of_a_patient_of_brats_are_of_that_patient():
    paths = [f"BraTS-GLI-00005-00{visit}-{word}.nii" for visit in range(2) for word in ("t1n", "t2f", "t1c", "t2w")]
    assert assign_patients(list(group(*paths).values())) == (["BraTS-GLI-00005"] * 2, 0)


def test_a_case_of_brats_that_lacks_a_channel_is_a_problem():
    drafts = group(*(f"a/a_{word}.nii" for word in FOUR), "b/b_t1.nii", "b/b_seg.nii")
    assert drafts["b/b"].file_names == ["", "b/b_t1.nii", "", ""]
    assert drafts["b/b"].problem.startswith("there is no file for channel flair; there is no file for channel t1ce")


def test_names_alone_that_end_like_contrasts_make_no_brats():
    assert list(group("p/x_t1.nii", "p/x_t2.nii")) == ["p/x_t1.nii", "p/x_t2.nii"]


def test_a_session_of_bids_is_a_scan_with_the_contrasts_that_all_have():
    drafts = group(
        "sub-01/ses-1/anat/sub-01_ses-1_T1w.nii.gz",
        "sub-01/ses-1/anat/sub-01_ses-1_FLAIR.nii.gz",
        "sub-01/ses-2/anat/sub-01_ses-2_T1w.nii.gz",
        "sub-01/ses-2/anat/sub-01_ses-2_FLAIR.nii.gz",
        "sub-02/anat/sub-02_T1w.nii.gz",
        "sub-02/anat/sub-02_FLAIR.nii.gz",
        "sub-02/anat/sub-02_T2w.nii.gz",
        "sub-02/func/sub-02_task-rest_bold.nii.gz",
        "derivatives/manual/sub-02/anat/sub-02_space-T1w_label-lesion_mask.nii.gz",
        "derivatives/manual/sub-02/anat/sub-02_desc-brain_mask.nii.gz",
        "derivatives/fmriprep/sub-02/anat/sub-02_desc-preproc_T1w.nii.gz",
        "derivatives/manual/sub-01/ses-2/anat/sub-01_ses-2_FLAIR_dseg.nii.gz",
    )
    assert references(drafts) == {
        "sub-01/ses-1/anat/sub-01_ses-1": [],
        "sub-01/ses-2/anat/sub-01_ses-2": ["derivatives/manual/sub-01/ses-2/anat/sub-01_ses-2_FLAIR_dseg.nii.gz"],
        "sub-02/anat/sub-02": ["derivatives/manual/sub-02/anat/sub-02_space-T1w_label-lesion_mask.nii.gz"],
        "sub-02/func/sub-02_task-rest_bold.nii.gz": [],
    }
    assert drafts["sub-02/anat/sub-02"].channel_names == ("FLAIR", "T1w")
    assert drafts["sub-02/anat/sub-02"].file_names == [f"sub-02/anat/sub-02_{name}.nii.gz" for name in ("FLAIR", "T1w")]
    assert drafts["sub-01/ses-1/anat/sub-01_ses-1"].patient == "sub-01"


def test_several_masks_of_a_session_are_noted_and_none_is_taken():
    (draft,) = group(
        "sub-1/anat/sub-1_T1w.nii", "sub-1/anat/sub-1_label-L_mask.nii", "derivatives/b/sub-1/sub-1_label-R_mask.nii"
    ).values()
    assert draft.references == []
    assert draft.note.startswith(
        "2 masks fit it, derivatives/b/sub-1/sub-1_label-R_mask.nii and sub-1/anat/sub-1_label"
    )


def test_sessions_of_bids_without_a_common_contrast_are_scans_file_by_file():
    drafts = group(
        "sub-1/anat/sub-1_T1w.nii",
        "sub-1/anat/sub-1_acq-high_T1w.nii",
        "sub-2/anat/sub-2_T2w.nii",
        "derivatives/m/sub-1/anat/sub-1_T1w_label-SC_seg.nii",
    )
    assert references(drafts) == {
        "sub-1/anat/sub-1_T1w.nii": ["derivatives/m/sub-1/anat/sub-1_T1w_label-SC_seg.nii"],
        "sub-1/anat/sub-1_acq-high_T1w.nii": [],
        "sub-2/anat/sub-2_T2w.nii": [],
    }
    assert [draft.patient for draft in drafts.values()] == ["sub-1", "sub-1", "sub-2"]


WORDS = ("imagesTr", "labelsTr", "imagesTs", "images", "labels", "sub-1", "anat", "derivatives", "train", "a")
NAMES = (
    *("a.nii.gz", "a.nii", "a_0000.nii.gz", "a_0001.nii.gz", "a_0003.nii", "b_1.tif", "b_2.tif", "b_1_mask.tif"),
    *(f"c_{word}.nii.gz" for word in (*FOUR, "seg")),
    *(f"sub-1_{word}.nii" for word in ("T1w", "FLAIR", "label-x_mask", "desc-brain_mask", "ses-2_T1w")),
    *("a_seg.nii.gz", "a_mask.nii.gz", "sub-.nii", "_0000.nii", ".nii"),
)
PATHS = st.builds(
    lambda folders, name: "/".join([*folders, name]),
    st.lists(st.sampled_from(WORDS), max_size=3),
    st.sampled_from(NAMES),
)


def test_of_two_masks_of_one_volume_the_same_is_taken_in_whatever_order_they_are_found():
    paths = ["a.nii.gz", "a_seg.nii.gz", "a_mask.nii.gz"]
    assert references(group(*paths)) == references(group(*reversed(paths))) == {"a.nii.gz": ["a_seg.nii.gz"]}


@settings(deadline=None)
@given(st.lists(PATHS, unique=True, min_size=1, max_size=25), st.randoms())
def test_any_files_become_scans_that_share_no_file_in_whatever_order_they_are_found(paths, random):
    drafts = group(*paths)
    held = [path for draft in drafts.values() for path, _ in draft.files]
    assert len(set(held)) == len(held)
    assert set(held) <= set(paths)
    assert all(len(draft.file_names) == len(draft.files) + len(draft.missing) for draft in drafts.values())
    assign_patients(list(drafts.values()))
    random.shuffle(paths)
    again = group(*paths)
    assert {name: (draft.file_names, draft.patient) for name, draft in again.items()} == {
        name: (draft.file_names, draft.patient) for name, draft in drafts.items()
    }
    assert references(again) == references(drafts)


def test_a_bucket_holds_datasets_too(tmp_path):
    for name in ("imagesTr/a_0000.nii.gz", "imagesTr/a_0001.nii.gz", "labelsTr/a.nii.gz"):
        (tmp_path / "set" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "set" / name).write_bytes(b"x")
    (tmp_path / "set" / "dataset.json").write_text(json.dumps({"channel_names": {"0": "T1", "1": "T2"}}))
    (row,) = find_scans(f"file://{tmp_path}").to_pylist()
    assert row["scan_id"] == "set/imagesTr/a"
    assert row["channel_names"] == ["T1", "T2"]
    assert row["reference_files"] == ["set/labelsTr/a.nii.gz"]


@pytest.mark.parametrize(
    ("dataset", "names"),
    [
        ({"channel_names": {"0": "T1", "1": "T2"}}, ("T1", "T2")),
        ({"modality": {"1": "T2", "0": "T1"}}, ("T1", "T2")),
        ({"modality": {"0": "MRI", "1": "MRI"}}, ("MRI_0", "MRI_1")),
        ({}, ()),
    ],
)
def test_channels_of_a_dataset_are_those_of_either_dialect(dataset, names):
    assert channels_of_dataset(dataset) == names


@pytest.mark.parametrize("channels", [{}, {"1": "T1"}, ["T1"], {"0": 1}, "T1"])
def test_channels_that_are_not_numbered_are_refused(channels):
    with pytest.raises(UsageError, match=r"dataset\.json: channel_names is"):
        channels_of_dataset({"channel_names": channels})


def test_the_hippocampus_joins_with_its_splits():
    folder = Path(os.environ.get("RAYSEGMENT_DATA", "missing"))
    if not (folder / "hippocampus").is_dir():
        pytest.skip("RAYSEGMENT_DATA names no folder that holds hippocampus/")
    table = find_scans(str(folder / "hippocampus"))
    assert table.num_rows == 200
    assert set(table["channel_names"].combine_chunks().flatten().to_pylist()) == {"MRI"}
    split = assign_splits(table, split_file=str(folder / "hippocampus-splits.json"))
    assert split.unknown == ()
    assert split.left_out == ()
    named = json.loads((folder / "hippocampus-splits.json").read_text())
    for side in ("train", "val"):
        rows = [row for row in split.table.to_pylist() if row["split"] == side]
        assert {row["patient_id"] for row in rows} == set(named[side])
        assert all(row["reference_files"] == [row["files"][0].replace("images", "labels")] for row in rows)


@pytest.mark.parametrize("folder", ["imagesTr/", "images/", "", "train/images/"])
def test_a_volume_is_one_patient_in_whatever_layout(folder):
    drafts = group(f"{folder}hippocampus_001.nii.gz", f"{folder}hippocampus_003.nii")
    assert assign_patients(list(drafts.values())) == (["hippocampus_001", "hippocampus_003"], 2)


def test_volumes_of_one_name_in_two_folders_are_two_patients():
    drafts = group("train/x.nii.gz", "test/x.nii.gz", "train/y.1.nii.gz", "imagesTr/z.nii.gz", "images/z.nii.gz")
    patients, _ = assign_patients(list(drafts.values()))
    assert dict(zip(drafts, patients, strict=True)) == {
        "train/x.nii.gz": "train/x",
        "test/x.nii.gz": "test/x",
        "train/y.1.nii.gz": "y.1",
        "imagesTr/z.nii.gz": "z",
        "images/z.nii.gz": "images/z",
    }


def test_images_that_are_no_volumes_are_patients_by_their_paths():
    drafts = group("images/x.tif", "images/y.png")
    assert assign_patients(list(drafts.values())) == (["images/x.tif", "images/y.png"], 2)


def test_a_folder_of_labels_alone_holds_masks_without_image(tmp_path):
    (tmp_path / "labelsTr").mkdir()
    for name in ("a", "b"):
        (tmp_path / "labelsTr" / f"{name}.nii.gz").write_bytes(b"")
    for source in (tmp_path, tmp_path / "labelsTr"):
        with pytest.raises(UsageError, match="2 files look like masks of images that are not there"):
            find_scans(str(source))
