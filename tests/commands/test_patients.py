"""Who is in which split, which images make a scan, what makes two runs the same: all that is told before Ray starts."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

import raysegment
from raysegment import cli
from raysegment.errors import UsageError

AT_RAYS_DOOR = r"--temp-dir .* cannot be used"
"""What a command says that found nothing wrong and goes on to start Ray, in a folder that is none."""

NO_FOLDER = "/dev/null"


def write_image(path: Path, *, lesion: bool | None = None) -> None:
    """A 16x16 image, and unless `lesion` is None a mask: in `masks` for one in `images`, else beside it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(len(path.name)).integers(0, 255, (16, 16, 3), np.uint8)
    Image.fromarray(pixels).save(path)
    if lesion is not None:
        in_folder = path.parent.name == "images"
        mask = path.parents[1] / "masks" / path.name if in_folder else path.with_stem(f"{path.stem}_mask")
        mask.parent.mkdir(parents=True, exist_ok=True)
        drawn = np.zeros((16, 16), np.uint8)
        drawn[4:8, 4:8] = 255 * lesion
        Image.fromarray(drawn).save(mask)


def write_folders(archive: Path, **patients: Iterable[str]) -> Path:
    """Patients below folders train, val and test, one scan of three slices each."""
    for split, names in patients.items():
        for name in names:
            for number in range(1, 4):
                write_image(archive / split / name / f"{name}_{number}.png", lesion=True)
    return archive


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained network whose bundle says that it was trained on p1, p2 and p4."""
    import keras

    from raysegment.model.bundle import BundleDescription, save_bundle
    from raysegment.model.unet import build_network
    from raysegment.options import Postprocessing, Preprocessing

    keras.utils.set_random_seed(7)
    choices = {"network": "unet", "filters": 2, "depth": 1, "dropout": 0.0, "norm": "batch", "norm_momentum": 0.9}
    folder = tmp_path_factory.mktemp("bundle") / "model"
    description = BundleDescription(
        preprocessing=Preprocessing(image_size=16),
        postprocessing=Postprocessing(threshold=0.5),
        num_channels=3,
        network=choices,
        training_patients=["p1", "p2", "p4"],
    )
    save_bundle(folder, build_network(**choices, input_shape=(16, 16, 3)), description)
    return folder


@pytest.fixture
def evaluate(tmp_path: Path, bundle: Path):
    """`evaluate` of the bundle, up to the moment at which it would start Ray."""

    def run(source: Path, **choices: object) -> None:
        given = {"model": str(bundle), "source": str(source), "out": str(tmp_path / "out"), "temp_dir": NO_FOLDER}
        raysegment.evaluate(raysegment.EvaluateOptions(**given | choices))

    return run


@pytest.fixture
def train_log(tmp_path: Path):
    """What `train` wrote to its log when it would start Ray."""

    def run(source: Path, **choices: object) -> str:
        out = tmp_path / "run"
        given = {"source": str(source), "out": str(out), "temp_dir": NO_FOLDER, "image_size": 16}
        with pytest.raises(UsageError, match=AT_RAYS_DOOR):
            raysegment.train(raysegment.TrainOptions(**given | choices))
        return (out / "log.txt").read_text()

    return run


def write_split_file(path: Path, **lists: list[str]) -> str:
    path.write_text(json.dumps({"train": [], "val": [], **lists}))
    return str(path)


def run_cli(monkeypatch, capsys, *words: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of the command line."""
    monkeypatch.setattr(sys, "argv", ["raysegment", *words])
    with pytest.raises(SystemExit) as end:
        cli.main()
    shown = capsys.readouterr()
    return end.value.code or 0, shown.out, shown.err


@pytest.mark.parametrize("split", ["test", "val"])
def test_patients_that_the_model_was_trained_on_are_refused(evaluate, tmp_path, split):
    archive = write_folders(tmp_path / "archive", **{split: ["p1", "p2", "p3"], "train": ["p5"]})
    with pytest.raises(UsageError, match=rf"--split {split}: .*2 of its 3 patients: p1, p2.*--allow-training-patients"):
        evaluate(archive, split=split)


def test_training_patients_are_measured_on_request_and_under_split_train(evaluate, tmp_path):
    archive = write_folders(tmp_path / "archive", test=["p1"], train=["p2"])
    with pytest.raises(UsageError, match=AT_RAYS_DOOR):
        evaluate(archive, split="test", allow_training_patients=True)
    with pytest.raises(UsageError, match=AT_RAYS_DOOR):
        evaluate(archive, split="train")
    with pytest.raises(UsageError, match=r"--allow-training-patients .*--split val or test"):
        evaluate(archive, allow_training_patients=True)


def test_the_split_file_beats_the_folders(evaluate, tmp_path):
    archive = write_folders(tmp_path / "archive", val=["p3"], train=["p4"])
    split_file = write_split_file(tmp_path / "splits.json", train=["p3"], val=["p4"])
    with pytest.raises(UsageError, match=r"1 of its 1 patients: p4"):
        evaluate(archive, split="val", split_file=split_file)


def test_the_models_own_run_beats_the_folders(evaluate, tmp_path, bundle):
    archive = write_folders(tmp_path / "archive", val=["p3"], train=["p4"])
    run = tmp_path / "trained"
    shutil.copytree(bundle, run / "model")
    raysegment.index(raysegment.IndexOptions(source=str(archive), out=str(run / "manifest.parquet")))
    table = pq.read_table(run / "manifest.parquet")
    position = table.schema.get_field_index("split")
    pq.write_table(table.set_column(position, "split", pa.array(["train", "test"])), run / "manifest.parquet")
    with pytest.raises(UsageError, match=r"the val split holds no scan .*manifest\.parquet"):
        evaluate(archive, split="val", model=str(run))


@pytest.mark.parametrize("name", ["images/{}.png", "{}"], ids=["scan_id", "stem"])
def test_a_split_file_may_name_scans(train_log, tmp_path, name):
    for image in "abcdef":
        write_image(tmp_path / "archive" / "images" / f"{image}.png", lesion=True)
    lists = {"train": [name.format(image) for image in "abc"], "val": [name.format(image) for image in "de"]}
    log = train_log(tmp_path / "archive", split_file=write_split_file(tmp_path / "splits.json", **lists))
    assert "train 3 scans of 3 patients, val 2 scans of 2 patients, test 0 scans" in log
    assert "1 patients that the split does not name" in log


def test_a_split_file_without_a_known_name_shows_examples_of_both_sides(monkeypatch, capsys, tmp_path, bundle):
    archive = write_folders(tmp_path / "archive", train=["p3"], val=["p5"])
    split_file = write_split_file(tmp_path / "splits.json", train=["case_1", "case_2"], val=["case_3"])
    general = (str(archive), "--out", str(tmp_path / "out"), "--split-file", split_file)
    for words in (("train", *general), ("evaluate", str(bundle), *general, "--split", "val")):
        code, _, error = run_cli(monkeypatch, capsys, *words)
        assert code == 2
        assert len(error.splitlines()) == 1
        assert "case_1" in error
        assert "p3" in error
        assert "train/p3" in error


def test_an_empty_split_is_wrong_usage_and_shows_examples_of_both_sides(monkeypatch, capsys, tmp_path):
    archive = write_folders(tmp_path / "archive", train=["p3", "p5"])
    split_file = write_split_file(tmp_path / "splits.json", train=["p3"], val=["case_3"])
    words = ("train", str(archive), "--out", str(tmp_path / "out"), "--split-file", split_file)
    code, _, error = run_cli(monkeypatch, capsys, *words)
    assert code == 2
    assert "val" in error
    assert "case_3" in error
    assert "p5" in error


def write_flat(archive: Path) -> Path:
    """Three patients with two scans of eleven slices each, all in one folder of images."""
    for patient in ("p1", "p2", "p3"):
        for scan in ("s1", "s2"):
            for number in range(1, 12):
                lesion = None if (patient, number) == ("p2", 3) else number == 5
                write_image(archive / "images" / f"{patient}_{scan}_{number}x.png", lesion=lesion)
    return archive


SCAN_PATTERN = r"images/(p\d+_s\d+)_"


def test_images_with_one_group_are_the_slices_of_one_scan(monkeypatch, capsys, tmp_path):
    archive, out = write_flat(tmp_path / "archive"), tmp_path / "manifest.parquet"
    pattern = ("--scan-pattern", SCAN_PATTERN, "--patient-pattern", r"(p\d+)_")
    code, shown, _ = run_cli(monkeypatch, capsys, "index", str(archive), "--out", str(out), *pattern, "--json")
    assert code == 0
    summary = json.loads(shown)
    assert (summary["scans"], summary["patients"]) == (6, 3)
    assert (summary["with_reference"], summary["with_partial_reference"]) == (4, 2)
    rows = {row["scan_id"]: row for row in pq.read_table(out).to_pylist()}
    assert list(rows) == ["p1_s1", "p1_s2", "p2_s1", "p2_s2", "p3_s1", "p3_s2"]
    assert rows["p1_s2"]["files"] == [f"images/p1_s2_{number}x.png" for number in range(1, 12)]
    assert rows["p1_s2"]["reference_files"] == [f"masks/p1_s2_{number}x.png" for number in range(1, 12)]
    assert rows["p2_s1"]["reference_files"][2] == ""
    assert [row["patient_id"] for row in rows.values()] == ["p1", "p1", "p2", "p2", "p3", "p3"]


def test_a_split_file_may_name_scans_of_a_pattern(train_log, tmp_path):
    split_file = write_split_file(tmp_path / "splits.json", train=["p1_s1", "p2"], val=["p3_s2"])
    choices = {"scan_pattern": SCAN_PATTERN, "patient_pattern": r"(p\d+)_", "split_file": split_file}
    log = train_log(write_flat(tmp_path / "archive"), **choices)
    assert "6 scans found" in log
    assert "train 4 scans of 2 patients, val 2 scans of 1 patients" in log


def test_a_scan_pattern_that_cannot_work_is_refused(monkeypatch, capsys, tmp_path):
    archive = str(write_flat(tmp_path / "archive"))
    manifest = str(tmp_path / "manifest.parquet")
    assert run_cli(monkeypatch, capsys, "index", archive, "--out", manifest)[0] == 0
    for source, pattern, said in (
        (archive, "images/p1", "has no group"),
        (archive, "(", "no regular expression"),
        (archive, "(p1)_", "finds no scan in images/p"),
        (manifest, SCAN_PATTERN, "is a manifest"),
    ):
        code, _, error = run_cli(monkeypatch, capsys, "index", source, "--scan-pattern", pattern)
        assert code == 2
        assert "--scan-pattern" in error
        assert said in error


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"patient_pattern": r"images/(p\d+)"}, r"patient_pattern was None, is images/\(p"),
        ({"scan_pattern": SCAN_PATTERN}, r"scan_pattern was None, is images/\(p"),
    ],
)
def test_another_pattern_is_another_run(tmp_path, bundle, other, said):
    given = {"model": str(bundle), "source": str(write_flat(tmp_path / "archive")), "out": str(tmp_path / "out")}
    for choices, expected in (({}, AT_RAYS_DOOR), ({}, AT_RAYS_DOOR), (other, said)):
        with pytest.raises(UsageError, match=expected):
            raysegment.infer(raysegment.InferOptions(**given, temp_dir=NO_FOLDER, **choices))


def test_a_folder_of_version_0_1_0_tells_its_pattern_by_what_was_chosen(tmp_path, bundle):
    given = {"model": str(bundle), "source": str(write_flat(tmp_path / "archive")), "out": str(tmp_path / "out")}
    first = {"patient_pattern": r"images/(p\d+)"}
    with pytest.raises(UsageError, match=AT_RAYS_DOOR):
        raysegment.infer(raysegment.InferOptions(**given, temp_dir=NO_FOLDER, **first))
    record = tmp_path / "out" / "run.json"
    content = json.loads(record.read_text())
    content = {name: value for name, value in content.items() if not name.endswith("_pattern")}
    content["chosen"].pop("scan_pattern", None)
    record.write_text(json.dumps(content))
    with pytest.raises(UsageError, match=AT_RAYS_DOOR):
        raysegment.infer(raysegment.InferOptions(**given, temp_dir=NO_FOLDER, **first))
    record.write_text(json.dumps(content))
    with pytest.raises(UsageError, match=r"patient_pattern was images/\(p.*, is None"):
        raysegment.infer(raysegment.InferOptions(**given, temp_dir=NO_FOLDER))
