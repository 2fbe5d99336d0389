"""The steps that are made for each rank; the tasks' own function, without Ray."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np

from raysegment.cluster.training.stream import SharePlan, unpack_step
from raysegment.imaging.phantom import make_phantom
from raysegment.options import Preprocessing, TrainOptions
from raysegment.pipeline.samples import keep_scan
from raysegment.scan import Scan


def make_kept(scans: int) -> SimpleNamespace:
    """What a plan needs of kept scans, held in this process."""
    kept = []
    for seed in range(scans):
        pixels, reference = make_phantom(seed, image_size=32, slices=4)
        chosen = Preprocessing(image_size=32)
        kept.append(keep_scan("a", Scan(pixels), reference, chosen, num_channels=3, for_validation=False))
    slices = np.array([(scan, index) for scan in range(scans) for index in range(4)])
    has_lesion = np.concatenate([item.has_lesion for item in kept])
    return SimpleNamespace(slices=slices, has_lesion=has_lesion, fetch=lambda scan: kept[scan])


def make_epoch(kept: SimpleNamespace, rank: int, num_workers: int) -> list[np.ndarray]:
    """Pixels of all steps of an epoch, as a rank gets them."""
    options = TrainOptions(source="a", out="b", batch_size=4, lesion_fraction=0.9, slices_per_epoch=22, image_size=32)
    plan = SharePlan(kept=kept, options=options, rank=rank, num_workers=num_workers)
    tables = [plan.make_task(1, task) for task in range(plan.tasks_per_epoch)]
    return [unpack_step(table.slice(row, 1))[0] for table in tables for row in range(table.num_rows)]


def test_two_ranks_together_get_the_samples_of_one_augmented_alike() -> None:
    kept = make_kept(3)
    alone, shares = make_epoch(kept, 0, 1), [make_epoch(kept, rank, 2) for rank in (0, 1)]
    assert len(alone) == 6
    for whole, *parts in zip(alone, *shares, strict=True):
        assert np.array_equal(whole, np.concatenate(parts))


def test_no_two_samples_of_an_epoch_are_copies_though_slices_are_repeated() -> None:
    kept = make_kept(2)
    samples = np.concatenate(make_epoch(kept, 0, 1))
    assert len(samples) == 24 > len(kept.slices)
    assert len({sample.tobytes() for sample in samples}) == 24


def test_label_maps_travel_in_their_own_type() -> None:
    kept = make_kept(1)
    scan = kept.fetch(0)
    large = replace(scan, reference=np.where(scan.reference > 0, 300, 0).astype(np.uint16))
    kept.fetch = lambda scan: large
    options = TrainOptions(source="a", out="b", batch_size=4, image_size=32, augment=False)
    plan = SharePlan(kept=kept, options=options, rank=0, num_workers=1)
    pixels, label_map = unpack_step(plan.make_task(0, 0).slice(0, 1))
    assert label_map.dtype == np.uint16
    assert label_map.shape == pixels.shape[:3]
    assert set(np.unique(label_map)) == {0, 300}
