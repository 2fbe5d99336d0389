"""Cross-validation on real Ray workers: undisturbed, and killed without grace on the way."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import duckdb
import psutil
import pyarrow.parquet as pq
import pytest
from tables import assert_equal_tables, assert_whole, read_table

from raysegment.commands.evaluate import evaluate
from raysegment.commands.export import export_masks
from raysegment.commands.measure import measure
from raysegment.commands.report import report
from raysegment.commands.train import train
from raysegment.commands.train_folds import FoldsResult
from raysegment.imaging.phantom import write_archive
from raysegment.model.bundle import load_bundle
from raysegment.options import EvaluateOptions, ExportOptions, MeasureOptions, ReportOptions, TrainOptions

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("ray_here")]

PATIENCE_SECONDS = 240
FOLDS = 2
SMALL = {
    "folds": FOLDS,
    "epochs": 2,
    "image_size": 32,
    "filters": 4,
    "depth": 2,
    "batch_size": 8,
    "lesion_fraction": 0.6,
    "learning_rate": 0.01,
    "train_fraction": 0.7,
    "val_fraction": 0.15,
    "precision": "float32",
    "threads": 1,
}


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("archive") / "phantoms"
    write_archive(folder, patients=7, seed=2, image_size=64, slices=6)
    return folder


@pytest.fixture(scope="module")
def undisturbed(ray_here: None, scans: Path, tmp_path_factory: pytest.TempPathFactory) -> FoldsResult:
    out = tmp_path_factory.mktemp("folds") / "run"
    found = train(TrainOptions(source=str(scans), out=str(out), ensemble=True, **SMALL))
    assert isinstance(found, FoldsResult)
    return found


def start_command(scans: Path, out: Path, log: Path, address: str) -> subprocess.Popen[bytes]:
    words = [sys.executable, "-m", "raysegment", "train", str(scans), "--out", str(out), "--address", address]
    for name, value in SMALL.items():
        words += [f"--{name.replace('_', '-')}", str(value)]
    return subprocess.Popen(words, stdout=log.open("ab"), stderr=subprocess.STDOUT)


def wait_for(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"waited too long for {what}"
        time.sleep(0.05)


def kill_all(driver: subprocess.Popen[bytes]) -> None:
    """What a power cut leaves: nothing. Ray would end the workers too, and let them go on for some moments."""
    driver.send_signal(signal.SIGKILL)
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            if process.cmdline()[:1] == ["ray::RayTrainWorker"]:
                process.send_signal(signal.SIGKILL)
    driver.wait()


def loss_of(run: Path) -> list[float]:
    return pq.read_table(run / "history.parquet")["loss"].to_pylist()


def read_json(path: Path) -> dict[str, object]:
    return json.loads(path.read_text())


def test_each_patient_is_measured_once_by_the_fold_that_never_saw_it(undisturbed: FoldsResult) -> None:
    out = undisturbed.folder / "out_of_fold"
    overall = pq.read_table(undisturbed.folder / "manifest.parquet").to_pylist()
    assert assert_whole(out) == sum(row["split"] != "test" for row in overall) == 6
    rows = read_table(out, "scans").set_index("scan_id")
    for row in overall:
        assert (row["fold"] is None) == (row["split"] == "test") == (row["scan_id"] not in rows.index)
    for number, fold in enumerate(undisturbed.folds):
        bundle = load_bundle(fold.bundle)
        held_out = [row for row in overall if row["fold"] == number]
        assert {rows.loc[row["scan_id"], "model_id"] for row in held_out} == {bundle.model_id}
        assert not any(bundle.has_seen(row["patient_id"]) for row in held_out)
        own = pq.read_table(fold.folder / "manifest.parquet").to_pylist()
        assert {row["scan_id"] for row in own if row["split"] == "test"} == {row["scan_id"] for row in held_out}
        assert len({row["patient_id"] for row in own if row["split"] == "val"}) == 1
    summary = read_json(out / "summary.json")
    assert (summary["scans"], summary["patients"], summary["training_patients_included"]) == (6, 6, 0)
    assert summary["dice_mean"] == pytest.approx(undisturbed.scores["dice_mean"])
    assert len(summary["dice_ci95"]) == 2
    assert [fold["scans"] for fold in summary["folds"]] == [3, 3]
    assert read_json(undisturbed.folder / "run.json")["status"] == "done"


def test_a_finished_run_says_so(undisturbed: FoldsResult, scans: Path) -> None:
    again = train(TrainOptions(source=str(scans), out=str(undisturbed.folder), ensemble=True, **SMALL))
    assert isinstance(again, FoldsResult)
    assert (again.already_done, again.exit_code, again.scores) == (True, 0, undisturbed.scores)
    assert again.bundle == undisturbed.folder / "model"


def test_other_commands_open_the_tables_of_all_folds(undisturbed: FoldsResult, scans: Path, tmp_path: Path) -> None:
    out = str(undisturbed.folder / "out_of_fold")
    assert duckdb.sql(f"select count(*) from '{out}/metrics/*.parquet' where dice is not null").fetchall() == [(6,)]
    assert any("predictions" in path for path in report(ReportOptions(folder=out)).figures)
    assert export_masks(ExportOptions(tables=out, out=str(tmp_path / "masks"))).num_files == 6
    measured = measure(MeasureOptions(tables=out, references=str(scans), out=str(tmp_path / "measured")))
    assert measured.summary["dice_mean"] == pytest.approx(undisturbed.scores["dice_mean"])


def test_the_ensemble_has_every_folds_network_and_patients_and_is_measured_on_the_others(
    undisturbed: FoldsResult, scans: Path, tmp_path: Path
) -> None:
    bundle = load_bundle(undisturbed.folder)
    folds = [load_bundle(fold.bundle) for fold in undisturbed.folds]
    assert bundle.num_members == FOLDS
    overall = pq.read_table(undisturbed.folder / "manifest.parquet").to_pylist()
    assert all(bundle.has_seen(row["patient_id"]) == (row["split"] != "test") for row in overall)
    assert {len(values) for values in bundle.training_features["shape"].values()} == {
        sum(row["split"] != "test" for row in overall)
    }
    assert {*bundle.training_features} == {"intensity", "spacing", "shape"}
    assert {*folds[0].training_features} == {"intensity", "spacing", "shape", "volume", "doubt"}
    assert bundle.threshold[0] == pytest.approx(sum(fold.threshold[0] for fold in folds) / FOLDS, abs=1e-3)
    found = evaluate(
        EvaluateOptions(
            model=str(undisturbed.folder), source=str(scans), out=str(tmp_path), split="test", precision="float32"
        )
    )
    assert (found.scans_ok, found.summary["training_patients_included"]) == (1, 0)


def test_a_killed_run_ends_with_the_curves_and_tables_of_an_undisturbed_one(
    undisturbed: FoldsResult, scans: Path, tmp_path: Path, ray_here: str
) -> None:
    run = tmp_path / "run"
    driver = start_command(scans, run, tmp_path / "log", ray_here)
    wait_for(lambda: (run / "folds/1/checkpoints/epoch-00001").exists() or driver.poll() is not None, "fold 1")
    assert driver.poll() is None, (tmp_path / "log").read_text()
    kill_all(driver)
    finished = (run / "folds/0/model/model.json").stat().st_mtime_ns
    assert not (run / "out_of_fold").exists()
    found = train(TrainOptions(source=str(scans), out=str(run), **SMALL))
    assert isinstance(found, FoldsResult)
    assert found.bundle is None
    assert (run / "folds/0/model/model.json").stat().st_mtime_ns == finished
    assert [read_json(fold.folder / "run.json")["attempt"] for fold in found.folds] == [1, 2]
    assert_equal_tables(run / "out_of_fold", undisturbed.folder / "out_of_fold", except_columns=("model_id",))
    for fold, other in zip(found.folds, undisturbed.folds, strict=True):
        assert loss_of(fold.folder) == pytest.approx(loss_of(other.folder), rel=1e-5), "the same seed, the same curve"
