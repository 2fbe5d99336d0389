"""Pictures of what a network in training finds."""

import math
from pathlib import Path

import cv2
import numpy as np
import pytest

from raysegment.imaging.intensity import normalize
from raysegment.imaging.phantom import make_phantom
from raysegment.options import Preprocessing
from raysegment.pictures import predictions
from raysegment.pipeline.preview import draw_previews, make_previews
from raysegment.pipeline.samples import keep_scan
from raysegment.pipeline.views.slices import view_slices
from raysegment.scan import Labels, Scan

DICE = [0.5, math.nan, 0.9, 0.1]


@pytest.fixture(scope="module")
def scans():
    kept = []
    for seed in range(4):
        pixels, reference = make_phantom(seed, image_size=64, slices=7)
        options = Preprocessing(image_size=32)
        kept.append(keep_scan(f"scan {seed}", Scan(pixels), reference, options, num_channels=3, for_validation=True))
    return kept


def test_best_median_and_worst_are_seen_where_their_references_are_largest(scans):
    seen = []

    def predict(pixels):
        seen.append(pixels)
        return (pixels[..., 3:4] > 0).astype(np.float32)

    previews = make_previews(DICE, scans.__getitem__, predict, Labels(), context_slices=1, epoch=5)
    assert [item.title for item in previews] == [
        "best of 4, Dice 0.90\nepoch 5\nscan 2",
        "median of 4, Dice 0.50\nepoch 5\nscan 0",
        "worst of 4, Dice 0.10\nepoch 5\nscan 3",
    ]
    for item, kept, pixels in zip(previews, (scans[2], scans[0], scans[3]), seen, strict=True):
        position = int(kept.reference.sum(axis=(1, 2)).argmax())
        assert np.array_equal(item.reference[0], kept.reference[position])
        assert np.array_equal(item.pixels[0], kept.pixels[position])
        expected = normalize(view_slices(kept.pixels, [position], 1), kept.intensity)
        np.testing.assert_array_equal(pixels, expected)
        np.testing.assert_array_equal(item.mask[0] != 0, expected[0, ..., 3] > 0)


@pytest.mark.parametrize(("regions", "outputs"), [(((1,), (2,)), 3), (((1,), (1, 2)), 2)])
def test_labels_that_exclude_each_other_and_labels_that_overlap_are_drawn(scans, tmp_path: Path, regions, outputs):
    labels = Labels(("a", "b"), regions)

    def predict(pixels):
        given = np.zeros((*pixels.shape[:3], outputs), np.float32)
        given[:, :16, :, 0], given[:, 16:, :, outputs - 1] = 1, 1
        return given

    previews = make_previews(DICE, scans.__getitem__, predict, labels, context_slices=0, epoch=1)
    drawn_b = labels.plane_of_mask(previews[0].mask, 1)[0]
    assert drawn_b[16:].all()
    assert not drawn_b[:16].any()
    draw_previews(previews, tmp_path / "figures" / "predictions.png", labels)
    assert cv2.imread(str(tmp_path / "figures" / "predictions.png")).shape[0] > 300
    assert [path.name for path in (tmp_path / "figures").iterdir()] == ["predictions.png"]


def test_a_full_disk_leaves_the_figure_that_was_there(scans, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    figure = tmp_path / "predictions.png"
    figure.write_bytes(b"the one before")

    def fill_disk(cases, path, labels):
        Path(path).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(predictions, "draw_predictions", fill_disk)
    previews = make_previews(
        DICE, scans.__getitem__, lambda pixels: pixels[..., :1], Labels(), context_slices=0, epoch=1
    )
    with pytest.raises(OSError, match="No space left"):
        draw_previews(previews, figure, Labels())
    assert figure.read_bytes() == b"the one before"
    assert list(tmp_path.iterdir()) == [figure]


def test_without_any_dice_there_is_nothing_to_show(scans):
    assert (
        make_previews(
            [math.nan] * 4, scans.__getitem__, lambda pixels: pixels[..., :1], Labels(), context_slices=0, epoch=1
        )
        == []
    )
