"""DICOM archives: what is wrong is a row with its type, what is no scan is counted, what belongs together is joined."""

from __future__ import annotations

import json
import os
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from dicom_made import AXIAL, change, make_enhanced, make_instance, make_series, make_uid, place, to_bytes
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence as Items
from pydicom.tag import Tag

from raysegment.archive.channels import order_channels
from raysegment.archive.dicom import survey, survey_child
from raysegment.archive.dicom.survey import SurveySettings
from raysegment.archive.fingerprint import renew_fingerprints
from raysegment.archive.grouping.dicom_series import find_series
from raysegment.archive.grouping.naming import Naming
from raysegment.archive.index import find_scans, summarise
from raysegment.archive.manifest import entries
from raysegment.archive.pseudonyms import Pseudonyms
from raysegment.archive.read import read_scan
from raysegment.archive.walk import FoundFile
from raysegment.errors import ScanError, UsageError, parse_scan_error
from raysegment.options import Finding

SEGMENTATION = "1.2.840.10008.5.1.4.1.1.66.4"
CLASSES = {
    "localizer": {"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]},
    "secondary capture": {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.7"},
    "presentation state": {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.11.1", "PixelData": None},
    "report": {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.88.11", "PixelData": None},
    "rtstruct": {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.481.3", "PixelData": None},
    "segmentation by raysegment": {"SOPClassUID": SEGMENTATION, "ManufacturerModelName": "raysegment"},
}
PLANTED = "PLANTED"


def volume(slices: int = 5, rows: int = 4, columns: int = 6) -> np.ndarray:
    return np.arange(slices * rows * columns, dtype=np.int16).reshape(slices, rows, columns)


def segmentation(series: str, number: int = 1, **values: object) -> Dataset:
    """A file that says which series it was drawn on."""
    made = make_instance(np.zeros((3, 4, 6), np.uint8), series=f"seg {series} {number}", SOPClassUID=SEGMENTATION)
    item = Dataset()
    item.SeriesInstanceUID = make_uid("study", series)
    made.ReferencedSeriesSequence = Items([item])
    return change(made, **values)


def write(path: Path, *made: Dataset | bytes) -> None:
    path.mkdir(parents=True, exist_ok=True)
    for number, one in enumerate(made):
        (path / f"{number}.dcm").write_bytes(one if isinstance(one, bytes) else to_bytes(one))


def phases(name: str) -> list[Dataset]:
    first, second = (make_series(volume(), series=name) for _ in range(2))
    return first + [change(made, SOPInstanceUID=make_uid("later", index)) for index, made in enumerate(second)]


def copies_with_another_size(name: str) -> list[Dataset]:
    """Two slices, and both again with a text of another length: nobody knows which are right."""
    first, second = (make_series(volume(2), series=name) for _ in range(2))
    return first + [change(made, ImageComments="changed") for made in second]


def without_patient(name: str) -> list[Dataset]:
    """Six slices of which every second names no patient: two half volumes, were it not for their series."""
    made = make_series(volume(6), series=name)
    return [change(one, PatientID=None) if index % 2 else one for index, one in enumerate(made)]


def of_two_studies(name: str) -> list[Dataset]:
    made = make_series(volume(6), series=name)
    return [change(one, StudyInstanceUID=make_uid("another")) if index > 3 else one for index, one in enumerate(made)]


def mixed_places() -> list[Dataset]:
    made = make_series(volume(), series="mixed places")
    change(made[2], ImagePositionPatient=None)
    return made


def tilted() -> list[Dataset]:
    affine = AXIAL.copy()
    affine[1, 0] = 0.5
    return make_series(volume(), affine, series="tilt")


@pytest.fixture(scope="module")
def key(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("key") / "key"
    path.write_bytes(bytes(32))
    return str(path)


@pytest.fixture(scope="module")
def archive(tmp_path_factory, key) -> tuple[Path, pa.Table]:
    """One folder for each kind of trouble, and the manifest of all."""
    root = tmp_path_factory.mktemp("archive")
    planted = {"PatientName": PLANTED, "PatientComments": PLANTED, "SeriesDescription": PLANTED, "PatientID": PLANTED}
    series = make_series(volume(), series="missing", **planted)
    write(root / "missing", *(series[:2] + series[3:]))
    write(root / "phases", *phases("phases"))
    write(root / "copies", *copies_with_another_size("copies"))
    change(last := make_instance(volume(1, 5, 6)[0], series="shapes", number=9), **place(AXIAL, 5))
    write(root / "shapes", *make_series(volume(), series="shapes"), last)
    write(root / "some placed", *mixed_places())
    write(root / "two patients", *without_patient("two patients"))
    write(root / "two studies", *of_two_studies("two studies"))
    write(root / "tilt", *tilted())
    write(root / "jpeg", b"\xff\xd8\xff\xe0" + bytes(200))
    write(root / "empty", b"")
    write(root / "truncated", to_bytes(make_instance(volume(1)[0], series="truncated"))[:400])
    write(root / "no pixels", make_instance(volume(1)[0], series="no pixels", PixelData=None))
    write(root / "frames", make_instance(volume(1)[0], series="frames", NumberOfFrames=str(2**31)))
    write(root / "views", *(make_instance(volume(1)[0], series="views", number=number) for number in (1, 2)))
    write(root / "enhanced", make_enhanced(volume(), order=[3, 1, 4, 0, 2], series="enhanced"))
    write(root / "good", *make_series(volume(), series="good"))
    write(root / "good" / "seg", segmentation("good"))
    write(root / "twice", *make_series(volume(), series="twice"))
    write(root / "twice" / "seg", segmentation("twice"), segmentation("twice", 2))
    write(root / "lone", segmentation("gone"))
    for number, (kind, values) in enumerate(CLASSES.items()):
        write(root / "others" / kind, make_instance(volume(1)[0], series=kind, number=number, **values))
    for name in ("DICOMDIR", "1.2.840.113619.2.55", "IM0001", "IM0002.mr"):
        instance = make_instance(volume(1)[0], series=f"name {name}")
        if name == "DICOMDIR":
            change(instance, SOPClassUID="1.2.840.10008.1.3.10", PixelData=None)
        write(root / "names")
        (root / "names" / name).write_bytes(to_bytes(instance))
    for name in ("README", "LICENSE.2", "x.mr"):
        (root / "names" / name).write_bytes(b"no scan at all" * 20)
    return root, find_scans(str(root), Finding(key_file=key))


def rows_below(archive: tuple[Path, pa.Table], folder: str) -> list[dict]:
    return [row for row in archive[1].to_pylist() if row["scan_id"].startswith(f"{folder}/")]


@pytest.mark.parametrize(
    ("folder", "expected", "words"),
    [
        ("missing", "MissingSliceError", "1 of its slices is missing"),
        ("phases", "DuplicateSliceError", "2 slices at each of 5 positions"),
        ("copies", "DuplicateSliceError", "2 of its 4 files are copies of others"),
        ("shapes", "SliceMismatchError", "slices of different sizes: 5 of 4 x 6 x 1, 1 of 5 x 6 x 1"),
        ("some placed", "SliceMismatchError", "1 of its 5 files do not say where they lie"),
        ("two patients", "SliceMismatchError", "files of one series name 2 patients (3 and 3 files each; a missing"),
        ("two studies", "SliceMismatchError", "files of one series name 2 studies (4 and 2 files each; a missing"),
        ("jpeg", "UnknownFormatError", "jpeg/0.dcm"),
        ("empty", "EmptyFileError", "empty/0.dcm has no bytes"),
        ("truncated", "TruncatedFileError", "truncated/0.dcm"),
        ("no pixels", "UnreadableFileError", "has no pixel data"),
        ("frames", "OversizedScanError", "frames/0.dcm declares 2147483648 frames"),
    ],
)
def test_what_is_wrong_is_a_row_with_its_type_and_its_reading_fails_so(archive, folder, expected, words):
    (row,) = rows_below(archive, folder)
    assert row["problem"].startswith(f"{expected}: ")
    assert words in row["problem"]
    (entry,) = (entry for entry in entries(archive[1]) if entry.scan_id == row["scan_id"])
    with pytest.raises(ScanError) as caught:
        read_scan(entry)
    assert type(caught.value) is type(parse_scan_error(row["problem"]))


def test_a_tilt_is_told_and_read(archive):
    (row,) = rows_below(archive, "tilt")
    # Half a millimetre to the side on three millimetres of way.
    assert "a gantry tilted by 9.46 degrees" in row["problem"]
    (entry,) = (entry for entry in entries(archive[1]) if entry.scan_id == row["scan_id"])
    assert read_scan(entry).grid == (5, 4, 6)


def test_no_problem_holds_the_text_of_a_header(archive):
    assert PLANTED not in str(archive[1].to_pylist())
    assert make_uid("study")[5:] not in str(archive[1].to_pylist())


def test_images_without_a_position_are_scans_of_their_own(archive):
    rows = rows_below(archive, "views")
    assert [row["files"] for row in rows] in ([["views/0.dcm"], ["views/1.dcm"]], [["views/1.dcm"], ["views/0.dcm"]])
    assert [row["problem"] for row in rows] == [None, None]


def test_frames_of_one_file_are_its_slices(archive):
    (row,) = rows_below(archive, "enhanced")
    assert (row["height"], row["width"], row["files"], row["problem"]) == (4, 6, ["enhanced/0.dcm"], None)


def test_what_is_no_scan_is_counted_by_kind(archive):
    assert summarise(archive[1]).dicom_left_alone == {kind: 1 for kind in (*CLASSES, "DICOMDIR")}
    assert not rows_below(archive, "others")


def test_a_segmentation_is_the_reference_of_the_series_that_it_names(archive):
    (row,) = rows_below(archive, "good")
    assert row["reference_files"] == ["good/seg/0.dcm"]
    assert summarise(archive[1]).masks_without_image == 1


def test_of_two_segmentations_none_is_taken_unless_one_is_named(archive, key):
    (row,) = rows_below(archive, "twice")
    assert row["reference_files"] == []
    assert row["problem"] == (
        "2 masks fit it, twice/seg/0.dcm and twice/seg/1.dcm; name the right one with --reference"
    )
    named = find_scans(str(archive[0] / "twice"), Finding(key_file=key, reference=("{scan}/1.dcm",)))
    assert named["reference_files"].to_pylist() == [["seg/1.dcm"]]


def test_names_without_an_extension_or_with_digits_are_looked_into(archive):
    files = sorted(name for row in rows_below(archive, "names") for name in row["files"])
    assert files == ["names/1.2.840.113619.2.55", "names/IM0001", "names/IM0002.mr"]


def test_an_archive_is_found_the_same_each_time(archive, key):
    again = find_scans(str(archive[0]), Finding(key_file=key))
    assert again.equals(archive[1])
    assert renew_fingerprints(again, "stat")["fingerprint"] == archive[1]["fingerprint"]


def test_modalities_that_are_not_wanted_are_left_alone(tmp_path, key):
    write(tmp_path / "a", *make_series(volume(), series="a", modality="CT"))
    write(tmp_path / "b", *make_series(volume(), series="b", modality="MR"))
    table = find_scans(str(tmp_path), Finding(key_file=key, modality=("mr", "PT")))
    assert [files[0] for files in table["files"].to_pylist()] == ["b/0.dcm"]
    assert summarise(table).dicom_left_alone == {"image of another modality": 5}
    with pytest.raises(UsageError, match=r"no scans found .* Of DICOM there are: image of another modality: 10\."):
        find_scans(str(tmp_path), Finding(key_file=key, modality=("US",)))


def test_a_file_that_two_links_lead_to_is_read_once(tmp_path, key):
    write(tmp_path / "a", *make_series(volume(), series="a"))
    os.symlink(tmp_path / "a", tmp_path / "again")
    os.link(tmp_path / "a" / "0.dcm", tmp_path / "0.dcm")
    table = find_scans(str(tmp_path), Finding(key_file=key))
    (row,) = table.to_pylist()
    assert row["problem"] is None
    assert len(row["files"]) == 5
    assert summarise(table).dicom_left_alone == {"file that is reached over another link too": 6}


def test_a_study_beside_its_own_zip_and_copy_is_taken_once_and_keeps_its_name(tmp_path, key):
    files = {f"{index}.dcm": to_bytes(made) for index, made in enumerate(make_series(volume(), series="a"))}
    write(tmp_path / "study", *files.values(), segmentation("a"))
    alone = find_scans(str(tmp_path), Finding(key_file=key)).to_pylist()
    with zipfile.ZipFile(tmp_path / "a study.zip", "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    write(tmp_path / "study copied", *files.values(), segmentation("a"))
    table = find_scans(str(tmp_path), Finding(key_file=key))
    assert table.to_pylist() == alone
    assert alone[0]["problem"] is None
    assert alone[0]["reference_files"] == ["study/5.dcm"]
    assert summarise(table).dicom_left_alone == {"copy of another file": 11}


def test_other_scans_beside_dicom_stay_as_they_are(tmp_path, key, write_series):
    write_series(tmp_path / "slices", "x_")
    alone = find_scans(str(tmp_path)).to_pylist()
    write(tmp_path / "d", *make_series(volume(), series="a"))
    both = find_scans(str(tmp_path), Finding(key_file=key)).to_pylist()
    assert alone[0] in both
    assert [row["reader"] for row in both] == ["dicom", "tiff"]


def test_nothing_is_opened_where_names_tell(tmp_path, monkeypatch):
    (tmp_path / "x.tif").write_bytes(b"II*\0")
    opened = []
    monkeypatch.setattr("raysegment.archive.dicom.find.open_file", lambda *given: opened.append(given))
    monkeypatch.setattr("raysegment.archive.dicom.find.load_pseudonyms", lambda *given: opened.append(given))
    assert find_scans(str(tmp_path)).num_rows == 1
    assert opened == []


CHANNELS = Naming(series={"t1": ("t1*",), "flair": ("flair*",)})


def group(made: list[Dataset], names: list[str], naming: Naming) -> list:
    """The drafts of files that lie nowhere, without child processes."""
    pseudonyms = Pseudonyms(bytes(32))
    asked = SurveySettings(channels=naming.series, modalities=naming.modalities)
    given = survey_child._parse_introduction(survey._introduce("", asked, pseudonyms))
    shared: dict = {}
    rows = []
    for name, instance in zip(names, made, strict=True):
        try:
            parsed = survey_child.parse_instance(to_bytes(instance), name)
        except ScanError as error:
            answer = survey_child._problem(error)
        else:
            answer = survey_child.describe_instance(given, parsed, name)
        rows.append(survey._row(name, json.loads(json.dumps(answer)), shared))
    files = {name: FoundFile(name, 1, 1) for name in names}
    return find_series(rows, files, naming, pseudonyms).drafts


@settings(max_examples=20, deadline=None)
@given(
    names=st.permutations([f"{number}.dcm" for number in range(7)]),
    numbers=st.permutations(range(7)),
    affine=st.sampled_from([AXIAL, AXIAL @ np.diag([-1.0, 1, 1, 1]), AXIAL[[2, 0, 1, 3]]]),
)
def test_slices_lie_in_order_whatever_names_and_numbers_say(names, numbers, affine):
    made = make_series(volume(7), affine, series="s")
    for instance, number in zip(made, numbers, strict=True):
        instance.InstanceNumber = str(number)
    (draft,) = group(made, names, Naming())
    # Along the normal, which is the cross product of the directions of rows and columns.
    normal = np.cross(made[0].ImageOrientationPatient[:3], made[0].ImageOrientationPatient[3:])
    depths = {name: np.dot(one.ImagePositionPatient, normal) for name, one in zip(names, made, strict=True)}
    assert draft.file_names == sorted(names, key=depths.__getitem__)
    assert draft.problem is None


NUMBERS = st.sampled_from(["1", "0", "-1", "2.5", "1e200", "1e308", "-1e308", "1e-320", "x"])


@pytest.mark.filterwarnings("error::RuntimeWarning")
@settings(max_examples=60, deadline=None)
@given(
    positions=st.lists(st.lists(NUMBERS, min_size=3, max_size=3), min_size=2, max_size=2),
    orientation=st.lists(NUMBERS, min_size=6, max_size=6),
    spacing=st.lists(NUMBERS, min_size=2, max_size=2),
    are_axial=st.booleans(),
)
def test_numbers_that_no_scanner_writes_are_problems_and_no_failure(positions, orientation, spacing, are_axial):
    made = make_series(volume(4), SeriesDescription="t1")
    for instance, position in zip(made[1:3], positions, strict=True):
        _plant(instance, 0x00200032, position)
        _plant(instance, 0x00280030, spacing)
        if not are_axial:
            _plant(instance, 0x00200037, orientation)
    # Once alone and once as one of several that might share its grid.
    for naming in (Naming(), CHANNELS):
        drafts = group(made, ["1", "2", "3", "4"], naming)
        assert drafts
        for draft in drafts:
            assert draft.header is None or np.isfinite(draft.header.affine).all()


def _plant(instance: Dataset, tag: int, texts: list[str]) -> None:
    """Set an element to numbers that pydicom would refuse."""
    value = "\\".join(texts).encode()
    instance[tag] = RawDataElement(Tag(tag), "DS", len(value), value + b" " * (len(value) % 2), 0, False, True)


def test_files_that_name_no_series_are_scans_of_their_own():
    made = [
        change(one, SeriesInstanceUID=None, StudyInstanceUID=None) for one in make_series(volume(2), PatientID=None)
    ]
    drafts = group(made, ["a/1", "a/2"], Naming())
    assert sorted(draft.file_names for draft in drafts) == [["a/1"], ["a/2"]]
    assert len({draft.scan_id for draft in drafts}) == len({draft.patient for draft in drafts}) == 2


def test_slices_without_the_size_of_a_pixel_lie_in_order_too():
    made = [change(one, PixelSpacing=None) for one in make_series(volume(3))]
    (draft,) = group(made, ["2", "3", "1"], Naming())
    assert draft.file_names == ["2", "3", "1"]
    assert draft.header.spacing_mm is None


def study(*series: tuple[str, dict]) -> tuple[list[Dataset], list[str]]:
    """The files of several series of one study, and their names."""
    made, names = [], []
    for name, values in series:
        given = {"slices": 3, "affine": AXIAL, **values}
        slices, affine = given.pop("slices"), given.pop("affine")
        made += make_series(volume(slices), affine, series=name, SeriesDescription=name, **given)
        names += [f"{name}/{index}" for index in range(slices)]
    return made, names


MOVED = AXIAL + np.array([[0, 0, 0, 40.0]] + [[0.0] * 4] * 3)


def test_series_of_one_study_frame_and_grid_are_the_channels_of_one_scan():
    (draft,) = group(*study(("t1 a", {}), ("FLAIR", {}), ("dwi", {})), CHANNELS)
    assert draft.channel_names == ("t1", "flair")
    assert draft.file_names == [f"{name}/{index}" for name in ("t1 a", "FLAIR") for index in range(3)]
    assert draft.problem is None


@pytest.mark.parametrize(
    "values", [{"study": "other"}, {"frame": "other"}, {"affine": MOVED}, {"slices": 4}, {"patient": "other"}]
)
def test_series_that_differ_in_study_frame_or_grid_are_other_scans(values):
    drafts = group(*study(("t1", {}), ("flair", values)), CHANNELS)
    assert len({draft.scan_id for draft in drafts}) == 2
    assert sorted(draft.missing for draft in drafts) == [(0,), (1,)]
    hint = " (one of its study lies on another grid or in another frame of reference)"
    assert sorted(draft.problem for draft in drafts) == [
        f"MissingChannelError: there is no series for channel {name}{'' if 'study' in values else hint}"
        for name in ("flair", "t1")
    ]
    assert sorted(map(tuple, (draft.file_names[:1] for draft in drafts))) == [("",), ("t1/0",)]


def test_two_scans_of_one_study_keep_their_names_when_a_third_comes():
    two = group(*study(("t1 a", {}), ("t1 b", {"slices": 4})), CHANNELS)
    three = group(*study(("t1 a", {}), ("t1 b", {"slices": 4}), ("flair", {}), ("t1 c", {"slices": 5})), CHANNELS)
    assert {draft.scan_id.rpartition("/")[2] for draft in two} < {draft.scan_id.rpartition("/")[2] for draft in three}
    # Of one size and frame at several places too, whichever comes last.
    places = [{"affine": AXIAL + np.eye(4)[:, :1] * [0, 0, 0, 40.0 * number]} for number in range(4)]
    series = [(f"t1 {number}", place) for number, place in enumerate(places)]
    everything = {draft.scan_id.rpartition("/")[2] for draft in group(*study(*series), CHANNELS)}
    assert len(everything) == 4
    for left_out in range(4):
        fewer = group(*study(*(one for number, one in enumerate(series) if number != left_out)), CHANNELS)
        assert {draft.scan_id.rpartition("/")[2] for draft in fewer} < everything


def test_a_scan_keeps_its_name_when_slices_and_another_channel_arrive():
    (before,) = group(*study(("t1", {})), CHANNELS)
    (after,) = group(*study(("t1", {"slices": 5})), CHANNELS)
    assert before.scan_id == after.scan_id
    (both,) = group(*study(("t1", {}), ("flair", {})), CHANNELS)
    assert before.scan_id == f"t1/{both.scan_id}"


def test_of_two_series_for_a_channel_none_is_taken():
    (draft,) = group(*study(("t1 a", {}), ("t1 b", {}), ("flair", {})), CHANNELS)
    assert draft.problem is not None
    assert draft.problem.startswith("MissingChannelError: 2 series fit channel t1, t1 a/")
    assert draft.file_names == ["", "", "", "flair/0", "flair/1", "flair/2"]


def test_a_series_that_fits_two_channels_is_neither():
    naming = Naming(series={"one": ("t1*",), "two": ("*a",), "three": ("flair",)})
    (draft,) = group(*study(("t1 a", {}), ("flair", {})), naming)
    assert "fits the channels one and two" in draft.problem
    assert draft.missing == (0, 1)


def test_a_channel_with_a_gap_is_missing_in_the_scan_that_it_belongs_to():
    made, names = study(("t1", {}), ("flair", {"slices": 6}), ("dwi", {}))
    del made[5], names[5]
    (draft,) = group(made, names, CHANNELS)
    assert draft.missing == (1,)
    assert "the series of channel flair cannot be used (MissingSliceError: flair/" in draft.problem


def test_channels_come_in_the_order_of_the_model_with_all_their_files(tmp_path, key):
    made, names = study(("t1", {}), ("flair", {}), ("dwi", {}))
    for name, instance in zip(names, made, strict=True):
        write(tmp_path / name.replace("/", "-"), instance)
    how = Finding(key_file=key, channel=("t1=t1", "flair=flair", "dwi=dwi"))
    found = order_channels(find_scans(str(tmp_path), how), ("Flair", "t2", "T1"))
    (row,) = found.to_pylist()
    order = [f"{name}-{index}/0.dcm" for name in ("flair", "t1") for index in range(3)]
    assert row["files"] == [*order[:3], "", "", "", *order[3:]]
    (entry,) = entries(found)
    with pytest.raises(ScanError, match=r"has no file of channel t2\."):
        read_scan(entry)


def test_days_of_a_patient_are_moved_together(key):
    made, names = study(("a", {"StudyDate": "20200131"}), ("b", {"StudyDate": "20200305", "study": "later"}))
    first, second = (draft.scan_date for draft in group(made, names, Naming()))
    assert abs((second - first).days) == 34
    assert {first.year, second.year} != {2020}


@pytest.mark.parametrize(
    ("channel", "words"),
    [
        (("t1=*T1*", "flair={scan}/*_flair.nii.gz"), "expected one kind"),
        (("t1=", "flair=*FLAIR*"), "is no channel"),
        (("t1=*T1*",), "no series of SOURCE fits t1"),
    ],
)
def test_channels_that_nothing_can_fit_are_refused(tmp_path, key, channel, words):
    write(tmp_path, *make_series(volume(), series="flair"))
    with pytest.raises(UsageError, match=words):
        find_scans(str(tmp_path), Finding(key_file=key, channel=channel))


def test_globs_of_descriptions_need_dicom(tmp_path, key, write_series):
    write_series(tmp_path, "x_")
    with pytest.raises(UsageError, match=r"SOURCE holds no DICOM; globs of files have \{scan\} in them"):
        find_scans(str(tmp_path), Finding(key_file=key, channel=("flair=*.nii.gz",)))


def test_a_manifest_of_channels_is_read_back_and_a_missing_one_fails(tmp_path, key):
    for series in ("t1", "flair"):
        names = ["t1", "flair"] if series == "t1" else ["flair"]
        for name in names:
            write(tmp_path / series / name, *make_series(volume(), series=name, study=series))
    from raysegment.archive.manifest import read_manifest, write_manifest

    table = find_scans(str(tmp_path), Finding(key_file=key, channel=("t1=t1", "flair=flair")))
    write_manifest(table, str(tmp_path / "m.csv"))
    found = {entry.problem: entry for entry in entries(read_manifest(str(tmp_path / "m.csv")))}
    scan = read_scan(found[None])
    assert scan.pixels.shape == (5, 4, 6, 2)
    with pytest.raises(ScanError, match="has no file of channel t1"):
        read_scan(found["MissingChannelError: there is no series for channel t1"])
