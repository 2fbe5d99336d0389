from __future__ import annotations

import zlib

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from raysegment.store.masks import decode_mask, encode_mask


@given(hnp.arrays(np.uint8, hnp.array_shapes(min_dims=3, max_dims=4, max_side=6), elements=st.integers(0, 3)))
def test_a_mask_comes_back_as_it_was(mask):
    row = encode_mask("a", mask, labels={"lesion": 1})
    np.testing.assert_array_equal(decode_mask(row), mask)


def test_a_mask_is_decoded_with_numpy_and_zlib_alone():
    mask = np.zeros((2, 3, 4), np.uint8)
    mask[1, 2, 3] = 1
    row = encode_mask("a", mask[:, ::1], labels={"lesion": 1}, spacing_mm=(5.0, 1.0, 1.0), affine=np.eye(4))
    decoded = np.frombuffer(zlib.decompress(row["mask"]), row["dtype"]).reshape(row["shape"])
    assert decoded.sum() == decoded[1, 2, 3] == 1
    assert (row["spacing_mm"], row["affine"][:6], row["encoding"]) == ([5.0, 1.0, 1.0], [1, 0, 0, 0, 0, 1], "zlib")


def test_a_mask_that_is_not_contiguous_is_stored_in_c_order():
    mask = np.arange(24, dtype=np.uint8).reshape(4, 3, 2).transpose(2, 1, 0)
    np.testing.assert_array_equal(decode_mask(encode_mask("a", mask, labels={})), mask)
