import os
import subprocess
import sys

import pytest

from raysegment.model.start import quiet_errors

STARTED = """
import os, sys
from raysegment.model.start import start_tensorflow
start_tensorflow()
import keras, tensorflow as tf
tf.config.threading.set_intra_op_parallelism_threads(1)
print("said afterwards", file=sys.stderr)
os.write(2, b"I0000 00:00:1.0 1 a.cc:1] also afterwards")
"""

ABORTED = r"""
import os
from raysegment.model.start import quiet_errors
with quiet_errors():
    os.write(2, b"WARNING: All log messages before absl::InitializeLog() is called are written to STDERR\n")
    os.write(2, b"I0000 00:00:1795285069.8 100 port.cc:153] operations are on\n")
    os.write(2, b"2026-01-01 10:00:00.100: W a.cc:1] slow\n")
    os.write(2, b"UserWarning: old\nF0000 00:00:1795285069.8 100 guard.cc:9] no such instructions\nlast words")
    os.abort()
"""


def run(code: str, **environment: str) -> subprocess.CompletedProcess:
    variables = {**os.environ, "CUDA_VISIBLE_DEVICES": "-1", **environment}
    return subprocess.run([sys.executable, "-c", code], env=variables, capture_output=True, text=True, timeout=120)


def test_tensorflow_starts_without_a_word_and_what_comes_later_is_heard():
    done = run(STARTED, TF_CPP_MIN_LOG_LEVEL="3")
    assert (done.returncode, done.stderr) == (0, "said afterwards\nI0000 00:00:1.0 1 a.cc:1] also afterwards")


def test_the_last_words_of_a_process_that_is_aborted_are_heard():
    done = run(ABORTED)
    assert done.returncode < 0
    assert done.stderr.splitlines() == [
        "UserWarning: old",
        "F0000 00:00:1795285069.8 100 guard.cc:9] no such instructions",
        "last words",
    ]


def test_an_error_in_the_quiet_is_raised_and_ends_it(capfd):
    def break_off() -> None:
        with quiet_errors():
            os.write(2, b"E0000 00:00:1.0 1 a.cc:1] hidden\nshown\n")
            raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        break_off()
    os.write(2, b"I0000 00:00:1.0 1 a.cc:1] after\n")
    assert capfd.readouterr().err == "shown\nI0000 00:00:1.0 1 a.cc:1] after\n"
