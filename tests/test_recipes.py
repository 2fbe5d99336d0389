"""The recipes shipped with the package."""

from __future__ import annotations

import pytest

from raysegment.choices import load_options, read_recipe, recipe_names
from raysegment.options import TrainOptions

PLACES = {"source": "archive", "out": "run"}


def test_every_ancestor_project_has_its_recipe():
    assert {"folders-report", "lgg-best", "lgg-dice-256", "tif-bce-128"} <= set(recipe_names())


@pytest.mark.parametrize("name", recipe_names())
def test_a_recipe_holds_only_valid_choices(name):
    options = load_options(TrainOptions, PLACES, recipe=name)
    for key, value in read_recipe(name).items():
        assert getattr(options, key) == (tuple(value) if isinstance(value, list) else pytest.approx(value)), key


@pytest.mark.parametrize("name", recipe_names())
def test_a_recipe_can_be_trained_by_two_workers(name):
    assert load_options(TrainOptions, {**PLACES, "workers": 2}, recipe=name).batch_size % 2 == 0


def test_the_command_line_wins_over_the_recipe():
    assert load_options(TrainOptions, {**PLACES, "epochs": 3}, recipe="lgg-dice-256").epochs == 3


def test_lgg_dice_256_is_what_its_author_ran():
    options = load_options(TrainOptions, PLACES, recipe="lgg-dice-256")
    chosen = (options.image_size, options.loss, options.optimizer, options.learning_rate, options.batch_size)
    assert chosen == (256, "dice", "adam", 1e-4, 32)
    assert (options.epochs, options.best_by) == (10, "val_loss")
    assert (options.train_fraction, options.val_fraction) == (0.9, 0.05)
    assert min(options.rotation, options.shift, options.zoom, options.shear) > 0
    assert options.flip


def test_tif_bce_128_is_what_its_author_ran():
    options = load_options(TrainOptions, PLACES, recipe="tif-bce-128")
    assert (options.image_size, options.loss, options.batch_size, options.epochs) == (128, "bce", 8, 20)
    assert [options.filters * 2**level for level in range(options.depth + 1)] == [64, 128, 256]
    assert options.dropout > 0


def test_brats2020_names_the_regions_of_its_years_and_other_numberings_win_over_them():
    options = load_options(TrainOptions, PLACES, recipe="brats2020")
    assert options.labels == ("WT=1+2+4", "TC=1+4", "ET=4")
    assert options.normalization == "zscore_foreground"
    given = {**PLACES, "labels": ("WT=1+2+3", "TC=1+3", "ET=3")}
    assert load_options(TrainOptions, given, recipe="brats2020").labels == ("WT=1+2+3", "TC=1+3", "ET=3")


def test_hippocampus_sees_coronal_slices_and_takes_its_labels_from_the_data_set():
    options = load_options(TrainOptions, PLACES, recipe="hippocampus")
    assert (options.slice_axis, options.image_size, options.labels) == ("coronal", 64, None)
