import keras
import numpy as np
import pytest
import tensorflow as tf
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


def draw_labels(num_labels, shape=(3, 8, 6), seed=0):
    """Reference planes that exclude each other, and logits with a background's before them."""
    random = np.random.default_rng(seed)
    label_map = random.integers(0, num_labels + 1, shape)
    label_map[-1] = 0
    planes = np.stack([label_map == label for label in range(1, num_labels + 1)], axis=-1).astype(np.float32)
    return planes, random.normal(0, 2, (*shape, num_labels + 1)).astype(np.float32)


def softmax(logits):
    exponents = np.exp(logits.astype(np.float64))
    return exponents / exponents.sum(axis=-1, keepdims=True)


NAMES = ["dice", "bce", "dice_bce", "focal", "tversky"]


@pytest.mark.parametrize("name", NAMES)
def test_softmax_over_background_and_one_label_costs_what_a_sigmoid_does(name):
    planes, logits = draw_labels(1)
    probability = softmax(logits).astype(np.float32)
    found = np.asarray(make_loss(name, "softmax")(planes, probability))
    np.testing.assert_allclose(found, loss_of(name, planes, probability[..., 1:]), rtol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_labels_of_their_own_cost_the_mean_of_what_each_costs(name):
    planes, logits = draw_labels(3)
    probability = (1 / (1 + np.exp(-logits[..., 1:]))).astype(np.float32)
    apart = [loss_of(name, planes[..., i : i + 1], probability[..., i : i + 1]) for i in range(3)]
    np.testing.assert_allclose(loss_of(name, planes, probability), np.mean(apart, axis=0), rtol=1e-5)


@pytest.mark.parametrize("name", ["dice", "tversky"])
def test_overlap_of_labels_that_exclude_each_other_is_the_mean_over_labels_without_background(name):
    planes, logits = draw_labels(3)
    probability = softmax(logits).astype(np.float32)
    found = np.asarray(make_loss(name, "softmax")(planes, probability))
    np.testing.assert_allclose(found, loss_of(name, planes, probability[..., 1:]), rtol=1e-6)


def test_cross_entropy_of_labels_that_exclude_each_other_is_scikit_learns_log_loss():
    planes, logits = draw_labels(2)
    probability = softmax(logits)
    label_map = (planes * [1, 2]).sum(axis=-1).astype(int)
    expected = [
        log_loss(r.ravel(), p.reshape(-1, 3), labels=[0, 1, 2]) for r, p in zip(label_map, probability, strict=True)
    ]
    found = make_loss("bce", "softmax")(planes, probability.astype(np.float32))
    np.testing.assert_allclose(np.asarray(found), expected, rtol=1e-5)
    both = make_loss("dice_bce", "softmax")(planes, probability.astype(np.float32))
    dice = make_loss("dice", "softmax")(planes, probability.astype(np.float32))
    np.testing.assert_allclose(both, np.asarray(dice) + expected, rtol=1e-5)


def test_focal_loss_of_labels_that_exclude_each_other_by_hand():
    planes = np.array([[[1, 0], [0, 0]]], np.float32)[None]
    probability = np.array([[[0.2, 0.7, 0.1], [0.6, 0.1, 0.3]]], np.float32)[None]
    expected = (0.25 * 0.3**2 * -np.log(0.7) + 0.75 * 0.4**2 * -np.log(0.6)) / 2
    np.testing.assert_allclose(make_loss("focal", "softmax")(planes, probability), [expected], rtol=1e-5)


def expected_loss(name, planes, logits, head):
    """The losses in plain NumPy and double precision, summed over slices."""
    full = softmax(logits) if head == "softmax" else 1 / (1 + np.exp(-logits.astype(np.float64)))
    probability = full[..., 1:] if head == "softmax" else full
    both, drawn, found = (a.sum(axis=(1, 2)) for a in (planes * probability, planes, probability))
    everything = np.concatenate([1 - planes.sum(axis=-1, keepdims=True), planes], axis=-1)
    if head == "softmax":
        entropy = -(everything * np.log(full)).sum(axis=-1).mean(axis=(1, 2))
        weights = np.array([0.75] + [0.25] * planes.shape[-1])
        focal = -(weights * everything * (1 - full) ** 2 * np.log(full)).sum(axis=-1).mean(axis=(1, 2))
    else:
        right = np.where(planes > 0, full, 1 - full)
        entropy = -np.log(right).mean(axis=(1, 2, 3))
        focal = -(np.where(planes > 0, 0.25, 0.75) * (1 - right) ** 2 * np.log(right)).mean(axis=(1, 2, 3))
    dice = (1 - (2 * both + 1) / (drawn + found + 1)).mean(axis=-1)
    tversky = (1 - (both + 1) / (both + 0.3 * (found - both) + 0.7 * (drawn - both) + 1)).mean(axis=-1)
    return {"dice": dice, "bce": entropy, "dice_bce": dice + entropy, "focal": focal, "tversky": tversky}[name].sum()


@pytest.mark.parametrize("head", ["sigmoid", "softmax"])
@pytest.mark.parametrize("name", NAMES)
def test_gradients_are_those_of_finite_differences(name, head):
    planes, logits = draw_labels(2, shape=(2, 3, 4))
    logits = logits if head == "softmax" else logits[..., 1:]

    @tf.function
    def differentiate(logits):
        with tf.GradientTape() as tape:
            tape.watch(logits)
            total = tf.reduce_sum(make_loss(name, head)(tf.constant(planes), getattr(keras.activations, head)(logits)))
        return total, tape.gradient(total, logits)

    total, gradient = differentiate(tf.constant(logits))
    assert float(total) == pytest.approx(expected_loss(name, planes, logits, head), rel=1e-4)
    step, exact = 1e-5, logits.astype(np.float64)
    for index in np.ndindex(logits.shape):
        move = np.zeros_like(exact)
        move[index] = step
        ahead, behind = (expected_loss(name, planes, exact + sign * move, head) for sign in (1, -1))
        assert float(gradient[index]) == pytest.approx((ahead - behind) / (2 * step), rel=2e-3, abs=2e-6)
