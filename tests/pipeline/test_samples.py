import numpy as np
import pytest

from raysegment.errors import ChannelMismatchError
from raysegment.imaging.phantom import make_phantom
from raysegment.options import Preprocessing
from raysegment.pipeline.samples import keep_scan, make_batch, pack_scan, score_scan, unpack_scan
from raysegment.pipeline.views.slices import view_slice, view_slices
from raysegment.scan import Scan


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
    score = score_scan(kept, lambda pixels: next(answers), lambda a, b: np.ones(len(a), np.float32), 0, 3)
    assert score.reference_voxels == int(kept.grid_reference.sum())
    assert score.num_slices == score.loss_sum == len(kept.pixels)
    assert score.true_positives <= min(score.mask_voxels, score.reference_voxels)
    assert 2 * score.true_positives / (score.mask_voxels + score.reference_voxels) > 0.9
