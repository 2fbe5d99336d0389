"""DICOM segmentations as references: each frame where it was drawn, segments as labels, and nothing else believed."""

from __future__ import annotations

import io
import os
from pathlib import Path

import highdicom
import numpy as np
import pydicom
import pytest
import SimpleITK
from dicom_made import AXIAL, make_enhanced, make_series, make_uid, to_bytes
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.uid import DeflatedExplicitVRLittleEndian, JPEGLSLossless, RLELossless
from segmentations_made import make_segmentation, read_by_highdicom, segmentation_bytes
from volumes_made import make_affine, restack

from raysegment.archive.dicom.geometry import order_slices
from raysegment.archive.dicom.header import parse_instance
from raysegment.archive.dicom.segmentation import Plane, SegmentedGrid, list_segment_values, read_segmentation
from raysegment.archive.orientation import find_orientation
from raysegment.archive.reference import read_reference, read_values
from raysegment.errors import GridMismatchError, ReferenceValuesError, ScanError, UnreadableReferenceError
from raysegment.scan import Labels, ReadSettings, ScanEntry

MAX_BYTES = 2**24
SHAPE = (5, 6, 7)
FRAME = make_uid("study", "frame")
SIDES = Labels(("Left", "Right"), ((1,), (2,)))
UNDECLARED = Labels()
NESTED = Labels(("WT", "TC", "ET"), ((1, 2, 4), (1, 4), (4,)))

REAL = pytest.mark.skipif("RAYSEGMENT_DATA" not in os.environ, reason="RAYSEGMENT_DATA names no folder of real scans")


def draw(seed: int = 0, values: int = 2, shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, values, shape).astype(np.uint8)


def make_images(affine: np.ndarray = AXIAL, shape: tuple[int, ...] = SHAPE) -> list[pydicom.Dataset]:
    return make_series(np.zeros(shape, np.uint16), affine)


def read(made, labels: Labels = UNDECLARED, affine: np.ndarray = AXIAL, shape=SHAPE, frame: str = FRAME) -> np.ndarray:
    data = made if isinstance(made, bytes) else segmentation_bytes(made)
    return read_segmentation(data, "drawn.dcm", SegmentedGrid(shape, affine, frame), labels, MAX_BYTES)


@pytest.mark.parametrize("kind", ["BINARY", "FRACTIONAL", "LABELMAP"])
def test_segments_of_each_type_come_back_voxel_by_voxel(kind):
    mask = draw(values=3)
    made = make_segmentation(make_images(), mask, ("Right", "left "), kind)
    np.testing.assert_array_equal(read(made, SIDES), np.array([0, 2, 1], np.uint8)[mask])
    np.testing.assert_array_equal(read(made), mask > 0)


def test_fractions_count_from_half_of_the_largest_value_on():
    fractions = np.linspace(0, 1, np.prod(SHAPE)).reshape(SHAPE)
    made = make_segmentation(make_images(), fractions[..., None], kind="FRACTIONAL", max_fractional_value=200)
    stored = np.rint(fractions * 200)
    np.testing.assert_array_equal(read(made), stored >= 100)
    assert (stored == 100).any()


@pytest.mark.parametrize("syntax", [RLELossless, JPEGLSLossless], ids=["RLE", "JPEG-LS"])
def test_compressed_fractions_are_read(syntax):
    shape = (3, 40, 36)
    fractions = np.zeros((*shape, 1), np.float32)
    fractions[1, 1:4, 2:5, 0] = 0.7
    made = make_segmentation(make_images(shape=shape), fractions, kind="FRACTIONAL", transfer_syntax_uid=syntax)
    np.testing.assert_array_equal(read(made, shape=shape), fractions[..., 0] > 0)


def test_a_deflated_segmentation_is_read():
    mask = draw(2)
    made = make_segmentation(make_images(), mask)
    made.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    data = segmentation_bytes(made)
    assert len(data) < len(segmentation_bytes(make_segmentation(make_images(), mask)))
    np.testing.assert_array_equal(read(data), mask)


def test_overlapping_segments_get_the_value_that_lies_in_exactly_their_labels():
    value = np.random.default_rng(1).choice([0, 1, 2, 4], SHAPE).astype(np.uint8)
    regions = np.stack([np.isin(value, region) for region in NESTED.regions], -1).astype(np.uint8)
    made = make_segmentation(make_images(), regions, ("wt", "TC", "Et"))
    np.testing.assert_array_equal(read(made, NESTED), value)
    assert list_segment_values(segmentation_bytes(made), "drawn.dcm", NESTED, MAX_BYTES) == {0, 1, 2, 4}


def test_overlaps_that_are_no_value_are_refused_by_name():
    regions = np.zeros((*SHAPE, 2), np.uint8)
    regions[0, 0, 0] = 1
    with pytest.raises(ReferenceValuesError, match="voxels lie in Left and Right and in no other label"):
        read(make_segmentation(make_images(), regions, ("Left", "Right")), SIDES)


def test_a_segment_that_no_label_names_is_refused_and_not_quoted():
    made = make_segmentation(make_images(), draw(), ("Erika^Muster",))
    with pytest.raises(ReferenceValuesError, match="segment 1 is that of no label; expected Left, Right") as caught:
        read(made, SIDES)
    assert "Erika" not in str(caught.value)
    empty = make_segmentation(make_images(), draw(values=3) % 2, ("Left", "Erika^Muster"))
    assert read(empty, SIDES).max() == 1


def test_labels_that_differ_in_case_alone_are_told_apart():
    labels = Labels(("et", "ET"), ((1,), (2,)))
    mask = draw(9, values=3)
    np.testing.assert_array_equal(read(make_segmentation(make_images(), mask, ("et", "ET")), labels), mask)


def test_frames_that_are_left_out_are_background():
    mask = np.zeros(SHAPE, np.uint8)
    mask[[1, 3], 2:4, 1:5] = 1
    made = make_segmentation(make_images(), mask)
    assert made.NumberOfFrames == 2
    np.testing.assert_array_equal(read(made), mask)


def test_a_segmentation_of_some_slices_lies_on_these():
    images, mask = make_images(), draw(shape=(2, *SHAPE[1:]))
    made = make_segmentation(images[2:4], mask)
    expected = np.zeros(SHAPE, np.uint8)
    expected[2:4] = mask
    np.testing.assert_array_equal(read(made), expected)


@pytest.mark.parametrize("order", [(4, 3, 2, 1, 0), (2, 0, 4, 1, 3)])
def test_the_order_of_frames_says_nothing(order):
    mask = draw(3)
    images = make_images()
    made = make_segmentation([images[index] for index in order], mask[list(order)])
    np.testing.assert_array_equal(read(made), mask)


@given(
    order=st.permutations(range(3)), flips=st.tuples(*[st.booleans()] * 3), angles=st.tuples(*[st.floats(-20, 20)] * 3)
)
@settings(max_examples=15, deadline=None)
def test_a_segmentation_in_any_orientation_lies_on_the_scan_in_canonical_order(order, flips, angles):
    _, affine = restack(np.zeros(SHAPE), make_affine((2.5, 1.5, 1), angles), tuple(order), flips)
    mask = draw(4)
    made = make_segmentation(make_images(affine), mask)
    turn = find_orientation(affine, SHAPE, "auto")
    found = read(made, Labels(), turn.affine(affine, SHAPE), turn.shape(SHAPE))
    np.testing.assert_array_equal(turn.undo(found), mask)


def test_frames_of_an_enhanced_image_are_found_by_their_place():
    image = make_enhanced(np.zeros(SHAPE, np.uint16), AXIAL, order=(3, 1, 0, 2, 4))
    mask = draw(5)
    np.testing.assert_array_equal(read(make_segmentation([image], mask[[3, 1, 0, 2, 4]])), mask)


def test_without_places_frames_lie_where_the_images_do_that_they_were_drawn_on():
    images, mask = make_images(), draw(6)
    made = make_segmentation(images, mask)
    for frame in made.PerFrameFunctionalGroupsSequence:
        del frame.PlanePositionSequence
    headers = [parse_instance(to_bytes(image), "x.dcm") for image in images]
    planes = {each.sop: Plane(each.positions[0], each.orientations[0], each.pixel_spacing) for each in headers}
    grid = SegmentedGrid(SHAPE, AXIAL, FRAME, lambda: planes)
    data = segmentation_bytes(made)
    np.testing.assert_array_equal(read_segmentation(data, "drawn.dcm", grid, Labels(), MAX_BYTES), mask)
    numbered = SegmentedGrid(SHAPE, None, FRAME, lambda: {each.sop: index for index, each in enumerate(headers)})
    np.testing.assert_array_equal(read_segmentation(data, "drawn.dcm", numbered, Labels(), MAX_BYTES), mask)
    with pytest.raises(GridMismatchError, match="refer to no image of the scan"):
        read(data)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shape": (5, 6, 8)}, r"its frames are \(6, 7\), those of the scan \(6, 8\)"),
        ({"shape": (2, 6, 7)}, "where the scan has no slice"),
        ({"affine": AXIAL + np.array([[0, 0, 0, 0.5]] + [[0] * 4] * 3)}, "0.5 voxels from those of the scan"),
        ({"affine": AXIAL * [1.2, 1, 1, 1]}, "voxels from those of the scan"),
        ({"frame": make_uid("study", "other")}, "another frame of reference"),
    ],
    ids=["shape", "slices", "place", "spacing", "frame"],
)
def test_another_grid_or_frame_of_reference_is_refused(change, message):
    with pytest.raises(GridMismatchError, match=message) as caught:
        read(make_segmentation(make_images(), np.ones(SHAPE, np.uint8)), **change)
    assert "2.25" not in str(caught.value)


def test_a_truncated_or_broken_segmentation_is_typed_and_quick():
    made = make_segmentation(make_images(), np.ones(SHAPE, np.uint8))
    data = segmentation_bytes(made)
    for length in range(0, len(data) - 2, 97):
        with pytest.raises(ScanError):
            read(data[:length])
    for keyword, value in (
        ("NumberOfFrames", 2**31 - 1),
        ("NumberOfFrames", 4000),
        ("Rows", 65535),
        ("SegmentationType", "SURFACE"),
        ("BitsAllocated", 16),
        ("SegmentSequence", []),
    ):
        broken = pydicom.dcmread(io.BytesIO(data))
        setattr(broken, keyword, value)
        with pytest.raises(ScanError):
            read(segmentation_bytes(broken))


@given(seed=st.integers(0, 10_000))
@settings(max_examples=60, deadline=None)
def test_damaged_bytes_end_in_an_answer_or_a_typed_error(seed):
    rng = np.random.default_rng(seed)
    data = bytearray(DAMAGED)
    for place in rng.integers(132, len(data), 4):
        data[place] = rng.integers(0, 256)
    try:
        read(bytes(data))
    except ScanError:
        return


DAMAGED = segmentation_bytes(make_segmentation(make_images(), np.ones(SHAPE, np.uint8)))


def entry_of(folder: Path, images, references: tuple[str, ...]) -> ScanEntry:
    for index, image in enumerate(images):
        (folder / f"{index}.dcm").write_bytes(to_bytes(image))
    files = tuple(f"{index}.dcm" for index in range(len(images)))
    return ScanEntry(
        scan_id="s", patient_id="p", source=str(folder), reader="dicom", files=files, reference_files=references
    )


def test_a_reference_file_that_is_a_segmentation_is_read_as_one(tmp_path):
    images, mask = make_images(), draw(7, values=3)
    (tmp_path / "drawn").write_bytes(segmentation_bytes(make_segmentation(images, mask, ("Left", "Right"))))
    entry = entry_of(tmp_path, images, ("drawn",))
    found = read_reference(entry, SHAPE, ReadSettings(labels=SIDES), affine=AXIAL)
    np.testing.assert_array_equal(found, mask)
    np.testing.assert_array_equal(read_values(entry, ReadSettings(labels=SIDES)), [0, 1, 2])
    np.testing.assert_array_equal(read_values(entry), [0, 1])


def test_a_bad_segmentation_is_an_unreadable_reference_and_another_scan_s_a_mismatch(tmp_path):
    images = make_images()
    data = segmentation_bytes(make_segmentation(images, draw(8)))
    (tmp_path / "cut.dcm").write_bytes(data[:-8])
    with pytest.raises(UnreadableReferenceError, match=r"cut\.dcm"):
        read_reference(entry_of(tmp_path, images, ("cut.dcm",)), SHAPE, affine=AXIAL)
    (tmp_path / "a.dcm").write_bytes(data)
    with pytest.raises(UnreadableReferenceError, match="one of 2 files"):
        read_reference(entry_of(tmp_path, images, ("a.dcm", "cut.dcm")), SHAPE, affine=AXIAL)
    moved = make_series(np.zeros(SHAPE, np.uint16), AXIAL, frame="other")
    with pytest.raises(GridMismatchError, match="another frame of reference"):
        read_reference(entry_of(tmp_path, moved, ("a.dcm",)), SHAPE, affine=AXIAL)


@REAL
def test_the_liver_lies_on_the_slices_where_highdicom_and_itk_have_it():
    folder = Path(os.environ["RAYSEGMENT_DATA"]) / "dicom"
    images = [parse_instance(path.read_bytes(), path.name) for path in sorted((folder / "ct-3slice").iterdir())]
    found = order_slices(
        np.concatenate([image.positions for image in images]),
        np.concatenate([image.orientations for image in images]),
        images[0].pixel_spacing,
        images[0].thickness,
        "ct",
    )
    shape = (3, 512, 512)
    turn = find_orientation(found.affine, shape, "auto")
    grid = SegmentedGrid(shape, turn.affine(found.affine, shape), images[0].frame_of_reference)
    data = (folder / "liver.dcm").read_bytes()
    mask = read_segmentation(data, "liver.dcm", grid, Labels(), 2**30)
    by_image = read_by_highdicom(data, [images[index].sop for index in found.order])
    np.testing.assert_array_equal(mask, turn.apply(by_image[..., 0]))
    assert [int(plane.sum()) for plane in mask] == [36233, 35645, 35220]
    drawn = SimpleITK.ReadImage(str(folder / "liver.dcm"))
    voxels = SimpleITK.GetArrayFromImage(drawn) > 0
    for voxel in np.argwhere(mask)[::997].tolist():
        place = (grid.affine @ [*voxel, 1])[:3] * [-1, -1, 1]
        column, row, plane = drawn.TransformPhysicalPointToIndex(place.tolist())
        assert voxels[plane, row, column]
    assert voxels.sum() == mask.sum()


@REAL
def test_a_segmentation_with_a_missing_slice_reads_as_highdicom_reads_it():
    data = (Path(os.environ["RAYSEGMENT_DATA"]) / "dicom" / "seg_image_ct_binary.dcm").read_bytes()
    drawn = highdicom.seg.segread(io.BytesIO(data))
    volume = drawn.get_volume(combine_segments=True)
    affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ volume.affine
    grid = SegmentedGrid(volume.array.shape, affine, drawn.FrameOfReferenceUID)
    np.testing.assert_array_equal(read_segmentation(data, "ct.dcm", grid, Labels(), 2**24), volume.array)
    elsewhere = SegmentedGrid(volume.array.shape, affine, make_uid("other"))
    with pytest.raises(GridMismatchError, match="another frame of reference"):
        read_segmentation(data, "ct.dcm", elsewhere, Labels(), 2**24)
