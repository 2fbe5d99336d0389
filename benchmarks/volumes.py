"""NIfTI volumes: reading against plain nibabel, and the memory that one large volume takes.

    python benchmarks/volumes.py NIFTI_DIR [--large]

Reading is timed per core: nibabel's `dataobj` as an array, against a kept-alive decoder with its transport, in the same
process sitting, files in the page cache. `--large` makes a volume of 512x512x800 voxels of 16 bits with a reference of
two labels, segments it with a small network for two labels at 256x256, and prints the peak of each process.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

LARGE_SHAPE = (512, 512, 800)
SPACING_MM = (0.7, 0.7, 1.0)
ROUNDS = 3


def time_reading(archive: Path) -> tuple[float, float]:
    """Megabytes of decoded voxels per second and core: nibabel, and the decoder with its transport."""
    import nibabel

    from raysegment.archive.decoder import Decoder
    from raysegment.archive.index import find_scans
    from raysegment.archive.manifest import entries
    from raysegment.pipeline.blocks import read_block

    scans = [entry for entry in entries(find_scans(str(archive))) if not entry.problem]
    files = [Path(entry.source) / name for entry in scans for name in entry.files]
    bare = [entry.__class__(**{**vars(entry), "reference_files": ()}) for entry in scans]
    plain = ours = 0.0
    with Decoder() as decoder:
        next(iter(read_block(decoder, bare[:1])))
        for _ in range(ROUNDS):
            started = time.perf_counter()
            size = sum(np.asarray(nibabel.load(file).dataobj).nbytes for file in files)
            plain = max(plain, size / 2**20 / (time.perf_counter() - started))
            started = time.perf_counter()
            size = sum(block["pixels"].nbytes for block in read_block(decoder, bare))
            ours = max(ours, size / 2**20 / (time.perf_counter() - started))
    return plain, ours


def make_large(folder: Path) -> Path:
    """One volume of noise around two spheres, and its label map."""
    import nibabel

    images, labels = folder / "imagesTr", folder / "labelsTr"
    images.mkdir(parents=True)
    labels.mkdir()
    random = np.random.default_rng(0)
    volume = random.integers(0, 200, LARGE_SHAPE, np.int16)
    reference = np.zeros(LARGE_SHAPE, np.uint8)
    rows, columns = np.ogrid[: LARGE_SHAPE[0], : LARGE_SHAPE[1]]
    for label, centre in ((1, (200, 256, 300)), (2, (320, 256, 500))):
        for plane in range(LARGE_SHAPE[2]):
            radius = 150**2 - (plane - centre[2]) ** 2
            inside = (rows - centre[0]) ** 2 + (columns - centre[1]) ** 2 < radius
            volume[..., plane][inside] += np.int16(400 * label)
            reference[..., plane][inside] = label
    affine = np.diag([*SPACING_MM, 1.0])
    nibabel.save(nibabel.Nifti1Image(volume, affine), images / "large.nii.gz")
    nibabel.save(nibabel.Nifti1Image(reference, affine), labels / "large.nii.gz")
    return folder


def make_bundle(folder: Path) -> None:
    from raysegment.model.bundle import BundleDescription, save_bundle
    from raysegment.model.unet import build_network
    from raysegment.options import Postprocessing, Preprocessing
    from raysegment.scan import Labels

    choices = {"network": "unet", "filters": 8, "depth": 3, "dropout": 0.0, "norm": "batch"}
    description = BundleDescription(
        preprocessing=Preprocessing(image_size=256),
        postprocessing=Postprocessing(),
        num_channels=1,
        network=choices,
        labels=Labels(("first", "second"), ((1,), (2,))),
    )
    network = build_network(**choices, norm_momentum=0.9, input_shape=(256, 256, 1), num_labels=2, head="softmax")
    save_bundle(folder, network, description)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("archive", type=Path)
    parser.add_argument("--large", action="store_true")
    arguments = parser.parse_args()
    plain, ours = time_reading(arguments.archive)
    print(
        f"nibabel {plain:.0f} MB/s, decoder with transport {ours:.0f} MB/s: {ours / plain:.2f} of nibabel", flush=True
    )
    if arguments.large:
        from memory import run_infer

        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch)
            make_bundle(folder / "model")
            run_infer(folder / "model", make_large(folder / "large"), folder / "out", 3600)


if __name__ == "__main__":
    main()
