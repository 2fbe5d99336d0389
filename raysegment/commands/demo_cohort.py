"""`raysegment demo --cohort`: three nights of a made-up archive, ending with pictures of what changed.

night 1   a network after few epochs; two scans were exported with their sequences in another order
night 2   four scans are new, and the two are there again as they should be
night 3   nothing is new, but the network was trained further
"""

from __future__ import annotations

import filecmp
import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from raysegment.choices import load_options
from raysegment.cluster.session import check_temp_dir, ray_session
from raysegment.commands.resegment import resegment
from raysegment.commands.train import train
from raysegment.errors import EXIT_DONE, EXIT_FAILED, UsageError
from raysegment.imaging.phantom import make_phantom, write_archive, write_scan
from raysegment.options import DemoOptions, ResegmentOptions, TrainOptions
from raysegment.runs.cohort import CohortFolder
from raysegment.runs.console import Console
from raysegment.store.place import Place

IMAGE_SIZE = 96
SLICES = 16
EPOCHS = (2, 6)
"""Of the network of the first two nights, and of the last one."""

NEW_SCANS = 4
SWAPPED_SCANS = (2, 3)
SWAPPED = (1, 2, 0)
"""Which sequence stands where in a wrong export: the network finds a lesion's brightness in another channel."""

TOLD = (
    "a network after few epochs",
    f"{NEW_SCANS} new scans, and {len(SWAPPED_SCANS)} whose sequences were in the wrong order are exported again",
    "the network was trained further, so all scans are segmented again",
)
NIGHTS = len(TOLD)

COHORT_FILE = """\
# Three nights of it are done. By hand: change or add scans in archive/, then
#
#   raysegment cohort check {file}
#   raysegment resegment {file}
name: demo
source: archive
model: trained
out: cohort
keep: {keep}
"""


@dataclass(frozen=True, kw_only=True)
class CohortDemoResult:
    """What the demo of a cohort came to.

    Attributes:
        file: The cohort file, for runs by hand.
        cohort: Folder of the cohort.
        nights: What each night came to, as `runs/` of the cohort has it.
        pictures: Of what changed in the second and third night.
        exit_code: 0; 1 where a night failed.
    """

    file: Path
    cohort: Path
    nights: tuple[dict[str, Any], ...]
    pictures: tuple[Path, ...] = ()
    exit_code: int = EXIT_DONE


def demo_cohort(options: DemoOptions) -> CohortDemoResult:
    """Train on made-up scans, and segment others in three nights; what is done already is not done again.

    Raises:
        UsageError: --out holds scans of another number of patients.
    """
    out = Path(options.out).absolute()
    check_temp_dir(options.address, options.temp_dir)
    Place(str(out)).make_writable()
    _prepare(out, options)
    console, folder = Console(None, as_json=options.json), CohortFolder(str(out / "cohort"))
    done = len(read_nights(folder))
    if done < NIGHTS:
        with ray_session(options.address, options.temp_dir):
            for night in range(done + 1, NIGHTS + 1):
                console.say(f"night {night}: {TOLD[night - 1]}")
                if run_night(night, out, options) == EXIT_FAILED:
                    return CohortDemoResult(
                        file=out / "cohort.yaml", cohort=out / "cohort", nights=(), exit_code=EXIT_FAILED
                    )
    nights = read_nights(folder)[:NIGHTS]
    result = CohortDemoResult(
        file=out / "cohort.yaml",
        cohort=out / "cohort",
        nights=tuple(nights),
        pictures=tuple(picture for night in nights if (picture := find_picture(out / "cohort", night)).is_file()),
    )
    if options.json:
        print(json.dumps({"nights": nights, "pictures": [str(picture) for picture in result.pictures]}))
    else:
        print(describe_cohort_demo(result))
    return result


def run_night(night: int, out: Path, options: DemoOptions) -> int:
    """What happens in the made-up hospital until a night, and the night; returns the exit code.

    Args:
        night: From 1.
        out: Folder of the demo.
        options: Choices of `demo`.
    """
    general = {"address": options.address, "temp_dir": options.temp_dir, "json": options.json}
    for name, pixels in make_archive(night, options):
        _export(out, name, pixels)
    training = {"source": str(out / "training"), "out": str(out / "trained"), "seed": options.seed, "val_fraction": 0.2}
    training["epochs"] = EPOCHS[-1] if night == NIGHTS else EPOCHS[0]
    trained = train(load_options(TrainOptions, training | general, recipe="demo"))
    if trained.exit_code == EXIT_FAILED:
        return EXIT_FAILED
    return resegment(load_options(ResegmentOptions, {"cohort": str(out / "cohort.yaml"), **general})).exit_code


def make_archive(night: int, options: DemoOptions) -> Iterator[tuple[str, np.ndarray[Any, np.dtype[np.uint8]]]]:
    """Names and pixels of the scans that the archive has in a night."""
    count = options.patients if night > 1 else options.patients - NEW_SCANS
    for patient in range(1, count + 1):
        # The training's scans are of other seeds, so nothing here was trained on.
        pixels, _ = make_phantom((options.seed + 1) * 2_000_003 + patient, image_size=IMAGE_SIZE, slices=SLICES)
        if night == 1 and patient in SWAPPED_SCANS:
            pixels = pixels[..., SWAPPED]
        yield f"PATIENT_{patient:04d}", pixels


def read_nights(folder: CohortFolder) -> list[dict[str, Any]]:
    """What the nights before came to, the first one first."""
    names = sorted(name for name in folder.place.list_names("runs") if name.endswith(".json"))
    return [json.loads(folder.place.read_bytes(f"runs/{name}")) for name in names]


def find_picture(cohort: Path, night: dict[str, Any]) -> Path:
    """Where the largest changes of a night are drawn; there is none of the first."""
    return cohort / "changes" / str(night["result"]).rpartition("/")[2] / "figures" / "largest_changes.png"


def describe_cohort_demo(result: CohortDemoResult) -> str:
    """What to look at, and how to go on by hand."""
    lines = ["", f"{len(result.nights)} nights of a cohort:"]
    for number, night in enumerate(result.nights, start=1):
        changed = "" if night["changed_scans"] is None else f", {night['changed_scans']} with a change"
        lines.append(f"  night {number}    {night['scans_now']} scans segmented{changed}: {TOLD[number - 1]}")
        if (picture := find_picture(result.cohort, night)).is_file():
            lines.append(f"             {picture}  (before and after, over the scans)")
    lines += [
        f"  changes    {result.cohort / 'changes'}  (tables, summaries and distributions of each night)",
        f'  current    raysegment.open_cohort("{result.cohort}").read("metrics")',
        f"  by hand    change or add scans in {result.file.parent / 'archive'}, then",
        f"             raysegment cohort check {result.file}",
        f"             raysegment resegment {result.file}",
    ]
    return "\n".join(lines)


def _prepare(out: Path, options: DemoOptions) -> None:
    """The training's scans and the cohort file, whole or not at all."""
    training, file = out / "training", out / "cohort.yaml"
    patients = max(8, options.patients // 2)
    if not training.exists():
        partial = out / "training.partial"
        shutil.rmtree(partial, ignore_errors=True)
        write_archive(partial, patients=patients, seed=options.seed, image_size=IMAGE_SIZE, slices=SLICES)
        partial.rename(training)
    if (found := sum(1 for _ in training.iterdir())) != patients:
        raise UsageError(
            f"--out {options.out} holds made-up scans of {found} patients to train on, --patients {options.patients} "
            f"needs {patients}. Choose another --out."
        )
    if not file.exists():
        Place(str(out)).write_bytes(file.name, COHORT_FILE.format(file=file, keep=NIGHTS).encode())


def _export(out: Path, name: str, pixels: np.ndarray[Any, np.dtype[np.uint8]]) -> None:
    """Put a scan into the archive in one step; one that is there as it should be keeps its time."""
    partial, scan = out / "arriving.partial", out / "archive" / name
    shutil.rmtree(partial, ignore_errors=True)
    write_scan(partial, name, pixels)
    files = sorted(path.name for path in partial.iterdir())
    if scan.is_dir() and filecmp.cmpfiles(partial, scan, files, shallow=False)[0] == files:
        shutil.rmtree(partial)
        return
    scan.parent.mkdir(exist_ok=True)
    shutil.rmtree(scan, ignore_errors=True)
    partial.rename(scan)
