"""What a DICOM file declares, against pydicom's reading of it; damaged and absurd ones end in errors of the scan."""

from __future__ import annotations

import io
import os
import struct
import time
from pathlib import Path

import numpy as np
import pydicom
import pytest
from dicom_made import AXIAL, change, make_enhanced, make_instance, make_series, make_uid, to_bytes
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence as Items
from pydicom.uid import ExplicitVRBigEndian, ImplicitVRLittleEndian

from raysegment.archive.dicom.elements import read_elements
from raysegment.archive.dicom.header import check_complete, parse_instance
from raysegment.errors import (
    AffineError,
    OversizedScanError,
    ScanError,
    TruncatedFileError,
    UnknownFormatError,
    UnreadableFileError,
)

VOLUME = np.arange(4 * 5 * 6, dtype=np.int16).reshape(4, 5, 6)


def parse(made):
    return parse_instance(to_bytes(made), "scan.dcm")


def test_an_image_says_whose_it_is_and_where_it_lies():
    found = parse(make_series(VOLUME, AXIAL, modality="CT", patient="P-7", study="s", series="t1")[2])
    assert (found.kind, found.modality, found.description, found.patient) == ("image", "CT", "t1", "P-7")
    assert (found.study, found.series, found.sop) == (make_uid("s"), make_uid("s", "t1"), make_uid("s", "t1", 3))
    assert (found.rows, found.columns, found.frames, found.channels, found.dtype) == (5, 6, 1, 1, np.int16)
    assert (found.pixel_spacing, found.thickness, found.orientation) == ((2.0, 1.0), 3.0, (1, 0, 0, 0, 1, 0))
    assert found.positions.tolist() == [[-20.0, -30.0, -4.0]]
    assert (found.number, found.date, found.is_own, found.referenced_series) == (3, "20200131", False, ())


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRBigEndian], ids=["implicit", "big endian"])
def test_every_plain_encoding_says_the_same(syntax):
    made = make_enhanced(VOLUME, RescaleSlope=[1, 2, 3, 4], RescaleIntercept=0)
    made.file_meta.TransferSyntaxUID = syntax
    found = parse(made)
    assert found.positions[:, 2].tolist() == [-10, -7, -4, -1]
    assert found.pixels.rescale == ((1, 0), (2, 0), (3, 0), (4, 0))
    assert (found.rows, found.frames, found.thickness) == (5, 4, 3.0)


@pytest.mark.parametrize("share", [(), ("orientation", "measures", "rescale")], ids=["of each frame", "shared"])
def test_groups_of_frames_may_be_shared(share):
    found = parse(make_enhanced(VOLUME, order=[2, 0, 3, 1], share=share, RescaleSlope=2, RescaleIntercept=-1))
    assert found.positions[:, 2].tolist() == [-4, -10, -1, -7]
    assert found.orientations.tolist() == [[1, 0, 0, 0, 1, 0]] * 4
    assert (found.pixel_spacing, found.pixels.rescale) == ((2.0, 1.0), ((2, -1),))


@pytest.mark.parametrize(
    ("stored", "slope", "intercept", "expected"),
    [
        ("u1", 1, 0, "u1"),
        ("u2", 1, 0, "u2"),
        ("i2", 1, 0, "i2"),
        ("u1", 1, -1, "i2"),
        ("u1", -1, 0, "i2"),
        ("u2", 1, -1024, "i4"),
        ("i2", 0.5, 0, "f4"),
        ("u2", 1, 0.25, "f4"),
        ("u2", 1e12, 0, "f4"),
    ],
)
def test_rescaled_values_stay_whole_where_they_are(stored, slope, intercept, expected):
    made = make_instance(np.zeros((2, 3), stored), RescaleSlope=str(slope), RescaleIntercept=str(intercept))
    assert parse(made).dtype == np.dtype(expected)


def test_twelve_bits_with_an_intercept_fit_into_sixteen():
    made = make_instance(np.zeros((2, 3), "u2"), BitsStored=12, HighBit=11, RescaleSlope="1", RescaleIntercept="-1024")
    assert parse(made).dtype == np.int16


@pytest.mark.parametrize(
    ("sop_class", "kind"),
    [
        ("1.2.840.10008.5.1.4.1.1.88.11", "report"),
        ("1.2.840.10008.5.1.4.1.1.104.1", "report"),
        ("1.2.840.10008.5.1.4.1.1.11.1", "presentation state"),
        ("1.2.840.10008.5.1.4.1.1.7", "secondary capture"),
        ("1.2.840.10008.5.1.4.1.1.7.4", "secondary capture"),
        ("1.2.840.10008.5.1.4.1.1.481.3", "rtstruct"),
        ("1.2.840.10008.5.1.4.1.1.481.2", "other"),
        ("1.2.840.10008.5.1.4.1.1.66.4", "segmentation"),
        ("1.2.840.10008.5.1.4.1.1.66", "other"),
        ("1.2.840.10008.5.1.4.1.1.128", "image"),
        ("1.2.840.10008.5.1.4.1.1.4.2", "other"),
        ("1.2.840.10008.5.1.4.1.1.4.3", "image"),
        ("1.2.840.10008.5.1.4.1.1.77.1.5.3", "other"),
        ("1.2.840.10008.5.1.4.1.1.77.1.5.2", "image"),
        ("1.2.3.4", "image"),
    ],
)
def test_what_a_file_is_goes_by_its_class(sop_class, kind):
    assert parse(make_instance(VOLUME[0], SOPClassUID=sop_class)).kind == kind


def test_localizers_are_told_by_their_type():
    assert parse(make_instance(VOLUME[0], ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])).kind == "localizer"


def test_objects_that_are_no_images_need_no_pixels():
    made = make_instance(VOLUME[0], SOPClassUID="1.2.840.10008.5.1.4.1.1.88.11", PixelData=None, Rows=None)
    assert parse(made).rows == 0


@pytest.mark.parametrize("number", ["4.2", "77.1.5.3"], ids=["spectra", "stereo pairs"])
def test_spectra_and_pairs_of_pictures_are_no_scans_without_pixels(number):
    made = make_instance(VOLUME[0], SOPClassUID=f"1.2.840.10008.5.1.4.1.1.{number}", PixelData=None, BitsAllocated=None)
    assert parse(made).kind == "other"


def test_a_segmentation_names_what_it_was_drawn_on():
    made = make_enhanced(VOLUME.astype(np.uint8), SOPClassUID="1.2.840.10008.5.1.4.1.1.66.4")
    made.SOPClassUID = "1.2.840.10008.5.1.4.1.1.66.4"
    made.ManufacturerModelName = "raysegment"
    series, inner = Dataset(), Dataset()
    series.SeriesInstanceUID = "1.2.3"
    inner.ReferencedSOPInstanceUID = "1.2.3.1"
    series.ReferencedInstanceSequence = Items([inner])
    made.ReferencedSeriesSequence = Items([series])
    source, derivation = Dataset(), Dataset()
    source.ReferencedSOPInstanceUID = "1.2.3.2"
    derivation.SourceImageSequence = Items([source])
    made.PerFrameFunctionalGroupsSequence[1].DerivationImageSequence = Items([derivation])
    found = parse(made)
    assert (found.kind, found.is_own, found.referenced_series) == ("segmentation", True, ("1.2.3",))
    assert found.referenced_instances == ("1.2.3.1", "1.2.3.2")


def test_texts_come_in_their_own_alphabet():
    made = make_instance(VOLUME[0], SpecificCharacterSet="ISO_IR 192", SeriesDescription="Schädel", PatientID="Ж")
    made.IssuerOfPatientID = "Klinik"
    found = parse(made)
    assert (found.description, found.patient) == ("Schädel", "Ж\\Klinik")


# Bytes and texts of the examples in PS3.5, annexes H, I and K; the last two break the rules as writers do.
ALPHABETS = {
    "kanji behind ASCII": ("\\ISO 2022 IR 87", b"Yamada \x1b$B;3ED\x1b(B^x", "Yamada 山田^x"),
    "kana and kanji": (
        "ISO 2022 IR 13\\ISO 2022 IR 87",
        b"\xd4\xcf\xc0\xde \x1b$B;3ED\x1b(J",
        "ﾔﾏﾀﾞ 山田",
    ),
    "Korean behind ASCII": ("\\ISO 2022 IR 149", b"\x1b$)C\xb1\xe8\xc8\xf1\xc1\xdf brain", "김희중 brain"),
    "Chinese behind ASCII": ("\\ISO 2022 IR 58", b"Zhang \x1b$)A\xd5\xc5", "Zhang 张"),
    "German and Cyrillic": (
        "ISO 2022 IR 100\\ISO 2022 IR 144",
        b"Sch\xe4del \x1b-L\xbb\xee\xda",
        "Schädel Люк",
    ),
    "a backslash within a kanji": ("\\ISO 2022 IR 87", b"\x1b$B!\\\x1b(B a", "＋ a"),
    "Korean without an escape": ("\\ISO 2022 IR 149", b"\xb1\xe8", "김"),
    "nothing that is known": ("ISO_IR 4711", b"Sch\xe4del", "Schädel"),
}


@pytest.mark.filterwarnings("ignore:Unknown encoding")
@pytest.mark.parametrize("case", ALPHABETS)
def test_texts_may_switch_between_alphabets(case):
    declared, stored, expected = ALPHABETS[case]
    made = make_instance(VOLUME[0], SpecificCharacterSet="ISO_IR 6", SeriesDescription=None)
    made["SpecificCharacterSet"] = pydicom.DataElement(0x00080005, "LO", declared.split("\\"))
    made["SeriesDescription"] = pydicom.DataElement(0x0008103E, "UN", stored + b" " * (len(stored) % 2))
    assert parse(made).description == expected


def test_two_patients_stay_two_whatever_their_bytes_mean():
    data = to_bytes(make_instance(VOLUME[0], PatientID="P-ab", SpecificCharacterSet="ISO_IR 192"))
    ids = {parse_instance(data.replace(b"P-ab", b"P-" + end), "a").patient for end in (b"\xfc\xfc", b"\xfd\xfd")}
    assert len(ids) == 2


def test_a_mosaic_of_slices_is_refused():
    with pytest.raises(UnreadableFileError, match="is a mosaic"):
        parse(make_instance(VOLUME[0], ImageType=["ORIGINAL", "PRIMARY", "M", "ND", "MOSAIC"]))


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"AcquisitionDate": "20190203"}, "20190203"),
        ({"AcquisitionDate": "20190299", "SeriesDate": "20190204"}, "20190204"),
        ({"StudyDate": "2020.02.03"}, "20200203"),
        ({"StudyDate": ""}, ""),
    ],
)
def test_the_day_is_the_first_one_that_is_a_day(values, expected):
    with pydicom.config.disable_value_validation():
        assert parse(make_instance(VOLUME[0], **values)).date == expected


def nested(depth):
    """A private sequence without lengths, so deep."""
    start = struct.pack("<HH2sHI", 9, 0x1001, b"SQ", 0, 0xFFFFFFFF) + struct.pack("<HHI", 0xFFFE, 0xE000, 0xFFFFFFFF)
    end = struct.pack("<HHI", 0xFFFE, 0xE00D, 0) + struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)
    return start * depth + end * depth


def insert(made, data):
    """A file with an element more, in front of the modality's group."""
    whole = to_bytes(made)
    at = whole.index(struct.pack("<HH", 0x10, 0x10))
    return whole[:at] + data + whole[at:]


def test_nested_sequences_of_strangers_are_passed_over():
    assert parse_instance(insert(make_instance(VOLUME[0]), nested(12)), "a").rows == 5


HOSTILE = {
    "no pixel data": (make_instance(VOLUME[0], PixelData=None), UnreadableFileError, "has no pixel data"),
    "2^31 frames": (make_instance(VOLUME[0], NumberOfFrames=str(2**31)), OversizedScanError, "2147483648 frames"),
    "frames of letters": (make_instance(VOLUME[0]), UnreadableFileError, "number of its frames"),
    "absurd rows": (make_instance(VOLUME[0], Rows=65535), TruncatedFileError, "its header declares 786420"),
    "no rows": (make_instance(VOLUME[0], Rows=None), UnreadableFileError, "how many rows"),
    "odd bits": (make_instance(VOLUME[0], BitsStored=17), UnreadableFileError, "17 bits"),
    "odd meaning": (make_instance(VOLUME[0], PhotometricInterpretation="SECRET"), UnreadableFileError, "1 values"),
    "slope 0": (make_instance(VOLUME[0], RescaleSlope="0"), UnreadableFileError, "slope"),
    "spacing 0": (
        make_instance(VOLUME[0], PixelSpacing=["0", "1"]),
        AffineError,
        "pixel spacing is not 2 numbers from 1e-06",
    ),
    "two positions": (make_instance(VOLUME[0], ImagePositionPatient=["0", "1"]), AffineError, "not 3 numbers"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_an_absurd_header_is_an_error_that_quotes_nothing(case):
    made, error, words = HOSTILE[case]
    data = to_bytes(made)
    if case == "frames of letters":
        data = insert(make_instance(VOLUME[0]), b"")
        at = data.index(struct.pack("<HH", 0x28, 0x10))
        data = data[:at] + struct.pack("<HH2sH", 0x28, 8, b"IS", 6) + b"SECRET" + data[at:]
    with pytest.raises(error, match=words) as caught:
        parse_instance(data, "scan.dcm")
    assert "scan.dcm" in str(caught.value)
    assert "SECRET" not in str(caught.value)


def test_a_thousand_nested_sequences_are_refused_at_once():
    data = insert(make_instance(VOLUME[0]), nested(1000))
    started = time.process_time()
    with pytest.raises(UnreadableFileError, match="nested"):
        parse_instance(data, "a")
    assert time.process_time() - started < 1


def test_a_header_of_endless_elements_is_given_up_within_a_second():
    data = insert(make_instance(VOLUME[0]), struct.pack("<HH2sH", 9, 0x1001, b"LO", 0) * 500_000)
    started = time.process_time()
    with pytest.raises(OversizedScanError, match="400000 elements"):
        parse_instance(data, "a")
    assert time.process_time() - started < 2


def test_a_file_of_many_frames_may_say_as_much_of_each():
    elements = struct.pack("<HH2sH", 9, 0x1001, b"LO", 0) * 500_000
    frames = struct.pack("<HH2sH", 0x28, 8, b"IS", 4) + b"1000"
    found = read_elements(io.BytesIO(insert(make_instance(VOLUME[0]), frames + elements)), {0x280008: None}, "a")
    assert found.elements.text(0x280008) == "1000"


def test_compressed_pixels_under_a_plain_syntax_are_refused_and_the_other_way_round():
    data = to_bytes(make_instance(VOLUME[0]))
    at = data.index(struct.pack("<HH", 0x7FE0, 0x10))
    fragments = data[: at + 8] + struct.pack("<I", 0xFFFFFFFF) + data[at + 12 :]
    with pytest.raises(UnreadableFileError, match="transfer syntax says plain"):
        parse_instance(fragments, "a")
    other = data.replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.5\0")
    with pytest.raises(UnreadableFileError, match="transfer syntax says RLE"):
        parse_instance(other, "a")


def test_a_file_cut_anywhere_in_its_header_is_an_error():
    data = to_bytes(make_enhanced(VOLUME))
    end = data.index(struct.pack("<HH", 0x7FE0, 0x10)) + 12
    for length in range(0, end, 7):
        with pytest.raises(ScanError):
            parse_instance(data[:length], "a")
    assert parse_instance(data[:end], "a").frames == 4


def test_a_file_cut_in_its_pixels_is_told_by_its_size():
    data = to_bytes(make_instance(VOLUME[0]))
    found = parse_instance(data, "a")
    check_complete(found, len(data), "a")
    with pytest.raises(TruncatedFileError, match="its pixels end at byte"):
        check_complete(found, len(data) - 2, "a")


def test_what_is_no_dicom_is_told_so():
    for data in (b"", b"\xff\xd8\xff" * 100):
        with pytest.raises(UnknownFormatError):
            parse_instance(data, "a")


def test_an_instance_does_not_show_what_it_holds():
    assert "P-1" not in repr(parse(make_instance(VOLUME[0])))


@pytest.mark.skipif("RAYSEGMENT_DATA" not in os.environ, reason="needs RAYSEGMENT_DATA with real scans")
def test_real_headers_say_what_pydicom_says():
    paths = sorted(Path(os.environ["RAYSEGMENT_DATA"], "dicom").rglob("*.dcm"))[::4]
    assert paths
    for path in paths:
        expected = pydicom.dcmread(path, stop_before_pixels=True)
        with path.open("rb") as stream:
            found = parse_instance(io.BufferedReader(stream), "a")
        assert (found.series, found.sop) == (expected.SeriesInstanceUID, expected.SOPInstanceUID)
        assert (found.patient, found.rows, found.columns) == (expected.PatientID, expected.Rows, expected.Columns)
        if found.kind == "image":
            assert found.positions[0].tolist() == [float(number) for number in expected.ImagePositionPatient]


def test_values_may_be_taken_out():
    assert "PatientID" not in change(make_instance(VOLUME[0]), PatientID=None)
