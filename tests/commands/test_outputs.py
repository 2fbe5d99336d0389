"""Output folders: what is refused, what is never replaced, what is left there, and what damaged ones say."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import matplotlib.text
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tifffile
from matplotlib.figure import Figure

import raysegment
from raysegment import ExportOptions, IndexOptions, ReportOptions, cli
from raysegment.commands.report import report
from raysegment.store.masks import encode_mask
from raysegment.store.parts import ScanRows, stage_part
from raysegment.store.place import Place
from raysegment.store.publish import prepare_tables, publish_part

Run = Callable[..., tuple[int, str]]


COUNTS = {"true_positives": 3, "false_positives": 1, "false_negatives": 1, "true_negatives": 11}


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs the command line here, where starting Ray is a failure; gives exit code and stderr."""

    def start(*words: object) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["raysegment", *map(str, words)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        return int(end.value.code or 0), capsys.readouterr().err

    def refuse(**_: object) -> None:
        raise AssertionError("Ray was started")

    monkeypatch.setattr("ray.init", refuse)
    return start


def assert_one_line(told: tuple[int, str], code: int, *words: str) -> None:
    assert told[0] == code, told[1]
    assert len(told[1].splitlines()) == 1, told[1]
    assert told[1].startswith("raysegment: ")
    for word in words:
        assert word in told[1]


def write_archive(folder: Path, patients: int = 2, slices: int = 3, channels: tuple[int, ...] = ()) -> Path:
    """Slices with hand-drawn masks, in the LGG layout; grey ones if `channels` does not hold their number."""
    draw = np.random.default_rng(0)
    for number in range(1, patients + 1):
        name = f"p{number}"
        (folder / name).mkdir(parents=True)
        for index in range(1, slices + 1):
            pixels = draw.integers(0, 255, (16, 16, *channels), np.uint8)
            tifffile.imwrite(folder / name / f"{name}_{index}.tif", pixels)
            tifffile.imwrite(folder / name / f"{name}_{index}_mask.tif", np.full((16, 16), 255, np.uint8))
    return folder


def write_tables(
    folder: Path, scan_ids: list[str], *, source: object = "/nowhere", label: str = "lesion", **columns: Any
) -> Path:
    """Tables as `infer` leaves them, a part for each scan, with the record of the run."""
    place = Place(str(folder))
    prepare_tables(place)
    for scan_id in scan_ids:
        mask = np.zeros((1, 4, 4), np.uint8)
        mask[0, 0, :] = 1
        row = {"scan_id": scan_id, "patient_id": "p", "source": str(source), "status": "ok", "num_slices": 1, **columns}
        metric = {"scan_id": scan_id, "label": label, "voxels": 4, "dice": 0.75, "reference_is_empty": False, **COUNTS}
        rows = ScanRows(row, (metric,), encode_mask(scan_id, mask, labels={label: 1}))
        publish_part(place, "_staging/1", stage_part(place, "_staging/1", [rows]).name)
    record = {
        "command": "infer",
        "model_id": "m",
        "options_id": "o",
        "status": "done",
        "chosen": {"source": str(source)},
    }
    (folder / "run.json").write_text(json.dumps(record, indent=2))
    return folder


def export(tables: Path, out: Path) -> Any:
    return raysegment.export(ExportOptions(tables=str(tables), out=str(out)))


def find_scan_ids(source: object) -> list[str]:
    return raysegment.index(IndexOptions(source=str(source))).table["scan_id"].to_pylist()


def files_below(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def drawn_text(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every text of the figures that are written."""
    texts: list[str] = []
    save = Figure.savefig

    def remember(figure: Figure, *words: Any, **choices: Any) -> None:
        save(figure, *words, **choices)
        texts.extend(item.get_text() for item in figure.findobj(matplotlib.text.Text))

    monkeypatch.setattr(Figure, "savefig", remember)
    return texts


@pytest.fixture(scope="session")
def colour_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained network for scans of three channels."""
    from raysegment.model.bundle import BundleDescription, save_bundle
    from raysegment.model.unet import build_network
    from raysegment.options import Postprocessing, Preprocessing

    choices = {"network": "unet", "filters": 2, "depth": 1, "dropout": 0.0, "norm": "batch", "norm_momentum": 0.9}
    description = BundleDescription(
        preprocessing=Preprocessing(image_size=16),
        postprocessing=Postprocessing(threshold=0.5),
        num_channels=3,
        network=choices,
    )
    folder = tmp_path_factory.mktemp("bundle") / "model"
    save_bundle(folder, build_network(**choices, input_shape=(16, 16, 3)), description)
    return folder


@pytest.fixture
def read_only(tmp_path: Path) -> Iterator[Path]:
    """A folder on a file system that cannot be written, which stops the superuser, too."""
    mount = tmp_path / "read-only"
    mount.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", str(mount)], capture_output=True)
    if done.returncode:
        pytest.skip(f"a tmpfs cannot be mounted here: {done.stderr.decode().strip()}")
    yield mount
    subprocess.run(["umount", "-l", str(mount)], check=False)


@pytest.mark.parametrize("where", ["archive", "archive/p1", "archive/new/deep", "link/new", "."])
def test_export_at_below_or_around_its_own_sources_is_refused_and_writes_nothing(where, run, tmp_path):
    archive = write_archive(tmp_path / "work" / "archive")
    (tmp_path / "work" / "link").symlink_to(archive)
    tables = write_tables(tmp_path / "tables", ["p1", "p2"], source=archive)
    before = files_below(tmp_path / "work")
    assert_one_line(run("export", tables, "--out", tmp_path / "work" / where), 2, str(archive))
    assert files_below(tmp_path / "work") == before


def test_a_source_that_only_the_rows_name_is_guarded_as_well(run, tmp_path):
    archive = write_archive(tmp_path / "archive")
    tables = write_tables(tmp_path / "tables", ["p1"], source=archive)
    (tables / "run.json").unlink()
    assert_one_line(run("export", tables, "--out", archive / "masks"), 2, str(archive))


def test_a_file_that_export_did_not_write_is_never_replaced(run, tmp_path):
    tables = write_tables(tmp_path / "tables", ["a", "b"])
    out = tmp_path / "files"
    export(tables, out)
    write_tables(tables, ["c"])
    for name in ("c_mask.tif", "c_pred.tif"):
        (out / name).write_bytes(b"drawn by hand")
    before = files_below(out)
    told = run("export", tables, "--out", out)
    assert files_below(out) == before
    assert_one_line(told, 2, "c_pred.tif")


def test_export_into_a_folder_of_other_things_is_refused(run, tmp_path):
    tables = write_tables(tmp_path / "tables", ["a"])
    archive = write_archive(tmp_path / "other archive")
    before = files_below(archive)
    assert_one_line(run("export", tables, "--out", archive), 2, "other archive")
    assert files_below(archive) == before


def test_masks_are_named_predictions_and_the_folder_lists_them(tmp_path):
    tables, out = write_tables(tmp_path / "tables", ["site/a", "b.tif"]), tmp_path / "files"
    assert export(tables, out).num_files == 2
    assert sorted(files_below(out)) == [".raysegment-export.json", "b_pred.tif", "site/a_pred.tif"]
    listed = json.loads((out / ".raysegment-export.json").read_text())
    assert sorted(listed["files"]) == ["b_pred.tif", "site/a_pred.tif"]


def test_a_second_export_of_the_same_tables_brings_its_own_files_up_to_date(run, tmp_path):
    tables, out = write_tables(tmp_path / "tables", ["a", "b"]), tmp_path / "files"
    export(tables, out)
    (out / "a_pred.tif").write_bytes(b"old")
    write_tables(tables, ["c"])
    assert export(tables, out).num_files == 3
    assert tifffile.imread(out / "a_pred.tif").shape == (4, 4)
    assert len(json.loads((out / ".raysegment-export.json").read_text())["files"]) == 3
    other = write_tables(tmp_path / "other tables", ["a"])
    assert_one_line(run("export", other, "--out", out), 2, str(tables))


@pytest.mark.parametrize("form", ["{}", "file://{}"])
def test_nothing_that_raysegment_wrote_is_indexed(form, run, tmp_path):
    archive = write_archive(tmp_path / "archive")
    expected = find_scan_ids(form.format(archive))
    tables = write_tables(archive / "results" / "tables", ["p1", "p2"])
    assert run("report", tables)[0] == 0
    assert list(tables.rglob("*.png"))
    export(tables, archive / "results" / "files")
    found = raysegment.index(IndexOptions(source=form.format(archive)))
    assert found.table["scan_id"].to_pylist() == expected
    assert found.summary.own_folders == 2


def test_a_run_json_of_another_tool_hides_no_scans(tmp_path):
    archive = write_archive(tmp_path / "archive")
    expected = find_scan_ids(archive)
    (archive / "p1" / "run.json").write_text('{"command": "python train.py", "seed": 1}')
    (archive / "p2" / "run.json").write_text("no json")
    assert find_scan_ids(archive) == expected


def test_long_names_are_shortened_each_to_its_own(tmp_path):
    names = ["p" * 250, "ü" * 125 + "1", "ü" * 125 + "2", "folder" * 50 + "/a", "\U0010feff" * 100]
    tables = write_tables(tmp_path / "tables", names)
    export(tables, tmp_path / "files")
    found = sorted(files_below(tmp_path / "files"))
    assert len([name for name in found if name.endswith("_pred.tif")]) == 5
    assert max(len(os.fsencode(piece)) for name in found for piece in name.split("/")) <= 255
    export(tables, tmp_path / "again")
    assert sorted(files_below(tmp_path / "again")) == found


def test_a_manifest_may_have_a_name_of_250_letters(run, tmp_path):
    archive = write_archive(tmp_path / "archive")
    out = tmp_path / ("m" * 242 + ".parquet")
    assert run("index", archive, "--out", out)[0] == 0
    assert out.is_file()


@pytest.mark.parametrize("command", ["export", "demo", "index"])
@pytest.mark.parametrize("place", ["file", "file/below"])
def test_a_file_in_the_place_of_an_output_folder_is_wrong_usage(command, place, run, tmp_path):
    (tmp_path / "file").write_bytes(b"x")
    archive, tables = write_archive(tmp_path / "archive"), write_tables(tmp_path / "tables", ["a"])
    inputs = {"export": (tables,), "demo": (), "index": (archive,)}
    out = tmp_path / place / ("m.parquet" if command == "index" else "")
    assert_one_line(run(command, *inputs[command], "--out", out), 2, str(tmp_path / place))
    assert (tmp_path / "file").read_bytes() == b"x"


@pytest.mark.parametrize("command", ["export", "demo", "index", "infer", "evaluate", "train"])
def test_an_output_folder_that_cannot_be_written_is_wrong_usage(command, run, tmp_path, read_only, colour_bundle):
    archive = write_archive(tmp_path / "archive", patients=30, channels=(3,))
    tables = write_tables(tmp_path / "tables", ["a"])
    inputs = {"export": (tables,), "demo": (), "index": (archive,), "train": (archive,)}
    words = inputs.get(command, (colour_bundle, archive))
    for out in (read_only, read_only / "below", Path("/proc/nothing")):
        target = out / "m.parquet" if command == "index" else out
        assert_one_line(run(command, *words, "--out", target), 2, str(out))


@pytest.mark.parametrize("what", ["export", "report", "infer", "evaluate", "train", "model"])
def test_a_path_that_no_file_system_takes_is_wrong_usage(what, run, tmp_path, colour_bundle):
    archive = write_archive(tmp_path / "archive", patients=30, channels=(3,))
    long = tmp_path / ("n" * 300)
    words = {
        "export": ("export", long, "--out", tmp_path / "files"),
        "report": ("report", long),
        "infer": ("infer", colour_bundle, archive, "--out", long),
        "evaluate": ("evaluate", colour_bundle, archive, "--out", long),
        "train": ("train", archive, "--out", long),
        "model": ("infer", long, archive, "--out", tmp_path / "out"),
    }
    assert_one_line(run(*words[what]), 2, str(long))


@pytest.mark.parametrize("command", ["infer", "train", "demo"])
def test_a_temporary_folder_too_long_for_sockets_is_wrong_usage_before_anything_is_written(
    command, run, tmp_path, colour_bundle
):
    archive = write_archive(tmp_path / "archive", patients=30)
    inputs = {"infer": (colour_bundle, archive), "train": (archive,), "demo": ()}
    long = tmp_path / ("t" * 60)
    told = run(command, *inputs[command], "--out", tmp_path / "out", "--temp-dir", long)
    assert_one_line(told, 2, "--temp-dir", "107")
    assert not (tmp_path / "out").exists()


def damage(part: Path, how: str) -> None:
    whole = part.read_bytes()
    if how == "missing":
        part.unlink()
    else:
        part.write_bytes({"empty": b"", "cut": whole[: len(whole) // 2], "foreign": b"no parquet" * 99}[how])


@pytest.mark.parametrize("how", ["empty", "cut", "foreign"])
@pytest.mark.parametrize(("command", "table"), [("export", "masks"), ("report", "metrics"), ("report", "scans")])
def test_a_damaged_part_is_one_line_that_names_it(command, table, how, run, tmp_path):
    tables = write_tables(tmp_path / "tables", ["a", "b"])
    part = min((tables / table).iterdir())
    damage(part, how)
    words = ("--out", tmp_path / "files") if command == "export" else ()
    assert_one_line(run(command, tables, *words), 1, f"{table}/{part.name}", "infer")


def test_a_lost_part_of_masks_is_no_complete_export(run, tmp_path):
    tables = write_tables(tmp_path / "tables", ["a", "b"])
    part = min((tables / "masks").iterdir())
    part.unlink()
    assert_one_line(run("export", tables, "--out", tmp_path / "files"), 1, f"masks/{part.name}")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("run.json", b"[1, 2]"),
        ("run.json", b"no json"),
        ("run.json", b"\xff\xfe"),
        ("history.parquet", b""),
        ("history.parquet", b"PAR1 no more"),
        ("figures", b"a file"),
    ],
)
def test_report_on_an_odd_folder_is_one_line(name, content, run, tmp_path):
    tables = write_tables(tmp_path / "tables", ["a"])
    (tables / name).write_bytes(content)
    code, said = run("report", tables)
    assert code in (1, 2)
    assert_one_line((code, said), code, name)


@pytest.mark.parametrize("content", [b"", b"no table", None])
def test_report_on_a_training_run_with_an_odd_manifest_is_one_line(content, run, tmp_path):
    folder = write_training_run(tmp_path / "run", "val_dice", 2)
    (folder / "model").mkdir()
    pq.write_table(pa.table({"split": ["val"]}), folder / "manifest.parquet")
    if content is not None:
        (folder / "manifest.parquet").write_bytes(content)
    assert_one_line(run("report", folder), 2, "manifest.parquet")


@pytest.mark.parametrize("command", ["export", "infer", "train"])
def test_an_output_name_longer_than_the_file_system_takes_is_wrong_usage(command, run, tmp_path, colour_bundle):
    archive = write_archive(tmp_path / "archive", patients=30, channels=(3,))
    tables = write_tables(tmp_path / "tables", ["a"])
    inputs = {"export": (tables,), "infer": (colour_bundle, archive), "train": (archive,)}
    assert_one_line(run(command, *inputs[command], "--out", tmp_path / ("o" * 300)), 2, "longer")


def test_report_without_the_source_draws_what_it_can(run, tmp_path):
    tables = write_tables(tmp_path / "tables", ["a"], source=tmp_path / "moved away")
    assert run("report", tables)[0] == 0
    assert {path.name for path in (tables / "figures").iterdir()} == {"confusion_matrix.png", "dice_per_scan.png"}
    (note,) = report(ReportOptions(folder=str(tables))).notes
    assert note.startswith("predictions.png is not drawn: ")
    assert "moved away" in note


def test_the_confusion_matrix_says_the_label_of_the_tables(run, tmp_path, drawn_text):
    assert run("report", write_tables(tmp_path / "tables", ["a"], label="tumour core"))[0] == 0
    assert "tumour core" in drawn_text
    assert "lesion" not in drawn_text


def write_training_run(folder: Path, best_by: str, best_epoch: int | None) -> Path:
    """Three epochs of which the second has the best Dice and the third the best loss."""
    folder.mkdir()
    history = {
        "epoch": [1, 2, 3],
        "loss": [0.9, 0.8, 0.7],
        "dice": [0.1, 0.2, 0.3],
        "val_loss": [0.9, 0.6, 0.5],
        "val_dice": [0.2, 0.7, 0.6],
    }
    pq.write_table(pa.table(history), folder / "history.parquet")
    chosen = {"best_by": best_by}
    record = {"command": "train", "options": chosen, "data_id": "d", "status": "done", "chosen": chosen}
    (folder / "run.json").write_text(json.dumps(record | ({"best_epoch": best_epoch} if best_epoch else {})))
    return folder


@pytest.mark.parametrize(
    ("best_by", "best_epoch", "epoch", "dice"),
    [
        ("val_loss", 3, 3, "0.600"),
        ("val_loss", None, 3, "0.600"),
        ("val_dice", 2, 2, "0.700"),
    ],
)
def test_curves_mark_the_epoch_that_was_kept_and_say_by_what(
    best_by, best_epoch, epoch, dice, run, tmp_path, drawn_text
):
    assert run("report", write_training_run(tmp_path / "run", best_by, best_epoch))[0] == 0
    label = next(text for text in drawn_text if "best" in text)
    assert f"epoch {epoch}" in label
    assert dice in label
    assert {"val_loss": "validation loss", "val_dice": "validation Dice"}[best_by] in label


@pytest.mark.parametrize("command", ["infer", "evaluate"])
def test_a_model_for_other_channels_than_all_scans_is_refused_before_ray(command, run, tmp_path, colour_bundle):
    archive = write_archive(tmp_path / "archive")
    told = run(command, colour_bundle, archive, "--out", tmp_path / "out")
    assert_one_line(told, 2, "3 channels", "1 channel")
    assert not (tmp_path / "out").exists()


def test_without_a_record_the_rows_options_guard_the_folder(run, tmp_path, colour_bundle):
    archive = tmp_path / "archive"
    (archive / "p1").mkdir(parents=True)
    tifffile.imwrite(archive / "p1" / "p1_1.tif", np.zeros((16, 16, 3), np.uint8))
    model_id = raysegment.load_bundle(colour_bundle).model_id
    tables = write_tables(tmp_path / "out", ["p1"], source=archive, model_id=model_id, options_id="others")
    (tables / "run.json").unlink()
    assert_one_line(run("infer", colour_bundle, archive, "--out", tables), 2, "other choices", "run.json")


def test_train_and_infer_do_not_move_into_a_folder_of_other_things(run, tmp_path, colour_bundle):
    archive = write_archive(tmp_path / "archive", patients=30, channels=(3,))
    before = files_below(archive)
    assert_one_line(run("train", archive, "--out", archive), 2, "no raysegment output")
    assert_one_line(run("infer", colour_bundle, archive, "--out", archive), 2, "no raysegment output")
    assert files_below(archive) == before
