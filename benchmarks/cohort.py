"""A night of a large cohort: seconds until the first new scan is read, and memory of the driver.

    python benchmarks/cohort.py --rows 1000000 --new 500            # the whole night, with Ray
    python benchmarks/cohort.py --rows 1000000 --new 500 --to-first-read

Made up are a Parquet manifest of one slice per scan, a file for each of its scans (those of finished scans are empty,
because nobody reads them; they are there, because their sizes and times are compared with the manifest's), an untrained
bundle, and a current result that has all scans but the new ones, in parts of a thousand. Then the night runs in a
process of its own, and once more, with nothing to do. `--to-first-read` stops a night when its first new scan is
decoded, which then happens in the driver and without Ray. Seconds are those since the command was given, imports
included.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

PER_FOLDER = 1_000
PER_PART = 1_000
SIZE = 64
SPACING_MM = [5.0, 1.0, 1.0]
STARTED = "COHORT_BENCHMARK_STARTED"


def make_source(source: Path, rows: int, new: int) -> pa.Table:
    """Files, and the manifest that is true of them; the new scans lie all over it."""
    import cv2

    from raysegment.archive.fingerprint import fingerprint_files
    from raysegment.archive.manifest import FINGERPRINT_MODE, MANIFEST_SCHEMA
    from raysegment.archive.walk import FoundFile

    rng = np.random.default_rng(0)
    is_new = np.zeros(rows, bool)
    is_new[rng.choice(rows, new, replace=False)] = True
    names, fingerprints, sizes = [], [], []
    for number in range(rows):
        folder = source / f"site-{number // PER_FOLDER:05d}"
        if number % PER_FOLDER == 0:
            folder.mkdir(parents=True)
        name = f"{folder.name}/scan-{number:07d}.tif"
        path = source / name
        if is_new[number]:
            cv2.imwrite(str(path), rng.integers(0, 255, (SIZE, SIZE, 3), np.uint8))
        else:
            os.close(os.open(path, os.O_CREAT | os.O_WRONLY))
        status = path.stat()
        found = FoundFile(name, status.st_size, status.st_mtime_ns)
        names.append(name)
        sizes.append(status.st_size)
        fingerprints.append(fingerprint_files(str(source), [(name, found)], "stat"))
    scan_ids = [name.removesuffix(".tif") for name in names]
    columns = {
        "scan_id": scan_ids,
        "patient_id": scan_ids,
        "source": [str(source)] * rows,
        "reader": ["tiff"] * rows,
        "files": [[name] for name in names],
        "reference_files": [[]] * rows,
        "num_files": [1] * rows,
        "bytes": sizes,
        "height": [SIZE] * rows,
        "width": [SIZE] * rows,
        "channels": [3] * rows,
        "fingerprint": fingerprints,
        "split": [None] * rows,
        "channel_names": [[]] * rows,
        "problem": [None] * rows,
    }
    table = pa.table(columns, schema=MANIFEST_SCHEMA).append_column("is_new", pa.array(is_new))
    return table.replace_schema_metadata({FINGERPRINT_MODE: b"stat"})


def make_bundle(folder: Path) -> None:
    import keras

    from raysegment.model.bundle import BundleDescription, save_bundle
    from raysegment.model.unet import build_network
    from raysegment.options import Postprocessing, Preprocessing

    keras.utils.set_random_seed(1)
    choices = {"network": "unet", "filters": 4, "depth": 2, "dropout": 0.0, "norm": "batch", "norm_momentum": 0.9}
    description = BundleDescription(
        preprocessing=Preprocessing(image_size=SIZE),
        postprocessing=Postprocessing(threshold=0.5),
        num_channels=3,
        network=choices,
    )
    save_bundle(folder, build_network(**choices, input_shape=(SIZE, SIZE, 3)), description)


def make_current(cohort_file: Path, finished: pa.Table) -> None:
    """The result of the night before: all of the manifest but the new scans."""
    from raysegment.cluster.inference.run import identify_inference, resolve_options
    from raysegment.model.bundle import load_bundle
    from raysegment.runs.cohort import CohortFolder
    from raysegment.runs.cohort_file import read_cohort
    from raysegment.runs.cohort_results import Current, name_group
    from raysegment.runs.members import MEMBERS_SCHEMA, update_members
    from raysegment.runs.record import write_record
    from raysegment.store.place import Place
    from raysegment.store.schema import SCHEMA_VERSION

    cohort = read_cohort(str(cohort_file))
    bundle = load_bundle(cohort.chosen.model)
    options = resolve_options(cohort.make_options(cohort.chosen.out, retry_failed=True), bundle, bundle.labels, {})
    marks = {
        "model_id": bundle.model_id,
        "options_id": identify_inference(options, bundle, "infer").options_id,
    }
    run = "000001-20260101T000000Z"
    result = f"results/{name_group(**marks)}/{run}"
    folder = CohortFolder(cohort.chosen.out)
    place = Place(folder.place.path(result))
    for start in range(0, finished.num_rows, PER_PART):
        write_part(place, finished.slice(start, PER_PART), marks, f"0001-{start:016x}.parquet")
    record = {"command": "infer", **marks, "status": "done", "schema_version": SCHEMA_VERSION}
    write_record(place, record | {"result_options": {"precision": options.precision}})
    with folder.hold():
        folder.write_members(update_members(MEMBERS_SCHEMA.empty_table(), finished, 1_767_225_600))
        folder.move_current(Current(result, run, **marks), None)


def write_part(place: Any, scans: pa.Table, marks: dict[str, str], name: str) -> None:
    from raysegment.store.masks import encode_mask
    from raysegment.store.schema import SCHEMAS

    mask = np.zeros((1, SIZE, SIZE), np.uint8)
    mask[0, 10:30, 12:40] = 1
    voxels = int(mask.sum())
    cell = encode_mask("", mask, labels={"lesion": 1}, spacing_mm=tuple(SPACING_MM))
    size = scans.num_rows
    known = {column: scans[column] for column in ("scan_id", "patient_id", "source", "fingerprint")}
    constant = {"status": "ok", "num_slices": 1, "height": SIZE, "width": SIZE, "attempt": 1, **marks}
    columns = {
        "masks": {"scan_id": scans["scan_id"]}
        | {key: [value] * size for key, value in cell.items() if key != "scan_id"},
        "metrics": {"scan_id": scans["scan_id"], "patient_id": scans["patient_id"], "label": ["lesion"] * size}
        | {"voxels": [voxels] * size, "volume_ml": [voxels * 5 / 1000] * size},
        "scans": known | {key: [value] * size for key, value in constant.items()},
    }
    for table, schema in SCHEMAS.items():
        place.make_folder(table)
        arrays = [
            pa.array(columns[table][field.name], field.type)
            if isinstance(columns[table].get(field.name), list)
            else columns[table].get(field.name, pa.nulls(size, field.type))
            for field in schema
        ]
        pq.write_table(pa.table(arrays, schema=schema), place.path(f"{table}/{name}"))


def peak_mb() -> float:
    """Of this process alone; `ru_maxrss` would begin with what its parent had."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


class FirstReadError(Exception):
    """The first new scan is read, which is all that was to be measured."""


def run_night(cohort_file: str, to_first_read: bool) -> None:
    """One night in this process; prints what was measured as one JSON line."""
    started = float(os.environ[STARTED])
    from raysegment.cluster.inference.run import run_inference
    from raysegment.commands.resegment import resegment
    from raysegment.options import ResegmentOptions

    seen: dict[str, float] = {}

    def infer(*given: Any, **named: Any) -> Any:
        seen.update(until_infer=time.time() - started, peak_mb_until_infer=peak_mb())
        if to_first_read:
            read_first(*given)
            seen.update(first_read=time.time() - started, peak_mb_first_read=peak_mb())
            raise FirstReadError
        result = run_inference(*given, **named)
        first = named["started"] + (result.seconds_startup or 0.0) - started
        seen.update(first_prediction=first, until_inferred=time.time() - started, peak_mb_inferred=peak_mb())
        return result

    try:
        result = resegment(ResegmentOptions(cohort=cohort_file, json=True), infer=infer)
        seen.update(result.scans)
    except FirstReadError:
        pass
    print(json.dumps(seen | {"seconds": time.time() - started, "peak_mb": peak_mb()}))


def read_first(options: Any, bundle: Any, drawn: Any, manifest: pa.Table, found: pa.Table) -> None:
    """What `infer` does before Ray reads the first block, and that reading."""
    from raysegment.archive.decoder import Decoder
    from raysegment.archive.manifest import entries
    from raysegment.archive.renamed import find_renamed
    from raysegment.cluster.inference.remaining import cut_plan, find_remaining, write_plan
    from raysegment.cluster.inference.run import RENAMED_COLUMNS
    from raysegment.pipeline.blocks import read_block, scans_of
    from raysegment.scan import ReadSettings
    from raysegment.store.place import Place
    from raysegment.store.publish import prepare_tables, read_finished, read_rows, take_out

    place = Place(options.out)
    prepare_tables(place)
    find_renamed(options.source, manifest, found, read_rows(place, "scans", RENAMED_COLUMNS))
    remaining = find_remaining(manifest, read_finished(place), retry_failed=True)
    take_out(place, remaining.take_out)
    groups = cut_plan(remaining.plan, num_cpus=2)
    (block, *_) = write_plan(place, "_staging/plan", remaining.plan, groups)
    with Decoder() as decoder:
        decoder.settings = ReadSettings()
        rows = pq.ParquetFile(place.path(block.file)).read_row_group(block.row_group)
        read = next(scans_of(next(read_block(decoder, list(entries(rows))))))
    assert read.scan is not None


def run_alone(cohort_file: Path, *options: str) -> dict[str, float]:
    command = [sys.executable, __file__, "--night", str(cohort_file), *options]
    environment = {**os.environ, STARTED: str(time.time())}
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return {name: round(value, 1) for name, value in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--new", type=int, default=500)
    parser.add_argument("--to-first-read", action="store_true")
    parser.add_argument("--keep", help="folder to make it all in, and to leave it there")
    parser.add_argument("--night", metavar="COHORT.yaml")
    given = parser.parse_args()
    options = ["--to-first-read"] if given.to_first_read else []
    if given.night:
        run_night(given.night, given.to_first_read)
        return
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(given.keep or scratch)
        cohort_file = folder / "cohort.yaml"
        if not cohort_file.exists():
            make_all(folder, cohort_file, given.rows, given.new)
        print("night", run_alone(cohort_file, *options), flush=True)
        if not given.to_first_read:
            print("nothing to do", run_alone(cohort_file))


def make_all(folder: Path, cohort_file: Path, rows: int, new: int) -> None:
    from raysegment.archive.manifest import write_manifest

    folder.mkdir(parents=True, exist_ok=True)
    table = make_source(folder / "source", rows, new)
    write_manifest(table, str(folder / "manifest.parquet"))
    make_bundle(folder / "model")
    draft = folder / "draft.yaml"
    draft.write_text("name: large\nsource: manifest.parquet\nmodel: model\nout: cohort\n")
    make_current(draft, table.filter(pc.invert(table["is_new"])))
    draft.rename(cohort_file)


if __name__ == "__main__":
    main()
