"""Training on real Ray workers: the same result for any number of them."""

import shutil
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from raysegment.commands.train import train
from raysegment.errors import ClusterError, TooManyFailuresError, UsageError
from raysegment.imaging.phantom import write_archive
from raysegment.options import TrainOptions

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("ray_here")]

BAD = "PHANTOM_0003"
SMALL = {
    "image_size": 32,
    "filters": 8,
    "depth": 2,
    "lesion_fraction": 0.6,
    "batch_size": 8,
    "train_fraction": 0.7,
    "val_fraction": 0.3,
    "precision": "float32",
    "learning_rate": 0.01,
}


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Phantoms, one of which cannot be read."""
    folder = tmp_path_factory.mktemp("archive") / "phantoms"
    write_archive(folder, patients=11, seed=2, image_size=64, slices=7)
    cut = folder / BAD / f"{BAD}_2.tif"
    cut.write_bytes(cut.read_bytes()[:200])
    return folder


def make_options(scans: Path, out: Path, **choices: object) -> TrainOptions:
    return TrainOptions(source=str(scans), out=str(out), **{**SMALL, **choices})


def history_of(run: Path) -> dict[str, list[float]]:
    return pq.read_table(run / "history.parquet").to_pydict()


@pytest.fixture(scope="module")
def two_runs(ray_here: None, scans: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The same training with one worker and with two."""
    out = tmp_path_factory.mktemp("runs")
    for workers in (1, 2):
        found = train(
            make_options(scans, out / str(workers), epochs=4, workers=workers, optimizer="adam", predictions_every=2)
        )
        assert found.exit_code == 3, "a scan is left out"
    return out / "1", out / "2"


def test_one_and_two_workers_learn_the_same(two_runs: tuple[Path, Path]) -> None:
    one, two = map(history_of, two_runs)
    assert one["loss"] == pytest.approx(two["loss"], rel=0.01)
    # Sums in another order differ in their last digits, which Adam makes larger, and hard Dice jumps while a network
    # still learns; that the steps are the same is what tests/model/test_fit.py shows, in double precision.
    assert one["val_loss"] == pytest.approx(two["val_loss"], rel=0.03)
    assert one["val_dice"][-1] == pytest.approx(two["val_dice"][-1], rel=0.05)


def test_every_slice_is_used_and_validated_once_where_nothing_divides(two_runs: tuple[Path, Path]) -> None:
    manifest = pq.read_table(two_runs[0] / "manifest.parquet").to_pylist()
    counts = {"train": 0, "val": 0}
    for row in manifest:
        counts[row["split"]] += len(row["files"]) * (row["status"] != "failed")
    assert counts["train"] % SMALL["batch_size"] != 0
    filled = -(-counts["train"] // SMALL["batch_size"]) * SMALL["batch_size"]
    for run in two_runs:
        history = history_of(run)
        assert history["num_slices"] == [filled] * 4
        assert history["num_validation_slices"] == [counts["val"]] * 4


def test_each_epoch_names_the_worst_validation_scans_and_some_draw_them(two_runs: tuple[Path, Path]) -> None:
    manifest = pq.read_table(two_runs[0] / "manifest.parquet").to_pylist()
    validated = [row["scan_id"] for row in manifest if row["split"] == "val" and row["status"] != "failed"]
    assert len(validated) == 3
    for run in two_runs:
        lines = (run / "log.txt").read_text(encoding="utf-8").splitlines()
        epochs = [line.partition("worst: ") for line in lines if "slices/s" in line]
        assert len(epochs) == 4
        for line, history_dice in zip(epochs, history_of(run)["val_dice"], strict=True):
            found = dict(word.rsplit(" ", 1) for word in line[2].split(", ")) if line[2] else {}
            assert set(found) <= set(validated)
            values = [float(dice) for dice in found.values()]
            assert values == sorted(values)
            assert sum(values) / max(1, len(values)) == pytest.approx(history_dice, abs=0.006)
        drawn = [line for line in lines if " drew " in line and line.endswith("predictions.png")]
        assert len(drawn) == 3
        assert (run / "figures" / "predictions.png").stat().st_size > 10_000
        assert not list((run / "figures").glob(".*"))


def test_the_bundle_of_two_workers_is_a_plain_model(two_runs: tuple[Path, Path]) -> None:
    check = (
        "import sys, keras; model = keras.saving.load_model(sys.argv[1]);"
        "assert 'raysegment' not in sys.modules;"
        "assert all(type(layer).__module__.startswith('keras') for layer in model.layers);"
        "assert getattr(model, 'optimizer', None) is None; print(model.output_shape)"
    )
    done = subprocess.run(
        [sys.executable, "-c", check, str(two_runs[1] / "model" / "model.keras")], capture_output=True, text=True
    )
    assert done.stdout.strip() == "(None, 32, 32, 1)", done.stderr


def test_a_finished_run_says_so_and_other_choices_are_refused(scans: Path, two_runs: tuple[Path, Path]) -> None:
    same = {"epochs": 4, "optimizer": "adam"}
    assert train(make_options(scans, two_runs[0], **same)).already_done
    with pytest.raises(UsageError, match="batch_size was 8, is 4"):
        train(make_options(scans, two_runs[0], **same, batch_size=4))


def test_more_workers_than_cpus_fail_at_once_with_both_numbers(scans: Path, tmp_path: Path) -> None:
    start = time.monotonic()
    with pytest.raises(ClusterError, match=r"--workers 512 .* has \d+ on 1 nodes"):
        train(make_options(scans, tmp_path / "run", workers=512, batch_size=512))
    assert time.monotonic() - start < 60


def test_a_bad_scan_is_left_out_and_counted(two_runs: tuple[Path, Path]) -> None:
    for run in two_runs:
        rows = {row["scan_id"]: row for row in pq.read_table(run / "manifest.parquet").to_pylist()}
        assert rows[BAD]["status"] == "failed"
        assert rows[BAD]["error_type"] == "TruncatedFileError"
        assert f"{BAD}_2.tif" in rows[BAD]["error_message"]


def test_more_than_a_tenth_of_bad_scans_fails_the_run(scans: Path, tmp_path: Path) -> None:
    archive = tmp_path / "archive"
    shutil.copytree(scans, archive)
    (archive / "PHANTOM_0005" / "PHANTOM_0005_1.tif").write_bytes(b"no image")
    with pytest.raises(TooManyFailuresError, match="2 of 11 scans"):
        train(make_options(archive, tmp_path / "run", epochs=1))
