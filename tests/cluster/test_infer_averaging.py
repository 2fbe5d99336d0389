"""Mirrored passes and smoothing in whole runs: who chooses them, and the same masks however it runs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from untrained import save_untrained

from raysegment.choices import changed_result, hash_choices, pick
from raysegment.cluster.inference.run import resolve_options
from raysegment.commands.infer import infer
from raysegment.commands.train import train
from raysegment.errors import UsageError
from raysegment.options import InferOptions, Postprocessing, TrainOptions
from raysegment.pipeline.settings import warn_of_averaging
from raysegment.scan import Labels
from raysegment.store.masks import decode_mask
from raysegment.store.place import Place
from raysegment.store.publish import read_rows


def options_for(model: Path, archive: Path, out: Path, **changes) -> InferOptions:
    return InferOptions(model=str(model), source=str(archive), out=str(out), precision="float32", **changes)


def masks_of(out: Path) -> dict[str, bytes]:
    rows = read_rows(Place(str(out)), "masks").to_pylist()
    return {row["scan_id"]: decode_mask(row).tobytes() for row in rows}


def resolve(stored: Postprocessing, **given) -> InferOptions:
    bundle = SimpleNamespace(
        postprocessing=stored, labels=Labels(), threshold=(0.5,), count_members=lambda asked: asked
    )
    return resolve_options(options_for(Path("m"), Path("s"), Path("o"), **given), bundle, Labels(), {})


def test_the_bundle_says_how_to_average_unless_the_user_does():
    stored = Postprocessing(mirror="columns", smooth_slices=True)
    own, other = resolve(stored), resolve(stored, mirror="none", smooth_slices=False)
    assert (own.mirror, own.smooth_slices, other.mirror, other.smooth_slices) == ("columns", True, "none", False)
    plain = resolve(Postprocessing(), threshold=0.5)
    assert changed_result(other) == changed_result(plain)
    kept, left = (pick(Postprocessing, options) for options in (own, other))
    at_half = replace(stored, threshold=0.5)
    assert warn_of_averaging(kept, at_half) == warn_of_averaging(replace(left, threshold=0.4), at_half) == []
    (warning,) = warn_of_averaging(left, at_half)
    assert "was chosen with --mirror columns --smooth-slices" in warning
    # What version 0.3 wrote into run.json of a run that resolved to the same.
    before = {
        "threshold": 0.5,
        "min_component_voxels": 0,
        "largest_component": False,
        "fill_holes": False,
        "spacing_mm": None,
        "foreground_box": True,
        "precision": "float32",
    }
    assert hash_choices(changed_result(plain)) == hash_choices(before)


def test_sides_of_the_body_are_not_mirrored_where_files_do_not_say_where_they_are(tmp_path, phantom_archive):
    sides = Labels(("left", "right"), ((1,), (2,)))
    model = save_untrained(tmp_path / "model", sides)
    with pytest.raises(UsageError, match="--mirror rows: label left is of one side, and scans of format tiff"):
        infer(options_for(model, phantom_archive, tmp_path / "out", mirror="rows"))
    chosen = TrainOptions(
        source=str(phantom_archive), out=str(tmp_path / "run"), labels=sides.as_typed, flip=False, mirror="columns"
    )
    with pytest.raises(UsageError, match="--mirror columns: label left is of one side, and with --slice-axis auto"):
        train(chosen)
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "run").exists()


@pytest.mark.cluster
def test_averaged_masks_depend_on_no_batch_worker_or_resumption(ray_here, tmp_path, tiny_bundle, phantom_archive):
    chosen = {"mirror": "rows,columns", "smooth_slices": True}
    infer(options_for(tiny_bundle, phantom_archive, tmp_path / "whole", **chosen))
    parts = options_for(tiny_bundle, phantom_archive, tmp_path / "parts", **chosen, batch_size=5, workers=2)
    infer(replace(parts, limit=7))
    infer(replace(parts, batch_size=3, workers=1, part_seconds=0.0))
    whole = masks_of(tmp_path / "whole")
    assert len(whole) == 24
    assert masks_of(tmp_path / "parts") == whole
    infer(options_for(tiny_bundle, phantom_archive, tmp_path / "plain", limit=7))
    plain = masks_of(tmp_path / "plain")
    assert any(plain[name] != whole[name] for name in plain)
    assert json.loads((tmp_path / "whole" / "run.json").read_text())["result_options"]["mirror"] == "rows,columns"
    assert "mirror" not in json.loads((tmp_path / "plain" / "run.json").read_text())["result_options"]
    with pytest.raises(UsageError, match=r"mirror was rows,columns, is none; smooth_slices was True, is False"):
        infer(options_for(tiny_bundle, phantom_archive, tmp_path / "whole"))
    with pytest.raises(UsageError, match="mirror was none, is columns"):
        infer(options_for(tiny_bundle, phantom_archive, tmp_path / "plain", mirror="columns"))
