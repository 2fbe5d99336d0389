"""Folders that raysegment itself wrote: nothing in them or below them is a scan or a reference."""

from __future__ import annotations

import re

EXPORT_FILE = ".raysegment-export.json"
"""What `export` leaves in a folder, with the names of the files that it wrote there."""

EXPORT_PROGRESS_FILE = ".raysegment-export-done.jsonl"
"""What an export of volumes has written so far, so that the same command goes on where it was stopped."""

OWN_DESCRIPTION = "raysegment"
"""What `desc-` says in the names of masks that are exported as BIDS: they are never taken for references, wherever they
lie."""

RECORD_FILE = "run.json"
"""What every run leaves in its output folder."""

RECORD_HEAD_BYTES = 64 * 1024
"""Enough of a record to tell whose it is; the options that it begins with take a few thousand bytes."""

_FIRST_KEY = re.compile(rb'\s*\{\s*"command"\s*:\s*"[a-z-]+"')
_IDENTITY = re.compile(rb'"(data_id|options_id)"\s*:\s*"')


def is_own_record(head: bytes) -> bool:
    """Whether a file called `run.json` is of a raysegment run and not of another tool, by its first bytes."""
    return bool(_FIRST_KEY.match(head) and _IDENTITY.search(head))
