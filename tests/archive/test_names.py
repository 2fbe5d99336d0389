from __future__ import annotations

import os

from hypothesis import given, settings
from hypothesis import strategies as st

from raysegment.archive.filesystem import decode_name, encode_name
from raysegment.archive.names import natural_key, show_name

RAW_NAMES = st.binary(min_size=1, max_size=40) | st.text(min_size=1, max_size=20).map(
    lambda text: text.encode("utf-8", "surrogatepass")
)


@settings(deadline=None)
@given(RAW_NAMES)
def test_every_file_name_survives_encoding(raw):
    name = os.fsdecode(raw)
    text = encode_name(name)
    text.encode("utf-8")
    assert os.fsencode(decode_name(text)) == raw


@settings(deadline=None)
@given(RAW_NAMES)
def test_shown_names_are_one_printable_line(raw):
    assert show_name(encode_name(os.fsdecode(raw))).isprintable()


@settings(deadline=None)
@given(st.text("_\U0010fe80\U0010fec3a", max_size=8))
def test_names_that_look_escaped_survive_too(name):
    assert decode_name(encode_name(name)) == name


def test_numbers_sort_as_numbers():
    assert sorted(["a_10", "a_2", "a_1", "b", "a"], key=natural_key) == ["a", "a_1", "a_2", "a_10", "b"]
