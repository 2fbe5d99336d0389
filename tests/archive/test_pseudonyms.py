"""One key, and what stands in the place of an identifier."""

from __future__ import annotations

import hashlib
import hmac
import os
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raysegment.archive.pseudonyms import (
    Pseudonyms,
    check_same_key,
    default_key_file,
    load_pseudonyms,
    warn_of_key,
)
from raysegment.errors import UsageError

KEY = bytes(range(32))


@pytest.fixture
def configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    return tmp_path / "raysegment" / "pseudonyms.key"


def test_a_pseudonym_is_the_hmac_of_kind_and_text() -> None:
    expected = hmac.new(KEY, b"patient\0Ann \xc3\x96", hashlib.sha256).hexdigest()
    assert Pseudonyms(KEY).hash("patient", "Ann Ö") == expected[:16]
    assert Pseudonyms(KEY).hash("patient", "Ann Ö", 12) == expected[:12]
    assert Pseudonyms(KEY).hash("patient", "Ann Ö", 64) == expected


@given(st.text(), st.text())
def test_texts_kinds_and_keys_are_told_apart(first: str, second: str) -> None:
    one, other = Pseudonyms(KEY), Pseudonyms(KEY[::-1])
    assert (one.hash("patient", first) == one.hash("patient", second)) == (first == second)
    assert one.hash("patient", first) != one.hash("study", first)
    assert one.hash("patient", first) != other.hash("patient", first)


def test_names_that_are_no_text_have_a_pseudonym_too() -> None:
    assert len(Pseudonyms(KEY).hash("scan", "a\udcff/b")) == 16


@pytest.mark.parametrize("digits", [0, 65])
def test_a_hash_has_1_to_64_digits(digits: int) -> None:
    with pytest.raises(ValueError, match=f"{digits} digits"):
        Pseudonyms(KEY).hash("patient", "x", digits)


def test_no_representation_shows_the_key() -> None:
    shown = repr(Pseudonyms(KEY, "k")) + str(Pseudonyms(KEY, "k"))
    assert repr(KEY) not in shown
    assert KEY.hex() not in shown


def test_a_fingerprint_tells_keys_apart_without_the_key() -> None:
    one, other = Pseudonyms(KEY), Pseudonyms(KEY[::-1])
    assert one.fingerprint == Pseudonyms(KEY, "elsewhere").fingerprint != other.fingerprint
    assert len(one.fingerprint) == 16
    assert one.fingerprint not in KEY.hex()


def test_the_users_own_key_is_made_once_and_for_the_user_alone(configuration: Path) -> None:
    assert default_key_file() == configuration
    made = load_pseudonyms(None)
    assert stat.S_IMODE(configuration.stat().st_mode) == 0o600
    assert stat.S_IMODE(configuration.parent.stat().st_mode) == 0o700
    assert load_pseudonyms(None) == made
    assert made.path == str(configuration)
    assert os.listdir(configuration.parent) == [configuration.name]
    assert warn_of_key(made) == []


def test_the_umask_opens_no_key(configuration: Path) -> None:
    before = os.umask(0)
    try:
        load_pseudonyms(None)
    finally:
        os.umask(before)
    assert stat.S_IMODE(configuration.stat().st_mode) == 0o600


def test_processes_that_begin_at_once_share_one_key(configuration: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        keys = {item.key for item in pool.map(lambda _: load_pseudonyms(None), range(16))}
    assert len(keys) == 1


@pytest.mark.parametrize("content", [KEY, KEY.hex().encode(), KEY.hex().upper().encode() + b"\r\n"])
def test_a_key_is_32_bytes_or_64_hex_digits(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "k"
    file.write_bytes(content)
    assert load_pseudonyms(str(file)).key == KEY


@pytest.mark.parametrize("content", [b"", KEY[:31], KEY + b"\n", b"secret!" * 9, b"g" * 64, KEY * 1000])
def test_what_is_no_key_is_refused_and_not_shown(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "k"
    file.write_bytes(content)
    with pytest.raises(UsageError, match="that are no key; expected 32 random bytes") as refused:
        load_pseudonyms(str(file))
    assert "secret" not in str(refused.value)


def test_a_key_file_that_is_named_is_never_made(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="does not exist"):
        load_pseudonyms(str(tmp_path / "typo"))
    assert not list(tmp_path.iterdir())


def test_folders_and_pipes_are_no_key_files(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe"):
        with pytest.raises(UsageError, match="no regular file"):
            load_pseudonyms(str(path))


def test_a_key_that_others_may_read_is_told(tmp_path: Path) -> None:
    file = tmp_path / "k"
    file.write_bytes(KEY)
    file.chmod(0o640)
    (line,) = warn_of_key(load_pseudonyms(str(file)))
    assert line.startswith("warning: others may read the key file")
    assert "0640" in line


def test_a_configuration_folder_that_cannot_be_made_is_a_wrong_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "file"))
    with pytest.raises(UsageError, match=r"cannot be made: .*--key-file"):
        load_pseudonyms(None)


def test_what_was_made_with_another_key_is_refused_and_what_had_none_goes_on() -> None:
    one, other = Pseudonyms(KEY).fingerprint, Pseudonyms(KEY[::-1]).fingerprint
    assert check_same_key(one, one, "it") == one
    assert (check_same_key(None, one, "it"), check_same_key(one, None, "it")) == (one, one)
    assert check_same_key(None, None, "it") is None
    with pytest.raises(UsageError, match=f"MODEL m has pseudonyms of the key {one}, and now the key is {other}"):
        check_same_key(one, other, "MODEL m")
