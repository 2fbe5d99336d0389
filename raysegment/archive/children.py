"""Child processes that look at files nobody vouches for: without Ray, TensorFlow and this process's standard error.

They are spawned, see this process's modules, and end when their standard input closes. `decoder` has one that reads
pixels, `dicom/survey` several that read headers.
"""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import subprocess
import sys

PIPE_BYTES = 2**20
SET_PIPE_SIZE = 1031
"""Linux's F_SETPIPE_SZ."""

REUSE_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(2**25), "MALLOC_TRIM_THRESHOLD_": str(2**27)}
"""glibc keeps freed buffers instead of asking the kernel for fresh pages per scan: a fifth less time."""


def start_child(module: str, *arguments: str) -> subprocess.Popen[bytes]:
    """Spawn a module that sees this process's modules, with one thread of arithmetic."""
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path),
        "OPENBLAS_NUM_THREADS": "1",
        "OMP_NUM_THREADS": "1",
        "TIFFFILE_NUM_THREADS": "1",
        **REUSE_MEMORY,
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    child = subprocess.Popen(
        [sys.executable, "-P", "-m", module, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=environment,
        start_new_session=True,
    )
    _widen_pipe(child)
    return child


def end_child(child: subprocess.Popen[bytes]) -> None:
    """Close a child's pipes and kill it."""
    for stream in (child.stdin, child.stdout):
        if stream is not None:
            with contextlib.suppress(OSError):
                stream.close()
    child.kill()
    child.wait()


def describe_death(child: subprocess.Popen[bytes]) -> str:
    """Why a child whose pipe closed has ended."""
    try:
        code = child.wait(timeout=5)
    except subprocess.TimeoutExpired:
        return "closed its pipe"
    if code >= 0:
        return f"exit code {code}"
    return f"signal {signal.Signals(-code).name}" if -code in {*signal.Signals} else f"signal {-code}"


def limit_memory(memory_mb: int) -> None:
    """In a child: cap what it may take on top of what it has; systems without such limits go without."""
    with contextlib.suppress(OSError, ValueError):
        limit = _taken_bytes() + memory_mb * 2**20
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))


def _taken_bytes() -> int:
    """Private writable memory of this process, which RLIMIT_DATA counts."""
    with open("/proc/self/status", encoding="ascii") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmData"))


def _widen_pipe(child: subprocess.Popen[bytes]) -> None:
    """Fewer switches between the processes; a system that refuses is only slower."""
    import fcntl

    try:
        assert child.stdout is not None
        fcntl.fcntl(child.stdout.fileno(), SET_PIPE_SIZE, PIPE_BYTES)
    except OSError:
        pass
