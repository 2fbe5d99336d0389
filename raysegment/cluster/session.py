"""Starting, joining and leaving Ray."""

from __future__ import annotations

import logging
import os
import secrets
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar, cast

from raysegment.archive.sealed import KEY_FILE_VARIABLE
from raysegment.errors import ClusterError, InterruptedRunError, RaysegmentError, UsageError
from raysegment.options import Precision

MIN_FREE_BYTES = 2 * 1024**3
SECONDS_BETWEEN_LOOKS = 0.2
SECONDS_TO_RESOLVE = 60.0

SESSION_SOCKET = "session_2026-12-31_23-59-59_999999_{pid}/sockets/plasma_store"
"""The longest socket of a Ray that is started here, below its temporary folder (Ray 2.60)."""

MAX_SOCKET_BYTES = 107
"""Longer paths of sockets do not exist on Linux."""

Result = TypeVar("Result")


@contextmanager
def ray_session(address: str | None, temp_dir: str | None) -> Iterator[None]:
    """Start Ray here, or join the cluster at an address, for as long as the block runs.

    A session that the caller already has is used and left as it is.

    Args:
        address: `auto`, `host:port` or `ray://…`; None starts Ray on this machine.
        temp_dir: Folder for Ray's session and spilled objects.

    Raises:
        UsageError: The folder has less than 2 GB free or cannot be written, or belongs to a cluster's own start.
        ClusterError: The cluster does not answer.
    """
    check_temp_dir(address, temp_dir)
    if address is None:
        check_free_space(temp_dir)
    set_environment(address)
    import ray

    if ray.is_initialized():
        with interruptible():
            yield
        return
    logging.getLogger("ray").setLevel(logging.ERROR)
    arguments: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address is None:
        arguments |= {"address": "local", "include_dashboard": False}
        if temp_dir is not None:
            arguments["_temp_dir"] = str(Path(temp_dir).resolve())
    else:
        arguments["address"] = address
        if KEY_FILE_VARIABLE in os.environ:
            # Processes here inherit it; those of a cluster that runs already do not.
            arguments["runtime_env"] = {"env_vars": {KEY_FILE_VARIABLE: os.environ[KEY_FILE_VARIABLE]}}
    # Also around the start, where Ray's own handler would end the process without a word.
    with interruptible():
        try:
            start_ray(arguments)
            with interruptible():
                yield
        finally:
            ray.shutdown()


def start_ray(arguments: dict[str, Any]) -> None:
    """Start or join Ray, quietly; a start on this machine that fails is tried once more.

    Ray gives its own processes half a minute, which is too little where others have the processors.

    Raises:
        ClusterError: It does not answer.
    """
    import ray

    asked = "a local Ray" if arguments["address"] == "local" else f"--address {arguments['address']}"
    for is_last in (False, True) if arguments["address"] == "local" else (True,):
        try:
            ray.init(**arguments)
            break
        except RaysegmentError:
            raise
        except Exception as error:  # Ray has no class of its own for a start that took too long.
            ray.shutdown()
            if is_last:
                raise ClusterError(f"{asked} does not answer: {' '.join(str(error).split())[:300]}") from error
    tame_ray_data()


def set_environment(address: str | None) -> None:
    """Set what Ray reads from the environment, before it is first imported.

    A Ray started here asks for a token that only this process and its children know; for an existing cluster the user's
    own `RAY_AUTH_MODE` counts.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "50")
    # Announced losses are met as all others, so no group of workers needs a process that waits for notices.
    os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    # Ray ends task processes that are idle for a second; a new one has to import everything and start its decoder.
    os.environ.setdefault("RAY_idle_worker_killing_time_threshold_ms", "600000")
    # A thread that an interrupted run leaves behind must not start a second Ray.
    os.environ.setdefault("RAY_ENABLE_AUTO_CONNECT", "0")
    # Tasks that the memory monitor ends have a count of their own, without bound unless it is set.
    os.environ.setdefault("RAY_task_oom_retries", "3")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    if "RAY_AUTH_MODE" not in os.environ:
        os.environ["RAY_AUTH_MODE"] = "disabled" if address else "token"
    if os.environ["RAY_AUTH_MODE"] == "token" and address is None:
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))


def tame_ray_data() -> None:
    """Leave the terminal to raysegment's own progress, and the cores to its work."""
    from ray.data import DataContext

    from raysegment.cluster.ray_internals import hold_back, hush_nodes

    hush_nodes()
    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    hold_back(context)
    for name in ("ray.data", "ray.train", "ray"):
        logging.getLogger(name).setLevel(logging.ERROR)


def check_temp_dir(address: str | None, temp_dir: str | None) -> None:
    """Refuse a temporary folder that Ray cannot work in, before anything is made or started.

    Raises:
        UsageError: Its path is too long for Ray's sockets, or the cluster has its own.
    """
    if address is not None:
        if temp_dir is None:
            return
        raise UsageError(
            "--temp-dir is for a Ray that is started here; a running cluster has its own: ray start --temp-dir."
        )
    default = os.environ.get("RAY_TMPDIR") or (sys.platform == "linux" and os.environ.get("TMPDIR")) or "/tmp"
    folder = str(Path(temp_dir).resolve()) if temp_dir else os.path.join(default, "ray")
    room = MAX_SOCKET_BYTES - len(SESSION_SOCKET.format(pid=os.getpid())) - 1
    if len(os.fsencode(folder)) > room:
        raise UsageError(
            f"--temp-dir {folder} has {len(os.fsencode(folder))} bytes; Ray puts sockets below it, whose paths may "
            f"have {MAX_SOCKET_BYTES} bytes, so it may have {room}. Give --temp-dir a shorter path."
        )


def check_free_space(temp_dir: str | None) -> None:
    """Refuse a temporary folder that spilling would fill at once.

    Raises:
        UsageError: Less than 2 GB free, or the folder cannot be made.
    """
    folder = Path(temp_dir) if temp_dir else Path(tempfile.gettempdir())
    try:
        folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder).free
    except OSError as error:
        raise UsageError(f"--temp-dir {folder} cannot be used: {error.strerror}.") from None
    if free < MIN_FREE_BYTES:
        raise UsageError(
            f"--temp-dir {folder} has {free / 1024**3:.1f} GB free; Ray's session and spilling need at least 2 GB."
        )


class _Interruption:
    """What a signal handler raised, which Ray's compiled calls may have lost, and how many blocks are open."""

    pending: InterruptedRunError | None = None
    depth = 0


def raise_if_interrupted() -> None:
    """Raise again what a signal raised; for loops around Ray's calls.

    Raises:
        InterruptedRunError: A signal came.
    """
    if _Interruption.pending is not None:
        raise _Interruption.pending


@contextmanager
def interruptible() -> Iterator[None]:
    """Turn Ctrl-C and SIGTERM into one InterruptedRunError inside the block.

    Ray's compiled calls make another error of it where the signal came inside of them ("returned a result with an
    exception set"), and what is done after a lost one fails in its own way; the block ends as interrupted all the same.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_IGN)
        name = signal.Signals(number).name
        _Interruption.pending = InterruptedRunError(f"interrupted by {name}; the same command goes on.")
        raise _Interruption.pending

    previous = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    _Interruption.depth += 1
    try:
        yield
    except Exception as error:
        if _Interruption.pending is None or error is _Interruption.pending:
            raise
        raise _Interruption.pending from error
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
        _Interruption.depth -= 1
        if _Interruption.depth == 0:
            _Interruption.pending = None


def run_interruptibly(function: Callable[[], Result]) -> Result:
    """Run a function in a thread while the main thread waits where a signal can reach it.

    Inside Ray's compiled calls an exception raised by a signal handler gets lost.

    Raises:
        InterruptedRunError: A signal came; the thread is left behind and ends with Ray.
    """
    outcome: list[Result] = []
    failure: list[BaseException] = []

    def run() -> None:
        try:
            outcome.append(function())
        except BaseException as error:
            failure.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(SECONDS_BETWEEN_LOOKS)
    if failure:
        raise failure[0]
    return outcome[0]


def live_nodes() -> list[dict[str, Any]]:
    """The nodes that are alive now, each with `NodeID`, `NodeManagerAddress` and `Resources`."""
    import ray

    return [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU", 0) > 0]


def find_precision(precision: Precision, address: str | None, temp_dir: str | None) -> Precision:
    """The precision on the hardware that will be used; a cluster is joined to ask it, unless the caller has done so.

    Raises:
        ClusterError: The cluster does not answer.
    """
    if address is None:
        return cast(Precision, _resolve_precision(precision))
    if precision != "auto":
        return precision
    with ray_session(address, temp_dir):
        return resolve_on_cluster(precision)


def resolve_on_cluster(precision: Precision) -> Precision:
    """The precision that all nodes will use, resolved once on the hardware of one that has a GPU if any has.

    Raises:
        ClusterError: The cluster is so busy that it does not answer within a minute.
    """
    if precision != "auto":
        return precision
    import ray

    has_gpu = any(node["Resources"].get("GPU", 0) for node in live_nodes())
    task = ray.remote(num_cpus=0, num_gpus=0.01 if has_gpu else 0)(_resolve_precision)
    try:
        return cast(Precision, ray.get(task.remote(precision), timeout=SECONDS_TO_RESOLVE))
    except ray.exceptions.GetTimeoutError:
        raise ClusterError(
            f"no {'GPU' if has_gpu else 'node'} of the cluster was free within {SECONDS_TO_RESOLVE:g} seconds to tell "
            "the best precision. Wait for it, or give --precision."
        ) from None


def _resolve_precision(precision: str) -> str:
    from raysegment.model.precision import resolve_precision

    return resolve_precision(precision)
