"""Averages over mirrored passes, over members and over slices, against the same written by hand."""

from __future__ import annotations

import numpy as np
import pytest

from raysegment.errors import UsageError
from raysegment.imaging.phantom import make_phantom
from raysegment.options import Mirror, Postprocessing, Preprocessing
from raysegment.pipeline.blocks import ReadScan
from raysegment.pipeline.passes import Agreement, run_passes, smooth_over_slices
from raysegment.pipeline.segment import ScanSegmenter
from raysegment.pipeline.settings import SegmentSettings
from raysegment.pipeline.views.tiles import tile_starts, tile_weights
from raysegment.scan import Labels, Scan
from raysegment.store.masks import decode_mask

ONE = Labels()
APART = Labels(("tumour", "left kidney", "right kidney"), ((1,), (2,), (3,)))
NESTED = Labels(("whole", "core"), ((1, 2), (2,)))
AXIAL = np.array([[0, 0, -1, 0], [0, -1, 0, 0], [2, 0, 0, 0], [0, 0, 0, 1]], np.float64)
"""Slices run up, rows to the back, columns from right to left."""

FLIPS: dict[Mirror, list[tuple[int, ...]]] = {
    "none": [()],
    "columns": [(), (2,)],
    "rows": [(), (1,)],
    "rows,columns": [(), (1,), (2,), (1, 2)],
}


def lopsided(num_labels: int, apart: bool):
    """A network that takes notice of where things are, and of what lies beside them."""

    def predict(batch: np.ndarray) -> np.ndarray:
        rows, columns = np.linspace(-1, 1, batch.shape[1]), np.linspace(-2, 1, batch.shape[2])
        ramp = (rows[:, None] ** 3 + columns**2)[None]
        beside = np.roll(batch[..., -1], (1, 3), axis=(1, 2))
        scores = [
            (3 - label) * batch[..., label % batch.shape[-1]] - beside + ramp / (label + 1) - 1
            for label in range(num_labels)
        ]
        strength = np.exp(np.stack(scores, axis=-1))
        return (strength / (1 + (strength.sum(axis=-1, keepdims=True) if apart else strength))).astype(np.float32)

    return predict


def settings_with(labels: Labels, mirror: Mirror, smooth: bool, **preprocessing) -> SegmentSettings:
    choices = {"image_size": 32, "normalization": "scale", "slice_axis": "axial"} | preprocessing
    return SegmentSettings(
        preprocessing=Preprocessing(**choices),
        postprocessing=Postprocessing(threshold=0.4, mirror=mirror, smooth_slices=smooth),
        labels=labels,
        num_channels=3,
        grid_factor=4,
        foreground_box=False,
    )


def read_of(size: int = 32, slices: int = 7, seed: int = 0) -> ReadScan:
    pixels = np.random.default_rng(seed).integers(0, 256, (slices, size, size, 3), np.uint8)
    pixels[0, 0, 0], pixels[-1, -1, -1] = 0, 255
    return ReadScan("a", "p", "/archive", "f", Scan(pixels, (2.0, 1.0, 1.0), AXIAL))


def finish(predict, settings: SegmentSettings, read: ReadScan):
    segmenter = ScanSegmenter(lambda batch: [predict(batch)], settings)
    work = segmenter.prepare(read)
    segmenter.predict_alone(work)
    return work, segmenter.finish(work)


def average_by_hand(predict, seen: np.ndarray, mirror: Mirror, sides: list[int]) -> np.ndarray:
    """(slices, rows, columns, channels) to the mean over passes, (slices, rows, columns, labels), float64."""
    total = np.zeros((*seen.shape[:3], len(sides)))
    for axes in FLIPS[mirror]:
        found = seen
        for axis in axes:
            found = np.flip(found, axis)
        found = predict(np.ascontiguousarray(found)).astype(np.float64)
        for axis in axes:
            found = np.flip(found, axis)
        total += found[..., sides] if 2 in axes else found
    return total / len(FLIPS[mirror])


def smooth_by_hand(probability: np.ndarray) -> np.ndarray:
    padded = np.concatenate([probability[:1], probability, probability[-1:]])
    return 0.25 * padded[:-2] + 0.5 * padded[1:-1] + 0.25 * padded[2:]


@pytest.mark.parametrize("mirror", FLIPS)
@pytest.mark.parametrize("smooth", [False, True])
@pytest.mark.parametrize(
    ("labels", "sides"), [(ONE, [0]), (APART, [0, 2, 1]), (NESTED, [0, 1])], ids=["one", "apart", "nested"]
)
@pytest.mark.parametrize("context_slices", [0, 1])
def test_mirrored_passes_and_smoothing_are_a_plain_average(labels, sides, smooth, mirror, context_slices):
    read = read_of()
    predict = lopsided(len(labels), labels.exclude_each_other)
    work, _ = finish(predict, settings_with(labels, mirror, smooth, context_slices=context_slices), read)
    pixels = read.scan.pixels.astype(np.float32) / np.float32(255)
    if context_slices:
        pixels = np.concatenate([pixels[[0, *range(6)]], pixels, pixels[[*range(1, 7), 6]]], axis=-1)
    expected = average_by_hand(predict, pixels, mirror, sides)
    expected = smooth_by_hand(expected) if smooth else expected
    np.testing.assert_allclose(work.probability, np.moveaxis(expected, -1, 0), rtol=0, atol=1e-6)


@pytest.mark.parametrize(("labels", "sides"), [(ONE, [0]), (APART, [0, 2, 1])], ids=["one", "apart"])
def test_tiles_are_mirrored_each_on_its_own(labels, sides):
    read = read_of(size=50)
    predict = lopsided(len(labels), labels.exclude_each_other)
    work, _ = finish(predict, settings_with(labels, "rows,columns", True, pixel_mm=1.0), read)
    pixels = read.scan.pixels.astype(np.float32) / np.float32(255)
    expected = np.zeros((7, 50, 50, len(labels)))
    weights = tile_weights(50, 32)
    for number, row in enumerate(tile_starts(50, 32)):
        for other, column in enumerate(tile_starts(50, 32)):
            found = average_by_hand(predict, pixels[:, row : row + 32, column : column + 32], "rows,columns", sides)
            share = np.outer(weights[number], weights[other])[..., None]
            expected[:, row : row + 32, column : column + 32] += found * share
    expected = smooth_by_hand(expected)
    np.testing.assert_allclose(work.probability, np.moveaxis(expected, -1, 0), rtol=0, atol=1e-6)


def test_members_and_passes_count_alike():
    batch = np.random.default_rng(1).random((3, 16, 16, 3)).astype(np.float32)
    members = [lopsided(2, False), lambda seen: 1 - lopsided(2, False)(seen), lambda seen: seen[..., :2]]
    found = run_passes(lambda seen: [member(seen) for member in members], batch, "rows,columns", (), (0.4, 0.6), NESTED)
    means = [average_by_hand(member, batch, "rows,columns", [0, 1]) for member in members]
    np.testing.assert_allclose(found.probability, np.mean(means, axis=0), rtol=0, atol=1e-6)
    assert found.probability.dtype == np.float32
    hard = [mean >= np.array([0.4, 0.6]) for mean in means]
    pairs = [(hard[0], hard[1]), (hard[0], hard[2]), (hard[1], hard[2])]
    expected = sum(count(first, second) for first, second in pairs)
    np.testing.assert_array_equal(found.member_counts, expected)


def count(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    return np.stack([(part).sum(axis=(1, 2)) for part in (first & second, first, second)], axis=-1)


def test_the_pass_as_it_is_is_compared_with_each_mirrored_one():
    batch = np.random.default_rng(1).random((3, 16, 16, 3)).astype(np.float32)
    predict = lopsided(1, False)
    found = run_passes(lambda seen: [predict(seen)], batch, "rows,columns", (), (0.5,), ONE)
    plain = predict(batch) >= 0.5
    others = [np.flip(predict(np.flip(batch, axes)), axes) >= 0.5 for axes in ((2,), (1,), (1, 2))]
    np.testing.assert_array_equal(found.mirror_counts, sum(count(plain, other) for other in others))
    assert found.member_counts is None
    alone = run_passes(lambda seen: [predict(seen)], batch, "none", (), (0.5,), ONE)
    assert (alone.mirror_counts, alone.member_counts) == (None, None)


def test_a_scans_agreement_is_that_of_all_its_batches():
    read, labels = read_of(slices=9), APART
    predict = lopsided(3, True)
    small, large = (
        finish(predict, replaced(settings_with(labels, "columns", False), batch_size=size), read)[0] for size in (2, 16)
    )
    pixels = read.scan.pixels.astype(np.float32) / np.float32(255)
    plain, mirrored = predict(pixels), np.flip(predict(np.flip(pixels, 2)), 2)[..., [0, 2, 1]]
    masks = [np.where(part.sum(-1) >= 0.4, part.argmax(-1) + 1, 0) for part in (plain, mirrored)]
    for position in range(3):
        first, second = (mask == position + 1 for mask in masks)
        dice = 2 * (first & second).sum() / (first.sum() + second.sum())
        assert small.agreement.mirror_dice(position) == pytest.approx(dice, abs=1e-12)
        assert large.agreement.mirror_dice(position) == small.agreement.mirror_dice(position)
    assert small.agreement.member_dice(0) is None


def replaced(settings: SegmentSettings, **changes) -> SegmentSettings:
    return SegmentSettings(**{**vars(settings), **changes})


def test_passes_that_find_nothing_agree_on_nothing():
    empty = run_passes(lambda seen: [seen[..., :1] * 0] * 2, np.ones((2, 8, 8, 1), np.float32), "rows", (), (0.5,), ONE)
    agreement = Agreement()
    agreement.add(empty, slice(0, 2))
    assert np.isnan(agreement.mirror_dice(0))
    assert np.isnan(agreement.member_dice(0))


def test_smoothing_in_half_precision_takes_its_sums_in_single():
    single = np.random.default_rng(0).random((2, 9, 8, 8)).astype(np.float32)
    half = single.astype(np.float16)
    expected = np.moveaxis(smooth_by_hand(np.moveaxis(half.astype(np.float64), 1, 0)), 0, 1)
    smooth_over_slices(half)
    np.testing.assert_array_equal(half, expected.astype(np.float32).astype(np.float16))
    one = single[:, :1].copy()
    smooth_over_slices(one)
    np.testing.assert_array_equal(one, single[:, :1])


def test_a_mirrored_pass_sees_the_mirrored_window_and_no_empty_slice():
    pixels = np.zeros((8, 64, 64, 3), np.uint8)
    pixels[:6, 20:30, 40:60] = np.arange(20, dtype=np.uint8)[:, None] + 200
    seen = []

    def predict(batch: np.ndarray) -> np.ndarray:
        seen.append(batch)
        return batch[..., :1]

    settings = replaced(settings_with(ONE, "columns", False, image_size=64), foreground_box=True)
    finish(predict, settings, ReadScan("a", "p", "/a", "f", Scan(pixels)))
    assert len(seen) % 2 == 0
    for plain, mirrored in zip(seen[::2], seen[1::2], strict=True):
        assert plain.shape[2] < 64
        np.testing.assert_array_equal(mirrored, plain[:, :, ::-1])
    assert sum(len(batch) for batch in seen) == 2 * 6


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_averaged_masks_do_not_depend_on_the_batch(precision):
    import keras

    from raysegment.model.engines.tensorflow import Predictor
    from raysegment.model.unet import build_network

    keras.utils.set_random_seed(3)
    network = build_network(
        network="unet", input_shape=(64, 64, 3), filters=8, depth=2, dropout=0.0, norm="batch", norm_momentum=0.9
    )
    predictor = Predictor(network, precision=precision)
    scans = [
        ReadScan(f"s{n}", "p", "/a", "f", Scan(make_phantom(n, image_size=64, slices=1 + n % 6)[0])) for n in range(12)
    ]
    settings = replaced(settings_with(ONE, "rows,columns", True, image_size=64), foreground_box=True)
    settings = replaced(
        settings, postprocessing=Postprocessing(threshold=0.5, mirror="rows,columns", smooth_slices=True)
    )

    def segment(reads, size):
        segmenter = ScanSegmenter(lambda batch: [predictor.predict(batch)], replaced(settings, batch_size=size))
        return {rows.scan_id: rows for rows in segmenter.segment(reads)}

    together = segment(scans, 16)
    assert any(0 < decode_mask(rows.mask).mean() < 1 for rows in together.values())
    for read in scans:
        for size in (16, 4):
            alone = segment([read], size)[read.scan_id]
            assert alone.mask == together[read.scan_id].mask
            np.testing.assert_equal(alone.metrics, together[read.scan_id].metrics)


def test_a_scan_that_does_not_say_where_its_sides_are_fails_alone():
    lost, known = read_of(), read_of(seed=1)
    lost = ReadScan("lost", "p", "/archive", "f", Scan(lost.scan.pixels, (2.0, 1.0, 1.0)))
    predict = lopsided(3, True)
    segmenter = ScanSegmenter(lambda batch: [predict(batch)], settings_with(APART, "columns", False))
    rows = {found.scan_id: found.scan for found in segmenter.segment([lost, known])}
    assert rows["lost"]["error_type"] == "AffineError"
    assert "left kidney" in rows["lost"]["error_message"]
    assert rows["a"]["status"] == "ok"
    with pytest.raises(UsageError, match="--slice-axis auto"):
        ScanSegmenter(lambda batch: [predict(batch)], settings_with(APART, "columns", False, slice_axis="auto"))
