"""Rules of training, by its public functions with small real networks: best epoch, rates, statistics, memory."""

from __future__ import annotations

import hashlib
import tracemalloc
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import keras
import numpy as np
import pytest

from raysegment.archive.manifest import to_table
from raysegment.choices import changed_result
from raysegment.errors import UsageError
from raysegment.imaging.augment import Augmentation, augment_slice
from raysegment.imaging.intensity import measure_intensity
from raysegment.model.fit import FitTask, Fitter
from raysegment.options import Preprocessing, TrainOptions
from raysegment.pipeline import learn
from raysegment.pipeline.finish import predict_batches
from raysegment.pipeline.samples import KeptScan, keep_scan
from raysegment.pipeline.thresholds import score_thresholds
from raysegment.pipeline.training_set import (
    check_flip,
    check_label,
    keep_labels,
    warn_of_absent_labels,
    warn_of_lesions,
    warn_of_lone_sides,
)
from raysegment.scan import Labels, Scan, ScanEntry

SIDE = 16


def make_fitter(**choices: object) -> Fitter:
    small = {"image_size": SIDE, "filters": 2, "depth": 1, "batch_size": 4, "precision": "float32"}
    options = TrainOptions(source="scans", out="run", **{**small, **choices})
    return Fitter(FitTask(options=options, num_channels=1, steps_per_epoch=4))


def make_steps(first_epoch: int = 0) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Endless steps of noise in which each slice has one pixel of lesion."""
    random = np.random.default_rng(first_epoch)
    while True:
        pixels = random.normal(size=(4, SIDE, SIDE, 1)).astype(np.float32)
        reference = np.zeros((4, SIDE, SIDE), np.uint8)
        reference[:, 8, 8] = 1
        yield pixels, reference


def make_kept(slices: int = 4, side: int = SIDE, channels: int = 1) -> KeptScan:
    random = np.random.default_rng(slices)
    pixels = random.integers(0, 255, (slices, side, side, channels)).astype(np.uint8)
    reference = np.zeros(pixels.shape[:3], bool)
    reference[:, 8, 8] = True
    chosen = Preprocessing(image_size=side)
    return keep_scan("a", Scan(pixels), reference, chosen, num_channels=channels, for_validation=True)


def run_epochs(fitter: Fitter, folder: Path) -> learn.Progress:
    return learn.run_epochs(fitter, make_steps, {0: make_kept()}, 1, folder, lambda progress: None)


def test_among_epochs_of_equal_dice_the_lowest_loss_is_the_best(tmp_path: Path) -> None:
    fitter = make_fitter(epochs=6, norm="none", learning_rate=0.01, warmup_epochs=0.0, early_stopping=2)
    progress = run_epochs(fitter, tmp_path)
    history = progress.history
    losses = [row["val_loss"] for row in history]
    assert [row["val_dice"] for row in history] == [0.0] * 6
    assert losses == sorted(losses, reverse=True)
    assert progress.best_epoch == 6


class HalfMinuteClock:
    """Each look at it comes half a minute after the one before."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        self.now += 30.0
        return self.now


def test_the_learning_rate_has_fallen_when_the_minutes_are_spent(tmp_path: Path, monkeypatch) -> None:
    fitter = make_fitter(epochs=500, max_minutes=10.0, learning_rate=0.01)
    monkeypatch.setattr(learn, "time", HalfMinuteClock())
    history = run_epochs(fitter, tmp_path).history
    assert 5 <= len(history) <= 20
    assert history[-1]["learning_rate"] < 0.001
    rates = [row["learning_rate"] for row in history[2:]]
    assert rates == sorted(rates, reverse=True)


def test_how_long_to_train_is_not_what_a_run_is() -> None:
    longer = {"epochs": 50, "max_minutes": 5.0, "early_stopping": 3}
    one, other = (TrainOptions(source="a", out="b", **choices) for choices in ({}, longer))
    assert changed_result(one) == changed_result(other)


def test_averaged_weights_have_the_statistics_of_their_own_features() -> None:
    fitter = make_fitter(ema=0.9, learning_rate=0.05, warmup_epochs=0.0)
    given = [step for step, _ in zip(make_steps(), range(4), strict=False)]
    fitter.train_epoch(iter(given))
    first = next(layer for layer in fitter.model.layers if isinstance(layer, keras.layers.BatchNormalization))
    raw = [np.array(value) for value in fitter.model.get_weights()]
    with fitter.averaged_weights():
        seen = keras.Model(fitter.model.inputs, first.input)
        features = np.concatenate([np.asarray(seen(pixels)) for pixels, _ in given])
        assert np.asarray(first.moving_mean) == pytest.approx(features.mean(axis=(0, 1, 2)), abs=0.01)
        assert np.asarray(first.moving_variance) == pytest.approx(features.var(axis=(0, 1, 2)), rel=0.05)
    for before, after in zip(raw, fitter.model.get_weights(), strict=True):
        assert np.array_equal(before, after)


def test_the_best_weights_are_kept_with_the_statistics_they_were_validated_with(tmp_path: Path) -> None:
    fitter = make_fitter(ema=0.9, learning_rate=0.05, warmup_epochs=0.0, epochs=1)
    run_epochs(fitter, tmp_path)
    raw = fitter.model.get_weights()
    with fitter.averaged_weights():
        averaged = [np.array(value) for value in fitter.model.get_weights()]
    kept = learn.load_best(tmp_path, 1)
    assert all(np.allclose(one, other, rtol=1e-4) for one, other in zip(kept, averaged, strict=True))
    assert not any(np.allclose(one, other, rtol=1e-4) for one, other in zip(kept, raw, strict=True) if one.std() > 0)


def test_a_slice_that_comes_twice_in_an_epoch_is_augmented_anew() -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (SIDE, SIDE, 1)).astype(np.uint8)
    intensity = measure_intensity(pixels[None], "zscore")
    place = {"seed": 1, "epoch": 2, "scan_index": 3, "slice_index": 4}
    reference = np.zeros((SIDE, SIDE), np.uint8)
    found = [augment_slice(pixels, reference, intensity, Augmentation(), **place, occurrence=i)[0] for i in (0, 1, 0)]
    assert not np.array_equal(found[0], found[1])
    assert np.array_equal(found[0], found[2])


def test_validating_a_large_scan_holds_batches_of_it() -> None:
    kept = make_kept(slices=400, side=64, channels=3)
    options = TrainOptions(source="a", out="b", context_slices=2, batch_size=8)
    fitter = SimpleNamespace(
        task=SimpleNamespace(options=options, labels=Labels(), num_workers=1, rank=0),
        predict=lambda pixels: np.zeros((*pixels.shape[:3], 1), np.float32),
        slice_losses=lambda reference, probability: np.ones(len(reference), np.float32),
        sum_over_ranks=lambda values: values,
    )
    learn.validate(fitter, {0: kept}, 1, 2)
    tracemalloc.start()
    scores = learn.validate(fitter, {0: kept}, 1, 2)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert scores[0].tolist() == [0, 0, 400, 400, 400]
    assert kept.pixels.nbytes == 4_915_200
    assert peak < 8_000_000


def test_what_lesions_there_are_to_learn_from_is_said_before_the_first_epoch() -> None:
    some, none, every = np.array([True, False]), np.zeros(3, bool), np.ones(2, bool)
    options = TrainOptions(source="a", out="b", lesion_fraction=0.5)
    assert warn_of_lesions(options, some, some) == []
    (said,) = warn_of_lesions(options, some, none)
    assert said.startswith("warning: none of the 3 slices to validate on has a lesion; val_loss alone")
    (said,) = warn_of_lesions(options, every, some)
    assert "--lesion-fraction 0.5 has no effect" in said


def test_labels_that_nothing_shows_are_said_before_the_first_epoch() -> None:
    labels = Labels(("WT", "ET"), ((1, 2, 4), (4,)))
    assert warn_of_absent_labels(labels, frozenset({0, 1, 4}), frozenset({0, 4})) == []
    (said,) = warn_of_absent_labels(labels, frozenset({0, 1, 2}), frozenset({0, 4}))
    assert said.startswith("warning: label ET (4) is in no slice to train on")
    both = warn_of_absent_labels(labels, frozenset({0, 4}), frozenset({0}))
    assert ["to validate on" in line for line in both] == [True, True]
    assert warn_of_absent_labels(Labels(), frozenset({0}), frozenset({0})) == []


@pytest.mark.parametrize(
    ("names", "is_refused"),
    [
        (("Left-Hippocampus", "right-hippocampus"), True),
        (("kidney_L", "kidney_R"), True),
        (("tumour", "lh.cortex", "rh.cortex"), True),
        (("KidneyLeft", "KidneyRight"), True),
        (("leftKidney", "liver", "right_kidney"), True),
        (("leftkidney", "rightkidney"), True),
        (("LKidney", "RKidney"), True),
        (("ren sin.", "ren dex."), True),
        (("left", "right"), True),
        (("left kidney", "liver"), False),
        (("left kidney", "right lung"), False),
        (("left lobe 1", "right lobe 2"), False),
        (("левое left", "печень right"), False),
        (("Anterior", "Posterior"), False),
        (("bright", "cleft"), False),
    ],
)
def test_slices_are_not_flipped_where_two_labels_are_two_sides(names: tuple[str, ...], is_refused: bool) -> None:
    labels = Labels(names, tuple((value,) for value in range(1, len(names) + 1)))
    for unflipped in ({"flip": False}, {"augment": False, "flip": False}, {"augment": False}):
        check_flip(TrainOptions(source="a", out="b", **unflipped), labels)
    if not is_refused:
        check_flip(TrainOptions(source="a", out="b"), labels)
        return
    with pytest.raises(UsageError, match=r"are two sides: .* Give --no-flip"):
        check_flip(TrainOptions(source="a", out="b"), labels)


def test_a_side_without_the_other_one_is_warned_of():
    options = TrainOptions(source="a", out="b")
    labels = Labels(("left_kidney", "tumour", "KidneyLeft", "cleft", "L1"), tuple((value,) for value in range(1, 6)))
    assert [line.split()[2] for line in warn_of_lone_sides(options, labels)] == ["left_kidney", "KidneyLeft"]
    assert warn_of_lone_sides(replace(options, flip=False), labels) == []


def test_a_name_for_the_one_region_is_refused_beside_declared_labels():
    declared = Labels(("WT", "ET"), ((1, 4), (4,)))
    options = TrainOptions(source="a", out="b", label="tumour")
    with pytest.raises(UsageError, match=r"--label tumour does nothing beside .* dataset.json in a"):
        check_label(options, declared)
    with pytest.raises(UsageError, match=r"--label tumour does nothing beside the labels WT, ET of --labels"):
        check_label(replace(options, labels=("WT=1+4", "ET=4")), declared)
    check_label(options, Labels(("tumour",)))
    check_label(TrainOptions(source="a", out="b"), declared)


def test_a_run_goes_on_without_labels_that_were_declared_after_it_began():
    entry = ScanEntry(
        scan_id="a", patient_id="a", source="/", reader="tiff", files=("a.tif",), fingerprint="f", split="train"
    )
    manifest = to_table([entry])
    declared, options = Labels(("WT",), ((1, 4),)), TrainOptions(source="a", out="b")
    # What version 0.2 made of these rows.
    record = {"data_id": hashlib.sha256(b"a\0f\0train").hexdigest()}
    assert keep_labels(declared, options, manifest, record) == Labels(("lesion",))
    assert keep_labels(declared, options, manifest, {}) == declared
    assert keep_labels(declared, replace(options, labels=("WT=1+4",)), manifest, record) == declared


def test_choosing_the_threshold_on_a_large_scan_holds_batches_of_it() -> None:
    kept = make_kept(slices=400, side=64, channels=3)

    def choose() -> float:
        batches = predict_batches(lambda pixels: np.full((*pixels.shape[:3], 1), 0.7, np.float32), kept, 2)
        return float(score_thresholds([kept], [batches], Labels()).dice[0, 0])

    choose()
    tracemalloc.start()
    dice = choose()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert dice == pytest.approx(2 * 400 / (400 * 64 * 64 + 400))
    assert peak < 12_000_000
