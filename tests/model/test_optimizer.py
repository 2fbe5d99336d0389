"""Weight decay: what it takes away, and from what."""

import numpy as np
import pytest
import tensorflow as tf

from raysegment.errors import UsageError
from raysegment.model.optimizer import make_optimizer, make_rate
from raysegment.model.unet import build_network
from raysegment.options import TrainOptions

CHOICES = {"source": "scans", "out": "run", "schedule": "constant", "learning_rate": 0.01}


@pytest.mark.parametrize("norm", ["batch", "group", "none"])
def test_weight_decay_shrinks_kernels_by_its_share_and_nothing_else(norm):
    options = TrainOptions(**CHOICES, weight_decay=5.0)
    model = build_network(network="attention_unet", input_shape=(16, 16, 2), filters=2, depth=1, norm=norm)
    for variable in model.trainable_variables:
        variable.assign(tf.ones_like(variable))
    optimizer = make_optimizer(options, make_rate(options, 10))
    optimizer.build(model.trainable_variables)
    step = tf.function(
        lambda: optimizer.apply([tf.zeros_like(v) for v in model.trainable_variables], model.trainable_variables)
    )
    step()
    step()
    for variable in model.trainable_variables:
        # No gradient, so that Adam's own step is 0; two steps of 5 x 0.01 leave 0.95 squared.
        expected = 0.9025 if variable.name == "kernel" else 1.0
        np.testing.assert_allclose(variable.numpy(), expected, rtol=1e-6, err_msg=variable.path)
    assert {variable.name for variable in model.trainable_variables} >= {"kernel"}


def test_a_decay_that_takes_all_of_the_weights_is_refused():
    with pytest.raises(UsageError, match=r"--weight-decay 100 with --learning-rate 0.01 takes all .* less than 100"):
        TrainOptions(**CHOICES, weight_decay=100.0)
    assert TrainOptions(**CHOICES, weight_decay=99.0).weight_decay == 99
