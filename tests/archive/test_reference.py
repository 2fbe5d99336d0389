"""Which values of a reference are region: the whole scan decides."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from raysegment.archive import reference_sample
from raysegment.archive.formats import READERS_VARIABLE
from raysegment.archive.index import find_scans
from raysegment.archive.manifest import entries
from raysegment.archive.reference import describe_values, find_threshold, list_values, read_reference, read_values
from raysegment.archive.reference_sample import sample_references
from raysegment.errors import ReferenceValuesError
from raysegment.scan import Labels, ReadSettings, ScanEntry

DISC = (np.hypot(*np.mgrid[-32:32, -32:32]) < 20).astype(np.uint8)


def write_slices(folder: Path, masks: list[np.ndarray | None]) -> ScanEntry:
    """A series with some masks."""
    for number, mask in enumerate(masks):
        shape = next(item.shape for item in masks if item is not None)[:2]
        tifffile.imwrite(folder / f"s_{number}.tif", np.zeros(shape, np.uint8))
        if mask is not None:
            tifffile.imwrite(folder / f"s_{number}_mask.tif", mask)
    (entry,) = entries(find_scans(str(folder)))
    return entry


def write_mask(folder: Path, name: str, save) -> ScanEntry:
    tifffile.imwrite(folder / "a.tif", np.zeros((64, 64), np.uint8))
    save(folder / name)
    (entry,) = entries(find_scans(str(folder)))
    return entry


def region_of(values: list[float], dtype: str) -> list[float]:
    """Which values count as region."""
    drawn = np.array(values, dtype).reshape(1, 1, -1)
    region = drawn > find_threshold(list_values(drawn, "m"), "m")
    return sorted({value for value, inside in zip(values, region.ravel(), strict=True) if inside})


@pytest.mark.parametrize(
    ("values", "dtype", "region"),
    [
        ([0], "u1", []),
        ([0.0], "f4", []),
        ([0, 1], "u1", [1]),
        ([0, 1], "?", [1]),
        ([0, 255], "u1", [255]),
        ([0, 255], "u2", [255]),
        ([0, 65535], "u2", [65535]),
        ([0, 127], "u1", [127]),
        ([0, 256], "i4", [256]),
        ([0, 1e9], "f8", [1e9]),
        ([0, 1e-4], "f8", [1e-4]),
        ([1, 2], "u1", [2]),
        ([1000, 3000], "u2", [3000]),
        ([-1, 1], "i2", [1]),
        ([-2, -1], "i2", [-1]),
        ([0.25, 0.5], "f4", [0.5]),
        ([7], "u1", [7]),
        ([255], "u1", [255]),
        ([0, 1, 2, 4], "u1", [1, 2, 4]),
        ([0, 127, 128, 255], "u1", [127, 128, 255]),
        ([0, 1, 2, 255], "i8", [1, 2, 255]),
        ([1, 2, 3], "u1", [1, 2, 3]),
        ([0, 0.9995, 2.0005], "f8", [0.9995, 2.0005]),
        ([1e-6, 1.0], "f8", [1.0]),
    ],
)
def test_values_that_tell_what_is_region(values, dtype, region):
    assert region_of(values, dtype) == region


@pytest.mark.parametrize(
    ("values", "dtype", "named"),
    [
        ([-1, 0], "i2", "holds -1 0;"),
        ([-1], "i2", "holds -1;"),
        ([1000], "u2", "holds 1000;"),
        ([0, 0.3, 0.6], "f8", "holds 0 0.3 0.6;"),
        ([0, 1, 256], "u2", "holds 0 1 256;"),
        ([0, 1000, 2000], "u2", "holds 0 1000 2000;"),
        ([-1, 0, 1], "i2", "holds -1 0 1;"),
        ([0, 1, 1.5], "f4", "holds 0 1 1.5;"),
        (list(range(0, 9000, 1000)), "u2", "holds 0 1000 2000 3000 4000 … 8000;"),
    ],
)
def test_other_values_are_refused_and_named(values, dtype, named):
    with pytest.raises(ReferenceValuesError, match=named):
        region_of(values, dtype)


def test_an_image_is_no_reference():
    drawn = np.random.default_rng(0).random((3, 200, 200))
    with pytest.raises(ReferenceValuesError, match="more than 65536 different values"):
        list_values(drawn, "m")


@given(labels=st.sets(st.integers(1, 255), min_size=1), dtype=st.sampled_from(["u1", "u2", "i2", "i8", "f4", "f8"]))
def test_labels_up_to_255_beside_0_all_count(labels, dtype):
    assert region_of([0, *labels], dtype) == sorted(labels)


def test_all_slices_of_a_scan_are_judged_together(tmp_path):
    planes = [np.full((4, 4), value, np.uint16) for value in (0, 1000, 0)]
    reference = read_reference(write_slices(tmp_path, planes), (3, 4, 4))
    assert reference.any(axis=(1, 2)).tolist() == [False, True, False]


def test_a_slice_without_a_file_holds_0(tmp_path):
    plane = np.full((4, 4), 1000, np.uint16)
    entry = write_slices(tmp_path, [None, plane, plane])
    np.testing.assert_array_equal(read_values(entry), [0, 1000])
    assert read_reference(entry, (3, 4, 4)).any(axis=(1, 2)).tolist() == [False, True, True]


def test_colours_on_black_are_region_and_alpha_is_not(tmp_path):
    picture = np.zeros((64, 64, 4), np.uint8)
    picture[..., 3] = 255
    picture[DISC > 0, 2] = 90
    picture[0, 0, 0] = 255
    entry = write_mask(tmp_path, "a_mask.png", Image.fromarray(picture).save)
    assert read_reference(entry, (1, 64, 64)).sum() == DISC.sum() + 1


def test_colours_without_black_are_refused(tmp_path):
    picture = np.full((64, 64, 3), 255, np.uint8)
    picture[DISC > 0] = (255, 0, 0)
    entry = write_mask(tmp_path, "a_mask.png", Image.fromarray(picture).save)
    with pytest.raises(ReferenceValuesError, match="no black voxel"):
        read_reference(entry, (1, 64, 64))


@pytest.mark.parametrize("quality", [30, 75, 95])
def test_a_jpeg_reference_is_region_above_half(tmp_path, quality):
    entry = write_mask(tmp_path, "a_mask.jpg", lambda path: Image.fromarray(DISC * 255).save(path, quality=quality))
    assert len(read_values(entry)) > 2
    reference = read_reference(entry, (1, 64, 64))[0]
    assert np.count_nonzero(reference != (DISC > 0)) <= 0.05 * DISC.sum()


def test_a_tiff_that_holds_a_jpeg_is_region_above_half_too(tmp_path):
    picture = Image.fromarray(DISC * 255)
    entry = write_mask(tmp_path, "a_mask.tif", lambda path: picture.save(path, compression="jpeg", quality=40))
    reference = read_reference(entry, (1, 64, 64))[0]
    assert np.count_nonzero(reference != (DISC > 0)) <= 0.05 * DISC.sum()


@pytest.mark.parametrize("values", [(100, 220), (1, 1), (20, 20)])
def test_a_jpeg_with_labels_or_with_hardly_any_contrast_is_refused(tmp_path, values):
    plane = DISC * np.uint8(values[0])
    plane[:3] = values[1]
    entry = write_mask(tmp_path, "a_mask.jpg", Image.fromarray(plane).save)
    with pytest.raises(ReferenceValuesError, match="JPEG"):
        read_reference(entry, (1, 64, 64))


def test_an_empty_jpeg_is_an_empty_reference(tmp_path):
    entry = write_mask(tmp_path, "a_mask.jpg", Image.fromarray(DISC * 0).save)
    assert not read_reference(entry, (1, 64, 64)).any()


def test_many_values_are_told_by_their_first_ones_and_the_last():
    assert describe_values(np.arange(201.0)) == "0 1 2 3 4 … 200"


def test_a_look_at_references_counts_what_cannot_be_used(tmp_path):
    for name, values in {"a": (0, 1000), "b": (0, -1), "c": (0, 1000)}.items():
        (tmp_path / name).mkdir()
        tifffile.imwrite(tmp_path / name / "x.tif", np.zeros((64, 64), np.uint8))
        tifffile.imwrite(tmp_path / name / "x_mask.tif", np.choose(DISC, values).astype(np.int16))
    found = sample_references(find_scans(str(tmp_path)), Labels())
    assert (found.references_read, found.references_refused) == (3, 1)
    assert found.reference_values == {"0 1000": 2, "-1 0": 1}


def test_a_look_at_hostile_references_ends_in_time_and_counts_their_errors(tmp_path, monkeypatch):
    monkeypatch.setenv(READERS_VARIABLE, "hostile_reader")
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    monkeypatch.setattr(reference_sample, "SECONDS_PER_SCAN", 3.0)
    monkeypatch.setattr(reference_sample, "MEMORY_MB", 64)
    for does in ("crash", "hang", "eat", "shout"):
        (tmp_path / does).mkdir()
        tifffile.imwrite(tmp_path / does / "x.tif", np.zeros((4, 4), np.uint8))
        (tmp_path / does / "x_mask.hostile").write_text(f"HOSTILE {does}")
    found = sample_references(find_scans(str(tmp_path)), Labels())
    assert found.reference_values == {
        "DecoderCrashedError": 1, "DecoderTimeoutError": 1, "DecoderMemoryError": 1, "7": 1,
    }  # fmt: skip
    assert (found.references_read, found.references_refused) == (4, 3)


def test_a_look_at_references_stops_when_its_time_is_over(tmp_path, monkeypatch):
    monkeypatch.setattr(reference_sample, "MAX_SECONDS", -1.0)
    write_mask(tmp_path, "a_mask.png", Image.fromarray(DISC).save)
    found = sample_references(find_scans(str(tmp_path)), Labels())
    assert (found.references_read, found.reference_values) == (0, {})


TUMOUR = ReadSettings(labels=Labels(("WT", "TC", "ET"), ((1, 2, 4), (1, 4), (4,))))


@given(
    values=st.lists(st.sampled_from([0, 1, 2, 4]), min_size=4, max_size=4),
    dtype=st.sampled_from(["u1", "u2", "i4", "f4", "f8"]),
)
def test_declared_values_are_taken_as_they_are(tmp_path_factory, values, dtype):
    plane = np.array(values, dtype).reshape(2, 2)
    found = read_reference(write_slices(tmp_path_factory.mktemp("s"), [plane]), (1, 2, 2), TUMOUR)
    assert found.dtype == np.uint8
    assert found.ravel().tolist() == values


def test_declared_values_may_be_off_by_a_thousandth_and_larger_than_a_byte(tmp_path):
    plane = np.array([[0, 300.0009], [299.9995, 0]], np.float64)
    found = read_reference(write_slices(tmp_path, [plane]), (1, 2, 2), ReadSettings(labels=Labels(("a",), ((300,),))))
    assert found.dtype == np.uint16
    assert found[0].tolist() == [[0, 300], [300, 0]]


@pytest.mark.parametrize(
    ("values", "dtype", "named"),
    [
        ([0, 1, 3, 4], "u1", "holds 3, which no label names"),
        ([0, 1, 5, 255], "u1", "holds 5 255, which"),
        ([0, 0.5, 1, 2], "f4", "holds 0.5, which"),
        ([-1, 0, 1, 2], "i2", r"holds -1, which.*0 for background and WT=1\+2\+4 TC=1\+4 ET=4"),
    ],
)
def test_a_value_that_no_label_names_is_refused_with_the_labels(tmp_path, values, dtype, named):
    entry = write_slices(tmp_path, [np.array(values, dtype).reshape(2, 2)])
    with pytest.raises(ReferenceValuesError, match=named):
        read_reference(entry, (1, 2, 2), TUMOUR)


def test_undeclared_values_become_1(tmp_path):
    found = read_reference(write_slices(tmp_path, [np.array([[0, 1000]], np.uint16)]), (1, 1, 2))
    assert found.dtype == np.uint8
    assert found.ravel().tolist() == [0, 1]


def test_a_jpeg_holds_one_declared_value_at_most(tmp_path):
    entry = write_mask(tmp_path, "a_mask.jpg", Image.fromarray(255 * DISC).save)
    found = read_reference(entry, (1, 64, 64), ReadSettings(labels=Labels(("disc",), ((9,),))))
    np.testing.assert_array_equal(found[0], 9 * DISC)
    with pytest.raises(ReferenceValuesError, match="JPEG, which does not keep the values of WT"):
        read_reference(entry, (1, 64, 64), TUMOUR)
