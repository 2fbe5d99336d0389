"""Masks of several networks against an average written out by hand."""

import keras
import numpy as np
import pytest
from sklearn.metrics import f1_score
from test_segment import read_of, settings_with

from raysegment.imaging.phantom import make_phantom
from raysegment.model.engines.tensorflow import Predictor
from raysegment.model.unet import build_network
from raysegment.options import Postprocessing
from raysegment.pipeline.segment import ScanSegmenter
from raysegment.store.masks import decode_mask


@pytest.fixture(scope="module")
def networks():
    keras.utils.set_random_seed(5)
    return [build_network(input_shape=(64, 64, 3), filters=4, depth=depth) for depth in (1, 2)]


def test_masks_and_doubt_are_those_of_the_average(networks):
    pixels, _ = make_phantom(4, image_size=64, slices=7)
    each = [np.float64(network(pixels.astype(np.float32) / 255, training=False))[..., 0] for network in networks]
    mean = (each[0] + each[1]) / 2
    # Far from the probability of any voxel, so that the last bits decide nothing.
    values = np.sort(mean, axis=None)
    middle = values[len(values) // 4 : -len(values) // 4]
    widest = np.argmax(np.diff(middle))
    threshold = float(middle[widest : widest + 2].mean())

    settings = settings_with(postprocessing=Postprocessing(threshold=threshold), foreground_box=False)
    predictor = Predictor(networks, precision="float32")
    (rows,) = ScanSegmenter(predictor.predict_each, settings).segment([read_of("a", pixels)])
    np.testing.assert_array_equal(decode_mask(rows.mask), mean >= threshold)
    assert rows.metrics[0]["mean_probability"] == pytest.approx(mean[mean >= threshold].mean(), abs=1e-6)
    hard = [(found >= threshold).ravel() for found in each]
    assert rows.metrics[0]["member_dice"] == pytest.approx(f1_score(*hard), abs=1e-3)


def test_one_network_has_no_members_to_disagree(networks):
    pixels, _ = make_phantom(4, image_size=64, slices=5)
    predictor = Predictor(networks[:1], precision="float32")
    (rows,) = ScanSegmenter(predictor.predict_each, settings_with()).segment([read_of("a", pixels)])
    assert rows.metrics[0]["member_dice"] is None
