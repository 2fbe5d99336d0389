"""The four figures: written, readable, and robust to what runs bring."""

import math
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread

from raysegment.imaging.phantom import make_phantom
from raysegment.pictures import predictions
from raysegment.pictures.figures import (
    choose_cases,
    draw_confusion_between,
    draw_confusion_matrix,
    draw_curves,
    draw_dice_per_scan,
    draw_predictions,
    make_case,
)
from raysegment.pictures.style import choose_colours
from raysegment.scan import Labels

SKY, ORANGE = (86, 180, 233), (230, 159, 0)


def read(path: Path) -> np.ndarray:
    assert path.read_bytes().startswith(b"\x89PNG")
    return np.rint(imread(path)[..., :3] * 255).astype(int)


def count_colour(picture: np.ndarray, colour: tuple[int, int, int]) -> int:
    return int(np.count_nonzero(np.abs(picture - colour).max(axis=-1) < 12))


def history(epochs: int) -> dict[str, list]:
    rising = list(np.linspace(0.1, 0.8, epochs))
    return {
        "epoch": list(range(1, epochs + 1)),
        "loss": rising[::-1],
        "dice": rising,
        "val_loss": rising[::-1],
        "val_dice": rising,
    }


@pytest.mark.parametrize("epochs", [1, 2, 60])
def test_curves_of_any_length_are_drawn(tmp_path, epochs):
    draw_curves(history(epochs), tmp_path / "figures" / "curves.png")
    assert read(tmp_path / "figures" / "curves.png").shape[0] > 300


def test_curves_without_validation_or_with_gaps_are_drawn(tmp_path):
    draw_curves({"epoch": [1, 2], "loss": [1.0, 0.5], "dice": [0.1, 0.2]}, tmp_path / "without.png")
    gaps = history(3) | {"val_loss": [None, 0.5, math.nan], "val_dice": [None, None, None]}
    draw_curves(gaps, tmp_path / "gaps.png")
    draw_curves({}, tmp_path / "empty.png")
    assert len(list(tmp_path.iterdir())) == 3


def test_predictions_show_reference_and_mask_in_their_colours(tmp_path):
    pixels, reference = make_phantom(0, image_size=96, slices=8)
    nothing = np.zeros_like(reference)
    areas = {}
    for name, mask, drawn in (("both", reference, reference), ("mask", reference, nothing), ("none", nothing, nothing)):
        path = tmp_path / f"{name}.png"
        draw_predictions([make_case(name, pixels, drawn, mask)], path)
        picture = read(path)
        areas[name] = count_colour(picture, SKY), count_colour(picture, ORANGE)
    assert areas["both"][0] > areas["mask"][0]
    assert areas["mask"][1] > areas["none"][1]


@pytest.mark.parametrize("channels", [1, 2, 3, 5])
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float32])
def test_cases_of_other_channels_and_types_are_drawn_without_a_reference(tmp_path, channels, dtype):
    pixels = np.random.default_rng(0).normal(0, 50, (3, 20, 40, channels)).clip(0, 255).astype(dtype)
    mask = np.zeros((3, 20, 40), np.uint8)
    mask[2, 5:9, 5:9] = 1
    case = make_case("only\nscan/with $signs$\x07", pixels, None, mask)
    assert (case.image.shape, case.image.dtype) == ((20, 40, 3), np.uint8)
    assert np.array_equal(case.mask, [mask[2] != 0])
    draw_predictions([case], tmp_path / "predictions.png")
    assert read(tmp_path / "predictions.png").size


def test_a_case_shows_the_slice_with_most_lesion():
    reference = np.zeros((4, 8, 8), bool)
    reference[1, :2, :2] = True
    reference[3, :4, :4] = True
    mask = np.zeros((4, 8, 8), np.uint8)
    case = make_case("scan", np.zeros((4, 8, 8, 3), np.uint8), reference, mask)
    assert np.array_equal(case.reference, [reference[3]])


def test_best_median_and_worst_are_chosen_without_nan():
    assert choose_cases([0.5, math.nan, 0.9, 0.1]) == [("best", 2), ("median", 0), ("worst", 3)]
    assert choose_cases([math.nan, 0.4]) == [("best", 1)]
    assert choose_cases([0.2, 0.4]) == [("best", 1), ("worst", 0)]
    assert choose_cases([math.nan]) == []


def test_the_confusion_matrix_is_drawn_even_without_any_lesion(tmp_path):
    counts = {"true_negatives": 10**10, "false_positives": 5, "false_negatives": 0, "true_positives": 0}
    draw_confusion_matrix({"lesion": counts}, tmp_path / "confusion.png")
    assert read(tmp_path / "confusion.png").size


@pytest.mark.parametrize("count", [0, 1, 40, 41, 700])
def test_dice_of_any_number_of_scans_is_drawn(tmp_path, count):
    dice = np.random.default_rng(0).random(count)
    draw_dice_per_scan([f"scan {index}" for index in range(count)], dice, tmp_path / "dice.png")
    rows, columns = read(tmp_path / "dice.png").shape[:2]
    assert max(rows, columns) < 2000


def test_scans_without_a_score_and_odd_names_do_not_matter(tmp_path):
    names = ["a$b$", "new\nline", "日本", "x" * 300]
    draw_dice_per_scan(names, [0.5, math.nan, 1.0, 0.0], tmp_path / "dice.png")
    draw_dice_per_scan(names, [math.nan] * 4, tmp_path / "nothing.png")
    assert read(tmp_path / "dice.png").shape[1] == read(tmp_path / "nothing.png").shape[1]


def test_equal_input_gives_equal_bytes(tmp_path):
    for name in ("first.png", "second.png"):
        draw_curves(history(4), tmp_path / name)
    assert (tmp_path / "first.png").read_bytes() == (tmp_path / "second.png").read_bytes()


DISJOINT = Labels(("Anterior", "Posterior"), ((1,), (5,)), colours=(None, (10, 200, 30)))
NESTED = Labels(("WT", "TC", "ET"), ((1, 2, 4), (1, 4), (4,)))


def blobs(shift: int) -> np.ndarray:
    """A label map of three values, one within the other, in the last two slices."""
    rows, columns = np.mgrid[:80, :100]
    distance = np.hypot(rows - 40, columns - 50 - shift)
    plane = np.select([distance < 8, distance < 15, distance < 24], [4, 1, 2], 0).astype(np.uint8)
    return np.stack([0 * plane, plane, plane])


def test_labels_have_their_colours_in_reference_and_mask(tmp_path):
    pixels = np.full((3, 80, 100, 1), 90, np.uint8)
    reference = np.where(blobs(0) == 2, 5, blobs(0) == 1).astype(np.uint8)
    case = make_case("best, Dice 0.80\nscan", pixels, reference, np.roll(reference, 4, axis=2), DISJOINT)
    assert case.reference.shape == case.mask.shape == (2, 80, 100)
    assert case.reference[1].sum() == (reference[1] == 5).sum()
    draw_predictions([case], tmp_path / "disjoint.png", DISJOINT)
    picture = read(tmp_path / "disjoint.png")
    assert count_colour(picture, (10, 200, 30)) > 100
    assert count_colour(picture, ORANGE) > 100


def test_labels_that_overlap_are_outlines(tmp_path):
    pixels = np.full((3, 80, 100, 1), 90, np.uint8)
    mask = np.stack([blobs(5) != 0, np.isin(blobs(5), (1, 4)), blobs(5) == 4]).view(np.uint8)
    case = make_case("scan", pixels, blobs(0), mask, NESTED)
    assert [int(plane.sum()) for plane in case.reference] == sorted(
        (int(plane.sum()) for plane in case.reference), reverse=True
    )
    draw_predictions([case], tmp_path / "nested.png", NESTED)
    picture = read(tmp_path / "nested.png")
    assert all(count_colour(picture, colour) > 50 for colour in (ORANGE, SKY, (0, 158, 115)))


def test_values_of_references_may_differ_from_those_of_masks():
    drawn = Labels(("Anterior", "Posterior", "other"), ((7,), (9,), (3,)))
    reference = np.zeros((2, 4, 4), np.uint8)
    reference[0] = 3
    reference[1, 0], reference[1, 1] = 7, 9
    case = make_case("scan", np.zeros((2, 4, 4, 1), np.uint8), reference, np.zeros_like(reference), DISJOINT, drawn)
    assert [plane.sum() for plane in case.reference] == [4, 4]
    assert not case.mask.any()


def test_colours_are_the_labels_own_or_ones_that_none_has():
    assert choose_colours(DISJOINT) == ["#E69F00", "#0AC81E"]
    sky = Labels(("a", "b", "c"), ((1,), (2,), (3,)), colours=(None, None, (0xE6, 0x9F, 0x00)))
    assert choose_colours(sky) == ["#56B4E9", "#009E73", "#E69F00"]
    many = Labels(tuple("abcdefghi"), tuple((value,) for value in range(1, 10)))
    assert len(set(choose_colours(many)[:7])) == 7


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_each_label_has_a_confusion_matrix(tmp_path, count):
    counts = {"true_negatives": 10**6, "false_positives": 500, "false_negatives": 300, "true_positives": 9000}
    draw_confusion_matrix({f"label {number}": counts for number in range(count)}, tmp_path / "confusion.png")
    assert read(tmp_path / "confusion.png").size


@pytest.mark.parametrize("count", [5, 300])
def test_dice_of_each_label_stands_beside_the_mean(tmp_path, count):
    random = np.random.default_rng(0)
    apart = {"Anterior": random.beta(8, 2, count), "Posterior": np.append(random.beta(6, 3, count - 1), math.nan)}
    mean = np.nanmean(list(apart.values()), axis=0)
    names = [f"scan {index}" for index in range(count)]
    draw_dice_per_scan(names, mean, tmp_path / "dice.png", by_label=apart, labels=DISJOINT)
    assert count_colour(read(tmp_path / "dice.png"), (10, 200, 30)) > 20


@pytest.mark.parametrize("count", [2, 5, 30])
def test_labels_that_exclude_each_other_share_one_confusion_matrix(tmp_path, count):
    counts = np.random.default_rng(0).integers(0, 5000, (count + 1, count + 1)) + 10**6 * np.eye(count + 1, dtype=int)
    draw_confusion_between([f"label number {number}" for number in range(count)], counts, tmp_path / "confusion.png")
    assert max(read(tmp_path / "confusion.png").shape) < 2000


@pytest.mark.parametrize("shape", [(50, 40, 40, 1), (1, 2000, 40, 3)])
def test_of_large_scans_only_a_part_is_looked_at(monkeypatch, shape):
    pixels = np.random.default_rng(0).integers(0, 1000, shape, np.uint16)
    whole = predictions._to_display(pixels, 0)
    monkeypatch.setattr(predictions, "MOST_BYTES_LOOKED_AT", 40_000)
    assert predictions._thin(pixels).size * 4 <= 45_000
    assert np.abs(predictions._to_display(pixels, 0).astype(int) - whole).max() < 8
    monkeypatch.setattr(predictions, "MOST_BYTES_LOOKED_AT", 4 * pixels.size)
    assert predictions._thin(pixels).shape == pixels.shape
