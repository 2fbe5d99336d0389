"""Channels by their names: the same order in every scan that one network sees."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from raysegment.archive.names import show_name
from raysegment.errors import UsageError


def most_common_names(table: pa.Table) -> tuple[str, ...]:
    """Names of the channels that most scans of several channels have; empty where they have none, or only numbers."""
    counts = Counter(tuple(names) for names in table["channel_names"].to_pylist() if _are_names(names))
    return counts.most_common(1)[0][0] if counts else ()


def order_channels(table: pa.Table, wanted: Sequence[str]) -> pa.Table:
    """A manifest whose scans have the wanted channels in one order, by their names; upper and lower case are the same.

    Scans without names, with numbers for names, or of one channel stay as they are. Of the others that have files for
    each channel, these are put in order, those of further channels are left out, and a channel that is missing has an
    empty name, so that reading the scan is an error of its own.

    Args:
        table: A manifest.
        wanted: All channels that the network was trained on; nothing is done for fewer than two.

    Raises:
        UsageError: No scan has a wanted channel, or a scan has all of them in one file in another order.
    """
    if not _are_names(wanted) or not pc.any(pc.greater(pc.list_value_length(table["channel_names"]), 1)).as_py():
        return table
    rows = table.select(["scan_id", "files", "channel_names", "channels", "problem"]).to_pylist()
    named = [row for row in rows if _are_names(row["channel_names"])]
    known = {_key(name) for row in named for name in row["channel_names"]}
    if named and known.isdisjoint(map(_key, wanted)):
        raise UsageError(
            f"the model sees the channels {_list(wanted)}; {show_name(named[0]['scan_id'])} has "
            f"{_list(named[0]['channel_names'])}. Name the files of each with --channel."
        )
    for row in named:
        _order_row(row, wanted)
    for name in ("files", "channel_names", "channels", "problem"):
        index = table.schema.get_field_index(name)
        column = pa.array([row[name] for row in rows], table.schema.field(index).type)
        table = table.set_column(index, table.schema.field(index), column)
    return table


def check_channels(manifest: pa.Table, num_channels: int) -> None:
    """Refuse an archive of which no scan can have as many channels as the model expects.

    Args:
        manifest: All scans that are wanted; `channels` is null where no header could be read.
        num_channels: Channels that the model expects of a scan as read.

    Raises:
        UsageError: Names both numbers. Where only some scans differ, these fail one by one.
    """
    known = manifest["channels"].drop_null()
    found = sorted(known.unique().to_pylist())
    if not found or num_channels in found:
        return
    raise UsageError(
        f"the model expects scans of {_count_channels(num_channels)}, and all {len(known)} scans whose headers could "
        f"be read have others: {', '.join(map(_count_channels, found))}. Give a model for this archive, or other "
        "scans; where channels are files or series of their own, name them with --channel."
    )


def _order_row(row: dict[str, Any], wanted: Sequence[str]) -> None:
    """Put the files of one scan in order."""
    names, files = row["channel_names"], row["files"]
    if list(map(_key, names)) == list(map(_key, wanted)):
        return
    # A DICOM series has as many files for each channel, other formats one.
    num_each, rest = divmod(len(files), len(names))
    if rest:
        raise UsageError(
            f"{show_name(row['scan_id'])} has the channels {_list(names)} in one file; the model sees {_list(wanted)}."
        )
    by_name = {_key(name): files[index * num_each :][:num_each] for index, name in enumerate(names)}
    missing = [name for name in wanted if _key(name) not in by_name]
    row["files"] = [file for name in wanted for file in by_name.get(_key(name), [""] * num_each)]
    row["channel_names"], row["channels"] = list(wanted), len(wanted)
    if missing and row["problem"] is None:
        row["problem"] = f"there is no file for channel {_list(missing)}"


def _are_names(names: Sequence[str]) -> bool:
    """Whether there are several channels with words for names."""
    return len(names) > 1 and not all(name.isdecimal() for name in names)


def _key(name: str) -> str:
    return name.casefold()


def _list(names: Sequence[str]) -> str:
    return ", ".join(map(show_name, names))


def _count_channels(number: int) -> str:
    return f"{number} channel" if number == 1 else f"{number} channels"
