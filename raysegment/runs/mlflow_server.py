"""What is said to an MLflow server: every use of MLflow's client, which is imported here only when a run is tracked."""

from __future__ import annotations

import json
import logging
import math
import os
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from raysegment.choices import hide_credentials
from raysegment.errors import MissingExtraError

INSTALL_COMMAND = "pip install 'mlflow-skinny>=3.1,<4'"

EXPERIMENT = "raysegment"
"""The experiment of runs where `MLFLOW_EXPERIMENT_NAME` names no other one."""

ENVIRONMENT = {
    # MLflow's own are 120 s and seven tries: minutes for each line where a server hangs.
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    # Nothing about a run is anybody else's business.
    "MLFLOW_DISABLE_TELEMETRY": "true",
    # It looks for git when it is imported.
    "GIT_PYTHON_REFRESH": "quiet",
}
"""What MLflow reads from the environment, unless the user has set it."""

SECRETS = ("MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN")

KEY_TAG = "raysegment_run"
PARENT_TAG = "mlflow.parentRunId"
EPOCH_METRIC = "loss"
"""A metric that every epoch has: its last step tells how far the server's history goes."""

ROWS_AT_ONCE = 20
MAX_PARAM_CHARS = 500
"""As the oldest servers of MLflow 2 take it."""

MAX_CAUSE_CHARS = 160
UNHEARD_OF = ("training_patients", "training_features")
"""Keys of model.json that stay here: hashes of short identifiers can be guessed back, and numbers that single patients
have concern nobody else."""


class ServerError(Exception):
    """What the server has was not as expected; the message says what to do."""


@dataclass(frozen=True, kw_only=True)
class RunFacts:
    """What a run is on the server, whoever made it.

    Attributes:
        key: Names the run for ever; run.json has it.
        name: What a person sees.
        params: Its choices.
        tags: What else is known at its start.
    """

    key: str
    name: str
    params: Mapping[str, str]
    tags: Mapping[str, str]


def check_client(uri: str | None) -> None:
    """Where there is a server, import MLflow's client: it takes a second or two, and not beside the imports of others.

    Raises:
        MissingExtraError: It is not installed; names the command that installs it.
    """
    if uri is None:
        return
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    # It would print the address with its password, and between JSON lines.
    os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] = "true"
    try:
        import mlflow.tracking  # noqa: F401
    except ImportError as error:
        raise MissingExtraError(
            f"--mlflow-uri needs MLflow's client, which cannot be imported ({error}): {INSTALL_COMMAND}"
        ) from None
    # Its warnings quote addresses, and what is wrong is said by raysegment.
    logging.getLogger("mlflow").setLevel(logging.CRITICAL)


def connect(uri: str) -> Any:
    """MLflow's client; nothing is asked of the server yet."""
    from mlflow.tracking import MlflowClient

    return MlflowClient(tracking_uri=uri)


class ServerRun:
    """One run on the server, made or found again by its key.

    Args:
        client: MLflow's.
        facts: The run.
        parent_id: MLflow's id of the run that it is nested in.

    Attributes:
        run_id: MLflow's own.
        page: Where MLflow shows it, below the server's address.
        last_epoch: The last epoch that the server has.
    """

    def __init__(self, client: Any, facts: RunFacts, parent_id: str | None = None) -> None:
        self._client = client
        experiment_id = find_experiment(client)
        found = find_run(client, experiment_id, facts.key)
        tags = {**facts.tags, KEY_TAG: facts.key}
        if parent_id is not None:
            tags[PARENT_TAG] = parent_id
        run = found or client.create_run(experiment_id, tags=tags, run_name=facts.name)
        self.run_id: str = run.info.run_id
        self.page = f"#/experiments/{experiment_id}/runs/{self.run_id}"
        self._artifact_uri: str = run.info.artifact_uri
        self._send_choices(facts.params, tags, run.data.params)
        steps = client.get_metric_history(self.run_id, EPOCH_METRIC) if found else []
        self.last_epoch = max((metric.step for metric in steps), default=0)
        if found:
            client.update_run(self.run_id, status="RUNNING")

    def _send_choices(self, params: Mapping[str, str], tags: Mapping[str, str], known: Mapping[str, str]) -> None:
        """MLflow's params never change: what a resumed run was given anew becomes a tag."""
        from mlflow.entities import Param, RunTag

        new = [Param(name, value) for name, value in params.items() if name not in known]
        moved = {f"changed.{name}": value for name, value in params.items() if known.get(name, value) != value}
        labels = [RunTag(name, value) for name, value in {**tags, **moved}.items()]
        for start in range(0, len(new), 100):
            self._client.log_batch(self.run_id, params=new[start : start + 100], synchronous=True)
        self._client.log_batch(self.run_id, tags=labels, synchronous=True)

    def send_history(self, rows: Sequence[Mapping[str, float]]) -> None:
        """Send the epochs that the server has not, as metrics under the epoch as step."""
        from mlflow.entities import Metric

        new, now = [row for row in rows if row["epoch"] > self.last_epoch], int(time.time() * 1000)
        for start in range(0, len(new), ROWS_AT_ONCE):
            chunk = new[start : start + ROWS_AT_ONCE]
            metrics = [
                Metric(metric_name(name), float(value), now, int(row["epoch"]))
                for row in chunk
                for name, value in row.items()
                if name != "epoch" and is_number(value)
            ]
            self._client.log_batch(self.run_id, metrics=metrics, synchronous=True)
            self.last_epoch = int(chunk[-1]["epoch"])

    def send_end(self, status: str, metrics: Mapping[str, float], tags: Mapping[str, str]) -> None:
        """Send what the run came to."""
        from mlflow.entities import Metric, RunTag

        now = int(time.time() * 1000)
        self._client.log_batch(
            self.run_id,
            metrics=[Metric(metric_name(name), float(value), now, self.last_epoch) for name, value in metrics.items()],
            tags=[RunTag(name, value) for name, value in tags.items()],
            synchronous=True,
        )
        self._client.set_terminated(self.run_id, status=status)

    def send_file(self, path: Path) -> None:
        """Send one file under its name; of a JSON object without what is nobody's business.

        Raises:
            ServerError: The server would have this machine write into a folder of the server's.
        """
        if urlsplit(self._artifact_uri).scheme in ("", "file"):
            raise ServerError("the server takes no files, start it with --serve-artifacts")
        if path.suffix == ".json":
            content = json.loads(path.read_text(encoding="utf-8"))
            self._client.log_dict(
                self.run_id, {key: content[key] for key in content if key not in UNHEARD_OF}, path.name
            )
        else:
            self._client.log_artifact(self.run_id, str(path))


def find_experiment(client: Any) -> str:
    """The experiment's id; it is made where there is none."""
    from mlflow.exceptions import MlflowException

    name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or EXPERIMENT
    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            return str(client.create_experiment(name))
        except MlflowException:
            # Another run made it in between.
            found = client.get_experiment_by_name(name)
            if found is None:
                raise
    if found.lifecycle_stage != "active":
        raise ServerError(f"the experiment {name} is deleted there; restore it, or set MLFLOW_EXPERIMENT_NAME")
    return str(found.experiment_id)


def find_run(client: Any, experiment_id: str, key: str) -> Any | None:
    """The run of a key, or None."""
    found = client.search_runs([experiment_id], filter_string=f"tags.{KEY_TAG} = '{key}'", max_results=1)
    return found[0] if found else None


def metric_name(name: str) -> str:
    """A name as MLflow takes it; labels may be called anything."""
    return re.sub(r"[^\w\-. /:]", "_", name)


def is_number(value: Any) -> bool:
    """Whether a metric has a value to show."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def show_param(value: Any) -> str:
    """A choice as MLflow takes it."""
    text = ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
    return text[:MAX_PARAM_CHARS]


def describe_failure(error: BaseException, uri: str) -> str:
    """The innermost cause on one line, without passwords of the address or the environment."""
    while (inner := error.__cause__ or error.__context__) is not None:
        error = inner
    text = hide_credentials(" ".join(f"{type(error).__name__}: {error}".split()))
    password = urlsplit(uri).password or ""
    for secret in {password, unquote(password), *(os.environ.get(name, "") for name in SECRETS)} - {""}:
        text = text.replace(secret, "***")
    return text[:MAX_CAUSE_CHARS]
