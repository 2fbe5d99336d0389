"""Runs on an MLflow server: a real one, one that hangs, one that fails, one that is not there, one that comes back."""

from __future__ import annotations

import http.server
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
import tomllib
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from urllib.parse import quote

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raysegment import cli
from raysegment.choices import changed_result, hide_credentials, load_options
from raysegment.errors import InterruptedRunError, RunError
from raysegment.options import TrainOptions
from raysegment.runs import mlflow_server, tracking
from raysegment.runs.console import Console
from raysegment.runs.record import describe_choices
from raysegment.runs.tracking import End, Tracker, track_run
from raysegment.store.place import Place

SECONDS_FOR_THE_SERVER_TO_START = 180
SECRETS = ("frieda", "p@ss/word", "p%40ss%2Fword")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real MLflow server with a database of its own."""
    for name in ("mlflow", "sqlalchemy", "flask"):
        pytest.importorskip(name, reason=f"the local MLflow server needs {name}: pip install -e '.[test]'")
    folder, port = tmp_path_factory.mktemp("mlflow"), free_port()
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{folder}/runs.db", "--artifacts-destination", str(folder / "files")]
    quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with (folder / "log.txt").open("w") as log:
        process = subprocess.Popen(
            command, env={**os.environ, **quiet}, cwd=folder, stdout=log, stderr=log, start_new_session=True
        )
    try:
        wait_for(lambda: answers(port) or process.poll() is not None, SECONDS_FOR_THE_SERVER_TO_START)
        assert process.poll() is None, (folder / "log.txt").read_text()[-2000:]
        yield f"http://127.0.0.1:{port}"
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, 15)
        process.wait(20)


@pytest.fixture(autouse=True)
def restless(monkeypatch: pytest.MonkeyPatch) -> None:
    """What rests for seconds in a training rests for moments here, and a slow machine is no server that is away."""
    monkeypatch.setattr(tracking, "SECONDS_BETWEEN_LOOKS", 0.05)
    monkeypatch.setattr(tracking, "MAX_SECONDS_BETWEEN_TRIES", 0.1)
    monkeypatch.setattr(tracking, "SECONDS_TO_END", 120)
    for name, value in {**mlflow_server.ENVIRONMENT, "MLFLOW_HTTP_REQUEST_TIMEOUT": "60"}.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def client(server: str):
    """MLflow's own eyes."""
    from mlflow.tracking import MlflowClient

    return MlflowClient(server)


class Gate:
    """A server in front of another one: takes note of what comes, and answers 500 until it is opened."""

    def __init__(self, behind: str) -> None:
        self.is_open = False
        self.headers: list[dict[str, str]] = []
        gate = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                gate.headers.append(dict(self.headers))
                if not gate.is_open:
                    self.send_error(500)
                    return
                asked = urllib.request.Request(behind + self.path, data=body or None, method=self.command)
                asked.add_header("Content-Type", self.headers.get("Content-Type") or "application/octet-stream")
                try:
                    answer = urllib.request.urlopen(asked, timeout=20)
                except urllib.error.HTTPError as error:
                    answer = error
                content = answer.read()
                self.send_response(answer.status)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            do_GET = do_POST = do_PUT = do_PATCH = answer  # noqa: N815

            def log_message(self, *unused: object) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def answers(port: int) -> bool:
    try:
        return urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2).status == 200
    except OSError:
        return False


def wait_for(happens, seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not happens():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.02)


def write_epochs(folder: Path, number: int) -> None:
    """A history as `train` leaves it after some epochs: epoch k has a validation Dice of k/10, the first one none."""
    rows = [
        {
            "epoch": epoch,
            "loss": 1.0 / epoch,
            "val_dice": float("nan") if epoch == 1 else epoch / 10,
            "val_dice_tumour (whole)": 0.5,
        }
        for epoch in range(1, number + 1)
    ]
    partial = folder / ".history.partial"
    pq.write_table(pa.Table.from_pylist(rows), partial)
    partial.replace(folder / "history.parquet")


def write_results(folder: Path) -> None:
    """What a finished run leaves, as far as it matters here."""
    for name in ("figures", "model", ".mlflow"):
        (folder / name).mkdir()
    for name in ("curves.png", "predictions.png", "../.mlflow/predictions.png", "../model/MODEL_CARD.md"):
        (folder / "figures" / name).write_text(f"this is {name}")
    (folder / "manifest.parquet").write_text("scan_id")
    content = {"model_id": "abc", "training_patients": ["5e88"], "num_channels": 3}
    (folder / "model" / "model.json").write_text(json.dumps(content))


class Run:
    """A training without training."""

    def __init__(self, folder: Path, uri: str) -> None:
        folder.mkdir(exist_ok=True)
        self.folder, self.uri, self.record = folder, uri, {}
        self.place = Place(str(folder))

    def track(self, parent: Tracker | None = None, **params: object):
        console = Console(self.place, as_json=False)
        params = {"epochs": 3, "json": True, "mlflow_uri": self.uri, **params}
        return track_run(parent or self.uri, self.place, self.record, console, params=params)

    @property
    def run_id(self) -> str:
        return self.record["mlflow"]["run_id"]

    @property
    def warnings(self) -> list[str]:
        log = self.folder / "log.txt"
        return [line for line in log.read_text().splitlines() if "warning" in line] if log.exists() else []


def read_metric(client, run_id: str, name: str) -> list[tuple[int, float]]:
    return sorted((metric.step, metric.value) for metric in client.get_metric_history(run_id, name))


def test_a_run_is_shown_with_its_choices_epochs_scores_and_files(server, client, tmp_path):
    run = Run(tmp_path / "run-7", server)
    with run.track(loss="dice", channels=(0, 2), crop=None):
        write_epochs(run.folder, 1)
        wait_for(lambda: run.run_id and read_metric(client, run.run_id, "loss"))
        write_epochs(run.folder, 3)
        write_results(run.folder)
        run.record |= {"scores": {"val_dice": 0.75, "threshold": {"a": 0.5, "b": 0.25}}, "best_epoch": 2}
    shown = client.get_run(run.run_id)
    assert (shown.info.run_name, shown.info.status) == ("run-7", "FINISHED")
    assert shown.data.params == {"epochs": "3", "loss": "dice", "channels": "0,2", "crop": "None"}
    assert read_metric(client, run.run_id, "loss") == [(1, 1.0), (2, 0.5), (3, pytest.approx(1 / 3))]
    assert read_metric(client, run.run_id, "val_dice") == [(2, 0.2), (3, 0.3)]
    assert len(read_metric(client, run.run_id, "val_dice_tumour _whole_")) == 3
    final = {name: value for name, value in shown.data.metrics.items() if name.startswith(("final", "best"))}
    assert final == {"final_val_dice": 0.75, "final_threshold_a": 0.5, "final_threshold_b": 0.25, "best_epoch": 2}
    assert (shown.data.tags["model_id"], re.match(r"\d+\.\d+", shown.data.tags["version"]) is None) == ("abc", False)
    assert run.warnings == []


def test_files_of_patients_stay_here(server, client, tmp_path):
    run = Run(tmp_path / "run", server)
    with run.track():
        write_results(run.folder)
    files = {file.path for file in client.list_artifacts(run.run_id)}
    assert files == {"curves.png", "predictions.png", "MODEL_CARD.md", "model.json"}
    picture = Path(client.download_artifacts(run.run_id, "predictions.png", str(tmp_path)))
    assert picture.read_text() == "this is ../.mlflow/predictions.png"
    sent = json.loads(Path(client.download_artifacts(run.run_id, "model.json", str(tmp_path))).read_text())
    assert sent == {"model_id": "abc", "num_channels": 3}


def test_a_resumed_run_goes_on_as_the_same_one_and_fills_what_is_missing(server, client, tmp_path):
    run = Run(tmp_path / "run", server)
    write_epochs(run.folder, 2)
    with suppress(InterruptedRunError), run.track():
        wait_for(lambda: run.run_id and len(read_metric(client, run.run_id, "loss")) == 2)
        raise InterruptedRunError("interrupted by SIGTERM")
    assert client.get_run(run.run_id).info.status == "KILLED"
    before = run.run_id
    # After kill -9 run.json may not have MLflow's id yet.
    stored = json.loads((run.folder / "run.json").read_text())["mlflow"]
    run.record = {"mlflow": {"key": stored["key"], "run_id": None}}
    write_epochs(run.folder, 4)
    with run.track(epochs=4):
        wait_for(lambda: run.run_id and client.get_run(run.run_id).info.status == "RUNNING")
    assert run.run_id == before
    assert [step for step, _ in read_metric(client, run.run_id, "loss")] == [1, 2, 3, 4]
    shown = client.get_run(run.run_id)
    assert (shown.data.params["epochs"], shown.data.tags["changed.epochs"]) == ("3", "4")


def test_a_run_that_fails_is_shown_as_failed(server, client, tmp_path):
    run = Run(tmp_path / "run", server)
    with pytest.raises(RunError), run.track():
        raise RunError("too many bad scans")
    assert client.get_run(run.run_id).info.status == "FAILED"


def test_folds_and_trials_are_nested_in_their_run(server, client, tmp_path):
    run = Run(tmp_path / "run", server)
    folds = [Run(tmp_path / f"fold-{fold}", server) for fold in range(2)]
    with run.track() as tracker:
        for fold in folds:
            with fold.track(parent=tracker):
                write_epochs(fold.folder, 1)
        trial = tracker.nest(tmp_path, "trial-3", {"loss": "dice"})
        trial.finish(End(status="KILLED"))
    nested = client.search_runs(["1"], f"tags.`mlflow.parentRunId` = '{run.run_id}'")
    assert {shown.info.run_name: shown.info.status for shown in nested} == {
        "fold-0": "FINISHED",
        "fold-1": "FINISHED",
        "trial-3": "KILLED",
    }
    assert {fold.run_id for fold in folds} < {shown.info.run_id for shown in nested}


def test_a_fold_that_an_interrupted_run_left_behind_ends_as_the_run_does(server, client, tmp_path):
    run = Run(tmp_path / "run", server)
    with suppress(InterruptedRunError), run.track() as tracker:
        tracker.nest(tmp_path, "fold-0", {})
        raise InterruptedRunError("interrupted by SIGTERM")
    nested = client.search_runs(["1"], f"tags.`mlflow.parentRunId` = '{run.run_id}'")
    assert [shown.info.status for shown in nested] == ["KILLED"]


def test_a_search_of_many_trials_warns_once_and_waits_for_all_of_them_together(tmp_path, monkeypatch):
    monkeypatch.setattr(tracking, "SECONDS_FOR_A_LAST_TRY", 0.5)
    run = Run(tmp_path / "run", f"http://127.0.0.1:{free_port()}")
    with run.track() as tracker:
        for trial in range(20):
            tracker.nest(tmp_path, f"trial-{trial}", {}).finish(End(status="FINISHED"))
        wait_for(lambda: run.warnings)
        begun = time.monotonic()
    assert time.monotonic() - begun < 20 * 0.5
    assert len(run.warnings) == 1


def test_what_a_server_missed_is_sent_when_it_answers_again(server, client, tmp_path, monkeypatch):
    monkeypatch.setattr(tracking, "SECONDS_FOR_A_LAST_TRY", 120)
    gate = Gate(server)
    run = Run(tmp_path / "run", f"http://127.0.0.1:{gate.port}")
    with run.track():
        write_epochs(run.folder, 2)
        wait_for(lambda: len(gate.headers) > 2)
        gate.is_open = True
        wait_for(lambda: run.run_id and len(read_metric(client, run.run_id, "loss")) == 2)
        gate.is_open = False
        write_epochs(run.folder, 3)
        write_results(run.folder)
        gate.is_open = True
    gate.close()
    assert [step for step, _ in read_metric(client, run.run_id, "loss")] == [1, 2, 3]
    assert len(client.list_artifacts(run.run_id)) == 4
    assert len(run.warnings) == 1
    assert "500" in run.warnings[0]


def test_passwords_reach_the_server_and_nothing_else(server, client, tmp_path, capsys, monkeypatch):
    gate = Gate(server)
    uri = f"http://frieda:{quote('p@ss/word', safe='')}@127.0.0.1:{gate.port}"
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "token-of-frieda")
    run = Run(tmp_path / "run", uri)
    with run.track():
        write_epochs(run.folder, 1)
        wait_for(lambda: run.warnings)
        gate.is_open = True
        wait_for(lambda: run.run_id)
    gate.close()
    assert {headers.get("Authorization", "").split()[0] for headers in gate.headers} <= {"Basic", "Bearer"}
    written = "".join(path.read_text() for path in run.folder.iterdir() if path.suffix in (".txt", ".json"))
    told = "".join(capsys.readouterr()) + written + str(client.get_run(run.run_id).to_dictionary())
    assert [secret for secret in (*SECRETS, "token-of-frieda") if secret in told] == []
    assert "http://***@127.0.0.1" in told


def listen_silently() -> socket.socket:
    silent = socket.socket()
    silent.bind(("127.0.0.1", 0))
    silent.listen(50)
    return silent


def test_a_server_that_never_answers_holds_nothing_up(tmp_path, monkeypatch):
    """The request would wait for an hour; the end of the run waits for as long as it says."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "3600")
    monkeypatch.setattr(tracking, "SECONDS_TO_END", 0.5)
    with listen_silently() as silent:
        run = Run(tmp_path / "run", f"http://127.0.0.1:{silent.getsockname()[1]}")
        begun = time.monotonic()
        with run.track():
            write_epochs(run.folder, 1)
            held = silent.accept()
            before_the_end = time.monotonic()
        assert before_the_end - begun < 30
        assert time.monotonic() - before_the_end < 30
    assert len(run.warnings) == 1
    held[0].close()
    assert "does not answer" in run.warnings[0]


def test_a_server_that_hangs_is_known_to_be_away_after_one_request(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    monkeypatch.setattr(tracking, "SECONDS_TO_END", 3600)
    monkeypatch.setattr(tracking, "SECONDS_FOR_A_LAST_TRY", 0.1)
    with listen_silently() as silent:
        run = Run(tmp_path / "run", f"http://127.0.0.1:{silent.getsockname()[1]}")
        with run.track():
            wait_for(lambda: run.warnings)
    assert len(run.warnings) == 1
    assert "timed out" in run.warnings[0].lower()


def test_a_server_that_is_not_there_costs_one_line(tmp_path):
    run = Run(tmp_path / "run", f"http://127.0.0.1:{free_port()}")
    with run.track():
        for number in range(1, 4):
            write_epochs(run.folder, number)
            time.sleep(0.2)
        run.record["scores"] = {"val_dice": 0.5}
    assert len(run.warnings) == 1
    assert "refused" in run.warnings[0]
    assert run.record["mlflow"]["run_id"] is None


def test_without_an_address_nothing_happens(tmp_path):
    record: dict[str, object] = {}
    with track_run(None, Place(str(tmp_path)), record, Console(None, as_json=False), params={}) as key:
        assert key is None
    assert (record, list(tmp_path.iterdir())) == ({}, [])


def train(monkeypatch, capsys, *words: str) -> tuple[int, str]:
    monkeypatch.setattr(sys, "argv", ["raysegment", "train", "archive", "--out", "run", *words])
    with pytest.raises(SystemExit) as end:
        cli.main()
    return end.value.code or 0, capsys.readouterr().err


@pytest.mark.parametrize(
    "uri",
    [
        "localhost:5000",
        "ftp://host",
        "sqlite:///runs.db",
        "http://",
        "http://host:port",
        "http://host:99999",
        "http://[::1",
        "http://host/?token=secret",
        "",
        "http://frieda:p@ss/word@host:5000",
        "http://frieda:p/w@ss@host",
        "frieda:p%40ss%2Fword@host:5000",
    ],
)
def test_what_is_no_address_is_wrong_usage_and_no_password_is_shown(uri, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    code, err = train(monkeypatch, capsys, "--mlflow-uri", uri)
    assert (code, len(err.splitlines())) == (2, 1)
    assert "expected http://HOST:PORT" in err
    assert [secret for secret in ("frieda", "ss/word", "p%40ss", "p/w") if secret in err] == []


def test_without_mlflow_the_command_that_installs_it_is_named(monkeypatch, capsys, tmp_path, phantom_archive):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "mlflow", None)
    monkeypatch.setitem(sys.modules, "mlflow.tracking", None)
    code, err = train(monkeypatch, capsys, "--mlflow-uri", "http://localhost:5000")
    root = Path(__file__).parent.parent.parent
    extras = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    assert (code, len(err.splitlines())) == (2, 1)
    assert f"pip install '{extras['mlflow'][0]}'" in err
    assert not (tmp_path / "run").exists()


def test_the_address_is_no_part_of_a_runs_identity_and_its_password_not_of_run_json(monkeypatch):
    given = {"source": "archive", "out": "run"}
    with_server = load_options(TrainOptions, {**given, "mlflow_uri": "https://frieda:secret@host/mlflow"})
    assert changed_result(with_server) == changed_result(load_options(TrainOptions, given))
    monkeypatch.setattr(sys, "argv", ["raysegment", "--mlflow-uri=https://frieda:secret@host/mlflow", "s3://a/b@c"])
    described = describe_choices(with_server)
    assert described["chosen"]["mlflow_uri"] == "https://***@host/mlflow"
    assert described["command_line"] == ["raysegment", "--mlflow-uri=https://***@host/mlflow", "s3://a/b@c"]


SIGNS = st.text("aZ0@:/?#%\\ é-_.~", min_size=1, max_size=12)


@settings(max_examples=50)
@given(name=SIGNS, password=SIGNS)
def test_any_name_and_password_are_hidden(name, password):
    uri = f"https://{quote(name, safe='')}:{quote(password, safe='')}@host:1/x"
    assert hide_credentials(uri) == "https://***@host:1/x"
