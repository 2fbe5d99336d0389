"""SPACE.yaml: what it may say, and what is refused with file, line and key."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raysegment.errors import UsageError
from raysegment.pipeline.search_space import Varied, count_combinations, read_search_plan, with_trials

SPACE = """source: archive
recipe: lgg-best
epochs: 9
trials: 6
seed: 5
space:
  learning-rate: {log_range: [1e-4, 0.003]}
  filters: {range: [12, 24]}
  optimizer: {choice: [adamw, sgd]}
  lesion_fraction: {choice: [null, 0.5]}
"""
HEAD = "source: archive\ntrials: 2\nspace:\n"


def write(folder: Path, text: str) -> str:
    path = folder / "SPACE.yaml"
    path.write_text(text)
    return str(path)


def test_a_space_says_what_varies_and_what_does_not(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    plan = read_search_plan(write(tmp_path, SPACE))
    assert plan.source == str(tmp_path / "archive")
    assert dict(plan.fixed) == {"epochs": 9, "seed": 5}
    assert (plan.search.trials, plan.seed, plan.epochs) == (6, 5, 9)
    assert plan.space == (
        Varied(name="learning_rate", kind="log_range", values=(1e-4, 0.003)),
        Varied(name="filters", kind="range", values=(12, 24), is_integer=True),
        Varied(name="optimizer", kind="choice", values=("adamw", "sgd")),
        Varied(name="lesion_fraction", kind="choice", values=(None, 0.5)),
    )


def test_a_trial_has_the_recipe_what_is_fixed_and_what_was_drawn(tmp_path):
    plan = read_search_plan(write(tmp_path, SPACE))
    drawn = {"learning_rate": 0.002, "filters": 13, "optimizer": "adamw", "lesion_fraction": None}
    options = plan.make_options(drawn, out="run", split_file="split.json")
    assert (options.learning_rate, options.filters, options.lesion_fraction) == (0.002, 13, None)
    assert (options.epochs, options.seed, options.image_size, options.split_file) == (9, 5, 128, "split.json")


def test_what_does_nothing_beside_what_was_drawn_is_left_out(tmp_path):
    text = SPACE + "  weight_decay: {range: [0.001, 0.1]}\n"
    plan = read_search_plan(write(tmp_path, text.replace("seed: 5", "momentum: 0.5")))
    drawn = {"learning_rate": 0.01, "filters": 12, "lesion_fraction": 0.5, "weight_decay": 0.05}
    assert plan.make_options({**drawn, "optimizer": "adamw"}, out="run").weight_decay == 0.05
    with_sgd = plan.make_options({**drawn, "optimizer": "sgd"}, out="run")
    assert (with_sgd.weight_decay, with_sgd.momentum) == (0.01, 0.5)


def test_fractions_of_the_split_are_for_the_search_and_not_for_its_trials(tmp_path):
    plan = read_search_plan(write(tmp_path, "train_fraction: 0.6\nval_fraction: 0.3\n" + SPACE))
    assert plan.make_options({}, out="run").train_fraction == 0.6
    assert plan.make_options({}, out="run", split_file="split.json").split_file == "split.json"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("trials: 2\nspace:\n  flip: {choice: [true, false]}\n", r"source is None; expected a folder"),
        ("source: archive\n", r"space must name at least one option"),
        (HEAD + "  fliters: {choice: [1, 2]}\n", r"line 4: space.fliters: unknown option 'fliters'; .* filters"),
        (HEAD + "  epochs: {choice: [1, 2]}\n", r"line 4: space.epochs: epochs must be the same for all trials"),
        (HEAD + "  split_file: {choice: [a, b]}\n", r"line 4: .*cannot vary: 'split_file'"),
        (HEAD + "  filters: [1, 2]\n", r"line 4: .*expected \{choice: \[value, …\]\}, \{range"),
        (HEAD + "  filters: {uniform: [1, 2]}\n", r"line 4: .*'uniform': \[1, 2\]; expected \{choice"),
        (HEAD + "  filters: {range: 4}\n", r"line 4: .*'range': 4; expected \{choice"),
        (HEAD + "  filters: {range: [1.5, 4]}\n", r"line 4: space.filters: --filters is 1.5; expected a whole number"),
        (HEAD + "  filters: {range: [8, 8]}\n", r"line 4: .*\[8, 8\]; expected \[low, high\] with low below high"),
        (HEAD + "  dropout: {range: [0, 2]}\n", r"line 4: space.dropout: --dropout is 2.0; expected at most 0.9"),
        (HEAD + "  dropout: {log_range: [0, 0.5]}\n", r"line 4: .*begins at 0.0; expected a low end above 0"),
        (HEAD + "  loss: {range: [dice, bce]}\n", r"line 4: .*loss is no number, so it has no range"),
        (HEAD + "  loss: {choice: [dice, hinge]}\n", r"line 4: space.loss: --loss 'hinge' is unknown; expected one"),
        (HEAD + "  loss: {choice: [dice]}\n", r"line 4: .*expected at least two values, each once"),
        (HEAD + "  loss: {choice: [dice, dice]}\n", r"line 4: .*expected at least two values, each once"),
        (HEAD + "  flip: {choice: [true, false]}\nflip: true\n", r"flip is both fixed \(line 5\) and varied"),
        (
            HEAD + "  flip: {choice: [true, false]}\n  flip: {choice: [false, true]}\n",
            r"line 5: space.flip is there tw",
        ),
        (HEAD + "  flip: {choice: [true, false]}\nepoch: 2\n", r"line 5: unknown key 'epoch'; did you mean epochs"),
        (HEAD + "  flip: {choice: [true, false]}\nepochs: 2\n", r"grace_epochs 3 are more than the 2 epochs"),
        (HEAD + "  flip: {choice: [true, false]}\nfilters: -1\n", r"line 5: --filters is -1; expected at least 1"),
        (HEAD + "  flip: {choice: [true, false]}\nout: runs\n", r"line 5: out belongs to the command line"),
        (HEAD + "  flip: {choice: [true, false]}\nrecipe: mine\n", r"line 5: --recipe 'mine' is unknown"),
        (HEAD + "  flip: {choice: [true, false]}\nreduction: 1\n", r"line 5: --reduction is 1; expected at least 2"),
        (HEAD.replace("2", "9") + "  flip: {choice: [true, false]}\n", r"line 2: 9 trials, but .* 2 combinations"),
        ("- source\n", r"must hold `key: value` lines"),
        ("source: [\n", r"cannot be read as YAML"),
    ],
)
def test_a_wrong_space_is_refused_with_the_place_and_what_is_allowed(tmp_path, text, said):
    with pytest.raises(UsageError, match=said) as refused:
        read_search_plan(write(tmp_path, text))
    assert "SPACE.yaml" in str(refused.value)


def test_a_missing_space_is_named():
    with pytest.raises(UsageError, match=r"nowhere\.yaml does not exist"):
        read_search_plan("nowhere.yaml")


def test_the_command_line_gives_the_number_of_trials(tmp_path):
    path = write(tmp_path, HEAD + "  flip: {choice: [true, false]}\n")
    plan = read_search_plan(path)
    assert with_trials(plan, 1, path).search.trials == 1
    assert with_trials(plan, None, path) is plan
    with pytest.raises(UsageError, match="--trials: 3 trials, but the space has 2 combinations"):
        with_trials(plan, 3, path)


def test_what_a_search_is_holds_options_that_change_it_and_no_others(tmp_path):
    identity = read_search_plan(write(tmp_path, SPACE + "\nworkers: 2\n")).identity
    assert identity["epochs"] == 9
    assert identity["image_size"] == 128
    assert identity["space.filters"] == "range 12 to 24"
    assert {"workers", "trials", "learning_rate"}.isdisjoint(identity)


@given(st.lists(st.integers(2, 40), min_size=1, max_size=5))
def test_combinations_are_counted(sizes):
    space = tuple(Varied(name="filters", kind="range", values=(1, size), is_integer=True) for size in sizes)
    product = 1
    for size in sizes:
        product *= size
    assert count_combinations(space) == product
    assert count_combinations((*space, Varied(name="noise", kind="range", values=(0.0, 1.0)))) is None
