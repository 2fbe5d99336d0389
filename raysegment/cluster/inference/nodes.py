"""What runs on each node: a cluster of mixed versions would give mixed masks."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import Any

from raysegment.cluster.session import live_nodes
from raysegment.errors import UsageError

COMPARED_PACKAGES = ("raysegment", "ray", "keras", "tensorflow")
SECONDS_TO_ANSWER = 60.0


def describe_versions() -> dict[str, str]:
    """Versions that must be the same on all nodes, without importing the packages."""
    import raysegment

    found = {"raysegment": raysegment.__version__}
    for package in COMPARED_PACKAGES[1:]:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "missing"
    return found


def compare_versions(expected: dict[str, str], found: dict[str, str], node: str) -> None:
    """Refuse a node whose versions differ.

    Raises:
        UsageError: Names the node and the differences.
    """
    wrong = [
        f"{name} {found.get(name)} instead of {text}" for name, text in expected.items() if found.get(name) != text
    ]
    if wrong:
        raise UsageError(f"node {node} has {', '.join(wrong)}. Install the same versions on all nodes.")


def check_nodes(expected: dict[str, str]) -> None:
    """Ask every live node for its versions.

    Raises:
        UsageError: A node has others than the driver, or has no raysegment.
    """
    for node, answer in [(node, _ask(node)) for node in live_nodes()]:
        _judge(node, answer, expected)


def check_node(node: dict[str, Any], expected: dict[str, str]) -> None:
    """Ask a node that joined later for its versions.

    Raises:
        UsageError: As `check_nodes`.
    """
    _judge(node, _ask(node), expected)


def _judge(node: dict[str, Any], answer: Any, expected: dict[str, str]) -> None:
    import ray

    name = f"{node['NodeManagerAddress']} {node['NodeID'][:8]}"
    try:
        compare_versions(expected, ray.get(answer, timeout=SECONDS_TO_ANSWER), name)
    except ray.exceptions.GetTimeoutError:
        raise UsageError(f"node {name} did not report its versions within {SECONDS_TO_ANSWER:g} seconds.") from None
    except (ray.exceptions.RaySystemError, ray.exceptions.RayTaskError) as error:
        reason = " ".join(str(error).split())[-200:]
        raise UsageError(f"node {name} cannot run raysegment: {reason}") from None
    except ray.exceptions.RayError:
        return  # The node left meanwhile.


def _ask(node: dict[str, Any]) -> Any:
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    strategy = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
    return ray.remote(describe_versions).options(num_cpus=0, max_retries=1, scheduling_strategy=strategy).remote()
