"""A Ray that raysegment starts: who gets in, in processes of their own, because the tests' Ray asks for no token."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

JOIN = "import sys, ray; ray.init(address=sys.argv[1], logging_level='CRITICAL', log_to_driver=False); print('joined')"
STARTED_HERE = f"""
import json, os, subprocess, sys
from raysegment.cluster.session import ray_session

def join(**given):
    kept = {{name: value for name, value in os.environ.items() if name != "RAY_AUTH_TOKEN"}}
    words = [sys.executable, "-c", {JOIN!r}, ray.get_runtime_context().gcs_address]
    return subprocess.run(words, env=kept | given, capture_output=True, text=True).stdout.strip()

with ray_session(None, None):
    # Not before: Ray reads once, when it is imported, whether it asks for tokens.
    import ray
    token = os.environ["RAY_AUTH_TOKEN"]
    knows = join(RAY_AUTH_TOKEN=token)
    stranger = join(RAY_AUTH_MODE="disabled")
    with_dashboard = ray._private.worker.global_worker.node.webui_url
print(json.dumps([len(token), knows, stranger, with_dashboard]))
"""


def test_a_ray_started_here_lets_nobody_in_who_does_not_know_its_token() -> None:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("RAY_AUTH")}
    done = subprocess.run([sys.executable, "-c", STARTED_HERE], env=clean, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout.splitlines()[-1]) == [64, "joined", "", ""]
