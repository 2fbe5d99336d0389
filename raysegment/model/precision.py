"""The arithmetic that this machine is fast in."""

from __future__ import annotations

import os
from pathlib import Path

from raysegment.errors import UsageError
from raysegment.model.start import start_tensorflow

FAST_BFLOAT16_FLAGS = frozenset({"avx512_bf16", "amx_bf16"})
"""Processor flags with which bfloat16 is faster than float32; without them it is slower."""

FIRST_GPU_WITH_BFLOAT16 = (8, 0)
FIRST_GPU_WITH_FLOAT16 = (7, 0)
"""CUDA compute capabilities with matrix units for these types."""


def resolve_precision(name: str) -> str:
    """The arithmetic to use on this machine.

    Args:
        name: `auto`, `float32`, `bfloat16` or `float16`. `auto` is bfloat16 where processor or GPU is fast in it,
            float16 on GPUs that are fast in that only, else float32.

    Returns:
        `float32`, `bfloat16` or `float16`.
    """
    if name != "auto":
        if name not in ("float32", "bfloat16", "float16"):
            raise UsageError(f"--precision {name!r} is unknown; expected auto, float32, bfloat16 or float16.")
        return name
    capabilities = find_gpus()
    if capabilities:
        if min(capabilities) >= FIRST_GPU_WITH_BFLOAT16:
            return "bfloat16"
        return "float16" if min(capabilities) >= FIRST_GPU_WITH_FLOAT16 else "float32"
    return "bfloat16" if _read_cpu_flags() & FAST_BFLOAT16_FLAGS else "float32"


def find_gpus() -> list[tuple[int, int]]:
    """Compute capability of each GPU this process may use."""
    # The environment answers on most machines, without the seconds that importing TensorFlow takes.
    if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1") or not Path("/dev/nvidiactl").exists():
        return []
    start_tensorflow()
    import tensorflow as tf

    found = []
    for device in tf.config.list_physical_devices("GPU"):
        details = tf.config.experimental.get_device_details(device)
        found.append(tuple(details.get("compute_capability", (0, 0))))
    return found


def _read_cpu_flags() -> frozenset[str]:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return frozenset()
    line = next((line for line in text.splitlines() if line.startswith("flags")), "")
    return frozenset(line.split())
