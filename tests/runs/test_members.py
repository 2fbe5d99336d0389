"""Members of a cohort over many looks at its source, against a plain account kept by hand."""

from __future__ import annotations

import datetime

import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from raysegment.runs.members import MEMBERS_SCHEMA, find_vanished, update_members


def manifest_of(fingerprints: dict[str, str]) -> pa.Table:
    schema = pa.schema([("scan_id", pa.string()), ("fingerprint", pa.string()), ("bytes", pa.int64())])
    rows = [{"scan_id": name, "fingerprint": value, "bytes": 1} for name, value in fingerprints.items()]
    return pa.Table.from_pylist(rows, schema=schema)


def time_of(seconds: int) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC)


def test_a_scan_comes_changes_leaves_and_comes_again() -> None:
    members = MEMBERS_SCHEMA.empty_table()
    looks = [{"a": "1", "b": "1"}, {"a": "2", "c": "1"}, {"a": "2", "c": "1"}, {"b": "1", "a": "2", "c": "1"}]
    gone = []
    for number, look in enumerate(looks, 1):
        gone.append(find_vanished(members, manifest_of(look)).to_pylist())
        members = update_members(members, manifest_of(look), 100 * number)
        if number == 3:
            assert members["vanished_at"].to_pylist() == [None, time_of(200), None], "it vanished once"
    assert gone == [[], ["b"], [], []]
    assert members.schema == MEMBERS_SCHEMA
    assert [tuple(row.values()) for row in members.to_pylist()] == [
        ("a", time_of(100), time_of(400), None, "2"),
        ("b", time_of(100), time_of(400), None, "1"),
        ("c", time_of(200), time_of(400), None, "1"),
    ]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.dictionaries(st.sampled_from("abcde"), st.sampled_from("12")), max_size=5))
def test_every_history_is_the_one_kept_by_hand(looks: list[dict[str, str]]) -> None:
    members, account = MEMBERS_SCHEMA.empty_table(), {}
    for now, look in enumerate(looks, 1):
        vanished = [name for name, row in account.items() if row["vanished_at"] is None and name not in look]
        assert find_vanished(members, manifest_of(look)).to_pylist() == vanished
        members = update_members(members, manifest_of(look), now)
        for name in vanished:
            account[name]["vanished_at"] = time_of(now)
        for name, fingerprint in look.items():
            row = account.setdefault(name, {"scan_id": name, "first_seen": time_of(now)})
            account[name] = row | {"last_seen": time_of(now), "vanished_at": None, "fingerprint": fingerprint}
        assert members.to_pylist() == list(account.values())
