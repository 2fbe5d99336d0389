"""Any bytes are a text in any alphabet, and none of them get lost."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from raysegment.archive.dicom.alphabets import ENCODINGS, ESCAPES, ESCAPES_OF_CODEC, TO_ASCII, decode_text

PARTS = st.one_of(st.binary(max_size=6), st.sampled_from([*ESCAPES, *ESCAPES_OF_CODEC, TO_ASCII, b"\x1b", b"\x1b$"]))


@given(parts=st.lists(PARTS, max_size=6), encoding=st.sampled_from(sorted(set(ENCODINGS.values()))))
def test_no_bytes_are_an_error(parts, encoding):
    decode_text(b"".join(parts), encoding)


@given(text=st.text(st.characters(codec="ascii", exclude_characters="\x1b\x0e\x0f\\~"), max_size=12))
def test_ascii_is_ascii_behind_every_escape_back_to_it(text):
    for encoding in set(ENCODINGS.values()):
        assert decode_text(b"\x1b$B;3\x1b(B" + text.encode(), encoding) == "山" + text
