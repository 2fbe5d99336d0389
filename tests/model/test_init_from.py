"""Fine-tuning: which choices and which weights of a base model are taken over, and what is said of the others."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from test_unet import randomize

from raysegment.choices import load_options
from raysegment.errors import UsageError
from raysegment.model.bundle import BundleDescription, load_bundle, save_bundle
from raysegment.model.ensemble import save_ensemble
from raysegment.model.fit import FitTask, Fitter
from raysegment.model.init_from import adopt_choices, describe_origin, find_start, load_base
from raysegment.model.transfer import Start
from raysegment.model.unet import build_network
from raysegment.options import Postprocessing, Preprocessing, TrainOptions
from raysegment.scan import Labels

SIDE = 16
NESTED = Labels(("WT", "ET"), ((1, 2, 4), (4,)))


def make_base(folder, *, channels=3, names=(), labels=None, network="unet", **choices):
    """A bundle whose weights are as after training."""
    labels = labels or Labels()
    keras.utils.set_random_seed(3)
    made = {"network": network, "filters": 4, "depth": 1, "dropout": 0.25, "norm": "batch", "norm_momentum": 0.8}
    model = build_network(
        **made,
        input_shape=(SIDE, SIDE, channels * (1 + 2 * choices.get("context_slices", 0))),
        num_labels=len(labels),
        head="softmax" if labels.exclude_each_other else "sigmoid",
    )
    description = BundleDescription(
        preprocessing=Preprocessing(image_size=16, normalization="minmax", **choices),
        postprocessing=Postprocessing(),
        labels=labels,
        num_channels=channels,
        network=made,
        training_patients=["known"],
        data={"channel_names": list(names)} if names else {},
    )
    return save_bundle(folder / "base", randomize(model), description)


def make_network(channels, *, network="unet", num_labels=1, head="sigmoid"):
    keras.utils.set_random_seed(8)
    shape = (SIDE, SIDE, channels)
    return build_network(
        network=network, filters=4, depth=1, input_shape=shape, num_labels=num_labels, head=head, dropout=0.25
    )


def make_pixels(channels, seed=0):
    return np.random.default_rng(seed).normal(size=(2, SIDE, SIDE, channels)).astype(np.float32)


def give(folder, **typed):
    return load_options(TrainOptions, {"source": "a", "out": "b", "init_from": str(folder), **typed})


def test_what_was_not_typed_is_as_the_base_has_it(tmp_path):
    base = make_base(tmp_path, context_slices=1)
    options = adopt_choices(give(base.path), base)
    network = (options.network, options.filters, options.depth, options.dropout, options.norm, options.norm_momentum)
    assert network == ("unet", 4, 1, 0.25, "batch", 0.8)
    assert (options.image_size, options.normalization, options.context_slices) == (16, "minmax", 1)


def test_a_recipe_gives_way_to_the_base_and_what_is_typed_does_not(tmp_path):
    base = make_base(tmp_path)
    given = {"source": "a", "out": "b", "init_from": str(base.path), "image_size": "256", "dropout": "0"}
    options = adopt_choices(load_options(TrainOptions, given, recipe="lgg-best"), base)
    assert (options.filters, options.context_slices, options.normalization) == (4, 0, "minmax")
    assert (options.image_size, options.dropout) == (256, 0.0)
    assert options.learning_rate == load_options(TrainOptions, given, recipe="lgg-best").learning_rate


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ({"filters": "32"}, "--filters 32 contradicts .* has filters 4"),
        ({"network": "attention_unet"}, "--network attention_unet contradicts .* has network unet"),
        ({"depth": "4"}, "--depth 4 contradicts .* has depth 1"),
        ({"norm": "group"}, "--norm group contradicts .* has norm batch"),
        ({"context_slices": "1"}, "--context-slices 1 contradicts .* has context_slices 0"),
        ({"image_size": "33"}, "--image-size 33 must divide by 2"),
        ({"spacing_mm": "5,1,1"}, "--spacing-mm does nothing"),
    ],
)
def test_what_contradicts_the_base_is_refused_with_both_named(tmp_path, typed, said):
    base = make_base(tmp_path)
    with pytest.raises(UsageError, match=said):
        adopt_choices(give(base.path, **typed), base)


def test_an_ensemble_is_refused_with_what_to_give_instead(tmp_path):
    base = make_base(tmp_path)
    description = BundleDescription(preprocessing=base.preprocessing, postprocessing=Postprocessing(), num_channels=3)
    save_ensemble(tmp_path / "both", [base, base], description)
    with pytest.raises(UsageError, match=r"is an ensemble of 2 networks; .* such as RUN/folds/0"):
        load_base(give(tmp_path / "both"))


def test_without_a_base_nothing_changes():
    options = TrainOptions(source="a", out="b")
    assert load_base(options) is None
    assert adopt_choices(options, None) is options
    assert describe_origin(find_start(options, ())) == {}


@pytest.mark.parametrize("network", ["unet", "attention_unet", "residual_unet"])
def test_the_same_channels_and_labels_give_the_same_network(tmp_path, network):
    base, model = make_base(tmp_path, network=network), make_network(3, network=network)
    said = Start(base=base).apply(model, Labels())
    layers = sum(bool(layer.get_weights()) for layer in model.layers)
    assert said == f"starting from model {base.model_id[:12]}: kept {layers} of {layers} layers"
    np.testing.assert_allclose(model(make_pixels(3)), base.load_network()(make_pixels(3)), atol=1e-6)


@pytest.mark.parametrize("network", ["unet", "residual_unet"])
def test_channels_without_names_and_more_labels_begin_anew_and_it_is_said(tmp_path, network):
    base, model = make_base(tmp_path, network=network), make_network(5, network=network, num_labels=2)
    before = [layer.get_weights() for layer in model.layers]
    said = Start(base=base).apply(model, NESTED)
    assert said.endswith("; new: first convolution (3 channels -> 5), probability (1 label -> 2)")
    same = [
        all(np.array_equal(one, other) for one, other in zip(old, layer.get_weights(), strict=True))
        for old, layer in zip(before, model.layers, strict=True)
        if old
    ]
    num_new = 3 if network == "residual_unet" else 2
    assert sum(same) == num_new
    assert f"kept {len(same) - num_new} of {len(same)} layers" in said


def test_a_first_block_that_needs_no_shortcut_is_told_from_one_that_does(tmp_path):
    base = make_base(tmp_path, channels=4, network="residual_unet")
    said = Start(base=base).apply(make_network(3, network="residual_unet"), Labels())
    assert said.endswith(
        "kept 17 of 20 layers; new: first convolution (4 channels -> 3), shortcut around the first block"
    )


def test_channels_are_found_again_by_their_names_and_new_ones_begin_with_zero(tmp_path):
    base = make_base(tmp_path, channels=2, names=("flair", "t1"), context_slices=1)
    model = make_network(9)
    start = Start(base=base, channel_names=("T1", "t2", "FLAIR"), context_slices=1)
    said = start.apply(model, Labels())
    assert "in part: first convolution (new t2-1, t2, t2+1)" in said
    pixels = make_pixels(9)
    # Each neighbour's channels come together: T1, t2, FLAIR of the slice before, of the slice, of the slice after.
    expected = base.load_network()(pixels[..., [2, 0, 5, 3, 8, 6]])
    np.testing.assert_allclose(model(pixels), expected, atol=1e-6)


def test_a_choice_among_the_channels_is_known_by_name_too(tmp_path):
    base, model = make_base(tmp_path, channels=2, names=("flair", "t1")), make_network(1)
    said = Start(base=base, channel_names=("t1", "t2"), channels=(0,)).apply(model, Labels())
    assert "in part: first convolution (without flair)" in said
    pixels = make_pixels(1)
    expected = base.load_network()(np.concatenate([np.zeros_like(pixels), pixels], axis=-1))
    np.testing.assert_allclose(model(pixels), expected, atol=1e-6)


def test_labels_are_found_again_by_their_names(tmp_path):
    base = make_base(tmp_path, labels=NESTED)
    model = make_network(3, num_labels=3)
    said = Start(base=base).apply(model, Labels(("TC", "ET", "WT"), ((1, 4), (4,), (1, 2, 4))))
    assert said.endswith("in part: probability (new TC)")
    np.testing.assert_allclose(
        np.asarray(model(make_pixels(3)))[..., [2, 1]], base.load_network()(make_pixels(3)), atol=1e-6
    )


def test_where_labels_exclude_each_other_the_background_is_kept(tmp_path):
    base = make_base(tmp_path, labels=Labels(("a", "b"), ((1,), (2,))))
    model = make_network(3, num_labels=2, head="softmax")
    Start(base=base).apply(model, Labels(("b", "a"), ((2,), (1,))))
    np.testing.assert_allclose(
        np.asarray(model(make_pixels(3)))[..., [0, 2, 1]], base.load_network()(make_pixels(3)), atol=1e-6
    )


def test_labels_that_overlap_take_nothing_from_those_that_exclude_each_other(tmp_path):
    base = make_base(tmp_path, labels=Labels(("WT", "ET"), ((1,), (2,))))
    assert "new: probability (2 labels -> 2)" in Start(base=base).apply(make_network(3, num_labels=2), NESTED)


def test_a_network_of_another_plan_is_refused(tmp_path):
    base = make_base(tmp_path)
    with pytest.raises(UsageError, match="do not follow the same plan"):
        Start(base=base).apply(make_network(3, network="residual_unet"), Labels())


def test_weights_and_their_average_start_from_the_base_and_a_checkpoint_goes_before_it(tmp_path):
    base = make_base(tmp_path)
    options = adopt_choices(give(base.path, ema="0.99", precision="float32", image_size=str(SIDE)), base)
    start = find_start(options, ())
    fitter = Fitter(FitTask(options=options, num_channels=3, steps_per_epoch=1, start=start))
    expected = base.load_network()
    for mine, theirs in zip(fitter.model.get_weights(), expected.get_weights(), strict=True):
        np.testing.assert_array_equal(mine, theirs)
    for mine, theirs in zip(fitter.average, expected.trainable_variables, strict=True):
        np.testing.assert_array_equal(mine.numpy(), theirs.numpy())
    assert fitter.origin.startswith(f"starting from model {base.model_id[:12]}: kept")
    fitter.model.set_weights([weight + 1 for weight in fitter.model.get_weights()])
    fitter.save(tmp_path, {})
    again = Fitter(FitTask(options=options, num_channels=3, steps_per_epoch=1, start=start))
    again.restore(tmp_path)
    np.testing.assert_array_equal(again.model.get_weights()[0], expected.get_weights()[0] + 1)


def test_patients_of_the_base_are_inherited_and_its_name_is_in_the_card(tmp_path):
    base = make_base(tmp_path)
    origin = describe_origin(Start(base=base))
    assert origin["origin"] == {"base_model_id": base.model_id}
    description = BundleDescription(
        preprocessing=Preprocessing(image_size=16),
        postprocessing=Postprocessing(),
        num_channels=3,
        network={"network": "unet", "filters": 4, "depth": 1},
        training_patients=["new"],
        inherited_patients=origin["inherited_patients"],
        provenance=origin["origin"],
    )
    tuned = save_bundle(tmp_path / "tuned", make_network(3), description)
    assert [name in tuned.training_patients for name in ("known", "new", "other")] == [True, True, False]
    assert len(tuned.training_patients) == 2
    assert f"base model id: {base.model_id}" in (tmp_path / "tuned" / "MODEL_CARD.md").read_text()
    assert load_bundle(tmp_path / "tuned").has_seen("known")
