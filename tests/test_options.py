"""The choices: checks, merging, identity."""

from __future__ import annotations

import typing
from dataclasses import fields

import pytest

from raysegment.choices import changed_result, hash_choices, load_options, pick
from raysegment.errors import UsageError
from raysegment.options import (
    CompareOptions,
    DemoOptions,
    EvaluateOptions,
    ExportOptions,
    IndexOptions,
    InferOptions,
    MeasureOptions,
    Postprocessing,
    Preprocessing,
    ReportOptions,
    ResegmentOptions,
    SearchOptions,
    TrainOptions,
    TuneOptions,
)
from raysegment.scan import SliceAxis

ALL = (
    CompareOptions,
    DemoOptions,
    EvaluateOptions,
    ExportOptions,
    IndexOptions,
    InferOptions,
    MeasureOptions,
    ReportOptions,
    ResegmentOptions,
    SearchOptions,
    TrainOptions,
    TuneOptions,
)
TRAIN = {"source": "archive", "out": "run"}
INFER = {"model": "run", "source": "archive", "out": "masks"}


def train(**given):
    return load_options(TrainOptions, {**TRAIN, **given})


@pytest.mark.parametrize("kind", ALL)
def test_every_choice_has_help(kind):
    assert [item.name for item in fields(kind) if not item.metadata["help"]] == []


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"epochs": "0"}, "--epochs is 0; expected at least 1"),
        ({"epochs": "-3"}, "--epochs is -3; expected at least 1"),
        ({"epochs": "ten"}, "--epochs is 'ten'; expected a whole number"),
        ({"epochs": 2.5}, "--epochs is 2.5; expected a whole number"),
        ({"epochs": True}, "--epochs is True; expected a whole number"),
        ({"learning_rate": "-0.1"}, "--learning-rate is -0.1; expected at least 0"),
        ({"learning_rate": "nan"}, "--learning-rate is nan; expected a finite number"),
        ({"learning_rate": "inf"}, "--learning-rate is inf; expected a finite number"),
        ({"dropout": 0.95}, "--dropout is 0.95; expected at most 0.9"),
        ({"loss": "hinge"}, "--loss 'hinge' is unknown; expected one of dice, bce, dice_bce, focal, tversky"),
        ({"augment": "yes"}, "--augment is 'yes'; expected true or false"),
        ({"channels": "0,x"}, "--channels is '0,x'; expected"),
        ({"source": None}, "SOURCE is missing"),
    ],
)
def test_a_wrong_value_is_named_with_what_was_expected(given, said):
    with pytest.raises(UsageError) as refused:
        train(**given)
    assert said in str(refused.value)


def test_an_image_size_that_cannot_be_halved_names_the_nearest_two():
    with pytest.raises(UsageError) as refused:
        train(image_size=250, depth=4)
    assert "240" in str(refused.value)
    assert "256" in str(refused.value)


def test_a_batch_that_does_not_divide_names_the_nearest_sizes():
    with pytest.raises(UsageError) as refused:
        train(batch_size=16, workers=3)
    assert "15" in str(refused.value)
    assert "18" in str(refused.value)


def test_fractions_above_one_are_refused():
    with pytest.raises(UsageError, match="add to more than 1"):
        train(train_fraction=0.9, val_fraction=0.2)


def test_a_spacing_given_to_train_is_for_the_size_of_pixels():
    chosen = train(pixel_mm=0.5, spacing_mm=(5.0, 1.0, 1.0))
    assert changed_result(chosen)["pixel_mm"] == 0.5
    assert {"pixel_mm", "spacing_mm"}.isdisjoint(changed_result(train()))
    with pytest.raises(UsageError, match="--spacing-mm does nothing without --pixel-mm"):
        train(spacing_mm=(5.0, 1.0, 1.0))
    with pytest.raises(UsageError, match="--pixel-mm is 0"):
        train(pixel_mm=0.0)


@pytest.mark.parametrize("spacing", ["1,1", "0,1,1", "1,1,-1", "1,nan,1", "1,1,inf"])
def test_a_spacing_must_be_three_positive_numbers(spacing):
    with pytest.raises(UsageError, match="slices,rows,columns"):
        load_options(InferOptions, {**INFER, "spacing_mm": spacing})


def test_lists_are_typed_with_commas():
    assert train(channels="1,2").channels == (1, 2)
    assert load_options(InferOptions, {**INFER, "spacing_mm": "5,0.5,0.5"}).spacing_mm == (5.0, 0.5, 0.5)


def test_later_sources_win(tmp_path):
    job = tmp_path / "job.yaml"
    job.write_text("recipe: lgg-dice-256\nepochs: 4\nlearning-rate: 0.01\n")
    options = load_options(TrainOptions, {**TRAIN, "epochs": 2}, job=str(job))
    assert (options.image_size, options.learning_rate, options.epochs) == (256, 0.01, 2)
    assert options.batch_size == 32


def test_the_recipe_typed_wins_over_that_of_the_job_file(tmp_path):
    job = tmp_path / "job.yaml"
    job.write_text("recipe: lgg-dice-256\n")
    assert load_options(TrainOptions, TRAIN, recipe="tif-bce-128", job=str(job)).image_size == 128


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("epoch: 4", r"unknown key 'epoch'; did you mean epochs( or \w+)*\?$"),
        ("zzz: 4", r"unknown key 'zzz'; known are .*epochs.*, zoom\.$"),
    ],
)
def test_an_unknown_key_names_the_near_ones_else_all(tmp_path, line, said):
    job = tmp_path / "job.yaml"
    job.write_text(f"{line}\n")
    with pytest.raises(UsageError, match=said):
        load_options(TrainOptions, TRAIN, job=str(job))


@pytest.mark.parametrize("key", ["notify", "notify: null\nallow-mass-vanish"])
def test_a_program_comes_from_the_command_line_and_never_from_a_file(tmp_path, key):
    job = tmp_path / "job.yaml"
    job.write_text(f"{key}: true\n")
    with pytest.raises(UsageError, match="notify is taken from the command line only"):
        load_options(ResegmentOptions, {"cohort": "c.yaml"}, job=str(job))
    typed = load_options(ResegmentOptions, {"cohort": "c.yaml", "notify": "mail"})
    assert typed.notify == "mail"


@pytest.mark.parametrize("text", ["- a\n", "a: [\n", "just words"])
def test_a_job_file_that_holds_no_choices_is_refused(tmp_path, text):
    job = tmp_path / "job.yaml"
    job.write_text(text)
    with pytest.raises(UsageError, match=r"job\.yaml"):
        load_options(TrainOptions, TRAIN, job=str(job))


def test_a_missing_job_file_is_named():
    with pytest.raises(UsageError, match=r"--job nowhere\.yaml does not exist"):
        load_options(TrainOptions, TRAIN, job="nowhere.yaml")


def test_what_does_not_change_the_result_is_not_part_of_its_identity():
    same = [train(), train(workers=2, threads=1, max_failures=9)]
    assert hash_choices(changed_result(same[0])) == hash_choices(changed_result(same[1]))
    other = {"batch_size": 4, "part_mb": 1, "limit": 2}
    masks = [load_options(InferOptions, {**INFER, **more}) for more in ({}, other)]
    assert hash_choices(changed_result(masks[0])) == hash_choices(changed_result(masks[1]))


@pytest.mark.parametrize("given", [{"threshold": 0.4}, {"fill_holes": True}, {"precision": "float32"}])
def test_what_changes_masks_is_part_of_their_identity(given):
    before, after = load_options(InferOptions, INFER), load_options(InferOptions, {**INFER, **given})
    assert hash_choices(changed_result(before)) != hash_choices(changed_result(after))


def test_the_bundle_gets_its_part_of_the_choices():
    chosen = {"image_size": 128, "crop": "foreground"}
    assert pick(Preprocessing, train(**chosen)) == Preprocessing(**chosen)
    infer = load_options(InferOptions, {**INFER, "threshold": 0.3})
    assert pick(Postprocessing, infer) == Postprocessing(threshold=0.3)


def test_choices_of_volumes_at_their_defaults_make_no_run_another_one():
    assert "slice_axis" not in changed_result(train())
    assert "resample_channels" not in changed_result(load_options(InferOptions, INFER))
    assert changed_result(train(slice_axis="coronal"))["slice_axis"] == "coronal"
    assert changed_result(load_options(InferOptions, {**INFER, "resample_channels": True}))["resample_channels"]
    words = typing.get_type_hints(Preprocessing)["slice_axis"]
    assert typing.get_args(words) == typing.get_args(SliceAxis)


def test_averaging_that_does_nothing_makes_no_run_another_one():
    names = {"mirror", "smooth_slices", "min_component_voxels"}
    assert names.isdisjoint(changed_result(train()))
    resolved = load_options(InferOptions, {**INFER, "mirror": "none", "smooth_slices": False})
    assert hash_choices(changed_result(resolved)) == hash_choices(changed_result(load_options(InferOptions, INFER)))
    chosen = changed_result(load_options(InferOptions, {**INFER, "mirror": "rows,columns", "smooth_slices": True}))
    assert (chosen["mirror"], chosen["smooth_slices"]) == ("rows,columns", True)
    assert changed_result(train(mirror="columns", min_component_voxels=0)).items() >= {
        ("mirror", "columns"),
        ("min_component_voxels", 0),
    }
    with pytest.raises(UsageError, match="--mirror 'columns,rows' is unknown; expected one of none, columns"):
        train(mirror="columns,rows")


def test_a_choice_of_several_texts_is_a_list_or_one_text():
    assert train(labels=["WT=1+2", "ET=2"]).labels == ("WT=1+2", "ET=2")
    assert train(labels="WT=1+2 ET=2").labels == ("WT=1+2 ET=2",)
    assert train().labels is None
    with pytest.raises(UsageError, match=r"--labels is .*; expected text, or a list of texts"):
        train(labels=[1, 2])


def test_a_list_from_python_is_as_good_as_a_tuple():
    options = MeasureOptions(tables="t", references="r", out="o", reference=["{scan}_seg.nii.gz"])
    assert options.reference == ("{scan}_seg.nii.gz",)


def test_what_a_recipe_chooses_for_a_switched_off_augmentation_is_left_out(tmp_path):
    job = tmp_path / "job.yaml"
    job.write_text("low_resolution: 0.25\nlow_resolution_factor: 3\nrecipe: lgg-best\n", encoding="utf-8")
    given = {"source": "scans", "out": "run"}
    assert load_options(TrainOptions, given, job=str(job)).low_resolution_factor == 3
    with pytest.raises(UsageError, match=r"--low-resolution-factor 3\S* does nothing beside --low-resolution 0"):
        load_options(TrainOptions, {**given, "low_resolution_factor": 3.0})


@pytest.mark.parametrize("given", ["1", "99,1", "1,2,3", "-1,99", "0,101"])
def test_percentiles_that_are_no_pair_are_refused(given):
    with pytest.raises(UsageError, match="must be two numbers from 0 to 100"):
        load_options(
            TrainOptions,
            {"source": "a", "out": "b", "normalization": "zscore", "clip_percentiles": given},
        )


def test_percentiles_to_clip_at_do_nothing_beside_a_normalization_without_them():
    with pytest.raises(UsageError, match=r"--clip-percentiles .* does nothing beside --normalization minmax"):
        TrainOptions(source="a", out="b", normalization="minmax", clip_percentiles=(0.5, 99.5))


def test_new_choices_at_their_defaults_make_no_run_another_one():
    plain = TrainOptions(source="a", out="b")
    names = {"clip_percentiles", "gamma", "elastic", "low_resolution", "low_resolution_factor", "bias_field"}
    assert not names & set(changed_result(plain))
    assert "gamma" in changed_result(TrainOptions(source="a", out="b", gamma=0.3))
