"""What Ray Train sets up on its workers before a training function runs: addresses for TensorFlow's collectives."""

from __future__ import annotations

import json
import os
import socket
from dataclasses import dataclass
from typing import Any

import ray
from ray.train.backend import Backend, BackendConfig


@dataclass
class CollectiveConfig(BackendConfig):
    """Sets `TF_CONFIG` on each worker. Ray's own `TensorflowConfig` would force Keras 2."""

    @property
    def backend_cls(self) -> type[Backend]:
        return CollectiveBackend


class CollectiveBackend(Backend):
    """Gathers one free address of each worker and tells all of them to all."""

    def on_start(self, worker_group: Any, backend_config: BackendConfig) -> None:
        addresses = worker_group.execute(find_address)
        pending = [
            worker_group.execute_single_async(rank, set_collective, addresses, rank) for rank in range(len(addresses))
        ]
        ray.get(pending)


def find_address() -> str:
    """A free port of this node, as host:port."""
    host = ray.util.get_node_ip_address()
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.bind(("", 0))
        port = probe.getsockname()[1]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def set_collective(addresses: list[str], rank: int) -> None:
    """Tell this worker who the others are; a lone worker needs nobody."""
    if len(addresses) == 1:
        os.environ.pop("TF_CONFIG", None)
        return
    task = {"type": "worker", "index": rank}
    os.environ["TF_CONFIG"] = json.dumps({"cluster": {"worker": addresses}, "task": task})
