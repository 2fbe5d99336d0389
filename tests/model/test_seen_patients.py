"""Hashes of the patients that a bundle was trained on."""

from __future__ import annotations

import hashlib
import json

import pytest

from raysegment.model.patients import SCRYPT_COST, hash_patients, hash_unsalted, read_patients


def test_a_patient_is_stored_as_scrypt_of_name_and_salt() -> None:
    (group,) = hash_patients(["Ann"], [], "weights").as_plain
    salt = bytes.fromhex(group["salt"])
    expected = hashlib.scrypt(b"Ann", salt=salt, n=SCRYPT_COST, r=8, p=1, dklen=16).hex()
    assert (group["hashes"], group["scrypt"]) == ([expected], {"n": SCRYPT_COST, "r": 8, "p": 1})


def test_what_is_stored_knows_whom_it_was_made_of() -> None:
    stored = read_patients(json.loads(json.dumps(hash_patients(["Ann", "Bob"], [], "weights").as_plain)))
    assert [name in stored for name in ("Ann", "Bob", "ann", "")] == [True, True, False, False]


def test_two_bundles_do_not_show_that_they_share_a_patient() -> None:
    one, other = (hash_patients(["Ann"], [], weights) for weights in ("first", "second"))
    assert not set(one.as_plain[0]["hashes"]) & set(other.as_plain[0]["hashes"])
    assert one.as_plain[0]["salt"] != other.as_plain[0]["salt"]
    assert one == hash_patients(["Ann"], [], "first")


def test_hashes_of_older_versions_are_still_understood() -> None:
    old = read_patients([hashlib.sha256(b"Ann").hexdigest()])
    assert ("Ann" in old, "Bob" in old, len(old)) == (True, False, 1)
    assert old.as_plain == [hash_unsalted("Ann")]


def test_inherited_patients_are_kept_unless_they_are_trained_on_again() -> None:
    base = hash_patients(["Ann", "Bob"], [hash_unsalted("Old"), hash_unsalted("Cid")], "base")
    tuned = hash_patients(["Bob", "Cid"], base.as_plain, "tuned")
    assert all(name in tuned for name in ("Ann", "Bob", "Cid", "Old"))
    assert len(tuned) == 4
    assert len(hash_patients(["Ann", "Bob", "Old", "Cid"], base.as_plain, "all").salted) == 1


def test_members_that_share_a_base_keep_its_patients_once() -> None:
    base = hash_patients(["Ann"], [], "base")
    assert hash_patients([], [*base.as_plain, *base.as_plain], "both") == base


@pytest.mark.parametrize(
    "item",
    [
        7,
        {"salt": "00", "hashes": []},
        {"scrypt": {"n": 2**30, "r": 8, "p": 1}, "salt": "00", "hashes": []},
        {"scrypt": {"n": 1000, "r": 8, "p": 1}, "salt": "00", "hashes": []},
        {"scrypt": {"n": 1024, "r": 8, "p": 1}, "salt": "no hex", "hashes": []},
    ],
    ids=["number", "no numbers", "too much memory", "no power of two", "no salt"],
)
def test_what_is_no_list_of_hashes_is_refused(item: object) -> None:
    with pytest.raises((ValueError, KeyError)):
        read_patients([item])
