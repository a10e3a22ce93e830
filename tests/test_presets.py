"""Every preset: complete, documented line by line, the published recipe, and run for real at reduced size."""

import json
import math
import re

import pytest
from tiny import rows_of, write_text

from autograd.errors import InputError
from minilstm.config import ModelConfig
from train.config import PRESETS, field_kinds, load_preset, preset_names, run_config_of
from train.wt103 import main

RECIPES = ["awd-ptb", "awd-wt103", "awd-wt2", "lstmlm-wt103", "lstmlm-wt103-full"]
SMALL = {
    "embedding_size": 8,
    "hidden_size": 10,
    "batch_size": 8,
    "window": 6,
    "evaluation_window": 6,
    "evaluate_every": 10,
    "warmup_steps": 0,
    "max_steps": 60,
    "epochs": 9,
    "learning_rate": 0.02,
    "min_count": 0,
}
OWN = {
    "awd-ptb": {"learning_rate": 1.0, "nonmono": 1},
    "awd-wt2": {"learning_rate": 1.0, "nonmono": 1},
    "lstmlm-wt103": {"num_samples": 6, "min_count": 3},
    "awd-wt103": {"adaptive_bands": "[4, 9]", "decay_epochs": "[1]"},
}


def preset(name, vocab_size):
    config = run_config_of(load_preset(name))
    return config.model_config(vocab_size), config.train


def test_the_recipes_are_there():
    assert set(RECIPES) <= set(preset_names())


@pytest.mark.parametrize("name", preset_names())
def test_every_line_says_what_it_is(name):
    lines = (PRESETS / f"{name}.toml").read_text().splitlines()
    keys = [line for line in lines if "=" in line and not line.startswith("#")]
    assert len(keys) > 10
    for line in keys:
        if not line.startswith(("optimizer", "schedule")):  # these say it themselves
            assert re.fullmatch(r"\w+ = \S+( \S+)*? {1,30}# \S.*", line), line
    assert max(map(len, lines)) <= 120


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_leaves_no_knob_of_the_model_to_a_default(name):
    given, config = load_preset(name)["model"], run_config_of(load_preset(name))
    open_ones = {"vocab_size"}
    open_ones |= {"num_samples"} if config.model["softmax"] != "sampled" else set()
    open_ones |= {"adaptive_bands"} if config.model["softmax"] != "adaptive" else set()
    open_ones |= set() if config.model["layer_norm"] else {"layer_norm_epsilon"}
    assert set(field_kinds(ModelConfig)) - set(given) == open_ones


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_leaves_no_knob_of_its_learning_to_a_default(name):
    given = load_preset(name)["train"]
    needed = {
        "data", "min_count", "batch_size", "accumulate", "window", "carry_state", "random_start",
        "shuffle_windows", "variable_window", "epochs", "optimizer", "learning_rate", "schedule",
        "weight_decay", "l2_tied", "clip_norm", "evaluate_every", "evaluation_protocol",
    }  # fmt: skip
    needed |= {"adam": {"beta1", "beta2", "epsilon"}, "nt_asgd": {"nonmono"}}[given["optimizer"]]
    needed |= {"decay_epochs", "decay_factor"} if given["schedule"] == "step" else set()
    assert needed - set(given) == set()


@pytest.mark.parametrize("name", ["lstmlm-wt103", "lstmlm-wt103-full", "wt103"])
def test_the_cards_size(name):
    assert preset(name, 267_735)[0].num_parameters() == 123_871_239
    assert round(preset(name, 267_340)[0].num_parameters() / 1e6, 1) == 123.7


def test_lstmlm_is_the_card():
    model, train = preset("lstmlm-wt103", 267_340)
    assert (model.encoder_emb_dropout, model.activation_dropout) == ("elements", "per_step")
    assert (model.softmax, model.num_samples, model.lstm_init) == ("sampled", 8192, "glorot")
    assert (train.window, train.optimizer, train.learning_rate, train.l2_tied) == (96, "adam", 1e-3, 2e-6)
    assert (train.random_start, train.shuffle_windows, train.carry_state) == (True, True, False)
    assert (train.min_count, train.evaluation_protocol, train.evaluation_window) == (3, "zero", 96)
    full_model, full_train = preset("lstmlm-wt103-full", 267_340)
    differing = {name for name in vars(model) if getattr(model, name) != getattr(full_model, name)}
    assert differing == {"softmax"}
    assert vars(full_train) == vars(train)


@pytest.mark.parametrize(
    ("name", "dropouti", "dropouth", "batch_size", "epochs"),
    [("awd-wt2", 0.65, 0.2, 80, 750), ("awd-ptb", 0.4, 0.25, 20, 500)],
)
def test_awd_is_the_published_recipe(name, dropouti, dropouth, batch_size, epochs):
    model, train = preset(name, 10_000)
    assert (model.num_layers, model.hidden_size, model.embedding_size) == (3, 1150, 400)
    assert model.encoder_emb_output_keep_prob == pytest.approx(1 - dropouti)
    assert model.encoder_dp_output_keep_prob == pytest.approx(1 - dropouth)
    between = model.encoder_dp_input_keep_prob, model.encoder_last_input_keep_prob
    assert between == (1, 1)  # one mask between two layers, not two
    assert (model.encoder_emb_keep_prob, model.encoder_emb_dropout) == (0.9, "rows")
    assert (model.encoder_last_output_keep_prob, model.recurrent_weight_keep_prob) == (0.6, 0.5)
    assert (model.activation_regularization, model.temporal_activation_regularization) == (2, 1)
    assert (train.batch_size, train.epochs, train.window) == (batch_size, epochs, 70)
    assert (train.optimizer, train.nonmono, train.learning_rate) == ("nt_asgd", 5, 30)
    assert (train.clip_norm, train.weight_decay) == (0.25, 1.2e-6)
    assert (train.variable_window, train.carry_state, train.evaluate_every) == (True, True, 0)


def test_awd_on_wikitext_103_decays_once_after_twelve_epochs():
    model, train = preset("awd-wt103", 267_735)
    assert (model.softmax, model.adaptive_bands) == ("adaptive", (2800, 20000, 76000))
    assert (train.optimizer, train.learning_rate, train.epochs, train.window) == ("adam", 1e-3, 14, 140)
    assert (train.schedule, train.decay_epochs, train.decay_factor) == ("step", (12,), 0.1)


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    return write_text(tmp_path_factory.mktemp("presets") / "text.txt", lines=140)


@pytest.mark.parametrize("name", preset_names())
def test_it_runs_for_real_at_reduced_size(name, text, monkeypatch):
    monkeypatch.setenv("MINILSTM_DATA", str(text.parent / "prepared"))
    run, knobs = text.parent / name, {**SMALL, **OWN.get(name, {})}
    settings = [part for key, value in knobs.items() for part in ("--set", f"{key}={value}")]
    assert main(["--preset", name, "--data", str(text), "--run-dir", str(run), *settings]) == 0
    result = json.loads((run / "result.json").read_text())
    assert result["steps"] == 60
    protocol = result["configuration"]["train"]["evaluation_protocol"]
    assert result["test"]["protocol"].startswith("zero" if protocol == "zero" else "state carried")
    assert all(math.isfinite(row["loss"]) for row in rows_of(run))
    assert result["valid"]["loss"] < 2.65  # a blind guess among 15 words costs 2.71 nats


def test_without_its_folder_the_penn_treebank_is_asked_for(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="data/penn: expected a folder"):
        main(["--preset", "awd-ptb", "--run-dir", str(tmp_path / "run")])
    assert list(tmp_path.iterdir()) == []
