"""A cohort over four nights as its users run it: a process for each night, and a reader who looks all the time."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from local_bucket import LocalBucket, serve_bucket

import raysegment
from raysegment.errors import UsageError
from raysegment.store.masks import decode_mask
from raysegment.store.place import Place

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

HIGH, MIDDLE = 255, 128
GATED = "scan_20/s_1.gated"
PLANTED = {"scan_03", "scan_11", "scan_23", GATED}
"""Scans with a region of middle brightness, which only the first model takes for a part of the mask."""

COHORT = """
name: story
source: {source}
model: {model}
out: {out}
infer: {{part-seconds: 1}}
"""

Night = dict[str, int]
"""Voxels of each scan's mask."""


def draw_scan(name: str, *, side: int) -> np.ndarray:
    """Two slices of 32x32: a bright square, and a darker one where the scan is planted."""
    pixels = np.zeros((2, 32, 32), np.uint8)
    pixels[:, 2 : 2 + side, 3 : 3 + side] = HIGH
    if name in PLANTED:
        pixels[:, 20:28, 20:28] = MIDDLE
    return pixels


def save_thresholding_bundle(folder: Path, threshold: float) -> Path:
    """A network made by hand that hands its input through: the probability is sigmoid(20 (x - 0.4)).

    Of 255 that is 1, of 128 0.89, of 0 0.0003: a threshold of 0.5 or 0.95 decides about the middle one.
    """
    from raysegment.model.bundle import BundleDescription, save_bundle
    from raysegment.model.unet import build_network
    from raysegment.options import Postprocessing, Preprocessing

    choices = {"network": "unet", "filters": 2, "depth": 1, "dropout": 0.0, "norm": "none"}
    network = build_network(**choices, input_shape=(32, 32, 1))
    for layer in network.layers:
        layer.set_weights([np.zeros_like(weights) for weights in layer.get_weights()])
    first, second, *_, third, fourth, last = [layer for layer in network.layers if type(layer).__name__ == "Conv2D"]
    # Two channels come from below, before those that were skipped.
    for layer, channel in ((first, 0), (second, 0), (third, 2), (fourth, 0)):
        kernel, bias = layer.get_weights()
        kernel[1, 1, channel, 0] = 1
        layer.set_weights([kernel, bias])
    kernel, bias = last.get_weights()
    kernel[0, 0, 0, 0], bias[0] = 20, -8
    last.set_weights([kernel, bias])
    description = BundleDescription(
        preprocessing=Preprocessing(image_size=32, normalization="scale"),
        postprocessing=Postprocessing(threshold=threshold),
        num_channels=1,
        network=choices | {"norm_momentum": 0.9},
    )
    save_bundle(folder, network, description)
    return folder


class Home:
    """Where scans and results of the story are, and where its nights run; here in folders, each night with its own Ray.

    Attributes:
        folder: For what is local anyway.
        source: The archive.
        out: The cohort's folder.
        address: The cluster that nights join.
    """

    address: str | None = None

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.source, self.out = str(folder / "archive"), str(folder / "cohort")
        self.gate = folder / "closed"

    def put(self, name: str, pixels: np.ndarray) -> None:
        place = self.folder / "archive" / name.partition("/")[0]
        place.mkdir(parents=True, exist_ok=True)
        if name == GATED:
            (place / "s_1.gated").write_bytes(b"GATED " + str(self.gate).encode() + b"\n" + pixels.tobytes())
            return
        for index, plane in enumerate(pixels):
            tifffile.imwrite(place / f"s_{index + 1}.tif", plane)

    def remove(self, name: str) -> None:
        for path in (self.folder / "archive" / name).iterdir():
            path.unlink()
        (self.folder / "archive" / name).rmdir()

    def parts(self) -> set[str]:
        """Parts of `scans` of all results."""
        found = (self.folder / "cohort").glob("results/*/*/scans/*.parquet")
        return {str(path.relative_to(self.folder / "cohort")) for path in found}


class BucketHome(Home):
    """The same in a bucket, and on a cluster."""

    def __init__(self, folder: Path, bucket: LocalBucket, address: str) -> None:
        super().__init__(folder)
        self.bucket, self.address = bucket, address
        self.source, self.out = bucket.uri("archive"), bucket.uri("cohort")

    def put(self, name: str, pixels: np.ndarray) -> None:
        super().put(name, pixels)
        folder = name.partition("/")[0]
        self.bucket.upload(self.folder / "archive" / folder, f"archive/{folder}")

    def remove(self, name: str) -> None:
        self.bucket.remove(f"archive/{name}/")

    def parts(self) -> set[str]:
        keys = self.bucket.keys("cohort/results/")
        return {key.removeprefix("cohort/") for key in keys if "/scans/" in key and "_staging" not in key}


@pytest.fixture(params=["folder", "bucket"])
def home(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Home]:
    if request.param == "folder":
        yield Home(tmp_path)
        return
    address = request.getfixturevalue("ray_here")
    with serve_bucket() as bucket:
        yield BucketHome(tmp_path, bucket, address)


class Reader:
    """Reads the cohort's current tables again and again, in a thread; a context manager.

    Attributes:
        seen: How often each night was read, in the order in which they came.
        errors: What a reader must never see.
    """

    def __init__(self, out: str) -> None:
        self.out = out
        self.seen: list[tuple[Night, int]] = []
        self.errors: list[str] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._read_all)

    def __enter__(self) -> Reader:
        self._thread.start()
        return self

    def __exit__(self, *unused: object) -> None:
        self._stop.set()
        self._thread.join()

    def _read_all(self) -> None:
        # With a pause: the nights need the processor too.
        while not self._stop.wait(0.1):
            try:
                night = self._read()
            except UsageError as error:
                if self.seen or "has no current result" not in str(error):
                    self.errors.append(str(error))
                continue
            except Exception as error:
                self.errors.append(repr(error))
                continue
            if self.seen and self.seen[-1][0] == night:
                self.seen[-1] = night, self.seen[-1][1] + 1
            else:
                self.seen.append((night, 1))

    def _read(self) -> Night:
        tables = raysegment.open_cohort(self.out)
        scans = [row["scan_id"] for row in tables.read("scans").to_pylist() if row["status"] == "ok"]
        metrics = {row["scan_id"]: row["voxels"] for row in tables.read("metrics").to_pylist()}
        rows = tables.read("masks").to_pylist()
        masks = {row["scan_id"]: int(np.count_nonzero(decode_mask(row))) for row in rows}
        if len(rows) != len(masks) or sorted(scans) != sorted(masks) or metrics != masks:
            self.errors.append(f"scans {sorted(scans)}, metrics {metrics}, masks {masks}")
        return masks


class Nights:
    """Runs of `raysegment resegment`, each a process of its own."""

    def __init__(self, home: Home) -> None:
        self.home, self.file = home, home.folder / "cohort.yaml"

    def write_file(self, model: Path) -> None:
        self.file.write_text(COHORT.format(source=self.home.source, model=model, out=self.home.out))

    def start(self, temp: str) -> subprocess.Popen[str]:
        environment = os.environ | {
            "RAYSEGMENT_READERS": "gated_reader",
            "PYTHONPATH": os.pathsep.join((str(Path(__file__).parent), os.environ.get("PYTHONPATH", ""))),
        }
        words = [sys.executable, "-m", "raysegment", "resegment", str(self.file), "--json"]
        words += ["--temp-dir", temp] if self.home.address is None else ["--address", self.home.address]
        return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)

    def run(self) -> dict[str, Any]:
        """One night; returns what the process said last."""
        # Ray's sockets allow no long paths.
        with tempfile.TemporaryDirectory(prefix="rs", ignore_cleanup_errors=True) as temp:
            process = self.start(temp)
            output, errors = process.communicate(timeout=180)
            assert process.returncode == 0, errors[-2000:]
            result: dict[str, Any] = json.loads(output.splitlines()[-1])
            return result | {"has_ray": bool(os.listdir(temp))}

    def kill(self, is_time: Any) -> None:
        """Begin a night and kill it."""
        with tempfile.TemporaryDirectory(prefix="rs", ignore_cleanup_errors=True) as temp:
            process = self.start(temp)
            deadline = time.monotonic() + 120
            while not is_time():
                assert process.poll() is None, process.communicate()
                assert time.monotonic() < deadline, "waited in vain"
                time.sleep(0.05)
            process.send_signal(signal.SIGKILL)
            process.communicate()


def count_voxels(names: set[str], sides: dict[str, int], darkest: int) -> Night:
    return {name: int(np.count_nonzero(draw_scan(name, side=sides[name]) >= darkest)) for name in names}


def test_four_nights_are_each_seen_whole_or_not_at_all(home: Home, tmp_path: Path) -> None:
    models = [save_thresholding_bundle(tmp_path / f"model-{value}", value) for value in (0.5, 0.95)]
    names = [GATED if number == 20 else f"scan_{number:02d}" for number in range(1, 26)]
    sides = {name: 5 + number % 5 for number, name in enumerate(names)}
    first, later = names[:20], names[20:]
    nights = Nights(home)
    with Reader(home.out) as reader:
        nights.write_file(models[0])
        for name in first:
            home.put(name, draw_scan(name, side=sides[name]))
        expected = [count_voxels(set(first), sides, MIDDLE)]
        ended = nights.run()
        assert (ended["scans"]["new"], ended["scans_now"], ended["has_moved"]) == (20, 20, True)

        for name in ("scan_05", "scan_06"):
            sides[name] += 6
        home.remove("scan_07")
        for name in ("scan_05", "scan_06", *later):
            home.put(name, draw_scan(name, side=sides[name]))
        members = set(sides) - {"scan_07"}
        expected.append(count_voxels(members, sides, MIDDLE))
        ended = nights.run()
        assert ended["scans"] == {"new": 5, "changed": 2, "failed_before": 0, "unchanged": 17, "vanished": 1}
        assert (ended["scans_now"], ended["has_moved"]) == (7, True)

        second, before = ended["result"], resource.getrusage(resource.RUSAGE_CHILDREN)
        ended = nights.run()
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert (ended["result"], ended["has_moved"], ended["scans_now"]) == (second, False, 0)
        assert not ended["has_ray"]
        assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 5

        nights.write_file(models[1])
        home.gate.touch()
        known = home.parts()
        nights.kill(lambda: home.parts() - known)
        home.gate.unlink()
        assert open_ids(home) == members
        expected.append(count_voxels(members, sides, HIGH))
        ended = nights.run()
        assert ended["is_new_model"]
        assert 0 < ended["scans_now"] < 24, "what the killed run did is kept"
        assert (ended["scans_ok"], ended["changed_scans"]) == (24, len(PLANTED))
    assert reader.errors == []
    assert [night for night, _ in reader.seen] == expected, "each night whole, one after the other"
    changes = Place(Place(home.out).locate(f"changes/{ended['result'].rpartition('/')[2]}"))
    rows = changes.read_table("changes/changes.parquet").to_pylist()
    assert {row["scan_id"] for row in rows} == members
    assert {row["scan_id"] for row in rows if row["is_change"]} == PLANTED
    counts = [count for _, count in reader.seen]
    print("reads of each night:", counts)
    assert sum(counts[:2]) > 50, "the reader was there while nights were made"


def open_ids(home: Home) -> set[str]:
    return set(raysegment.open_cohort(home.out).read("scans")["scan_id"].to_pylist())
