"""Starting TensorFlow without what it says to its own developers."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

LOG_LEVEL = "TF_CPP_MIN_LOG_LEVEL"

FILTER = r"""
import re, sys
talk = re.compile(rb"[IWE]\d{4} \d\d:|\d{4}-\d\d-\d\d [\d:.]+: [IWE] |WARNING: All log messages before absl")
for line in sys.stdin.buffer:
    if not talk.match(line):
        sys.stderr.buffer.write(line)
        sys.stderr.buffer.flush()
"""
"""Drops what the log level asks to drop; fatal messages, warnings of Python and tracebacks go on."""


def start_tensorflow() -> None:
    """Import Keras and TensorFlow, which takes seconds, and let them look for devices; once in a process.

    TensorFlow logs some lines before it reads its log level. They are dropped here, unless the user set a level.
    """
    if "tensorflow" in sys.modules:
        return
    with quiet_errors() if os.environ.get(LOG_LEVEL) == "3" else nullcontext():
        import keras  # noqa: F401
        import tensorflow as tf

        tf.config.list_physical_devices()


@contextmanager
def quiet_errors() -> Iterator[None]:
    """Take log lines below fatal out of what this process writes to file descriptor 2 while the block runs.

    Another process takes them out, so that the last words of one that is aborted are not lost.
    """
    try:
        kept = os.dup(2)
    except OSError:
        # There is no standard error.
        yield
        return
    command = [sys.executable, "-I", "-S", "-c", FILTER]
    # In a session of its own, where Ctrl-C does not reach it; it ends with the last writer.
    with subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True) as reader:
        assert reader.stdin is not None
        os.dup2(reader.stdin.fileno(), 2)
        reader.stdin.close()
        try:
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)
