"""What a night of `resegment` says of new scans that are unlike those before; without Ray and without pixels."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raysegment.cluster.inference.run import InferResult, identify_inference, resolve_options
from raysegment.commands.cohort_drift import is_as_bundled
from raysegment.commands.resegment import ResegmentResult, resegment
from raysegment.imaging.phantom import write_archive
from raysegment.model.bundle import Bundle, BundleDescription, load_bundle, save_bundle
from raysegment.options import InferOptions, Postprocessing, Preprocessing, ResegmentOptions
from raysegment.pipeline.scan_features import Feature, sort_samples
from raysegment.pipeline.training_features import keep_samples
from raysegment.runs.record import write_record
from raysegment.store.masks import encode_mask
from raysegment.store.parts import ScanRows, stage_part
from raysegment.store.place import Place
from raysegment.store.publish import prepare_tables, publish_part, read_finished, take_out
from raysegment.store.schema import DRIFT_SCHEMA

CHOICES = {"network": "unet", "filters": 2, "depth": 1, "dropout": 0.0, "norm": "batch", "norm_momentum": 0.9}
NUM_TRAINED = 60
BRIGHT, NEAR = "intensity_q50_channel_0", "share_near_threshold_lesion"


def draw(rng: np.random.Generator, brightness: float = 1.0) -> dict[str, float]:
    """What is made up of a scan."""
    return {"level": brightness * rng.normal(100, 8), "near": rng.uniform(0.1, 0.3), "volume": rng.lognormal(2, 1)}


def keep_training(rng: np.random.Generator) -> dict[str, Any]:
    """What a bundle keeps of scans like these."""
    scans = [draw(rng) for _ in range(NUM_TRAINED)]
    return keep_samples(
        sort_samples(
            {
                Feature("intensity", BRIGHT): [scan["level"] for scan in scans],
                Feature("spacing", "spacing_between_slices_mm"): [5.0] * NUM_TRAINED,
                Feature("volume", "volume_ml_lesion"): [scan["volume"] for scan in scans],
                Feature("doubt", NEAR): [scan["near"] for scan in scans],
            }
        )
    )


class Models:
    """Untrained bundles: one of today, one of another seed, and one as earlier versions wrote them."""

    def __init__(self, folder: Path) -> None:
        import keras

        from raysegment.model.unet import build_network

        description = BundleDescription(
            preprocessing=Preprocessing(image_size=32),
            postprocessing=Postprocessing(threshold=0.5),
            num_channels=3,
            network=CHOICES,
            training_patients=["PHANTOM_0040"],
        )
        self.paths: dict[str, Path] = {}
        for seed, name in enumerate(("today", "other", "older")):
            keras.utils.set_random_seed(seed)
            kept = None if name == "older" else keep_training(np.random.default_rng(seed))
            network = build_network(**CHOICES, input_shape=(32, 32, 3))
            self.paths[name] = folder / name
            save_bundle(self.paths[name], network, replace(description, training_features=kept))


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return Models(tmp_path_factory.mktemp("models")).paths


@pytest.fixture(scope="module")
def all_scans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scans")
    write_archive(folder, patients=40, seed=5, image_size=16, slices=2)
    return folder


class Cohort:
    """An archive that scans come to, and a stand-in for inference that makes up what it found in them."""

    def __init__(self, folder: Path, all_scans: Path, model: Path) -> None:
        self.folder, self.all_scans, self.out = folder, all_scans, folder / "cohort"
        self.brightness, self.spacing_mm = 1.0, [5.0, 1.0, 1.0]
        (folder / "archive").mkdir()
        self.write_file(model)

    def write_file(self, model: Path, *lines: str) -> None:
        keys = [f"name: test\nsource: archive\nmodel: {model}\nout: cohort", *lines]
        (self.folder / "cohort.yaml").write_text("\n".join(keys) + "\n")

    def bring(self, first: int, last: int) -> None:
        for number in range(first, last + 1):
            name = f"PHANTOM_{number:04d}"
            (self.folder / "archive" / name).mkdir()
            for file in (self.all_scans / name).iterdir():
                (self.folder / "archive" / name / file.name).hardlink_to(file)

    def run(self, **choices: object) -> ResegmentResult:
        return resegment(ResegmentOptions(cohort=str(self.folder / "cohort.yaml"), **choices), infer=self.infer)

    def infer(self, options, bundle, drawn, manifest, found, *, command, started) -> InferResult:
        place = Place(options.out)
        resolved = resolve_options(options, bundle, drawn, {})
        marks = {"model_id": bundle.model_id, "options_id": identify_inference(resolved, bundle, command).options_id}
        prepare_tables(place)
        done = {row["scan_id"]: row["fingerprint"] for row in read_finished(place).to_pylist()}
        left = [row for row in manifest.to_pylist() if done.get(row["scan_id"]) != row["fingerprint"]]
        take_out(place, pa.array([row["scan_id"] for row in left]))
        rows = [self.make_rows(row, marks) for row in left]
        publish_part(place, "_staging/1", stage_part(place, "_staging/1", rows).name)
        write_record(place, {"command": command, **marks, "status": "done", "chosen": {"source": options.source}})
        return InferResult(out=options.out, scans_total=manifest.num_rows, scans_ok=manifest.num_rows, scans_failed=0)

    def make_rows(self, row: dict[str, Any], marks: dict[str, str]) -> ScanRows:
        number = int(row["scan_id"].rpartition("_")[2])
        drawn = draw(np.random.default_rng([7, number]), self.brightness)
        known = {name: row[name] for name in ("scan_id", "patient_id", "fingerprint")}
        scan = {**known, **marks, "status": "ok", "num_slices": 2, "height": 16, "width": 16}
        quantiles = [scale * drawn["level"] for _ in range(3) for scale in (0.5, 1.0, 2.0)]
        metric = {
            "voxels": 9,
            "volume_ml": drawn["volume"],
            "border_entropy": 0.5,
            "share_near_threshold": drawn["near"],
        }
        mask = encode_mask(row["scan_id"], np.eye(16, dtype=np.uint8)[None], labels={"lesion": 1})
        metric |= {"scan_id": row["scan_id"], "patient_id": row["patient_id"], "label": "lesion"}
        return ScanRows(scan | {"spacing_mm": self.spacing_mm, "intensity_quantiles": quantiles}, (metric,), mask)

    def read_drift(self, result: ResegmentResult) -> dict[tuple[str, str], dict[str, Any]]:
        table = pq.read_table(self.out / "drift" / result.result.rpartition("/")[2] / "drift.parquet")
        assert table.schema == DRIFT_SCHEMA
        return {(row["against"], row["feature"]): row for row in table.to_pylist()}


@pytest.fixture
def make_cohort(tmp_path: Path, all_scans: Path, models: dict[str, Path]) -> Callable[[str], Cohort]:
    return lambda name: Cohort(tmp_path, all_scans, models[name])


def drifted(result: ResegmentResult, against: str) -> list[str]:
    return [row["feature"] for row in result.drift["against"][against]["drifted"]]


def test_brighter_scans_of_another_spacing_are_flagged_in_all_places(make_cohort, capsys) -> None:
    cohort = make_cohort("today")
    cohort.bring(1, 20)
    first = cohort.run(fail_on_drift=True)
    assert (first.drift["is_drift"], list(first.drift["against"]), first.exit_code) == (False, ["training"], 0)
    assert "no drift against the training set" in capsys.readouterr().out

    cohort.bring(21, 30)
    cohort.brightness, cohort.spacing_mm = 1.4, [3.0, 1.0, 1.0]
    second = cohort.run(fail_on_drift=True)
    assert second.exit_code == 4
    assert {BRIGHT, "spacing_between_slices_mm"} <= set(drifted(second, "past")) & set(drifted(second, "training"))
    assert not {NEAR, "volume_ml_lesion", "height"} & {*drifted(second, "past"), *drifted(second, "training")}
    said = capsys.readouterr().out
    assert "warning: drift: the new scans differ from the cohort's past in" in said
    assert "spacing_between_slices_mm (median 5 before, 3 now, p " in said

    rows = cohort.read_drift(second)
    assert (rows["past", BRIGHT]["n_before"], rows["past", BRIGHT]["n_new"]) == (20, 10)
    assert rows["training", BRIGHT]["n_before"] == NUM_TRAINED
    assert rows["past", BRIGHT]["p_holm"] >= rows["past", BRIGHT]["p"] > 0
    run = second.result.rpartition("/")[2]
    stored = json.loads((cohort.out / "runs" / f"{run}.json").read_text())["drift"]
    assert stored == json.loads((cohort.out / "drift" / run / "summary.json").read_text())
    assert stored["against"]["past"]["new_patients"] == 10
    third = cohort.run(fail_on_drift=True)
    assert (third.drift, third.exit_code) == (None, 0), "a night without scans has no drift"


def test_scans_like_those_before_are_not_flagged_and_few_are_not_tested(make_cohort, capsys) -> None:
    cohort = make_cohort("today")
    cohort.bring(1, 15)
    cohort.run()
    cohort.bring(16, 30)
    assert not cohort.run(fail_on_drift=True).drift["is_drift"]
    cohort.bring(31, 33)
    cohort.brightness = 9.0
    few = cohort.run(fail_on_drift=True)
    assert (few.exit_code, few.drift["tested"]) == (0, 0)
    assert "against the cohort's past was not tested: it needs 8 new patients and has 3" in capsys.readouterr().out
    assert {row["why_not"] for row in cohort.read_drift(few).values() if row["against"] == "past"} == {
        "needs 8 new patients who have it, has 3"
    }


def test_an_older_bundle_is_compared_with_the_past_alone_and_one_trained_on_a_patient_without_it(
    make_cohort, capsys, models
) -> None:
    cohort = make_cohort("older")
    cohort.bring(1, 10)
    first = cohort.run()
    assert (first.drift["against"], first.drift["tested"]) == ({}, 0)
    assert "the bundle keeps no numbers of its training scans" in capsys.readouterr().out
    cohort.bring(11, 20)
    assert list(cohort.run().drift["against"]) == ["past"]

    cohort.write_file(models["today"])
    cohort.bring(40, 40)
    again = cohort.run()
    assert again.drift["against"]["training"]["new_patients"] == 20
    assert again.drift["against"]["past"]["new_patients"] == 1
    said = capsys.readouterr().out
    assert "not compared with the training set, on whom the model was trained: 1 patient" in said
    assert "its masks are of another model" in said
    kinds = {key: row["kind"] for key, row in cohort.read_drift(again).items()}
    assert {kind for (against, _), kind in kinds.items() if against == "past"} == {"intensity", "spacing", "shape"}
    assert kinds["training", NEAR] == "doubt"


def test_files_exported_anew_are_compared_with_what_they_were(make_cohort) -> None:
    cohort = make_cohort("today")
    cohort.bring(1, 12)
    cohort.run()
    for folder in (cohort.folder / "archive").iterdir():
        for file in folder.iterdir():
            content = file.read_bytes()
            file.unlink()
            file.write_bytes(content)
    cohort.brightness = 1.5
    result = cohort.run()
    assert result.scans["changed"] == 12
    assert BRIGHT in drifted(result, "past")


def test_the_rate_of_the_cohort_file_decides_and_other_choices_leave_masks_out(make_cohort, models, capsys) -> None:
    cohort = make_cohort("today")
    cohort.write_file(models["today"], "drift_rate: 0.0001", "infer: {threshold: 0.4}")
    cohort.bring(1, 12)
    result = cohort.run()
    assert result.drift["rate"] == 0.0001
    assert {row["kind"] for row in cohort.read_drift(result).values()} == {"intensity", "spacing", "shape"}
    assert "the cohort's choices are not the bundle's" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("choices", "expected"),
    [({}, True), ({"threshold": 0.5}, True), ({"fill_holes": True}, False), ({"mirror": "columns"}, False)],
)
def test_choices_that_decide_masks_are_compared_with_those_of_the_bundle(
    models: dict[str, Path], choices: dict[str, Any], expected: bool
) -> None:
    bundle: Bundle = load_bundle(models["today"])
    options = InferOptions(model="m", source="s", out="o", precision="float32", **choices)
    assert is_as_bundled(options, bundle, bundle.labels) is expected
