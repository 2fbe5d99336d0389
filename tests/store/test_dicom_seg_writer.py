"""DICOM segmentations as written: what they refer to, what they say of themselves, and what they leave out."""

from __future__ import annotations

import io
import logging
import shutil
import subprocess
import warnings
from datetime import datetime
from pathlib import Path

import highdicom
import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

from raysegment.archive.dicom.library import quiet_libraries
from raysegment.errors import UnknownGridError, UnreadableFileError
from raysegment.scan import Labels
from raysegment.store.writers.dicom_seg import Maker, write_segmentation

MAKER = Maker(version="0.6.0", model_id="0123abcd", options_id="ffff", made=datetime(2026, 3, 4, 5, 6, 7))
LABELS = Labels(("Anterior", "Läsion"), ((1,), (2,)), ((255, 0, 0), None), ("SCT:5366008", None))
VALUES = {"Anterior": 1, "Läsion": 2}
SHAPE = (4, 5, 7)


def make_sources(num_slices: int = 4, **values: object) -> list[Dataset]:
    """Headers of a CT series; None takes an element out."""
    with quiet_libraries():
        return _make_sources(num_slices, values)


def _make_sources(num_slices: int, values: dict[str, object]) -> list[Dataset]:
    made = []
    for index in range(num_slices):
        header = Dataset()
        header.SpecificCharacterSet = "ISO_IR 100"
        header.SOPClassUID, header.SOPInstanceUID = CTImageStorage, f"1.2.3.4.{index + 1}"
        header.StudyInstanceUID, header.SeriesInstanceUID, header.FrameOfReferenceUID = "1.2.3", "1.2.3.4", "1.2.5"
        header.PatientName, header.PatientID, header.PatientBirthDate = "Müster^Erika", "P-7", "19700101"
        header.PatientSex, header.StudyDate, header.StudyTime = "F", "20200131", "101112"
        header.AccessionNumber, header.StudyID, header.ReferringPhysicianName = "A1", "S1", "Doc^Tor"
        header.PatientComments, header.InstitutionName, header.OperatorsName = "SECRET", "SECRET", "SECRET"
        header.Modality, header.SeriesNumber, header.PositionReferenceIndicator = "CT", "3", ""
        header.Rows, header.Columns = SHAPE[1:]
        header.ImageOrientationPatient = ["1", "0", "0", "0", "1", "0"]
        header.ImagePositionPatient = ["-10", "-20", str(index * 2.5)]
        header.PixelSpacing, header.SliceThickness = ["0.5", "0.75"], "2.5"
        for keyword, value in values.items():
            if value is None:
                delattr(header, keyword)
            else:
                setattr(header, keyword, value)
        made.append(header)
    return made


def write(path: Path, mask: np.ndarray, sources: list[Dataset] | None = None, labels: Labels = LABELS, **maker: object):
    made = Maker(**vars(MAKER) | maker)
    values = {name: VALUES.get(name, 1) for name in labels.names}
    with quiet_libraries():
        write_segmentation(path, mask, values, sources or make_sources(len(mask)), labels, made, "scan")
    return pydicom.dcmread(path)


def draw(seed: int = 0, shape: tuple[int, ...] = SHAPE, values: int = 3) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, values, shape).astype(np.uint8)


def read_back(path: Path, sources: list[Dataset]) -> np.ndarray:
    """(images, rows, columns, segments) as highdicom reads them."""
    return highdicom.seg.segread(path).get_pixels_by_source_instance(
        [header.SOPInstanceUID for header in sources], assert_missing_frames_are_empty=True
    )


def check_by_dciodvfy(path: Path) -> None:
    done = subprocess.run(["dciodvfy", str(path)], capture_output=True, text=True, timeout=60)
    assert [line for line in (done.stdout + done.stderr).splitlines() if line.startswith("Error")] == []


def test_highdicom_reads_back_what_was_written(tmp_path):
    mask, sources = draw(), make_sources()
    made = write(tmp_path / "m.dcm", mask, sources)
    found = read_back(tmp_path / "m.dcm", sources)
    np.testing.assert_array_equal(found, np.stack([mask == 1, mask == 2], -1))
    (series,) = made.ReferencedSeriesSequence
    assert series.SeriesInstanceUID == "1.2.3.4"
    referred = [item.ReferencedSOPInstanceUID for item in series.ReferencedInstanceSequence]
    assert referred == [header.SOPInstanceUID for header in sources]
    assert made.FrameOfReferenceUID == "1.2.5"
    assert (made.StudyInstanceUID, made.PatientID, str(made.PatientName)) == ("1.2.3", "P-7", "Müster^Erika")


def test_overlapping_labels_have_a_segment_each(tmp_path):
    mask, sources = draw(1, (2, *SHAPE), 2), make_sources()
    made = write(tmp_path / "m.dcm", mask, sources)
    assert made.SegmentsOverlap == "YES"
    np.testing.assert_array_equal(read_back(tmp_path / "m.dcm", sources), np.moveaxis(mask, 0, -1))


def test_segments_say_what_they_are_and_who_drew_them(tmp_path):
    made = write(tmp_path / "m.dcm", draw())
    first, second = made.SegmentSequence
    assert [first.SegmentLabel, second.SegmentLabel] == ["Anterior", "Läsion"]
    kind, category = first.SegmentedPropertyTypeCodeSequence[0], first.SegmentedPropertyCategoryCodeSequence[0]
    assert (kind.CodingSchemeDesignator, kind.CodeValue, kind.CodeMeaning) == ("SCT", "5366008", "Hippocampus")
    assert category.CodeMeaning == "Anatomical Structure"
    assert second.SegmentedPropertyTypeCodeSequence[0].CodeMeaning == "Tissue"
    # Red in CIELab is 53.2, 80.1, 67.2; the standard scales 0 to 100 and -128 to 127 to 0 to 65535.
    assert np.abs(np.array(first.RecommendedDisplayCIELabValue) / 65535 * [100, 255, 255] - [0, 128, 128]) == (
        pytest.approx([53.2, 80.1, 67.2], abs=0.3)
    )
    assert "RecommendedDisplayCIELabValue" not in second
    for segment in (first, second):
        algorithm = segment.SegmentationAlgorithmIdentificationSequence[0]
        assert segment.SegmentAlgorithmType == "AUTOMATIC"
        assert (algorithm.AlgorithmName, algorithm.AlgorithmVersion) == ("raysegment", "0.6.0")
        assert "model_id=0123abcd" in algorithm.AlgorithmParameters
    assert made.ManufacturerModelName == "raysegment"
    assert "research use only" in made.SeriesDescription
    assert "research use only" in made.ContentDescription
    assert (made.ContentDate, made.ContentTime) == ("20260304", "050607")


def test_names_in_other_scripts_arrive_whole(tmp_path):
    name = "Yamada^Tarou=山田^太郎=やまだ^たろう"
    sources = make_sources(SpecificCharacterSet=["", "ISO 2022 IR 87"], PatientName=name)
    read = []
    for source in sources:
        source.file_meta = FileMetaDataset()
        source.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        stream = io.BytesIO()
        source.save_as(stream, enforce_file_format=True)
        read.append(pydicom.dcmread(io.BytesIO(stream.getvalue())))
    made = write(tmp_path / "m.dcm", draw(), read)
    assert made.SpecificCharacterSet == "ISO_IR 192"
    assert str(made.PatientName) == name


def test_nothing_else_of_the_sources_goes_along(tmp_path):
    write(tmp_path / "m.dcm", draw())
    assert b"SECRET" not in (tmp_path / "m.dcm").read_bytes()


def test_an_empty_mask_is_one_empty_frame_that_refers_to_all_images(tmp_path):
    sources = make_sources()
    made = write(tmp_path / "m.dcm", np.zeros(SHAPE, np.uint8), sources)
    assert made.NumberOfFrames == 1
    assert len(made.ReferencedSeriesSequence[0].ReferencedInstanceSequence) == 4
    assert not read_back(tmp_path / "m.dcm", sources).any()


def test_the_same_mask_model_and_options_make_the_same_file_and_others_another(tmp_path):
    paths = [tmp_path / name for name in ("a.dcm", "b.dcm")]
    for path in paths:
        write(path, draw())
    assert paths[0].read_bytes() == paths[1].read_bytes()
    same = pydicom.dcmread(paths[0])
    changed = [
        write(tmp_path / "c.dcm", draw(1)),
        write(tmp_path / "c.dcm", draw(), model_id="other"),
        write(tmp_path / "c.dcm", draw(), options_id="other"),
        write(tmp_path / "c.dcm", draw(), make_sources(SeriesInstanceUID="1.2.3.9")),
        write(tmp_path / "c.dcm", draw(), labels=Labels(LABELS.names, LABELS.regions)),
    ]
    assert len({made.SOPInstanceUID for made in changed} | {same.SOPInstanceUID}) == 6
    assert changed[0].SeriesInstanceUID == same.SeriesInstanceUID != changed[1].SeriesInstanceUID
    assert write(tmp_path / "c.dcm", draw(), made=datetime(2027, 1, 1)).SOPInstanceUID == same.SOPInstanceUID


@pytest.mark.skipif(shutil.which("dciodvfy") is None, reason="dciodvfy is not on the PATH")
@pytest.mark.parametrize(
    "kind",
    ["label map", "overlapping", "empty", "one slice", "one label absent", "odd headers", "names removed", "enhanced"],
)
def test_dciodvfy_finds_no_error(tmp_path, kind):
    odd = {
        "PatientBirthDate": "1970",
        "PatientSex": "unknown",
        "StudyTime": "around noon",
        "AccessionNumber": None,
        "StudyID": None,
        "SliceThickness": None,
        "SeriesNumber": None,
        "ImageOrientationPatient": ["0.99999996693059123", "0.0", "0.00025715", "0", "1", "0"],
        "LossyImageCompression": "01",
    }
    code = Dataset()
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = "113100", "DCM", "Basic Profile"
    removed = {"PatientIdentityRemoved": "YES", "DeidentificationMethodCodeSequence": [code]}
    made = {
        "names removed": (draw(), make_sources(**removed)),
        "label map": (draw(), make_sources()),
        "overlapping": (draw(1, (2, *SHAPE), 2), make_sources()),
        "empty": (np.zeros(SHAPE, np.uint8), make_sources()),
        "one slice": (draw(2, (1, *SHAPE[1:])), make_sources(1)),
        "one label absent": (draw(values=2), make_sources()),
        "odd headers": (draw(), make_sources(**odd)),
        "enhanced": (draw(), [make_enhanced()]),
    }
    write(tmp_path / "m.dcm", *made[kind])
    check_by_dciodvfy(tmp_path / "m.dcm")


def make_enhanced() -> Dataset:
    """The four slices in one image."""
    sources = make_sources()
    image = sources[0]
    image.SOPClassUID, image.NumberOfFrames = "1.2.840.10008.5.1.4.1.1.2.1", 4
    shared, orientation, measures = Dataset(), Dataset(), Dataset()
    orientation.ImageOrientationPatient = image.ImageOrientationPatient
    measures.PixelSpacing, measures.SliceThickness = image.PixelSpacing, image.SliceThickness
    shared.PlaneOrientationSequence, shared.PixelMeasuresSequence = [orientation], [measures]
    image.SharedFunctionalGroupsSequence, image.PerFrameFunctionalGroupsSequence = [shared], []
    for source in sources:
        position, frame = Dataset(), Dataset()
        position.ImagePositionPatient = source.ImagePositionPatient
        frame.PlanePositionSequence = [position]
        image.PerFrameFunctionalGroupsSequence.append(frame)
    for keyword in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness"):
        delattr(image, keyword)
    return image


def test_frames_of_an_enhanced_image_are_referred_to_by_their_number(tmp_path):
    mask, image = draw(), make_enhanced()
    write(tmp_path / "m.dcm", mask, [image])
    found = highdicom.seg.segread(tmp_path / "m.dcm").get_pixels_by_source_frame(
        image.SOPInstanceUID, [1, 2, 3, 4], assert_missing_frames_are_empty=True, combine_segments=True
    )
    np.testing.assert_array_equal(found, mask)


def test_images_without_a_place_are_refused_and_a_single_one_needs_none(tmp_path):
    with pytest.raises(UnknownGridError, match="frame of reference"):
        write(tmp_path / "m.dcm", draw(), make_sources(FrameOfReferenceUID=None))
    with pytest.raises(UnknownGridError, match="position"):
        write(tmp_path / "m.dcm", draw(), make_sources(ImagePositionPatient=None))
    single = make_sources(1, ImagePositionPatient=None, ImageOrientationPatient=None, FrameOfReferenceUID=None)
    single[0].SOPClassUID = "1.2.840.10008.5.1.4.1.1.1"
    mask = draw(3, (1, *SHAPE[1:]))
    made = write(tmp_path / "m.dcm", mask, single)
    assert made.NumberOfFrames == 2


def test_what_headers_hold_is_neither_warned_of_nor_logged_nor_quoted(tmp_path, capfd):
    odd = make_sources(
        PatientName="SECRET",
        PatientID="SECRET" * 20,
        PatientBirthDate="SECRET",
        StudyTime="SECRET",
        PatientSex="SECRET",
        AccessionNumber="SECRET" * 9,
    )
    stream = io.StringIO()
    handler, root = logging.StreamHandler(stream), logging.getLogger()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            write(tmp_path / "m.dcm", draw(), odd)
            with pytest.raises(UnreadableFileError) as error:
                write(tmp_path / "m.dcm", draw(), make_sources(PatientID="SECRET", Rows=None))
    finally:
        root.removeHandler(handler)
        root.setLevel(level)
    said = capfd.readouterr()
    told = [stream.getvalue(), said.out, said.err, str(error.value), *(str(warning.message) for warning in caught)]
    assert not any("SECRET" in text for text in told)
    assert error.value.__cause__ is None
