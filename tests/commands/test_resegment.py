"""A cohort night by night: what is segmented, what readers see meanwhile, and what is refused; without Ray."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tifffile

import raysegment
from raysegment.archive.manifest import entry_of, write_manifest
from raysegment.cluster.inference.run import InferResult, identify_inference, resolve_options
from raysegment.commands.cohort_check import check_cohort
from raysegment.commands.resegment import resegment
from raysegment.errors import DamagedTablesError, DiskFullError, InterruptedRunError, LockedError, UsageError
from raysegment.imaging.phantom import write_archive
from raysegment.options import CohortCheckOptions, ResegmentOptions
from raysegment.runs.cohort import CohortFolder
from raysegment.runs.lock import RunLock
from raysegment.runs.record import write_record
from raysegment.store.masks import encode_mask
from raysegment.store.parts import ScanRows, stage_part
from raysegment.store.place import Place
from raysegment.store.publish import prepare_tables, publish_part, read_rows, take_out

NUM_SCANS = 8


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two untrained bundles."""
    import keras

    from raysegment.model.bundle import BundleDescription, save_bundle
    from raysegment.model.unet import build_network
    from raysegment.options import Postprocessing, Preprocessing

    choices = {"network": "unet", "filters": 2, "depth": 1, "dropout": 0.0, "norm": "batch", "norm_momentum": 0.9}
    folders = []
    for seed in (1, 2):
        keras.utils.set_random_seed(seed)
        description = BundleDescription(
            preprocessing=Preprocessing(image_size=32),
            postprocessing=Postprocessing(threshold=0.5),
            num_channels=3,
            network=choices,
        )
        folders.append(tmp_path_factory.mktemp("model") / f"model-{seed}")
        save_bundle(folders[-1], build_network(**choices, input_shape=(32, 32, 3)), description)
    return folders[0], folders[1]


class Cohort:
    """An archive, a cohort file, and a stand-in for inference that notes what it was asked to segment."""

    def __init__(self, folder: Path, model: Path) -> None:
        self.folder, self.archive, self.out = folder, folder / "archive", folder / "cohort"
        self.segmented: list[str] = []
        self.fails: set[str] = set()
        self.during: Callable[[int], None] = lambda count: None
        write_archive(self.archive, patients=NUM_SCANS, seed=5, image_size=32, slices=3)
        self.write_file(model)

    def write_file(self, model: Path, *lines: str) -> None:
        keys = [f"name: test\nsource: archive\nmodel: {model}\nout: cohort", *lines]
        (self.folder / "cohort.yaml").write_text("\n".join(keys) + "\n")

    def run(self, **choices: object):
        self.segmented = []
        options = ResegmentOptions(cohort=str(self.folder / "cohort.yaml"), **choices)
        return resegment(options, infer=self.infer)

    def infer(self, options, bundle, drawn, manifest, found, *, command, started) -> InferResult:
        """Each scan's mask is where its first channel is bright; a part for each."""
        place = Place(options.out)
        resolved = resolve_options(options, bundle, drawn, {})
        marks = {"model_id": bundle.model_id, "options_id": identify_inference(resolved, bundle, command).options_id}
        prepare_tables(place)
        write_record(place, {"command": command, **marks, "status": "running", "chosen": {"source": options.source}})
        done = {
            row["scan_id"]: row["fingerprint"] for row in read_rows(place, "scans").to_pylist() if row["status"] == "ok"
        }
        for row in manifest.to_pylist():
            if done.get(row["scan_id"]) == row["fingerprint"]:
                continue
            take_out(place, pa.array([row["scan_id"]]))
            self.during(len(self.segmented))
            self.segmented.append(row["scan_id"])
            staging = f"_staging/{len(self.segmented)}"
            publish_part(place, staging, stage_part(place, staging, [self._segment(row, marks)]).name)
        rows = read_rows(place, "scans").to_pylist()
        failed = sum(row["status"] == "failed" for row in rows)
        write_record(place, {"command": command, **marks, "status": "done", "chosen": {"source": options.source}})
        return InferResult(
            out=options.out,
            scans_total=len(rows),
            scans_ok=len(rows) - failed,
            scans_failed=failed,
            scans_now=len(self.segmented),
            exit_code=1 if failed == len(rows) else 3 if failed else 0,
        )

    def _segment(self, row: dict, marks: dict) -> ScanRows:
        entry = entry_of(row)
        known = {"scan_id": entry.scan_id, "patient_id": entry.patient_id, "fingerprint": row["fingerprint"], **marks}
        if entry.scan_id in self.fails:
            return ScanRows(known | {"status": "failed", "error_type": "EmptyFileError", "error_message": "no bytes"})
        pixels = np.stack([tifffile.imread(self.archive / name)[..., 0] for name in entry.files])
        mask = (pixels > (128 if marks["model_id"] == self.first_model else 200)).astype(np.uint8)
        metric = {"scan_id": entry.scan_id, "patient_id": entry.patient_id, "label": "lesion"}
        scan = known | {"status": "ok", "num_slices": len(mask)}
        return ScanRows(
            scan, (metric | {"voxels": int(mask.sum())},), encode_mask(entry.scan_id, mask, labels={"lesion": 1})
        )

    first_model = ""

    def current(self) -> dict[str, str]:
        rows = raysegment.open_cohort(str(self.out)).read("scans").to_pylist()
        return {row["scan_id"]: row["fingerprint"] for row in rows}

    def change(self, number: int) -> None:
        path = sorted((self.archive / f"PHANTOM_{number:04d}").glob("*_1.tif"))[0]
        pixels = tifffile.imread(path)
        tifffile.imwrite(path, np.full_like(pixels, 255), photometric="rgb")
        os.utime(path, (1, 1))


@pytest.fixture
def cohort(tmp_path: Path, models: tuple[Path, Path]) -> Cohort:
    from raysegment.model.bundle import load_bundle

    made = Cohort(tmp_path, models[0])
    made.first_model = load_bundle(models[0]).model_id
    return made


def add_scans(cohort: Cohort, count: int) -> None:
    extra = cohort.folder / "extra"
    write_archive(extra, patients=NUM_SCANS + count, seed=6, image_size=32, slices=3)
    for number in range(NUM_SCANS + 1, NUM_SCANS + count + 1):
        (extra / f"PHANTOM_{number:04d}").rename(cohort.archive / f"PHANTOM_{number:04d}")


def remove_scan(cohort: Cohort, number: int) -> None:
    for path in (cohort.archive / f"PHANTOM_{number:04d}").iterdir():
        path.unlink()
    (cohort.archive / f"PHANTOM_{number:04d}").rmdir()


def test_four_nights(cohort: Cohort, models: tuple[Path, Path]) -> None:
    first = cohort.run()
    assert (first.has_moved, len(cohort.segmented), first.scans["new"]) == (True, NUM_SCANS, NUM_SCANS)
    before = cohort.current()

    add_scans(cohort, 2)
    cohort.change(2)
    remove_scan(cohort, 5)
    second = cohort.run()
    assert sorted(cohort.segmented) == ["PHANTOM_0002", "PHANTOM_0009", "PHANTOM_0010"]
    assert second.scans == {"new": 2, "changed": 1, "failed_before": 0, "unchanged": 6, "vanished": 1}
    assert second.changed_scans == 1
    assert sorted(cohort.current()) == [f"PHANTOM_{number:04d}" for number in (1, 2, 3, 4, 6, 7, 8, 9, 10)]
    older = read_rows(Place(str(cohort.out / first.result)), "scans").to_pylist()
    assert {row["scan_id"]: row["fingerprint"] for row in older} == before, "the night before is as it was"
    members = {row["scan_id"]: row for row in pq.read_table(cohort.out / "members").to_pylist()}
    assert [name for name, row in members.items() if row["vanished_at"]] == ["PHANTOM_0005"]

    third = cohort.run()
    assert (third.has_moved, cohort.segmented, third.result) == (False, [], second.result)

    cohort.write_file(models[1])
    fourth = cohort.run()
    assert fourth.is_new_model
    assert len(cohort.segmented) == 9
    changes = pq.read_table(cohort.out / "changes" / fourth.result.rpartition("/")[2] / "changes").to_pylist()
    assert {row["state"] for row in changes} == {"compared"}
    stored = json.loads((cohort.out / "current.json").read_text())
    assert stored["result"] == fourth.result
    assert not (cohort.out / first.result).exists(), "two results are kept"
    assert (cohort.out / second.result).is_dir()


def test_readers_see_whole_nights_only(cohort: Cohort) -> None:
    cohort.run()
    whole = [frozenset(cohort.current().items())]
    seen, stop = set(), threading.Event()

    def read() -> None:
        while not stop.is_set():
            seen.add(frozenset(cohort.current().items()))

    add_scans(cohort, 2)
    for number in (1, 2, 3):
        cohort.change(number)
    reader = threading.Thread(target=read)
    reader.start()
    try:
        cohort.run()
    finally:
        stop.set()
        reader.join()
    whole.append(frozenset(cohort.current().items()))
    assert seen <= set(whole)


def test_a_night_that_was_stopped_leaves_the_one_before_and_goes_on(cohort: Cohort, models: tuple[Path, Path]) -> None:
    first = cohort.run()
    cohort.write_file(models[1])

    def stop(count: int) -> None:
        if count == 3:
            raise DiskFullError("no space left")

    cohort.during = stop
    with pytest.raises(DiskFullError):
        cohort.run()
    assert json.loads((cohort.out / "current.json").read_text())["result"] == first.result
    assert len(cohort.current()) == NUM_SCANS
    cohort.during = lambda count: None
    again = cohort.run()
    assert again.has_moved
    assert len(cohort.segmented) == NUM_SCANS - 3, "what was done before the disk was full is kept"
    assert len(list((cohort.out / "results").glob("*/*"))) == 2


def test_a_night_that_was_stopped_at_its_very_end_goes_on_with_what_is_there_then(
    cohort: Cohort, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Compared already, but not current: meanwhile a scan of that night is gone and another one came."""
    cohort.run()
    add_scans(cohort, 2)
    with monkeypatch.context() as patched:
        patched.setattr(CohortFolder, "move_current", lambda *given: (_ for _ in ()).throw(DiskFullError("full")))
        with pytest.raises(DiskFullError):
            cohort.run()
    remove_scan(cohort, NUM_SCANS + 1)
    cohort.change(1)
    again = cohort.run()
    assert again.has_moved
    assert again.changed_scans == 1
    assert cohort.segmented == ["PHANTOM_0001"]
    assert sorted(cohort.current()) == [f"PHANTOM_{number:04d}" for number in (1, 2, 3, 4, 5, 6, 7, 8, 10)]


def test_a_half_made_night_for_another_model_is_thrown_away(cohort: Cohort, models: tuple[Path, Path]) -> None:
    cohort.run()
    cohort.write_file(models[1])
    cohort.during = lambda count: (_ for _ in ()).throw(DiskFullError("full")) if count == 2 else None
    with pytest.raises(DiskFullError):
        cohort.run()
    cohort.during = lambda count: None
    cohort.write_file(models[0])
    assert not cohort.run().has_moved, "with the old model there is nothing to do"
    add_scans(cohort, 1)
    assert cohort.run().has_moved
    assert len(list((cohort.out / "results").glob("*/*"))) == 2


def test_scans_that_failed_are_tried_every_night_and_move_nothing_alone(cohort: Cohort) -> None:
    cohort.fails = {"PHANTOM_0003"}
    first = cohort.run()
    assert (first.exit_code, first.scans_failed) == (3, 1)
    second = cohort.run()
    assert cohort.segmented == ["PHANTOM_0003"]
    assert (second.has_moved, second.result) == (False, first.result)
    cohort.fails = set()
    third = cohort.run()
    assert third.has_moved
    assert third.scans_failed == 0


def test_an_unmounted_source_is_not_taken_for_patients_who_left(cohort: Cohort) -> None:
    first = cohort.run()
    for number in range(1, 5):
        remove_scan(cohort, number)
    with pytest.raises(UsageError, match=r"4 of 8 scans of cohort test are not in .* such as 'PHANTOM_0001'"):
        cohort.run()
    assert json.loads((cohort.out / "current.json").read_text())["result"] == first.result
    assert cohort.run(allow_mass_vanish=True).scans["vanished"] == 4
    assert len(cohort.current()) == 4
    cohort.archive.rename(cohort.folder / "elsewhere")
    with pytest.raises(UsageError, match="archive"):
        cohort.run()


def files_of(folder: Path) -> dict[str, tuple[int, int]]:
    """Size and time of all files below a folder."""
    return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in folder.rglob("*")}


def test_a_look_says_what_a_run_would_do_and_writes_nothing(
    cohort: Cohort, models: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    options = CohortCheckOptions(cohort=str(cohort.folder / "cohort.yaml"))
    before = files_of(cohort.folder)
    first = check_cohort(options)
    assert (first.scans["new"], first.scans_to_segment, first.seconds, first.result) == (
        NUM_SCANS,
        NUM_SCANS,
        None,
        None,
    )
    shown = capsys.readouterr().out
    assert "cohort test: 8 new, 0 changed, 0 failed before, 0 unchanged, 0 vanished" in shown
    assert "8 scans to segment; how long that takes is not known, because no run has ended yet" in shown
    assert files_of(cohort.folder) == before

    night = cohort.run()
    before = files_of(cohort.folder)
    assert check_cohort(options).scans_to_segment == 0
    assert "nothing to do" in capsys.readouterr().out
    cohort.change(1)
    assert check_cohort(options).scans == {"new": 0, "changed": 1, "failed_before": 0, "unchanged": 7, "vanished": 0}
    assert "1 scan to segment in about " in capsys.readouterr().out
    cohort.write_file(models[1])
    other = check_cohort(options)
    assert (other.is_new_model, other.scans_to_segment, other.result) == (True, NUM_SCANS, night.result)
    assert other.seconds == pytest.approx(night.seconds_total, rel=1e-6)
    assert "as in the run before, which had another model or other choices" in capsys.readouterr().out
    assert files_of(cohort.out) == {name: stamp for name, stamp in before.items() if name.startswith(f"{cohort.out}/")}


def test_a_look_is_refused_where_a_run_would_be(cohort: Cohort) -> None:
    cohort.run()
    for number in range(1, 5):
        remove_scan(cohort, number)
    file = str(cohort.folder / "cohort.yaml")
    with pytest.raises(UsageError, match="4 of 8 scans of cohort test are not in"):
        check_cohort(CohortCheckOptions(cohort=file))
    assert check_cohort(CohortCheckOptions(cohort=file, allow_mass_vanish=True)).scans["vanished"] == 4


def test_one_run_at_a_time(cohort: Cohort) -> None:
    cohort.run()
    cohort.change(1)
    with RunLock(Place(str(cohort.out))), pytest.raises(LockedError, match=f"process {os.getpid()}"):
        cohort.run()


def test_only_scans_that_are_meant_are_segmented(cohort: Cohort, models: tuple[Path, Path]) -> None:
    manifest = raysegment.index(raysegment.IndexOptions(source=str(cohort.archive))).table
    scanners = [["Avanto"], ["Prisma"]] * (NUM_SCANS // 2)
    table = manifest.append_column("scanner", [[name for (name,) in scanners]])
    write_manifest(table, str(cohort.folder / "scans.parquet"))
    text = f"name: test\nsource: scans.parquet\nmodel: {models[0]}\nout: cohort\nscans: ['*_000[1-4]']\n"
    (cohort.folder / "cohort.yaml").write_text(text + "where:\n  - [scanner, =, Prisma]\n  - [num_files, '>', 1]\n")
    cohort.run()
    assert cohort.segmented == ["PHANTOM_0002", "PHANTOM_0004"]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("keeep: 3", r"line 5: unknown key 'keeep'; did you mean keep \(a whole number: results that are kept"),
        ("infra: {}", r"line 5: unknown key 'infra'; did you mean infer \(options of `infer`"),
        (
            "zzz: 1",
            "line 5: unknown key 'zzz'; known are change_dice, change_percent, drift_rate, infer, keep, .*where",
        ),
        ("notify: mail", "line 5: unknown key 'notify'; known are"),
        ("keep: 1", r"line 5: keep is 1; expected at least 2"),
        ("keep: many", "line 5: keep is 'many'; expected a whole number"),
        ("name: again", "line 5: name stands there twice"),
        ("where: scanner = Avanto", r"line 5: where is .*; expected a list"),
        ("where: [[scanner, like, A]]", "line 5: where: 'like' is no operator"),
        (
            "infer:\n  precision: auto\n  mirrrror: columns",
            "line 7: unknown key 'mirrrror' of infer; did you mean mirror",
        ),
        ("infer: {out: elsewhere}", "line 5: out of infer is chosen by the run itself"),
        ("infer: {mirror: columns, mirror: none}", "line 5: mirror stands there twice"),
        ("infer: {precision: float99}", "line 5: infer: precision 'float99' is unknown"),
        ("infer: fast", "expected options of `infer`"),
        ("a: &x [1]\nb: *x", "aliases"),
    ],
)
def test_a_wrong_cohort_file_names_line_and_key(cohort: Cohort, models, line: str, said: str) -> None:
    cohort.write_file(models[0], line)
    with pytest.raises(UsageError, match=said):
        cohort.run()
    assert not cohort.out.exists()


def test_a_damaged_current_is_refused(cohort: Cohort) -> None:
    cohort.run()
    (cohort.out / "current.json").write_text('{"result": "../../etc", "run": "x", "model_id": "", "options_id": ""}')
    with pytest.raises(DamagedTablesError, match="which is not there"):
        cohort.run()


@pytest.fixture
def mailbox(tmp_path: Path) -> tuple[str, Path]:
    """A command that keeps what it is told, and the file where it does."""
    told, script = tmp_path / "told.json", tmp_path / "tell.py"
    script.write_text(f"import sys; open({str(told)!r}, 'w').write(sys.stdin.read())")
    return f"{sys.executable} {script}", told


def test_a_program_is_told_and_its_failure_is_a_warning(
    cohort: Cohort, mailbox: tuple[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    command, told = mailbox
    cohort.run(notify=command)
    content = json.loads(told.read_text())
    assert (content["status"], content["exit_code"], content["error_message"]) == ("done", 0, None)
    assert (content["cohort"], content["scans"]["new"], content["scans_ok"]) == ("test", NUM_SCANS, NUM_SCANS)
    assert cohort.run(notify="false; touch hacked").exit_code == 0
    assert "warning: --notify failed: false; cannot be run: No such file or directory" in capsys.readouterr().out
    assert not Path("hacked").exists()


def test_a_program_is_told_of_a_night_that_failed(cohort: Cohort, mailbox: tuple[str, Path]) -> None:
    command, told = mailbox
    cohort.during = lambda count: (_ for _ in ()).throw(DiskFullError("no space left on the device."))
    with pytest.raises(DiskFullError):
        cohort.run(notify=command)
    content = json.loads(told.read_text())
    assert (content["status"], content["exit_code"], content["error_type"]) == ("failed", 1, "DiskFullError")
    assert content["error_message"] == "no space left on the device."
    assert content["cohort_file"] == str(cohort.folder / "cohort.yaml")
    cohort.during = lambda count: None
    cohort.archive.rename(cohort.folder / "unmounted")
    with pytest.raises(UsageError):
        cohort.run(notify=command)
    content = json.loads(told.read_text())
    assert (content["exit_code"], content["error_type"]) == (2, "UsageError")
    (cohort.folder / "unmounted").rename(cohort.archive)
    cohort.during = lambda count: os.kill(os.getpid(), signal.SIGTERM)
    with pytest.raises(InterruptedRunError):
        cohort.run(notify=command)
    assert json.loads(told.read_text())["status"] == "interrupted"


def test_a_program_that_cannot_be_meant_is_refused_before_the_night(cohort: Cohort) -> None:
    with pytest.raises(UsageError, match="cannot be split into words: No closing quotation"):
        cohort.run(notify='mail -s "done')
    with pytest.raises(UsageError, match="--notify is empty"):
        cohort.run(notify=" ")
    assert not cohort.out.exists()
