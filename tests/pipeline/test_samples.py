import numpy as np
import pytest

from raysegment.errors import ChannelMismatchError, UnknownSpacingError
from raysegment.imaging.augment import Augmentation
from raysegment.imaging.phantom import make_phantom
from raysegment.options import Preprocessing
from raysegment.pipeline.samples import keep_scan, make_batch, pack_scan, score_scan, unpack_scan
from raysegment.pipeline.views.slices import view_slice, view_slices
from raysegment.scan import Labels, Scan


@pytest.fixture(scope="module")
def kept():
    pixels, reference = make_phantom(3)
    return keep_scan("a/b", Scan(pixels), reference, Preprocessing(image_size=64), num_channels=3, for_validation=True)


def test_a_kept_scan_comes_back_from_its_row_unchanged(kept) -> None:
    again = unpack_scan(pack_scan(kept))
    assert np.array_equal(again.pixels, kept.pixels)
    assert np.array_equal(again.reference, kept.reference)
    assert np.array_equal(again.grid_reference, kept.grid_reference)
    assert again.geometry == kept.geometry
    assert np.array_equal(again.intensity.offset, kept.intensity.offset)


def test_a_scan_with_other_channels_than_the_rest_is_refused() -> None:
    pixels, reference = make_phantom(3)
    with pytest.raises(ChannelMismatchError, match="2 channels, most scans of this archive have 3"):
        keep_scan("a", Scan(pixels[..., :2]), reference, Preprocessing(), num_channels=3, for_validation=False)


@pytest.mark.parametrize("context", [0, 1, 2])
def test_neighbours_of_one_slice_are_those_of_the_whole_stack(kept, context: int) -> None:
    stacked = view_slices(kept.pixels, range(len(kept.pixels)), context)
    for index in range(len(kept.pixels)):
        assert np.array_equal(view_slice(kept.pixels, index, context), stacked[index])


def test_a_batch_is_in_plan_order_and_without_augmentation_only_normalized(kept) -> None:
    rows = [(0, 2, 0), (0, 0, 0), (0, 2, 1)]
    pixels, reference = make_batch(rows, lambda scan: kept, None, context_slices=0, seed=0, epoch=0)
    raw = kept.pixels[[2, 0, 2]].astype(np.float64)
    assert np.allclose(pixels, (raw - kept.intensity.offset) * kept.intensity.scale, atol=1e-5)
    assert np.array_equal(reference, kept.reference[[2, 0, 2]])


def test_validation_counts_are_those_of_the_scans_own_grid(kept) -> None:
    answers = iter(np.array_split(kept.reference.astype(np.float32), range(3, len(kept.reference), 3)))
    score = score_scan(
        kept,
        lambda pixels: next(answers)[..., None],
        lambda reference, probability: np.ones(len(reference), np.float32),
        Labels(),
        context_slices=0,
        batch_size=3,
    )
    ((true_positives, mask_voxels, reference_voxels),) = score.counts
    assert reference_voxels == int(kept.grid_reference.sum())
    assert score.num_slices == score.loss_sum == len(kept.pixels)
    assert true_positives <= min(mask_voxels, reference_voxels)
    assert 2 * true_positives / (mask_voxels + reference_voxels) > 0.9


@pytest.mark.parametrize(
    ("labels", "values"),
    [(Labels(("a", "b"), ((1,), (2,))), (1, 2)), (Labels(("all", "b"), ((1, 300), (300,))), (1, 300))],
)
def test_each_label_is_validated_on_its_own(labels, values) -> None:
    pixels, drawn = make_phantom(3)
    label_map = np.where(drawn, values[0], 0).astype(np.min_scalar_type(max(values)))
    middle = int(np.median(np.nonzero(drawn)[2]))
    label_map[:, :, middle:][drawn[:, :, middle:]] = values[1]
    kept = keep_scan("a", Scan(pixels), label_map, Preprocessing(image_size=64), num_channels=3, for_validation=True)
    again = unpack_scan(pack_scan(kept))
    assert again.reference.dtype == again.grid_reference.dtype == label_map.dtype
    assert np.array_equal(again.reference, kept.reference)
    planes = np.moveaxis(labels.planes_of(kept.reference), 0, -1).astype(np.float32)
    given = np.concatenate([1 - planes.sum(-1, keepdims=True), planes], -1) if labels.exclude_each_other else planes
    answers = iter(np.array_split(given, range(4, len(given), 4)))
    losses = lambda reference, probability: reference.max(axis=(1, 2)).astype(np.float32)  # noqa: E731
    score = score_scan(again, lambda _: next(answers), losses, labels, context_slices=0, batch_size=4)
    assert score.counts[:, 2].tolist() == [int(plane.sum()) for plane in labels.planes_of(label_map)]
    for true_positives, mask_voxels, reference_voxels in score.counts:
        assert 2 * true_positives / (mask_voxels + reference_voxels) > 0.85
    assert score.loss_sum == kept.reference.max(axis=(1, 2)).sum()


PHYSICAL = Preprocessing(image_size=64, pixel_mm=1.0)


@pytest.fixture(scope="module")
def large():
    pixels, reference = make_phantom(3, image_size=128)
    scan = Scan(pixels, (5.0, 1.0, 0.7))
    return keep_scan("a", scan, reference, PHYSICAL, num_channels=3, for_validation=True)


@pytest.mark.parametrize("augmentation", [None, Augmentation()])
@pytest.mark.parametrize("context", [0, 1])
def test_of_a_large_slice_a_patch_is_seen_that_its_numbers_choose(large, augmentation, context) -> None:
    assert large.pixels.shape[1:3] == (128, 90)
    lesion = int(np.flatnonzero(large.has_lesion)[0])
    rows = [(0, lesion, number) for number in range(12)]
    drawn = [make_batch(rows, lambda _: large, augmentation, context_slices=context, seed=1, epoch=2) for _ in range(2)]
    pixels, reference = drawn[0]
    assert pixels.shape == (12, 64, 64, 3 * (2 * context + 1))
    assert reference.shape == (12, 64, 64)
    assert np.mean(reference.any(axis=(1, 2))) >= 0.5
    assert all(np.array_equal(first, second) for first, second in zip(*drawn, strict=True))
    assert len({plane.tobytes() for plane in pixels}) > 6


def test_validation_of_a_large_scan_goes_through_tiles(large) -> None:
    seen = []

    def predict(pixels: np.ndarray) -> np.ndarray:
        seen.append(pixels.shape)
        return np.ones((*pixels.shape[:3], 1), np.float32)

    losses = lambda reference, probability: np.ones(len(reference), np.float32)  # noqa: E731
    score = score_scan(large, predict, losses, Labels(), context_slices=0, batch_size=16)
    assert {shape[1:3] for shape in seen} == {(64, 64)}
    assert all(shape[0] <= 16 for shape in seen)
    assert score.num_slices == len(large.pixels)
    assert score.counts[0, 1] == large.grid_reference.size


def test_training_needs_the_size_of_pixels_that_are_to_have_one() -> None:
    pixels, reference = make_phantom(3)
    with pytest.raises(UnknownSpacingError, match="--pixel-mm 1 needs it; give --spacing-mm"):
        keep_scan("a", Scan(pixels), reference, PHYSICAL, num_channels=3, for_validation=False)
    kept = keep_scan(
        "a", Scan(pixels), reference, PHYSICAL, num_channels=3, for_validation=False, spacing_mm=(5.0, 0.1, 0.1)
    )
    assert kept.pixels.shape[1:3] == (64, 64)
