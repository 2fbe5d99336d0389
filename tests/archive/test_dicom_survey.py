"""Headers of many files in child processes: nothing of anybody's name comes back, and no file takes others with it."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest
from dicom_made import make_instance, make_series, make_uid, to_bytes, write_series

from raysegment.archive.dicom import survey, survey_child
from raysegment.archive.dicom.survey import SurveySettings, survey_files
from raysegment.archive.pseudonyms import Pseudonyms

KEY = Pseudonyms(b"k" * 32)
PLANTED = {
    "PatientID": "PLANTED-id",
    "PatientName": "PLANTED^name",
    "IssuerOfPatientID": "PLANTED-issuer",
    "PatientBirthDate": "19011231",
    "PatientComments": "PLANTED comments",
    "InstitutionName": "PLANTED institution",
    "OperatorsName": "PLANTED^operator",
    "SeriesDescription": "PLANTED description",
    "StudyDescription": "PLANTED study",
    "StudyDate": "20191231",
}
PIXELS = np.zeros((4, 6), np.int16)


def test_what_a_child_says_holds_no_identifier(tmp_path, monkeypatch):
    path = tmp_path / "a.dcm"
    path.write_bytes(to_bytes(make_instance(PIXELS, **PLANTED)))
    settings = SurveySettings(channels={"flair": ["planted*"], "t2": ["x"]})
    received = []
    receive = survey._Child._receive
    monkeypatch.setattr(
        survey._Child, "_receive", lambda self, *given: received.append(receive(self, *given)) or received[-1]
    )
    (found,) = survey_files(str(tmp_path), ["a.dcm"], settings, KEY)
    said = json.dumps(received)
    assert "PLANTED" not in said
    assert not [
        word for word in ("2.25.", "2019", "1231", make_uid("study")) if word in said.replace(found.instance, "")
    ]
    assert found.header is not None
    assert found.header.channels == ("flair",)
    assert found.header.series == KEY.hash("series", make_uid("study", "series"))
    assert found.header.patient == KEY.hash("patient", "PLANTED-id\\PLANTED-issuer")


def test_files_come_in_their_order_from_any_number_of_children(tmp_path, monkeypatch):
    names = write_series(tmp_path, make_series(np.zeros((9, 4, 6), np.int16)))
    expected = survey_files(str(tmp_path), names, SurveySettings(), KEY)
    monkeypatch.setattr(survey, "FILES_AT_ONCE", 2)
    assert survey_files(str(tmp_path), names, SurveySettings(), KEY) == expected
    assert [row.path for row in expected] == names
    # What files share is held once.
    assert len({id(row.header) for row in expected}) == 1


def test_a_file_on_which_the_child_dies_or_hangs_is_one_row(tmp_path, monkeypatch):
    names = write_series(tmp_path, make_series(np.zeros((3, 4, 6), np.int16)), names=["a.dcm", "c.dcm", "e.dcm"])
    for name in ("b.dcm", "d.dcm"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "hostile_child.py").write_text(
        "import os, time\n"
        "from raysegment.archive.dicom import survey_child\n"
        "read = survey_child.survey_file\n"
        "def survey_file(survey, path):\n"
        "    if path == 'b.dcm':\n"
        "        os.abort()\n"
        "    if path == 'd.dcm':\n"
        "        time.sleep(60)\n"
        "    return read(survey, path)\n"
        "survey_child.survey_file = survey_file\n"
        "survey_child.main()\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(survey, "CHILD_MODULE", "hostile_child")
    monkeypatch.setattr(survey, "TIMEOUT_SECONDS", 2.0)
    found = survey_files(str(tmp_path), sorted([*names, "b.dcm", "d.dcm"]), SurveySettings(), KEY)
    problems = {row.path: (row.problem or "").partition(": ")[0] for row in found}
    assert problems == {
        "a.dcm": "",
        "b.dcm": "DecoderCrashedError",
        "c.dcm": "",
        "d.dcm": "DecoderTimeoutError",
        "e.dcm": "",
    }


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.dcm", b"", "EmptyFileError"),
        ("a.dcm", b"\xff\xd8\xff\xe0" + b"\0" * 200, "UnknownFormatError"),
        ("a.dcm", to_bytes(make_instance(PIXELS))[:300], "TruncatedFileError"),
        ("IM1", to_bytes(make_instance(PIXELS))[:300], "TruncatedFileError"),
        ("IM1", b"", None),
        ("1.2.840.1", b"\xff\xd8\xff\xe0" + b"\0" * 200, None),
    ],
)
def test_what_is_no_dicom_is_told_where_its_name_claims_so(tmp_path, name, content, expected):
    (tmp_path / name).write_bytes(content)
    given = survey_child._parse_introduction(survey._introduce(str(tmp_path), SurveySettings(), KEY))
    answer = survey_child.survey_file(given, name)
    assert (answer and answer["problem"].partition(":")[0]) == expected


def test_a_file_that_is_not_there_is_an_error_of_access(tmp_path):
    given = survey_child._parse_introduction(survey._introduce(str(tmp_path), SurveySettings(), KEY))
    assert survey_child.survey_file(given, "gone.dcm") == {
        "problem": "AccessError: gone.dcm cannot be read: No such file or directory"
    }
    os.mkfifo(tmp_path / "pipe.dcm")
    assert survey_child.survey_file(given, "pipe.dcm") == {"problem": "AccessError: pipe.dcm is no regular file."}
