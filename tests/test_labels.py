"""Labels: disjoint and overlapping regions, and what they are in references and masks."""

import numpy as np
import pytest

from raysegment.errors import UsageError
from raysegment.scan import Labels

BRATS = Labels(("WT", "TC", "ET"), ((1, 2, 4), (1, 4), (4,)))
HIPPOCAMPUS = Labels(("Anterior", "Posterior"), ((1,), (2,)))


def test_one_undeclared_label_is_1_in_masks():
    labels = Labels()
    assert not labels.are_declared
    assert not labels.exclude_each_other
    assert labels.mask_values == {"lesion": 1}
    assert labels.known_values == {0, 1}


def test_disjoint_labels_keep_their_values_in_masks():
    assert HIPPOCAMPUS.exclude_each_other
    assert not HIPPOCAMPUS.overlap
    assert HIPPOCAMPUS.mask_values == {"Anterior": 1, "Posterior": 2}


def test_overlapping_labels_are_planes():
    assert BRATS.overlap
    assert not BRATS.exclude_each_other
    assert BRATS.mask_values == {"WT": 1, "TC": 1, "ET": 1}
    found = BRATS.planes_of(np.array([[[0, 1, 2, 4]]], np.uint8))
    assert found.astype(int).tolist() == [[[[0, 1, 1, 1]]], [[[0, 1, 0, 1]]], [[[0, 0, 0, 1]]]]


def test_one_label_of_several_values_does_not_overlap():
    labels = Labels(("lesion",), ((2, 3),))
    assert not labels.overlap
    assert labels.mask_values == {"lesion": 2}
    assert labels.plane_of(np.array([[[1, 2, 3]]], np.uint8), 0).tolist() == [[[False, True, True]]]


@pytest.mark.parametrize(
    ("names", "regions"),
    [
        ((), ()),
        (("a", "a"), ((1,), (2,))),
        (("a", "b"), ()),
        (("a",), ((1,), (2,))),
        (("a",), ((0,),)),
        (("a",), ((),)),
        (("a",), ((-1,),)),
    ],
)
def test_nonsense_is_refused(names, regions):
    with pytest.raises(UsageError):
        Labels(names, regions)


@pytest.mark.parametrize("name", ["core, enhancing", "a=b", " core", "core\n"])
def test_a_declared_name_that_cannot_be_typed_is_refused(name):
    with pytest.raises(UsageError, match="no comma, no = and no blanks at its ends"):
        Labels((name, "ET"), ((1, 4), (4,)))
    assert Labels((name,)).names == (name,)
