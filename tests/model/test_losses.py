import numpy as np
import pytest
from sklearn.metrics import log_loss

from raysegment.model.losses import make_loss

REFERENCE = np.array([[[1, 1], [0, 0]], [[0, 0], [0, 0]]], np.float32)[..., None]
PROBABILITY = np.array([[[0.9, 0.5], [0.2, 0.4]], [[0.1, 0.1], [0.1, 0.1]]], np.float32)[..., None]


def loss_of(name, reference=REFERENCE, probability=PROBABILITY):
    return np.asarray(make_loss(name)(reference, probability))


def test_dice_loss_by_hand():
    # First slice: overlap 0.9 + 0.5, sums 2 and 2.0; second: overlap 0, sums 0 and 0.4.
    np.testing.assert_allclose(loss_of("dice"), [1 - (2.8 + 1) / (4.0 + 1), 1 - 1 / 1.4], atol=1e-6)


def test_bce_loss_equals_scikit_learns_log_loss():
    expected = [log_loss(r.ravel(), p.ravel(), labels=[0, 1]) for r, p in zip(REFERENCE, PROBABILITY, strict=True)]
    np.testing.assert_allclose(loss_of("bce"), expected, rtol=1e-5)


def test_dice_bce_is_the_sum_of_both():
    np.testing.assert_allclose(loss_of("dice_bce"), loss_of("dice") + loss_of("bce"), rtol=1e-6)


def test_focal_loss_by_hand():
    # alpha · (1 − p)² · −ln p where the reference is 1, (1 − alpha) · p² · −ln(1 − p) where it is 0.
    lesion = 0.25 * (0.1**2 * -np.log(0.9) + 0.5**2 * -np.log(0.5))
    clean = 0.75 * (0.2**2 * -np.log(0.8) + 0.4**2 * -np.log(0.6))
    np.testing.assert_allclose(loss_of("focal"), [(lesion + clean) / 4, 0.75 * 0.01 * -np.log(0.9)], rtol=1e-4)


def test_tversky_loss_by_hand():
    # First slice: hits 1.4, false alarms 0.6, misses 0.6; second: false alarms 0.4.
    first = 1 - (1.4 + 1) / (1.4 + 0.3 * 0.6 + 0.7 * 0.6 + 1)
    np.testing.assert_allclose(loss_of("tversky"), [first, 1 - 1 / (0.3 * 0.4 + 1)], atol=1e-6)


@pytest.mark.parametrize("name", ["dice", "bce", "dice_bce", "focal", "tversky"])
def test_a_slices_loss_does_not_depend_on_its_batch_and_is_float32(name):
    whole = loss_of(name)
    apart = [loss_of(name, REFERENCE[i : i + 1], PROBABILITY[i : i + 1])[0] for i in range(2)]
    assert whole.dtype == np.float32
    np.testing.assert_allclose(whole, apart, rtol=1e-6)
    np.testing.assert_allclose(loss_of(name, REFERENCE.astype(np.uint8)), whole, rtol=1e-6)


@pytest.mark.parametrize("name", ["dice", "bce", "dice_bce", "focal", "tversky"])
def test_a_perfect_prediction_costs_next_to_nothing(name):
    assert loss_of(name, REFERENCE, REFERENCE).max() < 1e-5
