from __future__ import annotations

import hashlib

import numpy as np
import pytest

from raysegment.errors import NetworkFailedError
from raysegment.imaging.measure import measure_mask
from raysegment.imaging.phantom import make_phantom
from raysegment.options import Postprocessing, Preprocessing
from raysegment.pipeline import segment as segment_module
from raysegment.pipeline.blocks import ReadScan
from raysegment.pipeline.segment import ScanSegmenter, allocate_probability
from raysegment.pipeline.settings import SegmentSettings
from raysegment.scan import Labels, Scan
from raysegment.store.masks import decode_mask


def settings_with(**changes) -> SegmentSettings:
    preprocessing = changes.pop("preprocessing", Preprocessing(image_size=64, normalization="scale"))
    postprocessing = changes.pop("postprocessing", Postprocessing(threshold=0.5))
    return SegmentSettings(
        preprocessing=preprocessing,
        postprocessing=postprocessing,
        labels=changes.pop("labels", Labels()),
        num_channels=changes.pop("num_channels", 3),
        grid_factor=4,
        **changes,
    )


def read_of(scan_id: str, pixels: np.ndarray, **known) -> ReadScan:
    return ReadScan(scan_id, "p", "/archive", "f", Scan(pixels, known.pop("spacing_mm", None)), **known)


def brightness(batch: np.ndarray) -> np.ndarray:
    """A network that sees lesion where channel 1 is bright, so masks are known without training."""
    return batch[..., 1:2].astype(np.float32)


class Watcher:
    """A network that remembers the shapes of its batches."""

    def __init__(self) -> None:
        self.shapes: list[tuple[int, ...]] = []

    def __call__(self, batch: np.ndarray) -> np.ndarray:
        self.shapes.append(batch.shape)
        return brightness(batch)


def segment(reads: list[ReadScan], settings: SegmentSettings, predict=brightness):
    segmenter = ScanSegmenter(lambda batch: [predict(batch)], settings)
    return {rows.scan_id: rows for rows in segmenter.segment(reads)}


def bright_square(slices: int = 6, size: int = 64) -> tuple[np.ndarray, np.ndarray]:
    reference = np.zeros((slices, size, size), np.bool_)
    reference[1:3, 20:30, 40:50] = True
    pixels = np.full((slices, size, size, 3), 40, np.uint8)
    pixels[reference] = 250
    return pixels, reference


def test_the_mask_lies_where_the_lesion_is():
    pixels, reference = bright_square()
    rows = segment([read_of("a", pixels, reference=reference, spacing_mm=(5.0, 1.0, 2.0))], settings_with())["a"]
    np.testing.assert_array_equal(decode_mask(rows.mask), reference)
    metric = rows.metrics[0]
    assert (metric["label"], metric["dice"], metric["true_positives"]) == ("lesion", 1.0, 200)
    assert metric["volume_ml"] == pytest.approx(200 * 10 / 1000)
    assert (rows.scan["num_slices"], rows.scan["height"], rows.scan["status"]) == (6, 64, "ok")


def test_the_mask_is_on_the_scans_own_grid():
    pixels, reference = bright_square()
    large = np.repeat(np.repeat(pixels, 3, axis=1), 2, axis=2)
    rows = segment([read_of("a", large)], settings_with(foreground_box=False))["a"]
    mask = decode_mask(rows.mask)
    expected = np.repeat(np.repeat(reference, 3, axis=1), 2, axis=2)
    assert mask.shape == (6, 192, 128)
    assert 2 * (mask & expected).sum() / (mask.sum() + expected.sum()) > 0.9
    assert rows.metrics[0]["dice"] is None


def test_spacing_is_never_made_up():
    pixels, _ = bright_square()
    unknown = segment([read_of("a", pixels)], settings_with())["a"]
    assert unknown.scan["spacing_mm"] is None
    assert unknown.mask["spacing_mm"] is None
    assert np.isnan(unknown.metrics[0]["volume_ml"])
    given = segment([read_of("a", pixels)], settings_with(spacing_mm=(5.0, 1.0, 1.0)))["a"]
    assert given.scan["spacing_mm"] == [5.0, 1.0, 1.0]


def test_a_foreground_box_changes_no_mask_of_a_local_network_and_saves_pixels():
    pixels, reference = make_phantom(3, image_size=128, slices=8)
    framed = np.pad(pixels, ((0, 0), (64, 64), (64, 64), (0, 0)))
    drawn = np.pad(reference, ((0, 0), (64, 64), (64, 64)))
    large = Preprocessing(image_size=256, normalization="zscore")
    watcher = Watcher()
    with_box = segment([read_of("a", framed, reference=drawn)], settings_with(preprocessing=large), watcher)["a"]
    without = segment(
        [read_of("a", framed, reference=drawn)], settings_with(preprocessing=large, foreground_box=False)
    )["a"]
    assert with_box.metrics[0]["dice"] == pytest.approx(without.metrics[0]["dice"], abs=1e-9)
    assert all(rows * columns <= 0.5 * 256 * 256 for _, rows, columns, _ in watcher.shapes)
    assert all(rows % 16 == columns % 16 == 0 for _, rows, columns, _ in watcher.shapes)


def test_slices_that_hold_nothing_are_not_shown_to_the_network():
    pixels, _ = bright_square(slices=9)
    pixels[6:] = 0
    watcher = Watcher()
    rows = segment([read_of("a", pixels)], settings_with(), watcher)["a"]
    assert sum(shape[0] for shape in watcher.shapes) == 2
    assert decode_mask(rows.mask).shape == (9, 64, 64)


def test_batches_depend_on_the_scan_alone():
    scans = {f"s{n}": make_phantom(n, image_size=64, slices=n)[0] for n in (1, 2, 4, 5, 17, 23)}
    alone, together = Watcher(), Watcher()
    settings = settings_with(foreground_box=False)
    for name, pixels in scans.items():
        segment([read_of(name, pixels)], settings, alone)
    segment([read_of(name, pixels) for name, pixels in scans.items()], settings, together)
    own = [shape[0] for shape in alone.shapes if shape[0] != 16]
    assert own == [5, 1, 7]
    assert {shape[0] for shape in together.shapes} == {16, 5, 1, 7}


def test_small_scans_share_full_batches_and_get_their_own_masks():
    scans = {f"s{n}": bright_square(slices=1 + n % 3)[0] * (n % 2) for n in range(40)}
    watcher = Watcher()
    rows = segment([read_of(name, pixels) for name, pixels in scans.items()], settings_with(), watcher)
    assert {shape[0] for shape in watcher.shapes} == {16}
    assert len(rows) == 40
    for name, pixels in scans.items():
        np.testing.assert_array_equal(decode_mask(rows[name].mask), pixels[..., 1] == 250)


def test_context_slices_are_channels_in_order():
    pixels = np.zeros((6, 64, 64, 1), np.uint8)
    pixels[:, 0, 0, 0] = np.arange(6) * 10
    pixels[:, 1, 1, 0] = 255
    seen = []

    def look(batch: np.ndarray) -> np.ndarray:
        seen.extend((batch[:, 0, 0] * 255).round().astype(int).tolist())
        return batch[..., :1]

    choices = Preprocessing(image_size=64, normalization="scale", context_slices=1)
    segment([read_of("a", pixels)], settings_with(preprocessing=choices, num_channels=1, foreground_box=False), look)
    assert seen[:3] == [[0, 0, 10], [0, 10, 20], [10, 20, 30]]
    assert seen[5] == [40, 50, 50]


def test_one_bad_scan_is_a_row_and_its_neighbours_go_on():
    pixels, _ = bright_square()
    reads = [
        ReadScan("lost", "p", "/archive", "f", None, error=("TruncatedFileError", "lost.tif ends early")),
        read_of("grey", pixels[..., :1]),
        read_of("nan", np.full((6, 64, 64, 3), np.nan, np.float32)),
        read_of("good", pixels),
    ]
    rows = segment(reads, settings_with())
    errors = {name: row.scan.get("error_type") for name, row in rows.items()}
    assert errors == {
        "lost": "TruncatedFileError",
        "grey": "ChannelMismatchError",
        "nan": "NonFinitePixelsError",
        "good": None,
    }
    assert rows["lost"].scan["error_message"] == "lost.tif ends early"
    assert (rows["grey"].mask, rows["grey"].metrics) == (None, ())


def test_what_nobody_foresaw_fails_one_scan_only(monkeypatch):
    pixels, _ = bright_square()

    def break_on_dark(mask, reference, spacing_mm, **known):
        if not mask.any():
            raise RuntimeError("nobody foresaw this")
        return measure_mask(mask, reference, spacing_mm, **known)

    monkeypatch.setattr(segment_module, "measure_mask", break_on_dark)
    rows = segment([read_of("dark", pixels // 10), read_of("good", pixels)], settings_with())
    assert rows["dark"].scan["error_type"] == "WorkerCrashedError"
    assert "nobody foresaw this" in rows["dark"].scan["error_message"]
    assert rows["good"].scan["status"] == "ok"


@pytest.mark.parametrize("slices", [2, 6])
def test_a_failing_network_is_no_scans_fault(slices):
    def fail(batch: np.ndarray) -> np.ndarray:
        raise MemoryError("no memory left on the GPU")

    with pytest.raises(NetworkFailedError, match="MemoryError: no memory left on the GPU"):
        segment([read_of("a", bright_square(slices)[0])], settings_with(), fail)


def test_a_bad_reference_fails_a_scan_only_where_one_is_needed():
    pixels, _ = bright_square()
    read = read_of("a", pixels, reference_error="GridMismatchError: reference is (1, 2, 3)")
    kept = segment([read], settings_with())["a"]
    assert (kept.scan["status"], kept.scan["reference_error"]) == ("ok", "GridMismatchError: reference is (1, 2, 3)")
    failed = segment([read], settings_with(needs_reference=True))["a"]
    assert (failed.scan["error_type"], failed.scan["error_message"]) == ("GridMismatchError", "reference is (1, 2, 3)")


def test_postprocessing_works_in_three_dimensions():
    pixels, reference = bright_square()
    pixels[5, 2:4, 2:4] = 250
    choices = Postprocessing(threshold=0.5, min_component_voxels=10)
    rows = segment([read_of("a", pixels)], settings_with(postprocessing=choices))["a"]
    np.testing.assert_array_equal(decode_mask(rows.mask), reference)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_mask_does_not_depend_on_its_neighbours_in_the_batch(precision):
    from raysegment.model.engines.tensorflow import Predictor
    from raysegment.model.unet import build_network

    network = build_network(
        network="unet", input_shape=(64, 64, 3), filters=8, depth=2, dropout=0.0, norm="batch", norm_momentum=0.9
    )
    predict = Predictor(network, precision=precision).predict
    scans = {f"s{n}": make_phantom(n, image_size=64, slices=1 + n % 6)[0] for n in range(20)}
    together = segment([read_of(name, pixels) for name, pixels in scans.items()], settings_with(), predict)
    for name, pixels in scans.items():
        alone = segment([read_of(name, pixels)], settings_with(), predict)[name]
        assert alone.mask == together[name].mask
        np.testing.assert_equal(alone.metrics[0], together[name].metrics[0])


def noisy_ring() -> tuple[np.ndarray, np.ndarray]:
    """A ring with holes, specks around it, and a box for a reference."""
    pixels = np.random.default_rng(0).integers(0, 256, (9, 64, 64, 3), np.uint8)
    rows, columns = np.mgrid[:64, :64]
    distance = np.hypot(rows - 30, columns - 34)
    ring = (distance < 20) & (distance > 9)
    pixels[2:7, ring] = np.maximum(pixels[2:7, ring], 150)
    pixels[2:7, ~ring] //= 2
    reference = np.zeros((9, 64, 64), np.uint8)
    reference[3:7, 10:50, 12:52] = 1
    return pixels, reference


RING_CHOICES = Postprocessing(threshold=0.45, min_component_voxels=12, fill_holes=True)


def test_one_label_gives_the_mask_and_the_numbers_of_version_0_2():
    pixels, reference = noisy_ring()
    read = read_of("a", pixels, reference=reference, spacing_mm=(5.0, 1.0, 0.5))
    rows = segment([read], settings_with(postprocessing=RING_CHOICES))["a"]
    mask = decode_mask(rows.mask)
    assert (mask.dtype, mask.shape, rows.mask["labels"]) == (np.uint8, (9, 64, 64), [("lesion", 1)])
    digest = hashlib.sha256(mask.tobytes()).hexdigest()
    assert digest == "535329ea9e3c762edae3a35942220314fc73cc0976029cf0bff92105138b3d86"
    expected = {
        "voxels": 22386,
        "volume_ml": 55.965,
        "num_components": 2,
        "mean_probability": 0.545127500619714,
        "mask_is_empty": False,
        "reference_voxels": 6400,
        "true_positives": 5022,
        "false_positives": 17364,
        "false_negatives": 1378,
        "true_negatives": 13100,
        "dice": 0.3489196137011047,
        "iou": 0.21132805924928463,
        "accuracy": 0.4915907118055556,
        "precision": 0.22433663897078532,
        "recall": 0.7846875,
        "f1": 0.3489196137011047,
        "reference_is_empty": False,
        "dice_at_half": 0.3918334097041902,
        "lesion_slices": 4,
        "lesion_slice_dice_sum": 3.226656177701222,
        "clean_slices": 5,
        "clean_slices_with_mask": 5,
    }
    (metric,) = rows.metrics
    assert (metric["scan_id"], metric["label"]) == ("a", "lesion")
    assert {name: metric[name] for name in expected} == pytest.approx(expected, rel=1e-13)


def both_channels(batch: np.ndarray) -> np.ndarray:
    """Two labels: the first where channel 0 is bright, the second where channel 1 is."""
    return batch[..., :2].astype(np.float32) / 2


def test_two_labels_get_a_row_each_and_their_values_in_one_mask():
    labels = Labels(("front", "back"), ((1, 5), (7,)))
    pixels = np.zeros((6, 64, 64, 3), np.uint8)
    pixels[1:4, 10:20, 10:20, 0] = 255
    pixels[1:4, 10:20, 20:30, 1] = 255
    reference = np.zeros((6, 64, 64), np.uint8)
    reference[1:4, 10:20, 10:15] = 1
    reference[1:4, 10:20, 15:20] = 5
    reference[1:4, 10:20, 22:32] = 7
    read = read_of("a", pixels, reference=reference, spacing_mm=(2.0, 1.0, 1.0))
    rows = segment([read], settings_with(labels=labels, foreground_box=False), both_channels)["a"]
    expected = np.zeros((6, 64, 64), np.uint8)
    expected[1:4, 10:20, 10:20] = 1
    expected[1:4, 10:20, 20:30] = 7
    np.testing.assert_array_equal(decode_mask(rows.mask), expected)
    assert rows.mask["labels"] == [("front", 1), ("back", 7)]
    front, back = rows.metrics
    assert (front["label"], front["voxels"], front["dice"], front["volume_ml"]) == ("front", 300, 1.0, 0.6)
    assert (back["label"], back["true_positives"], back["dice"]) == ("back", 240, pytest.approx(0.8))
    assert back["dice_at_half"] == pytest.approx(0.8)
    assert front["mean_probability"] == pytest.approx(0.5)


def test_overlapping_labels_have_planes_of_their_own():
    labels = Labels(("whole", "core"), ((1, 2), (2,)))
    pixels = np.zeros((6, 64, 64, 3), np.uint8)
    pixels[1:4, 10:30, 10:30, 0] = 255
    pixels[1:4, 15:20, 15:20, 1] = 255
    reference = np.zeros((6, 64, 64), np.uint8)
    reference[1:4, 10:30, 10:30] = 1
    reference[1:4, 15:20, 15:20] = 2
    chosen = settings_with(
        labels=labels, foreground_box=False, postprocessing=Postprocessing(threshold="whole=0.4,core=0.45")
    )
    rows = segment([read_of("a", pixels, reference=reference)], chosen, both_channels)["a"]
    mask = decode_mask(rows.mask)
    np.testing.assert_array_equal(mask, np.stack([reference != 0, reference == 2]))
    assert rows.mask["labels"] == [("whole", 1), ("core", 1)]
    assert [(metric["label"], metric["voxels"], metric["dice"]) for metric in rows.metrics] == [
        ("whole", 1200, 1.0),
        ("core", 75, 1.0),
    ]


def test_references_may_number_the_models_labels_otherwise():
    pixels = np.zeros((6, 64, 64, 3), np.uint8)
    pixels[1:4, 10:20, 10:20, 0] = 255
    pixels[1:4, 10:20, 20:30, 1] = 255
    reference = np.zeros((6, 64, 64), np.uint16)
    reference[1:4, 10:20, 10:20] = 300
    reference[1:4, 10:20, 20:30] = 4
    reference[0] = 9
    chosen = settings_with(
        labels=Labels(("front", "back"), ((1,), (2,))),
        reference_labels=Labels(("front", "back", "other"), ((300,), (4,), (9,))),
        foreground_box=False,
    )
    rows = segment([read_of("a", pixels, reference=reference)], chosen, both_channels)["a"]
    assert [metric["dice"] for metric in rows.metrics] == [1.0, 1.0]
    assert set(np.unique(decode_mask(rows.mask)).tolist()) == {0, 1, 2}


PHYSICAL = Preprocessing(image_size=32, normalization="scale", pixel_mm=1.0)


def test_slices_larger_than_the_network_sees_are_tiled_and_their_masks_whole():
    pixels, reference = bright_square(size=100)
    watcher = Watcher()
    read = read_of("a", pixels, reference=reference, spacing_mm=(5.0, 1.0, 0.5))
    rows = segment([read], settings_with(preprocessing=PHYSICAL), watcher)["a"]
    assert {shape[1:3] for shape in watcher.shapes} == {(32, 32)}
    assert decode_mask(rows.mask).shape == (6, 100, 100)
    assert rows.metrics[0]["dice"] > 0.95


def test_pixels_of_their_own_size_give_the_mask_of_an_untiled_network_across_all_borders():
    pixels, reference = make_phantom(2, image_size=128, slices=6)
    read = read_of("a", pixels, reference=reference, spacing_mm=(5.0, 1.0, 1.0))
    whole = segment([read], settings_with(preprocessing=Preprocessing(image_size=128, normalization="zscore")))["a"]
    tiles = Preprocessing(image_size=32, normalization="zscore", pixel_mm=1.0)
    for foreground_box in (True, False):
        tiled = segment([read], settings_with(preprocessing=tiles, foreground_box=foreground_box))["a"]
        different = np.count_nonzero(decode_mask(tiled.mask) != decode_mask(whole.mask))
        assert different <= 2


def test_tiled_masks_do_not_depend_on_what_shares_their_batches():
    scans = {f"s{n}": make_phantom(n, image_size=64, slices=n)[0] for n in (1, 3, 4, 5, 9)}
    reads = [read_of(name, pixels, spacing_mm=(5.0, 0.9, 1.3)) for name, pixels in scans.items()]
    choices = Preprocessing(image_size=32, normalization="zscore", pixel_mm=1.0)
    together = segment(reads, settings_with(preprocessing=choices))
    assert sum(rows.metrics[0]["voxels"] for rows in together.values()) > 1000
    for batch_size in (1, 5):
        for read in reads:
            alone = segment([read], settings_with(preprocessing=choices, batch_size=batch_size))[read.scan_id]
            assert alone.mask["mask"] == together[read.scan_id].mask["mask"]
            np.testing.assert_equal(alone.metrics, together[read.scan_id].metrics)


def test_a_scan_whose_pixels_have_no_known_size_fails_alone():
    pixels, _ = bright_square()
    reads = [read_of("unknown", pixels), read_of("known", pixels, spacing_mm=(5.0, 1.0, 1.0))]
    rows = segment(reads, settings_with(preprocessing=PHYSICAL))
    assert rows["unknown"].scan["error_type"] == "UnknownSpacingError"
    assert "--spacing-mm" in rows["unknown"].scan["error_message"]
    assert rows["known"].scan["status"] == "ok"
    given = segment(reads[:1], settings_with(preprocessing=PHYSICAL, spacing_mm=(5.0, 1.0, 1.0)))["unknown"]
    assert given.mask["mask"] == rows["known"].mask["mask"]


def test_a_scan_that_would_be_too_large_to_hold_fails_alone():
    read = read_of("a", bright_square()[0], spacing_mm=(5.0, 1.0, 200.0))
    rows = segment([read], settings_with(preprocessing=PHYSICAL))["a"]
    assert rows.scan["error_type"] == "OversizedScanError"
    assert "64x12800 pixels" in rows.scan["error_message"]


def test_volumes_follow_the_affine_where_there_is_one():
    pixels, _ = bright_square()
    affine = np.array([[0, 0, 0.5, 0], [3, 1, 0, 0], [4, 0, 0, 0], [0, 0, 0, 1]], np.float64)
    read = ReadScan("a", "p", "/archive", "f", Scan(pixels, (5.0, 1.0, 0.5), affine))
    metric = segment([read], settings_with())["a"].metrics[0]
    assert metric["volume_ml"] == pytest.approx(metric["voxels"] * 4 * 0.5 / 1000)


def test_large_volumes_of_several_labels_are_held_in_half_precision(monkeypatch):
    assert allocate_probability(2, (3, 4, 4)).dtype == np.float32
    monkeypatch.setattr("raysegment.pipeline.segment.LARGE_BYTES", 1)
    assert allocate_probability(1, (3, 4, 4)).dtype == np.float32
    assert allocate_probability(2, (3, 4, 4)).dtype == np.float16
    test_two_labels_get_a_row_each_and_their_values_in_one_mask()
    test_overlapping_labels_have_planes_of_their_own()
