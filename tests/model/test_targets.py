"""The label axis inside the network's step."""

import numpy as np
import pytest

from raysegment.imaging.postprocess import threshold_probability
from raysegment.model.targets import find_masks
from raysegment.scan import Labels

ONE = Labels(("lesion",), ((1,),))
OVERLAPPING = Labels(("whole", "core"), ((1, 2), (2,)))
EXCLUSIVE = Labels(("first", "second"), ((1,), (2,)))


@pytest.mark.parametrize("labels", [ONE, OVERLAPPING, EXCLUSIVE], ids=["one", "overlapping", "exclusive"])
def test_masks_while_training_are_those_of_a_run_at_one_half(labels):
    random = np.random.default_rng(0)
    # Quarters, so that many sums are exactly one half, as a network that has learnt nothing gives.
    parts = random.multinomial(4, np.full(len(labels) + 1, 1 / (len(labels) + 1)), size=(2, 9, 9)) / 4
    probability = parts.astype(np.float32)
    of_labels = probability[..., 1:]
    mask = threshold_probability(np.moveaxis(of_labels, -1, 0), labels, (0.5,) * len(labels))
    expected = np.stack([labels.plane_of_mask(mask, position) for position in range(len(labels))], axis=-1)
    found = find_masks(probability if labels.exclude_each_other else of_labels, labels)
    np.testing.assert_array_equal(np.asarray(found), expected)
