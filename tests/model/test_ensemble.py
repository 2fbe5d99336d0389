import json
import pickle
import shutil
from dataclasses import replace
from hashlib import sha256

import keras
import numpy as np
import pytest
from test_bundle import describe
from test_unet import randomize

from raysegment.errors import UsageError
from raysegment.model.bundle import compute_model_id, load_bundle, save_bundle
from raysegment.model.engines.tensorflow import Predictor
from raysegment.model.ensemble import save_ensemble
from raysegment.model.unet import build_network
from raysegment.options import Preprocessing
from raysegment.scan import Labels

DEPTHS = (2, 2, 1)


def make_model(depth=2, channels=2, **head):
    return randomize(build_network(input_shape=(16, 16, channels), filters=2, depth=depth, **head))


@pytest.fixture(scope="module")
def bundles(tmp_path_factory):
    """Three networks, the last one with a coarser grid, trained on patients of their own and on one that all share."""
    keras.utils.set_random_seed(1)
    folder = tmp_path_factory.mktemp("folds")
    return [
        save_bundle(
            folder / str(k),
            make_model(depth),
            describe(
                network={"network": "unet", "filters": 2, "depth": depth, "norm": "batch"},
                training_patients=["shared", f"fold_{k}"],
            ),
        )
        for k, depth in enumerate(DEPTHS)
    ]


@pytest.fixture(scope="module")
def saved(tmp_path_factory, bundles):
    folder = tmp_path_factory.mktemp("run") / "model"
    save_ensemble(folder, bundles, describe(network={}, training_patients=["elsewhere"]))
    return folder


@pytest.fixture
def ensemble_folder(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "copy")


def make_pixels(num_slices=3):
    return np.random.default_rng(0).normal(size=(num_slices, 16, 24, 2)).astype(np.float32)


def rewrite(folder, change):
    """Change model.json as somebody who knows how its identity is computed."""
    content = json.loads((folder / "model.json").read_text())
    change(content)
    content["model_id"] = compute_model_id(content)
    (folder / "model.json").write_text(json.dumps(content))


def test_an_ensemble_reads_back_with_its_members_in_order(saved, bundles):
    assert sorted(str(file.relative_to(saved)) for file in saved.rglob("*")) == [
        *("MODEL_CARD.md", "members", "members/0.keras", "members/1.keras", "members/2.keras", "model.json")
    ]
    ensemble = load_bundle(saved.parent)
    assert (ensemble.num_members, ensemble.grid_factor, ensemble.threshold) == (3, 4, (0.35,))
    for model, bundle in zip(ensemble.load_networks(), bundles, strict=True):
        for array, other in zip(model.get_weights(), bundle.load_network().get_weights(), strict=True):
            np.testing.assert_array_equal(array, other)
    assert len(ensemble.load_networks(2)) == 2
    with pytest.raises(UsageError, match="holds 3 networks"):
        ensemble.load_networks(4)


def test_training_patients_of_all_members_are_those_of_the_ensemble(saved):
    ensemble = load_bundle(saved)
    seen = ["shared", "fold_0", "fold_1", "fold_2", "elsewhere"]
    assert all(name in ensemble.training_patients for name in seen)
    assert "fold_3" not in ensemble.training_patients
    assert ensemble.keep_members(1).has_seen("fold_2")


def test_the_same_members_make_the_same_model_and_another_order_another(saved, bundles, tmp_path):
    first = load_bundle(saved).model_id
    description = describe(network={}, training_patients=["elsewhere"])
    assert save_ensemble(tmp_path / "again", bundles, description).model_id == first
    assert save_ensemble(tmp_path / "turned", bundles[::-1], description).model_id != first
    assert load_bundle(shutil.copytree(saved, tmp_path / "moved")).model_id == first


def test_the_card_lists_the_members(saved, bundles):
    card = (saved / "MODEL_CARD.md").read_text()
    for k, bundle in enumerate(bundles):
        line = next(line for line in card.splitlines() if line.startswith(f"- members/{k}.keras"))
        assert bundle.model_id in line
        assert f"depth {DEPTHS[k]}" in line
    assert "mean over 3 networks" in card
    assert 'load_model("members/0.keras")' in card


def test_an_ensemble_travels_without_its_folder(ensemble_folder, bundles):
    packed = pickle.dumps(load_bundle(ensemble_folder).keep_members(2))
    shutil.rmtree(ensemble_folder)
    _, second = pickle.loads(packed).load_networks()
    pixels = make_pixels()[:, :, :16]
    np.testing.assert_allclose(second(pixels), bundles[1].load_network()(pixels), atol=1e-6)


def test_a_missing_member_is_named(ensemble_folder):
    (ensemble_folder / "members" / "1.keras").unlink()
    with pytest.raises(UsageError, match=r"members/1\.keras cannot be read: .* incomplete"):
        load_bundle(ensemble_folder)


def test_an_exchanged_member_is_named(ensemble_folder):
    shutil.copy(ensemble_folder / "members" / "0.keras", ensemble_folder / "members" / "1.keras")
    with pytest.raises(UsageError, match=r"members/1\.keras is damaged or not the network"):
        load_bundle(ensemble_folder)


def test_a_tampered_member_is_named(ensemble_folder):
    file = ensemble_folder / "members" / "2.keras"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with pytest.raises(UsageError, match=r"members/2\.keras is damaged"):
        load_bundle(ensemble_folder)


def test_a_member_with_layers_that_raysegment_does_not_build_is_refused_even_with_its_own_hash(ensemble_folder):
    inputs = keras.Input((16, 16, 2))
    file = ensemble_folder / "members" / "1.keras"
    keras.Model(inputs, keras.layers.Lambda(lambda pixels: pixels)(inputs)).save(file)

    def change(content):
        content["members"][1]["network_sha256"] = sha256(file.read_bytes()).hexdigest()

    rewrite(ensemble_folder, change)
    with pytest.raises(UsageError, match=r"members/1\.keras is refused: it holds a Lambda layer"):
        load_bundle(ensemble_folder)


def test_a_member_with_other_weights_is_refused_even_with_its_own_hash(ensemble_folder):
    file = ensemble_folder / "members" / "1.keras"
    shutil.copy(ensemble_folder / "members" / "0.keras", file)

    def change(content):
        content["members"][1]["network_sha256"] = content["members"][0]["network_sha256"]

    rewrite(ensemble_folder, change)
    with pytest.raises(UsageError, match=r"members/1\.keras does not hold the weights"):
        load_bundle(ensemble_folder).load_networks()


def test_members_taken_out_of_the_description_are_noticed(ensemble_folder):
    content = json.loads((ensemble_folder / "model.json").read_text())
    content["members"].pop()
    (ensemble_folder / "model.json").write_text(json.dumps(content))
    with pytest.raises(UsageError, match="was changed after the bundle was saved"):
        load_bundle(ensemble_folder)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda content: content.update(members=[]), "damaged"),
        (lambda content: content.update(members="three"), "damaged"),
        (lambda content: content["members"][0].pop("network"), "damaged"),
        (lambda content: content.update(format_version=1), "format_version 1"),
    ],
)
def test_a_description_that_does_not_say_its_members_is_refused(ensemble_folder, change, said):
    content = json.loads((ensemble_folder / "model.json").read_text())
    change(content)
    (ensemble_folder / "model.json").write_text(json.dumps(content))
    with pytest.raises(UsageError, match=said):
        load_bundle(ensemble_folder)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"num_channels": 4}, "number of channels is 3, of the others 4"),
        ({"data": {"channel_names": ["T1", "T2", "FLAIR"]}}, "channel names"),
        ({"labels": Labels(("liver",), ((6,),))}, r"labels is \['lesion'\], of the others \['liver', 'liver=6'\]"),
        ({"preprocessing": Preprocessing(image_size=32, normalization="minmax", channels=(0, 2))}, "image size is 16"),
    ],
)
def test_bundles_that_do_not_fit_together_are_refused(bundles, tmp_path, change, said):
    with pytest.raises(UsageError, match=said):
        save_ensemble(tmp_path / "model", bundles, describe(**change))
    assert not list(tmp_path.iterdir())


def test_an_ensemble_of_nothing_is_refused(tmp_path):
    with pytest.raises(UsageError, match="has no networks"):
        save_ensemble(tmp_path / "model", [], describe())


def test_probabilities_are_the_mean_of_the_members(saved, bundles):
    pixels = make_pixels(7)
    alone = [Predictor(bundle, precision="float32", batch_size=4).predict(pixels) for bundle in bundles]
    ensemble = Predictor(load_bundle(saved), precision="float32", batch_size=4)
    assert (ensemble.num_members, ensemble.grid_factor, ensemble.num_labels) == (3, 4, 1)
    for probability, expected in zip(ensemble.predict_each(pixels), alone, strict=True):
        np.testing.assert_array_equal(probability, expected)
    np.testing.assert_allclose(ensemble.predict(pixels), np.mean(np.float64(alone), axis=0), atol=1e-6)


def test_the_first_members_alone_are_as_their_own_bundles(saved, bundles):
    pixels = make_pixels()
    kept = Predictor(load_bundle(saved).keep_members(1), precision="float32")
    assert kept.num_members == 1
    np.testing.assert_array_equal(kept.predict(pixels), Predictor(bundles[0], precision="float32").predict(pixels))


def test_no_slices_have_no_probabilities_of_any_member(saved):
    each = Predictor(load_bundle(saved), precision="float32").predict_each(make_pixels(0))
    assert [probability.shape for probability in each] == [(0, 16, 24, 1)] * 3


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"channels": 3}, "network 1 of the ensemble maps 3 channels to 1 labels by sigmoid, network 0 2 channels"),
        ({"num_labels": 2}, "2 labels by sigmoid"),
        ({"head": "softmax"}, "1 labels by softmax"),
    ],
)
def test_networks_whose_probabilities_cannot_be_averaged_are_refused(other, said):
    with pytest.raises(UsageError, match=said):
        Predictor([make_model(), make_model(**other)], precision="float32")


def test_members_of_a_plain_bundle_are_one(bundles):
    assert bundles[0].count_members(1) is None
    assert bundles[0].keep_members(1) == bundles[0]
    with pytest.raises(UsageError, match=r"--members 2: .* holds one network"):
        bundles[0].count_members(2)


def test_all_members_asked_for_is_as_none_asked_for(saved):
    ensemble = load_bundle(saved)
    assert [ensemble.count_members(asked) for asked in (None, 3, 2)] == [None, None, 2]
    assert replace(ensemble, members=ensemble.members[:2]) == ensemble.keep_members(2)
