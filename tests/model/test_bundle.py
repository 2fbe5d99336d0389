import io
import json
import pickle
import shutil
import subprocess
import sys
import zipfile
from hashlib import sha256

import keras
import numpy as np
import pytest

from raysegment.errors import UsageError
from raysegment.model.batch_norm import SynchronizedBatchNormalization
from raysegment.model.bundle import BundleDescription, compute_model_id, load_bundle, save_bundle
from raysegment.model.unet import build_network
from raysegment.options import Postprocessing, Preprocessing
from raysegment.scan import Labels


def describe(**changes):
    values = {
        "preprocessing": Preprocessing(image_size=16, normalization="minmax", channels=(0, 2)),
        "postprocessing": Postprocessing(threshold=0.35, min_component_voxels=9),
        "num_channels": 3,
        "network": {"network": "unet", "filters": 2, "depth": 2},
        "training_patients": ["TCGA_DU_7010", "TCGA_HT_A616"],
        "data": {"source": "archive"},
        "scores": {"val_dice": 0.8125},
        "provenance": {"seed": 0},
    }
    return BundleDescription(**values | changes)


@pytest.fixture(scope="module")
def network():
    keras.utils.set_random_seed(0)
    return build_network(input_shape=(16, 16, 2), filters=2, depth=2, batch_norm=SynchronizedBatchNormalization)


@pytest.fixture(scope="module")
def saved(tmp_path_factory, network):
    folder = tmp_path_factory.mktemp("run") / "model"
    save_bundle(folder, network, describe())
    return folder


@pytest.fixture
def bundle_folder(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "copy")


def test_a_bundle_reads_back_as_it_was_described(saved):
    bundle = load_bundle(saved)
    assert bundle.preprocessing == Preprocessing(image_size=16, normalization="minmax", channels=(0, 2))
    assert bundle.postprocessing == Postprocessing(threshold=0.35, min_component_voxels=9)
    assert (bundle.threshold, bundle.grid_factor, bundle.num_channels) == ((0.35,), 4, 3)
    assert bundle.labels.names == ("lesion",)
    assert bundle.scores == {"val_dice": 0.8125}


def test_a_bundle_of_one_label_says_it_as_version_0_2_did(saved):
    content = json.loads((saved / "model.json").read_text())
    assert content["labels"] == ["lesion"]
    assert content["postprocessing"]["threshold"] == 0.35


NESTED = Labels(("WT", "ET"), ((1, 2, 4), (4,)), ((255, 0, 0), None), (None, "SCT:1"))
APART = Labels(("Anterior", "Posterior"), ((1,), (2,)))


@pytest.mark.parametrize(
    ("labels", "threshold", "stored", "channels", "outputs"),
    [
        (NESTED, (0.4, 0.6), {"WT": 0.4, "ET": 0.6}, {"num_labels": 2}, "columns, labels)"),
        (APART, (0.45, 0.45), 0.45, {"num_labels": 2, "head": "softmax"}, "columns, background, then labels)"),
        (Labels(("liver",), ((6,),)), (0.3,), 0.3, {}, "columns, labels)"),
    ],
)
def test_labels_and_their_thresholds_read_back(tmp_path, labels, threshold, stored, channels, outputs):
    model = build_network(input_shape=(16, 16, 2), filters=2, depth=2, **channels)
    chosen = describe(labels=labels, threshold=stored, postprocessing=Postprocessing(min_component_voxels=9))
    bundle = save_bundle(tmp_path / "model", model, chosen)
    assert (bundle.labels, bundle.threshold) == (labels, threshold)
    assert bundle.postprocessing.min_component_voxels == 9
    assert json.loads((tmp_path / "model" / "model.json").read_text())["postprocessing"]["threshold"] == stored
    card = (tmp_path / "model" / "MODEL_CARD.md").read_text()
    assert outputs in " ".join(card.split())
    for name, region in zip(labels.names, labels.regions, strict=True):
        assert f"- {name}: {' + '.join(map(str, region))}" in card


def test_a_run_that_holds_a_bundle_is_one(saved):
    assert load_bundle(saved.parent).model_id == load_bundle(saved).model_id


def test_training_patients_are_stored_as_hashes_only(saved):
    bundle = load_bundle(saved)
    assert len(bundle.training_patients) == 2
    assert bundle.has_seen("TCGA_DU_7010")
    assert not bundle.has_seen("TCGA_XX_0000")
    plain = sha256(b"TCGA_DU_7010").hexdigest().encode()
    for file in saved.iterdir():
        assert b"TCGA_DU_7010" not in file.read_bytes()
        assert plain not in file.read_bytes()


def test_model_id_is_the_same_for_the_same_weights_and_choices_only(saved, network, tmp_path):
    first = load_bundle(saved).model_id
    assert save_bundle(tmp_path / "again", network, describe()).model_id == first
    other = describe(postprocessing=Postprocessing(threshold=0.5))
    assert save_bundle(tmp_path / "other", network, other).model_id != first
    trained = keras.models.clone_model(network)
    trained.set_weights([array + 1 for array in network.get_weights()])
    assert save_bundle(tmp_path / "trained", trained, describe()).model_id != first


def test_a_bundle_of_version_0_1_keeps_its_rules(saved, tmp_path):
    shutil.copytree(saved, tmp_path / "model")
    content = json.loads((tmp_path / "model" / "model.json").read_text())
    assert content["preprocessing"].pop("rules") == "0.2"
    content["model_id"] = compute_model_id(content)
    (tmp_path / "model" / "model.json").write_text(json.dumps(content))
    assert load_bundle(tmp_path / "model").preprocessing.rules == "0.1"


def test_a_bundle_of_version_0_3_keeps_its_identity_and_averages_nothing(saved, tmp_path):
    shutil.copytree(saved, tmp_path / "model")
    content = json.loads((tmp_path / "model" / "model.json").read_text())
    assert [content["postprocessing"].pop(name) for name in ("mirror", "smooth_slices")] == [None, None]
    content["model_id"] = compute_model_id(content)
    (tmp_path / "model" / "model.json").write_text(json.dumps(content))
    bundle = load_bundle(tmp_path / "model")
    assert bundle.model_id == content["model_id"]
    assert (bundle.postprocessing.mirror, bundle.postprocessing.smooth_slices) == ("none", False)


def test_what_tells_doubt_reads_back_and_stands_in_the_card_and_older_bundles_lack_it(saved, network, tmp_path):
    assert "doubt" not in json.loads((saved / "model.json").read_text())
    assert load_bundle(saved).doubt is None
    assert "Masks to look at" not in (saved / "MODEL_CARD.md").read_text()
    ranges = {"volume_range_ml": {"lesion": [0.5, 80.0]}, "volume_range_voxels": None, "slice_shape": None}
    rule = {"volume_in_training_range_is": False, "mirror_dice_below": 0.8}
    doubt = {**ranges, "volume_scans": 34, "regression": None, "rule": rule}
    bundle = save_bundle(tmp_path / "model", network, describe(doubt=doubt))
    assert bundle.doubt == doubt
    assert bundle.model_id != load_bundle(saved).model_id
    card = (tmp_path / "model" / "MODEL_CARD.md").read_text()
    assert "(`mirror_dice`): below 0.8" in card
    assert "Smallest and largest of 34 training references: lesion 0.5 to 80 ml." in card


def test_numbers_of_training_scans_read_back_and_stand_in_the_card_and_older_bundles_lack_them(
    saved, network, tmp_path
):
    assert "training_features" not in json.loads((saved / "model.json").read_text())
    assert load_bundle(saved).training_features is None
    assert "Numbers kept" not in (saved / "MODEL_CARD.md").read_text()
    kept = {"spacing": {"spacing_in_plane_mm": [0.5, 1.0, 1.0]}, "volume": {"volume_ml_lesion": [2.0, 80.13]}}
    bundle = save_bundle(tmp_path / "model", network, describe(training_features=kept))
    assert bundle.training_features == kept
    assert bundle.model_id != load_bundle(saved).model_id
    card = (tmp_path / "model" / "MODEL_CARD.md").read_text()
    assert "- spacing: spacing_in_plane_mm, of up to 3 patients" in card


def test_saving_again_replaces_the_bundle_and_leaves_nothing_beside_it(network, tmp_path):
    save_bundle(tmp_path / "model", network, describe())
    save_bundle(tmp_path / "model", network, describe(scores={"val_dice": 0.9}))
    assert load_bundle(tmp_path / "model").scores == {"val_dice": 0.9}
    assert [item.name for item in tmp_path.iterdir()] == ["model"]
    assert sorted(item.name for item in (tmp_path / "model").iterdir()) == [
        "MODEL_CARD.md",
        "model.json",
        "model.keras",
    ]


def test_the_network_loads_in_plain_keras_without_raysegment(saved, network, tmp_path):
    pixels = np.random.default_rng(0).random((2, 16, 16, 2), np.float32)
    np.save(tmp_path / "pixels.npy", pixels)
    code = (
        "import sys, keras, numpy as np; model = keras.saving.load_model(sys.argv[1], safe_mode=True);"
        "np.save('probability.npy', model(np.load('pixels.npy'))); sys.exit('raysegment' in sys.modules)"
    )
    subprocess.run([sys.executable, "-I", "-c", code, str(saved / "model.keras")], cwd=tmp_path, check=True)
    np.testing.assert_allclose(np.load(tmp_path / "probability.npy"), network(pixels), atol=1e-6)


def test_a_bundle_travels_without_its_folder(bundle_folder, network):
    packed = pickle.dumps(load_bundle(bundle_folder))
    shutil.rmtree(bundle_folder)
    pixels = np.ones((1, 16, 16, 2), np.float32)
    np.testing.assert_allclose(pickle.loads(packed).load_network()(pixels), network(pixels), atol=1e-6)


def test_the_card_says_what_a_person_must_know(saved):
    card = (saved / "MODEL_CARD.md").read_text()
    for text in ("Research use, not a medical device", "val dice: 0.8125", "Intended use", "source: archive"):
        assert text in card


def test_a_card_takes_no_headings_from_values(network, tmp_path):
    save_bundle(tmp_path / "model", network, describe(data={"source": "a\n## Scores\n[x](y)"}))
    lines = (tmp_path / "model" / "MODEL_CARD.md").read_text().splitlines()
    assert lines.count("## Scores") == 1


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda folder: shutil.rmtree(folder), "does not exist"),
        (lambda folder: (folder / "model.json").unlink(), "is no bundle and holds none"),
        (lambda folder: (folder / "model.json").write_text("{"), "cannot be read as JSON"),
        (lambda folder: (folder / "model.json").write_text("[]"), "is not of a raysegment bundle"),
        (lambda folder: (folder / "model.json").write_text('{"format": "raysegment-bundle"}'), "format_version None"),
        (lambda folder: (folder / "model.keras").unlink(), "bundle is incomplete"),
        (lambda folder: (folder / "model.keras").write_bytes(b"PK"), "does not match"),
    ],
)
def test_what_is_no_whole_bundle_is_refused_in_one_line(bundle_folder, damage, said):
    damage(bundle_folder)
    with pytest.raises(UsageError, match=said) as caught:
        load_bundle(bundle_folder)
    assert "\n" not in str(caught.value)


def test_a_network_from_another_bundle_is_refused(bundle_folder, tmp_path):
    other = build_network(input_shape=(16, 16, 2), filters=2, depth=2)
    save_bundle(tmp_path / "other", other, describe())
    shutil.copy(tmp_path / "other" / "model.keras", bundle_folder / "model.keras")
    with pytest.raises(UsageError, match="damaged or not the network this bundle was saved with"):
        load_bundle(bundle_folder)


def test_a_changed_description_is_refused(bundle_folder):
    content = json.loads((bundle_folder / "model.json").read_text())
    content["postprocessing"]["threshold"] = 0.9
    (bundle_folder / "model.json").write_text(json.dumps(content))
    with pytest.raises(UsageError, match="was changed after the bundle was saved"):
        load_bundle(bundle_folder)


@pytest.mark.parametrize("key", ["preprocessing", "network", "model_id", "num_channels", "training_patients"])
def test_a_description_without_a_key_is_refused(bundle_folder, key):
    content = json.loads((bundle_folder / "model.json").read_text())
    del content[key]
    (bundle_folder / "model.json").write_text(json.dumps(content))
    with pytest.raises(UsageError, match="damaged or from another version"):
        load_bundle(bundle_folder)


def exchange_network(folder, content):
    """Put another network into a bundle, with the hash that belongs to it."""
    (folder / "model.keras").write_bytes(content)
    description = json.loads((folder / "model.json").read_text())
    description["network_sha256"] = sha256(content).hexdigest()
    (folder / "model.json").write_text(json.dumps(description))


def save_bytes(model, tmp_path):
    model.save(tmp_path / "foreign.keras")
    return (tmp_path / "foreign.keras").read_bytes()


def run_foreign_code(features):
    return features


@keras.saving.register_keras_serializable(package="foreign")
class Foreign(keras.layers.Layer):
    def call(self, inputs):
        return inputs


@pytest.mark.parametrize(
    ("layer", "said"),
    [
        (lambda: keras.layers.Lambda(lambda x: x), "Lambda"),
        (Foreign, "Foreign"),
        (lambda: keras.layers.Conv2D(1, 1, activation=run_foreign_code), "function"),
        (lambda: keras.layers.Dense(1), "Dense"),
    ],
)
def test_layers_that_raysegment_does_not_build_are_refused(bundle_folder, tmp_path, layer, said):
    inputs = keras.Input((16, 16, 2))
    exchange_network(bundle_folder, save_bytes(keras.Model(inputs, layer()(inputs)), tmp_path))
    with pytest.raises(UsageError, match=said):
        load_bundle(bundle_folder)


def test_a_network_with_other_weights_is_refused_even_with_its_own_hash(bundle_folder, tmp_path):
    other = build_network(input_shape=(16, 16, 2), filters=2, depth=2)
    exchange_network(bundle_folder, save_bytes(other, tmp_path))
    with pytest.raises(UsageError, match="weights"):
        load_bundle(bundle_folder).load_network()


def test_an_archive_with_more_than_a_network_is_refused(bundle_folder):
    buffer = io.BytesIO((bundle_folder / "model.keras").read_bytes())
    with zipfile.ZipFile(buffer, "a") as archive:
        archive.writestr("assets/run.py", "raise SystemExit")
    exchange_network(bundle_folder, buffer.getvalue())
    with pytest.raises(UsageError, match=r"assets/run\.py"):
        load_bundle(bundle_folder).load_network()
