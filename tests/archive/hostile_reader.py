"""A reader that does, on request, what hostile files make decoders do; tests name it in RAYSEGMENT_READERS."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import BinaryIO

import numpy as np

from raysegment.archive.formats import Header
from raysegment.scan import Scan

EXTENSIONS = (".hostile",)
MAGIC = b"HOSTILE "


def recognises(head: bytes) -> bool:
    return head.startswith(MAGIC)


def read_header(stream: BinaryIO, name: str) -> Header:
    return Header(1, 4, 4, 1, np.dtype(np.uint8))


def read_slices(data: bytes, name: str) -> Scan:
    words = data.decode().split()
    if words[1] == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    if words[1] == "crash-once" and not Path(words[2]).exists():
        Path(words[2]).touch()
        os.kill(os.getpid(), signal.SIGSEGV)
    if words[1] == "kill-parent":
        os.kill(os.getppid(), signal.SIGKILL)
    if words[1] == "eat":
        eaten = [np.ones(2**24, np.uint8) for _ in range(100_000)]
        return Scan(eaten[0][:16].reshape(1, 4, 4, 1))
    if words[1] == "hang":
        time.sleep(600)
    if words[1] == "shout":
        print("noise on standard output", flush=True)
        os.write(1, b"more noise")
    return Scan(np.full((1, 4, 4, 1), 7, np.uint8), (5.0, 1.0, 1.0), np.diag([1.0, 1.0, 5.0, 1.0]))
