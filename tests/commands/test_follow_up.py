"""A cohort's patients over time, limits of reviews that change, and reviews that stay; without Ray."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from datetime import date
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import tifffile

import raysegment
from raysegment.archive.manifest import entry_of
from raysegment.archive.pseudonyms import Pseudonyms
from raysegment.cluster.inference.run import InferResult, identify_inference, resolve_options
from raysegment.commands.report import draw_followed_patients
from raysegment.commands.resegment import resegment
from raysegment.errors import UsageError
from raysegment.options import ResegmentOptions
from raysegment.pipeline.doubt import describe_doubt
from raysegment.runs.record import write_record
from raysegment.scan import Labels
from raysegment.store.masks import encode_mask
from raysegment.store.parts import ScanRows, stage_part
from raysegment.store.place import Place
from raysegment.store.publish import prepare_tables, publish_part, read_rows
from raysegment.store.review_rule import needs_review

DATES = {"a1": "2020-01-01", "a2": "2020-04-01", "a3": "2020-07-01", "a4": "2021-01-01", "b1": "20200101", "b2": ""}
VOLUMES = {"a1": 10.0, "a2": 12.5, "a3": 15.0, "a4": 20.0, "b1": 7.0, "b2": 7.5, "c1": 3.0}
MIRROR_DICE = {"a1": 0.95, "a2": 0.85, "a3": 0.7, "a4": 0.95, "b1": None, "b2": 0.89, "c1": 0.88}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from raysegment.model.bundle import BundleDescription, save_bundle
    from raysegment.model.unet import build_network
    from raysegment.options import Postprocessing, Preprocessing

    choices = {"network": "unet", "filters": 2, "depth": 1, "dropout": 0.0, "norm": "batch", "norm_momentum": 0.9}
    description = BundleDescription(
        preprocessing=Preprocessing(image_size=32),
        postprocessing=Postprocessing(threshold=0.5),
        num_channels=1,
        network=choices,
        doubt=describe_doubt(Labels(), ()) | {"rule": {"mirror_dice_below": 0.9}},
    )
    folder = tmp_path_factory.mktemp("model") / "bundle"
    save_bundle(folder, build_network(**choices, input_shape=(32, 32, 1)), description)
    return folder


class Nights:
    """A cohort whose manifest is a CSV file, and a stand-in for inference that judges as workers do."""

    def __init__(self, folder: Path, model: Path) -> None:
        self.folder, self.model, self.out = folder, model, folder / "cohort"
        self.segmented: list[str] = []
        self.write_cohort()

    def write_cohort(self, *lines: str) -> None:
        text = f"name: test\nsource: scans.csv\nmodel: {self.model}\nout: cohort\nmass_vanish_percent: 100\n"
        (self.folder / "cohort.yaml").write_text(text + "".join(f"{line}\n" for line in lines))

    def run(self, dates: Mapping[str, str], letters: int = 1):
        """A night on these scans; the first letters of a scan_id are its patient."""
        rows = ["scan_id,patient_id,files,fingerprint,scan_date"]
        for scan_id, day in dates.items():
            tifffile.imwrite(self.folder / f"{scan_id}.tif", np.zeros((2, 8, 8), np.uint8), photometric="minisblack")
            rows.append(f"{scan_id},{scan_id[:letters]},{scan_id}.tif,{scan_id},{day}")
        (self.folder / "scans.csv").write_text("\n".join(rows) + "\n")
        self.segmented = []
        return resegment(ResegmentOptions(cohort=str(self.folder / "cohort.yaml")), infer=self.infer)

    def infer(self, options, bundle, drawn, manifest, found, *, command, started) -> InferResult:
        place = Place(options.out)
        resolved = resolve_options(options, bundle, drawn, {})
        marks = {"model_id": bundle.model_id, "options_id": identify_inference(resolved, bundle, command).options_id}
        prepare_tables(place)
        done = read_rows(place, "scans")["scan_id"].to_pylist()
        for row in manifest.to_pylist():
            if row["scan_id"] in done:
                continue
            self.segmented.append(row["scan_id"])
            entry = entry_of(row)
            known = {"scan_id": entry.scan_id, "patient_id": entry.patient_id}
            metric = known | {"label": "lesion", "voxels": 1, "volume_ml": VOLUMES[entry.scan_id]}
            metric["mirror_dice"] = MIRROR_DICE[entry.scan_id]
            metric["needs_review"] = needs_review(metric, bundle.doubt["rule"])
            scan = known | marks | {"fingerprint": entry.fingerprint, "status": "ok", "num_slices": 2}
            mask = encode_mask(entry.scan_id, np.zeros((2, 8, 8), np.uint8), labels={"lesion": 1})
            staged = stage_part(
                place, f"_staging/{entry.scan_id}", [ScanRows(scan | {"scan_date": entry.scan_date}, (metric,), mask)]
            )
            publish_part(place, f"_staging/{entry.scan_id}", staged.name)
        write_record(place, {"command": command, **marks, "status": "done", "chosen": {"source": options.source}})
        return InferResult(out=options.out, scans_total=manifest.num_rows, scans_ok=manifest.num_rows, scans_failed=0)

    def reviews(self) -> dict[str, bool | None]:
        rows = raysegment.open_cohort(str(self.out)).read("metrics").to_pylist()
        return {row["scan_id"]: row["needs_review"] for row in rows}

    def growth(self) -> dict[str, dict]:
        rows = pq.read_table(self.out / "trajectories" / "growth.parquet").to_pylist()
        return {row["patient_id"]: row for row in rows}


@pytest.fixture
def nights(tmp_path: Path, model: Path) -> Nights:
    return Nights(tmp_path, model)


def test_a_night_follows_patients_by_the_dates_of_its_manifest(nights: Nights, capsys) -> None:
    first = nights.run(DATES)
    assert first.follow_up == {
        "patients_followed": 1,
        "patients_growing": 1,
        "patients_shrinking": 0,
        "patients_without_interval": 0,
        "scans_without_date": 1,
        "scans_without_volume": 0,
    }
    said = capsys.readouterr().out
    assert "follow-up 1 patient has scans of two days or more: 1 grew beyond the interval, 0 shrank" in said
    # 10 ml in 366 days, on a line but for the lengths of months.
    assert nights.growth()["a"]["ml_per_year"] == pytest.approx(10 * 365.25 / 366, rel=0.01)
    assert (nights.out / "trajectories" / "trajectories.png").stat().st_size > 5000

    second = nights.run(DATES | {"b2": "2020-12-31", "a4": "2022-01-01"})
    assert (second.has_moved, nights.segmented) == (True, [])
    assert second.scans == {"new": 0, "changed": 0, "failed_before": 0, "unchanged": 6, "vanished": 0}
    assert "brought up to date, not segmented again: 2 scans with another date" in capsys.readouterr().out
    assert set(nights.growth()) == {"a", "b"}
    assert nights.growth()["b"]["ml_per_year"] == pytest.approx(0.5 * 365.25 / 365)
    assert nights.growth()["b"]["ml_per_year_low"] is None
    days = raysegment.open_cohort(str(nights.out)).read("scans")
    assert dict(zip(days["scan_id"].to_pylist(), days["scan_date"].to_pylist(), strict=True))["a4"] == date(2022, 1, 1)
    older = read_rows(Place(str(nights.out / first.result)), "scans").to_pylist()
    assert {row["scan_id"]: row["scan_date"] for row in older}["b2"] is None, "the night before is as it was"

    assert not nights.run(DATES | {"b2": "2020-12-31", "a4": "2022-01-01"}).has_moved
    assert not nights.run(dict.fromkeys(DATES, "")).has_moved, "without any date the tables keep theirs"
    nights.run({"a1": "2020-01-01", "b1": "2020-01-01"})
    assert not (nights.out / "trajectories").exists()


def test_patients_who_get_other_names_are_followed_without_segmenting(nights: Nights, capsys) -> None:
    nights.run(DATES, letters=2)
    assert not (nights.out / "trajectories").exists(), "each scan is its own patient"
    second = nights.run(DATES)
    assert (second.has_moved, nights.segmented) == (True, [])
    assert second.amended == {"dates": 0, "patients": 6, "reviews": 0}
    assert "not segmented again: 6 scans of another patient" in capsys.readouterr().out
    assert set(nights.growth()) == {"a"}
    for table in ("scans", "metrics"):
        rows = raysegment.open_cohort(str(nights.out)).read(table)
        assert set(rows["patient_id"].to_pylist()) == {"a", "b"}


def test_a_wrong_date_stops_the_night_and_names_its_row(nights: Nights) -> None:
    nights.run(DATES)
    with pytest.raises(UsageError, match=r"row 5, scan b1: scan_date is '1\.1\.2020'; expected a date such as"):
        nights.run(DATES | {"b1": "1.1.2020"})


def test_limits_change_what_needs_review_without_segmenting(nights: Nights, capsys) -> None:
    first = nights.run(DATES)
    assert nights.reviews() == {"a1": False, "a2": True, "a3": True, "a4": False, "b1": None, "b2": True}
    nights.write_cohort("review:", "  mirror_dice_below: 0.8", "  volume_ml_above: 18")
    second = nights.run(DATES | {"c1": "2020-01-01"})
    assert nights.segmented == ["c1"]
    assert "not segmented again: 4 masks judged otherwise for review" in capsys.readouterr().out
    found = nights.reviews()
    assert found == {"a1": False, "a2": False, "a3": True, "a4": True, "b1": False, "b2": False, "c1": False}
    assert (second.is_new_model, second.has_moved) == (False, True)
    rows = raysegment.open_cohort(str(nights.out)).read("metrics").to_pylist()
    rule = {"mirror_dice_below": 0.8, "volume_ml_above": 18}
    assert all(row["needs_review"] == needs_review(row, rule) for row in rows), "linked rows and new ones agree"
    older = read_rows(Place(str(nights.out / first.result)), "metrics").to_pylist()
    assert {row["scan_id"]: row["needs_review"] for row in older}["a2"] is True

    assert not nights.run(DATES | {"c1": "2020-01-01"}).has_moved
    nights.write_cohort("review: {mirror_dice_below: {lesion: null}}")
    assert nights.run(DATES | {"c1": "2020-01-01"}).has_moved
    assert set(nights.reviews().values()) == {None}
    nights.write_cohort()
    assert nights.run(DATES | {"c1": "2020-01-01"}).has_moved
    assert nights.segmented == []
    assert nights.reviews() == {"a1": False, "a2": True, "a3": True, "a4": False, "b1": None, "b2": True, "c1": True}
    nights.write_cohort("review: {mirror_dice_below: {edema: 0.5}}")
    with pytest.raises(UsageError, match="names the label 'edema'; the model has lesion"):
        nights.run(DATES)


def test_what_people_wrote_stays_byte_for_byte(nights: Nights) -> None:
    nights.write_cohort("keep: 2")
    nights.run({"a1": "2020-01-01"})
    reviews = nights.out / "reviews" / "000001-20200101T000000Z"
    reviews.mkdir(parents=True)
    (reviews / "a1.json").write_bytes(b'{"verdict": "wrong side"}\x00\xff')
    (nights.out / "reviews" / "notes.txt").write_text("of the first night")
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in (nights.out / "reviews").rglob("*.*")}
    results = []
    for count in (2, 3, 4):
        results.append(nights.run(dict(list(DATES.items())[:count])).result)
    assert len(list((nights.out / "results").glob("*/*"))) == 2
    assert not (nights.out / results[0]).exists()
    after = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in (nights.out / "reviews").rglob("*.*")}
    assert (after, len(after)) == (before, 2)


def test_a_report_follows_the_patients_of_a_folder(nights: Nights) -> None:
    result = nights.run(DATES).result
    folder = nights.folder / "copy"
    shutil.copytree(nights.out / result, folder)
    assert draw_followed_patients(Place(str(folder))) == [folder / "trajectories" / "trajectories.png"]
    assert pq.read_table(folder / "trajectories" / "growth.parquet")["patient_id"].to_pylist() == ["a"]


def test_a_pseudonymised_night_goes_on_from_the_one_before_and_tells_no_name(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    key = tmp_path / "own" / "key"
    key.parent.mkdir()
    key.write_bytes(bytes(32))
    (tmp_path / "night").mkdir()
    nights = Nights(tmp_path / "night", model)
    nights.write_cohort("infer:", "  pseudonymise: true", f"  key_file: {key}")
    hidden = {name: Pseudonyms(bytes(32)).hash("scan", name) for name in DATES}
    for table, given in ((VOLUMES, dict(VOLUMES)), (MIRROR_DICE, dict(MIRROR_DICE))):
        for name, pseudonym in hidden.items():
            monkeypatch.setitem(table, pseudonym, given[name])
    few = {name: day for name, day in DATES.items() if name != "a4"}
    assert nights.run(few).scans["new"] == 5
    second = nights.run(DATES)
    assert (second.scans["new"], second.scans["unchanged"], second.scans["vanished"]) == (1, 5, 0)
    assert nights.segmented == [hidden["a4"]]
    assert list(nights.growth()) == [Pseudonyms(bytes(32)).hash("patient", "a")]
    said = capsys.readouterr()
    assert "scans.csv" not in said.out + said.err
    for path in (path for path in nights.out.rglob("*.parquet")):
        rows = pq.read_table(path).to_pylist()
        assert not [row for row in rows if row.get("scan_id") in DATES or row.get("patient_id") in {"a", "b"}]
    assert key.with_name("key.lookup.csv").read_text().count("\nscan,") == len(DATES)
